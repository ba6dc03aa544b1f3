"""Attribute functions: how much of a concept is there (CEM-MAF, section 3: monotonic attribute functions g_i)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.contrast import class_index
from ratherthan.errors import InputError, unknown
from ratherthan.model import Model
from ratherthan.search.manifold import Manifold
from ratherthan.settings import to_jsonable, type_name

if TYPE_CHECKING:
    from ratherthan.zoo.concepts import Effect

_THRESHOLD = 0.1
_FELT = 0.1  # standard deviations per unit of a coordinate, below which its effect is not worth a name


@dataclass(frozen=True, eq=False)
class Attribute:
    """Concepts, each with a number that is higher the more of it is there.

    Attributes:
        function: Images (N, C, H, W) in image space to (N,) or (N, A), differentiable.
        names: A names of what more of each means, e.g. "longer sleeves".
        thresholds: From which increase on each counts as added: one number for all, or A.
        module: What it computes with, to be kept in evaluation mode.
    """

    function: Callable[[Tensor], Tensor]
    names: tuple[str, ...] = ()
    thresholds: float | tuple[float, ...] = _THRESHOLD
    module: nn.Module | None = None

    def measure(self, images: Tensor, latents: Tensor | None = None, manifold: Manifold | None = None) -> Tensor:
        """How much of each is there: (N, A).

        Args:
            images: (N, C, H, W) in image space.
            latents: (N, ...) where the images lie on a manifold, if that is known.
            manifold: That manifold.

        Raises:
            InputError: If the function gives something else.
        """
        values = self.function(images)
        values = values.unsqueeze(1) if values.ndim == 1 else values
        if values.ndim != 2 or len(values) != len(images) or (self.names and values.shape[1] != len(self.names)):
            wanted = len(self.names) or "A"
            raise InputError(f"an attribute function gives (N,) or (N, {wanted}), not {tuple(values.shape)}")
        return values

    def settings(self) -> dict[str, Any]:
        """What it is, fit to be written down."""
        return {"names": list(self.names), "thresholds": self.thresholds, "function": to_jsonable(self.function)}

    def calibrated(self, images: Tensor, quantile: float = 0.25) -> Self:
        """With thresholds from data: an increase counts that exceeds this share of the differences between images.

        Args:
            images: (N, C, H, W), at least two.
            quantile: In (0, 1).
        """
        if len(images) < 2 or not 0 < quantile < 1:
            raise InputError("calibration takes at least two images and a quantile between 0 and 1")
        with torch.no_grad():
            values = self.measure(images).double().cpu()
        above = torch.triu_indices(len(values), len(values), 1)
        apart = (values[above[0]] - values[above[1]]).abs().numpy()  # NumPy: torch refuses large quantiles
        return replace(self, thresholds=tuple(float(each) for each in np.quantile(apart, quantile, axis=0)))


def class_attributes(
    model: Model | nn.Module, classes: Sequence[int | str] | int | str | None = None, names: Sequence[str] = ()
) -> Attribute:
    """The probabilities of a classifier's classes as attributes.

    Args:
        model: The classifier; a binary one has two logits, or one that is the log-odds of class 1.
        classes: Which classes, by index or name; None: class 1 of two, else all.
        names: What to call them; by default the classes' names.

    Raises:
        InputError: If there is no such class.
    """
    model = Model.wrap(model)

    asked = [classes] if isinstance(classes, (int, str)) else classes

    def chosen(count: int) -> list[int]:
        wanted = asked if asked is not None else [1] if count == 2 else range(count)
        return [class_index(each, count, model.class_names) for each in wanted]

    def function(images: Tensor) -> Tensor:
        p = model.logits(images).softmax(1)
        return p[:, chosen(p.shape[1])]

    known = model.class_names or ()
    usual = [known[k] for k in chosen(len(known))] if known else [f"class {each}" for each in asked or ()]
    return Attribute(function, tuple(names or usual), module=model.module)


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentCoordinate(Attribute):
    """A coordinate of a disentangled latent space as an attribute: g = z_i or -z_i, within a range.

    Where a search moves on the same manifold, it is read off the latents themselves, else by the encoder.

    Attributes:
        manifold: The manifold; where latents are not known, it needs an encoder.
        index: Which coordinate, i.
        sign: +1 if more of the concept is a larger z_i, -1 if it is a smaller one.
        range: Between which values of g it means the concept; beyond, it counts as no more.
        evidence: What was measured of it, in words; see `named`.
    """

    function: Callable[[Tensor], Tensor] = torch.Tensor.detach  # not used: `measure` is its own
    manifold: Manifold
    index: int
    sign: int = 1
    range: tuple[float, float] = (-3.0, 3.0)
    evidence: str = ""

    def __post_init__(self) -> None:
        if self.sign not in (-1, 1) or not self.range[0] < self.range[1]:
            raise InputError("sign is 1 or -1, and range goes from a lower to a higher value")
        object.__setattr__(self, "module", self.manifold.module)
        if not 0 <= self.index < int(np.prod(self.manifold.latent_shape)):
            raise InputError(f"{self.manifold!r} has no coordinate {self.index}")

    def settings(self) -> dict[str, Any]:
        """See `Attribute.settings`."""
        which = f"{'+' if self.sign > 0 else '-'}z{self.index} of {self.manifold}"
        return {"names": list(self.names), "thresholds": self.thresholds, "coordinate": which, "range": self.range}

    def measure(self, images: Tensor, latents: Tensor | None = None, manifold: Manifold | None = None) -> Tensor:
        """See `Attribute.measure`."""
        if latents is None or manifold is None or manifold.module is not self.manifold.module:
            latents = self.manifold.to(images).encode(images)
        return (self.sign * latents.flatten(1)[:, self.index : self.index + 1]).clamp(*self.range)


Attributes = Sequence[Attribute | Callable[[Tensor], Tensor]]


def measure(
    attributes: Attributes, images: Tensor, latents: Tensor | None = None, manifold: Manifold | None = None
) -> Tensor:
    """All attributes beside each other: (N, A), or (N, 0) where there are none; see `Attribute.measure`."""
    columns = [_attribute(each).measure(images, latents, manifold) for each in attributes]
    return torch.cat(columns, 1) if columns else images.new_zeros(len(images), 0)


def described(
    attributes: Attributes, image: Tensor, latent: Tensor | None = None, manifold: Manifold | None = None
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and thresholds of all attributes, numbered where they have none; learnt from one image, (1, C, H, W)."""
    names, thresholds = list[str](), list[float]()
    for each in map(_attribute, attributes):
        count = each.measure(image, latent, manifold).shape[1]
        names += each.names or [f"attribute {len(names) + k}" for k in range(count)]
        given = each.thresholds
        thresholds += list(given) if isinstance(given, tuple) else [given] * count
    return tuple(names), tuple(thresholds)


