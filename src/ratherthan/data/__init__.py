"""Labelled images by name, from a folder the user names, or from anything that holds images and labels."""

from ratherthan.data.dataset import Batches, Dataset, Skipped
from ratherthan.data.images import CorruptImage, fit_image, open_image, to_tensor
from ratherthan.data.sources import SQUARE, celeba_attributes, images, load, names

batches = Batches

__all__ = [
    "SQUARE",
    "Batches",
    "CorruptImage",
    "Dataset",
    "Skipped",
    "batches",
    "celeba_attributes",
    "fit_image",
    "images",
    "load",
    "names",
    "open_image",
    "to_tensor",
]
