"""DeepLIFT: which rule each operation has. See `operations` for what a rule is and how it gets to know the baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ratherthan.attribution import operations as of
from ratherthan.attribution.operations import Operation, Rule, composed, is_attached, with_value
from ratherthan.registry import Registry

_NEAR = 1e-10  # changes below are not divided by


def against_baseline(rule: Rule) -> Rule:
    """A rule that is also handed what there was at the baseline, flat: rule(op, start, *args, **kwargs)."""

    def run(op: Operation, *args: Any, **kwargs: Any) -> Any:
        start = op.mode.meet(op.name, (args, kwargs))
        return op(*args, **kwargs) if start is None else rule(op, start, *args, **kwargs)

    return run


@against_baseline
def rescaled(op: Operation, start: list[Any], *args: Any, **kwargs: Any) -> Tensor:
    """The rescale rule (Shrikumar et al. 2017): (f(x) - f(x0)) / (x - x0), and f'(x) where x is x0."""
    x, place, run = op.of_one(args, kwargs)
    x0 = start[place]
    with torch.no_grad():
        value: Tensor = run(x)
        slope = of.slope(value - run(x0), x - x0, _NEAR, lambda: of.derivative(run, x))
    return with_value(x * slope, value)


@against_baseline
def midpoint(op: Operation, start: list[Any], *args: Any, **kwargs: Any) -> Tensor:
    """Of a product, complete: a b - a0 b0 = (a - a0) (b + b0) / 2 + (b - b0) (a + a0) / 2."""
    factors, run = op.attached(args, kwargs)
    value: Tensor = run({})
    if len(factors) == 1:
        return value
    if len(factors) > 2:
        raise op.mode.refusal(op.name, " where more than two factors depend on the image")
    left, right = (run({place: (factor.detach() + start[place]) / 2}) for place, factor in factors.items())
    return with_value(left + right, value)


@against_baseline
def chosen(op: Operation, start: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Maxima: for t and t0, those at the image and at the baseline, and u = max(t, t0), t - t0 is split in two parts.

    u - t0 belongs to the place of t and t - u to that of t0, each divided by the change of the value there.
    """
    x, place, run = op.of_one(args, kwargs)
    x0, made = start[place], run(x)

    def maxima(x: Tensor) -> Tensor:
        found = run(x)
        return found if isinstance(found, Tensor) else found[0]

    with torch.no_grad():
        top, top0 = maxima(x), maxima(x0)
        both = torch.maximum(top, top0)
        near = (x - x0).abs() < _NEAR
        inverse = torch.where(near, 0, 1 / torch.where(near, 1, x - x0))
    shares = maxima(with_value(x * inverse, x)) * (both - top0) + maxima(with_value(x * inverse, x0)) * (top - both)
    if near.any():
        shares = shares + maxima(with_value(x * near, x))
    found = with_value(shares, top)
    return found if isinstance(made, Tensor) else type(made)((found, *made[1:]))


@against_baseline
def softmax(op: Operation, start: list[Any], *args: Any, **kwargs: Any) -> Tensor:
    """As exp(x - log(sum(exp x))), each part by the rescale rule: complete, and finite however far x is from x0."""
    x, place, run = op.of_one(args, kwargs)
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    with torch.no_grad():
        value, value0 = run(x), run(start[place])
        shown = x.isfinite() & start[place].isfinite()  # what is masked takes no part
        x1, x0 = (torch.where(shown, each.to(value.dtype), -torch.inf) for each in (x, start[place]))
        top = torch.maximum(x1, x0).amax(dim, keepdim=True)
        power1, power0 = (x1 - top).exp(), (x0 - top).exp()
        total1, total0 = power1.sum(dim, keepdim=True), power0.sum(dim, keepdim=True)
        rise = x1.logsumexp(dim, keepdim=True) - x0.logsumexp(dim, keepdim=True)
        change = torch.where(shown, x1 - x0, 0)
        weights = of.slope(power1 - power0, change, _NEAR, lambda: power1)
        weights = weights * of.slope(rise, total1 - total0, _NEAR, lambda: 1 / total1)
        slope = of.slope(value - value0, change - rise, _NEAR, lambda: value)
    shares = torch.where(shown, x, 0)
    return with_value(slope * (shares - (weights * shares).sum(dim, keepdim=True)), value)


def quotient(op: Operation, x: Any, divisor: Any, **kwargs: Any) -> Any:
    """A product with the reciprocal."""
    if not is_attached(divisor):
        return op(x, divisor, **kwargs)
    with op.mode:
        return divisor.reciprocal() * x


def _norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    dims = tuple(range(x.ndim)) if dim is None else dim
    return x.abs().pow(ord).sum(dims, keepdim=keepdim).pow(1 / ord)


# --------------------------------------------------------------------------------------------- the table
_TABLE: dict[str, Rule] = {
    **dict.fromkeys([*of.ADDING, *of.SUMS, *of.JOINS, "pad"], of.plain),
    **dict.fromkeys([*of.PRODUCTS, *of.LAYERS], midpoint),
    **dict.fromkeys(of.CHOICES, chosen),
    **dict.fromkeys([*of.CURVES, *of.RAMPS, "rsqrt", "log", "pow"], rescaled),
    **dict.fromkeys(of.QUOTIENTS, quotient),
    **dict.fromkeys(of.NORMS, composed(_norm)),
    "maximum": composed(lambda x, y: y + (x - y).relu()),
    "minimum": composed(lambda x, y: x - (x - y).relu()),
    "softmax": softmax,
    **of.COMPOSED,
}
DEEPLIFT_RULES = Registry("operation", _TABLE.items())


def register_deeplift_rule(operation: str | Callable[..., Any], rule: str | Rule) -> None:
    """Give DeepLIFT a rule for an operation, or another one.

    Args:
        operation: Its name, as a refusal has it, or the function that is called.
        rule: The name of an operation that has the rule, e.g. "gelu" for a further elementwise function; or a function
            rule(op, *args, **kwargs) that returns the value of `op(*args, **kwargs)` with multipliers for a gradient.

    Raises:
        InputError: If no operation of that name has a rule.

    Example:
        >>> register_deeplift_rule("logit", "tanh")
    """
    of.register(DEEPLIFT_RULES, operation, rule)