def _attribute(given: Any) -> Attribute:
    if isinstance(given, Attribute):
        return given
    if not callable(given):
        raise InputError(f"an attribute function is a callable or an Attribute, not {type_name(given)}")
    return Attribute(given, module=given if isinstance(given, nn.Module) else None)


# --------------------------------------------------------------------------------------------- coordinates with names
def named(
    manifold: Manifold,
    effects: Mapping[str, Effect],
    words: Mapping[str, str],
    least: float = 0.6,
    most: int = 3,
) -> tuple[LatentCoordinate, ...]:
    """Attribute functions of the coordinates whose effect has been measured.

    A coordinate is named after the concept that it moves most strongly, and only if it moves that one steadily (see
    `least`) and by at least a tenth of a standard deviation per unit. No attribute may fall, so naming both directions
    of one concept would hold its coordinates still.

    Args:
        manifold: The manifold.
        effects: What was measured of it.
        words: What more of a concept is called, or less of it if "-" stands before its name, e.g. {"size": "larger",
            "-roundness": "longer"}. Concepts that are not named count all the same: a coordinate that moves one of them
            more is not named after another.
        least: Correlation from which on a coordinate is said to move the concept.
        most: How many coordinates a concept may have, the strongest first.

    Raises:
        InputError: If a concept was not measured.
    """
    found: list[LatentCoordinate] = []
    for worded, word in words.items():
        if (concept := worded.removeprefix("-")) not in effects:
            raise InputError(unknown("concept", concept, effects))
        strengths = torch.stack([each.strength.nan_to_num(0).abs() for each in effects.values()])
        own = strengths.argmax(0)  # (L,): which concept each coordinate moves most
        row, effect = list(effects).index(concept), effects[concept]
        steady = (effect.correlation.abs() >= least) & (effect.correlation * effect.strength > 0)
        mine = (own == row) & steady & (strengths[row] >= _FELT)
        ranked = strengths[row].masked_fill(~mine, -1).argsort(descending=True, stable=True)
        for index in ranked[: min(most, int(mine.sum()))].tolist():
            steadiness, strength = effect.correlation[index], effect.strength[index]
            moves = f"{steadiness:+.2f} correlation with {concept}, {strength:+.2f} standard deviations per unit"
            evidence, sign = f"z{index}: {moves}", 1 if (strength > 0) != worded.startswith("-") else -1
            found.append(LatentCoordinate(manifold=manifold, index=index, sign=sign, names=(word,), evidence=evidence))
    return tuple(found)


def worded(model: Model, manifold: Manifold) -> tuple[LatentCoordinate, ...]:
    """The attribute functions for which a zoo model has words, and whose effect the manifold's weights tell.

    Args:
        model: The model; one that is not of the zoo has no words.
        manifold: The manifold.
    """
    from ratherthan.zoo import registry as zoo

    entry = zoo.entry_of(model.name)
    words = {} if entry is None else entry.words
    known = {concept: word for concept, word in words.items() if concept.removeprefix("-") in manifold.effects}
    return named(manifold, manifold.effects, known)
