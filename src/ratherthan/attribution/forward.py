"""One forward pass, then any number of seeds pulled back.

The only place that touches hooks and gradients. A `ForwardPass` is a model and a batch under explanation; a `Graph` is
one forward pass of it whose autograd graph reaches from the logits down to one tensor (the images, or the output of a
layer) and no further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ratherthan.attribution.trace import Address, Calls
from ratherthan.errors import LayerError, ModelError
from ratherthan.inference import differentiable
from ratherthan.model import Model

T = TypeVar("T")

MEMORY_BUDGET = 2**30
"""Bytes that pulling back may take at once, unless the caller says otherwise."""


@dataclass(frozen=True)
class Graph:
    """A forward pass that seeds can be pulled back through.

    Attributes:
        layer: Dotted name of the layer, or None for the images themselves.
        leaf: (N, ...) the tensor that gradients are taken for.
        output: (N, C) logits, attached to the graph that ends at the leaf.
    """

    layer: str | None
    leaf: Tensor
    output: Tensor

    def vjp_chunks(self, seeds: Tensor, budget: int = MEMORY_BUDGET) -> Iterator[tuple[slice, Tensor]]:
        """Pull seeds back to the leaf, some at a time.

        Args:
            seeds: (N, Q, C) derivatives with respect to the logits.
            budget: Bytes that one step may take.

        Yields:
            A slice of the Q seeds and their gradients, (N, len(slice), ...).
        """
        step = self._seeds_at_once(budget)
        for start in range(0, seeds.shape[1], step):
            part = slice(start, min(start + step, seeds.shape[1]))
            yield part, self._pull(seeds[:, part].to(self.output.dtype))

    def vjp(self, seeds: Tensor, budget: int = MEMORY_BUDGET) -> Tensor:
        """All gradients at once, within the budget: (N, Q, C) to (N, Q, ...)."""
        return torch.cat([gradient for _, gradient in self.vjp_chunks(seeds, budget)], 1)

    def _pull(self, seeds: Tensor) -> Tensor:
        columns = seeds.transpose(0, 1)
        if len(columns) > 1:
            # where an operation cannot be batched over seeds (vmap), one after the other gives the same
            with suppress(RuntimeError):
                return self._gradient(columns, batched=True).transpose(0, 1)
        return torch.stack([self._gradient(seed, batched=False) for seed in columns], 1)

    def _gradient(self, seed: Tensor, batched: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(
            self.output, self.leaf, seed, retain_graph=True, is_grads_batched=batched, allow_unused=True
        )
        if gradient is None:
            where = "the images do" if self.layer is None else f"the output of layer {self.layer!r} does"
            raise LayerError(f"{where} not reach the logits: no gradient can be taken")
        return gradient

    def _seeds_at_once(self, budget: int) -> int:
        if self.layer is None and self.leaf.ndim > 3:
            return 1  # below the first layer, batching over seeds costs memory and gains no time
        # the backward pass holds about four tensors of the leaf's size per seed; or of what a language model gives,
        # logits behind each of the T tokens, though only the last are asked about
        said = self.output.numel() * (self.leaf.shape[1] if self.leaf.ndim == 3 else 1)
        return max(1, budget // (4 * max(self.leaf.numel(), said) * self.leaf.element_size()))


class ForwardPass:
    """A model and a batch under explanation. Forward passes are shared by all who ask for the same one.

    Args:
        model: The model.
        images: (N, C, H, W) in image space; or token ids (N, T), of whose embedding (N, T, E) `images` is then made,
            with the words that the tokens belong to as `parts`, (N, T), as the columns of a table are, (N, F).
        budget: Bytes that pulling back may take at once.
        report: Told the share that is done by methods that take long.
    """

    def __init__(
        self,
        model: Model,
        images: Tensor,
        budget: int = MEMORY_BUDGET,
        report: Callable[[float], object] = lambda share: None,
    ) -> None:
        self.model, self.budget, self.report = model, budget, report
        self.given = images.detach().clone() if images.is_inference() else images.detach()
        self.images = model.leaf(self.given)
        self.parts = model.inputs.parts(self.given)
        self._graphs: dict[str | None, Graph] = {}
        self._logits: Tensor | None = None
        self._made: dict[int, tuple[object, Any]] = {}

    @cached_property
    def tokens(self) -> tuple[tuple[str, ...], ...]:
        """What the positions of each of the batch read, where they read anything."""
        return self.model.inputs.read(self.given)

    @property
    def plane(self) -> tuple[int, ...]:
        """The sizes of the axes that maps of layers and windows lie on: (H, W) of images, none of texts and tables."""
        return tuple(self.images.shape[2:]) if self.images is self.given else ()

    @property
    def logits(self) -> Tensor:
        """(N, C), detached; from a graph if there is one."""
        if self._logits is None:
            with torch.no_grad():
                self._keep(self.model.logits(self.images.clone()))
        assert self._logits is not None
        return self._logits

    def graph(self, layer: str | None = None) -> Graph:
        """The forward pass recorded from this layer (None: from the images) upward.

        Raises:
            LayerError: If the layer is not run, runs twice, gives no tensor, or does not reach the logits.
            ModelError: If the network fails or is not differentiable.
        """
        if layer not in self._graphs:
            self.adopt(self._record_images() if layer is None else self._record_layer(layer))
        return self._graphs[layer]

    def adopt(self, graph: Graph) -> None:
        """Keep a graph of these images that was recorded elsewhere."""
        self._keep(graph.output)
        self._graphs[graph.layer] = graph

    def forward(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Logits of altered images, without a graph: (M, C, H, W) to (M, classes)."""
        with torch.no_grad():
            return torch.cat([self.model.logits(part.clone()) for part in torch.split(images, batch_size)])

    def nothing(self, baseline: Any) -> Tensor:
        """What stands for nothing in `images`, of their shape; see `Inputs.nothing`."""
        return self.model.inputs.nothing(self.model.module, baseline, self.images)

    def once(self, owner: object, make: Callable[[], T]) -> T:
        """What `make` returns, made once for each owner, e.g. a method; it is gone with the forward pass."""
        if id(owner) not in self._made:
            self._made[id(owner)] = owner, make()  # the owner is kept, so that its id stays its own
        made: T = self._made[id(owner)][1]
        return made

    def _keep(self, logits: Tensor) -> None:
        if self._logits is None:
            self.model.check(logits, self.images)
            self._logits = logits.detach()

    def _record_images(self) -> Graph:
        leaf = self.images.detach().requires_grad_()
        with torch.enable_grad():
            output = self.model.logits(leaf.clone())
        if not output.requires_grad:
            raise ModelError(f"{self.model.name} detaches its output from its input: no gradient can be taken")
        return Graph(None, leaf, output)

    def _record_layer(self, layer: str) -> Graph:
        address, leaves, calls = Address.read(layer), list[Tensor](), 0

        def hand_on(output: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 1 and not address.function and "#" not in layer:
                raise LayerError(
                    f"layer {layer!r} runs more than once in a forward pass; say which time, e.g. '{layer}#2'"
                )
            if calls != address.number:
                return output
            tensor = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise LayerError(f"layer {layer!r} gives {type(tensor).__name__}, not a tensor of numbers")
            leaf = tensor.detach().requires_grad_()
            leaves.append(leaf)
            torch.set_grad_enabled(True)  # from here upward; no_grad below restores the mode
            watching.enter_context(differentiable())
            handed = leaf.clone()  # an in-place operation further up must not touch the leaf
            return (handed, *output[1:]) if isinstance(output, tuple) else handed

        network = self.model.module
        module = self.model.submodule(address.module) if address.module else network
        with ExitStack() as watching:
            if address.function:
                name = next(name for name, each in network.named_modules() if each is module)
                watching.enter_context(Calls(network, Address(name, address.function), hand_on).watching())
            else:
                watching.enter_context(module.register_forward_hook(lambda module, inputs, output: hand_on(output)))
            watching.enter_context(torch.no_grad())
            output = self.model.logits(self.images.clone())
        if not leaves:
            raise LayerError(f"layer {layer!r} does not run in the forward pass; choose one that does")
        if not output.requires_grad:
            raise LayerError(f"the output of layer {layer!r} does not reach the logits: no gradient can be taken")
        return Graph(layer, leaves[0], output)
