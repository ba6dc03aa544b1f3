"""Methods that hand relevance down by rules of their own instead of gradients: LRP and DeepLift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ratherthan.attribution.deeplift_rules import DEEPLIFT_RULES
from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.lrp_rules import LRP_RULES, alpha1_beta0_rule, epsilon_rule, gamma_rule
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.attribution.operations import ByOperation, Rule
from ratherthan.baselines import baseline_images
from ratherthan.contrast import Target
from ratherthan.errors import InputError, UnsupportedError, first_line, unknown
from ratherthan.model import Model

LayerRule = Literal["epsilon", "z", "gamma", "alpha1-beta0"]

TOLERANCE = 1e-3
"""How far the completeness of DeepLift may be missed, as a share of sum_c |seed_c (y_c(x) - y_c(x0))|."""


@register_method
@dataclass(frozen=True)
class LRP(Method):
    """Layer-wise relevance propagation (Bach et al. 2015): the contrast is handed down, layer by layer, in shares.

    Relevance starts at the logits as R_c = seed_c * y_c, so that it adds up to the linear contrast sum_c seed_c y_c;
    an operation hands it on in proportion to what each of its inputs contributed, by the rule that `docs/methods.md`
    lists for it. What constants absorb (biases, epsilon, class tokens) is the note `absorbed`, (N, Q); a map and what
    is absorbed add up to the linear contrast, which is checked. `convergence delta` is the same with a minus.

    Contrastive LRP (CLRP, Gu et al. 2018) is the `mean` contrast of LRP, or a single foil; softmax-gradient LRP
    (SGLRP, Iwana et al. 2019) is `probability`, up to its positive factor `weighted`.

    The relevance of a normalised pixel is shown at the pixel: x is what the first layer sees.

    Attributes:
        rule: Of convolutions and linear maps. "epsilon": z_ij / (z_j + epsilon sign z_j), z_ij = x_i w_ij. "z": the
            same with epsilon 0 (LRP-0; for networks of ReLUs this is input times gradient).
            "gamma": weights w + gamma w^+ (Montavon et al. 2019). "alpha1-beta0": positive contributions only.
        epsilon: Of "epsilon", in units of a layer's output.
        gamma: Of "gamma".
        layers: Other rules for some layers, by the dotted name of a module: it holds for all that is inside.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> explain(model, images, method=LRP("epsilon", layers={"features.0": "gamma"}))
    """

    rule: LayerRule = "epsilon"
    epsilon: float = 1e-6
    gamma: float = 0.25
    layers: Mapping[str, LayerRule] | None = None

    name = "lrp"
    linear = True

    def __post_init__(self) -> None:
        for rule in (self.rule, *(self.layers or {}).values()):
            if rule not in get_args(LayerRule):
                raise InputError(unknown("rule", rule, get_args(LayerRule)))
        if self.epsilon < 0 or self.gamma < 0:
            raise InputError(f"epsilon and gamma are not negative, but {self.epsilon} and {self.gamma} were given")

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): relevance of every value of the image.

        Raises:
            UnsupportedError: If the network runs an operation that LRP has no rule for; the message names it.
        """
        seeds, mixture = _spanning(target.seeds)
        scores, relevance, constants = self.propagate(forward_pass.model, forward_pass.images, seeds)
        _check_same(scores, target.logits, forward_pass.model)
        _check_conserved(seeds, target.logits, relevance, constants, forward_pass.model)
        values = _mix(relevance, mixture)
        absorbed = torch.einsum("nqc,nc->nq", target.seeds, target.logits) - values.flatten(2).sum(2)
        return Attribution(values, diagnostics={"absorbed": absorbed, "convergence delta": -absorbed})

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
            scores = model.scores(leaf.clone())
        gradients, constants = _pull(scores, mode, seeds)
        return scores.detach(), leaf.detach().unsqueeze(1) * gradients, constants

    def _layer_rule(self, place: Callable[[], str]) -> Rule:
        rule = self.rule
        if self.layers:
            inside = [name for name in self.layers if f"{place()}.".startswith(f"{name}.")]
            rule = self.layers[max(inside, key=len)] if inside else rule
        if rule == "gamma":
            return gamma_rule(self.gamma)
        return alpha1_beta0_rule if rule == "alpha1-beta0" else epsilon_rule(self.epsilon if rule == "epsilon" else 0)


@register_method
@dataclass(frozen=True)
class DeepLift(Method):
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017): (x - x0) times multipliers delta y / delta x.

    The values of a map add up to sum_c seed_c (y_c(x) - y_c(x0)), the linear contrast, with the foils weighed as at x.
    That is checked for every map: where more than 1e-3 of sum_c |seed_c (y_c(x) - y_c(x0))| is missing, the network
    is refused. What is missing below that is the note `convergence delta`, (N, Q).

    The rules are listed in `docs/methods.md`. Products of two values that depend on the image, as in attention, gates
    and norms, have a rule that is complete: each factor is multiplied by the mean of the other over x and x0.

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
        baseline = baseline_images(images, self.baseline)
        leaf = images.clone().requires_grad_()
        mode = ByOperation("DeepLIFT", DEEPLIFT_RULES, model.module, leaf)
        with torch.enable_grad(), mode:
            start = mode.at_baseline(lambda: model.logits(leaf.clone() - leaf.detach() + baseline)).detach()
            scores = model.logits(leaf.clone())
        seeds, mixture = _spanning(target.seeds)
        values = _mix((images - baseline).unsqueeze(1) * _pull(scores, mode, seeds)[0], mixture)
        gains = target.seeds * (target.logits - start).unsqueeze(1)
        missed = values.flatten(2).sum(2) - gains.sum(2)
        share = missed.abs() / (gains.abs().sum(2) + _rounding(target))
        if not (share <= TOLERANCE).all():
            raise UnsupportedError(
                f"DeepLift misses {share.max():.1%} of the contrast for {model.name}: it depends on the image in a way "
                f"that has no gradient (a mask, no_grad), or {_name(images.dtype)} is too coarse for it; "
                "use float64 weights, or 'ig'"
            )
        return Attribution(values, diagnostics={"convergence delta": missed})


