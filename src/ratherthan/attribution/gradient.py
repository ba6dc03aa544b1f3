"""Methods that pull a contrast back to the images by plain gradients."""

from __future__ import annotations

from dataclasses import dataclass

from ratherthan.attribution.method import Maps, Method, register_method
from ratherthan.attribution.pullback import Subject
from ratherthan.contrast import Ask


@register_method
@dataclass(frozen=True)
class Gradient(Method):
    """The gradient of the contrast with respect to the image (Simonyan et al. 2013): local sensitivity, signed."""

    name = "gradient"

    def prepare(self, subject: Subject) -> None:
        """Record from the images upward."""
        subject.record(None)

    def attribute(self, subject: Subject, ask: Ask) -> Maps:
        """(N, Q, C, H, W): d contrast / d image."""
        return Maps(subject.record(None).pull_all(ask.seeds))


@register_method
@dataclass(frozen=True)
class InputXGradient(Method):
    """The image times the gradient of the contrast (Shrikumar et al. 2016), in image space."""

    name = "ixg"

    def prepare(self, subject: Subject) -> None:
        """Record from the images upward."""
        subject.record(None)

    def attribute(self, subject: Subject, ask: Ask) -> Maps:
        """(N, Q, C, H, W): x * d contrast / dx."""
        return Maps(subject.images.unsqueeze(1) * subject.record(None).pull_all(ask.seeds))
