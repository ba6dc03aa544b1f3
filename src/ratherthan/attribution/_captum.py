"""What LRP and DeepLift need around Captum to be right or to refuse: imported only when one of them runs.

Captum changes weights, sets attributes and hooks, knows modules only and each module once. So it is given a `Copy` of
the network: the same tensors in modules of their own, a module that runs several times replaced by as many twins, and
every operation that runs outside a module Captum has a rule for watched by name.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import LRP, DeepLift
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule, PropagationRule
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from ratherthan.errors import RatherThanError, UnsupportedError, first_line
from ratherthan.model import Model

STABILISER = 1e-12

_MOVING = frozenset([
    "cat", "chunk", "clone", "concat", "contiguous", "double", "expand", "flatten", "float", "getitem",
    "movedim", "narrow", "permute", "repeat", "reshape", "select", "split", "squeeze", "stack", "t", "to",
    "transpose", "type_as", "unbind", "unflatten", "unsqueeze", "view",
])  # fmt: skip
_ACTIVATIONS = frozenset(["dropout", "hardtanh", "leaky_relu", "relu", "relu6", "tanh"])
_LINEAR = frozenset(
    ["adaptive_avg_pool2d", "add", "avg_pool2d", "div", "max_pool2d", "mean", "mul", "neg", "rsub", "sub", "sum"]
)
_AFFINE = frozenset(["batch_norm", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "interpolate", "linear"])


def run_lrp(network: Copy, images: Tensor, rule: Callable[[], PropagationRule], relevance: Tensor) -> Tensor:
    """Hand relevance down from the logits to the images.

    Args:
        network: A copy; spent afterwards.
        images: (N, C, H, W) as the first layer sees them.
        rule: Makes the rule of a convolution or a linear map; a rule that a module carries as its attribute `rule`
            comes first, and pooling, batch norm and additions have the plain rule (z).
        relevance: (N, Q, classes) at the logits.

    Returns:
        (N, Q, C, H, W).

    Raises:
        UnsupportedError: If an operation has no rule.
    """
    layers = [module for module in network.network.modules() if has_rule(module)]
    for module in layers:
        if not hasattr(module, "rule"):
            chosen = rule() if isinstance(module, (nn.Conv2d, nn.Linear)) else EpsilonRule(STABILISER)
            module.rule = chosen
    network.mode = _Relevances(network, layers)

    def pull(scores: Tensor, leaf: Tensor) -> Tensor:
        _refuse_own_functions(scores)
        # the two logits of a sigmoid classifier are one score
        start = relevance if scores.shape[1] == relevance.shape[2] else relevance.sum(2, keepdim=True)
        return _pull(scores, leaf, start)

    return _run(_LRP(network), network, images, pull, target=0)


def run_deeplift(network: Copy, images: Tensor, baseline: Tensor, seeds: Tensor) -> Tensor:
    """Pull seeds back through DeepLift's multipliers.

    Args:
        network: A copy; spent afterwards.
        images: (N, C, H, W).
        baseline: (N, C, H, W).
        seeds: (N, Q, classes).

    Returns:
        (N, Q, C, H, W), multipliers.

    Raises:
        UnsupportedError: If the network holds a softmax.
    """
    for module in network.runs:
        if isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin)):
            raise UnsupportedError(f"DeepLift has no sound rule for {type(module).__name__}; use 'ig' or 'ixg'")
    # Captum runs images and baselines as one batch, and its rule for pooling reads the seeds of both
    doubled = torch.cat([seeds, seeds])
    return _run(
        _DeepLift(network), network, images, lambda scores, leaf: _pull(scores, leaf, doubled), baselines=baseline
    )


def _run(
    engine: Any, network: Copy, images: Tensor, pull: Callable[[Tensor, Tensor], Tensor], **options: Any
) -> Tensor:
    """Run `attribute` of Captum, which prepares the network, with its one gradient taken by us: for many seeds."""
    found: list[Tensor] = []

    def gradients(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], *rest: Any) -> tuple[Tensor, ...]:
        found.append(pull(forward(*inputs) if rest else forward(), inputs[0]))
        return (torch.zeros_like(inputs[0]),)

    engine.gradient_func = gradients
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            engine.attribute(images.detach().clone().requires_grad_(), **options)
        except (RatherThanError, torch.OutOfMemoryError):
            raise
        except (AssertionError, AttributeError, KeyError, TypeError, RuntimeError) as error:
            kind = type(engine).__name__.strip("_")
            raise UnsupportedError(f"{kind} cannot explain {network.model.name}: {first_line(error)}") from error
    return found[0]


def _pull(scores: Tensor, leaf: Tensor, seeds: Tensor) -> Tensor:
    columns = seeds.to(scores.dtype).unbind(1)
    return torch.stack([torch.autograd.grad(scores, leaf, each, retain_graph=True)[0] for each in columns], 1)


# --------------------------------------------------------------------------------------------- the copy
class Copy(nn.Module):
    """The network of a model in modules of its own, which Captum may alter; its tensors are shared, not doubled.

    Args:
        model: The model.
        image: (1, C, H, W), run once to see which modules run, and how often.
        once: Whether a module may run once only; where it runs more often, twins take its place, one for each run.
        scores: What a model with this network and images gives.

    Attributes:
        runs: How often each module ran.
        mode: What watches its operations.
        first: What its first run gave.
    """

    def __init__(
        self,
        model: Model,
        image: Tensor,
        once: Callable[[nn.Module], bool],
        scores: Callable[[Model, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.model, self.scores = copy.copy(model), scores
        self.network = self.model.module = _twin(model)
        self.mode: TorchFunctionMode | None = None
        self.first: Tensor | None = None
        self.runs = self._count(image)
        self._untie(once)

    def forward(self, images: Tensor) -> Tensor:
        """Scores, with the watch on where there is one."""
        for module in self.network.modules():
            if isinstance(module, _Untied):
                module.turn = 0
        with self.mode or contextlib.nullcontext():
            made = self.scores(self.model, images)
        self.first = made.detach() if self.first is None else self.first
        return made

    def _count(self, image: Tensor) -> Counter[nn.Module]:
        runs: Counter[nn.Module] = Counter()
        hooks = [each.register_forward_pre_hook(lambda m, _: runs.update([m])) for each in self.network.modules()]
        with torch.no_grad():
            self.scores(self.model, image)
        for hook in hooks:
            hook.remove()
        return runs

    def _untie(self, once: Callable[[nn.Module], bool]) -> None:
        untied = {m: _Untied(m, runs) for m, runs in self.runs.items() if runs > 1 and once(m)}
        for parent in list(self.modules()):
            for name, child in parent._modules.items():
                if child in untied and not isinstance(parent, _Untied):
                    parent._modules[name] = untied[child]
        for module in self.network.modules():
            if once(module):
                # Captum hooks a module's input, and so whatever else reads the same tensor
                module.register_forward_pre_hook(lambda _, inputs: tuple(each.clone() for each in inputs))


class _Untied(nn.Module):
    """Twins that take turns: a module that runs several times, for those who know a module by one run."""

    def __init__(self, module: nn.Module, runs: int) -> None:
        super().__init__()
        self.twins = nn.ModuleList(_alike(module) for _ in range(runs))
        self.turn = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module whose turn it is gives."""
        if self.turn >= len(self.twins):
            kind = type(self.twins[0]).__name__
            raise UnsupportedError(f"a {kind} runs a number of times that depends on the input: use a gradient method")
        self.turn += 1
        return self.twins[self.turn - 1](*args, **kwargs)


