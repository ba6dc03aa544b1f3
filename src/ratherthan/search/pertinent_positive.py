"""The verb `pertinent_positive`, WHAT is enough, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.contrast import margin, odds
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.progress import Progress
from ratherthan.render.case import Case, part
from ratherthan.render.figure import figure
from ratherthan.render.panel import Heatmap, Panel
from ratherthan.render.searches import draw_excerpts, excerpt_row
from ratherthan.result import Shape, laid_over
from ratherthan.search.method import (
    PertinentPositiveMethod,
    SearchQuestion,
    SearchResult,
    get_pertinent_positive_method,
)
from ratherthan.search.solver import End, Status
from ratherthan.settings import Interval, Share
from ratherthan.words import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_DIMMED = 0.18  # how much of what is left out still shows through
_SIDES = ("", "enough, the first most of all")
SLACK = 1e-3  # logits above the margin asked for, so that rounding in another batch does not undo an answer
KAPPA = 5.0  # logits, as in CEM-MAF
_HEIGHTS, _WIDTHS = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True, eq=False, kw_only=True)
class PertinentPositive(SearchResult):
    """A part of each image that keeps the fact by itself (CEM-MAF, section 3.2).

    N images, K the largest number of features kept. An answer is the part on a ground, the rest switched off; there is
    one on each ground asked for (R of them, see `SearchResult`), first that on which the fact is the least probable.

    Where the ground itself has the fact, by as much as the part has to, the status is "nothing needed" and the part is
    empty.

    Attributes:
        grounds: N lists of R: what is where a part is not, in words: "black".
        mask: (N, H, W): how much of every pixel is kept, in [0, 1]; bool where pixels are kept or not.
        features: (N,): how many features are kept.
        feature_count: (N,): of how many.
        superpixels: (N, H, W) labels of the features; None: every pixel is one. Of texts the words, (N, T), like the
            mask; -1 where there is none.
        order: (N, K) labels of the features kept, the most important first, then -1; None if they have no order.
        curve: (N, K + 1): probability of the fact with the first k of them present, NaN beyond the last; or None.
            Of several grounds the least.
        curve_before: The same in an order that was fixed before the part was found, which owes nothing to it; or None.
    """

    kind: ClassVar[str] = "pertinent positive"
    asks: ClassVar[str] = "What is enough?"

    mask: Annotated[Tensor, Shape("N plane")]
    features: Annotated[Tensor, Shape("N")]
    feature_count: Annotated[Tensor, Shape("N")]
    superpixels: Annotated[Tensor, Shape("N plane")] | None = None
    order: Annotated[Tensor, Shape("N F")] | None = None
    curve: Annotated[Tensor, Shape("N P")] | None = None
    curve_before: Annotated[Tensor, Shape("N P")] | None = None
    grounds: Annotated[list[Any], Shape("N R")] | None = None

    @classmethod
    def of(
        cls,
        how: PertinentPositiveMethod,
        question: SearchQuestion,
        examples: Tensor,
        ends: list[tuple[Status, str]],
        mask: Tensor,
        *,
        superpixels: Tensor | None = None,
        order: Tensor | None = None,
        grounds: Sequence[Sequence[str]] | None = None,
        check: Callable[[Tensor], Tensor] | None = None,
        **more: Any,
    ) -> PertinentPositive:
        """Verify what a method found by a fresh pass, on all grounds.

        Args:
            how: The method.
            question: N questions.
            examples: (N, C, H, W): the images with what is not kept switched off; on several grounds (N, R, C, H, W).
            ends: N: how each search ended, and why.
            mask: (N, H, W).
            superpixels: (N, H, W).
            order: (N, K).
            grounds: N lists of R.
            check: Logits (N, R, classes) to whether a part is enough, (N, R) bool; None: the fact is the likeliest
                class.
            **more: Further fields.
        """
        examples = examples if examples.ndim > question.images.ndim else examples.unsqueeze(1)
        logits = question.fresh(examples)
        holds = (question.reached(logits)[1] if check is None else check(logits)).all(1, keepdim=True)
        hardest = logits.softmax(-1)[question.rows, :, question.facts].argsort(dim=1, stable=True)
        each = question.rows.unsqueeze(1), hardest
        if grounds is not None:
            grounds = [[row[k] for k in ranks] for row, ranks in zip(grounds, hardest.tolist(), strict=True)]
        pixels = torch.full_like(question.facts, mask[0].numel())
        more["features"] = (mask > 0).flatten(1).sum(1) if order is None else (order >= 0).sum(1)
        more["feature_count"] = pixels if superpixels is None else superpixels.flatten(1).amax(1) + 1
        more |= {"mask": mask, "superpixels": superpixels, "order": order, "grounds": grounds}
        more |= {"examples": examples[each], "example_logits": logits[each]}
        return cls.answering(
            how, question, [[end] * examples.shape[1] for end in ends], holds.expand_as(hardest), **more
        )

    def correlation(self) -> Tensor:
        """(N,): PP Corr of CEM-MAF's Table 1, Spearman's rank correlation of k with the descending rank of p_k.

        p_k is the probability of the fact with the first k = 1 ... features present, by `curve_before`: in `order` each
        adds confidence because it was sorted to. Equal ones share the middle rank. -1: every feature adds confidence.
        NaN for fewer than three features, equal p_k, or where no order was fixed before.
        """
        if self.curve_before is None:
            return torch.full((len(self),), torch.nan)
        return torch.tensor([rank_correlation(row[~row.isnan()][1:]) for row in self.curve_before.cpu()])

    def ranks(self) -> Tensor:
        """(N, H, W): 1 at the most important feature, falling evenly to 1/k at the last of k; 0 where nothing is kept.

        Features without an order are drawn by how much of them is kept.
        """
        if self.order is None:
            return self.mask.float()
        order, kept = self.order.cpu(), self.order.cpu() >= 0
        pixels = torch.arange(self.mask[0].numel()).view(self.mask.shape[1:]).expand(self.mask.shape)
        labels = pixels if self.superpixels is None else self.superpixels.cpu()
        last = int(labels.max()) + 1  # a column for the labels -1 that fill up the order
        labels = labels.where(labels >= 0, last)
        rank = 1 - torch.arange(order.shape[1]) / kept.sum(1, keepdim=True).clamp_min(1)
        drawn = torch.zeros(len(order), last + 1).scatter(1, order.where(kept, last), rank * kept)
        return drawn.gather(1, labels.flatten(1)).view(labels.shape)

    # ----------------------------------------------------------------------------------------- in words
    def because(self, sample: int) -> str:
        """What is enough, as the end of a sentence: "because of 4 of 180 superpixels (3% of it, upper left)"."""
        if self.status[sample] == Status.NOTHING_NEEDED:
            return f"for which nothing is needed: {self.reason[sample]}"
        kept, count = int(self.features[sample]), int(self.feature_count[sample])
        if self.tokens and self.superpixels is not None:
            told = zip(self.tokens[sample], self.mask[sample].tolist(), self.superpixels[sample].tolist(), strict=False)
            read = "".join(token for token, is_kept, word in told if is_kept and word >= 0).strip()
            return f"because of {kept} of {count} words: {read!r}"
        what = "pixels" if self.superpixels is None or count == self.mask[sample].numel() else "superpixels"
        mask = self.mask[sample].float().cpu()
        return f"because of {kept} of {count} {what} ({percent(mask.mean().item())} of it, {_place(mask)})"

    def text(self, sample: int, q: int = 0) -> str:
        """One line about one image."""
        fact = int(self.fact[sample])
        name = self.class_label(fact)
        if self.status[sample] not in (Status.FOUND, Status.NOTHING_NEEDED):
            return f"What is enough for {name}? {self.status[sample]}: {self.reason[sample]}."
        alone, whole = (each[sample].softmax(0)[fact].item() for each in (self.example_logits[:, 0], self.logits))
        what = "text" if self.tokens else "image"
        chances = f"{percent(alone)} {name}, the whole {what} {percent(whole)}"
        if self.status[sample] == Status.NOTHING_NEEDED:
            return f"Nothing is needed for {name}: {self.reason[sample]} ({chances})."
        return f"{name}, {self.because(sample)}: by themselves {chances}; {self.reason[sample]}."

    def to_frame(self) -> DataFrame:
        """One row per image: the part on the ground on which the fact is the least probable."""
        import pandas as pd

        return pd.DataFrame([self._row(i, 0, 0) for i in range(len(self))])

    def _row(self, i: int, q: int, r: int) -> dict[str, Any]:
        leads = [margin(each[i], self.fact[i]).item() for each in (self.example_logits[:, 0], self.logits)]
        return super()._row(i, q, r) | {
            "grounds": ", ".join(self.grounds[i]) if self.grounds else None, "lead": leads[0], "lead_whole": leads[1],
            "features": int(self.features[i]), "feature_count": int(self.feature_count[i]),
            "share": self.mask[i].float().mean().item(), "correlation": self[i].correlation().item(),
            "p_fact_whole": self.logits[i].softmax(0)[self.fact[i]].item(),
        }  # fmt: skip

    # ----------------------------------------------------------------------------------------- showing it
    def dimmed(self) -> Tensor:
        """(N, C, H, W): the kept parts in full, the rest faded towards a neutral grey."""
        mask = self.mask.to(self.images).unsqueeze(1)
        return mask * self.images + (1 - mask) * (_DIMMED * self.images + (1 - _DIMMED) * 0.5)

    def panels(self) -> list[Panel]:
        """What a figure draws: the features kept over their image, the most important strongest."""
        return [self._panel(i, rank) for i, rank in enumerate(self.ranks().numpy())]

    def _panel(self, i: int, rank: np.ndarray[Any, Any]) -> Panel:
        image, owner = self.drawn(i)
        view, fact = Heatmap("", self.method, laid_over(rank, owner), self.text(i)), self.class_label(int(self.fact[i]))
        return Panel(self.title(i), image, fact, self._bars(i), (view,), _SIDES, paper=bool(self.tokens))

    def cases(self) -> list[Case]:
        """What a page shows: a case per sample, with the part that is enough."""
        return [self._case(i, rank) for i, rank in enumerate(self.ranks().numpy())]

    def _case(self, i: int, rank: np.ndarray[Any, Any]) -> Case:
        fact = int(self.fact[i])
        text = self.text(i).removeprefix(f"What is enough for {self.class_label(fact)}?").strip()
        curve = () if self.curve is None or not self.features[i] else self.curve[i][~self.curve[i].isnan()].tolist()
        rank = rank[: len(self.tokens[i])] if self.tokens else rank
        enough = part(text, self.status[i], rank, curve, self.logits[i].softmax(0)[fact].item())
        return Case(fact=self.class_label(fact), bars=self._bars(i), enough=enough, **self.about(i))

    def plot(self) -> Figure:
        """A row per image: the image, the part by itself, where it lies, the features in order, the confidence."""
        if self.tokens:
            return figure(self.panels())
        return draw_excerpts([
            excerpt_row(
                each.title(0), each.class_label(int(each.fact)), each.text(0), each.status[0],
                each.picture(each.images[0]), each.picture(each.example[0]), each.picture(each.dimmed()[0]),
                each.ranks()[0].numpy(),
                each.logits[0].softmax(0)[each.fact].item(),
                () if each.curve is None or not each.features else each.curve[~each.curve.isnan()].tolist(),
            )
            for each in self
        ])  # fmt: skip


def pertinent_positive(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    method: str | PertinentPositiveMethod = "cem-maf",
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: Progress = None,
) -> PertinentPositive:
    """Find a small part of each image that keeps the fact by itself.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays; or a data set.
        fact: The class to be kept; None: the prediction.
        method: A registered name (see `pertinent_positive_methods()`), or an object, e.g. `CEMPositive(kappa=1.0)`.
        names: What to call the images; None: their paths, or their names in a data set, or numbers.
        batch_size: Images at once; it changes no answer.
        progress: True draws a bar; a callable is called with (images done, images in all) now and then.

    Returns:
        The parts, each verified by a fresh pass. A part that keeps the predicted class always exists: the whole image.

    Raises:
        InputError: If an argument cannot be used, or an image lies outside [0, 1].

    Example:
        >>> enough = pertinent_positive(load("zoo:mnist"), images)
        >>> enough.example, enough.mask, enough.found
    """
    how, given = get_pertinent_positive_method(method), (images, fact, None, names)
    return PertinentPositive.sought(how, model, *given, batch_size=batch_size, progress=progress)


# --------------------------------------------------------------------------------------------- what enough means
@dataclass(frozen=True)
class KeepsMargin(PertinentPositiveMethod):
    """A method whose parts keep the fact by a margin; what only just keeps it says little.

    A part need not do better than the whole: where that leads by less than kappa, its own lead is asked for, and the
    reason says so. A part leads by more than the whole only because it leaves out what speaks against the fact; to ask
    for that would be another question than what is enough.

    Attributes:
        kappa: By how many logits the fact is to lead all other classes; None: 5, as in CEM-MAF.
        confidence: Instead, which share of its probability in the whole the fact is to keep, e.g. 0.9.
    """

    _: KW_ONLY
    kappa: Annotated[float, Interval(0)] | None = None
    confidence: Share | None = None

    def __post_init__(self) -> None:
        """Refuse two margins.

        Raises:
            InputError: If both are given, or a setting does not fit.
        """
        super().__post_init__()
        if self.kappa is not None and self.confidence is not None:
            raise InputError("a part keeps a margin in logits or a share of the probability: give kappa or confidence")


class Margin:
    """What parts of N inputs have to keep.

    Args:
        how: The method.
        question: About N inputs.

    Attributes:
        kappa: By how many logits it is to lead.
        lead: (N,) by how many logits the whole leads.
        wanted: (N,) by how many a part has to, a little more than kappa; at most about as much as the whole.
    """

    def __init__(self, how: KeepsMargin, question: SearchQuestion) -> None:
        whole, self.fact = question.logits, question.facts
        self.kappa = 0.0 if how.confidence is not None else KAPPA if how.kappa is None else how.kappa
        self.lead, sure = margin(whole, self.fact), odds(whole, self.fact)
        most = torch.where(self.lead > 0, self.lead - SLACK, torch.inf).clamp_min(SLACK)
        self.wanted = most.clamp_max(self.kappa + SLACK)
        self._odds = torch.full_like(sure, -torch.inf)
        if how.confidence is not None:
            p = whole.softmax(1).gather(1, self.fact.unsqueeze(1)).squeeze(1)
            self._odds = torch.minimum(torch.logit(how.confidence * p) + SLACK, sure - SLACK)

    def ahead(self, logits: Tensor, rows: Tensor) -> Tensor:
        """By how many logits parts have more than they need, or less: (M, ..., classes) of inputs (M,) to (M, ...)."""
        wide = [each[rows].view(-1, *[1] * (logits.ndim - 2)) for each in (self.fact, self.wanted, self._odds)]
        fact = wide[0].expand(logits.shape[:-1])
        return torch.minimum(margin(logits, fact) - wide[1], odds(logits, fact) - wide[2])

    def holds(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Whether a fresh pass, which may round otherwise, confirms that parts are enough; a tie is none."""
        return self.ahead(logits, rows) > -SLACK

    def said(self, row: int, lead: float, where: str = "") -> str:
        """By how much a part leads, and why not by kappa."""
        own = self.lead[row].item()
        capped = f"; {self.kappa:g} were asked for, but the whole leads by {own:.2f}" if 0 < own < self.kappa else ""
        return f"it leads by {lead:.2f} logits{where}{capped}"


