"""Methods that propagate relevance by rules of their own instead of gradients: LRP and DeepLift, on Captum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.baselines import baseline_images
from ratherthan.contrast import Target
from ratherthan.errors import InputError, UnsupportedError, unknown
from ratherthan.model import Model

Rule = Literal["epsilon", "z", "gamma", "alpha1-beta0"]
_RULES = ("epsilon", "z", "gamma", "alpha1-beta0")

TOLERANCE = 1e-3
"""How far the completeness of DeepLift may be missed, as a share of sum_c |seed_c (y_c(x) - y_c(x0))|."""


@register_method
@dataclass(frozen=True)
class LRP(Method):
    """Layer-wise relevance propagation (Bach et al. 2015): the contrast is handed down, layer by layer, in shares.

    Relevance starts at the logits as R_c = seed_c * y_c, so that it adds up to the linear contrast sum_c seed_c y_c;
    a layer hands it on in proportion to what each of its inputs contributed. It is never run on a scalar behind the
    logits: Captum multiplies by that scalar, and the sum is lost. What biases and epsilon absorb is the note
    `convergence delta`, (N, Q): the sum of the map minus that of the relevance at the logits.

    Contrastive LRP (CLRP, Gu et al. 2018) is the `mean` contrast of LRP, or a single foil; softmax-gradient LRP
    (SGLRP, Iwana et al. 2019) is `probability`, up to its positive factor `weighted`.

    The relevance of a normalised pixel is shown at the pixel: x is what the first layer sees.

    Captum alters the network it explains, so it gets a copy of its modules. The tensors are shared; `gamma` needs
    one further copy of the weights while it runs. A module that runs several times counts as as many modules.

    Attributes:
        rule: Of convolutions and linear maps. "epsilon": z_ij / (z_j + epsilon sign z_j), z_ij = x_i w_ij. "z": the
            same with only a guard against 0 / 0 (LRP-0; for networks of ReLUs this is input times gradient).
            "gamma": weights w + gamma w^+ (Montavon et al. 2019). "alpha1-beta0": positive contributions only.
            Pooling, additions and batch norm (in evaluation mode) have "z" always. A module with an attribute `rule`,
            one of Captum's rules, keeps it.
        epsilon: Of "epsilon", in units of a layer's output.
        gamma: Of "gamma".

    Raises:
        InputError: If a setting is out of range.
    """

    rule: Rule = "epsilon"
    epsilon: float = 1e-6
    gamma: float = 0.25

    name = "lrp"
    linear = True

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise InputError(unknown("rule", self.rule, _RULES))
        if self.epsilon < 0 or self.gamma < 0:
            raise InputError(f"epsilon and gamma are not negative, but {self.epsilon} and {self.gamma} were given")

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): relevance of every value of the image.

        Raises:
            UnsupportedError: If the network runs an operation that LRP has no rule for; the message names it.
        """
        from ratherthan.attribution import _captum

        _refuse_probabilities(forward_pass.model, "LRP")
        network = _captum.Copy(forward_pass.model, _seen(forward_pass)[:1], _captum.has_rule, _scores)
        seeds, mixture = _spanning(target.seeds)
        values = _captum.run_lrp(
            network,
            _seen(forward_pass),
            lambda: _captum.make_rule(self.rule, self.epsilon, self.gamma),
            seeds * target.logits.unsqueeze(1),
        )
        _check_same(network.first, target.logits, forward_pass.model)
        values = _mix(values, mixture)
        start = torch.einsum("nqc,nc->nq", target.seeds, target.logits)
        return Attribution(values, diagnostics={"convergence delta": values.flatten(2).sum(2) - start})


