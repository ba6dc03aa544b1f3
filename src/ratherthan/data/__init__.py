"""Labelled images by name, from a folder the user names, or from anything that holds images and labels."""

from ratherthan.data.dataset import ArrayReader, Batches, Dataset, Reader, Skipped
from ratherthan.data.images import CorruptImage, fit_image, fit_tensor, open_image, to_tensor
from ratherthan.data.labels import LabelMap, match_labels
from ratherthan.data.made import MadeReader, SceneReader
from ratherthan.data.sources import (
    FileReader,
    ItemReader,
    chosen_splits,
    find_folder,
    images,
    load,
    names,
    register_dataset,
)  # fmt: skip

batches = Batches

__all__ = [
    "ArrayReader", "Batches", "CorruptImage", "Dataset", "FileReader", "ItemReader", "LabelMap", "MadeReader",
    "Reader", "SceneReader", "Skipped", "batches", "chosen_splits", "find_folder", "fit_image", "fit_tensor", "images",
    "load", "match_labels", "names", "open_image", "register_dataset", "to_tensor",
]  # fmt: skip
