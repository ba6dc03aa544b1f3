"""Methods that hand relevance down by rules of their own instead of gradients, and their rules: LRP and DeepLift.

See `operations` for what a rule is, how relevance is read from gradients, and how a rule gets to know the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ratherthan.attribution import operations as of
from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.attribution.operations import ByOperation, Operation, Rule
from ratherthan.contrast import Target
from ratherthan.errors import UnsupportedError, told_as
from ratherthan.model import HALF, Model
from ratherthan.registry import Registry
from ratherthan.settings import NotNegative

LayerRule = Literal["epsilon", "z", "gamma", "alpha1-beta0"]

TOLERANCE = 1e-3
"""How much the sum of a map may miss: see `LRP` and `DeepLift` for what it is a share of."""

_ABSORBED = 1 - 1e-9  # a map in which no more is left is one of zeros; in float32 this is 1
_AWAY = 1e-12  # keeps a quotient finite where all contributions are 0 and so all shares of it
_NEAR = 1e-10  # changes below are not divided by


# --------------------------------------------------------------------------------------------- rules of LRP
def summed(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """Each summand has its own; that of a constant is absorbed."""
    return op(*tree_map(op.lift, args), **kwargs)


def joined(op: Operation, *args: Any, **kwargs: Any) -> Any:
    """As `summed`, of tensors only: numbers are places here."""
    return op(*tree_map(lambda x: op.lift(x) if isinstance(x, Tensor) else x, args), **kwargs)


def product(op: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """An equal part for every factor that depends on the image (Achtibat et al. 2024, uniform rule)."""
    made: Tensor = op(*args, **kwargs)
    factors = sum(map(of.is_attached, tree_leaves((args, kwargs))))
    return made if factors < 2 else of.with_value(made / factors, made)


def quotient(op: Operation, x: Any, divisor: Any, **kwargs: Any) -> Tensor:
    """All to the dividend, as a norm counts as constant; to the divisor if only that depends on the image."""
    if not of.is_attached(x):
        return elementwise(op, x, divisor, **kwargs)
    return op(x, of.detached(divisor), **kwargs)  # type: ignore[no-any-return]


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
    return (of.constant if norm else elementwise)(op, x, exponent, **kwargs)


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
    if of.is_attached(weight) or of.is_attached(bias):
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


def _in_proportion(op: Operation, shares: Tensor, whole: Tensor, value: Tensor, epsilon: float = _AWAY) -> Tensor:
    """`value`, handed on as shares of a whole that is kept away from zero."""
    return op.absorb(shares * (value / torch.where(whole < 0, whole - epsilon, whole + epsilon)), value)


_LRP_TABLE: dict[str, Rule] = {
    **dict.fromkeys([*of.ADDING, *of.CHOICES, *of.RAMPS, *of.NORMS, "maximum", "minimum", "topk"], of.plain),
    **dict.fromkeys(of.SUMS, summed),
    **dict.fromkeys(of.JOINS, joined),
    **dict.fromkeys(of.PRODUCTS, product),
    **dict.fromkeys(of.LAYERS, layer),
    **dict.fromkeys(of.QUOTIENTS, quotient),
    **dict.fromkeys(of.CURVES, elementwise),
    "rsqrt": of.constant,
    "pow": power,
    "pad": padded,
    "softmax": softmax,
    **of.COMPOSED,
}
LRP_RULES = Registry("operation", _LRP_TABLE.items())


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


# --------------------------------------------------------------------------------------------- rules of DeepLIFT
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
    return of.with_value(x * slope, value)


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
    return of.with_value(left + right, value)


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
    shares = maxima(of.with_value(x * inverse, x)) * (both - top0) + maxima(of.with_value(x * inverse, x0)) * (
        top - both
    )
    if near.any():
        shares = shares + maxima(of.with_value(x * near, x))
    found = of.with_value(shares, top)
    return found if isinstance(made, Tensor) else type(made)((found, *made[1:]))


@against_baseline
def softmax_rescaled(op: Operation, start: list[Any], *args: Any, **kwargs: Any) -> Tensor:
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
    return of.with_value(slope * (shares - (weights * shares).sum(dim, keepdim=True)), value)


def product_of_reciprocal(op: Operation, x: Any, divisor: Any, **kwargs: Any) -> Any:
    """A product with the reciprocal."""
    if not of.is_attached(divisor):
        return op(x, divisor, **kwargs)
    with op.mode:
        return divisor.reciprocal() * x


def _norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    dims = tuple(range(x.ndim)) if dim is None else dim
    return x.abs().pow(ord).sum(dims, keepdim=keepdim).pow(1 / ord)


_DEEPLIFT_TABLE: dict[str, Rule] = {
    **dict.fromkeys([*of.ADDING, *of.SUMS, *of.JOINS, "pad"], of.plain),
    **dict.fromkeys([*of.PRODUCTS, *of.LAYERS], midpoint),
    **dict.fromkeys(of.CHOICES, chosen),
    **dict.fromkeys([*of.CURVES, *of.RAMPS, "rsqrt", "log", "pow"], rescaled),
    **dict.fromkeys(of.QUOTIENTS, product_of_reciprocal),
    **dict.fromkeys(of.NORMS, of.composed(_norm)),
    "maximum": of.composed(lambda x, y: y + (x - y).relu()),
    "minimum": of.composed(lambda x, y: x - (x - y).relu()),
    "softmax": softmax_rescaled,
    **of.COMPOSED,
}
DEEPLIFT_RULES = Registry("operation", _DEEPLIFT_TABLE.items())


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


# --------------------------------------------------------------------------------------------- the methods
@register_method
@dataclass(frozen=True)
class LRP(Method):
    """Layer-wise relevance propagation (Bach et al. 2015): the contrast is handed down, layer by layer, in shares.

    Relevance starts at the logits as R_c = seed_c * y_c, so that it adds up to the linear contrast sum_c seed_c y_c;
    an operation hands it on in proportion to what each of its inputs contributed, by the rule that
    `docs/methods/rules.md` lists for it. What constants absorb (biases, epsilon, class tokens, values without a
    gradient) is the diagnostic `absorbed`, (N, Q); a map and what is absorbed add up to the linear contrast.
    `convergence delta` is the same with a minus. `absorbed share`, (N, Q), is |absorbed| / (|absorbed| +
    sum_i |R_i|), from 0 to 1.

    Refused are networks for which the relevance of images and constants misses more than 1e-3 of
    sum_c |seed_c| max_c |y_c|, over all images, and questions whose whole relevance is absorbed: their map would be
    zeros (an image that is 0 where the first layer sees it excepted, whose relevance is 0).

    Contrastive LRP (CLRP, Gu et al. 2018) is the `mean` contrast of LRP, or a single foil; softmax-gradient LRP
    (SGLRP, Iwana et al. 2019) is `probability`, up to its positive factor `weighted`.

    The relevance of a normalised pixel is shown at the pixel: x is what the first layer sees.

    Attributes:
        rule: Of convolutions and linear maps. "epsilon": z_ij / (z_j + epsilon sign z_j), z_ij = x_i w_ij. "z": the
            same with epsilon 0 (LRP-0; for networks of ReLUs this is input times gradient).
            "gamma": weights w + gamma w^+ (Montavon et al. 2019), for layers whose inputs are not negative. Where they
            are signed (behind SiLU, GELU, tanh, norms), its denominators come near zero: the parts of a map grow far
            beyond the contrast and cancel, and float32 loses digits, at worst all of them. Sums that are missed by that
            are refused; single values may be far off before the sums are. Give such layers another rule, by
            `layers`, or use float64 weights.
            "alpha1-beta0": positive contributions only.
        epsilon: Of "epsilon", in units of a layer's output.
        gamma: Of "gamma".
        layers: Other rules for some layers, by the dotted name of a module: it holds for all that is inside.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> explain(model, images, method=LRP("epsilon", layers={"features.0": "gamma"}))
    """

    rule: LayerRule = "epsilon"
    epsilon: NotNegative = 1e-6
    gamma: NotNegative = 0.25
    layers: Mapping[str, LayerRule] | None = None

    name = "lrp"
    linear = True

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): relevance of every value of the image.

        Raises:
            UnsupportedError: If the network runs an operation that LRP has no rule for (the message names it), if
                relevance is lost, or if constants absorb all of it.
        """
        model, seeds = forward_pass.model, target.seeds
        scores, values, constants = self.propagate(model, forward_pass.images, seeds)
        _check_same(scores, target.logits, model)
        start = torch.einsum("nqc,nc->q", seeds, target.logits)
        scale = (seeds.abs().sum(2) * target.logits.abs().amax(1, keepdim=True)).sum(0)
        lost = (start - values.flatten(2).sum((0, 2)) - constants).abs()
        _check(lost, scale, model, "LRP loses {} of the relevance", "a rule does not conserve it")
        absorbed = torch.einsum("nqc,nc->nq", seeds, target.logits) - values.flatten(2).sum(2)
        share = absorbed.abs() / (absorbed.abs() + values.flatten(2).abs().sum(2) + _tiny(values))
        if (share[model.normalise(forward_pass.images).flatten(1).any(1)] >= _ABSORBED).any():
            why = "what depends on the image passes a detach, a norm alone, or dead units; use 'occlusion'"
            what = f"constants absorb all relevance that LRP hands down in {model.name}, and a map would be zeros"
            raise UnsupportedError(f"{what}: {why}")
        noted = {"absorbed": absorbed, "absorbed share": share, "convergence delta": -absorbed}
        return Attribution(values, diagnostics=noted)

    def propagate(self, model: Model, images: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hand relevance down.

        Args:
            model: The model.
            images: (N, C, H, W) in image space.
            seeds: (N, Q, classes).

        Returns:
            The scores the network gives, the relevance of the images (N, Q, C, H, W), and that of all constants, (Q,),
            over all images: together they add up to sum_n sum_c seed_c y_c.

        Raises:
            UnsupportedError: If the network runs an operation that LRP has no rule for; the message names it.
        """
        _refuse(model, "LRP")
        for name in self.layers or ():
            model.submodule(name)
        leaf = model.normalise(images).detach().requires_grad_()
        mode = ByOperation("LRP", LRP_RULES, model.module, leaf, self._layer_rule)
        with torch.enable_grad(), mode:
            scores = model.output.logits(model.scores(leaf.clone()), model.name)
        gradients, constants = _pull(scores, mode, seeds)
        return scores.detach(), leaf.detach().unsqueeze(1) * gradients, constants

    def _layer_rule(self, place: Callable[[], str]) -> Rule:
        layers = self.layers or {}
        inside = [name for name in layers if f"{place()}.".startswith(f"{name}.")]
        rules = {"epsilon": epsilon_rule(self.epsilon), "z": epsilon_rule(0), "gamma": gamma_rule(self.gamma)}
        return rules.get(layers[max(inside, key=len)] if inside else self.rule, alpha1_beta0_rule)


@register_method
@dataclass(frozen=True)
class DeepLift(Method):
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017): (x - x0) times multipliers delta y / delta x.

    The values of a map add up to sum_c seed_c (y_c(x) - y_c(x0)), the linear contrast, with the foils weighed as at x.
    That is checked for every map: where more than 1e-3 of sum_c |seed_c (y_c(x) - y_c(x0))| is missing, the network
    is refused. What is missing below that is the diagnostic `convergence delta`, (N, Q). Where classes gain alike, the
    contrast is a small difference of large gains, of which more may be missing: `missed share`, (N, Q), is what is
    missing as a share of |sum_c seed_c (y_c(x) - y_c(x0))| itself. In float32, up to 3e-2 have been seen; in float64,
    1e-4.

    The rules are listed in `docs/methods/rules.md`. Products of two values that depend on the image, as in attention,
    gates and norms, have a rule that is complete: each factor is multiplied by the mean of the other over x and x0.

    Attributes:
        baseline: x0, see `baseline_images`; 0 is black.
    """

    baseline: Any = 0.0

    name = "deeplift"
    linear = True

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): contribution of every value of the image.

        Raises:
            UnsupportedError: If an operation has no rule, or if completeness is missed.
        """
        model, images = forward_pass.model, forward_pass.images
        _refuse(model, "DeepLift")
        baseline = forward_pass.nothing(self.baseline)
        leaf = images.clone().requires_grad_()
        mode = ByOperation("DeepLIFT", DEEPLIFT_RULES, model.module, leaf)
        with torch.enable_grad(), mode:
            start = model.logits(leaf.clone() - leaf.detach() + baseline).detach()
            mode.at_baseline = False
            scores = model.logits(leaf.clone())
        seeds = target.seeds
        values = (images - baseline).unsqueeze(1) * _pull(scores, mode, seeds)[0]
        gains = seeds * (target.logits - start).unsqueeze(1)
        missed = values.flatten(2).sum(2) - gains.sum(2)
        # differences of logits within rounding say nothing about completeness
        rounding = 1e5 * torch.finfo(missed.dtype).eps * (seeds * target.logits.unsqueeze(1)).abs().sum(2)
        why = "it depends on the image in a way that has no gradient (a mask, no_grad)"
        _check(missed.abs(), gains.abs().sum(2) + rounding, model, "DeepLift misses {} of the contrast", why)
        noted = {"convergence delta": missed, "missed share": (missed / gains.sum(2)).abs().nan_to_num(0.0)}
        return Attribution(values, diagnostics=noted)


def _pull(scores: Tensor, mode: ByOperation, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Seeds (N, Q, C) pulled back: to the images, (N, Q, C, H, W), and to the constant, summed over images, (Q,)."""
    mode.check_seen(scores)
    scores = scores if scores.requires_grad else scores * mode.one  # a constant: nothing reaches the images
    with told_as(UnsupportedError, f"{mode.method} cannot go back through the network", RuntimeError):
        pulled = [
            torch.autograd.grad(scores, (mode.leaf, mode.one), seed, retain_graph=True, materialize_grads=True)
            for seed in seeds.to(scores.dtype).unbind(1)
        ]
    images, constants = zip(*pulled, strict=True)
    return torch.stack(images, 1), torch.stack(constants)


