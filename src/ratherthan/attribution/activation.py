"""Methods that pull a contrast back to a layer with a spatial grid: Grad-CAM and linear approximation (LA)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ratherthan.attribution.forward import ForwardPass, Graph
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.contrast import Target
from ratherthan.errors import LayerError
from ratherthan.model import Model


# --------------------------------------------------------------------------------------------- the grid
@dataclass(frozen=True)
class Grid:
    """How the output of a layer lies on the image plane.

    Attributes:
        layout: "channels first" (ch, h, w), "channels last" (h, w, ch) or "tokens" (prefix + h * w, ch).
        size: (h, w).
    """

    layout: Literal["channels first", "channels last", "tokens"]
    size: tuple[int, int]

    def fold(self, values: Tensor) -> Tensor:
        """(..., layer shape) to (..., ch, h, w); class and register tokens are dropped."""
        if self.layout == "channels first":
            return values
        if self.layout == "channels last":
            return values.movedim(-1, -3)
        cells = self.size[0] * self.size[1]
        tokens = values[..., -cells:, :].transpose(-1, -2)
        return tokens.reshape(*tokens.shape[:-1], *self.size)


def grid_of(shape: torch.Size, image: tuple[int, int]) -> Grid | None:
    """Read the grid off the shape of a layer's output.

    Args:
        shape: (N, ...) of the output.
        image: (H, W) of the images.

    Returns:
        The grid, or None where the shape has none of more than one cell.
    """
    if len(shape) == 4:
        first, last = (shape[2], shape[3]), (shape[1], shape[2])
        exact = _stretch(last, image) == 0 < _stretch(first, image)
        channels_last = exact or _stretch(last, image) + 0.2 < _stretch(first, image)
        grid = Grid("channels last", last) if channels_last else Grid("channels first", first)
        return grid if grid.size[0] * grid.size[1] > 1 else None
    if len(shape) == 3 and shape[2] > 1:
        for prefix in range(min(9, shape[1] - 1)):
            size = _token_grid(shape[1] - prefix, image)
            if size is not None:
                return Grid("tokens", size)
    return None


def _stretch(size: tuple[int, int], image: tuple[int, int]) -> float:
    """How far the aspect ratio of a grid is from the image's; 0 where they agree."""
    return abs(math.log(size[0] * image[1] / (size[1] * image[0])))


