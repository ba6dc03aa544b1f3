"""Which layer to explain, and how its output lies on the plane of the image."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ratherthan.errors import LayerError
from ratherthan.model import Model

_FOUND: WeakKeyDictionary[nn.Module, dict[torch.Size, str]] = WeakKeyDictionary()


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
def layer_of(model: Model, image: Tensor, default: bool = True) -> str:
    """The layer of a model that layer methods explain: the one it names, else the one found for images of this shape.

    What is found is remembered as long as the network lives; the model is not touched.

    Args:
        model: The model, in eval mode.
        image: (1, C, H, W).
        default: Whether a layer that the model names is taken.

    Raises:
        LayerError: If there is none, or the model names one that it does not have.
    """
    if default and model.layer is not None:
        model.submodule(model.layer)
        return model.layer
    found = _FOUND.setdefault(model.module, {})
    try:
        model.submodule(found.get(image.shape, ""))  # the network may have been rebuilt since
    except LayerError:
        found[image.shape] = find_layer(model, image)
    return found[image.shape]


_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_SKIPPED = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten, nn.Linear, *_POOLING)


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

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) and output else output
        runs_once = name not in outputs
        outputs[name] = tensor if isinstance(tensor, Tensor) and tensor.requires_grad and runs_once else None

    with ExitStack() as hooks, torch.enable_grad():
        for name, module in model.module.named_modules():
            if name and not isinstance(module, _SKIPPED):
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        logits = model.logits(image.detach().requires_grad_().clone())
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
