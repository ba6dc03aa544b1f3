"""`pertinent`: is a small part of an image enough, and does each feature add confidence? (CEM-MAF, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ratherthan.baselines import baseline_images, quietest
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.search.cem_maf import CEMMAFPositive
from ratherthan.search.method import PERTINENT_POSITIVE_METHODS
from ratherthan.search.pertinent_positive import rank_correlation
from ratherthan.settings import AtLeastOne, Interval
from ratherthan.superpixels import Kind, SegmentedImages, Superpixels, default_superpixels, segment

_FEW = 3  # features, from which on a part can say something, and an order be ranked
_ABOVE_ZERO = ("lime",)  # their positive weights are the part, as CEM-MAF reads them


@register_experiment
@dataclass(frozen=True, eq=False)
class Pertinent(Experiment):
    """Tables 1 and 6 of CEM-MAF: parts of an image with class P, shown by themselves.

        fewer        1 if the part has fewer than three features: so little says little
        features     how many superpixels, or pixels, the part has (#PP Feat)
        share        the same as a share of all
        kept         1 if the part by itself is still P (PP Acc)
        p_fact       the probability of P in the part
        correlation  Spearman(k, r_k), r_k the descending mid-rank of p_k, the probability of P with the first k
                     features present: -1 if each adds confidence (PP Corr); undefined for less than three

    Of a search `kept` is 1 by construction: it does not end before. Its `correlation` is in an order that was fixed
    before the part was found, for one sorted afterwards reaches -1 by construction, too. A part that only just keeps P
    is small and means little; so CEM-MAF stands there twice, with a margin of 0 and with the paper's 5 logits.

    A search for pertinent positives brings its part and its orders. The part of an attribution map are the features
    whose mean relevance is above `threshold` times the largest (LIME: above zero), the most relevant first; the paper
    does not state the threshold of its Grad-CAM rows.

    Attributes:
        superpixels: Of the maps: a kind, or None: what CEM-MAF takes by default.
        count: How many of them are wanted.
        baseline: What is where a feature is not: a value, "mean", or None: what CEM-MAF takes by default. Of the maps.
        threshold: In [0, 1).
    """

    superpixels: Kind | None = None
    count: AtLeastOne = 200
    baseline: Annotated[float, Interval(0, 1)] | Literal["mean"] | None = None
    threshold: Annotated[float, Interval(0, 1, below=True)] = 0.5

    name: ClassVar[str] = "pertinent"
    reads_labels = False
    measures = ("fewer", "features", "share", "kept", "p_fact", "correlation")
    higher_is_better: ClassVar[dict[str, bool]] = {
        "fewer": False, "features": False, "share": False, "kept": True, "p_fact": True, "correlation": False,
    }  # fmt: skip
    layout = (("method", "contrast"), ("measure",))
    methods = (CEMMAFPositive(kappa=0.0), "cem-maf", "lime", "gradcam", "la")
    searches = (PERTINENT_POSITIVE_METHODS,)

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method, contrast and sample."""
        fact = batch.clean().argmax(1)
        for name, found in batch.search(fact):
            counted = found.features, found.feature_count, found.correlation()
            yield batch.rows(name, **_measures(fact, found.example_logits[:, 0].softmax(1), *counted))
        maps = batch.explain()
        parts = self._parts(batch) if maps else None
        for (name, contrast), why in maps.items():
            assert parts is not None
            orders = self._orders(name, why.heatmap(), parts)
            curves = [_curve(batch, parts, row, order) for row, order in enumerate(orders)]
            p, kept = torch.stack([each[-1] for each in curves]), torch.tensor(list(map(len, orders)))
            along = (curve[1:, of] for curve, of in zip(curves, fact, strict=True))
            correlation = torch.tensor([rank_correlation(each) for each in along])
            yield batch.rows(name, contrast, **_measures(fact, p, kept, parts.count, correlation))

    def _parts(self, batch: Batch) -> SegmentedImages:
        how = Superpixels(self.superpixels, self.count) if self.superpixels else default_superpixels(batch.images)
        quiet = self.baseline is None
        ground = quietest(batch.images, batch.scores)[0] if quiet else baseline_images(batch.images, self.baseline)
        return SegmentedImages(batch.images, segment(batch.images, how), ground)

    def _orders(self, method: str, maps: Tensor, parts: SegmentedImages) -> list[Tensor]:
        """The features of each part, the most relevant first."""
        flat = parts.labels.flatten(1)
        shape = (len(flat), parts.present.shape[1])
        area = maps.new_zeros(shape).scatter_add_(1, flat, torch.ones_like(flat, dtype=maps.dtype))
        relevance = maps.new_zeros(shape).scatter_add_(1, flat, maps.flatten(1)) / area.clamp_min(1)
        share = 0.0 if method.split("(")[0] in _ABOVE_ZERO else self.threshold
        bar = (share * relevance.amax(1, keepdim=True)).clamp_min(0)
        ranked = relevance.argsort(dim=1, descending=True, stable=True)
        return [row[:count] for row, count in zip(ranked, (relevance > bar).sum(1), strict=True)]


def _measures(fact: Tensor, p: Tensor, kept: Tensor, count: Tensor, correlation: Tensor) -> dict[str, Tensor]:
    """The measures of parts with so many of the superpixels and, by themselves, these probabilities (n, classes)."""
    return {
        "fewer": kept < _FEW,
        "features": kept,
        "share": kept.cpu() / count.cpu(),
        "kept": p.argmax(1) == fact,
        "p_fact": p.gather(1, fact.unsqueeze(1))[:, 0],
        "correlation": correlation,
    }


def _curve(batch: Batch, parts: SegmentedImages, row: int, order: Tensor) -> Tensor:
    """(k + 1, classes) the probabilities with none, one, ... all of the features (k,) present, in their order."""
    masks = torch.nn.functional.one_hot(order, parts.present.shape[1]).cumsum(0)
    masks = torch.nn.functional.pad(masks, (0, 0, 1, 0)).to(parts.images)
    rows = torch.full((len(masks),), row, device=masks.device)
    with torch.no_grad():
        shown = (parts.render(each, rows[: len(each)]) for each in torch.split(masks, batch.batch_size))
        return torch.cat([batch.model.logits(images) for images in shown]).softmax(1)
