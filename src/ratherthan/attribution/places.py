"""Where on the image each value of a network lies, found out by following the operations that made it.

A `Place` says of every value from which row and which column of the image it comes, where it comes from one: a
convolution's from the centre of its window, a token's from the patch it was cut from, however it was moved since. What
mixes all rows has no row. What comes from a constant, such as a class token, is NaN. Operations that are not known here
make a value without a place: nothing is guessed. A signal has one axis, of time steps, a volume slices before its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratherthan.attribution import operations as of
from ratherthan.attribution.trace import Node, leaves, replaced

_NEAR = 1e-3  # pixels by which two places may differ and be one
_AWAY = 2.0**20  # added while places are moved: an operation that fills up with zeros fills up with what is no place


Place = tuple[Tensor | None, ...]
"""On each axis of the plane, as the rows and the columns of an image, the places in pixels, of the size of the value or
of 1 where they do not change. None: none, as everything is mixed. No axes: nothing is of the image."""
NOWHERE: Place = ()
_Rule = Callable[[Node, Callable[[Any], Place]], Place]


# --------------------------------------------------------------------------------------------- the grid
@dataclass(frozen=True, eq=False)
class Grid:
    """How a value lies on the image plane.

    Attributes:
        shape: The value's, but for its first dimension, the batch.
        axes: Those of these dimensions that go over the plane.
        size: (h, w); a number for each axis of the plane.
        order: (h * w,) where the cells stand among the positions on these axes, row by row; None: in this order.
    """

    shape: torch.Size
    axes: tuple[int, ...]
    size: tuple[int, ...]
    order: Tensor | None = None

    def fold(self, values: Tensor) -> Tensor:
        """(..., shape) to (..., ch, h, w); class tokens and what else is no cell are dropped."""
        lead = values.ndim - len(self.shape)
        moved = values.movedim([axis + lead for axis in self.axes], list(range(-len(self.axes), 0)))
        cells = moved.flatten(-len(self.axes))
        cells = cells.flatten(lead, -2) if cells.ndim > lead + 1 else cells.unsqueeze(lead)
        cells = cells if self.order is None else cells.index_select(-1, self.order.to(cells.device))
        return cells.reshape(*cells.shape[:-1], *self.size)


def grid_of(place: Place, shape: torch.Size, image: tuple[int, ...]) -> Grid | None:
    """The grid that a value's places make up.

    Args:
        place: Its places.
        shape: Its shape.
        image: The sizes of the plane's axes, (H, W) of images.

    Returns:
        None if they are no full grid of more than one cell, or the samples of the batch are among its dimensions.
    """
    if all(each is None for each in place):
        return None
    middle = [torch.full((1,) * len(shape), (side - 1) / 2, dtype=torch.float64) for side in image]
    known = [m if each is None else each for each, m in zip(place, middle, strict=True)]
    axes = tuple(i for i in range(len(shape)) if any(each.shape[i] > 1 for each in known))
    if 0 in axes:
        return None
    sizes = [shape[i] if i in axes else 1 for i in range(len(shape))]
    flat = [each.expand(sizes).flatten() for each in known]
    cells = torch.stack(flat).isfinite().all(0).nonzero().flatten()
    size, ranks = zip(*(_ranks(each[cells]) for each in flat), strict=True)
    if len(cells) < 2 or math.prod(size) != len(cells):
        return None
    raster = torch.zeros_like(cells)
    for length, rank in zip(size, ranks, strict=True):
        raster = raster * length + rank
    order = raster.argsort()
    if not torch.equal(raster[order], torch.arange(len(cells))):
        return None
    if any(_displaced(*each) for each in zip(flat, size, image, strict=True)):
        return None
    order = cells[order]
    plain = len(order) == len(flat[0]) and torch.equal(order, torch.arange(len(order)))
    return Grid(shape[1:], tuple(axis - 1 for axis in axes), size, None if plain else order)


def _displaced(places: Tensor, cells: int, side: int) -> bool:
    """Whether cells lie elsewhere than where a map is drawn: by more than 1.5 cells, and than an eighth of the side.

    Convolutions without padding move the outermost cells a little; what sees but a cutting of the image is not drawn.
    """
    ends = torch.stack([places.nan_to_num(torch.inf).amin(), places.nan_to_num(-torch.inf).amax()])
    drawn = torch.tensor([0.5, cells - 0.5], dtype=places.dtype) * side / cells - 0.5
    return bool((ends - drawn).abs().max() > max(1.5 * side / cells, side / 8))


def _ranks(values: Tensor) -> tuple[int, Tensor]:
    """How many different values there are, and the rank of each."""
    ordered, back = values.sort()
    steps = torch.cat([ordered.new_zeros(1), (ordered.diff() > _NEAR).to(ordered)]).cumsum(0).long()
    ranks = torch.empty_like(steps)
    ranks[back] = steps
    return int(steps[-1]) + 1 if len(steps) else 0, ranks


# --------------------------------------------------------------------------------------------- following
class Places:
    """The places of the nodes of a trace, each found when it is asked for.

    Args:
        axes: How many axes the plane of the inputs has; they are their last.
    """

    def __init__(self, axes: int) -> None:
        self._axes = axes
        self._known: dict[Node, Place] = {}

    def of(self, node: Node) -> Place:
        """The place of a node, and of what it is made of as far as that is needed; networks are too deep to recurse."""
        todo = [node]
        while todo:
            try:
                self._known[todo[-1]] = self._follow(todo[-1])
                todo.pop()
            except _Unknown as asked:
                todo.append(asked.node)
        return self._known[node]

    def _follow(self, node: Node) -> Place:
        if node.operation == "images":
            axes = range(len(node.shape) - self._axes, len(node.shape))
            shapes = ([-1 if i == axis else 1 for i in range(len(node.shape))] for axis in axes)
            sides = (torch.arange(node.shape[axis], dtype=torch.float64) for axis in axes)
            return tuple(_tidy(side.view(shape)) for side, shape in zip(sides, shapes, strict=True))
        rule = PLACES.get(node.operation)
        return NOWHERE if rule is None else rule(node, self._look_up)

    def _look_up(self, value: Any) -> Place:
        if not isinstance(value, Node):
            return NOWHERE
        if value not in self._known:
            raise _Unknown(value)
        return self._known[value]


class _Unknown(Exception):
    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node


def _tidy(places: Tensor | None) -> Tensor | None:
    """Size 1 along dimensions in which nothing changes; None where nothing is of the image."""
    if places is None:
        return None
    places = _narrow(places)
    for axis in range(places.ndim):
        if places.shape[axis] == 1:
            continue
        high = places.nan_to_num(-torch.inf).amax(axis, keepdim=True)
        low = places.nan_to_num(torch.inf).amin(axis, keepdim=True)
        if not (high - low > _NEAR).any():
            places = torch.where(high > -torch.inf, high, torch.nan)
    return None if places.numel() == 1 and places.isnan().all() else places


def _narrow(places: Tensor) -> Tensor:
    """Size 1 along dimensions that were only expanded."""
    for axis in range(places.ndim):
        if places.stride(axis) == 0:
            places = places.narrow(axis, 0, 1)
    return places


def _first(node: Node, places: Iterable[Place]) -> Place:
    """Of several that meet, on each axis of the plane the first whose places change, or else that has any.

    No more are found than are needed.
    """
    found: list[Tensor | None] = []
    for place in places:
        found += [None] * (len(place) - len(found))
        for which, each in enumerate(place):
            if varies(found[which]) or each is None or each.ndim > len(node.shape):
                continue
            grown = each.view((1,) * (len(node.shape) - each.ndim) + each.shape)
            fits = all(a in (1, b) for a, b in zip(grown.shape, node.shape, strict=True))
            if fits and (found[which] is None or varies(each)):
                found[which] = grown
        if found and all(map(varies, found)):
            break
    return tuple(found)


def varies(places: Tensor | None) -> bool:
    """Whether these are places, and more than one."""
    return places is not None and places.numel() > 1


def _each(change: Callable[[Tensor], Tensor | None], place: Place) -> Place:
    return tuple(None if each is None else _tidy(change(each)) for each in place)


# --------------------------------------------------------------------------------------------- rules
def _stays(node: Node, look: Callable[[Any], Place]) -> Place:
    """Element by element, norms, softmax: each value stays where it is."""
    return _first(node, map(look, node.inputs))


def _moves(node: Node, look: Callable[[Any], Place]) -> Place:
    """The places move as the values do: the same operation moves them."""
    function, args, kwargs = node.call
    places = {each: look(each) for each in node.inputs}

    def moved(which: int) -> Tensor | None:
        on_axis = {each: place[which] for each, place in places.items() if place and place[which] is not None}
        if not on_axis:
            return None

        def full(value: Any) -> Any:
            real = isinstance(value, Tensor) and value.is_floating_point()
            if not isinstance(value, Node) and not real:
                return value
            found = on_axis.get(value) if isinstance(value, Node) else None
            found = torch.full((1,), torch.nan, dtype=torch.float64) if found is None else found + _AWAY
            return found.expand(value.shape)

        given, named = replaced(args, full), replaced(kwargs, full)
        if node.operation == "setitem":
            made = given[0].clone()
            made[given[1]] = torch.as_tensor(given[2]).to(made)
        else:
            if node.operation in ("view", "view_as", "unflatten") and given:  # the values had other strides
                given = (given[0].contiguous(), *given[1:])
            made = list(leaves(function(*given, **named)))[node.part]
        made = _narrow(made) if made.shape == node.shape else made.new_zeros(1)
        return _tidy(torch.where(made == 0, torch.nan, made - _AWAY))

    return tuple(moved(which) for which in range(max(map(len, places.values()), default=0)))


def _argument(node: Node, place: int, *names: str) -> Any:
    """An argument, given by its place or by one of its names."""
    _, args, kwargs = node.call
    return args[place] if len(args) > place else next((kwargs[name] for name in names if name in kwargs), None)


def _input(node: Node) -> Any:
    return _argument(node, 0, "input", "self", "x")


def _averaged(place: Place, dims: int | Sequence[int], keepdim: bool = True) -> Place:
    """Over some dimensions, which are of size 1 then, or left out. Where this leaves one place, everything is mixed."""

    def mean(each: Tensor) -> Tensor | None:
        axes = sorted({dim % each.ndim for dim in ((dims,) if isinstance(dims, int) else dims)})
        mixed = any(each.shape[axis] > 1 for axis in axes)
        left: Tensor = each.nanmean(axes, keepdim=True) if mixed else each
        if mixed and not varies(_tidy(left)):
            return None
        return left if keepdim else left.reshape([n for i, n in enumerate(left.shape) if i not in axes])

    return _each(mean, place)


def _mixes_last(node: Node, look: Callable[[Any], Place]) -> Place:
    """What mixes the channels, the last dimension of the first argument, and keeps the others in place."""
    return _first(node, [_averaged(look(_argument(node, 0, "input", "query")), -1)])


def _recurrent(node: Node, look: Callable[[Any], Place]) -> Place:
    return _mixes_last(node, look) if node.part == 0 else NOWHERE


def _reduced(node: Node, look: Callable[[Any], Place]) -> Place:
    """Means, sums and maxima."""
    given, dims = _input(node), _argument(node, 1, "dim", "axis")
    if not isinstance(given, Node) or not isinstance(dims, (int, list, tuple)) or isinstance(dims, bool):
        return NOWHERE
    return _first(node, [_averaged(look(given), dims, keepdim=len(node.shape) == len(given.shape))])


def _product(first: int = 0) -> _Rule:
    """Products of matrices: rows of the left, columns of the right; behind what they are added to, if anything."""

    def rule(node: Node, look: Callable[[Any], Place]) -> Place:
        names = (("batch1", "mat1"), ("batch2", "mat2")) if first else (("input", "self"), ("other", "mat2"))
        left, right = (_argument(node, first + i, *each) for i, each in enumerate(names))
        if node.operation == "rmatmul":
            left, right = right, left
        if left is None or right is None or min(len(left.shape), len(right.shape)) < 2:
            return NOWHERE

        def factors() -> Iterator[Place]:
            yield _averaged(look(left), -1)
            yield _averaged(look(right), -2)
            if first:
                yield look(_input(node))

        return _first(node, factors())

    return rule


def _window(node: Node, look: Callable[[Any], Place]) -> Place:
    """Convolutions, pooling and resizing: to the centre of the window that is looked through."""
    given = _input(node)
    if not isinstance(given, Node) or len(given.shape) != len(node.shape):
        return NOWHERE
    starts, steps = _geometry(node, given)
    place = look(given)
    if node.operation.startswith("conv"):
        place = _averaged(place, -len(steps) - 1)

    def through(each: Tensor) -> Tensor:
        for i, (start, step) in enumerate(zip(starts, steps, strict=True)):
            axis = each.ndim - len(steps) + i
            if each.shape[axis] > 1 and (start, step, each.shape[axis]) != (0, 1, node.shape[axis]):
                each = _at(each, axis, start + step * torch.arange(node.shape[axis], dtype=torch.float64))
        return each

    return _first(node, [_each(through, place)])


def _padded(node: Node, look: Callable[[Any], Place]) -> Place:
    """What is added has no place."""
    given, pad = _input(node), _argument(node, 1, "pad", "padding")
    if not isinstance(given, Node) or isinstance(pad, int):
        return NOWHERE
    axes = len(pad) // 2

    def grown(each: Tensor) -> Tensor:
        full = each.expand([*each.shape[:-axes], *given.shape[-axes:]])
        return torch.nn.functional.pad(full, list(pad), value=torch.nan)

    return _first(node, [_each(grown, look(given))])


def _at(places: Tensor, axis: int, position: Tensor) -> Tensor:
    """Between and beyond the given places along one axis, linearly."""
    low = position.floor().clamp(0, places.shape[axis] - 2).long()
    share = (position - low).view([-1 if i == axis else 1 for i in range(places.ndim)])
    below, above = places.index_select(axis, low), places.index_select(axis, low + 1)
    between = below + share * (above - below)
    return torch.where(share == 0, below, torch.where(share == 1, above, between))  # not NaN beside a class token


def _geometry(node: Node, given: Node) -> tuple[list[float], list[float]]:
    """Where the first window's centre lies along each axis, in steps of the input, and how far apart they are."""
    _, args, kwargs = node.call
    name = node.operation

    def setting(key: str, position: int, default: Any) -> list[Any]:
        value = kwargs.get(key, args[position] if len(args) > position else None)
        value = default if value is None or value == () or value == [] else value
        return [value] * dims if isinstance(value, (int, bool, str)) else list(value) * (dims // len(value))

    dims = int(name[-2]) if name[-1] == "d" and name[-2].isdigit() else len(node.shape) - 2
    sizes = list(zip(given.shape[-dims:], node.shape[-dims:], strict=True))
    if name.startswith(("adaptive", "interpolate", "upsample")):
        position = 2 if name.startswith("upsample_") and "nearest" not in name else 4
        if kwargs.get("align_corners", args[position] if len(args) > position else False):
            return [0.0] * dims, [(n - 1) / max(m - 1, 1) for n, m in sizes]
        return [n / m / 2 - 0.5 for n, m in sizes], [n / m for n, m in sizes]
    if "pool" in name:
        window = setting("kernel_size", 1, 1)
        stride, padding = setting("stride", 2, window), setting("padding", 3, 0)
        dilation = setting("dilation", 4, 1) if "max" in name else [1] * dims
    else:
        weight = _argument(node, 1, "weight")
        transposed = "transpose" in name
        window, stride, padding = list(weight.shape[-dims:]), setting("stride", 3, 1), setting("padding", 4, 0)
        dilation = setting("dilation", 7 if transposed else 5, 1)
        if transposed:
            halves = [p - d * (k - 1) / 2 for p, d, k in zip(padding, dilation, window, strict=True)]
            return [half / s for half, s in zip(halves, stride, strict=True)], [1 / s for s in stride]
    reach = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]
    before = [r // 2 if p == "same" else 0 if p == "valid" else p for p, r in zip(padding, reach, strict=True)]
    return [r / 2 - p for p, r in zip(before, reach, strict=True)], [float(each) for each in stride]


def _unseen(node: Node, look: Callable[[Any], Place]) -> Place:
    """What no watched function made: as its input lies, if its gradient says that each cell comes from that cell."""
    if len(node.inputs) != 1 or node.inputs[0].shape != node.shape:
        return NOWHERE
    before = node.inputs[0]
    place = look(before)
    axes = [i for i in range(len(node.shape)) if any(each is not None and each.shape[i] > 1 for each in place)]
    for cell in ([n // 2 for n in node.shape], [n // 3 for n in node.shape], [n - 1 for n in node.shape]):
        seed = torch.zeros_like(node.tensor)
        seed[tuple(cell)] = 1
        (gradient,) = torch.autograd.grad(node.tensor, before.tensor, seed, retain_graph=True, allow_unused=True)
        touched = torch.zeros((0, len(cell))) if gradient is None else gradient.nonzero()
        if any((touched[:, i] != cell[i]).any() for i in axes):
            return NOWHERE
    return place


MOVING = {*of.MOVING, *of.STACKING, "setitem", "T", "mT"}
STAYING = {
    *of.SUMS, *of.QUOTIENTS, *of.RAMPS, *of.CURVES, *of.COPIES, "addcmul", "alias", "batch_norm", "data", "detach",
    "group_norm", "iadd", "idiv", "imul", "instance_norm", "isub", "itruediv", "layer_norm", "lerp", "log",
    "log_softmax", "logit", "masked_fill", "maximum", "minimum", "mul", "multiply", "normalize", "pow", "requires_grad",
    "rms_norm", "rsqrt", "rtruediv", "softmax", "softmin",
}  # fmt: skip
_REDUCING = ["amax", "amin", "logsumexp", "max", "mean", "min", "nanmean", "nansum", "std", "sum", "var"]

PLACES: dict[str, _Rule] = {
    **dict.fromkeys(MOVING, _moves),
    **dict.fromkeys(STAYING, _stays),
    **dict.fromkeys(_REDUCING, _reduced),
    **dict.fromkeys(of.LAYERS, _window),
    **dict.fromkeys([*of.RESIZING, *of.sizes("max_pool", "adaptive_max_pool"), "interpolate", "upsample"], _window),
    **dict.fromkeys(["pad", *of.sizes("reflection_pad", "replication_pad")], _padded),
    **dict.fromkeys(["matmul", "rmatmul", "mm", "bmm"], _product()),
    **dict.fromkeys(["addmm", "baddbmm"], _product(1)),
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], _recurrent),
    **dict.fromkeys(["linear", "scaled_dot_product_attention"], _mixes_last),
    "unseen": _unseen,
}
"""What each operation does to places, by name. Those that are written in Python and not named here are taken apart."""
