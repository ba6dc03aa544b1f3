"""A forward pass written down: which operation made what, of what, and where in the network it stands.

Every value that depends on the images is a `Node`. Its address is what a user can call it by:

    layer4            what the module `layer4` gives, where it runs once
    act#17            what the module `act` gives when it runs for the 17th time
    features.relu()   what the function `relu`, called in the forward of the module `features`, gives
    relu()#2          what it gives when the forward of the network itself calls it for the second time
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ratherthan.attribution.operations import body_of

_IN_PLACE = ("iadd", "isub", "imul", "idiv", "itruediv", "ipow", "setitem")


class Address(NamedTuple):
    """Where a value is made: module, function if one called in its forward makes it, and the how manieth call."""

    module: str
    function: str = ""
    number: int = 1

    @staticmethod
    def read(text: str) -> Address:
        """Parse one; a part that is missing or no number is taken as it stands."""
        name, _, number = text.partition("#")
        module, _, function = name.rpartition(".") if name.endswith("()") else (name, "", "")
        return Address(module, function.removesuffix("()"), int(number) if number.isdecimal() else 0 if number else 1)


@dataclass(eq=False)
class Node:
    """A value that depends on the images.

    Attributes:
        index: Its place in the order of making.
        operation: What made it: the name of a function; "unseen" if nothing that can be watched did.
        call: Function, arguments and keywords; values that depend on the images are nodes in it.
        part: Which of the tensors the function returned.
        shape: Its shape.
        version: How often the tensor had been changed in place when this was written down.
        address: Where it is made; None: nowhere that could be named.
        tensor: The tensor, if tensors are kept.
    """

    index: int
    operation: str
    call: tuple[Any, tuple[Any, ...], dict[str, Any]]
    part: int
    shape: torch.Size
    version: int
    address: Address | None
    tensor: Tensor | None
    inputs: list[Node] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the nodes among the arguments."""
        self.inputs = [each for each in leaves(self.call[1:]) if isinstance(each, Node)]


