"""Methods that hand relevance down by rules of their own instead of gradients: LRP and DeepLift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ratherthan.attribution.deeplift_rules import DEEPLIFT_RULES
from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.lrp_rules import LRP_RULES, alpha1_beta0_rule, epsilon_rule, gamma_rule
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.attribution.operations import ByOperation, Rule
from ratherthan.baselines import baseline_images
from ratherthan.contrast import Target
from ratherthan.errors import UnsupportedError, told_as
from ratherthan.model import HALF, Model
from ratherthan.settings import NotNegative

LayerRule = Literal["epsilon", "z", "gamma", "alpha1-beta0"]

TOLERANCE = 1e-3
"""How much the sum of a map may miss: see `LRP` and `DeepLift` for what it is a share of."""

_ABSORBED = 1 - 1e-9  # a map in which no more is left is one of zeros; in float32 this is 1


@register_method
@dataclass(frozen=True)
class LRP(Method):
    """Layer-wise relevance propagation (Bach et al. 2015): the contrast is handed down, layer by layer, in shares.

    Relevance starts at the logits as R_c = seed_c * y_c, so that it adds up to the linear contrast sum_c seed_c y_c;
    an operation hands it on in proportion to what each of its inputs contributed, by the rule that `docs/methods.md`
    lists for it. What constants absorb (biases, epsilon, class tokens, values without a gradient) is the diagnostic
    `absorbed`, (N, Q); a map and what is absorbed add up to the linear contrast. `convergence delta` is the same with a
    minus. `absorbed share`, (N, Q), is |absorbed| / (|absorbed| + sum_i |R_i|), from 0 to 1.

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
        model = forward_pass.model
        seeds = target.seeds
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
            scores = model.scores(leaf.clone())
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
    if scores.shape[1] == 1 and seeds.shape[2] == 2:  # the two logits of a sigmoid classifier are -y/2 and y/2
        seeds = (seeds[..., 1:] - seeds[..., :1]) / 2
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
    expected = logits if scores.shape == logits.shape else 2 * logits[:, 1:]
    scale = expected.abs().amax() + _tiny(logits)
    if not (scores - expected).abs().amax() <= 1e4 * torch.finfo(scores.dtype).eps * scale:
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
