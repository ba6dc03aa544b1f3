"""CEM-MAF's pertinent negatives: what would have to be added for another class, and nothing lost (CEM-MAF, eq. 1).

At latents z, with x = D(z), the terms are: nu |z0 - z|^2; eta |x0 - x|^2; beta times the attributes' sparsity; what
attributes lost, max(0, g_i(x0) - g_i(x)); and the hinge: by how many logits the new class does not lead by kappa.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ratherthan.model import Model
from ratherthan.search.attributes import Attributes, described, measure, modules, worded
from ratherthan.search.constrained import OnManifold, Point, Searches, Space
from ratherthan.search.counterfactual import FRAMES, Counterfactual
from ratherthan.search.method import SearchQuestion, register_counterfactual_method
from ratherthan.search.solver import Kept, Schedule, Status, Terms
from ratherthan.search.tradeoff import TradeoffSearch
from ratherthan.settings import Interval, NotNegative

Sparsity = Literal["added", "all", "absent"]
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
        filled = replace(super().prepared(model), **usual)
        return filled if self.attributes is not None else replace(filled, attributes=worded(model, filled.generator))

    def modules(self) -> list[nn.Module]:
        """The manifold's and the attributes'."""
        return [*super().modules(), *modules(self.attributes or ())]

    @property
    def with_residual(self) -> bool:
        """As the settings have it."""
        return bool(self.residual)

    # ----------------------------------------------------------------------------------------- eq. 1
    def variables(self, question: SearchQuestion) -> Space:
        """The latents, and the attributes of the images."""
        space, attributes = super().variables(question), self.attributes or ()
        latents = space.start[:: question.questions]
        with torch.no_grad():
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

    def terms(self, at: Point) -> Terms:
        """Closeness and sparsity; the class and the attributes are constraints."""
        objective, lost, short = self.parts(at)
        return Terms(objective, below=torch.cat([short.unsqueeze(1), lost], 1))

    def parts(self, at: Point) -> tuple[Tensor, Tensor, Tensor]:
        """Closeness and sparsity (M,); what attributes lost, (M, A); what the lead lacks, (M,); negative: none."""
        assert self.kappa is not None
        assert self.beta is not None
        assert self.sparsity is not None
        g0, g = at.space.known["before"][at.rows], self.measured(at.images, at.z)
        near = self.nu * (at.z - at.start).square().flatten(1).sum(1)
        alike = self.eta * (at.images - at.asked).square().flatten(1).sum(1)
        return near + alike + self.beta * sparsity_of(self.sparsity, g, g0), g0 - g, self.kappa - at.lead

    def measured(self, images: Tensor, z: Tensor) -> Tensor:
        """Attributes (M, A) of images at latents z."""
        return measure(self.attributes or (), images, z, self.generator)

    def verified(self, at: Point) -> tuple[Tensor, Tensor]:
        """Another class, whatever the tolerance, and nothing lost; the paper's search only weighs that."""
        if self.preset == "paper":
            return (-at.lead).clamp_min(0), at.lead > 0
        violation, holds = super().verified(at)
        return violation, holds & (at.lead > 0)

    @torch.no_grad()
    def fields(self, space: Space, z: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Where the answers lie, and their attributes."""
        g = self.measured(images.flatten(0, 1), z.flatten(0, 1)).view(*z.shape[:2], -1)
        return super().fields(space, z, images) | ({"attributes": g} if g.shape[2] else {})

    # ----------------------------------------------------------------------------------------- as in the paper
    def search(self, question: SearchQuestion) -> Counterfactual:
        """See `SearchMethod.search`."""
        if self.preset == "sound":
            return super().search(question)
        return _Descent(replace(self, restarts=1), question).result()


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


class _Descent(Searches):
    """Subgradient descent for nine weights of the class."""

    how: CEMMAF

    def solve(self) -> None:
        """Descend from z0 and keep the nearest iterate of another class."""
        how, rows = self.how, torch.tensor([k for k, _ in self.slots], device=self.z.device).long()
        origin, kept = self.space.start[rows], Kept(self.space.start)
        tradeoff = TradeoffSearch.start(origin.new_ones(len(rows)), "halve")
        try:
            for number in range(how.binary_search_steps if len(rows) else 0):
                z, success = origin, torch.zeros_like(rows, dtype=torch.bool)
                for k in range(how.iterations):
                    gradient, missing = self._subgradient(z, rows, tradeoff.c)
                    kept.see(rows, z, (z - origin).flatten(1).norm(dim=1), missing, missing < 0)
                    success |= missing < 0
                    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (z.ndim - 1))
                    z = z - how.step / (k + 1) ** 0.5 * gradient / length
                tradeoff = tradeoff.update(success)
                self.question.report((number + 1) / how.binary_search_steps)
        except KeyboardInterrupt:
            self.interrupted = True
        self.z[:, 0] = kept.points
        self._tell(kept)

    def _subgradient(self, z: Tensor, rows: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Of eq. 1 with the weight c of the hinge, and by how many logits the class is still missed."""
        with torch.enable_grad():
            at = self.point(z.detach().requires_grad_(), rows)
            objective, lost, short = self.how.parts(at)
            loss = objective + self.how.gamma * lost.clamp_min(0).sum(1) + c * short.clamp_min(0)
            (gradient,) = torch.autograd.grad(loss.sum(), at.z)
        return gradient, -at.lead.detach()

    @torch.no_grad()
    def _tell(self, kept: Kept) -> None:
        z, tried = self.z[:, 0], f"{self.how.binary_search_steps} x {self.how.iterations}"
        lost = self.space.known["before"] - self.how.measured(self.space.images(self.z, self.rows)[:, 0], z)
        worst = nn.functional.pad(lost, (0, 1)).amax(1)  # 0 where there are no attributes
        for k, _ in self.slots:
            much = f"; attributes lost, at most {worst[k]:.3g}" * bool(worst[k] > self.how.schedule.feasibility_tol)
            reason = f"no iterate of {tried} has the class; the best misses it by {kept.missed[k]:.3g} logits"
            if self.interrupted:
                reason = "interrupted before an iterate had the class"
            found = Status.FOUND, f"nearest iterate of another class{much}"
            self.ends[k][0] = found if kept.found[k] else (Status.NOT_FOUND, reason)
        share = torch.linspace(0, 1, FRAMES - 1, device=z.device, dtype=z.dtype)[:-1].view(-1, *[1] * (z.ndim - 1))
        self.way = (self.space.start.unsqueeze(1) + share * (z - self.space.start).unsqueeze(1)).unsqueeze(1)
