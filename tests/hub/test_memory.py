"""Explaining again and again does not fill the memory.

Run as a program, this file calls the verbs that it is told, and prints by how many bytes the process grew.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ratherthan as rt
from turns import of_today

CALLS, FIRST, LIMIT = 250, 20, 3 * 2**20
LEAK = "what leaks 16 KiB"


class Tiny(nn.Module):
    """Three classes of 8 x 8 grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def verbs(folder: Path) -> dict[str, Callable[[], object]]:
    """What is called many times, by name."""
    torch.manual_seed(0)
    module, images = Tiny(), torch.rand(1, 1, 8, 8)
    model, numbers = rt.Model(module.eval(), ["a", "b", "c"], size=8), count()
    samples = torch.utils.data.TensorDataset(images, model.logits(images).argmax(1))
    quick: dict[str, Any] = {"binary_search_steps": 1, "iterations": 1, "preset": "reference"}  # one start only
    enough, absent = rt.CEMPositive(**quick), rt.CEM(**quick)
    kept: list[Tensor] = []

    def explained(method: str) -> Callable[[], object]:
        return lambda: rt.explain(model, images, foil="runner-up", method=method)

    def evaluated() -> object:
        return rt.evaluate(
            "mask", model, samples, out=folder / str(next(numbers)), methods=["gradcam"], contrasts=["none"]
        )

    return {
        **{f"explain {method}": explained(method) for method in ("gradcam", "la", "ixg", "occlusion", "lrp")},
        "explain a bare module": lambda: rt.explain(module, images, foil="runner-up"),
        "explain a new module": lambda: rt.explain(Tiny(), images, foil="runner-up"),
        "compare": lambda: rt.compare(model, images, foil="each", contrasts=["none", "weighted"]),
        "counterfactual": lambda: rt.counterfactual(model, images, method=absent),
        "pertinent_positive": lambda: rt.pertinent_positive(model, images, method=enough),
        "complete": lambda: rt.complete(model, images, positive=enough, negative=absent),
        "evaluate": evaluated,
        LEAK: lambda: kept.append(torch.ones(4096)),
    }


def resident() -> int:
    """Bytes of memory that this process holds now.

    What was freed is first given back to the system: a leak that fills holes left by earlier calls shows as well.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def grown(call: Callable[[], object]) -> int:
    """By how many bytes the process grows over many calls, the first left out."""
    for _ in range(FIRST):
        call()
    before = resident()
    for _ in range(CALLS - FIRST):
        call()
    return resident() - before


def test_many_calls_of_a_verb_do_not_fill_the_memory(tmp_path: Path) -> None:
    names = [*of_today([name for name in verbs(tmp_path) if name != LEAK], 2), LEAK]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__, *names], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    growth: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    assert list(growth) == names
    assert growth.pop(LEAK) > LIMIT  # or nothing would be noticed
    assert {verb: by for verb, by in growth.items() if by >= LIMIT} == {}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        called = verbs(Path(scratch))
        print(json.dumps({name: grown(called[name]) for name in sys.argv[1:]}))