def _refuse(model: Model, method: str) -> None:
    """Refuse what no rule can be right for."""
    if model.output.name == "probabilities":
        raise UnsupportedError(f"{method} starts at logits, and {model.name} gives probabilities: hand in its logits")
    if model.dtype in HALF:
        raise UnsupportedError(f"{model.dtype} is too coarse for the quotients of {method}; use float32 weights")
    for each in model.module.modules():
        compiled = type(each).__name__ == "OptimizedModule" or getattr(each, "_compiled_call_impl", None) is not None
        for kind, found, other in (
            ("quantised", "quantized" in type(each).__module__, "'occlusion' or 'lime'"),
            ("scripted", isinstance(each, torch.jit.ScriptModule), "a gradient method"),
            ("compiled", compiled, "a gradient method"),
        ):
            if found:
                raise UnsupportedError(f"{model.name} holds {kind} modules, closed to rules; use {other}")


def _check_same(scores: Tensor, logits: Tensor, model: Model) -> None:
    """Refuse a network that computes something else when it is watched: random, or in place where nobody looks."""
    scale = logits.abs().amax() + _tiny(logits)
    if not (scores - logits).abs().amax() <= 1e4 * torch.finfo(scores.dtype).eps * scale:
        raise UnsupportedError(f"LRP cannot follow what {model.name} computes; use a gradient method, e.g. 'ixg'")


def _check(missed: Tensor, scale: Tensor, model: Model, what: str, why: str) -> None:
    """Refuse maps whose sum misses too much of what they should add up to."""
    share = missed / (scale + _tiny(scale))
    if not (share <= TOLERANCE).all():
        said = f"{share.max():.1%}" if share.max() < 0.9995 else "all"
        why += f", or {missed.dtype} is too coarse for it; use float64 weights, another rule, or 'ig'"
        raise UnsupportedError(f"{what.format(said)} for {model.name}: {why}")


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