def _twin(model: Model) -> nn.Module:
    if any(isinstance(each, torch.jit.ScriptModule) for each in model.module.modules()):
        raise UnsupportedError(
            f"{model.name} holds scripted modules, which rules cannot look into; use a gradient method"
        )
    try:
        return _alike(model.module)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedError(f"{model.name} cannot be copied, as rules need it: {first_line(error)}") from error


def _alike(module: nn.Module) -> nn.Module:
    """A module alike, with the same tensors and hooks, that does nothing in place."""
    memo: dict[int, Any] = {}
    for each in module.modules():
        memo |= {id(hooks): hooks.copy() for name, hooks in vars(each).items() if name.endswith("_hooks")}
    # by .data, as what is done to the copy must not count as a change of the original
    memo |= {id(each): nn.Parameter(each.data, requires_grad=False) for each in module.parameters()}
    memo |= {id(each): each.data for each in module.buffers()}
    alike = copy.deepcopy(module, memo)
    for each in alike.modules():
        if getattr(each, "inplace", None) is True:
            each.inplace = False  # type: ignore[assignment]
    return alike


# --------------------------------------------------------------------------------------------- operations by name
class _Watch(TorchFunctionMode):
    """Sees every operation outside the modules of certain kinds, and knows in which module it runs."""

    def __init__(self, network: Copy, known: Sequence[nn.Module]) -> None:
        super().__init__()
        self.known = set(known)
        self.path: list[tuple[str, nn.Module]] = []
        for name, module in network.network.named_modules():
            module.register_forward_pre_hook(lambda m, _, name=name: self.path.append((name, m)))
            module.register_forward_hook(lambda *_: self.path.pop() and None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let known modules and what carries no gradient pass, hand the rest to `operate`."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func)).strip("_")
        inside = any(module in self.known for _, module in self.path)
        if inside or name in ("get", "set", "register_hook") or not _attached((args, kwargs)):
            return func(*args, **kwargs)
        return self.operate(name, func, args, kwargs)

    def operate(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on tensors that carry gradients."""
        raise NotImplementedError

    def where(self) -> str:
        """Where in the network it runs now."""
        name, module = next(((n, m) for n, m in reversed(self.path) if n), ("", None))
        return f"in {name!r} ({type(module).__name__})" if name else "in the network's forward"


class _Relevances(_Watch):
    """Gives operations that Captum does not see the rule they need: relevance instead of gradients.

    Moving values moves relevance, activations hand it on (as Captum's do), and sums, means and pooling divide it in
    proportion to what each value contributes. All else is refused by name. Where a rule alters weights, Captum runs
    the network a second time; proportions are those of the first.
    """

    def __init__(self, network: Copy, known: Sequence[nn.Module]) -> None:
        super().__init__(network, known)
        self.first: list[Tensor] = []
        self.runs = self.turn = 0

    def __enter__(self) -> Any:
        self.runs, self.turn = self.runs + 1, 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    def operate(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation by its rule."""
        if func.__name__.endswith("_") and not func.__name__.startswith("_"):
            func = getattr(torch, name, func)  # in place would alter what the first pass remembered
        if name in _ACTIVATIONS and args:
            return self._hand_on(func, args, kwargs)
        if name in _LINEAR and not (name in ("mul", "div") and len(_attached((args, kwargs))) > 1):
            return self._divide(func, args, kwargs)
        made = func(*args, **kwargs)
        if name not in _MOVING and (name == "setitem" or _attached(made)):
            raise UnsupportedError(f"LRP has no rule for {name} {self.where()}; use a gradient method, e.g. 'ixg'")
        return made

    @staticmethod
    def _hand_on(func: Any, args: Any, kwargs: Any) -> Tensor:
        values = args[0]
        with torch.no_grad():
            made = func(values.clone(), *args[1:], **kwargs)
        handed_on: Tensor = values + (made - values).detach()
        return handed_on

    def _divide(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        leaves, shape = tree_flatten((args, kwargs))
        inner = [self._contribution(each) if _carries(each) else each for each in leaves]
        args, kwargs = tree_unflatten(inner, shape)
        made: Tensor = func(*args, **kwargs)
        total = made.detach()
        _hook(made, lambda grad: grad / stable(total))
        return made.clone()

    def _contribution(self, values: Tensor) -> Tensor:
        if self.runs == 1:
            self.first.append(values.detach())
        original = self.first[self.turn]
        self.turn += 1
        inner = values.clone()
        inner.data = original
        _hook(inner, lambda grad: grad * original)
        return inner


class Unknown(_Watch):
    """Notes operations that are neither linear nor seen by DeepLift, to name them when completeness is missed."""

    def __init__(self, network: Copy) -> None:
        super().__init__(network, [m for m in network.network.modules() if is_rescaled(m)])
        self.found: dict[str, None] = {}

    def operate(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it, and note it."""
        linear = name in _MOVING | _LINEAR | _AFFINE and name != "max_pool2d"
        bilinear = name in ("mul", "div") and len(_attached((args, kwargs))) > 1
        made = func(*args, **kwargs)
        if (not linear or bilinear) and name != "dropout" and _attached(made):
            self.found[f"{name} {self.where()}"] = None
        return made


def _hook(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    tensor.register_hook(change)  # type: ignore[no-untyped-call]


def _carries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _attached(values: Any) -> list[Tensor]:
    return [each for each in tree_flatten(values)[0] if _carries(each)]


def _refuse_own_functions(scores: Tensor) -> None:
    """Refuse functions with a backward pass of their own, which no rule knows."""
    seen, stack = set(), [scores.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction):
            raise UnsupportedError(f"LRP has no rule for {type(node).__name__.removesuffix('Backward')}")
        seen.add(node)
        stack.extend(each for each, _ in node.next_functions)


# --------------------------------------------------------------------------------------------- rules
def has_rule(module: nn.Module) -> bool:
    """Whether Captum's LRP has a rule for it, or it carries one."""
    return type(module) in SUPPORTED_LAYERS_WITH_RULES or hasattr(module, "rule")


def is_rescaled(module: nn.Module) -> bool:
    """Whether DeepLift has a rule for it: a nonlinear module."""
    return type(module) in SUPPORTED_NON_LINEAR


def stable(values: Tensor) -> Tensor:
    """Away from zero by the stabiliser, in the direction of the sign."""
    return values + torch.where(values < 0, -STABILISER, STABILISER)


class _LRP(LRP):  # type: ignore[misc]
    """Captum's LRP for the modules it has rules for; operations elsewhere are left to `_Relevances`."""

    def _get_layers(self, model: nn.Module) -> None:
        self.layers = [module for module in model.modules() if has_rule(module)]


class _DeepLift(DeepLift):  # type: ignore[misc]
    """Captum's DeepLift, whose hooks survive several backward passes and whose pooling windows may overlap."""

    def _backward_hook(self, module: Any, grad_input: Tensor, grad_output: Tensor) -> Tensor:
        rule = _rescale_max_pool if isinstance(module, nn.MaxPool2d) else SUPPORTED_NON_LINEAR[type(module)]
        made: Tensor = rule(module, module.input, module.output, grad_input, grad_output, eps=self.eps)
        return made


def _rescale_max_pool(
    module: nn.MaxPool2d, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float
) -> Tensor:
    """Captum's rule for max pooling, with contributions of overlapping windows added up instead of overwritten."""
    value, reference = inputs.chunk(2)
    top, top_reference = outputs.chunk(2)
    both = torch.maximum(top, top_reference)
    window = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        (routed,) = torch.autograd.grad(
            F.max_pool2d(leaf, *window), leaf, grad_output * torch.cat([both - top_reference, top - both])
        )
    change = value - reference
    contribution = sum(routed.chunk(2))
    multiplier = torch.where(change.abs() < eps, grad_input.chunk(2)[0], contribution / change)
    return torch.cat([multiplier, multiplier])


class AlphaBeta(PropagationRule):  # type: ignore[misc]
    """Alpha-1-beta-0: relevance goes to positive contributions only, (x_i w_ij)^+ / (sum_i (x_i w_ij)^+ + b_j^+).

    Captum's own rule clamps the weights, which is the same where inputs are not negative, and keeps negative biases.
    """

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Leave them: this rule needs both signs."""

    def forward_hook(self, module: Any, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Replace the layer by the sum of its positive contributions."""
        (x,) = inputs
        value = x.detach()
        weight, bias = module.weight.detach(), module.bias
        with torch._C.DisableTorchFunction():
            positive = _linear_part(module, x * (value > 0), weight.clamp(min=0))
            negative = _linear_part(module, x * (value < 0), weight.clamp(max=0))
            total = positive + negative
            if bias is not None:
                floor = bias.detach().clamp(min=0)
                total = total + (floor.view(-1, 1, 1) if isinstance(module, nn.Conv2d) else floor)
            _hook(x, lambda grad: grad * value)
            whole = total.detach()
            _hook(total, lambda grad: grad / stable(whole))
            return total.clone()


def _linear_part(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    return module._conv_forward(x, weight, None) if isinstance(module, nn.Conv2d) else F.linear(x, weight)


def make_rule(name: str, epsilon: float, gamma: float) -> PropagationRule:
    """The rule of this name for one layer."""
    if name == "gamma":
        return GammaRule(gamma)
    if name == "alpha1-beta0":
        return AlphaBeta()
    return EpsilonRule(epsilon if name == "epsilon" else STABILISER)
