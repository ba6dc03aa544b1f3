"""Which layer to explain, and how its output lies on the plane of the image: both are found out, neither is guessed."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ratherthan.attribution.forward import ForwardPass, Graph
from ratherthan.attribution.operations import LAYERS
from ratherthan.attribution.places import MOVING, PLACES, STAYING, Grid, Places, grid_of, varies
from ratherthan.attribution.trace import Address, Node, Trace
from ratherthan.errors import LayerError, ModelError, see
from ratherthan.model import Model

_LEARNT = {
    *LAYERS,
    "addmm",
    "baddbmm",
    "bmm",
    "einsum",
    "gru",
    "lstm",
    "matmul",
    "mm",
    "rnn_relu",
    "rnn_tanh",
    "unseen",
}
_FOUND: WeakKeyDictionary[nn.Module | Model, dict[tuple[str | None, torch.Size, str], tuple[str, Grid]]] = (
    WeakKeyDictionary()
)


def layer_of(model: Model, image: Tensor, default: bool = True) -> str:
    """The layer of a model that layer methods explain: the one it names, else the one found for images of this shape.

    What is found is remembered as long as the network lives; the model is not touched.

    Args:
        model: The model, in eval mode.
        image: (1, C, H, W).
        default: Whether a layer that the model names is taken.

    Raises:
        LayerError: If there is none, or the model names one that it does not have.
    """
    return located(ForwardPass(model, image), model.layer if default else None)[0]


def find_layer(model: Model, image: Tensor) -> str:
    """The last value on the image's plane that everything the logits know of the image goes through.

    One forward pass of one image, in which every operation is followed, whether a module or a function called it (see
    `places`), and a backward pass through what lies above the layer. Passed over are values that hold one score per
    class, and pooling to a fixed size. Of tokens, the last are taken whose patches reach the logits, normalised if all
    that the logits know of them is normalised first.

    Args:
        model: The model, in eval mode.
        image: (1, C, H, W).

    Returns:
        Its address, see `trace`: the dotted name of a module, wherever one gives it.

    Raises:
        LayerError: If there is none.
        ModelError: If the network fails, or no gradient can be taken.
    """
    return _searched(ForwardPass(model, image))[0]


def located(forward_pass: ForwardPass, layer: str | None) -> tuple[str, Grid]:
    """The address of a layer and its grid; found out once for a network and a shape of images.

    Args:
        forward_pass: Model and images; it keeps the graph if one was recorded for all of its images.
        layer: The address; None: the layer that is found.

    Raises:
        LayerError: If there is no such layer, or its values do not lie on the image plane.
    """
    model = forward_pass.model
    found = _FOUND.setdefault(model.module if model.forward is None else model, {})  # a network may be run in many ways
    key = (layer, forward_pass.images.shape[1:], model.output.name)
    if key in found and _still_there(forward_pass, *found[key]):
        return found[key]
    found[key] = _searched(forward_pass) if layer is None else (layer, _named(forward_pass, layer))
    return found[key]


def _still_there(forward_pass: ForwardPass, layer: str, grid: Grid) -> bool:
    """Whether a network is as it was when a layer was found: it may have been rebuilt since."""
    try:
        return forward_pass.graph(layer).leaf.shape[1:] == grid.shape
    except LayerError:
        return False


def _named(forward_pass: ForwardPass, layer: str) -> Grid:
    """How a layer lies that was named."""
    shape = tuple(forward_pass.graph(layer).leaf.shape)
    trace, _ = _trace(forward_pass)
    plane = forward_pass.plane
    node = trace.named.get(Address.read(layer))
    grid = None if node is None else grid_of(Places(len(plane)).of(node), node.shape, plane)
    if grid is None:
        raise LayerError(
            f"layer {layer!r} gives shape {shape}, which lies on no grid of the image's rows and columns as far as its "
            "operations can be followed: choose a convolution or block, or a method that explains the image, e.g. ixg"
        )
    return grid


def _trace(forward_pass: ForwardPass) -> tuple[Trace, Tensor]:
    """A forward pass of one image written down, or of all where a network takes no single one, and its logits."""
    model, images = forward_pass.model, forward_pass.images
    for leaf in (images[:1].detach().requires_grad_(), images.detach().requires_grad_()):
        trace = Trace(model.module, leaf, PLACES)
        try:
            with torch.enable_grad(), trace.watching():
                return trace, model.logits(leaf.clone())
        except ModelError:
            if len(leaf) == len(images):
                raise
    raise AssertionError


def _searched(forward_pass: ForwardPass) -> tuple[str, Grid]:
    model, images = forward_pass.model, forward_pass.images
    trace, logits = _trace(forward_pass)
    end = trace.of(logits)
    if not isinstance(end, Node) or not logits.requires_grad:
        raise ModelError(f"{model.name} detaches its output from its input: no gradient can be taken")
    if not logits.isfinite().all():
        model.check(logits, images[: len(logits)])  # which says so
    search = _Search(logits, end, forward_pass.plane, model.output.pools)
    node = search.last(model.name)
    grid = search.grid(node)
    assert grid is not None
    assert node.address is not None
    layer = trace.text(node.address)
    if len(node.tensor) == len(images):
        forward_pass.adopt(Graph(layer, node.tensor, logits))
    return layer, grid


class _Search:
    """Looks at values from the last down.

    Args:
        logits: (N, classes), with a graph of everything.
        end: Their node.
        plane: The sizes of the axes of the plane, (H, W) of images.
        pools: What may make scores of a map of them, see `Output`.
    """

    def __init__(
        self,
        logits: Tensor,
        end: Node,
        plane: tuple[int, ...],
        pools: Callable[[Tensor, tuple[int, ...]], tuple[Tensor, ...]],
    ) -> None:
        self.logits, self.plane, self.places, self.pools = logits, plane, Places(len(plane)), pools
        generator = torch.Generator().manual_seed(0)
        self.seed = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
        needed, todo = {end}, [end]
        while todo:
            for each in todo.pop().inputs:
                if each not in needed:
                    needed.add(each)
                    todo.append(each)
        self.nodes = sorted(needed, key=lambda node: node.index)
        self.used_by: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for each in node.inputs:
                self.used_by[each].append(node)

    def cuts(self) -> list[Node]:
        """The values that every way from the images to the logits goes through, in the order of making."""
        found, furthest = list[Node](), 0
        for node in self.nodes:
            if furthest <= node.index:  # nothing that was made before is used after
                found.append(node)
            furthest = max([furthest, *(each.index for each in self.used_by[node])])
        return found

    def learnt(self) -> set[Node]:
        """The values that weights have a part in."""
        found = set[Node]()
        for node in self.nodes:
            if node.operation in _LEARNT or not found.isdisjoint(node.inputs):
                found.add(node)
        return found

    def last(self, name: str) -> Node:
        """The last value on the plane that moves the logits and that they know everything from.

        Raises:
            LayerError: If there is none.
        """
        cuts, learnt = self.cuts(), self.learnt()
        for cut in cuts:  # from the images up, so that no way down is long
            self.places.of(cut)
        scores, on_plane = set[Node](), False
        for cut in reversed(cuts):
            grid = self.grid(cut)
            if grid is None or cut not in learnt or cut.operation.startswith("adaptive") or cut in scores:
                continue
            if self._scores_classes(cut, grid):
                scores |= _before(cut)
                continue
            on_plane = True
            gradient = self._gradient(cut)
            if gradient is not None and grid.fold(gradient).any():
                return self._named(self._normalised(cut, gradient))
        if on_plane:
            raise LayerError(f"no layer of {name} on the image's plane moves its logits: are its weights trained?")
        raise LayerError(
            f"{name} has no layer on the image's plane that all its logits know goes through; name one, e.g. "
            "layer='features', or use a method that explains the image, e.g. ixg" + see("no-layer-is-found")
        )

    def grid(self, node: Node) -> Grid | None:
        """The grid of a value that can be explained: nameable, unchanged since, with rows and columns."""
        if node.address is None or node.operation == "setitem":
            return None
        if node.tensor._version != node.version or not node.tensor.is_floating_point():
            return None
        place = self.places.of(node)
        if not place or any(not varies(each) and side > 1 for each, side in zip(place, self.plane, strict=True)):
            return None
        return grid_of(place, node.shape, self.plane)

    def _gradient(self, node: Node) -> Tensor | None:
        (gradient,) = torch.autograd.grad(self.logits, node.tensor, self.seed, retain_graph=True, allow_unused=True)
        return gradient

    def _scores_classes(self, node: Node, grid: Grid) -> bool:
        """Whether a value is the map of the scores: pooled over the plane it is the logits."""
        logits = self.logits.detach()
        maps = grid.fold(node.tensor.detach()).to(logits.dtype)
        single = maps.shape[1] == 1 and logits.shape[1] == 2  # -y/2 and y/2, of one score y
        scores = logits[:, 1:] * 2 if single else logits
        if maps.shape[1] == logits.shape[1] - 1 and not logits[:, -1].any():  # labels, and 0 for none of them
            scores = logits[:, :-1]
        if maps.shape[1] != scores.shape[1]:
            return False
        near = 1e-2 if node.tensor.element_size() < 4 else 1e-4
        atol = near * float(scores.abs().amax())
        return any(torch.allclose(each, scores, near, atol) for each in self.pools(maps, self.plane))

    def _normalised(self, node: Node, gradient: Tensor) -> Node:
        """What an elementwise operation or norm makes of a value, if the logits know nothing of it but through that."""
        grid = self.grid(node)
        assert grid is not None
        for after in self.used_by[node]:
            if after.operation not in STAYING or len(after.inputs) > 1:
                continue
            upper = self._gradient(after) if self.grid(after) is not None else None
            if upper is None:
                continue
            (through,) = torch.autograd.grad(after.tensor, node.tensor, upper, retain_graph=True)
            scale = gradient.abs().amax() * (1e-2 if gradient.element_size() < 4 else 1e-4)
            if (grid.fold(through) - grid.fold(gradient)).abs().amax() <= scale:
                return self._normalised(after, upper)
        return node

    def _named(self, node: Node) -> Node:
        """The module that made a value which a function has only moved since."""
        while node.operation in MOVING and node.address is not None and node.address.function and node.inputs:
            before = node.inputs[0]
            grid = self.grid(before)
            if len(node.inputs) > 1 or grid is None or grid.size != self.grid(node).size:  # type: ignore[union-attr]
                break
            node = before
        return node


def _before(node: Node) -> set[Node]:
    """A value and what it was made of element by element, or by resizing."""
    found = {node}
    resized = ("interpolate", "upsample")
    while (node.operation in STAYING or node.operation.startswith(resized)) and len(node.inputs) == 1:
        node = node.inputs[0]
        found.add(node)
    return found
