"""A forward pass written down: which operation made what, of what, and where in the network it stands.

What a network computes has an address, by which a user can name it:

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
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ratherthan.attribution.operations import IN_PLACE, body_of


class Address(NamedTuple):
    """Where a value is made: module, function if one called in its forward makes it, and the how manieth call."""

    module: str
    function: str = ""
    number: int = 1

    @staticmethod
    def read(text: str) -> Address:
        """Parse one; what is no number is 0, and no call is."""
        name, _, number = text.partition("#")
        module, _, function = name.rpartition(".") if name.endswith("()") else (name, "", "")
        return Address(module, function.removesuffix("()"), int(number) if number.isdecimal() else int(not number))


class Calls(TorchFunctionMode):
    """Counts the calls in a forward pass, by module and function.

    Args:
        network: The network.
        cut: What is called there goes through `hand_on`; a module alone stands for no call.
        hand_on: Called with what it gives; returns what the network goes on with.
    """

    def __init__(
        self, network: nn.Module, cut: Address | None = None, hand_on: Callable[[Any], Any] = lambda made: made
    ) -> None:
        super().__init__()
        self.network, self.cut, self.hand_on = network, cut and cut[:2], hand_on
        self.calls: Counter[tuple[str, str]] = Counter()
        self._running: list[tuple[str, int]] = []

    @contextmanager
    def watching(self) -> Iterator[Self]:
        """Enter it, with hooks that tell which module runs."""
        with ExitStack() as hooks:
            for name, module in self.network.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):  # takes no hook of this kind
                    hooks.enter_context(module.register_forward_pre_hook(self._enter(name)))
                    hooks.enter_context(module.register_forward_hook(self._leave(name)))
            hooks.enter_context(self)
            yield self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a call, and run it."""
        is_property = func.__name__ == "__get__"
        name = (func.__self__ if is_property else func).__name__.split(".")[0]  # exported programs call add.Tensor
        if is_property and not isinstance(made := func(*args), Tensor):
            return made
        where = self._running[-1][0] if self._running else None
        address = None
        if where is not None:
            key = where, name.strip("_")
            self.calls[key] += 1
            address = Address(*key, self.calls[key])
        made = self.run(address, name, func, args, kwargs or {})
        return self.hand_on(made) if address and address[:2] == self.cut else made

    def run(self, address: Address | None, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation."""
        return func(*args, **kwargs)

    def leave(self, address: Address, start: int, output: Any) -> None:
        """Told what a module gives."""

    def mark(self) -> int:
        """What `leave` is told as its start."""
        return 0

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            self._running.append((name, self.mark()))
            self.calls[name, ""] += 1

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            _, start = self._running.pop()
            with torch._C.DisableTorchFunction():
                self.leave(Address(name, number=self.calls[name, ""]), start, output)

        return hook


@dataclass(eq=False)
class Node:
    """A value that depends on the images.

    Attributes:
        index: Its place in the order of making.
        operation: What made it: the name of a function; "unseen" if nothing that can be watched did.
        call: Function, arguments and keywords; values that depend on the images are nodes in it.
        part: Which of the tensors the function returned.
        tensor: The value.
        version: How often it had been changed in place when this was written down.
        address: Where it is made; None: nowhere that could be named.
        inputs: The nodes in `call`.
    """

    index: int
    operation: str
    call: tuple[Any, Any, Any]
    part: int
    tensor: Tensor
    version: int
    address: Address | None = None
    inputs: list[Node] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the nodes among the arguments."""
        self.inputs = [each for each in leaves(self.call) if isinstance(each, Node)]

    @property
    def shape(self) -> torch.Size:
        """Of the value."""
        return self.tensor.shape


class Trace(Calls):
    """Writes a forward pass with an autograd graph down, while watching.

    Args:
        network: The network.
        leaf: (N, ...) the images, handed to it.
        whole: Operations that are not taken apart, by name.
    """

    def __init__(self, network: nn.Module, leaf: Tensor, whole: Any) -> None:
        super().__init__(network)
        self.whole = whole
        self.nodes: list[Node] = []  # they keep their tensors, so that an id stands for one tensor
        self.named: dict[Address, Node] = {}  # a value may have several names: a block's, its last layer's
        self._of: dict[int, Node] = {}
        self._made_by: dict[Any, Node] = {}  # by node of the autograd graph
        self._open: list[Any] = []
        self._note(leaf, "images", (None, (), {}))

    def text(self, address: Address) -> str:
        """An address as it is written: with a number where there is more than one call to tell apart."""
        module, function, number = address
        several = number > 1 if function else self.calls[module, ""] > 1
        return ".".join(filter(None, [module, function and f"{function}()"])) + (f"#{number}" if several else "")

    def of(self, value: Any) -> Any:
        """The node of a tensor that depends on the images; all else as it is."""
        if not isinstance(value, Tensor):
            return value
        node = self._of.get(id(value))
        if node is None:
            node = None if value.grad_fn is None else self._unseen(value)
        elif node.version != value._version:  # changed through another view of the same memory
            node = self._note(value, "alias", (None, (node, self._of.get(id(value._base))), {}))
        return value if node is None else node

    def run(self, address: Address | None, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation and write it down if it depends on the images."""
        start, call = self.mark(), (func, replaced(args, self.of), replaced(kwargs, self.of))
        if not any(isinstance(each, Node) for each in leaves(call)):
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():  # inside a function with a backward of its own
            address = None
        plain = name.strip("_")
        body = None if plain in self.whole or func in self._open else body_of(func)
        if body is None:
            made = func(*args, **kwargs)
            in_place = plain in IN_PLACE or (name.endswith("_") and name[0] != "_")
            for part, each in enumerate(leaves(args[0] if in_place else made)):
                if isinstance(each, Tensor) and not self._known(each):
                    self._name(self._note(each, plain, call, part), address)
            return made
        self._open.append(func)  # a function may call the operation of its own name
        running, self._running = self._running, []  # what it calls is not called by the forward of a module
        with self:
            made = body(*args, **kwargs)
        self._running = running
        self._open.pop()
        for each in leaves(made):
            if isinstance(each, Tensor) and self._known(each) and self._of[id(each)].index >= start:
                self._name(self._of[id(each)], address)  # the function's, not that of its last operation
        return made

    def leave(self, address: Address, start: int, output: Any) -> None:
        """Call what a module made, if it was not given it, by the module's name."""
        node = self.of(output[0] if isinstance(output, tuple) and output else output)
        if isinstance(node, Node) and torch.is_grad_enabled():
            self.named[address] = node
            if address.module and node.index >= start:
                node.address = address

    def mark(self) -> int:
        """How many nodes there are."""
        return len(self.nodes)

    # ----------------------------------------------------------------------------------------- inside
    def _known(self, made: Tensor) -> bool:
        node = self._of.get(id(made))
        return node is not None and node.version == made._version

    def _name(self, node: Node, address: Address | None) -> None:
        node.address = address
        if address is not None:
            self.named[address] = node

    def _note(self, made: Tensor, name: str, call: Any, part: int = 0) -> Node:
        node = Node(len(self.nodes), name, call, part, made, made._version)
        self.nodes.append(node)
        self._of[id(made)] = node
        if made.grad_fn is not None:
            self._made_by[made.grad_fn] = node
        base = None if made._base is None else self._of.get(id(made._base))
        if base is not None and base.version != made._version:  # the view that it is was changed in place
            self._note(base.tensor, "alias", (None, (base, node), {}))
        return node

    def _unseen(self, value: Tensor) -> Node | None:
        """What a value depends on that no watched function made, by the autograd graph; None: on no image."""
        found, seen, todo = list[Node](), set[Any](), [value.grad_fn]
        while todo:
            step = todo.pop()
            if step in self._made_by:
                found.append(self._made_by[step])
            elif step is not None and step not in seen:
                seen.add(step)
                todo += [following for following, _ in step.next_functions]
        return self._note(value, "unseen", (None, tuple(found), {})) if found else None


def leaves(value: Any) -> Iterator[Any]:
    """What stands in lists, tuples and dictionaries."""
    if isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def replaced(value: Any, by: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and dictionaries with other things in them."""
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(replaced(each, by) for each in value)
    if isinstance(value, dict):
        return {key: replaced(each, by) for key, each in value.items()}
    return by(value)
