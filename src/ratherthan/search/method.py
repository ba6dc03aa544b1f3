"""What every counterfactual method is, what it answers, and the names they are registered under."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ratherthan.model import Model
from ratherthan.registry import Classes
from ratherthan.search.manifold import Inverted
from ratherthan.search.solver import Status
from ratherthan.settings import fields_to_jsonable

if TYPE_CHECKING:
    from typing import Self

FRAMES = 16
"""Points of a path that are kept, the image and the answer among them."""

Report = Callable[[int, int], None]
"""Told (searches done, searches in all) now and then."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Answers:
    """What a search found for K questions about N images, those of an image beside each other; R answers, best first.

    Attributes:
        status: K lists of R: how each search ended.
        reason: The same in words.
        examples: (K, R, C, H, W) in [0, 1]; where none was found, the nearest miss.
        logits: (K, R, classes) of the examples, from a fresh pass.
        distance: (K, R): how far, in the measure that the method minimises.
        violation: (K, R): by how much the worst constraint is missed, in logits; 0 where none is.
        path: (K, FRAMES, C, H, W): from the image to the best answer.
        path_logits: (K, FRAMES, classes).
        interrupted: Whether Ctrl-C ended it.
        evaluations: Images that the network looked at.
        inverted: Where the N images lie on the manifold, if there is one.
        latents: (K, R, ...) of the examples.
        attributes_before: (N, A) attributes of the images.
        attributes: (K, R, A) attributes of the examples.
        attribute_names: Names of the A attributes.
        attribute_thresholds: From which increase on each counts as added; empty: 0.1 for all.
    """

    status: list[list[Status]]
    reason: list[list[str]]
    examples: Tensor
    logits: Tensor
    distance: Tensor
    violation: Tensor
    path: Tensor
    path_logits: Tensor
    interrupted: bool = False
    evaluations: int = 0
    inverted: Inverted | None = None
    latents: Tensor | None = None
    attributes_before: Tensor | None = None
    attributes: Tensor | None = None
    attribute_names: tuple[str, ...] = ()
    attribute_thresholds: tuple[float, ...] = ()


class CounterfactualMethod(ABC):
    """A way to find what would have to change. A subclass is a frozen dataclass whose fields are its settings.

    Attributes:
        name: What it is registered under.
        default_foil: The foil where none is asked for.
        any_foil: Whether it takes -1 for a foil: any class but the fact.
    """

    name: ClassVar[str]
    default_foil: ClassVar[Any] = "runner-up"
    any_foil: ClassVar[bool] = False

    @property
    def restarts(self) -> int:
        """Answers to each question, R."""
        return 1

    def prepared(self, model: Model) -> Self:
        """The method with what it lacks filled in from the model, e.g. the manifold that a zoo model names."""
        return self

    def check(self, model: Model, images: Tensor) -> None:  # noqa: B027 (optional on purpose)
        """Refuse a model or images, (N, C, H, W), that it cannot work on, before any search begins.

        Raises:
            RatherThanError: If so.
        """

    @abstractmethod
    def answer(
        self,
        model: Model,
        images: Tensor,
        fact: Tensor,
        foil: Tensor,
        samples: Sequence[int],
        report: Report | None = None,
    ) -> Answers:
        """Search for all foils of all images at once.

        Args:
            model: The network.
            images: (N, C, H, W) in image space.
            fact: (N, Q) class indices.
            foil: (N, Q) class indices, -1 for any other class; where it is the fact there is nothing to search.
            samples: (N) numbers of the images, which random numbers depend on.
            report: Told how far it is.

        Returns:
            The answers to K = N Q questions.
        """

    def settings(self) -> dict[str, Any]:
        """The settings by name, fit to be written down."""
        return fields_to_jsonable(self)


_METHODS: Classes[CounterfactualMethod] = Classes("counterfactual method", CounterfactualMethod, "CDeepEx(manifold)")
register_counterfactual_method = _METHODS.register
get_counterfactual_method = _METHODS.make


def counterfactual_methods() -> list[str]:
    """The registered names."""
    return list(_METHODS)