def nothing_needed(question: SearchQuestion, row: int, grounds: Sequence[str]) -> End:
    """How a search ends where what stands for nothing has the fact already."""
    names, fact = question.model.class_names, int(question.facts[row])
    verb = "is" if len(grounds) == 1 else "are"
    said = f"{' and '.join(grounds)} {verb} already {names[fact] if names else f'class {fact}'} to this network"
    return Status.NOTHING_NEEDED, said


def rank_correlation(p: Tensor) -> float:
    """Spearman's correlation of 1 ... k with the descending mid-ranks of p, (k,); NaN for k < 3 or equal p."""
    from scipy.stats import spearmanr

    if len(p) < 3 or p.min() == p.max():
        return torch.nan
    return float(spearmanr(range(len(p)), -p.double().cpu().numpy()).statistic)


def _place(mask: Tensor) -> str:
    """Where the centre of a mask (H, W) lies, on a grid of nine."""
    total = mask.sum().clamp_min(1e-12)
    down = (mask.sum(1) * torch.linspace(0, 2.999, len(mask))).sum() / total
    across = (mask.sum(0) * torch.linspace(0, 2.999, mask.shape[1])).sum() / total
    words = _HEIGHTS[int(down)], _WIDTHS[int(across)]
    return "in the centre" if words == ("middle", "centre") else " ".join(words)
