"""Pixels are replaced as a map says.

`deletion`, `insertion` and `confidence-drop` go by rank; `mask` and `equal-mask` go by sign.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ratherthan.contrast import get_contrast, resolve
from ratherthan.evaluation.experiment import BaselineWord, Batch, Experiment, Rows, register_experiment
from ratherthan.settings import AtLeastOne, Interval, NotEmpty, Positive, Share


def ranks(maps: Tensor) -> Tensor:
    """The place of every pixel in ascending order, 0 for the lowest: (..., H, W). Of equals the first comes first."""
    return maps.flatten(-2).argsort(dim=-1, stable=True).argsort(dim=-1).reshape(maps.shape)


def highest(maps: Tensor, share: float) -> Tensor:
    """The given share of pixels with the highest values, exactly: (..., H, W) bool."""
    pixels = maps.shape[-2] * maps.shape[-1]
    return ranks(maps) >= pixels - round(share * pixels)


@register_experiment
@dataclass(frozen=True)
class Deletion(Experiment):
    """Deletion (Petsiuk et al., RISE, 2018) on the contrastive score rather than on p_t.

    With P the predicted class, S the foils and s(x) = y_P - logsumexp_S y the log-odds,

        area = integral over u in [0, 1] of s(x without the u highest-ranked pixels), by the trapezoidal rule

    Lower is better: what the map ranks first is what P's lead rests on.

    Attributes:
        steps: Number of steps from the whole image to none.
        baseline: What replaces pixels: "model-mean", "mean" or "blur" (sigma 15).
        foil: "others", all classes but P; or "runner-up", of which mean, max and weighted are one and the same.
    """

    steps: AtLeastOne = 20
    baseline: BaselineWord = "model-mean"
    foil: Literal["others", "runner-up"] = "others"

    name: ClassVar[str] = "deletion"
    reads_labels = False
    measures = ("area", "start", "end")
    higher_is_better: ClassVar[dict[str, bool]] = {"area": False}
    shown = ("area",)
    layout = (("method",), ("contrast",))

    def gone(self, maps: Tensor) -> Iterator[Tensor]:
        """Which pixels are replaced at each of the steps + 1 points: bool (n, H, W), from none to all."""
        place, pixels = ranks(maps), maps.shape[-2] * maps.shape[-1]
        for step in range(self.steps + 1):
            yield place >= pixels - round(step * pixels / self.steps)

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """The log-odds along the way of every method and contrast."""
        baseline = batch.baseline(self.baseline)
        for (method, contrast), why in batch.explain(foil=self.foil).items():
            masks = self.gone(why.heatmap())
            altered = batch.logits(torch.where(mask.unsqueeze(1), baseline, batch.images) for mask in masks)
            question = resolve(why.logits, foil=self.foil)
            score = get_contrast("weighted").scalar(altered, question)[..., 0]
            area = torch.trapezoid(score, dx=1 / self.steps, dim=0)
            yield batch.rows(method, contrast, area=area, start=score[0], end=score[-1])


@register_experiment
@dataclass(frozen=True)
class Insertion(Deletion):
    """Insertion (Petsiuk et al., RISE, 2018) on the contrastive score: `deletion` from the other side.

        area = integral over u in [0, 1] of s(the baseline with the u highest-ranked pixels of x), by the trapezoidal
               rule

    Higher is better.

    Attributes:
        steps: As in `deletion`.
        baseline: What the image emerges from; as published, a blurred one.
        foil: As in `deletion`.
    """

    baseline: BaselineWord = "blur"

    name: ClassVar[str] = "insertion"
    higher_is_better: ClassVar[dict[str, bool]] = {"area": True}

    def gone(self, maps: Tensor) -> Iterator[Tensor]:
        """From all pixels to none, the highest-ranked back first."""
        for mask in super().gone(maps):
            yield ~mask


@register_experiment
@dataclass(frozen=True)
class ConfidenceDrop(Experiment):
    """Relative confidence drop when the top pixels are masked (after Zhang et al., Finer-CAM, CVPR 2025).

    With P the predicted class, Q the runner-up, x' the image without its `share` of highest pixels of the map of P
    rather than Q, and q = exp(y_P) / (exp(y_P) + exp(y_Q)) the confidence in P against Q,

        drop = (q(x) - q(x')) / q(x)

    Higher is better: the map found what the decision between the two rests on. Also measured are the absolute drops of
    p_P and p_Q, which tell a loss of P from a loss of both.

    Attributes:
        share: Share of pixels masked.
        baseline: What replaces them: "model-mean", "mean" or "blur" (sigma 15).
    """

    share: Share = 0.05
    baseline: BaselineWord = "model-mean"

    name: ClassVar[str] = "confidence-drop"
    reads_labels = False
    measures = ("drop", "fact_drop", "foil_drop")
    higher_is_better: ClassVar[dict[str, bool]] = {"drop": True}

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One masking per method and contrast."""
        found = batch.explain(foil="runner-up")
        first = next(iter(found.values()))
        clean, pair = first.logits, torch.stack([first.fact, first.foil], 1)
        baseline = batch.baseline(self.baseline)
        masks = (highest(why.heatmap(), self.share).unsqueeze(1) for why in found.values())
        logits = batch.logits(torch.where(mask, baseline, batch.images) for mask in masks)
        p, q = clean.softmax(1).gather(1, pair), clean.gather(1, pair).softmax(1)[:, 0]
        for (method, contrast), altered in zip(found, logits, strict=True):
            lost = p - altered.softmax(1).gather(1, pair)
            drop = (q - altered.gather(1, pair).softmax(1)[:, 0]) / q
            yield batch.rows(method, contrast, drop=drop, fact_drop=lost[:, 0], foil_drop=lost[:, 1])


# --------------------------------------------------------------------------------------------- by sign
class Protocol(NamedTuple):
    """What a preset fixes."""

    threshold: float
    sigma: tuple[float, float]
    align_corners: bool
    shifted: bool


PROTOCOLS = {
    "paper": Protocol(0.1, (15.0, 15.0), align_corners=True, shifted=True),
    "reference": Protocol(0.4, (10.0, 20.0), align_corners=True, shifted=False),
    "sound": Protocol(0.1, (15.0, 15.0), align_corners=False, shifted=True),
}
Key = tuple[str, str, str]
"""Method, contrast, and what is kept."""


@register_experiment
@dataclass(frozen=True)
class Mask(Experiment):
    r"""Keep positive, or negative, features and look at the top two classes (weighted-contrast Tables 1 and 2).

    For the two likeliest classes t1, t2 of the clean image, and the map phi of either (foils: all other classes),

        x'_ij = x_ij where the feature is kept, else the baseline; positive replaces phi_ij < 0, negative phi_ij > 0
        p-bar_ti = mean over samples with p_t2 > threshold of exp(y'_ti) / (exp(y'_t1) + exp(y'_t2))

    A faithful map of ti raises p-bar_ti when its positive features are kept, and lowers it when its negative ones are.

    Presets: `paper`, as printed; the sigma of its blur, which the paper does not state, is 15, the middle of the range
    in the authors' code, and maps are upsampled as in that code. `reference`: the authors' code, which draws sigma from
    [10, 20] for every pair of methods, has 0.4 for a threshold and does not shift its exponentials (a logit above 88
    gives NaN). `sound`: fixed sigma, shifted exponentials, pixel grids aligned as in `Explanation.heatmap`.

    Attributes:
        preset: "paper", "reference" or "sound".
        threshold: Least probability of the second class; None: the preset's.
        sigma: Of the Gaussian blur, in pixels of a 224-pixel image (scaled to other sizes); None: the preset's.
        baselines: What replaces pixels: "blur"; "model-mean", the mean colour that the model subtracts ("zeros" in the
            paper, after normalisation); "mean", of the image, per channel.
    """

    preset: Literal["paper", "reference", "sound"] = "paper"
    threshold: Annotated[float, Interval(0, 1)] | None = None
    sigma: Positive | None = None
    baselines: Annotated[tuple[BaselineWord, ...], NotEmpty()] = ("blur", "model-mean", "mean")

    name: ClassVar[str] = "mask"
    reads_labels = False
    keys = ("target", "baseline", "keep")
    measures = ("before", "relative", "replaced")
    higher_is_better: ClassVar[dict[str, bool]] = {"positive": True, "negative": False}
    shown = ("relative",)
    lead = "before"
    layout = (("method", "target"), ("baseline", "keep", "contrast"))
    methods = ("gradcam", "la")

    @property
    def protocol(self) -> Protocol:
        """The preset with what was set by hand."""
        preset = PROTOCOLS[self.preset]
        threshold = preset.threshold if self.threshold is None else self.threshold
        sigma = preset.sigma if self.sigma is None else (self.sigma, self.sigma)
        return preset._replace(threshold=threshold, sigma=sigma)

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """All maskings of the samples whose second class is likely enough."""
        clean = batch.clean()
        likely = clean.softmax(1).topk(2).values[:, 1] > self.protocol.threshold
        batch, clean = batch.keep(likely), clean[likely]
        if not batch.ids:
            return
        top = clean.topk(2).indices
        replaced = self._replaced_by_key(batch, top)
        plan = list(product(replaced, range(2), self.baselines))
        logits = batch.logits(self._variants(batch, replaced, plan))
        before = self._relative(clean, top)
        for ((method, contrast, keep), target, baseline), altered in zip(plan, logits, strict=True):
            keys = {"target": f"t{target + 1}", "baseline": baseline, "keep": keep}
            relative = self._relative(altered, top)[:, target]
            gone = replaced[method, contrast, keep][:, target].float().mean((1, 2))
            yield batch.rows(method, contrast, **keys, before=before[:, target], relative=relative, replaced=gone)

    def replaced(self, maps: Tensor) -> dict[str, Tensor]:
        """Which pixels are replaced when the features named by the key are kept.

        Args:
            maps: (contrasts, n, 2, H, W) of one method.

        Returns:
            For "positive" and "negative", bool of the same shape. Zeros always stay.
        """
        return {"positive": maps < 0, "negative": maps > 0}

    def _replaced_by_key(self, batch: Batch, top: Tensor) -> dict[Key, Tensor]:
        corners = self.protocol.align_corners
        maps = {key: why.heatmap(align_corners=corners) for key, why in batch.explain(fact=top).items()}
        masks: dict[Key, Tensor] = {}
        for method in batch.methods:
            replaced = self.replaced(torch.stack([maps[method, contrast] for contrast in batch.contrasts]))
            masks |= {(method, c, keep): replaced[keep][i] for i, c in enumerate(batch.contrasts) for keep in replaced}
        return masks

    def _variants(
        self, batch: Batch, replaced: Mapping[Key, Tensor], plan: list[tuple[Key, int, BaselineWord]]
    ) -> Iterator[Tensor]:
        low, high = self.protocol.sigma

        @cache
        def instead(baseline: BaselineWord, *call: str) -> Tensor:
            return batch.baseline(baseline, batch.uniform(low, high, baseline, *call))

        for key, target, baseline in plan:
            # the authors blur anew for every pair of contrasts; a fixed baseline is made once
            call = (key[0], f"t{target + 1}", key[2]) if baseline == "blur" and low < high else ()
            yield torch.where(replaced[key][:, target, None], instead(baseline, *call), batch.images)

    def _relative(self, logits: Tensor, top: Tensor) -> Tensor:
        """(n, classes) to the relative probabilities of t1 and t2, (n, 2)."""
        pair = logits.gather(1, top)
        if self.protocol.shifted:
            return pair.softmax(1)
        return pair.exp() / pair.exp().sum(1, keepdim=True)


@register_experiment
@dataclass(frozen=True)
class EqualMask(Mask):
    """As `mask`, but for each sample and class all contrasts lose the same number n of pixels (Table 3, appendix G).

    Keep positive replaces the n lowest-ranked pixels, keep negative the n highest. With pos and neg the numbers of
    positive and negative pixels, and min and max over the contrasts compared,

        preset       n, keep positive    n, keep negative
        paper        max neg             min pos
        reference    min pos             max neg - 1
        sound        min neg             min pos

    The paper's text counts the sign that is replaced. Its code counts the sign that is kept, from the other end, and
    loses one pixel; a map that is 80 % positive beside one that is 50 % positive then has 15,052 positive pixels among
    the 25,088 that it should lose as negative. Only `sound` never replaces a pixel of the wrong sign.

    Attributes:
        preset: As in `mask`, like all others.
        threshold: As in `mask`.
        sigma: As in `mask`.
        baselines: As in `mask`.
    """

    name: ClassVar[str] = "equal-mask"

    def replaced(self, maps: Tensor) -> dict[str, Tensor]:
        """Exactly n pixels of every contrast's map, ties included: of equal values the first is the lower."""
        positive, negative = (maps > 0).sum((-2, -1)), (maps < 0).sum((-2, -1))
        if self.preset == "reference":
            lowest, highest = positive.amin(0), (negative.amax(0) - 1).clamp_min(0)
        else:
            lowest = negative.amin(0) if self.preset == "sound" else negative.amax(0)
            highest = positive.amin(0)
        place, pixels = ranks(maps), maps.shape[-2] * maps.shape[-1]
        return {"positive": place < lowest[..., None, None], "negative": place >= pixels - highest[..., None, None]}
