"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are so small that threads only wait for each other

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; tests that need it are skipped where it is not at hand."""
    root = os.environ.get("RATHERTHAN_DATA")
    if not root:
        pytest.skip("RATHERTHAN_DATA is not set: it names the folder that holds mnist/, squeezenet/, ...")
    return Path(root)
