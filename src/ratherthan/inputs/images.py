"""Images: files, PIL images and arrays become (C, H, W) in [0, 1]; normalisation belongs to the model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ratherthan.data.images import checked, fit_image, fit_tensor, open_image, plain, to_tensor
from ratherthan.errors import InputError, see
from ratherthan.inputs.method import Inputs, row_of_numbers, scaled, told_scale
from ratherthan.settings import AtLeastOne, Interval

_OUTSIDE = 1e-4  # by which values may leave [0, 1]
_CROP = {"size": (224, 224), "fit": "crop"}
PREPROCESSING: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_fraction": 0.875} | _CROP,
    "clip": {
        "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711),
        "interpolation": "bicubic",
    } | _CROP,
    "half": {"mean": (0.5,), "std": (0.5,)},
    "none": {"mean": None, "std": None},
}  # fmt: skip
"""What networks are commonly fed, by name: settings of `Images`."""


@dataclass(frozen=True)
class Images(Inputs):
    """Images (N, C, H, W) in image space: float32 in [0, 1], unnormalised.

    Attributes:
        channels: 1 or 3, as a rule.
        mean: Per-channel mean that the network expects to be subtracted.
        std: Per-channel standard deviation that it expects them to be divided by.
        size: Height and width that files, PIL images and arrays are brought to; None keeps theirs.
        fit: How: "resize" ignores the aspect ratio, "crop" keeps it and takes the centre.
        crop_fraction: Share of each side that is kept; what is around it is cut off.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        planes: Whether the network needs rows and columns. If not (it has no convolution), tensors (N, ...) of any
            shape are taken.
        preprocessing: A name of `PREPROCESSING` for the settings that are not given: "imagenet" and "clip" are 224
            pixels from the middle, mean and std; "half" is mean and std 0.5; "none": [0, 1] is what the network wants.
        certain: Whether `channels` is known. If it is only read off the first convolution that a module lists, tensors
            of another number are left for the network to judge.
        show: Of more channels than can be drawn, the one or three that are, as in (3, 2, 1); None: their mean.
    """

    name: ClassVar[str] = "images"
    remedy: ClassVar[str] = "give the model a size, e.g. size=224"
    channels: AtLeastOne = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[AtLeastOne, AtLeastOne] | None = None
    fit: Literal["resize", "crop"] = "resize"
    crop_fraction: Annotated[float, Interval(0, 1, above=True)] = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    planes: bool = True
    preprocessing: Literal["imagenet", "clip", "half", "none"] | None = None
    certain: bool = True
    show: tuple[Annotated[int, Interval(0)], ...] | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: If one does not fit.
        """
        for key, value in PREPROCESSING.get(str(self.preprocessing), {}).items():
            if getattr(self, key) == getattr(Images, key):
                object.__setattr__(self, key, value)
        for key in ("mean", "std", "size"):  # a number, a list or an array becomes a tuple
            if (value := getattr(self, key)) is not None:
                row = row_of_numbers(f"{key} of images", value)
                object.__setattr__(self, key, 2 * row if key == "size" and len(row) == 1 else row)
        super().__post_init__()
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                more = "; channels= says how many the network takes" * (not self.certain)
                raise InputError(f"{key} has {len(values)} values for images of {self.channels} channels{more}")
        if self.show is not None and (len(self.show) not in (1, 3) or max(self.show) >= self.channels):
            raise InputError(
                f"show={self.show} is to name one or three of {self.channels} channels; channels= adds more"
            )
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std must be positive, not {self.std}")

    @staticmethod
    def of(module: nn.Module, **settings: Any) -> Images:
        """The images that a network takes, as far as its convolutions tell, and settings of one's own.

        Args:
            module: The network.
            **settings: Settings of `Images`.
        """
        given = {key: value for key, value in settings.items() if value is not None}
        first = next((each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)), None)
        stated = {np.size(given[key]) for key in ("mean", "std") if key in given}
        channels = first if first in {1, 3, *stated} else 3  # others, as of space-to-depth stems, are no images'
        found = {"channels": channels, "planes": first is not None, "certain": "channels" in given}
        return Images(**found | given)

    def describe(self) -> str:
        """What files become before the network sees them, in words."""
        size = "" if self.size is None else f"{self.size[0]} x {self.size[1]} ({self.fit}), "
        return size + (told_scale(self.mean, self.std) or "as it is, in [0, 1]")

    def doubt(self, batch: Tensor) -> str:
        """That the number of channels may be why a network fails on a batch, where it is not known."""
        if self.certain or batch.ndim != 4 or batch.shape[1] == self.channels:
            return ""
        return f" (channels= says how many it takes{self._widened(batch)})"

    def _widened(self, batch: Tensor) -> str:
        """What to do about grey images for a network of colours."""
        return "; for grey images, images.expand(-1, 3, -1, -1)" * ((batch.shape[1], self.channels) == (1, 3))

    def prepare(self, raw: Any) -> Tensor:
        """One image, (C, H, W).

        Args:
            raw: A path, the bytes of a file, a PIL image, an array (H, W) or (H, W, channels) of uint8, of uint16 or of
                numbers in [0, 1], or a tensor (C, H, W). All are brought to the model's size. Bytes are resized in
                8 bits, all else as floats.

        Raises:
            InputError: If it is none of these, or its numbers have no known range.
        """
        if isinstance(raw, Tensor):
            grown = raw.expand(self.channels, -1, -1) if len(raw) == 1 else raw
            if self.size is None:
                return grown
            return fit_tensor(grown, self.size, self.fit, self.crop_fraction, self.interpolation)
        if self.mean is None and self.std is None and self.preprocessing is None and not vars(self).get("_told"):
            object.__setattr__(self, "_told", True)
            what = "no mean and std are known of this network, so it is fed [0, 1] as it is"
            remedy = f"say preprocessing= (--preprocessing) {', '.join(PREPROCESSING)}, or mean= and std="
            warnings.warn(f"{what}: {remedy}" + see("no-mean-and-std-are-known"), stacklevel=2)
        pictures = [open_image(raw)] if isinstance(raw, (str, Path, bytes)) else _pictures(raw)
        parts = [self._fitted(each, self.channels if len(pictures) == 1 else 1) for each in pictures]
        if len(parts) > 1 and self.channels == 1:  # grey as Pillow makes it
            return (torch.cat(parts) * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
        return torch.cat(parts)

    def _fitted(self, picture: Image.Image, channels: int) -> Tensor:
        if self.size is None:
            return to_tensor(picture, channels)
        return fit_image(picture, self.size, self.fit, self.crop_fraction, channels, self.interpolation)

    def check(self, batch: Tensor) -> Tensor:
        """A tensor (N, C, H, W) or (C, H, W) as a batch; it keeps its size.

        A network without rows and columns may also have the rows of a table, (N, F).

        Raises:
            InputError: If its shape or its values are none of images in [0, 1].
        """
        if batch.is_meta or batch.is_quantized or batch.layout != torch.strided or batch.is_complex():
            raise InputError(f"images are dense real numbers in [0, 1], not {batch.dtype} {batch.device.type}")
        surely = self.certain or max(len(self.mean or ()), len(self.std or ())) > 1
        single = batch.ndim == 3 and (self.planes or (surely and len(batch) == self.channels))
        images = batch.detach().unsqueeze(0) if single else batch.detach()
        if images.ndim not in ((4,) if self.planes else (2, 4)) or images.numel() == 0:
            table = "" if self.planes else ", or rows of a table (N, F)"
            more = "; one image is images[None]" * (images.ndim == 3)
            kind = {5: "Volumes", 3: "" if self.planes else "Signals"}.get(images.ndim)
            more += f"; of {kind.lower()} say Model(net, inputs={kind}())" if kind else ""
            more += ", of a volume (C, D, H, W) inputs=Volumes()" * (kind == "Signals")
            raise InputError(f"images of shape {tuple(batch.shape)}: (N, C, H, W) with N >= 1 is needed{table}{more}")
        if self.planes and surely and images.shape[1] != self.channels:
            what = f"images of {images.shape[1]} channels; the model takes {self.channels}"
            raise InputError(what + self._widened(images))
        if not images.isfinite().all():
            raise InputError("the images hold NaN or infinite values; image space is [0, 1]")
        low, high = float(images.min()), float(images.max())
        if low >= -_OUTSIDE and high <= 1 + _OUTSIDE:
            return images if images.is_floating_point() else images.float()
        if not images.is_floating_point():
            raise InputError(f"images hold whole numbers from {low:.0f} to {high:.0f}: hand in images / 255, in [0, 1]")
        if self.mean or self.std:
            raise InputError(f"images range over [{low:.3g}, {high:.3g}]: hand them in [0, 1], it normalises by itself")
        return images

    def normalise(self, batch: Tensor) -> Tensor:
        """(images - mean) / std, per channel."""
        return scaled(batch, self.mean, self.std, 2 if batch.ndim > 2 else 0)


def _pictures(image: Any) -> list[Image.Image]:
    """A PIL image or an array as one PIL image of mode L, RGB or F; colours of more than 8 bits as one F each."""
    if isinstance(image, Image.Image):
        return [plain(image)]
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is a path, bytes, a PIL image, an array or a tensor, not {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or not image.size:
        raise InputError(f"an image array has shape (H, W) or (H, W, channels), not {image.shape}")
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if image.dtype == np.uint8:
        return [plain(Image.fromarray(image))]
    if image.dtype.kind not in "buif":
        raise InputError(f"an image array holds uint8, uint16, or finite numbers in [0, 1], not {image.dtype}")
    values = checked(image / 65535 if image.dtype == np.uint16 else image)
    if values.ndim == 2:
        return [Image.fromarray(values)]
    if values.shape[2] == 4:  # over white, as files are
        values = 1 - values[..., 3:] * (1 - values[..., :3])
    return [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(values, 2, 0)]
