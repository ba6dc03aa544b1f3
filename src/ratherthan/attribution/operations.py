"""LRP and DeepLIFT by operation: a table from the name of an operation to its rule, applied to the network as it is.

`ByOperation`, a `TorchFunctionMode`, sees every operation on what depends on the images, module or function, and runs
it by its rule. A rule leaves the values alone and replaces the gradient, so that one forward pass serves any number of
seeds, and nothing is touched on the network.

LRP: where g is the replaced gradient, the relevance of x is R = x g. A rule conserves relevance if x_1 g_1 + x_2 g_2
+ ... over its inputs is the operation's output. What cannot be an input's (a bias, epsilon, f(0)) is handed to `one`,
a constant 1 that is a further input of the whole network: R(images) + R(one) is the relevance at the logits, exactly.

DeepLIFT: g is a multiplier, and complete if the sum of g (x - x0) over its inputs is the difference of the outputs.
The network runs at the baseline first and its inputs are noted; the rules of the second run, at the images, meet them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ratherthan.errors import InputError, UnsupportedError, unknown

Rule = Callable[..., Any]
"""rule(op, *args, **kwargs): `op(*args, **kwargs)` runs the operation; returns what it gives, with another gradient."""

LayerRule = Literal["epsilon", "z", "gamma", "alpha1-beta0"]

_TINY = 1e-12
_SEEN = "ratherthan.rule"  # a mark on the nodes of autograd graphs
_IN_PLACE = {"iadd", "isub", "imul", "idiv", "itruediv", "ipow", "setitem"}


# --------------------------------------------------------------------------------------------- seeing operations
class Operation:
    """One operation, as a rule sees it; call it to run it.

    Attributes:
        function: What was called.
        mode: The run that it is part of.
        one: The constant 1 that absorbs relevance (LRP).
    """

    def __init__(self, function: Any, mode: ByOperation) -> None:
        self.function, self.mode, self.one = function, mode, mode.one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def absorb(self, shares: Tensor, value: Tensor) -> Tensor:
        """`value`, with the gradient of `shares`; the rest, value - shares, goes to `one`."""
        return shares + (value - shares).detach() * self.one

    def lift(self, constant: Any) -> Any:
        """A constant as a multiple of `one`. Masks may be infinite: their relevance is 0 times that, so 0."""
        if not isinstance(constant, (float, int, Tensor)) or isinstance(constant, bool) or is_attached(constant):
            return constant
        if isinstance(constant, Tensor) and not constant.is_floating_point():
            return constant
        if not isinstance(constant, Tensor):
            return constant * self.one
        return constant + constant.nan_to_num(0.0, 0.0, 0.0) * (self.one - 1)

    def single(self, args: Any, kwargs: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The one input that depends on the images, and the operation as a function of it."""
        leaves, shape = tree_flatten((args, kwargs))
        places = [i for i, each in enumerate(leaves) if is_attached(each)]
        if len(places) > 1:
            raise self.mode.refusal(self.function.__name__, "two inputs that depend on the image")

        def run(x: Tensor) -> Any:
            given = list(leaves)
            given[places[0]] = x
            args, kwargs = tree_unflatten(given, shape)
            return self(*args, **kwargs)

        return leaves[places[0]], run


