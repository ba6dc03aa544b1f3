"""What CEM-MAF was shown on: parts of Fashion-MNIST, CelebA (Liu et al., 2015), the classifiers of both; DIP-VAEs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan import Augmentation, InputError, Recipe, ZooEntry, data, register_zoo_model
from ratherthan.errors import told_as, unknown
from ratherthan.replication.cdeepex import dense_vae
from ratherthan.zoo.concepts import garment_of, shape_of
from ratherthan.zoo.registry import grey_entry
from ratherthan.zoo.vae import AutoencoderRecipe, convolutional_vae, split_output

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
    with told_as(InputError, f"{folder}: its lists are not those of CelebA", ValueError, LookupError):
        table = pd.read_csv(path, sep=r"\s+", skiprows=1) == 1
        part = (np.arange(len(table)) * 10 // len(table) - 7).clip(0)
        if partition.is_file():
            part = pd.read_csv(partition, sep=r"\s+", header=None, index_col=0)[1].loc[table.index].to_numpy()
        return table.assign(split=np.array(["train", "valid", "test"])[part])


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
    pairs = pairwise((3, 16, 32, 64, 64))
    features = [(nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)) for given, made in pairs]
    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, classes))
    return nn.Sequential(OrderedDict(features=nn.Sequential(*chain(*features)), head=head))


# ----------------------------------------------------------------------------------------- their manifolds
@dataclass(frozen=True)
class DIPRecipe(AutoencoderRecipe):
    """Train a DIP-VAE (Kumar, Sattigeri and Balakrishnan, 2018, section 3): a VAE with uncorrelated latents.

    The negative evidence lower bound, with Gaussian pixels ("mse loss", Table 4 of CEM-MAF), plus
    off_diagonal * sum_{i != j} C_ij^2 + diagonal * sum_i (C_ii - 1)^2, where C (estimated on each batch) is the
    covariance of the posterior means for DIP-VAE-I, and of the aggregated posterior, which adds the mean of the
    posterior variances to its diagonal, for DIP-VAE-II.

    Attributes:
        aggregated: DIP-VAE-II instead of I.
        off_diagonal: Weight of the squared covariances.
        diagonal: Weight of the squared distance of the variances from 1; Kumar et al. take ten times `off_diagonal` for
            DIP-VAE-I, and the same for II.
        deviation: Standard deviation of the pixels around the decoded image: what weighs pixels against latents.
    """

    aggregated: bool = False
    off_diagonal: float = 10.0
    diagonal: float = 100.0
    deviation: float = 0.1

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The bound and the two terms on the covariance."""
        _, mean, log_variance = split_output(logits, labels)
        return super().loss(logits, labels) + self.decorrelation(mean, log_variance)

    def misfit(self, log_odds: Tensor, images: Tensor) -> Tensor:
        """The negative log-likelihood of the pixels, as Gaussian variables, up to a constant; nats per image."""
        return (log_odds.sigmoid() - images).square().sum() / (2 * self.deviation**2 * len(images))

    def decorrelation(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The two terms, from posteriors (N, latents)."""
        covariance = mean.T.cov(correction=0)
        if self.aggregated:
            covariance = covariance + log_variance.exp().mean(0).diag()
        variances = covariance.diagonal()
        mixed = covariance.square().sum() - variances.square().sum()
        return self.off_diagonal * mixed + self.diagonal * (variances - 1).square().sum()

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Those of every autoencoder, and two of disentanglement: `correlation` and `separation`."""
        _, mean, _ = split_output(logits, labels)
        found = {"correlation": correlation(mean), "separation": separation(mean, labels)}
        return super().metrics(logits, labels) | found


def correlation(latents: Tensor) -> float:
    """How entangled latents are: the mean of abs(corr(z_i, z_j)) over all i != j.

    It needs no labels, and is 0 where the posterior means are uncorrelated, as DIP-VAE wants them. Latents that hardly
    vary (variance up to 0.05) are not counted.

    Args:
        latents: (N, latents) posterior means.
    """
    used = latents[:, latents.var(0, correction=0) > 0.05].double()
    count = used.shape[1]
    return ((used.T.corrcoef().abs().sum() - count) / (count * (count - 1))).item() if count > 1 else 0.0


def separation(latents: Tensor, images: Tensor) -> float:
    """Whether single latents hold single properties: the SAP score of Kumar et al. (2018, section 4), without labels.

    The mean over properties y of R^2_first - R^2_second, the two largest squared correlations of a latent with y. The
    properties are measured on the images: brightness, amount of what differs from the ground (the median of the
    border), and its spread across and down.

    Args:
        latents: (N, latents) posterior means.
        images: (N, C, H, W) what they were encoded from.

    Returns:
        1 where each property is one latent's alone, about 0 where two tell as much of it.
    """
    z, y = (values.double() - values.double().mean(0) for values in (latents, _properties(images)))
    scale = z.square().sum(0)[:, None] * y.square().sum(0)
    best = ((z.T @ y).square() / scale.clamp_min(1e-12)).topk(2, dim=0).values
    return (best[0] - best[1]).mean().item()


def _properties(images: Tensor) -> Tensor:
    grey = images.mean(1)
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1)
    matter = (grey - border.median(1).values[:, None, None]).abs()
    amount = matter.sum((1, 2))
    spreads = []
    for profile in (matter.sum(1), matter.sum(2)):
        place = torch.arange(profile.shape[1], device=images.device).float()
        share = profile / amount.clamp_min(1e-6)[:, None]
        centre = (share * place).sum(1, keepdim=True)
        spreads.append((share * (place - centre).square()).sum(1).sqrt())
    return torch.stack([grey.mean((1, 2)), amount, *spreads], 1)


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
data.register_dataset("celeba", celeba)
data.register_dataset("celeba:", celeba)
for _set, _classes in {"celeba": 8, **{f"celeba:{each}": 2 for each in _ATTRIBUTES}}.items():
    _name, _network = _set.replace(":", "_").lower(), partial(face_network, _classes)
    register_zoo_model(_faces(_name, _network, recipe=_recipe(_set)))

_dip_garments = DIPRecipe("fashion_mnist", 6, 1e-3, 256, 0.0, warmup=0.1)
_flipped = Augmentation(flips="hv")
_dip_lesions = DIPRecipe("ham10000", 20, 1e-3, 64, 0.0, 0.1, _flipped, off_diagonal=100.0, deviation=0.3)
_grey_dip = partial(grey_entry, generative=True, measure=garment_of)
_colour_dip = partial(ZooEntry, mean=(0.0,) * 3, std=(1.0,) * 3, generative=True, measure=shape_of)
_table_4 = partial(dense_vae, (1200, 1200), 16, (1200, 1200, 1200))
# Table 3 gives one channel, but the lesions and their classifier are in colour
_table_3 = partial(convolutional_vae, 32, (32, 32, 64, 64), (256,), image_size=(128, 128), channels=3)

register_zoo_model(
    _grey_dip("fashion_mnist_dip", _table_4, recipe=_dip_garments),
    _grey_dip("fashion_mnist_dip2", _table_4, recipe=replace(_dip_garments, aggregated=True, diagonal=10.0)),
    _colour_dip("ham10000_dip", _table_3, image_size=(128, 128), recipe=_dip_lesions),
)
