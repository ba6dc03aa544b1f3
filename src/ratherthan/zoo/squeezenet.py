"""SqueezeNet v1.0 (Iandola et al. 2016), its parameters named like torchvision's `squeezenet1_0`."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from ratherthan.zoo.registry import ZooEntry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation, Recipe


class Fire(nn.Module):
    """A 1x1 convolution that squeezes the channels, then 1x1 and 3x3 convolutions side by side that expand them.

    Args:
        channels: Channels of the input.
        squeeze: Channels between the two stages.
        expand: Channels that each of the two expanding convolutions adds to the output.
    """

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, h, w) to (N, 2 * expand, h, w)."""
        x = self.squeeze_activation(self.squeeze(x))
        small, large = self.expand1x1(x), self.expand3x3(x)
        return torch.cat([self.expand1x1_activation(small), self.expand3x3_activation(large)], dim=1)


class SqueezeNet(nn.Sequential):
    """SqueezeNet v1.0: (N, 3, H, W), H and W at least 21, normalised, to logits (N, classes).

    The last layer with a spatial grid and a spatial mixture is `features.12`; a 1x1 convolution, a ReLU and a global
    mean follow it, so logits are never negative.

    Args:
        classes: How many classes it tells apart.
    """

    def __init__(self, classes: int = 1000) -> None:
        pools = [nn.MaxPool2d(3, stride=2, ceil_mode=True) for _ in range(3)]
        features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), pools[0],
            Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pools[1],
            Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pools[2],
            Fire(512, 64, 256),
        )  # fmt: skip
        head = nn.Conv2d(512, classes, 1)
        # Almost equal positive scores at first: a class that starts below the last ReLU would learn nothing
        nn.init.normal_(head.weight, std=0.001)
        nn.init.constant_(head.bias, 1.0)  # type: ignore[arg-type]
        classifier = nn.Sequential(nn.Dropout(0.5), head, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        super().__init__(OrderedDict(features=features, classifier=classifier, flatten=nn.Flatten()))


_flowers = Recipe(
    "flowers102", 8, 4e-4, 32, 0.02, start="squeezenet/squeezenet1_0_caffe.safetensors", workers=1,
    frozen=tuple(f"features.{index}" for index in range(9)), tests=("valid", "test"),
    augmentation=Augmentation(144 / 224, 0.05, 0.2, 15, "h", 0.2, padding="reflection"), uncropped=2,
)  # fmt: skip

register_zoo_model(
    ZooEntry("squeezenet1_0", SqueezeNet, "features.12", fit="crop"),
    ZooEntry("flowers102", partial(SqueezeNet, 102), "features.12", recipe=_flowers),
)