def _pull(scores: Tensor, mode: ByOperation, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Seeds (N, Q, C) pulled back: to the images, (N, Q, C, H, W), and to the constant, summed over images, (Q,)."""
    if scores.shape[1] == 1 and seeds.shape[2] == 2:  # the two logits of a sigmoid classifier are -y/2 and y/2
        seeds = (seeds[..., 1:] - seeds[..., :1]) / 2
    mode.check_seen(scores)
    try:
        pulled = [
            torch.autograd.grad(scores, (mode.leaf, mode.one), seed, retain_graph=True, allow_unused=True)
            for seed in seeds.to(scores.dtype).unbind(1)
        ]
    except RuntimeError as error:
        raise UnsupportedError(f"{mode.method} cannot go back through the network: {first_line(error)}") from error
    zero = torch.zeros_like(mode.one)
    images, constants = zip(*pulled, strict=True)
    return torch.stack(images, 1), torch.stack([zero if each is None else each for each in constants])


def _spanning(seeds: Tensor) -> tuple[Tensor, Tensor | None]:
    """Seeds (N, Q, C) as they are or, where they concern fewer classes than Q, those of the classes and a mixture."""
    classes = seeds.flatten(0, 1).any(0).nonzero().flatten()
    if not 0 < len(classes) < seeds.shape[1]:
        return seeds, None
    plain = torch.eye(seeds.shape[2], dtype=seeds.dtype, device=seeds.device)[classes]
    return plain.expand(len(seeds), -1, -1), seeds[..., classes]


def _mix(values: Tensor, mixture: Tensor | None) -> Tensor:
    """Maps of classes (N, A, ...) to those of questions (N, Q, ...)."""
    return values if mixture is None else torch.einsum("nqa,na...->nq...", mixture.to(values), values)


def _refuse(model: Model, method: str) -> None:
    """Refuse what no rule can be right for."""
    if model.output.name == "probabilities":
        raise UnsupportedError(
            f"{method} starts at the logits, and {model.name} gives probabilities: hand in its logits"
        )
    if model.dtype in (torch.float16, torch.bfloat16):
        dtype = _name(model.dtype)
        raise UnsupportedError(f"{dtype} is too coarse for the quotients of {method}; use float32 weights")
    for each in model.module.modules():
        kind = "scripted" if isinstance(each, torch.jit.ScriptModule) else "compiled" if _is_compiled(each) else None
        if kind:
            raise UnsupportedError(
                f"{model.name} holds {kind} modules, which rules cannot look into; use a gradient method"
            )


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _check_same(scores: Tensor, logits: Tensor, model: Model) -> None:
    """Refuse a network that computes something else when it is watched: random, or in place where nobody looks."""
    expected = logits if scores.shape == logits.shape else 2 * logits[:, 1:]
    scale = expected.abs().amax() + torch.finfo(logits.dtype).tiny
    if not (scores - expected).abs().amax() <= 1e4 * torch.finfo(scores.dtype).eps * scale:
        raise UnsupportedError(f"LRP cannot follow what {model.name} computes; use a gradient method, e.g. 'ixg'")


def _check_conserved(seeds: Tensor, logits: Tensor, relevance: Tensor, constants: Tensor, model: Model) -> None:
    """Refuse maps that, with what constants absorbed, do not add up to the contrast; over all images together."""
    start, found = torch.einsum("nqc,nc->q", seeds, logits), relevance.sum((0, *range(2, relevance.ndim)))
    scale = torch.einsum("nqc,nc->q", seeds.abs(), logits.abs()) + relevance.abs().sum((0, *range(2, relevance.ndim)))
    share = (start - found - constants).abs() / (scale + constants.abs() + torch.finfo(logits.dtype).tiny)
    if not (share <= TOLERANCE).all():
        raise UnsupportedError(
            f"LRP loses {share.max():.1%} of the relevance for {model.name}: a rule does not conserve it, or "
            f"{_name(relevance.dtype)} is too coarse for it; use float64 weights, or a gradient method, e.g. 'ixg'"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounding(target: Target) -> Tensor:
    """(N, Q): differences of logits below which nothing can be said about completeness."""
    eps = torch.finfo(target.logits.dtype).eps
    return 1e5 * eps * (target.seeds * target.logits.unsqueeze(1)).abs().sum(2) + torch.finfo(target.logits.dtype).tiny
