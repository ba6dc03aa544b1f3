"""CEM-MAF's pertinent positives: the fewest superpixels that keep the fact by themselves (CEM-MAF, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, unknown
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.search.attributes import Attributes, measure, modules
from ratherthan.search.cem import baseline_of
from ratherthan.search.method import Report
from ratherthan.search.pertinent_positive import (
    PertinentPositiveMethod,
    PositiveAnswers,
    register_pertinent_positive_method,
)
from ratherthan.search.solver import Status
from ratherthan.search.tradeoff import TradeoffSearch
from ratherthan.superpixels import (
    USUAL_COUNT,
    Kind,
    LabelMap,
    Parts,
    Superpixels,
    segment,
    usual_off,
    usual_superpixels,
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

    `preset="fast"` (default): superpixels are added one by one, the best of the eight that the gradient of the log-odds
    at the present part ranks first, until the fact leads by kappa and no attribute has risen; then all that are not
    needed are left out again, and the rest is ordered: left out, one after the other, is the one that is missed least;
    of more than 64 up to a sixteenth at once, and more than 256 keep the order they came in.

    Either way the part keeps the fact by construction; in the worst case it is the whole image.

    Attributes:
        superpixels: A kind (of about 200), a `Superpixels`, a label map (H, W) or (N, H, W), or None: single pixels of
            small grey images, SLIC otherwise.
        off: What is where a superpixel is not: a value, one per channel, an image, or "mean", each image's mean colour.
            None: black for grey images, mid grey for colour as in the code published with CEM-MAF.
        preset: "fast" or "paper".
        kappa: By how many logits the fact is to lead: the fast search's parts do (or by as much as the whole image
            does, if that is less); the paper's masks aim at it, its parts only keep the fact. None: 0 and 5.
        attributes: Attribute functions that are not to rise above their values in the image.
        beta: Weight of |m|_1; paper only.
        gamma: Weight of rising attributes.
    """

    name: ClassVar[str] = "cem-maf"

    superpixels: Kind | Superpixels | LabelMap | None = None
    off: float | Sequence[float] | Tensor | str | None = None
    preset: Literal["fast", "paper"] = "fast"
    kappa: float | None = None
    attributes: Attributes = ()
    beta: float = 0.1
    gamma: float = 100.0
    iterations: ClassVar[int] = 100
    rounds: ClassVar[int] = 9
    step: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        if self.preset not in ("fast", "paper"):
            raise InputError(unknown("preset", self.preset, ["fast", "paper"]))
        if min(self.beta, self.gamma, self.kappa or 0) < 0:
            raise InputError("beta, gamma and kappa are at least 0")
        if isinstance(self.superpixels, str) and self.superpixels not in get_args(Kind):
            raise InputError(unknown("kind of superpixels", self.superpixels, get_args(Kind)))

    def answer(
        self, model: Model, images: Tensor, fact: Tensor, samples: Sequence[int], report: Report | None = None
    ) -> PositiveAnswers:
        """Search for all images at once; see `PertinentPositiveMethod.answer`."""
        with torch.no_grad():
            off = usual_off(images) if self.off is None else self.off
            parts = Parts(images, self._labels(images, samples), baseline_of(images, off))
        with preserve_state(nn.ModuleList([model.module, *modules(self.attributes)])):
            judge = SupersetScorer(model, parts, fact, self)
            order, interrupted = judge.everything(), False
            stages = (_relaxed_and_added,) if self.preset == "paper" else (_grown, _pruned, _ordered)
            try:
                for stage in stages:
                    order = stage(judge, order)
            except KeyboardInterrupt:
                interrupted = True  # what the stages before have left is enough, too
            return judge.answers(order, interrupted)

    def _labels(self, images: Tensor, samples: Sequence[int]) -> Tensor:
        how = self.superpixels
        if how is None:
            how = usual_superpixels(images)
        if isinstance(how, str):
            how = Superpixels(how, USUAL_COUNT)
        if not isinstance(how, Superpixels):
            how = torch.as_tensor(how)
            how = how[list(samples)] if how.ndim == 3 and len(how) > max(samples) else how
        return segment(images, how)


Order = list[list[int]]
"""For each image the labels of the features that are kept, in the order they came in."""


