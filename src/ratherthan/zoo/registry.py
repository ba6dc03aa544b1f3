"""The zoo's register: what each network is, what it expects, and how its weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ratherthan.errors import InputError, ModelError, first_line, unknown
from ratherthan.zoo.architectures import PlainNet
from ratherthan.zoo.gan import Generator
from ratherthan.zoo.iqa import DIQaM
from ratherthan.zoo.papers import digit_network, face_network, garment_network
from ratherthan.zoo.recipes import EIGHTS, FACES
from ratherthan.zoo.resnet9 import ResNet9
from ratherthan.zoo.squeezenet import SqueezeNet
from ratherthan.zoo.vae import convolutional_vae, dense_vae

_SHIPPED = Path(__file__).parent / "weights"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ZooModel:
    """What there is to know about a network of the zoo before its weights are read (its class names lie in those).

    Attributes:
        name: What stands after `zoo:`.
        build: Makes the untrained network; called without arguments.
        layer: Dotted name of the layer that layer methods explain by default; empty for a generative model.
        image_size: Height and width that the network is fed.
        channels: Channels of the image, 1 or 3; 6 for a reference and its distorted version.
        mean: What is subtracted from an image in [0, 1], per channel.
        std: What it is then divided by.
        fit: How an image of another size is brought to `image_size`, see `ratherthan.data.images.fit_image`.
        crop_fraction: The share of the shorter side that a centre crop keeps.
        shipped: Whether its weights come with the package.
        recipe: Name of the recipe that trains it (`ratherthan train zoo:NAME`), or None.
        manifold: Name of the generative model that fits its images, or None.
        words: What more of a concept is called in answers, by the names of the manifold's concepts; "-" before a name:
            less of it.
        measure: Of a generative model: how the concepts of a picture are measured, by its name in
            `search.concepts.MEASURES`, or None.
        output: "value" for a network that gives one number.
        own: Whether it is trained on somebody's own images, whose size and colour its weights then tell.
    """

    name: str
    build: Callable[..., nn.Module]
    layer: str
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    fit: Literal["resize", "crop"] = "resize"
    crop_fraction: float = 0.875
    shipped: bool = False
    recipe: str | None = None
    manifold: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    measure: str | None = None
    output: Literal["logits", "value"] = "logits"
    own: bool = False

    @property
    def weights(self) -> Path | None:
        """The weights inside the package, or None where none are shipped."""
        return _SHIPPED / f"{self.name}.safetensors" if self.shipped else None

    @property
    def scale(self) -> tuple[float, float]:
        """The values that black and white have for the network, e.g. (-1, 1); of its first channel."""
        return -self.mean[0] / self.std[0], (1 - self.mean[0]) / self.std[0]

    def sized(self, image_size: tuple[int, int], channels: int) -> ZooModel:
        """The entry for images of another size and colour; its architecture must take them."""
        build = partial(self.build, image_size=image_size, channels=channels)
        mean, std = (values[:1] * channels for values in (self.mean, self.std))
        return replace(self, build=build, image_size=image_size, channels=channels, mean=mean, std=std)


def _quality(name: str, weighted: bool, shipped: bool = False) -> ZooModel:
    build = partial(DIQaM, 6, weighted, dropout=0.0)
    half, quarter = (0.5,) * 6, (0.25,) * 6
    return ZooModel(
        name, build, "distorted_conv10", (224, 224), 6, half, quarter, shipped=shipped, recipe="iqa", output="value"
    )


_small = partial(ZooModel, layer="features.8", image_size=(28, 28), channels=1, mean=(0.0,), std=(1.0,))
_paper = partial(_small, layer="features.3")
_garments = partial(_paper, manifold="fashion_mnist_dip")
_vae = partial(_small, layer="")
_gan = partial(_small, layer="", mean=(0.5,), std=(0.5,))
_face = partial(ZooModel, layer="features.9", image_size=(64, 64), fit="crop", mean=(0.5,) * 3, std=(0.25,) * 3)
_garment = {"sides": "broader sides", "waist": "wider waist", "length": "greater length", "mass": "more material"}
_clothes = {"sides": "longer sleeves", "waist": "wider waist", "length": "longer cut", "mass": "more material"}
_shoes = {"heel": "higher heel", "mass": "more material"}
_lesion = {"size": "larger size", "roundness": "rounder shape", "darkness": "darker colour", "border": "sharper border"}
_large = (64, 64)  # what the CDeepEx paper enlarges digits and garments to

ENTRIES: dict[str, ZooModel] = {
    entry.name: entry
    for entry in (
        _small("mnist", PlainNet, shipped=True, recipe="mnist", manifold="mnist_vae"),
        _small(
            "fashion_mnist",
            partial(PlainNet, cells=7),
            shipped=True,
            recipe="fashion_mnist",
            manifold="fashion_mnist_vae",
            words=_garment,
        ),
        ZooModel(
            "fashion_mnist_resnet",
            partial(ResNet9, 8, 10, 1, fine=True),
            "residual2",
            (28, 28),
            1,
            (0.286,),
            (0.353,),
            shipped=True,
            recipe="fashion_mnist_resnet",
            manifold="fashion_mnist_vae",
            words=_garment,
        ),
        _paper("mnist_paper", digit_network, shipped=True, recipe="mnist_paper", manifold="mnist_vae"),
        _paper(
            "mnist_paper_64",
            partial(digit_network, 64),
            image_size=_large,
            recipe="mnist_paper",
            manifold="mnist_vae_64",
        ),
        *(
            _paper(f"mnist_eights_{share}", digit_network, recipe=f"mnist_eights_{share}", manifold="mnist_vae")
            for share in EIGHTS
        ),
        _paper("mnist_biased", digit_network, recipe="mnist_biased", manifold="mnist_biased_vae"),
        _garments("fashion_clothes", partial(garment_network, 6), recipe="fashion_clothes", words=_clothes),
        _garments("fashion_shoes", partial(garment_network, 3), recipe="fashion_shoes", words=_shoes),
        _face("celeba", partial(face_network, 8), recipe="celeba"),
        *(_face(name, partial(face_network, 2), recipe=name) for name in FACES),
        ZooModel("squeezenet1_0", SqueezeNet, "features.12", fit="crop"),
        ZooModel("flowers102", partial(SqueezeNet, 102), "features.12", recipe="flowers102"),
        ZooModel(
            "ham10000",
            partial(ResNet9, 12),
            "residual2",
            (128, 128),
            recipe="ham10000",
            manifold="ham10000_dip",
            words=_lesion,
        ),
        _quality("iqa", weighted=False, shipped=True),
        _quality("iqa_weighted", weighted=True),
    )
}

# CEM-MAF, Tables 4 and 3; Table 3 gives one channel, but the lesions and their classifier are in colour
_table_4 = partial(dense_vae, (1200, 1200), 16, (1200, 1200, 1200))
_table_3 = partial(convolutional_vae, 32, (32, 32, 64, 64), (256,), image_size=(128, 128), channels=3)

MANIFOLDS: dict[str, ZooModel] = {
    entry.name: entry
    for entry in (
        _vae("mnist_vae", convolutional_vae, shipped=True, recipe="mnist_vae"),
        _vae("mnist_biased_vae", convolutional_vae, recipe="mnist_biased_vae"),
        _vae("mnist_squares_vae", convolutional_vae, recipe="mnist_squares_vae"),
        _vae("mnist_vae_dense", dense_vae, recipe="mnist_vae"),
        _vae(
            "mnist_vae_64", partial(dense_vae, (784, 400), 120, (400, 784), 64), image_size=_large, recipe="mnist_vae"
        ),
        _vae("fashion_mnist_vae", convolutional_vae, shipped=True, recipe="fashion_mnist_vae", measure="garment"),
        _vae("fashion_mnist_dip", _table_4, recipe="fashion_mnist_dip", measure="garment"),
        _vae("fashion_mnist_dip2", _table_4, recipe="fashion_mnist_dip2", measure="garment"),
        ZooModel(
            "ham10000_dip",
            _table_3,
            "",
            (128, 128),
            3,
            (0.0,) * 3,
            (1.0,) * 3,
            recipe="ham10000_dip",
            measure="shape",
        ),
        _gan("mnist_gan", partial(Generator, 200, 32, 28), recipe="mnist_gan"),
        _gan("fashion_mnist_gan", partial(Generator, 200, 32, 28), recipe="fashion_mnist_gan"),
        _gan("fashion_mnist_gan_64", Generator, image_size=_large, recipe="fashion_mnist_gan"),
        _vae("vae", convolutional_vae, recipe="vae", own=True),
    )
}
"""The generative models: a register of their own, for they answer no question themselves."""


def names() -> list[str]:
    """The names of all networks of the zoo."""
    return list(ENTRIES)


def get(name: str, known: Mapping[str, ZooModel] = ENTRIES) -> ZooModel:
    """Look up a network.

    Args:
        name: Its name, with or without `zoo:` in front.
        known: Where: `ENTRIES`, `MANIFOLDS` or both.

    Returns:
        Its entry.

    Raises:
        InputError: No network has this name.
    """
    try:
        return known[name.removeprefix("zoo:")]
    except KeyError:
        kind = "manifold of the zoo" if known is MANIFOLDS else "zoo model"
        raise InputError(unknown(kind, name.removeprefix("zoo:"), known)) from None


def entry_of(model: str) -> ZooModel | None:
    """The entry of a loaded model by its name, "zoo:NAME"; None for one that is not of the zoo."""
    return ENTRIES.get(model.removeprefix("zoo:")) if model.startswith("zoo:") else None


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict without running anybody's code.

    Args:
        path: A `.safetensors` file, or a `.pt` or `.pth` file that holds nothing but tensors.

    Returns:
        The tensors by name, and the metadata of a safetensors file (`class_names` is a JSON list there).

    Raises:
        ModelError: There is no such file, it is damaged, or it holds something else.
    """
    path = Path(path)
    with _readable(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no plain state dict (tensors by name); save `net.state_dict()`")
    return state, {}


def _metadata(path: Path) -> dict[str, str]:
    """What `read_weights` finds beside the tensors; those of a safetensors file are not read for it."""
    if path.suffix != ".safetensors":
        return read_weights(path)[1]
    with _readable(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while weights are read is one ModelError."""
    if not path.is_file():
        raise ModelError(f"no weights at {path}: there is no such file")
    try:
        yield
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ModelError(f"cannot read weights from {path}: {first_line(error)}") from error


def load_weights(entry: ZooModel, path: str | Path | None = None) -> nn.Module:
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
        raise ModelError(f"zoo:{entry.name} comes without weights: give weights=PATH{hint}")
    state, metadata = read_weights(source)
    if entry.own:
        entry = _as_trained(entry, metadata, source)
    with torch.random.fork_rng(devices=[]):
        network = entry.build()
    check_state(network.state_dict(), state, f"{source} does not fit zoo:{entry.name}")
    cast = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    network.load_state_dict(cast, assign=True)
    return network.eval()


def _as_trained(entry: ZooModel, metadata: dict[str, str], source: str | Path) -> ZooModel:
    try:
        told = json.loads(metadata["input"])
        return entry.sized(tuple(told["image_size"]), int(told["channels"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{source} does not tell its image size: train zoo:{entry.name} to make weights") from error


def class_names(entry: ZooModel, path: str | Path | None = None) -> tuple[str, ...]:
    """The class names written in weights, in the order of the logits.

    Args:
        entry: The network.
        path: Its weights; by default those that ship in the package.

    Returns:
        The names; empty where the file (a `.pt`, or weights trained elsewhere) holds none.
    """
    return tuple(_written(entry, path, "class_names") or ())


def effects(entry: ZooModel, path: str | Path | None = None) -> dict[str, list[list[float]]]:
    """What was measured of the latents of a generative model, as written in its weights.

    Args:
        entry: The generative model.
        path: Its weights; by default those that ship in the package.

    Returns:
        For each concept two lists over the latents, correlations and strengths (see `search.concepts.Effect`); empty
        where nothing was measured.
    """
    return dict(_written(entry, path, "effects") or {})


def _written(entry: ZooModel, path: str | Path | None, key: str) -> Any:
    source = path or entry.weights
    metadata = _metadata(Path(source)) if source else {}
    return json.loads(metadata.get(key, "null"))


def check_state(wanted: dict[str, Tensor], state: dict[str, Tensor], complaint: str) -> None:
    """Compare a state dict with the one a network has.

    Args:
        wanted: The network's own.
        state: The one to be loaded.
        complaint: How the error begins.

    Raises:
        ModelError: Tensors are missing, too many or of another shape, or a number in them is not finite.
    """

    def listed(keys: list[str]) -> str:
        return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

    if missing := [key for key in wanted if key not in state]:
        raise ModelError(f"{complaint}: missing {listed(missing)}")
    if extra := [key for key in state if key not in wanted]:
        raise ModelError(f"{complaint}: it has no {listed(extra)}")
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise ModelError(f"{complaint}: {key} is {tuple(tensor.shape)}, not {tuple(wanted[key].shape)}")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{complaint}: {key} holds NaN or infinite numbers")