class Trace(TorchFunctionMode):
    """Writes a forward pass down, while entered.

    Args:
        network: The network.
        leaf: (N, ...) the images, handed to it.
        keep: Whether nodes keep their tensors. Values that no watched function made (a function with a backward of its
            own, a scripted module) are then traced back through the autograd graph; else they are not seen.
        whole: Operations that are not taken apart, by name.
        cut: A module and, if it is one called in its forward, a function; what they give goes through `hand_on`.
        hand_on: Called with it; returns what the network goes on with.
    """

    def __init__(
        self, network: nn.Module, leaf: Tensor, keep: bool, whole: Any = (), cut: tuple[str, str] | None = None,
        hand_on: Callable[[Any], Any] = lambda output: output,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.keep, self.whole, self.cut, self.hand_on = network, keep, whole, cut, hand_on
        self.nodes: list[Node] = []
        self._of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._made_by: dict[Any, Node] = {}  # by node of the autograd graph
        self._running: list[tuple[str, int]] = []
        self._calls: Counter[tuple[str, str]] = Counter()
        self._open: list[Any] = []
        self._note(leaf, "images", (None, (), {}))

    @contextmanager
    def watching(self) -> Iterator[Trace]:
        """Enter it, with hooks that tell which module runs."""
        with ExitStack() as hooks:
            for name, module in self.network.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):  # takes no hook of this kind
                    hooks.enter_context(module.register_forward_pre_hook(self._enter(name)))
                    hooks.enter_context(module.register_forward_hook(self._leave(name)))
            hooks.enter_context(self)
            yield self

    def text(self, address: Address) -> str:
        """An address as it is written: with a number where there is more than one call to tell apart."""
        module, function, number = address
        name = ".".join(filter(None, [module, function and f"{function}()"]))
        several = number > 1 if function else self._calls[module, ""] > 1
        return f"{name}#{number}" if several else name

    def of(self, value: Any) -> Any:
        """The node of a tensor that depends on the images; all else as it is."""
        if not isinstance(value, Tensor):
            return value
        node = self._of.get(value)
        if node is None:
            node = self._unseen(value) if value.grad_fn is not None and self.keep else None
        elif node.version != value._version:  # changed through another view of the same memory
            base = self._of.get(value._base) if value._base is not None else None
            node = self._note(value, "alias", (None, (node, base) if base else (node,), {}))
        return value if node is None else node

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and write it down if it depends on the images."""
        kwargs = kwargs or {}
        name = func.__name__
        if name == "__get__":  # a property
            made = func(*args)
            if not isinstance(made, Tensor):
                return made
            name = func.__self__.__name__
        name = name.split(".")[0]  # exported programs call overloads, such as add.Tensor
        name, in_place = name.strip("_"), name.endswith("_") and name[0] != "_"
        where = self._running[-1][0] if self._running and not self._open else None
        if where is not None:
            self._calls[where, name] += 1
        hidden = where is None or (self.keep and not torch.is_grad_enabled())  # inside a function with its own backward
        address = None if hidden else Address(where or "", name, self._calls[where, name])
        made = self._run(func, args, kwargs, name, in_place, address)
        return self.hand_on(made) if where is not None and (where, name) == self.cut else made

    # ----------------------------------------------------------------------------------------- inside
    def _run(self, func: Any, args: Any, kwargs: Any, name: str, in_place: bool, address: Address | None) -> Any:
        start, call = len(self.nodes), (func, replaced(args, self.of), replaced(kwargs, self.of))
        if not any(isinstance(each, Node) for each in leaves(call[1:])):
            return func(*args, **kwargs)
        body = None if name in self.whole or func in self._open else body_of(func)
        if body is None:
            made = func(*args, **kwargs)
        else:
            self._open.append(func)  # a function may call the operation of its own name
            try:
                with self:
                    made = body(*args, **kwargs)
            finally:
                self._open.pop()
        written = args[0] if name in _IN_PLACE or in_place else None
        for part, each in enumerate(leaves(made if written is None else written)):
            if isinstance(each, Tensor):
                self._result(each, name, call, part, address, None if body is None else start)
        return made

    def _result(
        self, made: Tensor, name: str, call: Any, part: int, address: Address | None, apart: int | None
    ) -> None:
        known = self._of.get(made)
        if known is not None and known.version == made._version:
            if apart is not None and known.index >= apart:  # the function's own name, not its last operation's
                known.address = address
            return  # or handed on as it is
        if apart is not None:
            return  # made of constants alone
        node = self._note(made, name, call, part, address)
        if made._base is not None and made._version > 0 and (base := self._of.get(made._base)) is not None:
            if base.version != made._version:
                self._note(made._base, "alias", (None, (base, node), {}))

    def _note(self, made: Tensor, name: str, call: Any, part: int = 0, address: Address | None = None) -> Node:
        tensor = made if self.keep else None
        node = Node(len(self.nodes), name, call, part, made.shape, made._version, address, tensor)
        self.nodes.append(node)
        self._of[made] = node
        if self.keep and made.grad_fn is not None:
            self._made_by[made.grad_fn] = node
        return node

    def _unseen(self, value: Tensor) -> Node | None:
        """What a value depends on that no watched function made, by the autograd graph; None: on no image."""
        found, seen, todo = list[Node](), set[Any](), [value.grad_fn]
        while todo:
            step = todo.pop()
            if step is None or step in seen:
                continue
            seen.add(step)
            if step in self._made_by:
                found.append(self._made_by[step])
            else:
                todo += [following for following, _ in step.next_functions]  # type: ignore[union-attr]
        return self._note(value, "unseen", (None, tuple(found), {})) if found else None

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            self._running.append((name, len(self.nodes)))
            self._calls[name, ""] += 1

        return hook

    def _leave(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: object, output: Any) -> Any:
            _, start = self._running.pop()
            first = output[0] if isinstance(output, tuple) and output else output
            with torch._C.DisableTorchFunction():
                node = self.of(first)
            if name and isinstance(node, Node) and node.index >= start:  # not what it was given
                node.address = Address(name, number=self._calls[name, ""])
            return self.hand_on(output) if self.cut == (name, "") else None

        return hook


def leaves(value: Any) -> Iterator[Any]:
    """What stands in lists, tuples and dictionaries."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, dict):
        yield from leaves(tuple(value.values()))
    else:
        yield value


def replaced(value: Any, by: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and dictionaries with other things in them."""
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(each, by) for each in value) if type(value) in (list, tuple) else tuple(value)
    if isinstance(value, dict):
        return {key: replaced(each, by) for key, each in value.items()}
    return by(value)
