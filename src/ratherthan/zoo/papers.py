"""The small classifiers of the CDeepEx and CEM-MAF papers: a few convolutions, one or two linear maps."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn


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


def face_network(classes: int) -> nn.Sequential:
    """The attribute classifiers of CEM-MAF, supplement 2.1: four convolutions and a linear map.

    Their sizes are not stated, and the paper's images have 224 x 224 pixels; here (N, 3, 64, 64) go to logits.
    """
    features = list[nn.Module]()
    for given, made in pairwise((3, 16, 32, 64, 64)):
        features += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, classes))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), head=head))


def garment_network(classes: int) -> nn.Sequential:
    """The classifiers of clothes and shoes of CEM-MAF, Table 5: grey images (N, 1, 28, 28) in [0, 1] to logits.

    The padding is not stated; here there is none, as is usual for Keras, which the paper used.
    """
    features = nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)
    )
    head = nn.Sequential(nn.Flatten(), nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.4), nn.Linear(1024, classes))
    return nn.Sequential(OrderedDict(features=features, head=head))
