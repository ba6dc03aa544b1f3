"""The subject: a network with what one must know to ask it questions. `loading.py` has the ways to get hold of one."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ratherthan.data.images import fit_image, open_image, plain, to_tensor
from ratherthan.errors import InputError, LayerError, ModelError, RatherThanError, first_line, unknown
from ratherthan.inference import to_device

Output = Literal["logits", "probabilities", "value"]
Fit = Literal["resize", "crop"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Model:
    """A torch module, its class names and the way into it.

    Args:
        module: The network. It maps normalised images (N, C, H, W) to logits (N, classes), or what `output` says.
        class_names: One name per class.
        mean: Per-channel mean that the network expects to be subtracted from images in [0, 1].
        std: Per-channel standard deviation they are then divided by.
        size: Height and width that files and PIL images are brought to; None keeps theirs.
        fit: How: "resize" ignores the aspect ratio, "crop" keeps it and takes the centre.
        crop_fraction: Share of each side that is kept; what is around it is cut off.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        channels: 1 or 3; None: what the first convolution takes.
        layer: Dotted name of the layer that layer methods explain; None: found automatically.
        output: "logits" (a single one is the log-odds of a sigmoid classifier), "probabilities" (their logarithm
            serves as logits; a single one is that of class 1), or "value" (one number, a regressor).
        name: What to call it in results.

    Raises:
        InputError: If a setting is none that exists, or `mean` and `std` do not fit the channels.
    """

    def __init__(
        self,
        module: nn.Module,
        class_names: Sequence[str] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Fit = "resize",
        crop_fraction: float = 1.0,
        interpolation: Interpolation = "bilinear",
        channels: int | None = None,
        layer: str | None = None,
        output: Output = "logits",
        name: str | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"a model is a torch.nn.Module, not {type(module).__name__}")
        _check_choice("output", output, Output)
        _check_choice("fit", fit, Fit)
        _check_choice("interpolation", interpolation, Interpolation)
        if not 0 < crop_fraction <= 1:
            raise InputError(f"crop_fraction is the share that is kept, above 0 and at most 1, not {crop_fraction}")
        self.module = module
        if isinstance(class_names, (str, Path, Mapping)):
            raise InputError(
                f"class_names is a list of names, not {class_names!r}; read_class_names reads a file of them"
            )
        self.class_names = None if class_names is None else tuple(str(name) for name in class_names)
        self.channels = channels or _input_channels(module)
        self._convolves = any(isinstance(each, nn.Conv2d) for each in module.modules())
        self.mean, self.std = (self._per_channel(v, w) for v, w in ((mean, "mean"), (std, "std")))
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and not _are_sides(self.size):
            raise InputError(f"size is a height and a width in pixels, whole numbers, not {size!r}")
        self.fit: Fit = fit
        self.crop_fraction = crop_fraction
        self.interpolation: Interpolation = interpolation
        self.layer = layer
        self.output: Output = output
        self.name = name or type(module).__name__

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return f"Model({self.name}{classes}, layer={self.layer!r})"

    @staticmethod
    def wrap(model: Model | nn.Module) -> Model:
        """A bare module becomes a `Model` that is fed as it is."""
        return model if isinstance(model, Model) else Model(model)

    def replace(self, **changes: Any) -> Model:
        """The same network with some settings changed.

        Args:
            **changes: Any argument of `Model` but the module.
        """
        return Model(self.module, **{**{name: getattr(self, name) for name in _SETTINGS}, **changes})

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next((p.device for p in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type it computes in."""
        return next((p.dtype for p in self._tensors() if p.is_floating_point()), torch.float32)

    def to(self, device: str | torch.device) -> Model:
        """Move the network to a device; returns itself.

        Raises:
            InputError: If there is no such device here.
        """
        to_device(self.module, device)
        return self

    def logits(self, images: Tensor) -> Tensor:
        """Class scores.

        Args:
            images: (N, C, H, W) in image space.

        Returns:
            (N, classes); (N, 2) for a sigmoid classifier, -y/2 and y/2 so that their difference is its log-odds and
            either class has a plain map; (N, 1) for a regressor. At least float32.

        Raises:
            ModelError: If the network fails, or returns something else than promised.
        """
        scores = self._scores(self._run(self._normalised(images)), len(images))
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        if self.output == "value":
            return scores
        if self.output == "probabilities":
            scores = self._logarithm(scores)
        return torch.cat([-scores / 2, scores / 2], 1) if scores.shape[1] == 1 else scores

    def check(self, logits: Tensor) -> None:
        """Refuse logits no explanation can be made of.

        Raises:
            ModelError: If they are not finite, look like probabilities, or do not fit the class names.
        """
        bad = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise ModelError(
                f"the model gives NaN or infinite scores for sample {bad[0]}: check its weights and the input"
            )
        if self.output == "logits" and logits.shape[1] > 1 and _look_like_probabilities(logits):
            raise ModelError(
                "the model returns probabilities; hand in its logits, or Model(..., output='probabilities')"
            )
        if self.class_names is not None and self.output != "value" and len(self.class_names) != logits.shape[1]:
            raise ModelError(f"{len(self.class_names)} class names for a model with {logits.shape[1]} classes")

    def submodule(self, layer: str | nn.Module) -> nn.Module:
        """The layer with this dotted name, or this module itself if it is part of the network.

        Raises:
            LayerError: If it is not there.
        """
        if isinstance(layer, nn.Module):
            if not any(layer is module for module in self.module.modules()):
                raise LayerError(f"the layer {type(layer).__name__} is no part of {self.name}; name one of its modules")
            return layer
        modules: dict[str, nn.Module] = dict(self.module.named_modules(remove_duplicate=False))
        if layer not in modules or not layer:
            raise LayerError(unknown("layer", layer, (name for name in modules if name)))
        return modules[layer]

    def preprocess(self, images: Any) -> Tensor:
        """Bring images into image space.

        Args:
            images: A path, PIL image, array ((H, W) or (H, W, C), uint8 or [0, 1], handled in 8 bits) or tensor
                ((C, H, W) or (N, C, H, W)), or a list of these. Tensors are taken as they are, all else is resized.

        Returns:
            (N, C, H, W) on the model's device, in its dtype.

        Raises:
            InputError: If something is no image, or the sizes differ and the model has no `size`.
        """
        if isinstance(images, Tensor):
            return self._batch(images)
        if not isinstance(images, (list, tuple)):
            images = [images]
        if not images:
            raise InputError("no images were given")
        prepared = [self._batch(each if isinstance(each, Tensor) else self._prepare(each)) for each in images]
        shapes = {tuple(batch.shape[1:]) for batch in prepared}
        if len(shapes) > 1:
            raise InputError(f"images of different sizes {sorted(shapes)}: give the model a size, e.g. size=224")
        return torch.cat(prepared)

    def _prepare(self, image: Any) -> Tensor:
        picture = open_image(image) if isinstance(image, (str, Path)) else _picture(image)
        if self.size is None:
            return to_tensor(picture, self.channels)
        return fit_image(picture, self.size, self.fit, self.crop_fraction, self.channels, self.interpolation)

    def _batch(self, images: Tensor) -> Tensor:
        if images.is_complex():
            raise InputError("the images hold complex numbers; image space is [0, 1]")
        images = images.detach().unsqueeze(0) if images.ndim == 3 else images.detach()
        if images.ndim < (4 if self._convolves else 2) or len(images) == 0:
            raise InputError(f"images of shape {tuple(images.shape)}: (N, C, H, W) with N >= 1 is needed")
        if self._convolves and images.shape[1] != self.channels:
            grey = (
                "; for grey images, images.expand(-1, 3, -1, -1)" if (images.shape[1], self.channels) == (1, 3) else ""
            )
            raise InputError(f"images of {images.shape[1]} channels; {self.name} takes {self.channels}{grey}")
        if not images.isfinite().all():
            raise InputError("the images hold NaN or infinite values; image space is [0, 1]")
        low, high = float(images.min()), float(images.max())
        outside = low < -1e-4 or high > 1 + 1e-4
        if outside and not images.is_floating_point():
            raise InputError(
                f"images of whole numbers from {low:.0f} to {high:.0f}: hand them in [0, 1], e.g. images / 255"
            )
        if outside and (self.mean or self.std):
            raise InputError(
                f"images range over [{low:.3g}, {high:.3g}]: hand them in [0, 1]; this model normalises by itself"
            )
        return images.to(self.device, self.dtype)

    def _normalised(self, images: Tensor) -> Tensor:
        if self.mean is not None:
            images = images - images.new_tensor(self.mean).view(-1, 1, 1)
        return images if self.std is None else images / images.new_tensor(self.std).view(-1, 1, 1)

    def _run(self, images: Tensor) -> Any:
        try:
            return self.module(images)
        except RatherThanError:
            raise
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            shape = tuple(images.shape)
            raise ModelError(f"{self.name} fails on images of shape {shape}: {first_line(error)}") from error

    def _scores(self, output: Any, samples: int) -> Tensor:
        scores = getattr(output, "logits", output)
        if not isinstance(scores, Tensor):
            what = f"a {type(output).__name__}"
            raise ModelError(f"{self.name} returns {what}: wrap it in a module that returns the logits, (N, classes)")
        if self.output == "value" and scores.ndim == 1:
            scores = scores.unsqueeze(1)
        if scores.ndim != 2 or len(scores) != samples or (self.output == "value" and scores.shape[1] != 1):
            wanted = f"({samples}, 1)" if self.output == "value" else f"({samples}, classes)"
            raise ModelError(
                f"{self.name} returns shape {tuple(scores.shape)} for {samples} samples; {wanted} is needed"
            )
        return scores

    def _logarithm(self, probabilities: Tensor) -> Tensor:
        if probabilities.min() < 0 or probabilities.max() > 1.001:
            raise ModelError(
                f"{self.name} should return probabilities, but they are not all in [0, 1]: are they logits?"
            )
        if probabilities.shape[1] == 1:
            return torch.logit(probabilities, torch.finfo(probabilities.dtype).eps)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

    def _per_channel(self, values: Sequence[float] | None, what: str) -> tuple[float, ...] | None:
        if values is None:
            return None
        row = tuple(float(v) for v in np.atleast_1d(values))
        if len(row) not in (1, self.channels):
            raise InputError(f"{what} has {len(row)} values for images of {self.channels} channels")
        if what == "std" and min(row) <= 0:
            raise InputError(f"std must be positive, not {row}")
        return row

    def _tensors(self) -> Iterable[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()


def _input_channels(module: nn.Module) -> int:
    return next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)


