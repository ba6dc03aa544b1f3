"""Methods that explain a layer: Grad-CAM and the linear approximation, and what a new one builds on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ratherthan.attribution.forward import ForwardPass, Graph
from ratherthan.attribution.layers import layer_of, located
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.attribution.places import Grid
from ratherthan.contrast import Target
from ratherthan.errors import LayerError


@dataclass(frozen=True)
class LayerMethod(Method):
    """A method that explains the output of one layer, of images (h, w); of signals it is (t), of volumes (d, h, w).

    Attributes:
        layer: Dotted name, the module itself, or None: the model's own, else found by `find_layer`.
            A layer that runs several times and a function are named by their address, see `trace`.
    """

    layer: str | nn.Module | None = None

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Record from the layer upward."""
        self.activation(forward_pass)

    def activation(self, forward_pass: ForwardPass) -> tuple[Graph, Grid]:
        """The forward pass from the layer upward, and where on the image the layer's values lie.

        Raises:
            LayerError: If they lie nowhere.
        """
        layer = forward_pass.model.layer if self.layer is None else self.layer
        if isinstance(layer, nn.Module):
            module = forward_pass.model.submodule(layer)
            layer = next(str(name) for name, each in forward_pass.model.module.named_modules() if each is module)
        layer, grid = located(forward_pass, layer)
        graph, samples = forward_pass.graph(layer), len(forward_pass.images)
        if len(graph.leaf) != samples:
            what = (
                f"layer {layer!r} gives {len(graph.leaf)} rows for {samples} images, which it does not see as a batch"
            )
            raise LayerError(f"{what}; give batch_size=1")
        return graph, grid

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, h, w) at the resolution of the layer."""
        graph, grid = self.activation(forward_pass)
        activation, seeds = grid.fold(graph.leaf.detach()), target.seeds
        head = pointwise_head(forward_pass, graph, grid) if self.linear and seeds.shape[1] > 2 else None
        if head is not None and (of_classes := self.class_maps(*head)) is not None:
            maps = torch.einsum("nqc,nc...->nq...", seeds.to(activation.dtype), of_classes)
            return Attribution(maps, graph.layer, self.diagnose(forward_pass, seeds, maps))
        maps = activation.new_empty(*seeds.shape[:2], *grid.size)
        for part, gradient in graph.vjp_chunks(seeds, forward_pass.budget):
            folded = grid.fold(gradient)
            if not folded.any() and gradient.any():
                raise LayerError(_class_token_only(forward_pass, str(graph.layer)))
            maps[:, part] = self.combine(activation.unsqueeze(1), folded)
        return Attribution(maps, graph.layer, self.diagnose(forward_pass, seeds, maps))

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """(N, 1, ch, h, w) activations and (N, Q, ch, h, w) gradients to maps (N, Q, h, w).

        A method without gradients overrides `attribute` instead.
        """
        raise NotImplementedError

    def class_maps(self, scores: Tensor, passing: Tensor) -> Tensor | None:
        """The maps of every class under a pointwise head, (N, classes, h, w); see `pointwise_head`.

        None where there is no shortcut. Only asked of methods that are `linear`.
        """
        return None

    def diagnose(self, forward_pass: ForwardPass, seeds: Tensor, maps: Tensor) -> dict[str, Any]:
        """What can be said of maps (N, Q, h, w) for seeds (N, Q, classes); see `Attribution`."""
        return {}


@register_method
@dataclass(frozen=True)
class GradCAM(LayerMethod):
    """Grad-CAM without its final ReLU: sum_k (mean_ij g_k,ij) a_k (weighted-contrast eq. 2).

    Negative areas are kept: in a contrast they speak for the foil.
    """

    name = "gradcam"
    linear = True

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Activations weighed by the mean gradient of their channel."""
        means = gradient.mean(tuple(range(3, gradient.ndim)))
        return torch.einsum("nqk,nk...->nq...", means, activation.squeeze(1))

    def class_maps(self, scores: Tensor, passing: Tensor) -> Tensor:
        """The share of cells through which a class is reached, times its scores."""
        return passing.mean(tuple(range(2, passing.ndim)), keepdim=True) * scores