class ByOperation(TorchFunctionMode):
    """Runs every operation on what depends on the images by its rule, or refuses it by name and place.

    Args:
        method: "LRP" or "DeepLIFT", for messages.
        rules: By name, or by function.
        network: The network that runs.
        leaf: (N, C, H, W) the images, which require a gradient.
        layer_rule: LRP's rule of convolutions and linear maps, chosen for the run as it stands.

    Attributes:
        one: See `Operation.one`.
    """

    def __init__(
        self,
        method: str,
        rules: Mapping[Any, Rule],
        network: nn.Module,
        leaf: Tensor,
        layer_rule: Callable[[ByOperation], Rule] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.rules, self.network, self.layer_rule = method, rules, network, layer_rule
        self.leaf, self.one = leaf, torch.ones((), dtype=leaf.dtype, device=leaf.device, requires_grad=True)
        self._open: list[Any] = []
        self._noted: list[tuple[str, Any]] = []
        self._met: int | None = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let pass what does not depend on the images; hand the rest to its rule."""
        kwargs = kwargs or {}
        if func.__name__ == "__get__":
            made = func(*args)
            return self._mark(func(self._constant(args[0]))) if is_attached(made) else made
        leaves, shape = tree_flatten((args, kwargs))
        leaves = [self._constant(each) for each in leaves]
        attached = [each for each in leaves if is_attached(each)]
        inner, options = tree_unflatten(leaves, shape)
        if not attached:
            return func(*inner, **options)
        self.check_seen(*attached)
        return self._mark(self._run(func, inner, options))

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        if (name.endswith("_") and not name.startswith("__")) or name.strip("_") in _IN_PLACE:
            return self._in_place(func, args, kwargs)
        body = None if func in self.rules or func in self._open else _body(func)
        if body is not None:
            self._open.append(func)  # a method may call the operation of its own name
            with self:
                made = body(*args, **kwargs)
            self._open.pop()
            return made
        rule = self.rules.get(func) or self.rules.get(name.strip("_"))
        if rule is not None and kwargs.get("out") is None:
            return rule(Operation(func, self), *args, **kwargs)
        made = func(*args, **kwargs)
        if any(is_attached(each) for each in tree_flatten(made)[0]):
            raise self.refusal(name.strip("_"))
        return made

    def _in_place(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run what is like it but not in place, and copy: graphs keep what they need as it was."""
        target, name = args[0], func.__name__.strip("_")
        if name in ("setitem", "copy", "fill", "zero"):
            index, value = args[1:3] if name == "setitem" else (..., args[1] if args[1:] else 0)
            made = self._run(_set_item, (target.clone(), index, torch.as_tensor(value).to(target)), {})
        else:
            name = name[1:] if name in _IN_PLACE else name
            like = next((getattr(h, name) for h in (torch.Tensor, torch, torch._C._nn) if hasattr(h, name)), None)
            if not callable(like):
                raise self.refusal(func.__name__)
            with self:
                made = like(target.clone(), *args[1:], **kwargs)
        return self._mark(target.copy_(made))

    def _mark(self, made: Any) -> Any:
        for each in tree_flatten(made)[0]:
            if is_attached(each) and each.grad_fn is not None:
                each.grad_fn.metadata[_SEEN] = True
        return made

    def _constant(self, value: Any) -> Any:
        """Parameters are constants here, though they require gradients."""
        parameter = is_attached(value) and value.is_leaf and value is not self.leaf and value is not self.one
        return value.detach() if parameter else value

    def at_baseline(self, run: Callable[[], Tensor]) -> Tensor:
        """Run at the baseline and note what operations are given, for `meet` (DeepLIFT)."""
        self._met = None
        made = run()
        self._met = 0
        return made

    def meet(self, op: Operation, given: Any) -> Any:
        """What the operation was given at the baseline; None while that is the run."""
        name = op.function.__name__
        if self._met is None:
            self._noted.append((name, tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, given)))
            return None
        if self._met >= len(self._noted) or self._noted[self._met][0] != name:
            raise self.refusal(name, "the network runs otherwise at the baseline than at the image")
        self._met += 1
        return self._noted[self._met - 1][1]

    def check_seen(self, *tensors: Tensor) -> None:
        """Refuse what was made by something that does not pass here: functions with a backward pass of their own."""
        for each in tensors:
            if each.grad_fn is not None and _SEEN not in each.grad_fn.metadata:
                raise self.refusal(each.grad_fn.name().removesuffix("Backward"), "what it runs cannot be seen")

    def refusal(self, operation: str, reason: str = "") -> UnsupportedError:
        """What to raise for an operation that has no rule."""
        name = self.place()
        where = f"in {name!r} ({type(self.network.get_submodule(name)).__name__})" if name else "in the network's forward"
        given = f" ({reason})" if reason else ""
        verb = f"register_{self.method.lower()}_rule"
        return UnsupportedError(
            f"{self.method} has no rule for {operation} {where}{given}; {verb} adds one, and 'ixg' or 'ig' need none"
        )

    def place(self) -> str:
        """The dotted name of the module that is running."""
        names = {id(module): name for name, module in self.network.named_modules()}
        frame = sys._getframe()
        while frame is not None:
            first = frame.f_code.co_varnames[:1] if frame.f_code.co_argcount else ()
            name = names.get(id(frame.f_locals.get(*first))) if first else None
            if name is not None:
                return name
            frame = frame.f_back  # type: ignore[assignment]
        return ""


