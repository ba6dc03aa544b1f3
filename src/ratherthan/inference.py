"""Run a network in evaluation mode and leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, ModelError, first_line

Movable = TypeVar("Movable", nn.Module, Tensor)

# which thread runs a module, which modules a thread waits for, and the forward passes of threads; while nothing runs, all
# are empty
_FREED = threading.Condition()
_RUN_BY: dict[nn.Module, int] = {}
_WANTS: dict[int, list[nn.Module]] = {}
_PASSES: set[tuple[int, int]] = set()


@contextmanager
def preserve_state(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and leave nothing behind, whether the block returns or raises.

    Every submodule gets its own `training` flag back, the random number generators their state, and modules that do
    work when the mode changes (they override `train`) what they keep. Hooks are removed where they are set; gradients
    are only ever taken by `torch.autograd.grad`, so no `.grad` appears. Works under `torch.inference_mode` too.

    Another thread that wants the same module, or one that shares a part with it, waits until the block is left. What a
    thread does with the module outside of such a block (training, predicting) is not held up.

    Raises:
        InputError: If two threads wait for each other's modules.
    """
    with _claimed(list(module.modules())):
        # a frozen TorchScript module has no such flag
        training = [(each, each.training) for each in module.modules() if hasattr(each, "training")]
        working = [(each, _attributes(each)) for each in module.modules() if type(each).train is not nn.Module.train]
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
                for each, before in working:
                    _put_back(vars(each), before)


_OF_EVERY_MODULE = vars(nn.Module()).keys()


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """What a module keeps beside parameters, buffers and hooks; of a dictionary, e.g. a cache, what is in it too."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in own.items()}


def _put_back(own: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in own.keys() - before.keys() - _OF_EVERY_MODULE:
        del own[name]
    for name, (value, entries) in before.items():
        own[name] = value
        if entries is not None:
            value.clear()
            value.update(entries)


@contextmanager
def _claimed(modules: list[nn.Module]) -> Iterator[None]:
    """Run modules in this thread alone: all of them at once, so that those who share some cannot block each other."""
    me, mine = threading.get_ident(), list[nn.Module]()
    try:
        with _FREED:
            _WANTS[me] = modules
            while _holders(me):
                if _blocked(me):
                    raise InputError("two threads wait for each other's networks, each explaining one inside the other: let one do both")
                _FREED.wait()
            del _WANTS[me]
            mine += [each for each in modules if each not in _RUN_BY]
            _RUN_BY.update(dict.fromkeys(mine, me))
        yield
    finally:
        with _FREED:
            _WANTS.pop(me, None)
            for each in mine:
                del _RUN_BY[each]
            _FREED.notify_all()


def _holders(thread: int) -> set[int]:
    """The threads that run what a thread waits for."""
    return {_RUN_BY.get(each, thread) for each in _WANTS.get(thread, ())} - {thread}


def _blocked(me: int) -> bool:
    """Whether one of those that a thread waits for waits for it in turn."""
    seen, left = set[int](), [me]
    while left:
        found = _holders(left.pop()) - seen
        seen |= found
        left += found
    return me in seen


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


def no_way_back(error: RuntimeError) -> ModelError:
    """What to say where PyTorch cannot go back through a network."""
    hint = "; give torch.utils.checkpoint use_reentrant=False" * ("use_reentrant" in str(error))
    return ModelError(f"no gradient can be taken: {first_line(error)}{hint}")


def to_device(thing: Movable, device: str | torch.device) -> Movable:
    """Move a module or a tensor.

    Raises:
        InputError: If there is no such device here.
    """
    try:
        if torch.device(device).type == "meta":
            raise InputError("device 'meta' holds no numbers: use cpu, or cuda where there is one")
        return thing.to(device)
    # an assertion where torch was built without CUDA, an import error for a device that a package would bring
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here: {first_line(error)}") from error
