"""`pertinent`: is a small part of an image enough, and does each feature add confidence? (CEM-MAF, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ratherthan.attribution.method import get_method
from ratherthan.baselines import baseline_images
from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.evaluation.perturb import pixel_maps
from ratherthan.search.method import (
    PertinentPositiveMethod,
    get_pertinent_positive_method,
    pertinent_positive_methods,
)
from ratherthan.search.pertinent_positive import rank_correlation
from ratherthan.superpixels import Kind, SegmentedImages, Superpixels, default_baseline, default_superpixels, segment

_ABOVE_ZERO = ("lime",)  # their positive weights are the part, as CEM-MAF reads them


@register_experiment
@dataclass(frozen=True, eq=False)
class Pertinent(Experiment):
    """Tables 1 and 6 of CEM-MAF: parts of an image with class P, shown by themselves.

        features     how many superpixels, or pixels, the part has (#PP Feat)
        share        the same as a share of all
        kept         1 if the part by itself is still P (PP Acc)
        p_fact       the probability of P in the part
        correlation  Spearman(k, r_k), r_k the descending mid-rank of p_k, the probability of P with the k most
                     important features present: -1 if each adds confidence (PP Corr); undefined for less than three

    A search for pertinent positives brings its part and its order. The part of an attribution map are the features
    whose mean relevance is above `threshold` times the largest (LIME: above zero), the most relevant first; the paper
    does not state the threshold of its Grad-CAM rows.

    Attributes:
        superpixels: Of the maps: a kind, or None: what CEM-MAF takes by default.
        count: How many of them are wanted.
        off: What is where a feature is not: a value, "mean", or None: what CEM-MAF takes by default.
        threshold: In [0, 1).
    """

    superpixels: Kind | None = None
    count: int = 200
    off: float | str | None = None
    threshold: float = 0.5

    name: ClassVar[str] = "pertinent"
    measures = ("features", "share", "kept", "p_fact", "correlation")
    layout = (("method", "contrast"), ("measure",))
    methods = ("cem-maf", "lime", "gradcam", "la")
    contrasts = ("none", "weighted")

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise InputError(f"threshold is a share of the largest relevance, in [0, 1), not {self.threshold}")

    def method(self, method: Any) -> Any:
        """A search for pertinent positives, or an attribution method."""
        searches = isinstance(method, PertinentPositiveMethod) or method in pertinent_positive_methods()
        return get_pertinent_positive_method(method) if searches else get_method(method)

    def better(self, cell: Mapping[str, Any]) -> int:
        """Fewer features, lower correlation; more of what keeps the class."""
        return -1 if cell["measure"] in ("features", "share", "correlation") else 1

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method, contrast and sample."""
        logits = batch.logits([batch.images])[0]
        fact = logits.argmax(1)
        for name, method in batch.searches.items():
            found = batch.search(method, fact)
            labels = segment(batch.images, "pixels") if found.superpixels is None else found.superpixels
            orders = None if found.order is None else [row[row >= 0].tolist() for row in found.order]
            kept = (found.mask > 0).flatten(1).sum(1) if orders is None else _lengths(orders).to(fact.device)
            curves = [None] * len(fact) if found.curve is None else [row[~row.isnan()] for row in found.curve]
            yield self._rows(batch, name, "", fact, found.example, kept, labels, curves)
        if batch.methods:
            parts = self._parts(batch)
            for (name, contrast), why in batch.explain().items():
                orders = self._orders(name, pixel_maps(why), parts)
                alone = parts.render(_masks(orders, parts), torch.arange(len(fact), device=fact.device))
                curves = [_confidence(batch, parts, row, order, int(fact[row])) for row, order in enumerate(orders)]
                yield self._rows(batch, name, contrast, fact, alone, _lengths(orders), parts.labels, curves)

    def _parts(self, batch: Batch) -> SegmentedImages:
        how = Superpixels(self.superpixels, self.count) if self.superpixels else default_superpixels(batch.images)
        off = default_baseline(batch.images) if self.off is None else self.off
        return SegmentedImages(batch.images, segment(batch.images, how), baseline_images(batch.images, off))

    def _orders(self, method: str, maps: Tensor, parts: SegmentedImages) -> list[list[int]]:
        """The features of each part, the most relevant first."""
        flat = parts.labels.flatten(1)
        shape = (len(flat), parts.present.shape[1])
        area = maps.new_zeros(shape).scatter_add_(1, flat, torch.ones_like(flat, dtype=maps.dtype))
        relevance = maps.new_zeros(shape).scatter_add_(1, flat, maps.flatten(1)) / area.clamp_min(1)
        share = 0.0 if method.split("(")[0] in _ABOVE_ZERO else self.threshold
        bar = (share * relevance.amax(1, keepdim=True)).clamp_min(0)
        ranked = relevance.argsort(dim=1, descending=True, stable=True)
        counts = (relevance > bar).sum(1).tolist()
        return [row[:count].tolist() for row, count in zip(ranked, counts, strict=True)]

    def _rows(
        self,
        batch: Batch,
        name: str,
        contrast: str,
        fact: Tensor,
        alone: Tensor,
        kept: Tensor,
        labels: Tensor,
        curves: Sequence[Tensor | None],
    ) -> Rows:
        logits = batch.logits([alone])[0]
        rising = [torch.nan if each is None else rank_correlation(each[1:]) for each in curves]
        return batch.rows(
            name,
            contrast,
            {},
            features=kept,
            share=kept.cpu() / (labels.flatten(1).amax(1).cpu() + 1),
            kept=logits.argmax(1) == fact,
            p_fact=logits.softmax(1).gather(1, fact.unsqueeze(1))[:, 0],
            correlation=torch.tensor(rising),
        )


def _lengths(orders: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(order) for order in orders])


def _masks(orders: Sequence[Sequence[int]], parts: SegmentedImages) -> Tensor:
    masks = torch.zeros(len(orders), parts.present.shape[1], dtype=parts.images.dtype, device=parts.images.device)
    for mask, order in zip(masks, orders, strict=True):
        mask[list(order)] = 1
    return masks


def _confidence(batch: Batch, parts: SegmentedImages, row: int, order: Sequence[int], fact: int) -> Tensor:
    """(k + 1,) the probability of the fact with none, one, ... all of the features present."""
    masks = _masks([order[:k] for k in range(len(order) + 1)], parts)
    shown = torch.split(masks, batch.at_once)
    rows = torch.full((len(masks),), row, device=masks.device)
    with torch.no_grad():
        logits = [batch.model.logits(parts.render(each, rows[: len(each)])) for each in shown]
    return torch.cat(logits).softmax(1)[:, fact]