def is_attached(value: Any) -> bool:
    """Whether it is a tensor that depends on the images."""
    return isinstance(value, Tensor) and value.requires_grad


def _set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    x[index] = value
    return x


@cache
def _body(func: Any) -> FunctionType | None:
    """A function that is written in Python, to run by the operations it is made of; None for all others."""
    if not isinstance(func, FunctionType):
        return None
    asked = [name for name in func.__code__.co_names if name.startswith("has_torch_function")]
    if not asked:
        return None
    scope = {**func.__globals__, **dict.fromkeys(asked, lambda *_: False)}
    body = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


class _WithValue(torch.autograd.Function):
    """Exactly the value, as ties in a maximum must stay ties."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grads[0], None


def with_value(shares: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `shares`."""
    made: Tensor = _WithValue.apply(shares, value.detach())
    return made


# --------------------------------------------------------------------------------------------- rules of both methods
def plain(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """The gradient as it is: linear operations; for LRP all that are homogeneous, f(a x) = a f(x) for a > 0."""
    return op(*args, **kwargs)


def constant(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """Nothing is handed on."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, op(*args, **kwargs))


def composed(function: Callable[..., Any]) -> Rule:
    """As the operations that `function`, called in its place, is made of."""

    def rule(op: Operation, *args: Any, **kwargs: Any) -> Any:
        with op.mode:
            return function(*args, **kwargs)

    return rule


def _normalise(x: Tensor, dims: Any, eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _scale(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Any) -> Tensor:
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    return _scale(_normalise(x, tuple(range(-len(shape), 0)), eps), weight, bias, tuple(shape))


def _rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _scale(x * (x.square().mean(dims, keepdim=True) + eps).rsqrt(), weight, None, tuple(shape))


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    normal = _normalise(x.reshape(len(x), groups, -1), (2,), eps).reshape(x.shape)
    return _scale(normal, weight, bias, (-1, *[1] * (x.ndim - 2)))


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    if training or mean is None:
        raise UnsupportedError("batch norm takes its statistics from the batch: the images cannot be told apart")
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * scale.view(shape) + shift.view(shape)


def _instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    if not own:
        return torch.batch_norm(x, weight, bias, mean, var, False, momentum, eps, False)
    return _scale(_normalise(x, tuple(range(2, x.ndim)), eps), weight, bias, (-1, *[1] * (x.ndim - 2)))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    weights = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return (weights if attn_mask is None else weights + attn_mask).softmax(-1) @ value


def _variance(x: Tensor, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None) -> Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    dims = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    count = torch.Size([x.shape[d] for d in dims]).numel()
    correction = int(unbiased) if correction is None else correction
    return (x - x.mean(dims, keepdim=True)).square().sum(dims, keepdim=keepdim) / (count - correction)


def _norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    dims = tuple(range(x.ndim)) if dim is None else dim
    if ord == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    return x.square().sum(dims, keepdim=keepdim).sqrt() if ord == 2 else torch.linalg.vector_norm(x, ord, dims, keepdim)


_COMPOSED: dict[str, Callable[..., Any]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "scaled_dot_product_attention": _attention,
    "var": _variance,
    "std": lambda *args, **kwargs: _variance(*args, **kwargs).sqrt(),
    "masked_fill": lambda x, mask, value: torch.where(mask, torch.as_tensor(value, dtype=x.dtype, device=x.device), x),
    "addmm": lambda x, a, b, *, beta=1, alpha=1: x * beta + a @ b * alpha,
    "baddbmm": lambda x, a, b, *, beta=1, alpha=1: x * beta + a @ b * alpha if beta else a @ b * alpha,
    "addcmul": lambda x, a, b, *, value=1: x + a * b * value,
    "lerp": lambda x, end, weight: x + (end - x) * weight,
    "glu": lambda x, dim=-1: x.chunk(2, dim)[0] * x.chunk(2, dim)[1].sigmoid(),
}


# --------------------------------------------------------------------------------------------- LRP
def summed(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """Each summand or part has its own; that of a constant is absorbed."""
    return op(*tree_map(op.lift, args), **kwargs)


def placed(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """As `summed`, where numbers among the arguments are places or sizes."""
    return op(*tree_map(lambda x: op.lift(x) if isinstance(x, Tensor) else x, args), **kwargs)


def product(op: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """An equal part for each factor that depends on the image (Achtibat et al. 2024, eq. 14); all, if only one does."""
    made = op(*args, **kwargs)
    factors = sum(is_attached(each) for each in tree_flatten((args, kwargs))[0])
    return made if factors < 2 else with_value(made / factors, made)


def quotient(op: Operation, x: Any, divisor: Any, **kwargs: Any) -> Tensor:
    """All to the dividend, as a normaliser is a constant; to the divisor if only that depends on the image."""
    if is_attached(x):
        return op(x, divisor.detach() if isinstance(divisor, Tensor) else divisor, **kwargs)
    return elementwise(op, x, divisor, **kwargs)


def elementwise(op: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """All to the input; f(0), if finite, is absorbed: g = (f(x) - f(0)) / x, f'(x) where x is 0."""
    x, run = op.single(args, kwargs)
    with torch.no_grad():
        value, start = run(x), run(torch.zeros_like(x)).nan_to_num(0.0, 0.0, 0.0)
        slope = (value - start) / x
        near = x.abs() < torch.finfo(x.dtype).tiny ** 0.5
    if near.any():
        slope = torch.where(near, _derivative(run, x), slope)
    return op.absorb(x * slope, value)


def _derivative(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(run(leaf).sum(), leaf)[0]


def softmax(op: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """The gradient: R_i = x_i (R_i - s_i sum_j R_j) (Achtibat et al. 2024, eq. 13). The rest, s - J x, is absorbed."""
    x, run = op.single(args, kwargs)
    made = run(x)
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    share = made.detach()
    given = torch.where(share > 0, x.detach().to(share.dtype), 0)
    taken = share * (given - (share * given).sum(dim, keepdim=True))
    return made + (share - taken) * (op.one - 1)


def padded(op: Operation, x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """Each value has its own; padding with a number is absorbed."""
    shares = op(x, pad, mode, 0.0 if mode == "constant" else None)
    return op.absorb(shares, op(x.detach(), pad, mode, value)) if value else shares


def layer(op: Operation, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kwargs: Any) -> Tensor:
    """A convolution or a linear map by the chosen rule, z if its weights depend on the image."""
    if is_attached(weight) or is_attached(bias):
        made = product(op, input, weight, None, *rest, **kwargs)
        return made if bias is None else made + op.lift(bias).view(-1, *[1] * (made.ndim - 2))
    assert op.mode.layer_rule is not None
    rule = op.mode.layer_rule(op.mode)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return op(x, weight, None, *rest, **kwargs)

    return rule(op, run, input, weight, None if bias is None else bias.view(-1, *[1] * (weight.ndim - 2)))


def epsilon_rule(epsilon: float) -> Rule:
    """z_ij / (z_j + epsilon sign z_j), z_ij = x_i w_ij; epsilon 0 is LRP-0 (Bach et al. 2015)."""

    def rule(op: Operation, run: Rule, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shares: Tensor = run(x, weight)
        if not epsilon:
            return shares if bias is None else shares + bias * op.one
        value = shares.detach() if bias is None else shares.detach() + bias
        return op.absorb(shares * (value / _away_from_zero(value, epsilon)), value)

    return rule


def gamma_rule(gamma: float) -> Rule:
    """Weights w + gamma w^+ (Montavon et al. 2019)."""

    def rule(op: Operation, run: Rule, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        value, shares = run(x.detach(), weight), run(x, weight + gamma * weight.clamp(min=0))
        return _rescaled(op, value, shares, bias, bias)

    return rule


def alpha1_beta0_rule(op: Operation, run: Rule, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Positive contributions only, (x_i w_ij)^+ / (sum_i (x_i w_ij)^+ + b_j^+) (Bach et al. 2015)."""
    positive = (x.detach() > 0).to(x.dtype)
    shares = run(x * positive, weight.clamp(min=0)) + run(x * (1 - positive), weight.clamp(max=0))
    return _rescaled(op, run(x.detach(), weight), shares, bias, None if bias is None else bias.clamp(min=0))


def _rescaled(op: Operation, value: Tensor, shares: Tensor, bias: Tensor | None, floor: Tensor | None) -> Tensor:
    value = value if bias is None else value + bias
    whole = shares.detach() if floor is None else shares.detach() + floor
    return op.absorb(shares * (value / _away_from_zero(whole, _TINY)), value)


def _away_from_zero(values: Tensor, epsilon: float) -> Tensor:
    return values + torch.where(values < 0, -epsilon, epsilon)


# --------------------------------------------------------------------------------------------- DeepLIFT
def against_baseline(rule: Rule) -> Rule:
    """A rule that is handed what the operation was given at the baseline: rule(op, (args, kwargs), *args, **kwargs)."""

    def run(op: Operation, *args: Any, **kwargs: Any) -> Any:
        start = op.mode.meet(op, (args, kwargs))
        return op(*args, **kwargs) if start is None else rule(op, start, *args, **kwargs)

    return run


def _slope(change: Tensor, gain: Tensor, derivative: Callable[[], Tensor]) -> Tensor:
    """gain / change; the derivative where the change is too small to divide by."""
    near = change.abs() < 1e-10
    slope = torch.where(near, 0, gain / torch.where(near, 1, change))
    return torch.where(near, derivative(), slope) if near.any() else slope


@against_baseline
def rescaled(op: Operation, start: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The rescale rule (Shrikumar et al. 2017): (f(x) - f(x0)) / (x - x0), f'(x) where x is x0."""
    x, run = op.single(args, kwargs)
    x0 = _counterpart(x, (args, kwargs), start)
    with torch.no_grad():
        value = run(x)
        slope = _slope(x - x0, value - run(x0), lambda: _derivative(run, x))
    return with_value(x * slope, value)


def _counterpart(x: Tensor, given: Any, start: Any) -> Tensor:
    """What was in x's place at the baseline."""
    at = next(i for i, each in enumerate(tree_flatten(given)[0]) if each is x)
    found: Tensor = tree_flatten(start)[0][at]
    return found


@against_baseline
def midpoint(op: Operation, start: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Of a product, complete: a b - a0 b0 = (a - a0) (b + b0) / 2 + (b - b0) (a + a0) / 2."""
    leaves, shape = tree_flatten((args, kwargs))
    places = [i for i, each in enumerate(leaves) if is_attached(each)]
    if len(places) == 1:
        return op(*args, **kwargs)  # type: ignore[no-any-return]
    if len(places) > 2:
        raise op.mode.refusal(op.function.__name__, "more than two factors that depend on the image")
    mean = [(leaves[i].detach() + tree_flatten(start)[0][i]) / 2 for i in places]
    made = []
    for own, other in ((0, 1), (1, 0)):
        given = list(leaves)
        given[places[other]] = mean[other]
        args_, kwargs_ = tree_unflatten(given, shape)
        made.append(op(*args_, **kwargs_))
    with torch.no_grad():
        value = op(*args, **kwargs)
    return with_value(made[0] + made[1], value)


@against_baseline
def chosen(op: Operation, start: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Max pooling (Shrikumar et al. 2017): the rise above the lesser of two maxima goes to where the greater is.

    For windows with tops t and t0, at the image and at the baseline, and u = max(t, t0): u - t0 belongs to the place
    of t and t - u to that of t0, each divided by the change of the value there.
    """
    x, run = op.single(args, kwargs)
    x0 = _counterpart(x, (args, kwargs), start)
    with torch.no_grad():
        top, top0 = run(x), run(x0)
        both = torch.maximum(top, top0)
        change = x - x0
        near = change.abs() < 1e-10
        inverse = torch.where(near, 0, 1 / torch.where(near, 1, change))
    made = run(with_value(x * inverse, x)) * (both - top0) + run(with_value(x * inverse, x0)) * (top - both)
    if near.any():
        made = made + run(with_value(x * near, x))
    return with_value(made, top)


@against_baseline
def softmax_by_parts(op: Operation, start: Any, *args: Any, **kwargs: Any) -> Tensor:
    """As exp(x - log(sum(exp x))), each part by the rescale rule: complete, and finite however far x is from x0."""
    x, run = op.single(args, kwargs)
    x0 = _counterpart(x, (args, kwargs), start)
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    with torch.no_grad():
        value, value0 = run(x), run(x0)
        finite = x.isfinite() & x0.isfinite()
        x0, given = torch.where(finite, x0, 0), torch.where(finite, x.detach(), 0)
        top = torch.maximum(x, torch.where(finite, x0, -torch.inf)).amax(dim, keepdim=True)
        power, power0 = (torch.where(finite, (each - top).exp(), 0) for each in (given, x0))
        total, total0 = power.sum(dim, keepdim=True), power0.sum(dim, keepdim=True)
        level, level0 = (torch.where(finite, x, -torch.inf).logsumexp(dim, keepdim=True) for x in (given, x0))
        change = given - x0
        rise = _slope(total - total0, level - level0, lambda: 1 / total)
        weights = _slope(change, power - power0, lambda: power) * rise
        outer = _slope(change - (level - level0), value - value0, lambda: value)
    shares = torch.where(finite, x, 0)
    return with_value(outer * (shares - (weights * shares).sum(dim, keepdim=True)), value)


def quotient_by_parts(op: Operation, x: Any, divisor: Any, **kwargs: Any) -> Any:
    """As a product with the reciprocal."""
    if not is_attached(divisor):
        return op(x, divisor, **kwargs)
    with op.mode:
        return divisor.reciprocal() * x


def larger(x: Tensor, y: Any) -> Tensor:
    """max(x, y) by the rule of ReLU."""
    return y + (x - y).relu()


def _max(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None:
        return x.amax()
    if isinstance(dim, Tensor):
        return larger(x, dim)
    return torch.return_types.max((x.amax(dim, keepdim), x.argmax(dim, keepdim)))


# --------------------------------------------------------------------------------------------- tables
_MOVING = """
    T H mT mH real data adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d alias as_strided avg_pool1d avg_pool2d avg_pool3d
    broadcast_to broadcast_tensors channel_shuffle chunk clone col2im contiguous cpu cuda cumsum detach diagonal diff double
    dropout dropout1d dropout2d dropout3d expand expand_as feature_dropout flatten flip fliplr flipud float fold gather
    getitem half bfloat16 hsplit im2col index_select mean moveaxis movedim nansum narrow native_dropout neg negative
    permute pixel_shuffle pixel_unshuffle positive repeat repeat_interleave reshape reshape_as roll rot90 select split
    split_with_sizes squeeze sum swapaxes swapdims t take_along_dim tensor_split tile to transpose tril triu type type_as
    unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d view view_as vsplit
    upsample_bicubic2d_aa upsample_bilinear2d_aa reflection_pad1d reflection_pad2d replication_pad2d masked_select
""".split()
_SUMS = "add sub subtract rsub where".split()
_PARTS = "cat concat concatenate hstack vstack dstack stack set_item index_add scatter scatter_add".split()
_PRODUCTS = "mul multiply matmul rmatmul mm bmm mv dot einsum outer inner tensordot bilinear".split()
_LAYERS = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()
_CHOICES = """
    amax amin max min max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
""".split()
_HOMOGENEOUS = "relu leaky_relu prelu rrelu abs absolute".split()
_CURVES = """
    celu clamp clamp_max clamp_min clip cos elu erf exp expm1 gelu hardshrink hardsigmoid hardswish hardtanh log1p
    mish pow relu6 selu sigmoid silu sin softplus softshrink softsign sqrt square tanh tanhshrink threshold
""".split()
_NORMALISERS = ["rsqrt"]
_QUOTIENTS = "div divide true_divide truediv".split()

LRP_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_MOVING + _CHOICES + _HOMOGENEOUS + ["maximum", "minimum", "norm", "linalg_vector_norm", "topk"], plain),
    **dict.fromkeys(_SUMS, summed),
    **dict.fromkeys(_PARTS, placed),
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(_LAYERS, layer),
    **dict.fromkeys(_QUOTIENTS, quotient),
    **dict.fromkeys([*_CURVES, "reciprocal"], elementwise),
    **dict.fromkeys(_NORMALISERS, constant),
    "pad": padded,
    "softmax": softmax,
    **{name: composed(function) for name, function in _COMPOSED.items()},
}

DEEPLIFT_RULES: dict[Any, Rule] = {
    **dict.fromkeys([*_MOVING, *_SUMS, *_PARTS, "pad"], plain),
    **dict.fromkeys([*_PRODUCTS, *_LAYERS], midpoint),
    **dict.fromkeys(_CHOICES, chosen),
    **dict.fromkeys([*_CURVES, *_HOMOGENEOUS, *_NORMALISERS, "reciprocal", "log"], rescaled),
    **dict.fromkeys(_QUOTIENTS, quotient_by_parts),
    **dict.fromkeys(["norm", "linalg_vector_norm"], composed(_norm)),
    "max": composed(_max),
    "maximum": composed(larger),
    "minimum": composed(lambda x, y: -larger(-x, -y)),
    "softmax": softmax_by_parts,
    **{name: composed(function) for name, function in _COMPOSED.items()},
}


def register_lrp_rule(operation: str | Callable[..., Any], rule: str | Rule) -> None:
    """Give LRP a rule for an operation.

    Args:
        operation: Its name, as a refusal has it, or the function.
        rule: The name of an operation that has the rule, e.g. "gelu" for another activation; or a function
            rule(op, *args, **kwargs) that returns what `op(*args, **kwargs)` does, with another gradient.

    Example:
        >>> register_lrp_rule("logit", "tanh")
    """
    _register(LRP_RULES, operation, rule)


def register_deeplift_rule(operation: str | Callable[..., Any], rule: str | Rule) -> None:
    """Give DeepLIFT a rule for an operation: arguments as in `register_lrp_rule`.

    Example:
        >>> register_deeplift_rule("logit", "tanh")
    """
    _register(DEEPLIFT_RULES, operation, rule)


def _register(rules: dict[Any, Rule], operation: Any, rule: Any) -> None:
    if isinstance(rule, str) and rule not in rules:
        raise InputError(unknown("operation", rule, [each for each in rules if isinstance(each, str)]))
    rules[operation] = rules[rule] if isinstance(rule, str) else rule
