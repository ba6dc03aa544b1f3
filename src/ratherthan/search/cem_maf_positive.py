"""CEM-MAF's pertinent positives: the fewest superpixels that keep the fact by themselves (CEM-MAF, eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ratherthan.baselines import Baseline
from ratherthan.contrast import Question, Weighted, margin
from ratherthan.search.attributes import Attributes, measure, modules
from ratherthan.search.method import (
    PertinentPositiveMethod,
    SearchQuestion,
    baseline_within,
    register_pertinent_positive_method,
)
from ratherthan.search.pertinent_positive import PertinentPositive
from ratherthan.search.solver import Status
from ratherthan.search.tradeoff import TradeoffSearch
from ratherthan.settings import Interval, NotNegative
from ratherthan.superpixels import (
    DEFAULT_COUNT,
    Kind,
    LabelMap,
    SegmentedImages,
    Superpixels,
    default_baseline,
    default_superpixels,
    segment,
)

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

    superpixels: Kind | Superpixels | LabelMap | None = None
    baseline: Baseline | None = None
    preset: Literal["sound", "paper"] = "sound"
    kappa: Annotated[float, Interval(0)] | None = None
    attributes: Attributes = ()
    beta: NotNegative = 0.1
    gamma: NotNegative = 100.0
    binary_search_steps: ClassVar[int] = 9
    iterations: ClassVar[int] = 100
    step: ClassVar[float] = 0.1

    @property
    def wanted_lead(self) -> float:
        """The kappa in use."""
        return self.kappa if self.kappa is not None else 5.0 if self.preset == "paper" else 0.0

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
        order, interrupted = scorer.everything(), False
        stages = (_relaxed_and_added,) if self.preset == "paper" else (_grown, _pruned, _ordered)
        try:
            for stage in stages:
                order = stage(scorer, order)
        except KeyboardInterrupt:
            interrupted = True  # what the stages before have left is enough, too
        return scorer.result(order, interrupted)

    def _labels(self, images: Tensor, samples: Sequence[int]) -> Tensor:
        how = self.superpixels
        if how is None:
            how = default_superpixels(images)
        if isinstance(how, str):
            how = Superpixels(how, DEFAULT_COUNT)
        if not isinstance(how, Superpixels):
            how = torch.as_tensor(how)
            how = how[list(samples)] if how.ndim == 3 and len(how) > max(samples) else how
        return segment(images, how)


Order = list[list[int]]
"""For each image the labels of the features that are kept, in the order they came in."""


class SupersetScorer:
    """Shows parts of the images to the network, and counts how many."""

    def __init__(self, question: SearchQuestion, parts: SegmentedImages, how: CEMMAFPositive) -> None:
        self.question, self.parts, self.fact, self.how = question, parts, question.facts, how
        fact = self.fact
        self.rows = torch.arange(len(fact), device=fact.device)
        most = 128 if fact.device.type == "cpu" else 4096  # more fall out of a processor's caches
        self.at_once = max(8, min(most, _VALUES // parts.images[0].numel()))
        self.before = measure(how.attributes, parts.images)
        whole = margin(self.logits(parts.present.to(parts.images), self.rows), fact)
        nothing = margin(self.logits(torch.zeros_like(parts.present).to(parts.images), self.rows), fact)
        self.kappa = how.wanted_lead
        wanted = (self.kappa if how.preset == "sound" else 0.0) + _SLACK
        self.whole, self.kept = whole, whole > 0
        # no part need do better than the whole image
        self.wanted = torch.where(self.kept, (whole - _SLACK).clamp(_SLACK, wanted), wanted)
        self.for_nothing = nothing >= self.wanted

    def everything(self) -> Order:
        """The whole image."""
        return [list(range(count)) for count in self.parts.count.tolist()]

    def masks(self, chosen: Sequence[Sequence[int]]) -> Tensor:
        """Sets of labels to masks (M, S)."""
        masks = torch.zeros(len(chosen), self.parts.present.shape[1])
        for mask, labels in zip(masks, chosen, strict=True):
            mask[list(labels)] = 1
        return masks.to(self.parts.images)

    @torch.no_grad()
    def logits(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Of parts, (M, S) of images `rows` (M,) to (M, classes)."""
        pieces = zip(torch.split(masks, self.at_once), torch.split(rows, self.at_once), strict=True)
        return torch.cat([self.question.look(self.parts.render(*piece)) for piece in pieces])

    def leads(self, sets: dict[int, Order]) -> dict[int, list[float]]:
        """By how much the fact leads, for sets of labels of some images."""
        return self._of_sets(sets, lambda masks, rows: self.score(masks, rows)[1])

    def log_odds(self, sets: dict[int, Order]) -> dict[int, list[float]]:
        """The log-odds of the fact, likewise."""
        return self._of_sets(sets, lambda masks, rows: odds(self.logits(masks, rows), self.fact[rows]))

    def _of_sets(self, sets: dict[int, Order], of: Callable[[Tensor, Tensor], Tensor]) -> dict[int, list[float]]:
        masks, rows = self.flat(sets)
        values = iter(of(masks, rows).tolist() if len(rows) else [])
        return {i: [next(values) for _ in some] for i, some in sets.items()}

    def flat(self, sets: dict[int, Order]) -> tuple[Tensor, Tensor]:
        """All sets as masks (M, S), and the numbers (M,) of their images."""
        rows = torch.tensor([i for i, some in sets.items() for _ in some], device=self.fact.device, dtype=torch.long)
        return self.masks([each for some in sets.values() for each in some]), rows

    @torch.no_grad()
    def score(self, masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the sound search makes large, the log-odds less rising attributes, and the lead: (M,) each."""
        logits, fact, risen = self.logits(masks, rows), self.fact[rows], self.risen(masks, rows)
        return odds(logits, fact) - self.how.gamma * risen, self._held(margin(logits, fact), risen)

    def _held(self, leads: Tensor, risen: Tensor) -> Tensor:
        """The sound search takes no part in which an attribute has risen; the paper's only weighs that."""
        return leads.masked_fill(risen > _RISE, -torch.inf) if self.how.preset == "sound" else leads

    def risen(self, masks: Tensor, rows: Tensor) -> Tensor:
        """(M,): sum_i max(0, g_i(part) - g_i(image))."""
        if not self.how.attributes:
            return masks.new_zeros(len(masks))
        after = measure(self.how.attributes, self.parts.render(masks, rows))
        return (after - self.before[rows]).clamp_min(0).sum(1)

    def gradient(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Of the score, (M, S)."""
        gradients = []
        for some, at in zip(torch.split(masks, self.at_once), torch.split(rows, self.at_once), strict=True):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                score = odds(self.question.look(self.parts.render(leaf, at)), self.fact[at])
                score = score - self.how.gamma * self.risen(leaf, at)
                gradients.append(torch.autograd.grad(score.sum(), leaf)[0])
        return torch.cat(gradients)

    @torch.no_grad()
    def result(self, order: Order, interrupted: bool) -> PertinentPositive:
        """Write down the sets, with the confidence that each further feature brings."""
        masks, at = self.flat({i: [labels[:k] for k in range(len(labels) + 1)] for i, labels in enumerate(order)})
        logits, sizes = self.logits(masks, at), [len(labels) + 1 for labels in order]
        confidence = torch.split(logits.softmax(1).gather(1, self.fact[at].unsqueeze(1)).squeeze(1), sizes)
        ends = [leads[-1].item() for leads in torch.split(margin(logits, self.fact[at]), sizes)]
        curve = nn.utils.rnn.pad_sequence(list(confidence), batch_first=True, padding_value=torch.nan)
        labels = [torch.tensor(each, device=at.device) for each in order]
        ranked = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
        masks = self.masks(order)
        return PertinentPositive.of(
            self.how,
            self.question,
            self.parts.render(masks, self.rows),
            [self._said(i, each, end) for i, (each, end) in enumerate(zip(order, ends, strict=True))],
            self.parts.pixels(masks, self.rows) > 0,
            superpixels=self.parts.labels,
            order=ranked,
            curve=curve,
            interrupted=interrupted,
        )

    def _said(self, row: int, labels: Sequence[int], end: float) -> tuple[Status, str]:
        if end <= 0:
            return Status.NOT_FOUND, f"the network takes neither the image nor any part tried for it ({end:.2f} logits)"
        if len(labels) == 1 == int(self.parts.count[row]):
            return Status.FOUND, "the image is one superpixel: all or nothing"
        if self.for_nothing[row]:
            return Status.FOUND, "but the network says so even if nothing is there"
        if len(labels) == int(self.parts.count[row]):
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
def _relaxed_and_added(scorer: SupersetScorer, order: Order) -> Order:
    """Rank the features by relaxed masks, and keep as many as it takes; those given where the fact never returns."""
    return _added(scorer, _relaxed(scorer), order)


def _relaxed(scorer: SupersetScorer) -> Tensor:
    """The best relaxed masks (N, S) of ISTA: least |m|_1 among those that lead by kappa, else that keep the fact."""
    how, present = scorer.how, scorer.parts.present.to(scorer.parts.images)
    tradeoff = TradeoffSearch.start(present.new_ones(len(present)), "halve")
    best, least = present.clone(), present.new_full((len(present),), torch.inf)
    large = 2.0 * present.shape[1]  # sets a mask that only keeps the fact behind all that lead by kappa
    for _ in range(how.binary_search_steps):
        m, success = present.clone(), torch.zeros_like(scorer.kept)
        for _ in range(how.iterations):
            gradient, leads = _smooth_gradient(scorer, m, tradeoff.c)
            success |= leads >= scorer.kappa
            size = m.sum(1) + large * (leads < scorer.kappa)
            better = (leads >= scorer.wanted) & (size < least)
            best, least = torch.where(better.unsqueeze(1), m, best), torch.where(better, size, least)
            m = (m - how.step * (gradient + how.beta)).clamp(0, 1) * present
        tradeoff = tradeoff.update(success)
    return best


def _smooth_gradient(scorer: SupersetScorer, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = m.detach().requires_grad_()
        leads = margin(scorer.question.look(scorer.parts.render(leaf, scorer.rows)), scorer.fact)
        terms = c * (scorer.kappa - leads).clamp_min(0) + scorer.how.gamma * scorer.risen(leaf, scorer.rows)
        return torch.autograd.grad(terms.sum(), leaf)[0], leads.detach()


def _added(scorer: SupersetScorer, m: Tensor, order: Order) -> Order:
    """Features in the order of the mask, as many of them as it takes for the fact to return."""
    ranked = m.masked_fill(~scorer.parts.present, -1).argsort(dim=1, descending=True, stable=True).tolist()
    counts, kept = scorer.parts.count.tolist(), list(order)
    going, start, width = list(range(len(ranked))), 1, _TRIED
    while going:
        asked = {i: [ranked[i][:k] for k in range(start, min(start + width, counts[i] + 1))] for i in going}
        enough = {i: _enough(scorer, i, asked[i], leads) for i, leads in scorer.leads(asked).items()}
        for i, sets in enough.items():
            kept[i] = sets[0] if sets else kept[i]
        start, width = start + width, 2 * width
        going = [i for i in going if not enough[i] and start <= counts[i]]
    return kept


def _enough(scorer: SupersetScorer, row: int, sets: list[Any], leads: Sequence[float]) -> list[Any]:
    """What belongs to leads that suffice for an image."""
    return [each for each, value in zip(sets, leads, strict=True) if value >= scorer.wanted[row]]


# ------------------------------------------------------------------------------------------ sound
def _grown(scorer: SupersetScorer, order: Order) -> Order:
    """Add features until the fact leads: the sets in the order they grew, or those given where it never does."""
    kept, counts = list(order), scorer.parts.count.tolist()
    going: dict[int, Order] = {i: [[]] for i in range(len(kept))}
    while going:
        tried = _extended(scorer, going, counts)
        scores, leads = scorer.score(*scorer.flat(tried))
        sizes = [len(sets) for sets in tried.values()]
        going = {}
        for (i, sets), score, value in zip(
            tried.items(), torch.split(scores, sizes), torch.split(leads, sizes), strict=True
        ):
            enough = [
                (len(each), -float(v), each) for each, v in zip(sets, value, strict=True) if v >= scorer.wanted[i]
            ]
            if enough:
                kept[i] = min(enough)[2]
            elif len(sets[0]) < counts[i]:
                followed = 2 if counts[i] <= _FEW else 1
                best = score.topk(min(followed, len(sets))).indices.tolist()
                going[i] = [sets[b] for b in best]
    return kept


def _extended(scorer: SupersetScorer, going: dict[int, Order], counts: Sequence[int]) -> dict[int, Order]:
    """Every set with each of the features that the gradient ranks first; of large sets, with more and more of them."""
    masks, rows = scorer.flat(going)
    present = scorer.parts.present[rows]
    gradient = scorer.gradient(torch.maximum(masks, _GLIMPSE * present), rows)
    ranked = gradient.masked_fill(~present | (masks > 0), -torch.inf).argsort(dim=1, descending=True, stable=True)
    longest = 2 ** (ranked.shape[1] - 1).bit_length()
    tried, line = {}, iter(ranked[:, :longest].tolist())
    for i, sets in going.items():
        found: dict[frozenset[int], list[int]] = {}
        for each in sets:
            first = next(line)[: counts[i] - len(each)]
            if len(each) < _PATIENCE:
                more = [[label] for label in first[: max(1, _TRIED // len(sets))]]
            else:
                more = [first[: 2**power] for power in range(len(first).bit_length())] + [first]
            for labels in more:
                found.setdefault(frozenset([*each, *labels]), [*each, *labels])
        tried[i] = list(found.values())
    return tried


def _pruned(scorer: SupersetScorer, order: Order) -> Order:
    """Leave out what is not needed: several at once where that holds, until every feature left is needed."""
    kept = [list(labels) for labels in order]
    going = [i for i, labels in enumerate(kept) if len(labels) > 1]
    while going:
        spare = _spare(scorer, kept, going)
        asked = {i: [spare[i][:width] for width in _doubled(len(spare[i]))] for i in going}
        leads = scorer.leads({i: [_without(kept[i], gone) for gone in asked[i]] for i in going})
        for i in going:
            kept[i] = _without(kept[i], max(_enough(scorer, i, asked[i], leads[i]), key=len, default=spare[i][:1]))
        going = [i for i in going if spare[i] and len(kept[i]) > 1]
    return kept


def _spare(scorer: SupersetScorer, kept: Order, going: Sequence[int]) -> dict[int, list[int]]:
    """The features that can be left out one at a time, the one missed least first; at least one always stays."""
    asked = {i: kept[i][-_MANY:] for i in going}
    leads = scorer.leads({i: [_without(kept[i], [label]) for label in asked[i]] for i in going})
    ranked = {i: sorted(zip((-lead for lead in leads[i]), asked[i], strict=True)) for i in going}
    spare = {i: _enough(scorer, i, [label for _, label in ranked[i]], [-lead for lead, _ in ranked[i]]) for i in going}
    return {i: spare[i][: len(kept[i]) - 1] for i in going}


def _doubled(count: int) -> list[int]:
    """2, 4, 8, ... and the whole."""
    return sorted({min(2**power, count) for power in range(1, count.bit_length() + 1)}) if count > 1 else []


def _without(labels: Sequence[int], gone: Sequence[int]) -> list[int]:
    return [label for label in labels if label not in gone]


def _ordered(scorer: SupersetScorer, order: Order) -> Order:
    """Features in an order in which every one adds confidence, if there is one; found from the end.

    Left out next is the feature that takes least confidence with it but takes some; where each one left out would raise
    the confidence, the one that raises it least. Large sets lose several in a round, as long as each takes some.
    """
    kept = list(order)
    left = {i: list(labels) for i, labels in enumerate(kept) if 1 < len(labels) <= _MANY}
    tails: dict[int, list[int]] = {i: [] for i in left}
    present = {i: score[0] for i, score in scorer.log_odds({i: [labels] for i, labels in left.items()}).items()}
    while left:
        alone = scorer.log_odds({i: [_without(labels, [label]) for label in labels] for i, labels in left.items()})
        least = {i: _least(labels, alone[i], present[i]) for i, labels in left.items()}
        together = scorer.log_odds(
            {i: [_without(left[i], labels[:k]) for k in range(2, len(labels) + 1)] for i, labels in least.items()}
        )
        for i, labels in least.items():
            falling = [present[i], alone[i][left[i].index(labels[0])], *together[i]]
            count = next((k for k in range(1, len(labels)) if falling[k + 1] >= falling[k]), len(labels))
            present[i] = falling[count]
            tails[i] = [*reversed(labels[:count]), *tails[i]]
            left[i] = _without(left[i], labels[:count])
            if len(left[i]) == 1:
                kept[i] = left.pop(i) + tails[i]
    return kept


def _least(labels: Sequence[int], scores: Sequence[float], present: float) -> list[int]:
    """The features to be left out next, from the scores without each of them."""
    below = sorted(((-score, label) for label, score in zip(labels, scores, strict=True) if score < present))
    if not below:
        return [min(zip(scores, labels, strict=True))[1]]
    count = 1 if len(labels) <= _SINGLY else len(labels) // 16
    return [label for _, label in below[:count]]
