"""The network as it is, operation by operation: each runs by a rule that keeps its value and replaces its gradient.

`ByOperation`, a `TorchFunctionMode`, sees every operation on what depends on the images, whether a module or a function
called it. What is made of constants alone passes. One forward pass serves any number of seeds, and the network is not
touched. The rules of LRP and DeepLIFT are in `rules`; this file has what both share.

LRP: where g is the replaced gradient, the relevance of x is R = x g. A rule conserves relevance if the sum of x g over
its inputs is the operation's output. What cannot be an input's (a bias, epsilon, f(0)) is handed to `one`, a constant 1
that is a further input of the whole network: R(images) + R(one) is the relevance at the logits, exactly.

DeepLIFT: g is a multiplier, and complete if the sum of g (x - x0) over its inputs is the difference of the outputs. The
network runs at the baseline first, where what each operation is given is noted; the run at the image meets it there.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ratherthan.errors import UnsupportedError, see
from ratherthan.registry import Registry

Rule = Callable[..., Any]
"""rule(op, *args, **kwargs): what `op(*args, **kwargs)` gives, with another gradient."""

_SEEN = "ratherthan"  # marks the nodes of autograd graphs that came out of a rule
IN_PLACE = ("iadd", "isub", "imul", "idiv", "itruediv", "ipow", "setitem")
_HOMES = (torch.Tensor, torch, torch._C._nn)


class ByOperation(TorchFunctionMode):
    """Runs every operation on what depends on the images by its rule, or refuses it by name and place.

    Args:
        method: "LRP" or "DeepLIFT", for messages.
        rules: By the name of an operation, see `key_of`.
        network: The network that runs.
        leaf: (N, ...) the images, which require a gradient.
        layer_rule: LRP's rule of convolutions and linear maps, by the dotted name of the module they run in.

    Attributes:
        one: The constant that absorbs relevance (LRP).
        at_baseline: Whether the network runs at the baseline, before it does at the image (DeepLIFT).
    """

    def __init__(
        self, method: str, rules: Mapping[str, Rule], network: nn.Module, leaf: Tensor, layer_rule: Any = None
    ) -> None:
        super().__init__()
        self.method, self.rules, self.network, self.leaf, self.layer_rule = method, rules, network, leaf, layer_rule
        self.one = torch.ones((), dtype=leaf.dtype, device=leaf.device, requires_grad=True)
        self._open: list[Any] = []
        self._names: dict[int, str] = {id(module): name for name, module in network.named_modules()}
        self._noted = deque[tuple[str, list[Any]]]()
        self.at_baseline = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let pass what does not depend on the images; run the rest by its rule."""
        if func.__name__ == "__get__":  # a property
            made = func(*args)
            return self._mark(func(self._constant(args[0]))) if is_attached(made) else made
        args, kwargs = tree_map(self._constant, (args, kwargs or {}))
        attached = [each for each in tree_leaves((args, kwargs)) if is_attached(each)]
        if not attached:
            return func(*args, **kwargs)
        self.check_seen(*attached)
        return self._mark(self._run(func, args, kwargs))

    def _constant(self, value: Any) -> Any:
        """Parameters are constants here, though they require gradients."""
        parameter = is_attached(value) and value.is_leaf and value is not self.leaf and value is not self.one
        return value.detach() if parameter else value

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__.strip("_")
        if name in IN_PLACE or (func.__name__.endswith("_") and not func.__name__.startswith("_")):
            return self._in_place(name, args, kwargs)
        rule = self.rules.get(key_of(func))
        body = None if rule or func in self._open else body_of(func)
        rule = rule or (composed(body) if body else self.rules.get(name))
        if rule is not None and kwargs.get("out") is None:
            self._open.append(func)  # a function may call the operation of its own name
            made = rule(Operation(func, self), *args, **kwargs)
            self._open.pop()
            return made
        made = func(*args, **kwargs)
        if any(map(is_attached, tree_leaves(made))):
            raise self.refusal(name)
        return made

    def _in_place(self, name: str, args: Any, kwargs: Any) -> Any:
        """Run the like of it that is not in place, and copy: graphs keep what they need as it was."""
        target = args[0]
        if name in ("setitem", "copy", "fill", "zero"):
            index, value = args[1:3] if name == "setitem" else (..., args[1] if args[1:] else 0)
            made = self._run(_set_item, (target.clone(), index, torch.as_tensor(value).to(target)), {})
        else:
            plain = name[1:] if name in IN_PLACE else name
            like = next((getattr(home, plain) for home in _HOMES if hasattr(home, plain)), None)
            if not callable(like):
                raise self.refusal(f"{name}_")
            with self:
                made = like(target.clone(), *args[1:], **kwargs)
        target.copy_(made)
        self._mark(target._base)  # where the target is a view, this changes what it is a view of
        return target

    def _mark(self, made: Any) -> Any:
        for each in tree_leaves(made):
            if is_attached(each) and each.grad_fn is not None:
                each.grad_fn.metadata[_SEEN] = True
        return made

    def check_seen(self, *tensors: Tensor) -> None:
        """Refuse what came out of something that does not pass here, such as a function with a backward of its own."""
        for each in tensors:
            if each.grad_fn is not None and _SEEN not in each.grad_fn.metadata:  # type: ignore[operator]
                name = each.grad_fn.name().split("::")[-1].removesuffix("Backward")
                raise self.refusal(name, " (what it runs cannot be seen)")

    def meet(self, name: str, given: Any) -> list[Any] | None:
        """What an operation was given at the baseline, flat; None while that is the run, which is noted."""
        if self.at_baseline:
            self._noted.append((name, tree_leaves(tree_map(detached, given))))
            return None
        noted, start = self._noted.popleft() if self._noted else ("", [])
        if noted != name:
            raise self.refusal(name, " (the network runs otherwise at the baseline than at the image)")
        return start

    def refusal(self, operation: str, reason: str = "") -> UnsupportedError:
        """What to raise for an operation without a rule."""
        name = self.place()
        kind = type(self.network.get_submodule(name)).__name__
        where = f"in {name!r} ({kind})" if name else "in the network's forward"
        instead = f"add one by register_{self.method.lower()}_rule, or use a method that needs none, 'ixg' or 'ig'"
        instead += see("a-method-refuses-the-network")
        return UnsupportedError(f"{self.method} has no rule for {operation} {where}{reason}: {instead}")

    def place(self) -> str:
        """The dotted name of the innermost module that is running."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            code = frame.f_code
            owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if id(owner) in self._names:
                return self._names[id(owner)]
            frame = frame.f_back
        return ""


@dataclass(frozen=True)
class Operation:
    """One operation, as its rule sees it; call it to run it.

    Attributes:
        function: What was called.
        mode: The run that it is part of.
    """

    function: Any
    mode: ByOperation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return self.function(*args, **kwargs)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.function.__name__).strip("_")

    def attached(self, args: Any, kwargs: Any) -> tuple[dict[int, Tensor], Callable[[dict[int, Tensor]], Any]]:
        """Inputs that depend on the images, by their place; and the operation as a function of inputs at places."""
        leaves, shape = tree_flatten((args, kwargs))

        def run(others: dict[int, Tensor]) -> Any:
            args, kwargs = tree_unflatten([others.get(i, each) for i, each in enumerate(leaves)], shape)
            return self(*args, **kwargs)

        return {i: each for i, each in enumerate(leaves) if is_attached(each)}, run

    def of_one(self, args: Any, kwargs: Any) -> tuple[Tensor, int, Callable[[Tensor], Any]]:
        """The one input that depends on the images, its place, and the operation as a function of it alone.

        Raises:
            UnsupportedError: If several inputs depend on them.
        """
        inputs, run = self.attached(args, kwargs)
        if len(inputs) > 1:
            raise self.mode.refusal(self.name, " where several of its inputs depend on the image")
        ((place, x),) = inputs.items()
        return x, place, lambda x: run({place: x})

    def absorb(self, shares: Tensor, value: Tensor) -> Tensor:
        """`value`, with the gradient of `shares`; the rest, value - shares, goes to the constant (LRP)."""
        return shares + (value - shares).detach() * self.mode.one

    def lift(self, constant: Any) -> Any:
        """A constant tensor or number as a multiple of `one`. Masks may be infinite: such values have no relevance."""
        if isinstance(constant, (int, float)) and not isinstance(constant, bool):
            return constant * self.mode.one
        if not isinstance(constant, Tensor) or not constant.is_floating_point() or is_attached(constant):
            return constant
        return constant + constant.nan_to_num(0.0, 0.0, 0.0) * (self.mode.one - 1)


def is_attached(value: Any) -> bool:
    """Whether it is a tensor that depends on the images."""
    return isinstance(value, Tensor) and value.requires_grad


def detached(value: Any) -> Any:
    """A tensor as a constant; all else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