class SupersetScorer:
    """Shows parts of the images to the network, and counts how many."""

    def __init__(self, model: Model, parts: Parts, fact: Tensor, how: CEMMAFPositive) -> None:
        self.model, self.parts, self.fact, self.how, self.evaluations = model, parts, fact, how, 0
        self.rows = torch.arange(len(fact), device=fact.device)
        most = 128 if fact.device.type == "cpu" else 4096  # more fall out of a processor's caches
        self.at_once = max(8, min(most, _VALUES // parts.images[0].numel()))
        with torch.no_grad():
            self.before = measure(how.attributes, parts.images)
        whole = lead(self.logits(parts.present.to(parts.images), self.rows), fact)
        nothing = lead(self.logits(torch.zeros_like(parts.present).to(parts.images), self.rows), fact)
        self.kappa = how.kappa if how.kappa is not None else 5.0 if how.preset == "paper" else 0.0
        wanted = (self.kappa if how.preset == "fast" else 0.0) + _SLACK
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
        self.evaluations += len(masks)
        pieces = zip(torch.split(masks, self.at_once), torch.split(rows, self.at_once), strict=True)
        return torch.cat([self.model.logits(self.parts.render(*piece)) for piece in pieces])

    @torch.no_grad()
    def leads(self, chosen: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        """By how much the fact leads, for sets of labels: (M,)."""
        at = torch.tensor(rows, dtype=torch.long, device=self.fact.device)
        masks = self.masks(chosen)
        return self._held(lead(self.logits(masks, at), self.fact[at]), self.risen(masks, at)).cpu()

    def log_odds(self, sets: dict[int, Order]) -> dict[int, list[float]]:
        """The log-odds of the fact, for sets of labels of some images."""
        rows = torch.tensor([i for i, some in sets.items() for _ in some], device=self.fact.device, dtype=torch.long)
        if not len(rows):
            return {i: [] for i in sets}
        scores = odds(self.logits(self.masks([each for some in sets.values() for each in some]), rows), self.fact[rows])
        pieces = torch.split(scores, [len(some) for some in sets.values()])
        return {i: piece.tolist() for i, piece in zip(sets, pieces, strict=True)}

    @torch.no_grad()
    def score(self, masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the fast search makes large, the log-odds less rising attributes, and the lead: (M,) each."""
        logits, fact, risen = self.logits(masks, rows), self.fact[rows], self.risen(masks, rows)
        return odds(logits, fact) - self.how.gamma * risen, self._held(lead(logits, fact), risen)

    def _held(self, leads: Tensor, risen: Tensor) -> Tensor:
        """The fast search takes no part in which an attribute has risen; the paper's only weighs that."""
        return leads.masked_fill(risen > _RISE, -torch.inf) if self.how.preset == "fast" else leads

    def risen(self, masks: Tensor, rows: Tensor) -> Tensor:
        """(M,): sum_i max(0, g_i(part) - g_i(image))."""
        if not self.how.attributes:
            return masks.new_zeros(len(masks))
        after = measure(self.how.attributes, self.parts.render(masks, rows))
        return (after - self.before[rows]).clamp_min(0).sum(1)

    def gradient(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Of the score, (M, S)."""
        self.evaluations += len(masks)
        gradients = []
        for some, at in zip(torch.split(masks, self.at_once), torch.split(rows, self.at_once), strict=True):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                score = odds(self.model.logits(self.parts.render(leaf, at)), self.fact[at])
                score = score - self.how.gamma * self.risen(leaf, at)
                gradients.append(torch.autograd.grad(score.sum(), leaf)[0])
        return torch.cat(gradients)

    @torch.no_grad()
    def answers(self, order: Order, interrupted: bool) -> PositiveAnswers:
        """Write down the sets, with the confidence that each further feature brings."""
        rows = [i for i, labels in enumerate(order) for _ in range(len(labels) + 1)]
        at = torch.tensor(rows, device=self.fact.device)
        logits = self.logits(self.masks([labels[:k] for labels in order for k in range(len(labels) + 1)]), at)
        confidence = logits.softmax(1).gather(1, self.fact[at].unsqueeze(1)).squeeze(1)
        ends = lead(logits, self.fact[at])[torch.tensor([len(labels) + 1 for labels in order]).cumsum(0) - 1]
        widest = max(map(len, order))
        curve = confidence.new_full((len(order), widest + 1), torch.nan)
        ranked = torch.full((len(order), widest), -1, device=self.fact.device)
        for i, (labels, p) in enumerate(
            zip(order, torch.split(confidence, [len(each) + 1 for each in order]), strict=True)
        ):
            curve[i, : len(p)], ranked[i, : len(labels)] = p, torch.tensor(labels, device=ranked.device)
        masks = self.masks(order)
        said = [self._said(i, labels, end) for i, (labels, end) in enumerate(zip(order, ends.tolist(), strict=True))]
        return PositiveAnswers(
            mask=self.parts.pixels(masks, self.rows) > 0,
            examples=self.parts.render(masks, self.rows),
            status=[status for status, _ in said],
            reason=[reason for _, reason in said],
            superpixels=self.parts.labels,
            order=ranked,
            curve=curve,
            interrupted=interrupted,
            evaluations=self.evaluations,
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
        if self.how.preset == "fast" and end < self.kappa:
            return Status.FOUND, f"it leads by {end:.2f} logits, not by {self.kappa:g}: the whole image does no better"
        if self.how.preset == "paper" and self.whole[row] < self.kappa:
            return Status.FOUND, f"no lead of {self.kappa:g} logits: the whole image leads by {self.whole[row]:.2f}"
        return Status.FOUND, f"it leads by {end:.2f} logits"


def lead(logits: Tensor, fact: Tensor) -> Tensor:
    """By how many logits the fact leads the best of the others: (M, classes), (M,) to (M,)."""
    own = fact.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -torch.inf).amax(1)


def odds(logits: Tensor, fact: Tensor) -> Tensor:
    """The log-odds of the fact: (M, classes), (M,) to (M,)."""
    own = fact.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -torch.inf).logsumexp(1)


# ------------------------------------------------------------------------------------------ as in the paper
def _relaxed_and_added(judge: SupersetScorer, order: Order) -> Order:
    """Rank the features by relaxed masks, and keep as many as it takes; those given where the fact never returns."""
    return _added(judge, _relaxed(judge), order)


def _relaxed(judge: SupersetScorer) -> Tensor:
    """The best relaxed masks (N, S) of ISTA: least |m|_1 among those that lead by kappa, else that keep the fact."""
    how, present = judge.how, judge.parts.present.to(judge.parts.images)
    weighing = TradeoffSearch.start(present.new_ones(len(present)), "halve")
    best, least = present.clone(), present.new_full((len(present),), torch.inf)
    large = 2.0 * present.shape[1]  # sets a mask that only keeps the fact behind all that lead by kappa
    for _ in range(how.rounds):
        m, success = present.clone(), torch.zeros_like(judge.kept)
        for _ in range(how.iterations):
            gradient, leads = _smooth_gradient(judge, m, weighing.c)
            success |= leads >= judge.kappa
            size = m.sum(1) + large * (leads < judge.kappa)
            better = (leads >= judge.wanted) & (size < least)
            best, least = torch.where(better.unsqueeze(1), m, best), torch.where(better, size, least)
            m = (m - how.step * (gradient + how.beta)).clamp(0, 1) * present
        weighing = weighing.update(success)
    return best


def _smooth_gradient(judge: SupersetScorer, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    judge.evaluations += len(m)
    with torch.enable_grad():
        leaf = m.detach().requires_grad_()
        leads = lead(judge.model.logits(judge.parts.render(leaf, judge.rows)), judge.fact)
        terms = c * (judge.kappa - leads).clamp_min(0) + judge.how.gamma * judge.risen(leaf, judge.rows)
        return torch.autograd.grad(terms.sum(), leaf)[0], leads.detach()


def _added(judge: SupersetScorer, m: Tensor, order: Order) -> Order:
    """Features in the order of the mask, as many of them as it takes for the fact to return."""
    ranked = m.masked_fill(~judge.parts.present, -1).argsort(dim=1, descending=True, stable=True).tolist()
    counts, kept = judge.parts.count.tolist(), list(order)
    going, start, width = list(range(len(ranked))), 1, _TRIED
    while going:
        asked = [(i, k) for i in going for k in range(start, min(start + width, counts[i] + 1))]
        leads = judge.leads([ranked[i][:k] for i, k in asked], [i for i, _ in asked])
        enough: dict[int, list[int]] = {}
        for (i, k), value in zip(asked, leads.tolist(), strict=True):
            if value >= judge.wanted[i]:
                enough.setdefault(i, ranked[i][:k])
        for i, labels in enough.items():
            kept[i] = labels
        start, width = start + width, 2 * width
        going = [i for i in going if i not in enough and start <= counts[i]]
    return kept


# ------------------------------------------------------------------------------------------ fast
def _grown(judge: SupersetScorer, order: Order) -> Order:
    """Add features until the fact leads: the sets in the order they grew, or those given where it never does."""
    kept, counts = list(order), judge.parts.count.tolist()
    going: dict[int, Order] = {i: [[]] for i in range(len(kept))}
    while going:
        tried = _extended(judge, going, counts)
        rows = [i for i, sets in tried.items() for _ in sets]
        at = torch.tensor(rows, device=judge.fact.device)
        scores, leads = judge.score(judge.masks([each for sets in tried.values() for each in sets]), at)
        sizes = [len(sets) for sets in tried.values()]
        going = {}
        for (i, sets), score, value in zip(
            tried.items(), torch.split(scores, sizes), torch.split(leads, sizes), strict=True
        ):
            enough = [(len(each), -float(v), each) for each, v in zip(sets, value, strict=True) if v >= judge.wanted[i]]
            if enough:
                kept[i] = min(enough)[2]
            elif len(sets[0]) < counts[i]:
                followed = 2 if counts[i] <= _FEW else 1
                best = score.topk(min(followed, len(sets))).indices.tolist()
                going[i] = [sets[b] for b in best]
    return kept


def _extended(judge: SupersetScorer, going: dict[int, Order], counts: Sequence[int]) -> dict[int, Order]:
    """Every set with each of the features that the gradient ranks first; of large sets, with more and more of them."""
    rows = torch.tensor([i for i, sets in going.items() for _ in sets], device=judge.fact.device)
    masks = judge.masks([each for sets in going.values() for each in sets])
    present = judge.parts.present[rows]
    gradient = judge.gradient(torch.maximum(masks, _GLIMPSE * present), rows)
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


def _pruned(judge: SupersetScorer, order: Order) -> Order:
    """Leave out what is not needed: several at once where that holds, until every feature left is needed."""
    kept = [list(labels) for labels in order]
    going = [i for i, labels in enumerate(kept) if len(labels) > 1]
    while going:
        spare = _spare(judge, kept, going)
        asked = [(i, spare[i][:width]) for i in going for width in _doubled(len(spare[i]))]
        leads = (
            judge.leads([_without(kept[i], gone) for i, gone in asked], [i for i, _ in asked]).tolist() if asked else []
        )
        gone = {i: spare[i][:1] for i in going}
        for (i, labels), value in zip(asked, leads, strict=True):
            if value >= judge.wanted[i] and len(labels) > len(gone[i]):
                gone[i] = labels
        for i in going:
            kept[i] = _without(kept[i], gone[i])
        going = [i for i in going if spare[i] and len(kept[i]) > 1]
    return kept


def _spare(judge: SupersetScorer, kept: Order, going: Sequence[int]) -> dict[int, list[int]]:
    """The features that can be left out one at a time, the one missed least first; at least one always stays."""
    asked = [(i, label) for i in going for label in kept[i][-_MANY:]]
    leads = judge.leads([_without(kept[i], [label]) for i, label in asked], [i for i, _ in asked]).tolist()
    spare: dict[int, list[tuple[float, int]]] = {i: [] for i in going}
    for (i, label), value in zip(asked, leads, strict=True):
        if value >= judge.wanted[i]:
            spare[i].append((-value, label))
    return {i: [label for _, label in sorted(found)][: len(kept[i]) - 1] for i, found in spare.items()}


def _doubled(count: int) -> list[int]:
    """2, 4, 8, ... and the whole."""
    return sorted({min(2**power, count) for power in range(1, count.bit_length() + 1)}) if count > 1 else []


def _without(labels: Sequence[int], gone: Sequence[int]) -> list[int]:
    return [label for label in labels if label not in gone]


def _ordered(judge: SupersetScorer, order: Order) -> Order:
    """Features in an order in which every one adds confidence, if there is one; found from the end.

    Left out next is the feature that takes least confidence with it but takes some; where each one left out would raise
    the confidence, the one that raises it least. Large sets lose several in a round, as long as each takes some.
    """
    kept = list(order)
    left = {i: list(labels) for i, labels in enumerate(kept) if 1 < len(labels) <= _MANY}
    tails: dict[int, list[int]] = {i: [] for i in left}
    present = {i: score[0] for i, score in judge.log_odds({i: [labels] for i, labels in left.items()}).items()}
    while left:
        alone = judge.log_odds({i: [_without(labels, [label]) for label in labels] for i, labels in left.items()})
        least = {i: _least(labels, alone[i], present[i]) for i, labels in left.items()}
        together = judge.log_odds(
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
