"""Parts of images are deleted: one alone (`single-deletion`), all in turn (`irof`), some at random (`f-fidelity`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ratherthan.attribution.explanation import Explanation
from ratherthan.contrast import get_contrast
from ratherthan.evaluation.experiment import BaselineWord, Batch, Experiment, Rows, register_experiment
from ratherthan.evaluation.sanity import spearman
from ratherthan.settings import AtLeastOne, NotEmpty, Share
from ratherthan.superpixels import Kind, Superpixels, segment, usual_kind

_ROUNDING = 1e-9  # 0.29 of 100 are 29


@register_experiment
@dataclass(frozen=True)
class SingleDeletion(Experiment):
    """Single-deletion score (Hesse et al., IDSDS, 2024) of contrasts: does the map foretell what each part is worth?

    The image is cut into an even grid, and each part i is deleted alone. With phi the map of the predicted class P, f
    what the map explains, and f_w the weighted contrast of P with the foils, the foils' weights held as they are at the
    image x in both, and Spearman's rank correlation over the parts, tied values sharing their mean rank,

        own  = Spearman(sum of phi in i, f(x) - f(x without i))
        lead = Spearman(sum of phi in i, f_w(x) - f_w(x without i))    (of a map not asked about the foils, too)

    Higher is better. A map that knows nothing has 0, and input x gradient of a linear network 1 where the baseline is
    black. Undefined where all parts have the same sum. Published is `own` of y_P, with 4 x 4 parts.

    The parts of a network that was fine-tuned with parts deleted (`PatchDeletion`) are deleted "in-domain". Any other
    network is asked about images that it has never seen the like of.

    Attributes:
        count: How many parts, see `Superpixels` of kind "grid".
        baseline: What is there instead: "model-mean" (as published), "mean" or "blur" (sigma 15).
        foil: "others", all classes but P; or "runner-up".
    """

    count: AtLeastOne = 16
    baseline: BaselineWord = "model-mean"
    foil: Literal["others", "runner-up"] = "others"

    name: ClassVar[str] = "single-deletion"
    reads_labels = False
    measures = ("own", "lead")
    higher_is_better: ClassVar[dict[str, bool]] = {"own": True, "lead": True}

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast; the network is asked once for all of them."""
        labels, nothing = segment(batch.images, Superpixels("grid", self.count)), batch.baseline(self.baseline)
        parts = [labels == part for part in range(int(labels.max()) + 1)]
        without = (torch.where(part.unsqueeze(1), nothing, batch.images) for part in parts)
        logits = batch.logits([batch.images, *without])
        for (method, contrast), why in batch.explain(foil=self.foil).items():
            map_ = why.heatmap().double()
            sums = torch.stack([(part * map_).sum((1, 2)) for part in parts], 1)
            held = [
                batch.held(why, way, self.foil, logits) for way in (batch.contrasts[contrast], get_contrast("weighted"))
            ]
            own, lead = (spearman(sums, (each[0] - each[1:]).T) for each in held)
            yield batch.rows(method, contrast, own=own, lead=lead)


@dataclass(frozen=True)
class _Ranked(Experiment):
    """What deletes superpixels in the order of a map, and looks at the probability of the fact."""

    superpixels: Kind | None = None
    count: AtLeastOne = 64
    baseline: BaselineWord = "model-mean"
    foil: Literal["others", "runner-up"] = "others"

    reads_labels = False

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast."""
        kind = self.superpixels or usual_kind(batch.images)
        labels = segment(batch.images, Superpixels(kind, self.count)).flatten(1)
        for key, why in batch.explain(foil=self.foil).items():
            places, counts = _places(labels, why.heatmap().double().flatten(1))
            yield batch.rows(*key, **self.measured(batch, why, labels, places, counts))

    @abstractmethod
    def measured(
        self, batch: Batch, why: Explanation, labels: Tensor, places: Tensor, counts: Tensor
    ) -> dict[str, Tensor]:
        """The measures, (n,) each, by superpixels (n, pixels), their places (n, S) and how many there are (n, 1)."""

    def sure(self, batch: Batch, why: Explanation, labels: Tensor, masks: Iterable[Tensor]) -> Tensor:
        """The probability of the fact among itself and the foils, (V, n), without the superpixels in V masks (n, S)."""
        nothing, plane = batch.baseline(self.baseline), (-1, 1, *batch.images.shape[2:])
        gone = (mask.gather(1, labels).view(plane) for mask in masks)
        logits = batch.logits(torch.where(each, nothing, batch.images) for each in gone)
        return batch.sure(why, self.foil, logits.double())


def _places(labels: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The place of every superpixel by the mean of the map in it, 0 for the highest, (n, S); and how many there are.

    Those that an image does not have come last.
    """
    blank = maps.new_zeros(len(maps), int(labels.max()) + 1)
    sizes = blank.scatter_add(1, labels, torch.ones_like(maps))
    means = (blank.scatter_add(1, labels, maps) / sizes).nan_to_num(-torch.inf)
    order = means.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1), (sizes > 0).sum(1, keepdim=True)


