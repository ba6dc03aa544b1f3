"""Arrays of any finite numbers: volumes and video, signals, rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.baselines import baseline_images
from ratherthan.errors import InputError, told_as
from ratherthan.inputs.method import Inputs, row_of_numbers, scaled, told_scale


@dataclass(frozen=True)
class Arrays(Inputs):
    """Arrays (N, C, ...) of any finite numbers, handed in as tensors or arrays; a single one without N.

    Attributes:
        mean: What is subtracted before the network sees them, one number or one per channel; None: nothing.
        std: What they are divided by then.
    """

    axes: ClassVar[str]
    """Of a batch, in letters."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: If one does not fit.
        """
        for key in ("mean", "std"):  # a number, a list or an array becomes a tuple
            if (value := getattr(self, key)) is not None:
                object.__setattr__(self, key, row_of_numbers(f"{key} of {self.name}", value))
        super().__post_init__()
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std must be positive, not {self.std}")

    def prepare(self, raw: Any) -> Tensor:
        """One, (C, ...), as a tensor of floating-point numbers.

        Raises:
            InputError: If it is no tensor or array of numbers.
        """
        if not isinstance(raw, Tensor) and not hasattr(raw, "__array__"):
            raise InputError(f"{self.name} are tensors or arrays ({self.axes}), not {type(raw).__name__}")
        with told_as(InputError, f"{self.name} are arrays of numbers", TypeError, ValueError):
            made = raw.detach() if isinstance(raw, Tensor) else torch.from_numpy(np.array(raw))
        if made.is_meta or made.is_quantized or made.layout != torch.strided or made.is_complex():
            raise InputError(f"{self.name} are dense real numbers, not {made.dtype} {made.device.type}")
        return made if made.is_floating_point() else made.double()

    def check(self, batch: Tensor) -> Tensor:
        """A batch, or a single one, as a batch.

        Raises:
            InputError: If its shape does not fit, or a number is not finite.
        """
        axes, rows = self.axes.split(", "), self.prepare(batch)
        rows = rows.unsqueeze(0) if rows.ndim == len(axes) - 1 else rows
        if rows.ndim != len(axes) or not rows.numel():
            what = f"{self.name} of shape {tuple(batch.shape)}: ({self.axes}) with N >= 1 is needed"
            raise InputError(f"{what}, or one of them, ({', '.join(axes[1:])})")
        if not rows.isfinite().all():
            raise InputError(f"the {self.name} hold NaN or infinite values: fill them in first")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, rows.shape[1]):
                raise InputError(f"{key} has {len(values)} values for {self.name} of shape {tuple(rows.shape)}")
        return rows

    def batch(self, raw: Any) -> Tensor:
        """A tensor, an array, or a list of either, as one batch.

        Raises:
            InputError: If nothing is given, or the parts do not fit together.
        """
        return super().batch(
            [self.prepare(each) for each in raw] if isinstance(raw, (list, tuple)) else self.prepare(raw)
        )

    def normalise(self, batch: Tensor) -> Tensor:
        """(batch - mean) / std, per channel."""
        return scaled(batch, self.mean, self.std, batch.ndim - 2)

    def describe(self) -> str:
        """Mean and std, in words."""
        return told_scale(self.mean, self.std) or "as it is"

    def nothing(self, module: nn.Module, baseline: Any, leaf: Tensor) -> Tensor:
        """What stands for nothing: see `baseline_images`; None: the mean of each channel.

        Raises:
            InputError: If the baseline is none of this kind.
        """
        return baseline_images(leaf, "mean" if baseline is None else baseline, model_mean=self.mean)


@dataclass(frozen=True)
class Volumes(Arrays):
    """Volumes, or video, (N, C, D, H, W): slices (or frames) of rows and columns; any finite numbers."""

    name: ClassVar[str] = "volumes"
    one: ClassVar[str] = "volume"
    axes: ClassVar[str] = "N, C, D, H, W"


@dataclass(frozen=True)
class Signals(Arrays):
    """Signals (N, C, T), as of an electrocardiogram or a sound: channels of time steps; any finite numbers."""

    name: ClassVar[str] = "signals"
    one: ClassVar[str] = "signal"
    axes: ClassVar[str] = "N, C, T"


@dataclass(frozen=True)
class Table(Arrays):
    """Rows of a table (N, F), any finite numbers; mean and std may have a number for each column.

    Attributes:
        columns: What the F columns are called; None: by their numbers.
    """

    name: ClassVar[str] = "rows of a table"
    one: ClassVar[str] = "row"
    axes: ClassVar[str] = "N, F"
    columns: tuple[str, ...] | None = None

    def check(self, batch: Tensor) -> Tensor:
        """Rows (N, F), or one, (F,), as a batch.

        Raises:
            InputError: If its shape does not fit, or a number is not finite.
        """
        rows = super().check(batch)
        if self.columns is not None and len(self.columns) != rows.shape[1]:
            raise InputError(f"{len(self.columns)} names for {rows.shape[1]} columns")
        return rows

    def read(self, batch: Tensor) -> tuple[tuple[str, ...], ...]:
        """Name and value of each column; each begins with a space, as words do."""
        names: Sequence[str] = self.columns or [f"column {i}" for i in range(batch.shape[1])]
        return tuple(
            tuple(f" {name} = {value:.6g}" for name, value in zip(names, row, strict=True)) for row in batch.tolist()
        )

    def parts(self, batch: Tensor) -> Tensor:
        """Each column by itself."""
        return torch.arange(batch.shape[1], device=batch.device).expand(len(batch), -1)

    def nothing(self, module: nn.Module, baseline: Any, leaf: Tensor) -> Tensor:
        """What stands for nothing: see `baseline_images`; None: the mean that the model subtracts, or 0.

        Raises:
            InputError: If the baseline is none of this kind.
        """
        return super().nothing(module, "model-mean" if baseline is None else baseline, leaf)
