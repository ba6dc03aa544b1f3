"""What every attribution method is, and the names they are registered under."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.contrast import Target
from ratherthan.registry import Classes
from ratherthan.settings import Settings


@dataclass(frozen=True)
class Attribution:
    """What a method found.

    Attributes:
        values: (N, Q, h, w) at layer resolution, or (N, Q, C, H, W) for methods that explain the images; with another
            number of axes behind N, Q and C where the inputs have another number of them.
        layer: Dotted name of the layer explained, or None for the images.
        diagnostics: Figures about the computation that belong in the result, by name; tensors of shape (N, Q) or text.
    """

    values: Tensor
    layer: str | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)


class Method(Settings, ABC):
    """A way to attribute a contrast to the parts of an input.

    A subclass is a frozen dataclass whose fields are its settings, with a `name` and `attribute`. `prepare` makes the
    forward pass that `attribute` will use, so that the question can be resolved from the same one.

    Attributes:
        linear: Whether the map is linear in the seed, the contrast's derivative. Only then are maps of classes added
            up instead of pulling back every seed.
    """

    linear: ClassVar[bool] = False

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Make the forward pass this method needs, if it is a recorded one."""

    @abstractmethod
    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """Signed, raw relevance for every question.

        Args:
            forward_pass: Model and images, (N, C, H, W).
            target: What is asked; its seeds are (N, Q, classes).

        Returns:
            The maps, unnormalised and not rectified.
        """


METHODS: Classes[Method] = Classes("method", Method, "GradCAM()")

register_method = METHODS.register
get_method = METHODS.make
methods = METHODS.names
