"""Run a network in evaluation mode and leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ratherthan.errors import InputError, ModelError, told_as

Movable = TypeVar("Movable", nn.Module, Tensor)

# which thread runs a module, which one another waits for, and which forward passes are going on; empty while none is
_FREED = threading.Condition()
_RUN_BY: dict[nn.Module, int] = {}
_WAITS_FOR: dict[int, int] = {}
_PASSES: set[tuple[int, int]] = set()


@contextmanager
def preserve_state(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and leave nothing behind, whether the block returns or raises.

    Every submodule gets its own `training` flag back, and the random number generators their state. So do the caches of
    modules that do work where the mode is set (they override `train`), for that is not called. Hooks are removed where
    they are set; gradients are only ever taken by `torch.autograd.grad`, so no `.grad` appears. Works under
    `torch.inference_mode` too.

    Another thread that wants the same module, or one that shares a part with it, waits until the block is left. What a
    thread does with the module outside of such a block (training, predicting) is not held up.

    Raises:
        InputError: If two threads wait for each other's modules.
    """
    modules = list(module.modules())
    with _claimed(modules):
        # a frozen TorchScript module has no such flag
        training = [(each, each.training) for each in modules if hasattr(each, "training")]
        working = (each for each in modules if type(each).train is not nn.Module.train)
        caches = [(kept, dict(kept)) for each in working for kept in vars(each).values() if type(kept) is dict]
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
                for kept, before in caches:
                    kept.clear()
                    kept.update(before)


@contextmanager
def _claimed(modules: list[nn.Module]) -> Iterator[None]:
    """Run modules in this thread alone: all of them at once, so that those who share some cannot block each other."""
    me, mine = threading.get_ident(), list[nn.Module]()
    try:
        with _FREED:
            while others := {_RUN_BY[each] for each in modules if _RUN_BY.get(each, me) != me}:
                _WAITS_FOR[me] = last = others.pop()
                while last in _WAITS_FOR:
                    if (last := _WAITS_FOR[last]) == me:
                        raise InputError("two threads wait for each other's networks: explain both in one thread")
                _FREED.wait()
            mine += [each for each in modules if each not in _RUN_BY]
            _RUN_BY.update(dict.fromkeys(mine, me))
        yield
    finally:
        with _FREED:
            for each in mine:
                del _RUN_BY[each]
            _WAITS_FOR.clear()  # all look again
            _FREED.notify_all()


@contextmanager
def forward_of(module: nn.Module, who: str) -> Iterator[None]:
    """A forward pass, in which no other of the same module may begin, as a hook that explains would have it.

    Raises:
        ModelError: If one does.
    """
    key = threading.get_ident(), id(module)
    if key in _PASSES:
        raise ModelError(f"{who} is explained inside its own forward pass, by a hook: explain it when the pass is over")
    _PASSES.add(key)
    try:
        yield
    finally:
        _PASSES.remove(key)


class SingleNorms(TorchFunctionMode):
    """Batch and instance norm of a single sample, gone back through rightly.

    On CPUs, PyTorch 2.13 misreads the memory of one sample whose channels stand last, of the values as of their
    gradient: the gradient is silently a wrong one. Both are laid out plainly first.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if func.__name__ not in ("batch_norm", "instance_norm") or not args:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # nobody is to follow these questions
            single, laid_out = args[0].shape[0] == 1, args[0].is_contiguous()
        made = func(args[0].contiguous() if single and not laid_out else args[0], *args[1:], **kwargs)
        with torch._C.DisableTorchFunction():
            if single and made.requires_grad:
                made.register_hook(lambda gradient: None if gradient is None else gradient.contiguous())
        return made


def differentiable() -> AbstractContextManager[object]:
    """A forward pass that is gone back through where gradients are recorded; see `SingleNorms`."""
    return SingleNorms() if torch.is_grad_enabled() else nullcontext()


def to_device(thing: Movable, device: str | torch.device) -> Movable:
    """Move a module or a tensor.

    Raises:
        InputError: If there is no such device here.
    """
    # an assertion where torch was built without CUDA, an import error for a device that a package would bring
    missing = RuntimeError, AssertionError, ImportError, AttributeError
    with told_as(InputError, f"device {str(device)!r} cannot be used here", *missing):
        if torch.device(device).type == "meta":
            raise InputError("device 'meta' holds no numbers: use cpu, or cuda where there is one")
        return thing.to(device)
