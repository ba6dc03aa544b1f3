"""What a network says: one object turns what the module returns into scores (N, K) and knows what they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ratherthan.errors import ModelError
from ratherthan.registry import Classes
from ratherthan.settings import Settings


class Output(Settings, ABC):
    """How scores are read from what a module returns, and what they mean.

    Attributes:
        of_classes: Whether the scores are logits of K classes; if not, one value per sample.
    """

    of_classes: ClassVar[bool] = True

    def scores(self, returned: Any, samples: int, who: str) -> Tensor:
        """The tensor in what a module returned, (N, K), unchanged.

        Args:
            returned: A tensor, or an object whose `logits` are one.
            samples: N.
            who: The model's name, for messages.

        Raises:
            ModelError: If there is no such tensor.
        """
        found = getattr(returned, "logits", returned)
        if not isinstance(found, Tensor):
            what = f"a {type(returned).__name__}"
            raise ModelError(f"{who} returns {what}: wrap it in a module that returns the logits, (N, classes)")
        if found.ndim != 2 or len(found) != samples:
            shape = tuple(found.shape)
            raise ModelError(f"{who} returns shape {shape} for {samples} samples; ({samples}, classes) is needed")
        return found

    @abstractmethod
    def logits(self, scores: Tensor, who: str) -> Tensor:
        """The scores as logits, (N, K); (N, 2) for the single score of a sigmoid classifier, its halves of both signs.

        Raises:
            ModelError: If they are not what this output promises.
        """

    def check(self, logits: Tensor) -> None:
        """Refuse logits that show that the network gives something else.

        Raises:
            ModelError: If so.
        """


OUTPUTS: Classes[Output] = Classes("output", Output, "Logits()")


@OUTPUTS.register
class Logits(Output):
    """Logits of K classes; a single one is the log-odds of a sigmoid classifier."""

    name = "logits"

    def logits(self, scores: Tensor, who: str) -> Tensor:
        """The scores themselves, or -y/2 and y/2, whose difference is the log-odds y."""
        return _both_sides(scores)

    def check(self, logits: Tensor) -> None:
        """Refuse rows that are probabilities: all at least 0, of sum 1.

        Raises:
            ModelError: If they are.
        """
        if logits.shape[1] > 1 and (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-4).all():
            raise ModelError("the model returns probabilities: hand in its logits, or give output='probabilities'")


@OUTPUTS.register
class Probabilities(Output):
    """Probabilities of K classes, whose logarithm serves as logits; a single one is that of class 1."""

    name = "probabilities"

    def logits(self, scores: Tensor, who: str) -> Tensor:
        """Log p; for a single p, its log-odds."""
        if scores.min() < 0 or scores.max() > 1.001:
            raise ModelError(f"{who} should return probabilities, but they are not all in [0, 1]: are they logits?")
        if scores.shape[1] == 1:
            return _both_sides(torch.logit(scores, torch.finfo(scores.dtype).eps))
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


@OUTPUTS.register
class Value(Output):
    """One number per sample: a regressor."""

    name = "value"
    of_classes = False

    def scores(self, returned: Any, samples: int, who: str) -> Tensor:
        """(N, 1); a module may return (N,).

        Raises:
            ModelError: If it returns more than one number per sample.
        """
        flat = isinstance(returned, Tensor) and returned.ndim == 1
        found = super().scores(returned.unsqueeze(1) if flat else returned, samples, who)
        if found.shape[1] != 1:
            shape = tuple(found.shape)
            raise ModelError(f"{who} returns shape {shape} for {samples} samples; ({samples}, 1) is needed")
        return found

    def logits(self, scores: Tensor, who: str) -> Tensor:
        """The value."""
        return scores


def _both_sides(scores: Tensor) -> Tensor:
    return torch.cat([-scores / 2, scores / 2], 1) if scores.shape[1] == 1 else scores