@register_method
@dataclass(frozen=True)
class LinearApproximation(LayerMethod):
    """LA: sum_k a_k * g_k, activation times gradient (weighted-contrast eq. 4).

    Where all above the layer is pooling and a linear map, a map adds up to the linear contrast sum_c seed_c y_c minus
    that of the biases. This is checked on the values; where it holds, the diagnostics say so: `bias`, (N, Q), and what
    is missing of the sum beside it, `convergence delta`, (N, Q).
    """

    name = "la"
    linear = True

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Activation times gradient, summed over channels.

        Raises:
            LayerError: If they cancel, as the values do that a norm takes in: scaling them changes nothing.
        """
        activation = activation.squeeze(1)
        maps = torch.einsum("nqk...,nk...->nq...", gradient, activation)
        largest = maps.abs().amax()
        if largest == 0 or largest > 1e-3 * gradient.abs().amax() * activation.abs().amax():
            return maps
        if largest > 1e-3 * torch.einsum("nqk...,nk...->nq...", gradient.abs(), activation.abs()).amax():
            return maps
        what = "values times gradients cancel to under a thousandth, as where a norm follows"
        raise LayerError(f"'la' says nothing at this layer: {what}; choose the norm's output, or use 'gradcam'")

    def class_maps(self, scores: Tensor, passing: Tensor) -> Tensor:
        """The scores where a class is reached."""
        return passing * scores

    def diagnose(self, forward_pass: ForwardPass, seeds: Tensor, maps: Tensor) -> dict[str, Any]:
        """The share of the biases, if the maps and it add up to the linear contrast."""
        logits = forward_pass.logits
        missing = maps.flatten(2).sum(2) - torch.einsum("nqc,nc->nq", seeds, logits)
        near = 1e3 * torch.finfo(maps.dtype).eps * torch.einsum("nqc,nc->nq", seeds.abs(), logits.abs())
        for _, bias in _linear_maps(forward_pass.model.module, logits.shape[1]):
            share = seeds @ bias.to(seeds.dtype)
            if ((missing + share).abs() <= near).all():
                return {"bias": share, "convergence delta": missing + share}
        return {}


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
    samples, channels, cells = len(activation), activation.shape[1], math.prod(grid.size)
    if 4 * samples * classes * cells * activation.element_size() > forward_pass.budget:
        return None
    candidates = list(_linear_maps(forward_pass.model.module, classes, channels))
    if not candidates:
        return None
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(samples, 1, classes, generator=generator, dtype=torch.float64).to(activation)
    gradient = grid.fold(graph.vjp(probe))[:, 0]
    if not gradient.any():
        return None
    tolerance = 1e3 * torch.finfo(activation.dtype).eps * gradient.abs().amax()
    one = [1] * len(grid.size)
    for weight, _ in candidates:
        of_a_cell = (probe[:, 0] @ weight / cells).view(samples, channels, *one)
        if (of_a_cell - gradient).abs().amax() <= tolerance:
            scores = torch.einsum("ck,nk...->nc...", weight, activation)
            return scores / cells, torch.ones_like(scores)
    for weight, bias in candidates:
        scores = torch.einsum("ck,nk...->nc...", weight, activation)
        passing = (scores + bias.view(-1, *one) > 0).to(scores)
        predicted = torch.einsum("nc...,ck->nk...", probe[:, 0].view(samples, classes, *one) * passing / cells, weight)
        if (predicted - gradient).abs().amax() <= tolerance:
            return scores / cells, passing
    return None


def _linear_maps(module: nn.Module, classes: int, channels: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    for each in module.modules():
        if not isinstance(each, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or len(each.weight) != classes:
            continue
        if channels in (None, each.weight[0].numel()):
            weight = each.weight.detach().flatten(1)
            yield weight, each.bias.detach() if each.bias is not None else weight.new_zeros(classes)


def _class_token_only(forward_pass: ForwardPass, layer: str) -> str:
    better = layer_of(forward_pass.model, forward_pass.images[:1], default=False)
    return f"layer {layer!r} reaches the logits through its class token only, so its map would be zero; use {better!r}"
