"""A small run whose data may kill those who read them. Workers import this file: it imports no more than they need."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import ArrayReader, Dataset
from ratherthan.data.images import CorruptImage


def network() -> rt.Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    return rt.Model(module, layer="1", preprocessing="none")


@dataclass(frozen=True)
class Deadly(ArrayReader):
    """Ends the process that reads image 9, but only the first; image 4 is damaged. Who reads leaves a file."""

    died: Path = Path()

    def read(self, index: int) -> Tensor:
        if index == 4:
            raise CorruptImage("s4: damaged image")
        if self.died.name:
            (self.died.parent / str(os.getpid())).touch()
        if index == 9 and self.died.name == "once" and not self.died.exists():
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def noise(died: Path = Path(), count: int = 16) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    names = tuple(f"s{i}" for i in range(count))
    return Dataset("noise", tuple("abcd"), names, (0, 1, 2, 3) * (count // 4), Deadly(pixels, died))


OPTIONS: dict[str, Any] = {"methods": ["gradcam", rt.SmoothGrad(2)], "shard_size": 2, "steps": 3}


def go(out: Path, data: Dataset, **more: Any) -> rt.Run:
    return rt.evaluate("deletion", network(), data, out=out, **{**OPTIONS, **more})
