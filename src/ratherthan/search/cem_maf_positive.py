"""CEM-MAF's pertinent positives: the fewest superpixels that keep the fact by themselves (CEM-MAF, eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.baselines import Baseline, baseline_within
from ratherthan.contrast import Question, Weighted, margin
from ratherthan.search.attributes import Attributes, measure, modules
from ratherthan.search.method import PertinentPositiveMethod, SearchQuestion, register_pertinent_positive_method
from ratherthan.search.pertinent_positive import PertinentPositive
from ratherthan.search.solver import Kept, Status
from ratherthan.search.tradeoff import TradeoffSearch
from ratherthan.settings import Interval, NotNegative
from ratherthan.superpixels import Division, SegmentedImages, default_baseline, default_superpixels, segment

_SLACK = 1e-3  # logits above the margin asked for, so that rounding in another batch does not undo an answer
_RISE = 0.01  # by which attributes may rise without having risen
_TRIED = 8  # features tried at once, the best of which is added
_FEW = 64  # of images with no more features, the two best sets are followed, not one
_GLIMPSE = 0.02  # gradients are taken where the absent features are there by this much: nothing has no gradient
_PATIENCE = 24  # features added one by one, before ever more are added at a time
_MANY = 256  # of larger parts only the last so many features may be left out, and they are not ordered
_SINGLY = 64  # of parts with no more features one is left out per round of the ordering, of larger ones a sixteenth
_VALUES = 2**22  # pixel values that the network is shown at once


@register_pertinent_positive_method
@dataclass(frozen=True)
class CEMMAFPositive(PertinentPositiveMethod):
    """The fewest superpixels that keep the fact (CEM-MAF, eq. 2), in an order in which they add confidence.

    `preset="paper"`: masks m in [0, 1]^S, begun at 1, minimise c max(0, kappa - lead) + beta |m|_1 + gamma sum_i
    max(0, g_i(part) - g_i(image)) by ISTA, 100 iterations for each of nine weights c, begun at 1, ten times it after a
    failure, half of it after a success; lead = y_t - max of the other logits. The best mask (least |m|_1 of those that
    lead by kappa) ranks the superpixels, which are added one by one until the fact returns. The paper states no step
    size: at the 0.1 taken here, a superpixel that nothing holds falls from 1 to 0 in the 100 iterations.

    `preset="sound"` (default): superpixels are added one by one, the best of the eight that the gradient of the
    log-odds at the present part ranks first, until the fact leads by kappa and no attribute has risen; then all that
    are not needed are left out again, and the rest is ordered: left out, one after the other, is the one that is missed
    least; of more than 64 up to a sixteenth at once, and more than 256 keep the order they came in.

    Either way the part keeps the fact by construction; in the worst case it is the whole image.

    Attributes:
        superpixels: A kind (of about 200), a `Superpixels`, a label map (H, W) or (N, H, W), or None: single pixels of
            small grey images, SLIC otherwise.
        baseline: What is where a superpixel is not, in [0, 1]; see `baselines.baseline_images`. None: black for grey
            images, mid grey for colour as in the code published with CEM-MAF.
        preset: "sound" or "paper".
        kappa: By how many logits the fact is to lead: the sound search's parts do (or by as much as the whole image
            does, if that is less); the paper's masks aim at it, its parts only keep the fact. None: 0 and 5.
        attributes: Attribute functions that are not to rise above their values in the image.
        beta: Weight of |m|_1; paper only.
        gamma: Weight of rising attributes.
    """

    name: ClassVar[str] = "cem-maf"

    superpixels: Division | None = None
    baseline: Baseline | None = None
    preset: Literal["sound", "paper"] = "sound"
    kappa: Annotated[float, Interval(0)] | None = None
    attributes: Attributes = ()
    beta: NotNegative = 0.1
    gamma: NotNegative = 100.0
    binary_search_steps: ClassVar[int] = 9
    iterations: ClassVar[int] = 100
    step: ClassVar[float] = 0.1

    def modules(self) -> list[nn.Module]:
        """The attributes'."""
        return modules(self.attributes)

    def search(self, question: SearchQuestion) -> PertinentPositive:
        """See `SearchMethod.search`."""
        images = question.images
        with torch.no_grad():
            baseline = default_baseline(images) if self.baseline is None else self.baseline
            labels = self._labels(images, question.positions)
            scorer = SupersetScorer(question, SegmentedImages(images, labels, baseline_within(images, baseline)), self)
        order, interrupted = [list(range(count)) for count in scorer.counts], False
        try:
            if self.preset == "paper":
                order = scorer.together(_added, _relaxed(scorer))
            else:
                for stage in (_grown, _pruned, _ordered):
                    order = scorer.together(stage, order)
        except KeyboardInterrupt:
            interrupted = True  # what the stages before have left is enough, too
        return scorer.result(order, interrupted)

    def _labels(self, images: Tensor, samples: Sequence[int]) -> Tensor:
        how = self.superpixels
        if how is None or isinstance(how, str):
            return segment(images, default_superpixels(images, how))
        if isinstance(how, (Tensor, np.ndarray)) and how.ndim == 3 and len(how) > max(samples):
            how = how[list(samples)]
        return segment(images, how)


