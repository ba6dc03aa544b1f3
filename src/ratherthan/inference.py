"""Run a network in evaluation mode and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, first_line

Movable = TypeVar("Movable", nn.Module, Tensor)


@contextmanager
def preserve_state(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and leave nothing behind, whether the block returns or raises.

    Every submodule gets its own `training` flag back, the random number generators their state. Hooks are removed where
    they are set; gradients are only ever taken by `torch.autograd.grad`, so no `.grad` appears. Works under
    `torch.inference_mode` too.
    """
    training = [(each, each.training) for each in module.modules()]
    devices = [p.device for p in module.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
        try:
            # not .eval(): some networks override it, and each submodule's own flag must come back
            for each, _ in training:
                each.training = False
            yield
        finally:
            for each, flag in training:
                each.training = flag


def to_device(thing: Movable, device: str | torch.device) -> Movable:
    """Move a module or a tensor.

    Raises:
        InputError: If there is no such device here.
    """
    try:
        return thing.to(device)
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without CUDA
        raise InputError(f"device {str(device)!r} cannot be used here: {first_line(error)}") from error
