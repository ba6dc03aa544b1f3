"""LRP: which rule each operation has. See `operations` for what a rule is and how relevance is read from gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ratherthan.attribution import operations as of
from ratherthan.attribution.operations import Operation, Rule, constant, detached, is_attached, with_value
from ratherthan.registry import Registry

_TINY = 1e-12  # keeps a quotient finite where all contributions are 0 and so all shares of it


def summed(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """Each summand has its own; that of a constant is absorbed."""
    return op(*tree_map(op.lift, args), **kwargs)


def joined(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """As `summed`, of tensors only: numbers are places here."""
    return op(*tree_map(lambda x: op.lift(x) if isinstance(x, Tensor) else x, args), **kwargs)


def product(op: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """An equal part for every factor that depends on the image (Achtibat et al. 2024, uniform rule)."""
    made: Tensor = op(*args, **kwargs)
    factors = sum(map(is_attached, tree_leaves((args, kwargs))))
    return made if factors < 2 else with_value(made / factors, made)


def quotient(op: Operation, x: Any, divisor: Any, **kwargs: Any) -> Tensor:
    """All to the dividend, as a norm counts as constant; to the divisor if only that depends on the image."""
    if not is_attached(x):
        return elementwise(op, x, divisor, **kwargs)
    return op(x, detached(divisor), **kwargs)  # type: ignore[no-any-return]


def elementwise(op: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """All to the input; f(0), where finite, is absorbed: g = (f(x) - f(0)) / x, and f'(x) where x is 0."""
    x, _, run = op.of_one(args, kwargs)
    with torch.no_grad():
        value, start = run(x), run(torch.zeros_like(x)).nan_to_num(0.0, 0.0, 0.0)
        slope = of.slope(value - start, x, torch.finfo(x.dtype).tiny ** 0.5, lambda: of.derivative(run, x))
    return op.absorb(x * slope, value)


def power(op: Operation, x: Any, exponent: Any, **kwargs: Any) -> Any:
    """As `elementwise`; a negative exponent makes a norm, which counts as constant."""
    norm = isinstance(exponent, (int, float)) and exponent < 0
    return (constant if norm else elementwise)(op, x, exponent, **kwargs)


def softmax(op: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """The gradient: R_i = x_i (R_i - s_i sum_j R_j) (Achtibat et al. 2024, proposition 3.1); s - J x is absorbed."""
    x, _, run = op.of_one(args, kwargs)
    made: Tensor = run(x)
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    share = made.detach()
    given = torch.where(share > 0, x.detach().to(share.dtype), 0)  # masked values are infinite
    taken = share * (given - (share * given).sum(dim, keepdim=True))
    return made + (share - taken) * (op.mode.one - 1)


def padded(op: Operation, x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """Each value has its own; padding with a number is absorbed."""
    shares: Tensor = op(x, pad, mode, None)
    return shares + op.lift(op(torch.zeros_like(x), pad, mode, value)) if value else shares


# --------------------------------------------------------------------------------------------- layers with weights
def layer(
    op: Operation, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kwargs: Any
) -> Tensor:
    """By the rule that is chosen for the layer; a product if its weights depend on the image."""
    bias = weight.new_zeros(()) if bias is None else bias.view(-1, *[1] * (weight.ndim - 2))
    if is_attached(weight) or is_attached(bias):
        return product(op, input, weight, None, *rest, **kwargs) + op.lift(bias)  # type: ignore[no-any-return]
    rule = op.mode.layer_rule(op.mode.place)
    made: Tensor = rule(op, lambda x, weight: op(x, weight, None, *rest, **kwargs), input, weight, bias)
    return made


def epsilon_rule(epsilon: float) -> Rule:
    """z_ij / (z_j + epsilon sign z_j), z_ij = x_i w_ij; with epsilon 0, LRP-0 (Bach et al. 2015)."""

    def rule(op: Operation, run: Rule, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        shares: Tensor = run(x, weight)
        if not epsilon:
            return shares + bias * op.mode.one
        value = shares.detach() + bias
        return _in_proportion(op, shares, value, value, epsilon)

    return rule


def gamma_rule(gamma: float) -> Rule:
    """Weights w + gamma w^+ (Montavon et al. 2019)."""

    def rule(op: Operation, run: Rule, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        shares = run(x, weight + gamma * weight.clamp(min=0))
        return _in_proportion(op, shares, shares.detach() + bias, run(x.detach(), weight) + bias)

    return rule


def alpha1_beta0_rule(op: Operation, run: Rule, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Positive contributions only, (x_i w_ij)^+ / (sum_i (x_i w_ij)^+ + b_j^+) (Bach et al. 2015)."""
    positive = (x.detach() > 0).to(x.dtype)
    shares = run(x * positive, weight.clamp(min=0)) + run(x * (1 - positive), weight.clamp(max=0))
    return _in_proportion(op, shares, shares.detach() + bias.clamp(min=0), run(x.detach(), weight) + bias)


def _in_proportion(op: Operation, shares: Tensor, whole: Tensor, value: Tensor, epsilon: float = _TINY) -> Tensor:
    """`value`, handed on as shares of a whole that is kept away from zero."""
    return op.absorb(shares * (value / torch.where(whole < 0, whole - epsilon, whole + epsilon)), value)


# --------------------------------------------------------------------------------------------- the table
_TABLE: dict[str, Rule] = {
    **dict.fromkeys([*of.ADDING, *of.CHOICES, *of.RAMPS, *of.NORMS, "maximum", "minimum", "topk"], of.plain),
    **dict.fromkeys(of.SUMS, summed),
    **dict.fromkeys(of.JOINS, joined),
    **dict.fromkeys(of.PRODUCTS, product),
    **dict.fromkeys(of.LAYERS, layer),
    **dict.fromkeys(of.QUOTIENTS, quotient),
    **dict.fromkeys(of.CURVES, elementwise),
    "rsqrt": constant,
    "pow": power,
    "pad": padded,
    "softmax": softmax,
    **of.COMPOSED,
}
LRP_RULES = Registry("operation", _TABLE.items())


def register_lrp_rule(operation: str | Callable[..., Any], rule: str | Rule) -> None:
    """Give LRP a rule for an operation, or another one.

    Args:
        operation: Its name, as a refusal has it, or the function that is called.
        rule: The name of an operation that has the rule, e.g. "gelu" for a further activation; or a function
            rule(op, *args, **kwargs) that returns the value of `op(*args, **kwargs)` with another gradient g, such that
            the relevance of an input x is x g.

    Raises:
        InputError: If no operation of that name has a rule.

    Example:
        >>> register_lrp_rule("logit", "tanh")
    """
    of.register(LRP_RULES, operation, rule)
