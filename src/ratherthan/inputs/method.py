"""What every kind of input knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.baselines import baseline_images
from ratherthan.errors import InputError, told_as
from ratherthan.settings import Settings


class Inputs(Settings, ABC):
    """How raw things become the tensors that a user hands in and gets back, and these what the network sees.

    Attributes:
        name: What several are called.
        one: What one is called.
        show: The channels that are drawn, where not all are.
    """

    one: ClassVar[str] = "image"
    show: tuple[int, ...] | None = None
    remedy: ClassVar[str] = "ask one at a time"
    """What to do about different sizes."""

    @abstractmethod
    def prepare(self, raw: Any) -> Tensor:
        """One raw thing, (...) as the network's batches hold it.

        Raises:
            InputError: If it is none of this kind.
        """

    @abstractmethod
    def check(self, batch: Tensor) -> Tensor:
        """A batch (N, ...) that was handed in as a tensor, or a single one of its rows, as a batch.

        Raises:
            InputError: If it cannot be one.
        """

    @abstractmethod
    def normalise(self, batch: Tensor) -> Tensor:
        """A batch as the network sees it."""

    def leaf(self, module: nn.Module, batch: Tensor) -> Tensor:
        """What gradients are taken of and methods alter: a batch itself, or what stands for it inside the network."""
        return batch

    def read(self, batch: Tensor) -> tuple[tuple[str, ...], ...]:
        """What the positions of each of a batch read, where they read anything."""
        return ()

    def parts(self, batch: Tensor) -> Tensor | None:
        """The part that each position belongs to, (N, ...) from 0, where the kind has parts of its own, as words."""
        return None

    def nothing(self, module: nn.Module, baseline: Any, leaf: Tensor) -> Tensor:
        """What stands in a leaf (N, ...) where a part is taken away; None: what is usual for the kind.

        Raises:
            InputError: If the baseline is none of this kind.
        """
        return baseline_images(leaf, "mean" if baseline is None else baseline)

    def map_of(self, values: Tensor) -> Tensor:
        """Relevance of a leaf, (N, Q, ...), as it is shown."""
        return values

    def run(self, module: nn.Module, call: Callable[[Tensor], Any], seen: Tensor) -> Any:
        """Run the network, by `call`, on a batch as it sees it or on its leaf."""
        return call(seen)

    def describe(self) -> str:
        """How raw things become what the network sees, in words; empty where there is nothing to say."""
        return ""

    def doubt(self, batch: Tensor) -> str:
        """What of a batch may be why the network fails on it, as the end of a message; mostly nothing."""
        return ""

    def batch(self, raw: Any) -> Tensor:
        """Anything that can be handed in, as one batch: a tensor, one raw thing, or a list of either.

        Raises:
            InputError: If nothing is given, or the parts do not fit together.
        """
        if isinstance(raw, Tensor):
            return self.check(raw)
        given = raw if isinstance(raw, (list, tuple)) else [raw]
        if not given:
            raise InputError(f"no {self.name} were given")
        parts = [self.check(each if isinstance(each, Tensor) else self.prepare(each).unsqueeze(0)) for each in given]
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise InputError(f"{self.name} of different sizes {sorted(shapes)}: {self.remedy}")
        return torch.cat(parts)


def row_of_numbers(what: str, given: Any) -> tuple[float, ...]:
    """A number, a list or an array as a tuple.

    Raises:
        InputError: If it is none of these.
    """
    with told_as(InputError, f"{what} is no row of numbers", ValueError):  # of unequal lists
        return tuple(np.ravel(given).tolist())


def scaled(batch: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, axes: int) -> Tensor:
    """(batch - mean) / std, one or per channel, which so many axes follow."""
    per_channel = (-1, *[1] * axes)
    batch = batch if mean is None else batch - batch.new_tensor(mean).view(per_channel)
    return batch if std is None else batch / batch.new_tensor(std).view(per_channel)


def told_scale(mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    """Mean and std in words; empty where there is neither."""
    rows = (("mean", mean), ("std", std))
    return ", ".join(f"{key} {' '.join(f'{value:.4g}' for value in row)}" for key, row in rows if row)
