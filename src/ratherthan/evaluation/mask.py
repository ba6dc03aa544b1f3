"""`mask`: what is left of the top two classes when only positive or negative features are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, chosen, register_experiment
from ratherthan.evaluation.perturb import FILLS, filled, pixel_maps


class Protocol(NamedTuple):
    """What a preset fixes."""

    threshold: float
    sigma: tuple[float, float]
    align_corners: bool
    shifted: bool


PROTOCOLS = {
    "paper": Protocol(0.1, (15.0, 15.0), align_corners=True, shifted=True),
    "official-code": Protocol(0.4, (10.0, 20.0), align_corners=True, shifted=False),
    "strict": Protocol(0.1, (15.0, 15.0), align_corners=False, shifted=True),
}
TARGETS, KEPT = ("t1", "t2"), ("positive", "negative")


@register_experiment
@dataclass(frozen=True)
class Mask(Experiment):
    r"""Keep positive, or negative, features and look at the top two classes (weighted-contrast Tables 1 and 2).

    For the two likeliest classes t1, t2 of the clean image, and the map phi of either (foils: all other classes),

        x'_ij = x_ij where the feature is kept, else the fill;    keep positive replaces phi_ij < 0, negative phi_ij > 0
        p-bar_ti = mean over samples with p_t2 > threshold of exp(y'_ti) / (exp(y'_t1) + exp(y'_t2))

    A faithful map of ti raises p-bar_ti when its positive features are kept, and lowers it when its negative ones are.

    Presets: `paper`, as printed; the sigma of its blur, which the paper does not state, is 15, the middle of the range
    in the authors' code, and maps are upsampled as in that code. `official-code`: the authors' code, which draws sigma
    from [10, 20] for every pair of methods, has 0.4 for a threshold and does not shift its exponentials (a logit above
    88 gives NaN). `strict`: fixed sigma, shifted exponentials, pixel grids aligned as in `Explanation.heatmap`.

    Attributes:
        preset: "paper", "official-code" or "strict".
        threshold: Least probability of the second class; None: the preset's.
        sigma: Of the Gaussian blur, in pixels of a 224-pixel image (scaled to other sizes); None: the preset's.
        fills: What replaces pixels: "blur", "zeros" (after normalisation), "mean" (of the image, per channel).
    """

    preset: str = "paper"
    threshold: float | None = None
    sigma: float | None = None
    fills: tuple[str, ...] = FILLS

    name: ClassVar[str] = "mask"
    settings = ("target", "fill", "keep")
    measures = ("before", "relative", "replaced")
    shown = ("relative",)
    lead = "before"
    layout = (("method", "target"), ("fill", "keep", "contrast"))
    methods = ("gradcam", "la")

    def __post_init__(self) -> None:
        chosen("preset", self.preset, PROTOCOLS)
        for fill in self.fills:
            chosen("fill", fill, FILLS)
        if not self.fills or (self.sigma is not None and self.sigma <= 0):
            raise InputError(
                f"{self.name} needs at least one fill and a positive sigma, not {self.fills}, {self.sigma}"
            )

    @property
    def protocol(self) -> Protocol:
        """The preset with what was set by hand."""
        preset = PROTOCOLS[self.preset]
        threshold = preset.threshold if self.threshold is None else self.threshold
        sigma = preset.sigma if self.sigma is None else (self.sigma, self.sigma)
        return preset._replace(threshold=threshold, sigma=sigma)

    def better(self, cell: Mapping[str, Any]) -> int:
        """Kept positive features should raise the class, kept negative ones lower it."""
        return 1 if cell["keep"] == "positive" else -1

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """All maskings of the samples whose second class is likely enough."""
        clean = batch.logits([batch.images])[0]
        likely = clean.softmax(1).topk(2).values[:, 1] > self.protocol.threshold
        batch, clean = batch.keep(likely), clean[likely]
        if not batch.ids:
            return
        top = clean.topk(2).indices
        replaced = self._replaced_by_key(batch, top)
        plan = list(product(replaced, range(2), self.fills))
        logits = batch.logits(self._variants(batch, replaced, plan))
        before = self._relative(clean, top)
        for (key, target, fill), altered in zip(plan, logits, strict=True):
            method, contrast, keep = key
            yield batch.rows(
                method,
                contrast,
                {"target": TARGETS[target], "fill": fill, "keep": keep},
                before=before[:, target],
                relative=self._relative(altered, top)[:, target],
                replaced=replaced[key][:, target].float().mean((1, 2)),
            )

    def replaced(self, maps: Tensor) -> dict[str, Tensor]:
        """Which pixels are replaced when the features named by the key are kept.

        Args:
            maps: (contrasts, n, 2, H, W) of one method.

        Returns:
            For "positive" and "negative", bool of the same shape. Zeros always stay.
        """
        return {"positive": maps < 0, "negative": maps > 0}

    def _replaced_by_key(self, batch: Batch, top: Tensor) -> dict[tuple[str, str, str], Tensor]:
        found = batch.explain(fact=top)
        pixels = {key: pixel_maps(why, self.protocol.align_corners) for key, why in found.items()}
        masks: dict[tuple[str, str, str], Tensor] = {}
        for method in batch.methods:
            replaced = self.replaced(torch.stack([pixels[method, contrast] for contrast in batch.contrasts]))
            masks |= {(method, c, keep): replaced[keep][i] for i, c in enumerate(batch.contrasts) for keep in KEPT}
        return masks

    def _variants(
        self,
        batch: Batch,
        replaced: Mapping[tuple[str, str, str], Tensor],
        plan: list[tuple[tuple[str, str, str], int, str]],
    ) -> Iterator[Tensor]:
        low, high = self.protocol.sigma
        made: dict[tuple[str, ...], Tensor] = {}
        for key, target, fill in plan:
            method, _, keep = key
            # the authors blur anew for every pair of contrasts; a fixed fill is made once
            call = (fill, method, TARGETS[target], keep) if fill == "blur" and low < high else (fill,)
            if call not in made:
                made[call] = filled(fill, batch, batch.uniform(low, high, *call))
            yield torch.where(replaced[key][:, target, None], made[call], batch.images)

    def _relative(self, logits: Tensor, top: Tensor) -> Tensor:
        """(n, classes) to the relative probabilities of t1 and t2, (n, 2)."""
        pair = logits.gather(1, top)
        if self.protocol.shifted:
            return pair.softmax(1)
        return pair.exp() / pair.exp().sum(1, keepdim=True)
