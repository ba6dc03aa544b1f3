"""CEM-MAF's pertinent negatives: what would have to be added for another class, and nothing lost (CEM-MAF, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, unknown
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.search.attributes import Attributes, described, measure, modules
from ratherthan.search.concepts import worded
from ratherthan.search.manifold import Inversion, Inverted, Manifold, invert
from ratherthan.search.method import FRAMES, Answers, CounterfactualMethod, Report, register_counterfactual_method
from ratherthan.search.solver import Schedule, Status, Terms, noise, search
from ratherthan.search.tradeoff import TradeoffSearch, hinge

if TYPE_CHECKING:
    from typing import Self

Sparsity = Literal["added", "all", "absent"]
_PRESENT = 0.5  # published code: an attribute from this value on is there already
_PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"kappa": 0.1, "beta": 1.0, "sparsity": "added", "residual": True},
    "paper": {"kappa": 5.0, "beta": 100.0, "sparsity": "all", "residual": False},
}
_AT_ONCE = 256


@register_counterfactual_method
@dataclass(frozen=True)
class CEMMAF(CounterfactualMethod):
    """The nearest image on a manifold that has another class and lost no attribute (CEM-MAF, eq. 1).

    At latents z, with x = D(z), the terms are: nu |z0 - z|^2; eta |x0 - x|^2; beta times the attributes' sparsity; what
    attributes lost, max(0, g_i(x0) - g_i(x)); and the hinge: by how many logits the new class does not lead by kappa.

    `preset="paper"`: gamma times the sum of what was lost and c times the hinge are added to the others, and
    minimised by subgradient descent, 1000 iterations for each of nine weights c (from 1; ten times it after a failure,
    half of it after a success). The answer is the iterate of another class that is nearest in the latents; attributes
    may have been lost a little. The paper states no step: here each goes along the normalised subgradient, by
    0.1 / sqrt(k) in the k-th iteration.

    `preset="fast"` (default): the first three terms are minimised with the others as constraints, which makes "lost
    nothing" and "another class" hold; Adam, multipliers and penalty per row, rows that are done leave (`core.search`).

    Attributes:
        manifold: The generative model; None: the one that a zoo model names.
        attributes: Attribute functions (see `attributes`), any callables among them; () for none. None: the latent
            coordinates that were found to move what the zoo model has words for (see `concepts`), if there are any.
        preset: "fast" or "paper".
        kappa: By how many logits the new class is to lead. The fast search accepts nothing less; the paper's aims at
            it, and accepts any image of another class. None: 0.1 and 5.
        gamma: Weight of lost attributes; paper only.
        beta: Weight of the sparsity. None: 1; in the paper's preset its 100, with which attributes hardly ever grow.
        eta: Weight of the distance in pixels.
        nu: Weight of the distance in latents.
        sparsity: Of attributes: "all", |g(x)|_1 as in eq. 1, which for latent coordinates pulls towards 0, not towards
            "no more"; "absent", the same over attributes below 0.5 in x0, as the published code has it; "added",
            sum_i max(0, g_i(x) - g_i(x0)), what grew. None: "added", in the paper's preset "all".
        residual: Whether what the manifold cannot make of the image, x0 - D(z0), is added to x, so that the search
            starts from the image itself. None: yes; no in the paper's preset.
        retries: Where the fast search finds nothing, so many further starts, z0 and noise, are tried.
        schedule: The fast search.
        inversion: How z0 is found.
        seed: Of the noise.
    """

    name: ClassVar[str] = "cem-maf"
    default_foil: ClassVar[Any] = "any"
    any_foil: ClassVar[bool] = True

    manifold: Manifold | None = None
    attributes: Attributes | None = None
    preset: Literal["fast", "paper"] = "fast"
    kappa: float | None = None
    gamma: float = 100.0
    beta: float | None = None
    eta: float = 1.0
    nu: float = 1.0
    sparsity: Sparsity | None = None
    residual: bool | None = None
    retries: int = 2
    schedule: Schedule = field(default_factory=partial(Schedule, rounds=12, steps=40))
    inversion: Inversion = field(default_factory=Inversion)
    seed: int = 0
    rounds: ClassVar[int] = 9
    iterations: ClassVar[int] = 1000
    step: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        Manifold.required(self.manifold)
        if self.preset not in _PRESETS:
            raise InputError(unknown("preset", self.preset, _PRESETS))
        if self.sparsity not in ("added", "all", "absent", None):
            raise InputError(unknown("sparsity", self.sparsity, ["added", "all", "absent"]))
        if min(self.kappa or 0, self.gamma, self.beta or 0, self.eta, self.nu, self.retries) < 0:
            raise InputError("kappa, gamma, beta, eta, nu and retries are at least 0")
        for key, value in _PRESETS[self.preset].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)

    def prepared(self, model: Model) -> Self:
        """With the manifold and the attributes that a zoo model names, where none are given."""
        manifold = self.manifold or Manifold.of(model)
        attributes = worded(model, manifold) if self.attributes is None else self.attributes
        return replace(self, manifold=manifold, attributes=attributes)

    def check(self, model: Model, images: Tensor) -> None:
        """Refuse images of another shape than the manifold makes."""
        assert self.manifold is not None
        self.manifold.to(images).check(images)

    def answer(
        self,
        model: Model,
        images: Tensor,
        fact: Tensor,
        foil: Tensor,
        samples: Sequence[int],
        report: Report | None = None,
    ) -> Answers:
        """All foils of all images at once; see `CounterfactualMethod.answer`."""
        assert self.manifold is not None
        with preserve_state(nn.ModuleList([model.module, self.manifold.module, *modules(self.attributes or ())])):
            inverted = invert(self.manifold, images, model, fact[:, 0], self.inversion, self.seed)
            hunt = LatentSearch(self, self.manifold, model, images, inverted, fact, foil, samples)
            if inverted.interrupted:
                return hunt.answers(True)
            interrupted = _descend(hunt, report) if self.preset == "paper" else _search(hunt, report)
            return hunt.answers(interrupted)


class LatentSearch:
    """The searches for K questions, and the best that was found for each."""

    def __init__(
        self,
        how: CEMMAF,
        manifold: Manifold,
        model: Model,
        images: Tensor,
        inverted: Inverted,
        fact: Tensor,
        foil: Tensor,
        samples: Sequence[int],
    ) -> None:
        self.how, self.manifold, self.model, self.images, self.inverted = how, manifold, model, images, inverted
        self.attributes = how.attributes or ()
        self.fact, self.foil, self.evaluations = fact.flatten(), foil.flatten(), 0
        self.image = torch.arange(len(images), device=images.device).repeat_interleave(fact.shape[1])
        self.sample = [samples[i] for i in self.image.tolist()]
        self.origin = inverted.latents[self.image]
        with torch.no_grad():
            self.before = measure(self.attributes, images, inverted.latents, manifold)
        self.z = self.origin.clone()
        self.status = [Status.NOT_FOUND] * len(self.image)
        self.reason = ["interrupted before it began"] * len(self.image)
        self.open = self._exclude()

    def _exclude(self) -> Tensor:
        """The numbers of the questions that can be searched for; of the others, say why not."""
        error = self.inverted.error[self.image]
        failed = (error > self.how.inversion.largest_error) | error.isnan()
        lost = ~self.inverted.class_kept[self.image] & (not self.how.residual)
        same = self.fact == self.foil
        for k in (failed | lost | same).nonzero().flatten().tolist():
            self.status[k] = Status.FOIL_EQUALS_FACT if same[k] else Status.INVERSION_FAILED
            self.reason[k] = (
                "foil and fact are the same class: nothing would have to be added"
                if same[k]
                else f"the manifold makes no such image: its best reconstruction is off by {error[k]:.3f}"
                if failed[k]
                else "the manifold's reconstruction of the image has another class to begin with; try residual=True"
            )
        return (~(failed | lost | same)).nonzero().flatten()

    # ----------------------------------------------------------------------------------------- eq. 1
    def image_at(self, z: Tensor, questions: Tensor) -> Tensor:
        """x: D(z), with the residual if that is wanted."""
        made = self.manifold.decode(z)
        return (made + self.inverted.residual[self.image[questions]]).clamp(0, 1) if self.how.residual else made

    def terms(self, z: Tensor, questions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Closeness and sparsity (M,), attributes lost (M, A) signed, and logits (M, classes)."""
        self.evaluations += len(z)
        x, at = self.image_at(z, questions), self.image[questions]
        g, g0 = measure(self.attributes, x, z, self.manifold), self.before[at]
        assert self.how.beta is not None
        near = self.how.nu * (z - self.origin[questions]).square().flatten(1).sum(1)
        alike = self.how.eta * (x - self.images[at]).square().flatten(1).sum(1)
        return near + alike + self.how.beta * self._sparsity(g, g0), g0 - g, self.model.logits(x)

    def _sparsity(self, g: Tensor, g0: Tensor) -> Tensor:
        if self.how.sparsity == "added":
            return (g - g0).clamp_min(0).sum(1)
        counted = torch.ones_like(g0) if self.how.sparsity == "all" else (g0 < _PRESENT).to(g)
        return (g.abs() * counted).sum(1)

    def missing(self, logits: Tensor, questions: Tensor, kappa: float) -> Tensor:
        """(M,): by how many logits another class, or the foil, does not lead by kappa; negative where it does."""
        far = 1e4  # hinge clips at 0: asking for more first, and taking it off, keeps the sign
        return hinge(logits, self.fact[questions], self.foil[questions], kappa + far, keep=False) - far

    def problem(self, z: Tensor, questions: Tensor) -> Terms:
        """Eq. 1 with the class and the attributes as constraints."""
        objective, lost, logits = self.terms(z, questions)
        assert self.how.kappa is not None
        missing = self.missing(logits, questions, self.how.kappa).unsqueeze(1)
        return Terms(objective, z.new_zeros(len(z), 0), torch.cat([missing, lost], 1))

    # ----------------------------------------------------------------------------------------- what was found
    @torch.no_grad()
    def answers(self, interrupted: bool) -> Answers:
        """Look at everything once more through the network."""
        count = len(self.z)
        questions = torch.arange(count, device=self.z.device)
        share = torch.linspace(0, 1, FRAMES - 1, device=self.z.device, dtype=self.z.dtype)
        share = share.view(1, -1, *[1] * (self.z.ndim - 1))
        way = self.origin.unsqueeze(1) + share * (self.z - self.origin).unsqueeze(1)
        path = [self.images[self.image].unsqueeze(1)]
        seen = [self.image_at(z, at) for z, at in _pieces(way.flatten(0, 1), questions.repeat_interleave(FRAMES - 1))]
        path.append(torch.cat(seen).clamp(0, 1).view(count, FRAMES - 1, *self.images.shape[1:]))
        frames = torch.cat(path, 1)
        logits = torch.cat([self.model.logits(part) for part in torch.split(frames.flatten(0, 1), _AT_ONCE)])
        logits = logits.view(count, FRAMES, -1)
        g = measure(self.attributes, frames[:, -1], self.z, self.manifold)
        self._verify(logits[:, -1], self.before[self.image] - g)
        missing = self.missing(logits[:, -1], questions, 0.0).clamp_min(0).unsqueeze(1)
        lost = (self.before[self.image] - g).clamp_min(0)
        names, thresholds = described(self.attributes, self.images[:1], self.inverted.latents[:1], self.manifold)
        return Answers(
            status=[[each] for each in self.status],
            reason=[[each] for each in self.reason],
            examples=frames[:, -1:],
            logits=logits[:, -1:],
            distance=(self.z - self.origin).flatten(1).norm(dim=1).unsqueeze(1),
            violation=torch.cat([missing, lost], 1).amax(1, keepdim=True),
            path=frames,
            path_logits=logits,
            interrupted=interrupted,
            evaluations=self.evaluations,
            inverted=self.inverted,
            latents=self.z.unsqueeze(1),
            attributes_before=self.before if names else None,
            attributes=g.unsqueeze(1) if names else None,
            attribute_names=names,
            attribute_thresholds=thresholds,
        )

    def _verify(self, logits: Tensor, lost: Tensor) -> None:
        questions = torch.arange(len(logits), device=logits.device)
        moved, tolerance = self.missing(logits, questions, 0.0) < 0, self.how.schedule.tolerance
        kept = (lost <= tolerance).all(1) | (self.how.preset == "paper")
        for k in (~(moved & kept)).nonzero().flatten().tolist():
            if self.status[k] is Status.FOUND:
                self.status[k], self.reason[k] = Status.NOT_FOUND, "what seemed an answer is none in a fresh pass"
        for k in (lost > tolerance).any(1).nonzero().flatten().tolist():
            if self.status[k] is Status.FOUND:
                self.reason[k] += f"; attributes lost, at most {lost[k].max():.3g}"


