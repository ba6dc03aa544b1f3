"""Pixels are taken away in the order of a map: `deletion`, `insertion` and `confidence-drop`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ratherthan.contrast import get_contrast, resolve
from ratherthan.evaluation.experiment import BaselineWord, Batch, Experiment, Rows, register_experiment
from ratherthan.settings import AtLeastOne, Share


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
        foil: "runner-up", or "others": all classes but P.
    """

    steps: AtLeastOne = 20
    baseline: BaselineWord = "model-mean"
    foil: Literal["runner-up", "others"] = "runner-up"

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
