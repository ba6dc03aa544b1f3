"""Manifolds of natural images: generative models, and the way from an image to its latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ratherthan.contrast import margin
from ratherthan.errors import InputError, ModelError, see, told_as
from ratherthan.inference import differentiable, preserve_state
from ratherthan.model import Model
from ratherthan.search.solver import Problem, Schedule, Status, Terms, noise, search
from ratherthan.settings import AtLeastOne, Positive, Settings, type_name

if TYPE_CHECKING:
    from ratherthan.zoo.concepts import Effect

_BANK = 256  # images drawn from the prior that an inversion without an encoder may start from
Lead = Callable[[Tensor, Tensor], Tensor]
"""Decoded images, and the rows of a search they belong to, to the fact's margin."""
_MARGIN = 0.1  # logits by which the class of a reconstruction is to win


class Manifold:
    """A generative model of images: any torch module that decodes latents, and one that encodes images if there is one.

    Args:
        decoder: Latents (N, *latent_shape) to images (N, C, H, W). A module with a method `decode`, and perhaps
            `encode`, brings both.
        latent_shape: Shape of one latent; a number for a vector.
        encoder: Images to latents; a tuple counts by its first element.
        scale: The values that the module's black and white have: (0, 1), or (-1, 1) for a GAN that ends in tanh.
        name: What to call it in results.

    Attributes:
        can_encode: Whether there is an encoder.
        effects: What its latents do, by concept (see `zoo.concepts`); empty where nobody has measured it.

    Raises:
        InputError: If the decoder is no module or the scale is none.

    Example:
        >>> manifold = Manifold(generator, 100, scale=(-1, 1))
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_shape: int | Sequence[int],
        encoder: nn.Module | None = None,
        *,
        scale: tuple[float, float] = (0.0, 1.0),
        name: str | None = None,
    ) -> None:
        if not isinstance(decoder, nn.Module) or not isinstance(encoder, (nn.Module, type(None))):
            raise InputError("a manifold is made of torch modules: Manifold(decoder, latent_shape, encoder)")
        if not scale[0] < scale[1]:
            raise InputError(f"scale is the value of black and that of white, e.g. (-1, 1), not {scale}")
        self.module = nn.ModuleList([decoder] if encoder is None else [decoder, encoder])
        self.latent_shape = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
        if min(self.latent_shape, default=1) < 1:
            raise InputError(f"latent_shape is how many latents there are, e.g. 32, not {latent_shape}")
        self.scale, self.name = scale, name or type(decoder).__name__
        self.effects: Mapping[str, Effect] = {}
        self._decode: Callable[[Tensor], Any] = getattr(decoder, "decode", decoder)
        self._encode: Callable[[Tensor], Any] | None = encoder or getattr(decoder, "encode", None)
        self.can_encode = self._encode is not None

    def __repr__(self) -> str:
        return f"{self.name} ({' x '.join(map(str, self.latent_shape))} latents)"

    @classmethod
    def load(cls, name: str, weights: str | Path | None = None) -> Manifold:
        """A manifold of the zoo.

        Args:
            name: E.g. "zoo:mnist_vae".
            weights: Its weights; by default those that ship in the package.

        Raises:
            InputError: If there is none of this name.
            ModelError: If its weights cannot be read.
        """
        from ratherthan.zoo import registry as zoo
        from ratherthan.zoo.concepts import Effect

        entry = zoo.get(name, generative=True)
        module = zoo.load_weights(entry, weights)
        made = cls(module, module.latents, scale=entry.scale, name=f"zoo:{entry.name}")  # type: ignore[arg-type]
        told = zoo.written(entry, weights, "effects", {})
        made.effects = {name: Effect(*torch.tensor(rows, dtype=torch.float64)) for name, rows in told.items()}
        return made

    @classmethod
    def of(cls, model: Model, weights: str | Path | None = None) -> Manifold:
        """The manifold that a model of the zoo names.

        Args:
            model: The model.
            weights: The manifold's weights; by default those that ship in the package.

        Raises:
            InputError: If it names none.
            ModelError: If its weights cannot be read.
        """
        from ratherthan.zoo import registry as zoo

        entry = zoo.entry_of(model.name)
        if entry is None or entry.manifold is None:
            remedy = "give one, --manifold NAME; in Python Manifold(decoder, latent_shape)"
            raise InputError(f"{model.name} names no manifold: {remedy}" + see("no-manifold"))
        return cls.load(entry.manifold, weights)

    def to(self, like: Tensor) -> Manifold:
        """Move it to the device and dtype of a tensor; returns itself."""
        self.module.to(like.device, like.dtype)
        return self

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, *latent_shape) to images (N, C, H, W) in image space."""
        low, high = self.scale
        with differentiable():
            images: Tensor = self._decode(latents)
        return images if self.scale == (0.0, 1.0) else (images - low) / (high - low)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in image space to latents (N, *latent_shape).

        Raises:
            ModelError: If it has no encoder, or this gives something else.
        """
        if self._encode is None:
            raise ModelError(f"{self.name} has no encoder")
        low, high = self.scale
        found = self._encode(images * (high - low) + low)
        latents: Tensor = found[0] if isinstance(found, tuple) else found
        if latents.shape[1:] != self.latent_shape:
            raise ModelError(f"{self.name} encodes to {tuple(latents.shape[1:])}, but latents are {self.latent_shape}")
        return latents

    def check(self, images: Tensor) -> None:
        """Refuse images that it cannot make.

        Raises:
            ModelError: If it cannot decode its latents, or makes images of another shape than these (N, C, H, W).
        """
        zero = images.new_zeros(1, *self.latent_shape)
        what, failures = f"{self.name} cannot decode latents {self.latent_shape}", (RuntimeError, ValueError, TypeError)
        with told_as(ModelError, what, *failures), preserve_state(self.module), torch.no_grad():
            made = self.decode(zero)
        if not isinstance(made, Tensor):
            raise ModelError(f"{self.name} makes a {type_name(made)} of latents: give a module that makes images")
        if made.shape[1:] != images.shape[1:]:
            shapes = f"{tuple(made.shape[1:])}, but these are {tuple(images.shape[1:])}"
            raise ModelError(f"{self.name} makes images of {shapes}: give a manifold of their shape")


@dataclass(frozen=True)
class Inversion(Settings):
    """How the latent of an image is found.

    Attributes:
        restarts: How many starts: the encoder's answer if there is one, then the nearest of a bank of prior samples.
        schedule: The search from each.
        largest_error: Root mean square error of the pixels, in [0, 1], above which an inversion has failed.
    """

    name: ClassVar[str] = "inversion"

    restarts: AtLeastOne = 1
    schedule: Schedule = field(default_factory=partial(Schedule, outer_iterations=4, inner_iterations=25, tol=0.02))
    largest_error: Positive = 0.25


@dataclass(frozen=True, eq=False)
class Inverted:
    """Images and their places on a manifold.

    Attributes:
        latents: (N, *latent_shape).
        reconstruction: (N, C, H, W), the decoded latents.
        residual: (N, C, H, W), images minus reconstruction.
        error: (N,) root mean square of the residual; NaN where nothing finite was found.
        class_kept: (N,) bool: whether the model gives the reconstruction the fact; True without a model.
        interrupted: Whether Ctrl-C ended it.
    """

    latents: Tensor
    reconstruction: Tensor
    residual: Tensor
    error: Tensor
    class_kept: Tensor
    interrupted: bool = False


def invert(
    manifold: Manifold,
    images: Tensor,
    model: Model | nn.Module | None = None,
    fact: Tensor | None = None,
    settings: Inversion | None = None,
    seed: int = 0,
) -> Inverted:
    """Find z0 = argmin |G(z) - I|^2 (eq. 1 of CDeepEx), the class of the reconstruction being the fact.

    First the pixels alone; then, where the reconstruction has another class, again with the constraint that the fact
    wins by a margin: the augmented Lagrangian is the paper's misclassification cost, growing while the class is wrong.

    Args:
        manifold: The generative model.
        images: (N, C, H, W) in image space.
        model: The network whose class is to be kept; None: no class is.
        fact: (N,) class indices; None: the model's predictions for the images.
        settings: How; None: the usual.
        seed: Of the bank that starts are drawn from.

    Returns:
        The best of all starts for each image: the class kept if any start kept it, then the smallest error.

    Raises:
        ModelError: If the manifold makes images of another shape.
    """
    settings, model = settings or Inversion(), None if model is None else Model.wrap(model)
    manifold.to(images).check(images)
    watched = nn.ModuleList([each.module for each in (manifold, model) if each is not None])
    with preserve_state(watched), torch.no_grad():
        lead = None if model is None else _lead(model, images, fact)
        problem = _problem(manifold, images)
        nearest = search(problem, _starts(manifold, images, settings.restarts, seed), settings.schedule)
        z, interrupted = nearest.z, nearest.interrupted
        if lead is not None and not interrupted:
            z, interrupted = _with_class(_problem(manifold, images, lead), manifold, lead, z, settings.schedule)
        return replace(_best(manifold, images, lead, z), interrupted=interrupted)


def _lead(model: Model, images: Tensor, fact: Tensor | None) -> Lead:
    fact = model.logits(images).argmax(1) if fact is None else fact
    return lambda made, rows: margin(model.logits(made), fact[rows % len(fact)])


def _starts(manifold: Manifold, images: Tensor, restarts: int, seed: int) -> Tensor:
    """(restarts * N, *latent_shape), all images for the first start, then all for the second."""
    found = [manifold.encode(images)] if manifold.can_encode else []
    if (wanted := restarts - len(found)) > 0:
        bank = noise(manifold.latent_shape, seed, range(_BANK), 0).to(images)
        distance = torch.cdist(images.flatten(1), manifold.decode(bank).flatten(1))
        nearest = distance.topk(wanted, dim=1, largest=False).indices
        found += [bank[column] for column in nearest.T]
    return torch.cat(found[:restarts])


def _problem(manifold: Manifold, images: Tensor, lead: Lead | None = None) -> Problem:
    def problem(z: Tensor, rows: Tensor) -> Terms:
        made = manifold.decode(z)
        misfit = (made - images[rows % len(images)]).square().flatten(1).sum(1)
        return Terms(misfit) if lead is None else Terms(misfit, below=_MARGIN - lead(made, rows))

    return problem


def _with_class(problem: Problem, manifold: Manifold, lead: Lead, z: Tensor, schedule: Schedule) -> tuple[Tensor, bool]:
    """Search on from z where the reconstruction has another class; kept is what has it then."""
    rows = (lead(manifold.decode(z), torch.arange(len(z), device=z.device)) <= 0).nonzero().flatten()
    if not len(rows):
        return z, False
    held = search(lambda z, of: problem(z, rows[of]), z[rows], schedule)
    kept = torch.tensor([status is Status.FOUND for status, _ in held.ends], device=z.device)
    return z.index_put((rows[kept],), held.z[kept]), held.interrupted


def _best(manifold: Manifold, images: Tensor, lead: Lead | None, z: Tensor) -> Inverted:
    made, rows = manifold.decode(z), torch.arange(len(z), device=z.device)
    error = (made - images[rows % len(images)]).square().flatten(1).mean(1).sqrt()
    kept = torch.ones_like(rows, dtype=torch.bool) if lead is None else lead(made, rows) > 0
    # a wrong class weighs more than any error of pixels can; NaN most of all
    best = (error.nan_to_num(torch.inf) + 1e3 * ~kept).view(-1, len(images)).argmin(0)
    rows = best * len(images) + rows[: len(images)]
    return Inverted(z[rows], made[rows], images - made[rows], error[rows], kept[rows])