def _pieces(z: Tensor, questions: Tensor) -> Any:
    return zip(torch.split(z, _AT_ONCE), torch.split(questions, _AT_ONCE), strict=True)


# ------------------------------------------------------------------------------------------ fast
def _search(hunt: LatentSearch, report: Report | None) -> bool:
    """Constrained searches from z0, then from z0 and noise where nothing was found; whether Ctrl-C ended it."""
    left = hunt.open
    for turn in range(hunt.how.retries + 1):
        if not len(left):
            break
        start = hunt.origin[left].clone()
        if turn:
            drawn = noise(hunt.manifold.latent_shape, hunt.how.seed, [hunt.sample[k] for k in left.tolist()], turn)
            start += 0.5 * drawn.to(start)

        def problem(z: Tensor, rows: Tensor, asked: Tensor = left) -> Terms:
            return hunt.problem(z, asked[rows])

        outcome = search(problem, start, hunt.how.schedule, report)
        for row, k in enumerate(left.tolist()):
            if turn == 0 or outcome.status[row] is Status.FOUND:
                hunt.z[k], hunt.status[k], hunt.reason[k] = outcome.z[row], outcome.status[row], outcome.reason[row]
        if outcome.interrupted:
            return True
        left = torch.tensor([k for k in left.tolist() if hunt.status[k] is not Status.FOUND], device=left.device)
    return False


