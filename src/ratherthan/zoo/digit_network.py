"""The digit classifier of the CDeepEx paper: two convolutions, two linear maps."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ratherthan.zoo.registry import SHIPPED, grey_entry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation, Recipe


def digit_network(side: int = 28) -> nn.Sequential:
    """The digit classifier of CDeepEx, section 6.1: grey images (N, 1, side, side) in [0, 1] to logits (N, 10).

    The paper's side is 64, which makes the first linear map 3380 x 50. Nothing stands between the two linear maps, as
    printed.
    """
    features = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()
    )
    cells = ((side - 4) // 2 - 4) // 2
    head = nn.Sequential(nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(20 * cells**2, 50), nn.Linear(50, 10))
    return nn.Sequential(OrderedDict(features=features, head=head))


RECIPE = Recipe("mnist", 10, 4e-3, augmentation=Augmentation(shift=0.04, scale=0.05, rotation=5))

register_zoo_model(
    grey_entry("mnist_paper", digit_network, "features.3", shipped=SHIPPED, recipe=RECIPE, manifold="mnist_vae")
)
