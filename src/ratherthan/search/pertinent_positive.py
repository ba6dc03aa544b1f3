"""The verb `pertinent_positive`, WHAT is enough, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.contrast import resolve
from ratherthan.errors import InputError
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.registry import Classes
from ratherthan.result import (
    Result,
    class_label,
    picture,
    versions,
)
from ratherthan.search.method import Report
from ratherthan.search.solver import Status
from ratherthan.settings import fields_to_jsonable
from ratherthan.verbs import Samples
from ratherthan.words import percent

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ratherthan.render import Panel

_DIMMED = 0.18  # how much of what is left out still shows through
_SIDES = ("", "enough, the first most of all")
_HEIGHTS, _WIDTHS = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True, eq=False, kw_only=True)
class PositiveAnswers:
    """What a search found for N images.

    Attributes:
        mask: (N, H, W): how much of every pixel is kept, in [0, 1]; bool where pixels are kept or not.
        examples: (N, C, H, W): the images with what is not kept switched off.
        status: N: how each search ended.
        reason: The same in words.
        superpixels: (N, H, W) labels, where features are superpixels; None: every pixel is a feature.
        order: (N, K) labels of the features kept, the most important first, then -1.
        curve: (N, K + 1) probability of the fact with the first k of them present, NaN beyond the last.
        interrupted: Whether Ctrl-C ended it.
        evaluations: Images that the network looked at.
    """

    mask: Tensor
    examples: Tensor
    status: list[Status]
    reason: list[str]
    superpixels: Tensor | None = None
    order: Tensor | None = None
    curve: Tensor | None = None
    interrupted: bool = False
    evaluations: int = 0


class PertinentPositiveMethod(ABC):
    """A way to find a part that is enough. A subclass is a frozen dataclass whose fields are its settings.

    Attributes:
        name: What it is registered under.
    """

    name: ClassVar[str]

    def prepared(self, model: Model) -> Self:
        """The method with what it lacks filled in from the model."""
        return self

    def check(self, model: Model, images: Tensor) -> None:  # noqa: B027 (optional on purpose)
        """Refuse a model or images, (N, C, H, W), that it cannot work on, before any search begins.

        Raises:
            RatherThanError: If so.
        """

    @abstractmethod
    def answer(
        self, model: Model, images: Tensor, fact: Tensor, samples: Sequence[int], report: Report | None = None
    ) -> PositiveAnswers:
        """Search for all images at once.

        Args:
            model: The network.
            images: (N, C, H, W) in image space.
            fact: (N,) class indices.
            samples: (N) numbers of the images, which random numbers depend on.
            report: Told how far it is.

        Returns:
            The answers; that they keep the fact is verified afterwards.
        """

    def settings(self) -> dict[str, Any]:
        """The settings by name, fit to be written down."""
        return fields_to_jsonable(self)


_METHODS: Classes[PertinentPositiveMethod] = Classes(
    "method of pertinent positives", PertinentPositiveMethod, "CEMMAFPositive()"
)
register_pertinent_positive_method = _METHODS.register
get_pertinent_positive_method = _METHODS.make


def pertinent_positive_methods() -> list[str]:
    """The registered names."""
    return list(_METHODS)


@dataclass(frozen=True, eq=False, kw_only=True)
class PertinentPositive(Result):
    """A part of each image that keeps the fact by itself (CEM-MAF, section 3.2).

    N images, K the largest number of features kept.

    Attributes:
        images: (N, C, H, W) in image space.
        mask: (N, H, W): how much of every pixel is kept, in [0, 1]; bool where pixels are kept or not.
        example: (N, C, H, W): the part by itself, the rest switched off; see `found`.
        features: (N,): how many features are kept.
        feature_count: (N,): of how many.
        status: N: how each search ended; the values of `Status`.
        reason: The same in words.
        fact: (N,) class indices.
        logits: (N, classes) of the images.
        example_logits: (N, classes), from a fresh pass over the examples.
        superpixels: (N, H, W) labels of the features; None: every pixel is one.
        order: (N, K) labels of the features kept, the most important first, then -1; None if they have no order.
        curve: (N, K + 1): probability of the fact with the first k of them present, NaN beyond the last; or None.
        interrupted: Whether Ctrl-C ended the search.
        evaluations: Images that the network looked at during the search.
        method: Its name.
        settings: Its settings.
        class_names: Names of the classes, or None.
        names: (N) names of the images.
        versions: Versions of what computed it.
    """

    kind: ClassVar[str] = "pertinent positive"

    images: Tensor
    mask: Tensor
    example: Tensor
    features: Tensor
    feature_count: Tensor
    status: list[str]
    reason: list[str]
    fact: Tensor
    logits: Tensor
    example_logits: Tensor
    superpixels: Tensor | None
    order: Tensor | None
    curve: Tensor | None
    interrupted: bool
    evaluations: int
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def found(self) -> Tensor:
        """(N,) bool: whether the part keeps the fact, in a fresh pass."""
        return torch.tensor([status == Status.FOUND for status in self.status])

    def correlation(self) -> Tensor:
        """(N,): PP Corr of CEM-MAF's Table 1, Spearman's rank correlation of k with the descending rank of p_k.

        p_k is the probability of the fact with the first k = 1 ... features present, most important first; equal ones
        share the middle rank. -1: every feature adds confidence. NaN for fewer than three features, or equal p_k.
        """
        if self.curve is None:
            return torch.full((len(self),), torch.nan)
        return torch.tensor([rank_correlation(row[~row.isnan()][1:]) for row in self.curve.cpu()])

    def ranks(self) -> Tensor:
        """(N, H, W): 1 at the most important feature, falling evenly to 1/k at the last of k; 0 where nothing is kept.

        Features without an order are drawn by how much of them is kept.
        """
        if self.order is None:
            return self.mask.float()
        labels = self.superpixels if self.superpixels is not None else _pixels(self.mask)
        drawn = torch.zeros(labels.shape)
        for i, row in enumerate(self.order.cpu()):
            kept = row[row >= 0]
            value = torch.zeros(int(labels[i].max()) + 1).index_put((kept,), 1 - torch.arange(len(kept)) / len(kept))
            drawn[i] = value[labels[i].cpu()]
        return drawn

    # ----------------------------------------------------------------------------------------- in words
    def because(self, sample: int) -> str:
        """What is enough, as the end of a sentence: "because of 4 of 180 superpixels (3% of it, upper left)"."""
        kept, count = int(self.features[sample]), int(self.feature_count[sample])
        what = "pixels" if self.superpixels is None or count == self.mask[sample].numel() else "superpixels"
        share = self.mask[sample].float().mean().item()
        return (
            f"because of {kept} of {count} {what} ({percent(share)} of it, {_place(self.mask[sample].float().cpu())})"
        )

    def text(self, sample: int, q: int = 0) -> str:
        """One line about one image."""
        fact = int(self.fact[sample])
        name = class_label(self.class_names, fact)
        if self.status[sample] != Status.FOUND:
            return f"What is enough for {name}? {self.status[sample]}: {self.reason[sample]}."
        alone, whole = (each[sample].softmax(0)[fact].item() for each in (self.example_logits, self.logits))
        odds = f"by themselves {percent(alone)} {name}, the whole image {percent(whole)}"
        return f"{name}, {self.because(sample)}: {odds}; {self.reason[sample]}."

    def __str__(self) -> str:
        lines = [f"{name}: {self.text(i)}" for i, name in enumerate(self.names)]
        return "\n".join([*lines, f"({self.method}{', interrupted' * self.interrupted})"])

    def __repr__(self) -> str:
        return f"PertinentPositive({self.method}, {int(self.found.sum())} of {len(self)} found)"

    def to_frame(self) -> DataFrame:
        """One row per image."""
        import pandas as pd

        correlation, rows = self.correlation(), []
        for i, name in enumerate(self.names):
            fact, p = int(self.fact[i]), self.example_logits[i].softmax(0)
            rows.append({
                "sample": name, "fact": class_label(self.class_names, fact), "method": self.method,
                "status": self.status[i], "reason": self.reason[i], "features": int(self.features[i]),
                "feature_count": int(self.feature_count[i]), "share": self.mask[i].float().mean().item(),
                "p_fact": p[fact].item(), "p_fact_whole": self.logits[i].softmax(0)[fact].item(),
                "top": class_label(self.class_names, int(p.argmax())), "correlation": correlation[i].item(),
            })  # fmt: skip
        return pd.DataFrame(rows)

    # ----------------------------------------------------------------------------------------- showing it
    def dimmed(self) -> Tensor:
        """(N, C, H, W): the kept parts in full, the rest faded towards a neutral grey."""
        mask = self.mask.to(self.images).unsqueeze(1)
        return mask * self.images + (1 - mask) * (_DIMMED * self.images + (1 - _DIMMED) * 0.5)

    def panels(self) -> list[Panel]:
        """What the report draws: the features kept over their image, the most important strongest."""
        from ratherthan.render import Heatmap, Panel

        cases, ranks = [], self.ranks().numpy()
        for i, name in enumerate(self.names):
            p = self.logits[i].softmax(0)
            bars = tuple(
                (class_label(self.class_names, k), p[k].item()) for k in p.topk(min(6, len(p))).indices.tolist()
            )
            views = (Heatmap("", self.method, ranks[i], self.text(i)),)
            fact = class_label(self.class_names, int(self.fact[i]))
            cases.append(Panel(Path(name).name, picture(self.images[i]), fact, bars, views, _SIDES))
        return cases

    def write_page(self, path: Path) -> Path:
        """Write a page that needs nothing else; returns the path."""
        from ratherthan.render import write_page

        return write_page(self.panels(), path, "What is enough?", f"Method: {self.method}.")

    def plot(self) -> Figure:
        """A row per image: the image, the part by itself, where it lies, the features in order, the confidence."""
        from matplotlib.figure import Figure

        from ratherthan.render import overlay

        sheet = Figure(figsize=(9.2, 2.15 * len(self) + 0.2), layout="constrained")
        rows = sheet.subplots(len(self), 5, squeeze=False)
        ranks, dimmed = self.ranks().numpy(), self.dimmed()
        for i, axes in enumerate(rows):
            image, fact = picture(self.images[i]), class_label(self.class_names, int(self.fact[i]))
            titled = (
                (f"{Path(self.names[i]).name[-24:]}\n{fact}", image),
                (f"{self.status[i]}\n{self.features[i]} of {self.feature_count[i]} features", picture(self.example[i])),
                ("\nthe rest dimmed", picture(dimmed[i])),
                ("\nfirst: strongest", overlay(image, ranks[i], 1.0)),
            )
            for place, (title, drawn) in zip(axes[:4], titled, strict=True):
                place.imshow(drawn, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                place.set_title(title, fontsize=8, parse_math=False)
                place.set_axis_off()
            self._draw_curve(axes[4], i, fact)
        return sheet

    def _draw_curve(self, axes: Any, sample: int, fact: str) -> None:
        fact_index = int(self.fact[sample])
        whole = self.logits[sample].softmax(0)[fact_index].item()
        if self.curve is not None:
            row = self.curve[sample].cpu()
            axes.plot(row[~row.isnan()].numpy(), marker=".", markersize=3, linewidth=1)
        axes.axhline(whole, color="0.6", linestyle=":", linewidth=1)
        axes.set_ylim(0, 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=7)
        axes.set_title(f"p({fact}) with the first k\ndotted: whole image", fontsize=8, parse_math=False)


def pertinent_positive(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    method: str | PertinentPositiveMethod = "cem-maf",
    *,
    batch_size: int = 64,
    progress: Report | None = None,
) -> PertinentPositive:
    """Find a small part of each image that keeps the fact by itself.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays.
        fact: The class to be kept; None: the prediction.
        method: A registered name (see `pertinent_positive_methods()`), or an object, e.g. `CEMMAFPositive(off=0.5)`.
        batch_size: Images at once; it changes no answer.
        progress: Called with (images done, images in all) after every batch.

    Returns:
        The parts, each verified by a fresh pass. A part that keeps the predicted class always exists: the whole image.

    Raises:
        InputError: If an argument cannot be used, or an image lies outside [0, 1].

    Example:
        >>> enough = pertinent_positive(load("zoo:mnist"), images)
        >>> enough.example, enough.mask, enough.found
    """
    model = Model.wrap(model)
    how = get_pertinent_positive_method(method).prepared(model)
    if not model.output.of_classes:
        raise InputError("this model gives a value; a pertinent positive keeps a class")
    samples = Samples.of(model, images, fact)
    batch = samples.images
    if batch.min() < -1e-4 or batch.max() > 1 + 1e-4:
        raise InputError(f"images range over [{batch.min():.3g}, {batch.max():.3g}]: hand them in [0, 1]")
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, not {batch_size}")
    how.check(model, batch)
    parts: list[dict[str, Any]] = []
    for start in range(0, len(batch), batch_size):
        rows = slice(start, start + batch_size)
        with preserve_state(model.module):
            parts.append(_part(model, batch[rows], samples[rows].fact, how, range(len(batch))[rows]))
        if progress is not None:
            progress(min(start + batch_size, len(batch)), len(batch))
        if parts[-1]["interrupted"]:
            break
    joined: dict[str, Any] = {key: _join([part[key] for part in parts], key in ("order", "curve")) for key in parts[0]}
    return PertinentPositive(
        **joined,
        method=how.name,
        settings=how.settings(),
        class_names=model.class_names,
        names=samples.names[: len(joined["images"])],
        versions=versions(),
    )


def _part(
    model: Model, images: Tensor, fact: Any, how: PertinentPositiveMethod, samples: Sequence[int]
) -> dict[str, Any]:
    """The fields of a result for one batch, what was found being looked at once more."""
    with torch.no_grad():
        logits = model.logits(images)
    model.check(logits)
    question = resolve(logits, fact, None, model.class_names)
    if question.axis is not None:
        raise InputError("a pertinent positive keeps one class: give one fact, or one per image")
    facts = question.fact.squeeze(1)
    answers = how.answer(model, images, facts, samples)
    with torch.no_grad():
        seen = model.logits(answers.examples)
    status, reason = list(map(str, answers.status)), list(answers.reason)
    for i in (seen.argmax(1) != facts).nonzero().flatten().tolist():
        if status[i] == Status.FOUND:
            status[i], reason[i] = str(Status.NOT_FOUND), "what seemed to keep the fact does not in a fresh pass"
    labels, mask = answers.superpixels, answers.mask
    counts = (labels.flatten(1).amax(1) + 1) if labels is not None else torch.full_like(facts, mask[0].numel())
    kept = (answers.order >= 0).sum(1) if answers.order is not None else (mask > 0).flatten(1).sum(1)
    return {
        "images": images, "mask": mask, "example": answers.examples, "features": kept, "feature_count": counts,
        "status": status, "reason": reason, "fact": facts, "logits": logits, "example_logits": seen,
        "superpixels": labels, "order": answers.order, "curve": answers.curve, "interrupted": answers.interrupted,
        "evaluations": answers.evaluations,
    }  # fmt: skip


def _join(column: list[Any], ragged: bool) -> Any:
    """What the batches say about one field; where it is ragged, its last dimension is as wide as each batch needed."""
    first = column[0]
    if isinstance(first, Tensor) and not ragged:
        return torch.cat(column)
    if isinstance(first, Tensor):
        widest = max(each.shape[-1] for each in column)
        empty = torch.nan if first.is_floating_point() else -1
        return torch.cat([nn.functional.pad(each, (0, widest - each.shape[-1]), value=empty) for each in column])
    if isinstance(first, list):
        return [row for rows in column for row in rows]
    if isinstance(first, bool):
        return any(column)
    return None if first is None else sum(column)


def rank_correlation(p: Tensor) -> float:
    """Spearman's correlation of 1 ... k with the descending mid-ranks of p, (k,); NaN for k < 3 or equal p."""
    if len(p) < 3:
        return torch.nan
    ranks = (p.unsqueeze(0) > p.unsqueeze(1)).sum(1) + ((p.unsqueeze(0) == p.unsqueeze(1)).sum(1) + 1) / 2
    return float(np.corrcoef(np.arange(len(p)), ranks.double().numpy())[0, 1]) if ranks.std() > 0 else torch.nan


def _pixels(mask: Tensor) -> Tensor:
    """Every pixel labelled by its number, for masks (N, H, W)."""
    return torch.arange(mask[0].numel(), device=mask.device).view(mask.shape[1:]).expand(mask.shape)


def _place(mask: Tensor) -> str:
    """Where the centre of a mask (H, W) lies, on a grid of nine."""
    total = mask.sum().clamp_min(1e-12)
    down = (mask.sum(1) * torch.linspace(0, 2.999, len(mask))).sum() / total
    across = (mask.sum(0) * torch.linspace(0, 2.999, mask.shape[1])).sum() / total
    words = _HEIGHTS[int(down)], _WIDTHS[int(across)]
    return "in the centre" if words == ("middle", "centre") else " ".join(words)
