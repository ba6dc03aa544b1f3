"""The classifiers of clothes and shoes of CEM-MAF (Table 5) and the parts of Fashion-MNIST they are trained on."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from ratherthan import data
from ratherthan.zoo.registry import ZooEntry, register_zoo_model
from ratherthan.zoo.training.recipes import Recipe


def _part(name: str, kept: tuple[int, ...], root: str | Path | None, split: str | None) -> data.Dataset:
    """The images of some classes, which are numbered anew."""
    whole = data.load("fashion_mnist", root, split)
    part = whole.subset([index for index, label in enumerate(whole.labels) if label in kept])
    names = tuple(whole.class_names[label] for label in kept)
    return replace(part, name=name, class_names=names, labels=tuple(kept.index(label) for label in part.labels))


def garment_network(classes: int) -> nn.Sequential:
    """The classifiers of clothes and shoes of CEM-MAF, Table 5: grey images (N, 1, 28, 28) in [0, 1] to logits.

    The padding is not stated; here there is none, as is usual for Keras, which the paper used.
    """
    features = nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)
    )
    head = nn.Sequential(nn.Flatten(), nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.4), nn.Linear(1024, classes))
    return nn.Sequential(OrderedDict(features=features, head=head))


_CLOTHES = {"sides": "longer sleeves", "waist": "wider waist", "length": "longer cut", "mass": "more material"}
_SHOES = {"heel": "higher heel", "mass": "more material"}

for _name, _kept, _words in (
    ("fashion_clothes", (0, 1, 2, 3, 4, 6), _CLOTHES),
    ("fashion_shoes", (5, 7, 9), _SHOES),
):
    data.register_dataset(_name, partial(_part, _name, _kept))
    register_zoo_model(
        ZooEntry(
            _name,
            partial(garment_network, len(_kept)),
            "features.3",
            (28, 28),
            1,
            (0.0,),
            (1.0,),
            recipe=Recipe(_name, 5, 1e-3),
            manifold="fashion_mnist_dip",
            words=_words,
        )
    )