def key_of(function: Any) -> str:
    """What a function is called in a table: with its module if it is written in Python, and so has parts."""
    python = isinstance(function, FunctionType)
    return f"{function.__module__}.{function.__qualname__}" if python else str(function.__name__).strip("_")


def with_value(shares: Tensor, value: Tensor) -> Tensor:
    """`value`, to the last bit (ties in a maximum must stay ties), with the gradient of `shares` where it is finite."""
    return value.detach() + (shares - shares.detach()).to(value.dtype).nan_to_num(0.0, 0.0, 0.0)


def derivative(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f'(x) of an elementwise function."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(run(leaf).sum(), leaf)[0]


def slope(gain: Tensor, change: Tensor, near: float, limit: Callable[[], Tensor]) -> Tensor:
    """Quotient gain / change; the limit where the change is nearer to 0 than can be divided by."""
    small = change.abs() < near
    quotient = gain / torch.where(small, 1, change)
    return torch.where(small, limit(), quotient) if small.any() else quotient


@cache
def body_of(func: Any) -> FunctionType | None:
    """A function written in Python, made to run by the operations it consists of; None for all others."""
    if not isinstance(func, FunctionType):
        return None
    asked = [name for name in func.__code__.co_names if name.startswith("has_torch_function")]
    if not asked:
        return None
    scope = {**func.__globals__, **dict.fromkeys(asked, lambda *_: False)}
    body = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    x[index] = value
    return x


# --------------------------------------------------------------------------------------------- rules of both methods
def plain(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """The gradient as it is."""
    return op(*args, **kwargs)


def constant(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """Nothing is handed on."""
    return tree_map(detached, op(*args, **kwargs))


def composed(function: Callable[..., Any]) -> Rule:
    """By the rules of the operations that `function`, called in its place, consists of."""

    def rule(op: Operation, *args: Any, **kwargs: Any) -> Any:
        with op.mode:
            return function(*args, **kwargs)

    return rule


def _scale(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _scale_channels(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return _scale(x, *(each if each is None else each.view(-1, *[1] * (x.ndim - 2)) for each in (weight, bias)))


def _rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None, bias: Any = None) -> Tensor:
    size = x.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    return _scale(x * (size + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt(), weight, bias)


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    return _rms_norm(x - x.mean(tuple(range(-len(shape), 0)), keepdim=True), shape, weight, eps, bias)


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    return _scale_channels(_layer_norm(grouped, grouped.shape[2:], eps=eps).reshape(x.shape), weight, bias)


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any) -> Tensor:
    if training or mean is None:
        raise UnsupportedError("batch norm takes its statistics from the batch, in which images cannot be told apart")
    _momentum, eps, *_ = rest
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    return _scale_channels(x, scale, -mean * scale + (0 if bias is None else bias))


def _instance_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, own: bool, *rest: Any) -> Tensor:
    if not own:
        return _batch_norm(x, weight, bias, mean, var, False, *rest)
    return _group_norm(x, x.shape[1], weight, bias, eps=rest[1])


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ value


def _variance(x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, correction: Any = 1) -> Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    dims = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    count = torch.Size([x.shape[each] for each in dims]).numel() - (correction if unbiased else 0)
    return (x - x.mean(dims, keepdim=True)).square().sum(dims, keepdim=keepdim) / count


_COMPOSITIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ["addmm", "baddbmm"], lambda x, a, b, *, beta=1, alpha=1: (x * beta if beta else 0) + a @ b * alpha
    ),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "scaled_dot_product_attention": _attention,
    "var": _variance,
    "std": lambda *args, **kwargs: _variance(*args, **kwargs).sqrt(),
    "masked_fill": lambda x, mask, value: torch.where(mask, torch.as_tensor(value).to(x), x),
    "addcmul": lambda x, a, b, *, value=1: x + a * b * value,
    "lerp": lambda x, end, weight: x + (end - x) * weight,
    "glu": lambda x, dim=-1: x.chunk(2, dim)[0] * x.chunk(2, dim)[1].sigmoid(),
}
COMPOSED: dict[str, Rule] = {name: composed(function) for name, function in _COMPOSITIONS.items()}
"""Norms, attention and other operations by what they consist of."""


def sizes(*names: str) -> list[str]:
    """The names of operations that come in one, two and three dimensions."""
    return [f"{name}{size}d" for name in names for size in (1, 2, 3)]


MOVING = [
    "broadcast_tensors", "broadcast_to", "channel_shuffle", "chunk", "contiguous", "diagonal", "expand", "expand_as",
    "flatten", "flip", "fliplr", "flipud", "gather", "getitem", "hsplit", "im2col", "index_select", "moveaxis",
    "movedim", "narrow", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "reshape",
    "reshape_as", "roll", "rot90", "select", "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t",
    "take_along_dim", "tensor_split", "tile", "transpose", "unbind", "unflatten", "unfold", "unsafe_chunk",
    "unsafe_split", "unsqueeze", "view", "view_as", "vsplit",
]  # fmt: skip
"""They give the same values in other places."""
COPIES = [
    *sizes("dropout"), "bfloat16", "clone", "cpu", "cuda", "double", "dropout", "feature_dropout", "float", "half",
    "native_dropout", "neg", "negative", "positive", "to", "tril", "triu", "type", "type_as",
]  # fmt: skip
"""They give the same values in the same places, some perhaps negated or left out."""
RESIZING = [
    *sizes("adaptive_avg_pool", "avg_pool", "reflection_pad", "replication_pad", "upsample_nearest"),
    "upsample_bicubic2d", "upsample_bicubic2d_aa", "upsample_bilinear2d", "upsample_bilinear2d_aa", "upsample_linear1d",
    "upsample_trilinear3d",
]  # fmt: skip
ADDING = [
    *MOVING, *COPIES, *RESIZING, "alias", "as_strided", "col2im", "cumsum", "diff", "masked_select", "mean", "nansum",
    "sum",
]  # fmt: skip
"""All linear operations without constants: they move values, or add them up."""
SUMS = ["add", "sub", "subtract", "rsub", "where"]
STACKING = ["cat", "concat", "concatenate", "hstack", "vstack", "dstack", "stack"]
JOINS = [*STACKING, "set_item", "index_add", "scatter", "scatter_add"]
PRODUCTS = ["mul", "multiply", "matmul", "rmatmul", "mm", "bmm", "mv", "dot",
            "einsum", "outer", "inner", "tensordot", "bilinear"]  # fmt: skip
LAYERS = [*sizes("conv", "conv_transpose"), "linear"]
NORMS = ["norm", "linalg_vector_norm"]
QUOTIENTS = ["div", "divide", "true_divide", "truediv"]
CHOICES = [*sizes("max_pool", "adaptive_max_pool"), "amax", "amin", "max", "min"]
RAMPS = ["relu", "leaky_relu", "prelu", "rrelu", "abs", "absolute"]
"""Elementwise, f(a x) = a f(x) for a > 0."""
CURVES = [
    "celu", "clamp", "clamp_max", "clamp_min", "clip", "cos", "elu", "erf", "exp", "expm1", "gelu", "hardshrink",
    "hardsigmoid", "hardswish", "hardtanh", "log1p", "mish", "reciprocal", "relu6", "selu", "sigmoid", "silu", "sin",
    "softplus", "softshrink", "softsign", "sqrt", "square", "tanh", "tanhshrink", "threshold",
]  # fmt: skip
"""Elementwise, all others."""


def register(rules: Registry[Rule], operation: str | Callable[..., Any], rule: str | Rule) -> None:
    """Add a rule to a table; see `register_lrp_rule`."""
    key = operation if isinstance(operation, str) else key_of(operation)
    rules[key] = rules.find(rule) if isinstance(rule, str) else rule