Labels = list[int]
"""Features that are kept, in the order they came in."""
Ask = Callable[[Tensor, Tensor], Tensor]
"""What the network is asked about masks (M, S) of images (M,); a number for each, or a row of numbers."""
Stage = Generator[tuple[Ask, list[Labels]], Any, Labels]
"""A part of the search for one image: asks about sets of features, is sent what was asked, and ends with some."""


class SupersetScorer:
    """Shows parts of the images to the network, and counts how many."""

    def __init__(self, question: SearchQuestion, parts: SegmentedImages, how: CEMMAFPositive) -> None:
        self.question, self.parts, self.fact, self.how = question, parts, question.facts, how
        self.rows, self.counts = torch.arange(len(self.fact), device=self.fact.device), parts.count.tolist()
        most = 128 if self.fact.device.type == "cpu" else 4096  # more fall out of a processor's caches
        self.at_once = max(8, min(most, _VALUES // parts.images[0].numel()))
        self.before = measure(how.attributes, parts.images)
        present = parts.present.to(parts.images)
        whole, nothing = (margin(self.logits(masks, self.rows), self.fact) for masks in (present, 0 * present))
        self.kappa = how.kappa if how.kappa is not None else 5.0 if how.preset == "paper" else 0.0
        wanted = (self.kappa if how.preset == "sound" else 0.0) + _SLACK
        self.whole, self.kept = whole, whole > 0
        # no part need do better than the whole image
        self.wanted = torch.where(self.kept, (whole - _SLACK).clamp(_SLACK, wanted), wanted)
        self.for_nothing = nothing >= self.wanted

    def together(self, stage: Callable[[SupersetScorer, int, Labels], Stage], order: list[Labels]) -> list[Labels]:
        """Run a stage for all images side by side: what they ask about is shown to the network together."""
        stages = [stage(self, row, labels) for row, labels in enumerate(order)]
        ends, answers = list(order), dict[int, Any].fromkeys(range(len(order)))
        while answers:
            asked = {}
            for row, answer in answers.items():
                try:
                    asked[row] = stages[row].send(answer)
                except StopIteration as end:
                    ends[row] = end.value
            answers = {}
            for ask in dict.fromkeys(ask for ask, _ in asked.values()):
                sets = {row: some for row, (what, some) in asked.items() if what == ask}
                masks, rows = self.flat(sets)
                values = iter(ask(masks, rows).tolist() if len(rows) else [])
                answers |= {row: [next(values) for _ in some] for row, some in sets.items()}
        return ends

    def flat(self, sets: dict[int, list[Labels]]) -> tuple[Tensor, Tensor]:
        """All sets as masks (M, S), and the numbers (M,) of their images."""
        rows = torch.tensor([row for row, some in sets.items() for _ in some], device=self.rows.device).long()
        return self.masks([labels for some in sets.values() for labels in some]), rows

    def masks(self, sets: Sequence[Labels]) -> Tensor:
        """Sets of labels to masks (M, S)."""
        masks = torch.zeros(len(sets), self.parts.present.shape[1])
        for mask, labels in zip(masks, sets, strict=True):
            mask[labels] = 1
        return masks.to(self.parts.images)

    @torch.no_grad()
    def logits(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Of parts, (M, S) of images `rows` (M,) to (M, classes)."""
        pieces = zip(torch.split(masks, self.at_once), torch.split(rows, self.at_once), strict=True)
        return torch.cat([self.question.look(self.parts.render(*piece)) for piece in pieces])

    @torch.no_grad()
    def log_odds(self, masks: Tensor, rows: Tensor) -> Tensor:
        """The log-odds of the fact, (M,)."""
        return odds(self.logits(masks, rows), self.fact[rows])

    def leads(self, masks: Tensor, rows: Tensor) -> Tensor:
        """By how much the fact leads, (M,); -inf where, in the sound search, an attribute has risen."""
        return self.scores(masks, rows)[:, 0]

    @torch.no_grad()
    def scores(self, masks: Tensor, rows: Tensor) -> Tensor:
        """The lead, and what the sound search makes large, the log-odds less rising attributes: (M, 2)."""
        logits, fact, risen = self.logits(masks, rows), self.fact[rows], self.risen(masks, rows)
        # the sound search takes no part in which an attribute has risen; the paper's only weighs that
        forbidden = (risen > _RISE) & (self.how.preset == "sound")
        leads = margin(logits, fact).masked_fill(forbidden, -torch.inf)
        return torch.stack([leads, odds(logits, fact) - self.how.gamma * risen], 1)

    def risen(self, masks: Tensor, rows: Tensor) -> Tensor:
        """(M,): sum_i max(0, g_i(part) - g_i(image))."""
        if not self.how.attributes:
            return masks.new_zeros(len(masks))
        after = measure(self.how.attributes, self.parts.render(masks, rows))
        return (after - self.before[rows]).clamp_min(0).sum(1)

    def rank(self, masks: Tensor, rows: Tensor) -> Tensor:
        """(M, S): the features by the gradient of the score, those that are missing first."""
        present, gradients = self.parts.present[rows], []
        glimpsed = torch.maximum(masks, _GLIMPSE * present)
        for some, at in zip(torch.split(glimpsed, self.at_once), torch.split(rows, self.at_once), strict=True):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                score = odds(self.question.look(self.parts.render(leaf, at)), self.fact[at])
                score = score - self.how.gamma * self.risen(leaf, at)
                gradients.append(torch.autograd.grad(score.sum(), leaf)[0])
        gradient = torch.cat(gradients).masked_fill(~present | (masks > 0), -torch.inf)
        return gradient.argsort(dim=1, descending=True, stable=True)

    @torch.no_grad()
    def result(self, order: list[Labels], interrupted: bool) -> PertinentPositive:
        """Write down the sets, with the confidence that each further feature brings."""
        masks, at = self.flat({i: [labels[:k] for k in range(len(labels) + 1)] for i, labels in enumerate(order)})
        logits, sizes = self.logits(masks, at), [len(labels) + 1 for labels in order]
        confidence = logits.softmax(1).gather(1, self.fact[at].unsqueeze(1)).squeeze(1)
        leads = [each[-1].item() for each in torch.split(margin(logits, self.fact[at]), sizes)]
        labels = [torch.tensor(each, device=at.device) for each in order]
        masks, pad = self.masks(order), partial(nn.utils.rnn.pad_sequence, batch_first=True)
        ends = [self._said(*each) for each in zip(range(len(order)), order, leads, strict=True)]
        more: dict[str, Any] = {"superpixels": self.parts.labels, "order": pad(labels, padding_value=-1)}
        more["curve"] = pad(list(torch.split(confidence, sizes)), padding_value=torch.nan)
        alone, mask = self.parts.render(masks, self.rows), self.parts.pixels(masks, self.rows) > 0
        return PertinentPositive.of(self.how, self.question, alone, ends, mask, interrupted=interrupted, **more)

    def _said(self, row: int, labels: Sequence[int], end: float) -> tuple[Status, str]:
        if end <= 0:
            return Status.NOT_FOUND, f"the network takes neither the image nor any part tried for it ({end:.2f} logits)"
        if len(labels) == 1 == self.counts[row]:
            return Status.FOUND, "the image is one superpixel: all or nothing"
        if self.for_nothing[row]:
            return Status.FOUND, "but the network says so even if nothing is there"
        if len(labels) == self.counts[row]:
            return Status.FOUND, "nothing less than the whole image was found to be enough"
        if self.how.preset == "sound" and end < self.kappa:
            return Status.FOUND, f"it leads by {end:.2f} logits, not by {self.kappa:g}: the whole image does no better"
        if self.how.preset == "paper" and self.whole[row] < self.kappa:
            return Status.FOUND, f"no lead of {self.kappa:g} logits: the whole image leads by {self.whole[row]:.2f}"
        return Status.FOUND, f"it leads by {end:.2f} logits"


def odds(logits: Tensor, fact: Tensor) -> Tensor:
    """The log-odds of the fact, the `weighted` contrast: (M, classes), (M,) to (M,)."""
    return Weighted().scalar(logits, Question.against_all(fact, logits.shape[1])).squeeze(1)


# ------------------------------------------------------------------------------------------ as in the paper
def _relaxed(scorer: SupersetScorer) -> list[Labels]:
    """Rank the features by the best relaxed masks of ISTA: least |m|_1 that lead by kappa, else that keep the fact."""
    how, present = scorer.how, scorer.parts.present.to(scorer.parts.images)
    tradeoff, kept = TradeoffSearch.start(present.new_ones(len(present)), "halve"), Kept(present)
    large = 2.0 * present.shape[1]  # sets a mask that only keeps the fact behind all that lead by kappa
    for _ in range(how.binary_search_steps):
        m, success = present, torch.zeros_like(scorer.kept)
        for _ in range(how.iterations):
            gradient, leads = _smooth_gradient(scorer, m, tradeoff.c)
            success |= leads >= scorer.kappa
            size = m.sum(1) + large * (leads < scorer.kappa)
            kept.see(scorer.rows, m, size, -leads, leads >= scorer.wanted)
            m = (m - how.step * (gradient + how.beta)).clamp(0, 1) * present
        tradeoff = tradeoff.update(success)
    ranked = kept.best.masked_fill(present == 0, -1).argsort(dim=1, descending=True, stable=True).tolist()
    return [labels[:count] for labels, count in zip(ranked, scorer.counts, strict=True)]


def _smooth_gradient(scorer: SupersetScorer, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = m.detach().requires_grad_()
        leads = margin(scorer.question.look(scorer.parts.render(leaf, scorer.rows)), scorer.fact)
        terms = c * (scorer.kappa - leads).clamp_min(0) + scorer.how.gamma * scorer.risen(leaf, scorer.rows)
        return torch.autograd.grad(terms.sum(), leaf)[0], leads.detach()


def _added(scorer: SupersetScorer, row: int, ranked: Labels) -> Stage:
    """As many of the ranked features as it takes for the fact to return; all of them where it never does."""
    wanted, start, width = scorer.wanted[row].item(), 1, _TRIED
    while start <= len(ranked):
        tried = [ranked[:k] for k in range(start, min(start + width, len(ranked) + 1))]
        leads = yield scorer.leads, tried
        if enough := _enough(tried, leads, wanted):
            return enough[0]
        start, width = start + width, 2 * width
    return sorted(ranked)


def _enough(given: list[Labels], leads: Sequence[float], wanted: float) -> list[Labels]:
    """What belongs to leads that suffice."""
    return [each for each, lead in zip(given, leads, strict=True) if lead >= wanted]


# ------------------------------------------------------------------------------------------ sound
def _grown(scorer: SupersetScorer, row: int, whole: Labels) -> Stage:
    """Add features until the fact leads: the set in the order it grew, or the whole image where it never does."""
    wanted, sets = scorer.wanted[row].item(), list[Labels]([[]])
    tried = sets
    while len(tried[0]) < len(whole):
        ranked = yield scorer.rank, sets
        tried = _extended(sets, ranked, len(whole))
        seen = yield scorer.scores, tried
        enough = [(len(each), -lead, each) for each, (lead, _) in zip(tried, seen, strict=True) if lead >= wanted]
        if enough:
            return min(enough)[2]
        followed = min(2 if len(whole) <= _FEW else 1, len(tried))
        sets = [tried[k] for k in torch.tensor([score for _, score in seen]).topk(followed).indices.tolist()]
    return whole


def _extended(sets: list[Labels], ranked: list[Labels], count: int) -> list[Labels]:
    """Every set with each of the features ranked first; of large sets, with more and more of them."""
    found: dict[frozenset[int], Labels] = {}
    for each, line in zip(sets, ranked, strict=True):
        first = line[: count - len(each)]
        more = [[label] for label in first[: max(1, _TRIED // len(sets))]]
        if len(each) >= _PATIENCE:
            more = [*(first[: 2**power] for power in range(len(first).bit_length())), first]
        for labels in more:
            found.setdefault(frozenset([*each, *labels]), [*each, *labels])
    return list(found.values())


def _pruned(scorer: SupersetScorer, row: int, kept: Labels) -> Stage:
    """Leave out what is not needed: several at once where that holds, until every feature left is needed."""
    wanted = scorer.wanted[row].item()
    while len(kept) > 1:
        some = kept[-_MANY:]
        leads = yield scorer.leads, [_without(kept, [label]) for label in some]
        least_missed = sorted((-lead, label) for lead, label in zip(leads, some, strict=True) if lead >= wanted)
        spare = [label for _, label in least_missed][: len(kept) - 1]  # one always stays
        if not spare:
            break
        tried = [spare[:width] for width in _doubled(len(spare))]
        leads = yield scorer.leads, [_without(kept, gone) for gone in tried]
        kept = _without(kept, max(_enough(tried, leads, wanted), key=len, default=spare[:1]))
    return kept


def _doubled(count: int) -> list[int]:
    """2, 4, 8, ... and the whole."""
    return sorted({min(2**power, count) for power in range(1, count.bit_length() + 1)}) if count > 1 else []


def _without(labels: Labels, gone: Labels) -> Labels:
    return [label for label in labels if label not in gone]


def _ordered(scorer: SupersetScorer, row: int, kept: Labels) -> Stage:
    """The features in an order in which every one adds confidence, if there is one; found from the end.

    Left out next is the feature that takes least confidence with it but takes some; where each one left out would raise
    the confidence, the one that raises it least. Large sets lose several in a round, as long as each takes some.
    """
    if not 1 < len(kept) <= _MANY:
        return kept
    left, tail = kept, list[int]()
    (present,) = yield scorer.log_odds, [left]
    while len(left) > 1:
        alone = yield scorer.log_odds, [_without(left, [label]) for label in left]
        labels = _least(left, alone, present)
        more = yield scorer.log_odds, [_without(left, labels[:k]) for k in range(2, len(labels) + 1)]
        falling = [present, alone[left.index(labels[0])], *more]
        count = next((k for k in range(1, len(labels)) if falling[k + 1] >= falling[k]), len(labels))
        present, tail, left = falling[count], [*reversed(labels[:count]), *tail], _without(left, labels[:count])
    return left + tail


def _least(labels: Labels, scores: Sequence[float], present: float) -> Labels:
    """The features to be left out next, from the scores without each of them."""
    below = sorted((-score, label) for label, score in zip(labels, scores, strict=True) if score < present)
    if not below:
        return [min(zip(scores, labels, strict=True))[1]]
    count = 1 if len(labels) <= _SINGLY else len(labels) // 16
    return [label for _, label in below[:count]]
