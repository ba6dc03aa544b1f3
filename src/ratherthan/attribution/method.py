"""What every attribution method is, and the names they are registered under."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.contrast import Target
from ratherthan.registry import Classes


@dataclass(frozen=True)
class Attribution:
    """What a method found.

    Attributes:
        values: (N, Q, h, w) at layer resolution, or (N, Q, C, H, W) for methods that explain the images.
        layer: Dotted name of the layer explained, or None for the images.
        diagnostics: Figures about the computation that belong in the result, by name; tensors of shape (N, Q) or text.
    """

    values: Tensor
    layer: str | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)


class Method(ABC):
    """A way to attribute a contrast to the parts of an input.

    A subclass is a dataclass whose fields are its settings, with a `name` and `attribute`. `prepare` makes the forward
    pass that `attribute` will use, so that the question can be resolved from the same one.
    """

    name: ClassVar[str]

    def prepare(self, forward_pass: ForwardPass) -> None:  # noqa: B027 (optional on purpose)
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

    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


_METHODS: Classes[Method] = Classes("method", Method, "GradCAM()")
register_method = _METHODS.register
get_method = _METHODS.make


def methods() -> list[str]:
    """The registered names."""
    return list(_METHODS)