def _token_grid(tokens: int, image: tuple[int, int]) -> tuple[int, int] | None:
    height = max(1, round(math.sqrt(tokens * image[0] / image[1])))
    if tokens < 4 or tokens % height:
        return None
    size = (height, tokens // height)
    return size if _stretch(size, image) < 0.05 + 1 / min(size) - 1 / (min(size) + 1) else None


# --------------------------------------------------------------------------------------------- finding the layer
_PASS_THROUGH = (
    *(nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def find_layer(model: Model, image: Tensor) -> str:
    """The last layer with a spatial grid through which the logits depend on the image.

    One forward and one backward pass of a single image. Pooling, dropout, the linear maps inside attention and layers
    that already hold one channel per class are passed over; of a block and its last layer, which give the same
    tensor, the block is named.

    Args:
        model: The model, in eval mode.
        image: (1, C, H, W).

    Returns:
        The dotted name.

    Raises:
        LayerError: If there is none.
    """
    outputs: dict[str, Tensor | None] = {}  # in the order of running; None: nothing that could be explained

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            usable = isinstance(tensor, Tensor) and tensor.requires_grad and name not in outputs  # runs only once
            outputs[name] = tensor if usable and isinstance(tensor, Tensor) else None

        return hook

    skipped = (*_PASS_THROUGH, nn.Linear)
    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.module.named_modules()
        if name and not isinstance(module, skipped)
    ]
    try:
        with torch.enable_grad():
            logits = model.logits(image.detach().requires_grad_().clone())
    finally:
        for hook in hooks:
            hook.remove()
    return _last_in_use({name: each for name, each in outputs.items() if each is not None}, logits, image, model)


def _last_in_use(outputs: dict[str, Tensor], logits: Tensor, image: Tensor, model: Model) -> str:
    classes = logits.shape[1]
    token_counts = {tensor.shape[1] for tensor in outputs.values() if tensor.ndim == 3}
    candidates = []
    for name, tensor in outputs.items():
        of_heads = tensor.ndim == 4 and tensor.shape[2] in token_counts  # (N, heads, tokens, ...) inside attention
        folds = len(tensor) == len(image) and not of_heads
        grid = grid_of(tensor.shape, (image.shape[-2], image.shape[-1])) if folds else None
        if grid is not None and not (grid.layout == "channels first" and tensor.shape[1] == classes):
            candidates.append((name, tensor, grid))
    if candidates and logits.requires_grad:
        tensors = [tensor for _, tensor, _ in candidates]
        gradients = torch.autograd.grad(logits.square().sum(), tensors, allow_unused=True)
        for (name, _, grid), gradient in zip(reversed(candidates), reversed(gradients), strict=True):
            if gradient is not None and grid.fold(gradient).any():
                return name
        raise LayerError(f"no layer of {model.name} with a spatial grid moves its logits: are its weights trained?")
    raise LayerError(f"{model.name} has no layer with a spatial grid; use a method that explains the image, e.g. ixg")


# --------------------------------------------------------------------------------------------- the methods
@dataclass(frozen=True)
class LayerMethod(Method):
    """A method that explains the output of one layer.

    Attributes:
        layer: Dotted name, the module itself, or None: the model's default layer, else found by `find_layer`.
    """

    layer: str | nn.Module | None = None

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Record from the layer upward."""
        forward_pass.graph(self.layer_name(forward_pass))

    def layer_name(self, forward_pass: ForwardPass) -> str:
        """Dotted name of the layer that is explained; remembered by the model once it has been found."""
        model = forward_pass.model
        if isinstance(self.layer, nn.Module):
            layer = model.submodule(self.layer)
            return next(str(name) for name, module in model.module.named_modules() if module is layer)
        if self.layer is None and model.layer is None:
            model.layer = find_layer(model, forward_pass.images[:1])
        name = model.layer if self.layer is None else self.layer
        assert name is not None
        model.submodule(name)
        return name

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, h, w) at the resolution of the layer."""
        layer = self.layer_name(forward_pass)
        graph = forward_pass.graph(layer)
        grid = grid_of(graph.leaf.shape, (forward_pass.images.shape[-2], forward_pass.images.shape[-1]))
        if grid is None or len(graph.leaf) != len(forward_pass.images):
            shape = tuple(graph.leaf.shape)
            raise LayerError(
                f"layer {layer!r} gives shape {shape}, no spatial grid; choose a convolution or a token block"
            )
        activation, seeds = grid.fold(graph.leaf.detach()), target.seeds
        head = pointwise_head(forward_pass, graph, grid) if seeds.shape[1] > 2 else None
        if head is not None:
            return Attribution(
                torch.einsum("nqc,nchw->nqhw", seeds.to(activation.dtype), self.class_maps(*head)), layer
            )
        maps = activation.new_empty(*seeds.shape[:2], *grid.size)
        for part, gradient in graph.vjp_chunks(seeds, forward_pass.budget):
            folded = grid.fold(gradient)
            if not folded.any() and gradient.any():
                raise LayerError(_class_token_only(forward_pass, layer))
            maps[:, part] = self.combine(activation.unsqueeze(1), folded)
        return Attribution(maps, layer)

    @abstractmethod
    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """(N, 1, ch, h, w) activations and (N, Q, ch, h, w) gradients to maps (N, Q, h, w)."""

    @abstractmethod
    def class_maps(self, scores: Tensor, passing: Tensor) -> Tensor:
        """The maps of every class under a pointwise head, (N, classes, h, w); see `pointwise_head`."""


@register_method
@dataclass(frozen=True)
class GradCAM(LayerMethod):
    """Grad-CAM without its final ReLU: sum_k (mean_ij g_k,ij) a_k (weighted-contrast eq. 2).

    Negative areas are kept: in a contrast they speak for the foil.
    """

    name = "gradcam"

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Activations weighed by the mean gradient of their channel."""
        return torch.einsum("nqk,nkhw->nqhw", gradient.mean((-2, -1)), activation.squeeze(1))

    def class_maps(self, scores: Tensor, passing: Tensor) -> Tensor:
        """The share of cells through which a class is reached, times its scores."""
        return passing.mean((2, 3), keepdim=True) * scores


@register_method
@dataclass(frozen=True)
class LinearApproximation(LayerMethod):
    """LA: sum_k a_k * g_k, activation times gradient (weighted-contrast eq. 4)."""

    name = "la"

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Activation times gradient, summed over channels."""
        return torch.einsum("nqkhw,nkhw->nqhw", gradient, activation.squeeze(1))

    def class_maps(self, scores: Tensor, passing: Tensor) -> Tensor:
        """The scores where a class is reached."""
        return passing * scores


def pointwise_head(forward_pass: ForwardPass, graph: Graph, grid: Grid) -> tuple[Tensor, Tensor] | None:
    """Recognise a head that looks at every cell by itself, so that all class maps come without a backward pass each.

    Such a head is global average pooling and a linear map (ResNet, DenseNet), or a 1 x 1 convolution, perhaps a ReLU,
    and global average pooling (SqueezeNet). Nothing is guessed from class names of modules: one random seed is pulled
    back for real, and the head is what it seems only if the gradient is exactly the one its weights predict. A wrong
    guess passes with probability zero, as a random vector almost never lies in the null space of the difference.

    Args:
        forward_pass: Model and images.
        graph: The forward pass from the layer upward.
        grid: How the layer lies on the image plane.

    Returns:
        Scores W a / (h w) and whether they pass (1 or 0), both (N, classes, h, w); or None for any other head.
    """
    if graph.leaf.element_size() < 4:
        return None  # half precision cannot tell an exact gradient from a near one
    activation, classes = grid.fold(graph.leaf.detach()), graph.output.shape[1]
    samples, channels, cells = len(activation), activation.shape[1], grid.size[0] * grid.size[1]
    if 4 * samples * classes * cells * activation.element_size() > forward_pass.budget:
        return None
    candidates = list(_linear_maps(forward_pass.model.module, classes, channels))
    if not candidates:
        return None
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(samples, 1, classes, generator=generator, dtype=torch.float64).to(activation)
    gradient = grid.fold(graph.vjp(probe))[:, 0]
    for weight, bias in candidates:
        scores = torch.einsum("ck,nkhw->nchw", weight, activation)
        for passing in (torch.ones_like(scores), (scores + bias.view(-1, 1, 1) > 0).to(scores)):
            predicted = torch.einsum("nc,nchw,ck->nkhw", probe[:, 0], passing / cells, weight)
            tolerance = 1e3 * torch.finfo(activation.dtype).eps * gradient.abs().amax()
            if gradient.any() and (predicted - gradient).abs().amax() <= tolerance:
                return scores / cells, passing
    return None


def _linear_maps(module: nn.Module, classes: int, channels: int) -> Iterator[tuple[Tensor, Tensor]]:
    for each in module.modules():
        if isinstance(each, (nn.Linear, nn.Conv2d)) and each.weight.shape in (
            (classes, channels),
            (classes, channels, 1, 1),
        ):
            weight = each.weight.detach().reshape(classes, channels)
            yield weight, each.bias.detach() if each.bias is not None else weight.new_zeros(classes)


def _class_token_only(forward_pass: ForwardPass, layer: str) -> str:
    better = find_layer(forward_pass.model, forward_pass.images[:1])
    return f"layer {layer!r} reaches the logits through its class token only, so its map would be zero; use {better!r}"
