"""What CEM-MAF was shown on: parts of Fashion-MNIST, CelebA (Liu et al., 2015), and the classifiers of both."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from ratherthan import data
from ratherthan.errors import InputError, first_line, unknown
from ratherthan.zoo.registry import ZooEntry, grey_entry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation, Recipe

if TYPE_CHECKING:
    import pandas as pd

_ATTRIBUTES = (
    "High_Cheekbones", "Narrow_Eyes", "Oval_Face", "Bags_Under_Eyes", "Heavy_Makeup", "Wearing_Lipstick", "Bangs",
    "Gray_Hair", "Brown_Hair", "Black_Hair", "Blond_Hair",
)  # fmt: skip


# ----------------------------------------------------------------------------------------- clothes and shoes
def garments(name: str, kept: tuple[int, ...], root: str | Path | None, split: str | None) -> data.Dataset:
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


# ----------------------------------------------------------------------------------------- faces
def celeba_attributes(folder: str | Path) -> pd.DataFrame:
    """The attributes of CelebA (Liu et al., 2015): a column of booleans for each of the 40, a row for each image.

    Args:
        folder: Where list_attr_celeba.txt lies, and perhaps list_eval_partition.txt.

    Returns:
        The table, indexed by the names of the images. A further column, `split`, says train, valid or test: as the
        partition file does, else the first eight tenths of the images, a tenth, and the last tenth.

    Raises:
        InputError: A file is missing or damaged.
    """
    import pandas as pd

    path, partition = Path(folder) / "list_attr_celeba.txt", Path(folder) / "list_eval_partition.txt"
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        table = pd.read_csv(path, sep=r"\s+", skiprows=1) == 1
        part = (np.arange(len(table)) * 10 // len(table) - 7).clip(0)
        if partition.is_file():
            part = pd.read_csv(partition, sep=r"\s+", header=None, index_col=0)[1].loc[table.index].to_numpy()
        return table.assign(split=np.array(["train", "valid", "test"])[part])
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{folder}: its lists are not those of CelebA ({first_line(error)})") from error


def celeba(root: str | Path | None, split: str | None, attributes: str = "Young,Male,Smiling") -> data.Dataset:
    """Faces; the class is what holds of several attributes, the first counting most.

    Args:
        root: As in `data.load`.
        split: `train`, `valid`, `test`.
        attributes: Which of the 40, with commas between: of "celeba" eight classes of young or old, male or female,
            smiling or not; "celeba:Bangs" has those of its own.
    """
    folder, asked = data.find_folder("celeba", root), attributes.split(",")
    parts = data.chosen_splits("celeba", split, ("train", "valid", "test"))
    table = celeba_attributes(folder)
    table = table[table["split"].isin(parts)]
    if absent := [name for name in asked if name not in table]:
        raise InputError(unknown("attribute of celeba", absent[0], list(table)[:-1]))
    opposites = {"Young": "Old", "Male": "Female"}
    pairs = [(opposites.get(name, f"not {name}"), name) for name in asked]
    names = tuple(", ".join(words).replace("_", " ").lower() for words in product(*pairs))
    labels = table[asked].to_numpy() @ (1 << np.arange(len(asked))[::-1])
    reader = data.FileReader(tuple(folder / "img_align_celeba" / name for name in table.index))
    return data.Dataset("celeba", names, tuple(table.index), tuple(labels.tolist()), reader)


def face_network(classes: int) -> nn.Sequential:
    """The attribute classifiers of CEM-MAF, supplement 2.1: four convolutions and a linear map.

    Their sizes are not stated, and the paper's images have 224 x 224 pixels; here (N, 3, 64, 64) go to logits.
    """
    features = list[nn.Module]()
    for given, made in pairwise((3, 16, 32, 64, 64)):
        features += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, classes))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), head=head))


# ----------------------------------------------------------------------------------------- what they are called
_CLOTHES = {"sides": "longer sleeves", "waist": "wider waist", "length": "longer cut", "mass": "more material"}
_SHOES = {"heel": "higher heel", "mass": "more material"}
_garments = partial(grey_entry, layer="features.3", manifold="fashion_mnist_dip")
_facing = Augmentation(shift=0.03, scale=0.05, rotation=5, flips="h", brightness=0.1, padding="reflection")
_faces = partial(ZooEntry, layer="features.9", image_size=(64, 64), fit="crop", mean=(0.5,) * 3, std=(0.25,) * 3)
_recipe = partial(Recipe, epochs=6, rate=2e-3, batch_size=32, augmentation=_facing)

for _name, _kept, _words in (("fashion_clothes", (0, 1, 2, 3, 4, 6), _CLOTHES), ("fashion_shoes", (5, 7, 9), _SHOES)):
    data.register_dataset(_name, partial(garments, _name, _kept))
    _network = partial(garment_network, len(_kept))
    register_zoo_model(_garments(_name, _network, recipe=Recipe(_name, 5, 1e-3), words=_words))
for _name in ("celeba", "celeba:"):
    data.register_dataset(_name, celeba)
register_zoo_model(_faces("celeba", partial(face_network, 8), recipe=_recipe("celeba")))
for _name in _ATTRIBUTES:
    _network = partial(face_network, 2)
    register_zoo_model(_faces(f"celeba_{_name.lower()}", _network, recipe=_recipe(f"celeba:{_name}")))