def _picture(image: Any) -> Image.Image:
    """A PIL image, or an array that is one."""
    if isinstance(image, Image.Image):
        return plain(image)
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is a path, a PIL image, an array or a tensor, not {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or not image.size:
        raise InputError(f"an image array has shape (H, W) or (H, W, channels), not {image.shape}")
    if image.dtype != np.uint8:
        numeric = image.dtype.kind in "buif"
        if not numeric or not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise InputError("an image array holds uint8, or finite numbers in [0, 1]")
        image = (image * 255.0).round().astype(np.uint8)
    return plain(Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image))


def _are_sides(size: Any) -> bool:
    return isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(v, int) and v > 0 for v in size)


def _check_choice(what: str, given: object, choices: Any) -> None:
    if given not in get_args(choices):
        raise InputError(unknown(what, given, get_args(choices)))


def _look_like_probabilities(scores: Tensor) -> bool:
    return bool((scores >= 0).all() and ((scores.sum(1) - 1).abs() < 1e-4).all())


_SETTINGS = tuple(inspect.signature(Model).parameters)[1:]


def fingerprint(given: nn.Module | Tensor) -> str:
    """A hash of a module's kind and of all that it has learnt; or of a tensor."""
    digest = hashlib.sha256(type(given).__name__.encode())
    for name, tensor in ({"": given} if isinstance(given, Tensor) else given.state_dict()).items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + content.tobytes())
    return digest.hexdigest()[:32]
