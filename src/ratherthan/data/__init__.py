"""Labelled images by name, from a folder the user names, or from anything that holds images and labels."""

from ratherthan.data.dataset import ArrayReader, Batches, Dataset, Reader, Skipped
from ratherthan.data.images import CorruptImage, fit_image, fit_tensor, open_image, to_tensor
from ratherthan.data.sources import FileReader, chosen_splits, find_folder, images, load, names, register_dataset

batches = Batches

__all__ = [
    "ArrayReader", "Batches", "CorruptImage", "Dataset", "FileReader", "Reader", "Skipped", "batches",
    "chosen_splits", "find_folder", "fit_image", "fit_tensor", "images", "load", "names", "open_image",
    "register_dataset", "to_tensor",
]  # fmt: skip