# ------------------------------------------------------------------------------------------ as in the paper
def _descend(hunt: LatentSearch, report: Report | None) -> bool:
    """Subgradient descent for nine weights of the class; whether Ctrl-C ended it."""
    how, asked = hunt.how, hunt.open
    origin = hunt.origin[asked]
    weighing = TradeoffSearch.start(origin.new_ones(len(asked)), "halve")
    best, least = origin.clone(), origin.new_full((len(asked),), torch.inf)
    nearest, gap = origin.clone(), least.clone()
    interrupted = False
    try:
        for number in range(how.rounds if len(asked) else 0):
            z, success = origin.clone(), torch.zeros_like(asked, dtype=torch.bool)
            for k in range(how.iterations):
                gradient, missing = _subgradient(hunt, z, asked, weighing.c)
                distance = (z - origin).flatten(1).norm(dim=1)
                moved = missing < 0
                success |= moved
                better, closer = moved & (distance < least), missing < gap
                best, least = _choose(better, z, best), torch.where(better, distance, least)
                nearest, gap = _choose(closer, z, nearest), torch.where(closer, missing, gap)
                length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (z.ndim - 1))
                z = z - how.step / (k + 1) ** 0.5 * gradient / length
            weighing = weighing.update(success)
            if report is not None:
                report(number + 1, how.rounds)
    except KeyboardInterrupt:
        interrupted = True
    hunt.z[asked] = _choose(least.isfinite(), best, nearest)
    for row, k in enumerate(asked.tolist()):
        found = bool(least[row].isfinite())
        hunt.status[k] = Status.FOUND if found else Status.NOT_FOUND
        missed = "interrupted before an iterate had the class" if interrupted else _miss(hunt, float(gap[row]))
        hunt.reason[k] = "nearest iterate of another class" if found else missed
    return interrupted


def _miss(hunt: LatentSearch, gap: float) -> str:
    return (
        f"no iterate of {hunt.how.rounds} x {hunt.how.iterations} has the class; the best misses it by {gap:.3g} logits"
    )


def _subgradient(hunt: LatentSearch, z: Tensor, questions: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Of eq. 1 with the weight c of the hinge, and by how many logits the class is still missed."""
    assert hunt.how.kappa is not None
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        objective, lost, logits = hunt.terms(leaf, questions)
        classed = hinge(logits, hunt.fact[questions], hunt.foil[questions], hunt.how.kappa, keep=False)
        objective = objective + hunt.how.gamma * lost.clamp_min(0).sum(1) + c * classed
        (gradient,) = torch.autograd.grad(objective.sum(), leaf)
    return gradient, hunt.missing(logits.detach(), questions, 0.0)


def _choose(which: Tensor, this: Tensor, other: Tensor) -> Tensor:
    return torch.where(which.view(-1, *[1] * (this.ndim - 1)), this, other)
