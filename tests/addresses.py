"""What a network computes at an address, found without the code under test: the reference of tests about layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _Calls(TorchFunctionMode):
    def __init__(self, module: str, function: str, number: int, hand_on: Callable[[Any], Any]) -> None:
        super().__init__()
        self.module, self.function, self.number, self.hand_on = module, function, number, hand_on
        self.running: list[str] = []
        self.made = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.running and self.running[-1] == self.module and func.__name__.strip("_") == self.function:
            self.made += 1
            return self.hand_on(output) if self.made == self.number else output
        return output


@contextmanager
def at(network: nn.Module, address: str, hand_on: Callable[[Any], Any]) -> Iterator[None]:
    """Hand on something else for what is computed at an address, for example the same, after a look at it."""
    name, _, number = address.partition("#")
    wanted, counts = int(number or 1), Counter[str]()
    module, function = (
        (name, "") if not name.endswith("()") else (name.rpartition(".")[0], name.rpartition(".")[2][:-2])
    )
    calls = _Calls(module, function, wanted, hand_on)

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: calls.running.append(path)

    def leave(path: str) -> Callable[..., Any]:
        def hook(_: nn.Module, inputs: object, output: Any) -> Any:
            calls.running.pop()
            counts[path] += 1
            return hand_on(output) if not function and path == module and counts[path] == wanted else None

        return hook

    with ExitStack() as stack:
        for path, each in network.named_modules():
            stack.enter_context(each.register_forward_pre_hook(enter(path)))
            stack.enter_context(each.register_forward_hook(leave(path)))
        stack.enter_context(calls)
        yield


def kept(network: nn.Module, address: str, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What a network computes at an address, and what `run` returns; in-place operations further up change neither."""
    found: list[Tensor] = []

    def keep(output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        found.append(first)
        return (first.clone(), *output[1:]) if isinstance(output, tuple) else first.clone()

    with at(network, address, keep):
        result = run()
    (only,) = found
    return only, result
