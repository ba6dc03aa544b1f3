"""`properties` and `road`: what the literature measures of maps besides deletion and insertion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ratherthan.attribution.explanation import Explanation
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.evaluation.masking import ranks
from ratherthan.settings import AtLeastOne, Interval, NotEmpty, NotNegative, Positive, Share


@register_experiment
@dataclass(frozen=True)
class Properties(Experiment):
    r"""What is said of a map without removing its highest pixels.

    With phi the map of the predicted class P rather than the foil, f the contrast with the foils' weights held as they
    are at the image x, x0 the baseline, and y and o the probabilities of P for x and for x times phi, rectified and
    stretched to [0, 1],

        complexity   = - sum p log p, p = |phi| / sum |phi|             (Bhatt et al. 2020: few pixels are simple)
        completeness = |sum phi - (f(x) - f(x0))| / |f(x) - f(x0)|     (Sundararajan et al. 2017: 0 adds up)
        infidelity   = min_b mean_I (b sum_I phi - d_I)^2 / mean_I d_I^2, d_I = f(x) - f(x with x0 in the square I)
                                                                        (Yeh et al. 2019: 0 foretells, 1 says nothing)
        sensitivity  = max_n |phi(x + n) - phi(x)| / |phi(x)|           (Yeh et al. 2019: max-sensitivity)
        drop         = max(0, y - o) / y                                (average drop, Chattopadhay et al. 2018)
        increase     = 1 if o > y, else 0                               (their increase in confidence)

    Completeness is of the raw map, at its own resolution; what multiplies a map by a constant alters neither infidelity
    nor what follows. Complexity and sensitivity are reported and praise nobody: a map can be simple, or the same
    everywhere, and wrong.

    Attributes:
        baseline: x0: "model-mean", "mean", "blur" (sigma 15) or "black".
        foil: "others", all classes but P; or "runner-up".
        squares: How many squares I, at random places, a quarter of the shorter side wide.
        noises: How many n.
        radius: Largest change of a pixel by n; what would leave [0, 1] stays at its border.
    """

    baseline: Literal["model-mean", "mean", "blur", "black"] = "black"
    foil: Literal["others", "runner-up"] = "others"
    squares: Annotated[int, Interval(2)] = 32
    noises: AtLeastOne = 10
    radius: Positive = 0.02

    name: ClassVar[str] = "properties"
    reads_labels = False
    measures = ("complexity", "completeness", "infidelity", "sensitivity", "drop", "increase")
    higher_is_better: ClassVar[dict[str, bool]] = {
        "completeness": False, "infidelity": False, "drop": False, "increase": True,
    }  # fmt: skip
    layout = (("method", "contrast"), ("measure",))

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast."""
        found = batch.explain(foil=self.foil)
        first = next(iter(found.values()))
        nothing = torch.zeros_like(batch.images) if self.baseline == "black" else batch.baseline(self.baseline)
        squares = torch.stack([self._square(batch, f"square {number}") for number in range(self.squares)])
        covered = batch.logits([nothing, *(torch.where(each.unsqueeze(1), nothing, batch.images) for each in squares)])
        moved = self._largest_moves(batch, first, found)
        for (method, contrast), why in found.items():
            map_ = why.heatmap().double()
            logits = torch.cat([why.logits.unsqueeze(0), covered])
            leads = batch.held(why, batch.contrasts[contrast], self.foil, logits)
            lost = leads[0] - leads[1:]
            size = map_.abs() / map_.abs().sum((1, 2), keepdim=True)
            foretold = (squares * map_).sum((2, 3))
            missed = (why.attribution.double().flatten(1).sum(1) - lost[0]).abs() / lost[0].abs()
            drop, increase = self._as_a_mask(batch, why)
            yield batch.rows(
                method, contrast, complexity=torch.special.entr(size).sum((1, 2)), completeness=missed,
                infidelity=residue(foretold, lost[1:]), sensitivity=moved[method, contrast], drop=drop,
                increase=increase,
            )  # fmt: skip

    def _square(self, batch: Batch, key: str) -> Tensor:
        """(n, H, W) bool."""
        height, width = batch.images.shape[-2:]
        side = max(1, min(height, width) // 4)
        rows, columns = (torch.arange(length, device=batch.images.device) for length in (height, width))
        tops, lefts = (
            (batch.uniform(0, length - side + 1, key, axis)).floor().unsqueeze(1)
            for axis, length in (("row", height), ("column", width))
        )
        down, across = (rows >= tops) & (rows < tops + side), (columns >= lefts) & (columns < lefts + side)
        return down.unsqueeze(2) & across.unsqueeze(1)

    def _noise(self, batch: Batch, key: str) -> Tensor:
        drawn = [each.uniform(-self.radius, self.radius, batch.images.shape[1:]) for each in batch.generators("n", key)]
        return torch.from_numpy(np.stack(drawn)).to(batch.images)

    def _largest_moves(
        self, batch: Batch, first: Explanation, found: dict[tuple[str, str], Explanation]
    ) -> dict[tuple[str, str], Tensor]:
        """By how much the maps of nearby images differ from that of the image, at most; the question stays."""
        foil = first.foil if self.foil == "runner-up" else None
        largest = dict.fromkeys(found, torch.zeros(len(batch.ids), dtype=torch.double, device=batch.images.device))
        for number in range(self.noises):
            near = (batch.images + self._noise(batch, str(number))).clamp(0, 1)
            for key, why in replace(batch, images=near).explain(first.fact, foil).items():
                here = found[key].attribution.double().flatten(1)
                move = (why.attribution.double().flatten(1) - here).norm(dim=1) / here.norm(dim=1)
                largest[key] = torch.maximum(largest[key], move)
        return largest

    def _as_a_mask(self, batch: Batch, why: Explanation) -> tuple[Tensor, Tensor]:
        """Drop and increase."""
        mask = why.heatmap().clamp_min(0)
        mask = mask / mask.amax((1, 2), keepdim=True)
        shown = batch.scores(batch.images * mask.nan_to_num(0.0).unsqueeze(1))
        y, o = (each.softmax(1).gather(1, why.fact.unsqueeze(1))[:, 0] for each in (why.logits, shown))
        return (y - o).clamp_min(0) / y, (o > y).double()


def residue(foretold: Tensor, lost: Tensor) -> Tensor:
    """min_b mean (b foretold - lost)^2 / mean lost^2, means over the first axis; 1 where nothing is foretold."""
    explained = (foretold * lost).sum(0).square() / (foretold.square().sum(0) * lost.square().sum(0))
    return 1 - explained.nan_to_num(0.0)


@register_experiment
@dataclass(frozen=True)
class Road(Experiment):
    """Remove and debias (Rong et al., ROAD, 2022), on the contrastive score.

    The highest or the lowest `share` of pixels of the map of the predicted class P are taken away, and what is there
    instead follows from the neighbours: every missing pixel is the mean of its eight neighbours, those that share an
    edge with it counting twice, and all of these equations are solved together; then noise is added, so that where
    pixels are missing does not show. With q the probability of P among itself and the foils, at shares u,

        most  = mean_u q(x without the u highest)      (lower is better)
        least = mean_u q(x without the u lowest)       (higher is better)
        gap   = (least - most) / 2                     (higher is better; a map that knows nothing: 0)

    The paper counts how often P remains the prediction, and does not combine the two.

    Attributes:
        shares: The shares u.
        noise: Standard deviation of the noise, in image space.
        foil: "others", all classes but P; or "runner-up".
    """

    shares: Annotated[tuple[Share, ...], NotEmpty()] = (0.1, 0.3, 0.5, 0.7, 0.9)
    noise: NotNegative = 0.01
    foil: Literal["others", "runner-up"] = "others"

    name: ClassVar[str] = "road"
    reads_labels = False
    measures = ("most", "least", "gap")
    higher_is_better: ClassVar[dict[str, bool]] = {"most": False, "least": True, "gap": True}

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast."""
        for key, why in batch.explain(foil=self.foil).items():
            place, pixels = ranks(why.heatmap()), why.images[0, 0].numel()
            counts = [round(share * pixels) for share in self.shares]
            gone = [*(place >= pixels - count for count in counts), *(place < count for count in counts)]
            sure = batch.sure(why, self.foil, batch.logits(self._imputed(batch, each) for each in gone))
            most, least = sure.reshape(2, len(counts), -1).mean(1)
            yield batch.rows(*key, most=most, least=least, gap=(least - most) / 2)

    def _imputed(self, batch: Batch, gone: Tensor) -> Tensor:
        filled = np.stack([impute(*each) for each in zip(batch.images.cpu().numpy(), gone.cpu().numpy(), strict=True)])
        noise = np.stack([each.normal(0, self.noise, filled.shape[1:]) for each in batch.generators("road")])
        return torch.from_numpy(filled + noise * gone.unsqueeze(1).cpu().numpy()).to(batch.images)


def impute(image: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """An image (C, H, W) whose pixels where `gone` (H, W) holds are weighted means of their neighbours, float64.

    Neighbours beyond the border do not count; the weights of the others then add up to less, as do both sides.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import spsolve

    filled, (height, width), unknown = image.astype(float), gone.shape, int(gone.sum())
    if not unknown:
        return filled
    number = np.full((height, width), -1)
    number[gone] = np.arange(unknown)
    rows, columns = np.nonzero(gone)
    total, known = np.zeros(unknown), np.zeros((unknown, len(image)))
    parts = []
    for down, across in ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j):
        weight, near, beside = 1 / 12 if down and across else 1 / 6, rows + down, columns + across
        inside = np.nonzero((near >= 0) & (near < height) & (beside >= 0) & (beside < width))[0]
        other = number[near[inside], beside[inside]]
        total[inside] += weight
        known[inside[other < 0]] += weight * filled[:, near[inside[other < 0]], beside[inside[other < 0]]].T
        parts.append((np.full((other >= 0).sum(), -weight), inside[other >= 0], other[other >= 0]))
    values, at, of = (np.concatenate(each) for each in zip(*parts, strict=True))
    ones = np.arange(unknown)
    system = coo_matrix((np.r_[values, total], (np.r_[at, ones], np.r_[of, ones])), (unknown, unknown)).tocsc()
    filled[:, gone] = spsolve(system, known).reshape(unknown, -1).T
    return filled
