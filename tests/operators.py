"""Lets torchvision be imported where its compiled operators do not fit the installed torch.

Its import looks two operator schemas up; declared by hand they are found, and no test here calls them. Where the
compiled operators do load, they are the ones that are used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def _operators() -> torch.library.Library | None:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    try:
        for compiled in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(compiled)
            return None
    except OSError:
        pass
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_OPERATORS = _operators()  # kept alive: the schemas vanish with it
