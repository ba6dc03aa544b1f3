"""Networks of the zoo for other inputs and outputs: signals, films, regions of a scene; and one that attends."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ratherthan import data
from ratherthan.inputs import Signals, Volumes
from ratherthan.zoo.registry import SHIPPED, ZooEntry, grey_entry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation, Examples, Recipe


def pooled_network(axes: int, classes: int, *layers: tuple[Any, ...]) -> nn.Sequential:
    """Convolutions, each rectified, a global mean and a linear map: signals or films to logits (N, classes).

    Args:
        axes: 1 for signals (N, C, T), 3 for films (N, C, D, H, W).
        classes: How many classes it tells apart.
        *layers: Of each convolution channels, filters, size, stride and padding.
    """
    convolution, pool = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[axes]
    features = [each for layer in layers for each in (convolution(*layer), nn.ReLU())]
    head = nn.Sequential(pool(1), nn.Flatten(), nn.Linear(layers[-1][1], classes))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), head=head))


class SceneNet(nn.Module):
    """A small U-Net: scenes (N, 1, H, W) in [0, 1], sides that 4 divides, to scores (N, classes, H, W).

    The LA map of its last layer, `head`, is what each place adds to the contrast of a region, and adds up to it.

    Args:
        classes: How many classes a pixel may have.
        width: Channels at the full resolution; twice and three times as many at a half and a quarter.
    """

    def __init__(self, classes: int = 16, width: int = 12) -> None:
        super().__init__()
        self.whole, self.halved = _pair(1, width), _pair(width, 2 * width)
        self.quartered = nn.Sequential(*_pair(2 * width, 3 * width), *_pair(3 * width, 3 * width))
        self.middle, self.fine = _pair(5 * width, 2 * width), _pair(3 * width, width)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, classes, H, W)."""
        whole = self.whole(x)
        halved = self.halved(self.pool(whole))
        middle = self.middle(torch.cat([halved, self.grow(self.quartered(self.pool(halved)))], 1))
        return self.head(self.fine(torch.cat([whole, self.grow(middle)], 1)))  # type: ignore[no-any-return]


def _pair(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU())


@dataclass(frozen=True)
class SceneRecipe(Recipe):
    """Train on what every pixel belongs to, which is handed on as a second channel.

    Attributes:
        smoothing: The share of each pixel's target that is spread over all classes.
        calm: How much the variance of the scores of all objects weighs where there is ground, in the last epochs: no
            ground should speak for one object rather than another.
        calmed: So many epochs.
    """

    smoothing: float = 0.1
    calm: float = 5.0
    calmed: int = 2

    def at(self, epoch: int, epochs: int) -> Recipe:
        """The recipe as it stands in epoch `epoch`, from 0, of `epochs`."""
        return replace(self, calm=self.calm if epoch >= epochs - self.calmed else 0.0)

    def open(self, root: str | Path | None, split: str) -> data.Dataset:
        """Scenes and classes, (2, 64, 64)."""
        scenes = data.load(self.dataset, root, split)
        return replace(scenes, reader=data.MadeReader(scenes.ids, scenes.reader.make))  # type: ignore[attr-defined]

    def examples(self, images: Tensor, labels: Tensor, generator: torch.Generator, training: bool) -> Examples:
        """The scenes, and the class of each pixel."""
        return images[:, :1], images[:, 1].long()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of all pixels, and the variance."""
        misfit = nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        return misfit + self.calm * logits[:, 1:].var(1)[labels == 0].mean()


class VisionTransformer(nn.Module):
    """Garments (N, 1, 28, 28) in [0, 1] to logits (N, classes): 7 x 7 patches and a class token attend to each other.

    Args:
        classes: How many classes it tells apart.
        width: Length of a token.
        depth: Blocks.
        heads: Of the attention.
    """

    def __init__(self, classes: int = 10, width: int = 48, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token, self.places = (nn.Parameter(0.02 * torch.randn(1, count, width)) for count in (1, 50))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens)[:, 0]))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and two linear maps, each behind a norm and added to what it was given (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, tokens, width)."""
        parts = self.attention_in(self.norm1(x)).unflatten(2, (3, self.heads, -1)).transpose(1, 3)
        attended = nn.functional.scaled_dot_product_attention(*parts.unbind(2))
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


_beats = partial(pooled_network, 1, 3, (2, 16, 9, 2, 4), (16, 32, 7, 2, 3), (32, 32, 7, 1, 3))
_drifts = partial(pooled_network, 3, 4, (1, 12, (3, 5, 5), (1, 2, 2), (1, 2, 2)), (12, 24, 3, 1, 1), (24, 24, 3, 1, 1))
_moved = Augmentation(shift=0.04, scale=0.05, flips="h")
_entry = partial(ZooEntry, shipped=SHIPPED)
register_zoo_model(
    _entry("beats", _beats, "features", sees=Signals(), recipe=Recipe("beats", 12, 3e-3, 32)),
    _entry("drifts", _drifts, "features", sees=Volumes(), recipe=Recipe("drifts", 6, 3e-3, 32)),
    grey_entry(
        "scenes", SceneNet, "head", image_size=(64, 64), shipped=SHIPPED,
        recipe=SceneRecipe("scenes", 7, 5e-3, 16, warmup=0.1),
    ),
    grey_entry(
        "fashion_mnist_vit", VisionTransformer, "blocks.2.norm1", shipped=SHIPPED, mean=(0.286,), std=(0.353,),
        recipe=Recipe("fashion_mnist", 14, 2e-3, 128, 0.05, augmentation=_moved),
    ),
)  # fmt: skip
