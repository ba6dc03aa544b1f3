"""CEM-MAF: what would have to be added for another class (eq. 1), and the fewest superpixels that are enough (eq. 2).

In equation 1, at latents z, with x = D(z), the terms are: nu |z0 - z|^2; eta |x0 - x|^2; beta times the attributes'
sparsity; what attributes lost, max(0, g_i(x0) - g_i(x)); and the hinge: by how many logits the new class does not lead
by kappa.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.baselines import Baseline, baseline_within, baseline_words, quietest
from ratherthan.contrast import margin, odds
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.search.attributes import Attributes, described, measure, worded
from ratherthan.search.constrained import OnManifold, Point, Space
from ratherthan.search.counterfactual import FRAMES
from ratherthan.search.method import SearchQuestion, register_counterfactual_method, register_pertinent_positive_method
from ratherthan.search.pertinent_positive import KAPPA, KeepsMargin, Margin, PertinentPositive, nothing_needed
from ratherthan.search.solver import End, Kept, Outcome, Problem, Report, Schedule, Status, Terms, descend
from ratherthan.settings import Interval, NotNegative
from ratherthan.superpixels import Division, SegmentedImages, default_superpixels, segment

Sparsity = Literal["added", "all", "absent"]
_RISE = 0.01  # by which attributes may rise without having risen
_TRIED = 8  # features tried at once, the best of which is added
_FEW = 64  # of images with no more features, the two best sets are followed, not one
_GLIMPSE = 0.02  # gradients are taken where the absent features are there by this much: nothing has no gradient
_PATIENCE = 24  # features added one by one, before ever more are added at a time
_MANY = 256  # of larger parts only the last so many features may be left out, and they are not ordered
_SINGLY = 32  # of parts with no more features one is left out per round of the ordering, of larger ones an eighth
_VALUES = 2**22  # pixel values that the network is shown at once
_PRESENT = 0.5  # published code: an attribute from this value on is there already
_PRESETS: dict[str, dict[str, Any]] = {
    "sound": {"kappa": 0.1, "beta": 1.0, "sparsity": "added", "residual": True},
    "paper": {"kappa": 5.0, "beta": 100.0, "sparsity": "all", "residual": False},
}


@register_counterfactual_method
@dataclass(frozen=True)
class CEMMAF(OnManifold):
    """The nearest image on a manifold that has another class and lost no attribute; see the module for the terms.

    `preset="sound"` (default): the first three terms are minimised with the others as constraints, which makes "lost
    nothing" and "another class" hold; Adam, multipliers and penalty per row, rows that are done leave (`solver`).

    `preset="paper"`: gamma times the sum of what was lost and c times the hinge are added to the others, and
    minimised by subgradient descent, 1000 iterations for each of nine weights c (from 1; ten times it after a failure,
    half of it after a success). The answer is the iterate of another class that is nearest in the latents; attributes
    may have been lost a little. The paper states no step: here each goes along the normalised subgradient, by
    0.1 / sqrt(k) in the k-th iteration. There is one start.

    Attributes:
        attributes: Attribute functions (see `attributes`), any callables among them; () for none. None: the latent
            coordinates that were found to move what the zoo model has words for, if there are any.
        preset: "sound" or "paper".
        kappa: By how many logits the new class is to lead. The sound search accepts nothing less; the paper's aims at
            it, and accepts any image of another class. None: 0.1 and 5.
        gamma: Weight of lost attributes; paper only.
        beta: Weight of the sparsity. None: 1; in the paper's preset its 100, with which attributes hardly ever grow.
        eta: Weight of the distance in pixels.
        nu: Weight of the distance in latents.
        sparsity: Of attributes, see `sparsity_of`. None: "added", in the paper's preset "all".
        residual: Whether what the manifold cannot make of the image, x0 - D(z0), is added to x, so that the search
            starts from the image itself. None: yes; no in the paper's preset.
    """

    name: ClassVar[str] = "cem-maf"
    default_foil: ClassVar[Any] = "any"
    any_foil: ClassVar[bool] = True

    attributes: Attributes | None = None
    _: KW_ONLY
    preset: Literal["sound", "paper"] = "sound"
    kappa: Annotated[float, Interval(0)] | None = None
    gamma: NotNegative = 100.0
    beta: Annotated[float, Interval(0)] | None = None
    eta: NotNegative = 1.0
    nu: NotNegative = 1.0
    sparsity: Sparsity | None = None
    residual: bool | None = None
    schedule: Schedule = field(default_factory=partial(Schedule, outer_iterations=12, inner_iterations=40))
    binary_search_steps: ClassVar[int] = 9
    iterations: ClassVar[int] = 1000
    step: ClassVar[float] = 0.1

    def prepared(self, model: Model) -> Self:
        """With the manifold and attributes that a zoo model names, and the preset's values, where none are given."""
        usual = {key: value for key, value in _PRESETS[self.preset].items() if getattr(self, key) is None}
        usual |= {"restarts": 1, "retries": 0} if self.preset == "paper" else {}
        filled = replace(super().prepared(model), **usual)
        return filled if self.attributes is not None else replace(filled, attributes=worded(model, filled.generator))

    def with_residual(self) -> bool:
        """As the settings have it."""
        return bool(self.residual)

    # ----------------------------------------------------------------------------------------- eq. 1
    def variables(self, question: SearchQuestion) -> Space:
        """The latents, and the attributes of the images."""
        space, attributes = super().variables(question), self.attributes or ()
        latents = space.start[:: question.questions]
        before = self.measured(question.images, latents)
        names, thresholds = described(attributes, question.images[:1], latents[:1], self.generator)
        if names:
            space.fields.update(attributes_before=before, attribute_names=names, attribute_thresholds=thresholds)
        space.known["before"] = before[question.image]
        if not self.residual:
            why = "the manifold's reconstruction of the image has another class to begin with; try residual=True"
            lost = (~space.fields["class_kept"][question.image]).nonzero().flatten().tolist()
            space.excluded = dict.fromkeys(lost, (Status.INVERSION_FAILED, why)) | space.excluded
        return space

    def starts(self, question: SearchQuestion, space: Space, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """In the paper's preset at z0."""
        if self.preset == "paper":
            return space.start[rows].clone()
        return super().starts(question, space, rows, numbers)

    def terms(self, at: Point) -> Terms:
        """Closeness and sparsity; below zero are to be what the lead lacks and what each attribute lost."""
        kappa, beta, sparsity = self.kappa or 0.0, self.beta or 0.0, self.sparsity or "added"  # given once prepared
        g0, g = at.space.known["before"][at.rows], self.measured(at.images, at.z)
        near = self.nu * (at.z - at.start).square().flatten(1).sum(1)
        alike = self.eta * (at.images - at.asked).square().flatten(1).sum(1)
        short = (kappa - at.lead).unsqueeze(1)
        return Terms(near + alike + beta * sparsity_of(sparsity, g, g0), below=torch.cat([short, g0 - g], 1))

    def measured(self, images: Tensor, z: Tensor) -> Tensor:
        """Attributes (M, A) of images at latents z."""
        return measure(self.attributes or (), images, z, self.generator)

    def verified(self, at: Point) -> tuple[Tensor, Tensor]:
        """Another class, whatever the tolerance, and nothing lost; the paper's search only weighs that."""
        if self.preset == "paper":
            return at.question.reached(at.logits, at.rows)
        violation, holds = super().verified(at)
        return violation, holds & (at.lead > 0)

    def fields(self, space: Space, z: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Where the answers lie, and their attributes."""
        g = self.measured(images.flatten(0, 1), z.flatten(0, 1)).view(*z.shape[:2], -1)
        return super().fields(space, z, images) | ({"attributes": g} if g.shape[2] else {})

    # ----------------------------------------------------------------------------------------- as in the paper
    def solved(self, problem: Problem, start: Tensor, report: Report) -> Outcome:
        """As it is, or as in the paper: the nearest iterate of another class in descents for nine weights of it."""
        if self.preset == "sound":
            return super().solved(problem, start, report)
        rows, kept, interrupted = torch.arange(len(start), device=start.device), Kept(start), False

        def step(z: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                terms = problem(leaf, rows)
                short, lost = terms.below[:, 0], terms.below[:, 1:].clamp_min(0).sum(1)
                loss = terms.objective + self.gamma * lost + c * short.clamp_min(0)
                (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            missing = short.detach() - (self.kappa or 0.0)  # logits
            kept.see(rows, z, (z - start).flatten(1).norm(dim=1), missing, missing < 0)
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (z.ndim - 1))
            return z - self.step / (k + 1) ** 0.5 * gradient / length, missing < 0

        try:
            descend(start, step, self.binary_search_steps, self.iterations, report)
        except KeyboardInterrupt:
            interrupted = True
        return self._outcome(problem(kept.points, rows), kept, start, interrupted)

    def _outcome(self, terms: Terms, kept: Kept, start: Tensor, interrupted: bool) -> Outcome:
        tried = f"no iterate of {self.binary_search_steps} x {self.iterations} has the class; the best misses it by"
        lost, ends = nn.functional.pad(terms.below[:, 1:], (0, 1)).amax(1), list[End]()  # 0 without attributes
        for found, missed, most in zip(kept.found.tolist(), kept.missed.tolist(), lost.tolist(), strict=True):
            much = f"; attributes lost, at most {most:.3g}" * (most > self.schedule.feasibility_tol)
            why = "interrupted before an iterate had the class" if interrupted else f"{tried} {missed:.3g} logits"
            end = Status.FOUND, f"nearest iterate of another class{much}"
            ends.append(end if found else (Status.NOT_FOUND, why))
        share = torch.linspace(0, 1, FRAMES - 1, device=start.device, dtype=start.dtype)
        path = torch.stack([torch.lerp(start, kept.points, each) for each in share], 1)
        return Outcome(kept.points, terms, ends, torch.ones_like(kept.found), path, interrupted)


def sparsity_of(form: Sparsity, g: Tensor, g0: Tensor) -> Tensor:
    """How much attributes g (M, A) say that the images, g0, do not: (M,).

    Args:
        form: "all", |g|_1 as in eq. 1, which for latent coordinates pulls towards 0, not towards "no more"; "absent",
            the same over attributes below 0.5 in the image, as the published code has it; "added",
            sum_i max(0, g_i - g0_i), what grew.
        g: Attributes now.
        g0: Attributes of the image.
    """
    if form == "added":
        return (g - g0).clamp_min(0).sum(1)
    counted = torch.ones_like(g0) if form == "all" else (g0 < _PRESENT).to(g)
    return (g.abs() * counted).sum(1)


# --------------------------------------------------------------------------------------------- what is enough
@register_pertinent_positive_method
@dataclass(frozen=True)
class CEMMAFPositive(KeepsMargin):
    """The fewest superpixels that keep the fact (CEM-MAF, eq. 2), in an order in which they add confidence.

    The margin is the one of `KeepsMargin`: kappa logits, 5 unless you say otherwise, or a share of the probability.

    `preset="paper"`: masks m in [0, 1]^S, begun at 1, minimise c max(0, kappa - lead) + beta |m|_1 + gamma sum_i
    max(0, g_i(part) - g_i(image)) by ISTA, 100 iterations for each of nine weights c, begun at 1, ten times it after a
    failure, half of it after a success; lead = y_t - max of the other logits. The best mask (least |m|_1 of those that
    lead by kappa) ranks the superpixels, which are added one by one until the fact returns. The paper states no step
    size: at the 0.1 taken here, a superpixel that nothing holds falls from 1 to 0 in the 100 iterations.

    `preset="sound"` (default): superpixels are added one by one, the best of the eight that the gradient of the
    log-odds at the present part ranks first, until the fact leads by kappa and no attribute has risen; then all that
    are not needed are left out again, and the rest is ordered: left out, one after the other, is the one that is missed
    least; of more than 32 up to an eighth at once, and more than 256 keep the order they came in.

    Either way the part keeps the fact by construction; in the worst case it is the whole image. Where what stands where
    a superpixel is not keeps it already, nothing is needed.

    Attributes:
        superpixels: A kind (of about 200), a `Superpixels`, a label map (H, W) or (N, H, W), or None: single pixels of
            small grey images, SLIC otherwise.
        baseline: What is where a superpixel is not, in [0, 1]; see `baselines.baseline_images`. None: for each image
            what says least to the network, of black, greys, white, its mean colour and its blur; see
            `baselines.quietest`.
        baselines: Several of them instead: the part is to be enough on each.
        preset: "sound" or "paper". Parts of the paper's only keep the fact; its masks aim at kappa.
        attributes: Attribute functions that are not to rise above their values in the image.
        beta: Weight of |m|_1; paper only.
        gamma: Weight of rising attributes.
    """

    name: ClassVar[str] = "cem-maf"

    superpixels: Division | None = None
    baseline: Baseline | None = None
    baselines: tuple[Baseline, ...] = ()
    preset: Literal["sound", "paper"] = "sound"
    attributes: Attributes = ()
    beta: NotNegative = 0.1
    gamma: NotNegative = 100.0
    binary_search_steps: ClassVar[int] = 9
    iterations: ClassVar[int] = 100
    step: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            InputError: If two margins or two kinds of baselines are given, or a setting does not fit.
        """
        super().__post_init__()
        if self.baseline is not None and self.baselines:
            raise InputError("give baseline, or several as baselines: not both")
        if self.preset == "paper" and self.confidence is not None:
            raise InputError("the paper's preset aims at kappa logits: leave confidence to the sound one")

    @torch.no_grad()
    def search(self, question: SearchQuestion) -> PertinentPositive:
        """See `SearchMethod.search`."""
        images, how, samples = question.images, self.superpixels, list(question.positions)
        if isinstance(how, (Tensor, np.ndarray)) and how.ndim == 3 and len(how) > max(samples):
            how = how[samples]
        how = default_superpixels(images, how) if how is None or isinstance(how, str) else how
        labels, (grounds, words) = segment(images, how), self._grounds(question)
        scorer = SupersetScorer(question, [SegmentedImages(images, labels, each) for each in grounds], words, self)
        before, interrupted = scorer.ranked(), False
        order = scorer.needed([list(range(count)) for count in scorer.counts])
        try:
            if self.preset == "paper":
                before = order = scorer.together(_added, scorer.needed(_relaxed(scorer)))
            else:
                for stage in (_grown, _pruned, _ordered):
                    order = scorer.together(stage, order)
        except KeyboardInterrupt:
            interrupted = True  # what the stages before have left is enough, too
        return scorer.result(order, before, interrupted)

    def _grounds(self, question: SearchQuestion) -> tuple[list[Tensor], list[list[str]]]:
        """What is where a superpixel is not, R times (N, C, H, W), and N lists of what that is called."""
        given = self.baselines or (() if self.baseline is None else (self.baseline,))
        if not given:
            ground, words = quietest(question.images, question.look)
            return [ground], [[each] for each in words]
        grounds = [baseline_within(question.images, each) for each in given]
        return grounds, [list(map(baseline_words, given))] * len(question.images)


Labels = list[int]
"""Features that are kept, in the order they came in."""
Ask = Callable[[Tensor, Tensor], Tensor]
"""What the network is asked about masks (M, S) of images (M,); a number for each, or a row of numbers."""
Term = Callable[[Tensor, Tensor], Tensor]
"""Logits (M, classes) of parts of images (M,) to what is to be large, (M,)."""
Stage = Generator[tuple[Ask, list[Labels]], Any, Labels]
"""A part of the search for one image: asks about sets of features, is sent what was asked, and ends with some."""


class SupersetScorer:
    """Shows parts of the images to the network, on all their grounds, and counts how many."""

    def __init__(
        self, question: SearchQuestion, parts: list[SegmentedImages], words: list[list[str]], how: CEMMAFPositive
    ) -> None:
        self.question, self.grounds, self.words, self.how = question, parts, words, how
        self.parts, self.fact, self.sound = parts[0], question.facts, how.preset == "sound"
        self.rows, self.counts = torch.arange(len(self.fact), device=self.fact.device), self.parts.count.tolist()
        most = 128 if self.fact.device.type == "cpu" else 4096  # more fall out of a processor's caches
        self.at_once = max(8, min(most, _VALUES // self.parts.images[0].numel()) // len(parts))
        self.before = measure(how.attributes, self.parts.images)
        # the paper's parts only keep the fact, its masks aim at kappa
        self.margin = Margin(how if self.sound else replace(how, kappa=0.0), question)
        self.kappa = KAPPA if how.kappa is None else how.kappa
        self.nothing = torch.zeros_like(self.parts.present, dtype=self.parts.images.dtype)
        ahead = self.margin.ahead(self.logits(self.nothing, self.rows), self.rows)
        self.for_nothing = (ahead.amin(1) >= 0).tolist()

    def needed(self, order: list[Labels]) -> list[Labels]:
        """None of the features of images that need nothing."""
        return [[] if nothing else labels for nothing, labels in zip(self.for_nothing, order, strict=True)]

    def ranked(self) -> list[Labels]:
        """All features of each image by the gradient of the score where hardly anything is there."""
        ranked = self.rank(self.nothing, self.rows).tolist()
        return [labels[:count] for labels, count in zip(ranked, self.counts, strict=True)]

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
        pairs = [(row, labels) for row, some in sets.items() for labels in some]
        masks = torch.zeros(len(pairs), self.parts.present.shape[1])
        for mask, (_, labels) in zip(masks, pairs, strict=True):
            mask[labels] = 1
        return masks.to(self.parts.images), torch.tensor([row for row, _ in pairs], device=self.rows.device).long()

    def shown(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Parts on each ground, (M, S) of images `rows` (M,) to (M, R, C, H, W)."""
        return torch.stack([each.render(masks, rows) for each in self.grounds], 1)

    def look(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Logits (M, R, classes) of parts."""
        return self.question.look(self.shown(masks, rows).flatten(0, 1)).view(len(masks), len(self.grounds), -1)

    def logits(self, masks: Tensor, rows: Tensor) -> Tensor:
        """The same, so many at once."""
        pieces = zip(torch.split(masks, self.at_once), torch.split(rows, self.at_once), strict=True)
        return torch.cat([self.look(*piece) for piece in pieces])

    def scores(self, masks: Tensor, rows: Tensor) -> Tensor:
        """How much more than enough parts are, their log-odds less what rose, and their log-odds: (M, 3).

        All on the hardest ground; what the sound search does not take is -inf short of enough.
        """
        logits, risen = self.logits(masks, rows), self.risen(masks, rows)
        # the sound search takes no part in which an attribute has risen; the paper's only weighs that
        forbidden = (risen > _RISE) & self.sound
        ahead = self.margin.ahead(logits, rows).amin(1).masked_fill(forbidden, -torch.inf)
        sure = self.sure(logits, rows)
        return torch.stack([ahead, sure - self.how.gamma * risen, sure], 1)

    def lead(self, logits: Tensor, rows: Tensor) -> Tensor:
        """By how many logits (M, R, classes) the fact leads on the hardest ground, (M,)."""
        return margin(logits, self.fact[rows].unsqueeze(1).expand(logits.shape[:2])).amin(1)

    def sure(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The log-odds there, (M,)."""
        return odds(logits, self.fact[rows].unsqueeze(1).expand(logits.shape[:2])).amin(1)

    def risen(self, masks: Tensor, rows: Tensor) -> Tensor:
        """(M,): sum_i max(0, g_i(part) - g_i(image)), on the ground where it is most."""
        if not self.how.attributes:
            return masks.new_zeros(len(masks))
        shown = self.shown(masks, rows)
        after = measure(self.how.attributes, shown.flatten(0, 1)).view(*shown.shape[:2], -1)
        return (after - self.before[rows].unsqueeze(1)).clamp_min(0).sum(2).amax(1)

    def rank(self, masks: Tensor, rows: Tensor) -> Tensor:
        """(M, S): the features by the gradient of the score, those that are missing first."""
        present = self.parts.present[rows]
        gradient, _ = self.slopes(torch.maximum(masks, _GLIMPSE * present), rows, self.sure)
        gradient = gradient.masked_fill(~present | (masks > 0), -torch.inf)
        return gradient.argsort(dim=1, descending=True, stable=True)

    def slopes(self, masks: Tensor, rows: Tensor, term: Term) -> tuple[Tensor, Tensor]:
        """Gradient (M, S) of a term of the logits (and of `rows`) less gamma times what rose, and the logits."""
        gradients, logits = list[Tensor](), list[Tensor]()
        for some, at in zip(torch.split(masks, self.at_once), torch.split(rows, self.at_once), strict=True):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                y = self.look(leaf, at)
                score = term(y, at) - self.how.gamma * self.risen(leaf, at)
                gradients.append(torch.autograd.grad(score.sum(), leaf)[0])
            logits.append(y.detach())
        return torch.cat(gradients), torch.cat(logits)

    def curve(self, order: list[Labels]) -> Tensor:
        """(N, K + 1): the confidence with the first k of some features, on the hardest ground; NaN beyond the last."""
        masks, at = self.flat({i: [labels[:k] for k in range(len(labels) + 1)] for i, labels in enumerate(order)})
        p = self.logits(masks, at).softmax(2)[torch.arange(len(at)), :, self.fact[at]].amin(1)
        each = torch.split(p, [len(labels) + 1 for labels in order])
        return nn.utils.rnn.pad_sequence(list(each), batch_first=True, padding_value=torch.nan)

    def result(self, order: list[Labels], before: list[Labels], interrupted: bool) -> PertinentPositive:
        """Write down the sets, with the confidence that each further feature brings, in their order and in another."""
        masks, _ = self.flat({row: [labels] for row, labels in enumerate(order)})
        logits = self.logits(masks, self.rows)
        enough, leads = self.margin.holds(logits, self.rows).all(1), self.lead(logits, self.rows)
        told = zip(range(len(order)), order, enough.tolist(), leads.tolist(), strict=True)
        labels = [torch.tensor(each, device=masks.device).long() for each in order]
        kept = [[label for label in ranked if label in set(part)] for ranked, part in zip(before, order, strict=True)]
        curve = self.curve(order)
        more: dict[str, Any] = {
            "order": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1), "curve": curve,
            "curve_before": curve if kept == order else self.curve(kept), "superpixels": self.parts.labels,
            "grounds": self.words, "check": lambda logits: self.margin.holds(logits, self.rows),
        }  # fmt: skip
        alone, mask = self.shown(masks, self.rows), self.parts.pixels(masks, self.rows) > 0
        ends = [self._said(*each) for each in told]
        return PertinentPositive.of(self.how, self.question, alone, ends, mask, interrupted=interrupted, **more)

    def _said(self, row: int, labels: Labels, enough: bool, end: float) -> End:
        if self.for_nothing[row]:
            return nothing_needed(self.question, row, self.words[row])
        ground = " and ".join(self.words[row])
        if not enough:
            return Status.NOT_FOUND, f"neither the image nor any part tried is enough ({end:.2f} logits on {ground})"
        said = self.margin.said(row, end, f" on {ground}")
        why = {
            "the image is one superpixel: all or nothing": len(labels) == 1 == self.counts[row],
            "nothing less than the whole image was found to be enough": len(labels) == self.counts[row],
            f"{said}; the masks aimed at {self.kappa:g}": not self.sound,
            said: True,
        }
        return Status.FOUND, next(words for words, holds in why.items() if holds)


# ------------------------------------------------------------------------------------------ as in the paper
def _relaxed(scorer: SupersetScorer) -> list[Labels]:
    """Rank the features by the best relaxed masks of ISTA: least |m|_1 that lead by kappa, else that keep the fact."""
    how, present = scorer.how, scorer.parts.present.to(scorer.parts.images)
    large, kept = 2.0 * present.shape[1], Kept(present)  # sets a mask that only keeps the fact behind all that lead

    def step(m: Tensor, c: Tensor, k: int) -> tuple[Tensor, Tensor]:
        gradient, logits = scorer.slopes(m, scorer.rows, partial(_hinge, scorer, c))
        leads, ahead = scorer.lead(logits, scorer.rows), scorer.margin.ahead(logits, scorer.rows).amin(1)
        size = m.sum(1) + large * (leads < scorer.kappa)
        kept.see(scorer.rows, m, size, -leads, ahead >= 0)
        return (m + how.step * (gradient - how.beta)).clamp(0, 1) * present, leads >= scorer.kappa

    descend(present, step, how.binary_search_steps, how.iterations, scorer.question.report)
    ranked = kept.best.masked_fill(present == 0, -1).argsort(dim=1, descending=True, stable=True).tolist()
    return [labels[:count] for labels, count in zip(ranked, scorer.counts, strict=True)]


def _hinge(scorer: SupersetScorer, c: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    return -c[rows] * (scorer.kappa - scorer.lead(logits, rows)).clamp_min(0)


def _added(scorer: SupersetScorer, row: int, ranked: Labels) -> Stage:
    """As many of the ranked features as it takes for the fact to return; all of them where it never does."""
    start, width = 1, _TRIED
    while start <= len(ranked):
        tried = [ranked[:k] for k in range(start, min(start + width, len(ranked) + 1))]
        if enough := _enough(tried, (yield scorer.scores, tried)):
            return enough[0]
        start, width = start + width, 2 * width
    return sorted(ranked)


def _enough(given: list[Labels], scores: Sequence[Sequence[float]]) -> list[Labels]:
    """What is enough, by its scores."""
    return [each for each, (ahead, *_) in zip(given, scores, strict=True) if ahead >= 0]


# ------------------------------------------------------------------------------------------ sound
def _grown(scorer: SupersetScorer, row: int, whole: Labels) -> Stage:
    """Add features until the fact leads: the set in the order it grew, or the whole image where it never does."""
    sets = list[Labels]([[]])
    tried = sets
    while len(tried[0]) < len(whole):
        ranked = yield scorer.rank, sets
        tried = _extended(sets, ranked, len(whole))
        seen = yield scorer.scores, tried
        enough = [(len(each), -ahead, each) for each, (ahead, *_) in zip(tried, seen, strict=True) if ahead >= 0]
        if enough:
            return min(enough)[2]
        followed = min(2 if len(whole) <= _FEW else 1, len(tried))
        sets = [tried[k] for k in torch.tensor([score for _, score, _ in seen]).topk(followed).indices.tolist()]
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
    while len(kept) > 1:
        some = kept[-_MANY:]
        left = [ahead for ahead, *_ in (yield scorer.scores, [_without(kept, [label]) for label in some])]
        least_missed = sorted((-ahead, label) for ahead, label in zip(left, some, strict=True) if ahead >= 0)
        spare = [label for _, label in least_missed][: len(kept) - 1]  # one always stays
        if not spare:
            break
        # 2, 4, 8, ... of them, and all
        widths = sorted({min(2**power, len(spare)) for power in range(1, len(spare).bit_length() + 1)} - {1})
        tried = [spare[:width] for width in widths]
        fewer = [_without(kept, gone) for gone in tried]
        kept = min(_enough(fewer, (yield scorer.scores, fewer)), key=len, default=_without(kept, spare[:1]))
    return kept


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
    ((*_, present),) = yield scorer.scores, [left]
    while len(left) > 1:
        alone = [sure for *_, sure in (yield scorer.scores, [_without(left, [label]) for label in left])]
        labels = _least(left, alone, present)
        more = yield scorer.scores, [_without(left, labels[:k]) for k in range(2, len(labels) + 1)]
        falling = [present, alone[left.index(labels[0])], *(sure for *_, sure in more)]
        count = next((k for k in range(1, len(labels)) if falling[k + 1] >= falling[k]), len(labels))
        present, tail, left = falling[count], [*reversed(labels[:count]), *tail], _without(left, labels[:count])
    return left + tail


def _least(labels: Labels, scores: Sequence[float], present: float) -> Labels:
    """The features to be left out next, from the scores without each of them."""
    below = sorted((-score, label) for label, score in zip(labels, scores, strict=True) if score < present)
    if not below:
        return [min(zip(scores, labels, strict=True))[1]]
    count = 1 if len(labels) <= _SINGLY else len(labels) // 8
    return [label for _, label in below[:count]]