@register_method
@dataclass(frozen=True)
class DeepLift(Method):
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017): (x - x0) times multipliers delta y / delta x.

    The values of a map add up to sum_c seed_c (y_c(x) - y_c(x0)), the linear contrast, with the foils weighed as at x.
    That is checked for every map: where more than 1e-3 of sum_c |seed_c (y_c(x) - y_c(x0))| is missing, the network
    holds something the rule does not see, such as a functional ReLU, and is refused. What is missing below that is the
    note `convergence delta`, (N, Q).

    Captum marks the modules it explains, so it gets a copy of them that shares all tensors. A module that runs
    several times counts as as many modules. Where Captum misses the sum, this does not: max pooling right before or
    behind an activation keeps its rule, and contributions of overlapping windows add up.

    Attributes:
        baselines: x0 in image space: a number, a tensor (C, H, W) or what broadcasts to it; None: 0, black.
    """

    baseline: Any = 0.0

    name = "deeplift"
    linear = True

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): contribution of every value of the image.

        Raises:
            UnsupportedError: If the network holds a softmax, or if completeness is missed.
        """
        from ratherthan.attribution import _captum

        _refuse_probabilities(forward_pass.model, "DeepLift")
        images, baseline = forward_pass.images, baseline_images(forward_pass.images, self.baseline)
        network = _captum.Copy(forward_pass.model, images[:1], _captum.is_rescaled, Model.logits)
        seeds, mixture = _spanning(target.seeds)
        multipliers = _mix(_captum.run_deeplift(network, images, baseline, seeds), mixture)
        assert network.first is not None
        start = network.first.chunk(2)[1]
        values = (images - baseline).unsqueeze(1) * multipliers
        gains = target.seeds * (target.logits - start).unsqueeze(1)
        missed = values.flatten(2).sum(2) - gains.sum(2)
        share = missed.abs() / (gains.abs().sum(2) + _rounding(target))
        if (share > TOLERANCE).any():
            raise UnsupportedError(_incomplete(forward_pass, share.max().item()))
        return Attribution(values, diagnostics={"convergence delta": missed})


def _seen(forward_pass: ForwardPass) -> Tensor:
    """The images as the first layer sees them, (N, C, H, W)."""
    return forward_pass.model.normalise(forward_pass.images)


def _scores(model: Model, images: Tensor) -> Tensor:
    """What the network makes of normalised images, before a single score becomes two logits."""
    return model.scores(images)


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


def _refuse_probabilities(model: Model, method: str) -> None:
    if model.output.name == "probabilities":
        raise UnsupportedError(
            f"{method} starts at the logits, and {model.name} gives probabilities: hand in its logits"
        )


def _check_same(scores: Tensor | None, logits: Tensor, model: Model) -> None:
    """Refuse a network that computes something else when it is watched: random, or in place where nobody looks."""
    assert scores is not None
    expected = logits if scores.shape == logits.shape else 2 * logits[:, 1:]
    scale = expected.abs().amax() + torch.finfo(logits.dtype).tiny
    if (scores - expected).abs().amax() > 1e4 * torch.finfo(scores.dtype).eps * scale:
        raise UnsupportedError(f"LRP cannot follow what {model.name} computes; use a gradient method, e.g. 'ixg'")


def _rounding(target: Target) -> Tensor:
    """(N, Q): differences of logits below which nothing can be said about completeness."""
    eps = torch.finfo(target.logits.dtype).eps
    return 1e5 * eps * (target.seeds * target.logits.unsqueeze(1)).abs().sum(2) + torch.finfo(target.logits.dtype).tiny


def _incomplete(forward_pass: ForwardPass, share: float) -> str:
    """What to tell about a network for which DeepLift is not complete, with the operations it does not see by name."""
    from ratherthan.attribution import _captum

    network = _captum.Copy(forward_pass.model, forward_pass.images[:1], _captum.is_rescaled, Model.logits)
    network.mode = watch = _captum.Unknown(network)
    with torch.enable_grad():
        network(forward_pass.images[:1].detach().clone().requires_grad_())
    seen = f"it does not see {', '.join(list(watch.found)[:3])}" if watch.found else "some operation has no rule"
    missed = f"DeepLift misses {share:.1%} of the contrast for {forward_pass.model.name}"
    return f"{missed}: {seen}; use modules such as nn.ReLU, or 'ig'"