@register_experiment
@dataclass(frozen=True)
class Irof(_Ranked):
    """Iterative removal of features (Rieger & Hansen, IROF, 2020), on the contrastive score.

    With q_l the probability of the predicted class P among itself and the foils when the l superpixels with the highest
    mean of the map are deleted, and L their number,

        area = 1 - integral over l / L in [0, 1] of q_l / q_0, by the trapezoidal rule

    Higher is better: P is lost early. The paper does not divide by L, and its score is p_P, as here for foil="others".
    (Quantus 0.6 begins the curve at l = 1, and takes it to fall to 0 after l = L where others of the batch have more.)

    Attributes:
        superpixels: Their kind; None: "slic", of other than 1 or 3 channels "grid".
        count: How many are asked for; there may be fewer.
        baseline: What is there instead: "model-mean", "mean" (as published) or "blur" (sigma 15).
        foil: "others", all classes but P; or "runner-up".
    """

    baseline: BaselineWord = "mean"

    name: ClassVar[str] = "irof"
    measures = ("area",)
    higher_is_better: ClassVar[dict[str, bool]] = {"area": True}
    layout = (("method",), ("contrast",))

    def measured(
        self, batch: Batch, why: Explanation, labels: Tensor, places: Tensor, counts: Tensor
    ) -> dict[str, Tensor]:
        """The area over the curve of each image, up to its own number of superpixels."""
        sure = self.sure(batch, why, labels, (places < step for step in range(places.shape[1] + 1)))
        means = ((sure[:-1] + sure[1:]) / (2 * sure[0])).T
        within = torch.arange(places.shape[1], device=means.device) < counts
        return {"area": 1 - (means * within).sum(1) / counts[:, 0]}


@register_experiment
@dataclass(frozen=True)
class FFidelity(_Ranked):
    """Fine-tuned fidelity (Zheng et al., F-Fidelity, 2025), on the contrastive score.

    Of the s S superpixels with the highest mean of the map, or of the other (1 - s) S, a share alpha is deleted at
    random, but never more than a share beta of all S, as that is what the network was fine-tuned with. With q the
    probability of the predicted class P among itself and the foils, means over sizes s and draws,

        plus  = q(x) - mean q(x without some of the highest)    (FFid+; higher is better)
        minus = q(x) - mean q(x without some of the others)     (FFid-; lower is better)
        gap   = plus - minus                                     (higher is better; a map that knows nothing: 0)

    Undefined where beta of the superpixels is less than one. The draws are the same for all maps. The paper counts how
    often the prediction remains right, takes single pixels (superpixels="pixels") and does not combine the two.

    It is meant for a network that was fine-tuned with parts deleted at random (`PatchDeletion`). Any other network is
    asked about images that it has never seen the like of.

    Attributes:
        superpixels: Their kind; None: "slic", of other than 1 or 3 channels "grid".
        count: How many are asked for; there may be fewer.
        baseline: What is there instead: "model-mean", "mean" or "blur" (sigma 15).
        foil: "others", all classes but P; or "runner-up".
        shares: The sizes s.
        alpha: Share of a part that is deleted.
        beta: Largest share of all superpixels that is.
        draws: How many times.
    """

    superpixels: Kind | None = "grid"
    shares: Annotated[tuple[Share, ...], NotEmpty()] = (0.1, 0.3, 0.5, 0.7, 0.9)
    alpha: Share = 0.5
    beta: Share = 0.1
    draws: AtLeastOne = 10

    name: ClassVar[str] = "f-fidelity"
    measures = ("plus", "minus", "gap")
    higher_is_better: ClassVar[dict[str, bool]] = {"plus": True, "minus": False, "gap": True}

    def measured(
        self, batch: Batch, why: Explanation, labels: Tensor, places: Tensor, counts: Tensor
    ) -> dict[str, Tensor]:
        """The mean fall when some of the highest, or of the others, are deleted."""
        gone = [torch.zeros_like(places, dtype=torch.bool)]
        for share, draw in product(self.shares, range(self.draws)):
            size, numbers = (share * counts).round(), self._numbers(batch, places.shape[1], f"{share} {draw}")
            for part in (places < size, (places >= size) & (places < counts)):
                half, most = self.alpha * part.sum(1, keepdim=True).double(), self.beta * counts.double()
                most = torch.minimum(half, most) + _ROUNDING
                gone.append(numbers.masked_fill(~part, torch.inf).argsort(1).argsort(1) < most.floor())
        sure = self.sure(batch, why, labels, gone)
        plus, minus = sure[0] - sure[1:].view(-1, 2, len(counts)).mean(0)
        none = self.beta * counts[:, 0].double() + _ROUNDING < 1
        plus, minus = (each.masked_fill(none, torch.nan) for each in (plus, minus))
        return {"plus": plus, "minus": minus, "gap": plus - minus}

    def _numbers(self, batch: Batch, count: int, key: str) -> Tensor:
        drawn = [torch.from_numpy(each.random(count)) for each in batch.generators("f-fidelity", key)]
        return torch.stack(drawn).to(batch.images.device)
