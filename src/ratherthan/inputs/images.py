"""Images: files, PIL images and arrays become (C, H, W) in [0, 1]; normalisation belongs to the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ratherthan.data.images import fit_image, fit_tensor, open_image, plain, to_tensor
from ratherthan.errors import InputError
from ratherthan.inputs.method import Inputs
from ratherthan.settings import AtLeastOne, Interval

_OUTSIDE = 1e-4  # by which values may leave [0, 1]


@dataclass(frozen=True)
class Images(Inputs):
    """Images (N, C, H, W) in image space: float32 in [0, 1], unnormalised.

    Attributes:
        channels: 1 or 3, as a rule; what the network's first convolution takes.
        mean: Per-channel mean that the network expects to be subtracted.
        std: Per-channel standard deviation that it expects them to be divided by.
        size: Height and width that files, PIL images and arrays are brought to; None keeps theirs.
        fit: How: "resize" ignores the aspect ratio, "crop" keeps it and takes the centre.
        crop_fraction: Share of each side that is kept; what is around it is cut off.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        planes: Whether the network needs rows and columns. If not (it has no convolution), tensors (N, ...) of any
            shape are taken.
    """

    name: ClassVar[str] = "images"
    channels: AtLeastOne = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[AtLeastOne, AtLeastOne] | None = None
    fit: Literal["resize", "crop"] = "resize"
    crop_fraction: Annotated[float, Interval(0, 1, above=True)] = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    planes: bool = True

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: If one does not fit.
        """
        for key in ("mean", "std", "size"):  # a number, a list or an array becomes a tuple
            if (value := getattr(self, key)) is not None:
                row = tuple(np.ravel(value).tolist())
                object.__setattr__(self, key, 2 * row if key == "size" and len(row) == 1 else row)
        super().__post_init__()
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise InputError(f"{key} has {len(values)} values for images of {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std must be positive, not {self.std}")

    @staticmethod
    def of(module: nn.Module, **settings: Any) -> Images:
        """The images that a network takes, as far as its convolutions tell, and settings of one's own.

        Args:
            module: The network.
            **settings: Settings of `Images`.
        """
        convolutions = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
        found = {"channels": convolutions[0].in_channels if convolutions else 3, "planes": bool(convolutions)}
        return Images(**found | {key: value for key, value in settings.items() if value is not None})

    def prepare(self, raw: Any) -> Tensor:
        """One image, (C, H, W).

        Args:
            raw: A path, a PIL image, an array (H, W) or (H, W, channels) of uint8 or of numbers in [0, 1], or a tensor
                (C, H, W). All are brought to the model's size.

        Raises:
            InputError: If it is none of these.
        """
        if isinstance(raw, Tensor):
            grown = raw.expand(self.channels, -1, -1) if len(raw) == 1 else raw
            if self.size is None:
                return grown
            return fit_tensor(grown, self.size, self.fit, self.crop_fraction, self.interpolation)
        picture = open_image(raw) if isinstance(raw, (str, Path)) else _picture(raw)
        if self.size is None:
            return to_tensor(picture, self.channels)
        return fit_image(picture, self.size, self.fit, self.crop_fraction, self.channels, self.interpolation)

    def check(self, batch: Tensor) -> Tensor:
        """A tensor (N, C, H, W) or (C, H, W) as a batch; it keeps its size.

        Raises:
            InputError: If its shape or its values are none of images in [0, 1].
        """
        if batch.is_complex():
            raise InputError("the images hold complex numbers; image space is [0, 1]")
        images = batch.detach().unsqueeze(0) if batch.ndim == 3 else batch.detach()
        if images.ndim < (4 if self.planes else 2) or len(images) == 0:
            raise InputError(f"images of shape {tuple(images.shape)}: (N, C, H, W) with N >= 1 is needed")
        if self.planes and images.shape[1] != self.channels:
            grey = "; for grey images, images.expand(-1, 3, -1, -1)" * ((images.shape[1], self.channels) == (1, 3))
            raise InputError(f"images of {images.shape[1]} channels; the model takes {self.channels}{grey}")
        if not images.isfinite().all():
            raise InputError("the images hold NaN or infinite values; image space is [0, 1]")
        low, high = float(images.min()), float(images.max())
        if low >= -_OUTSIDE and high <= 1 + _OUTSIDE:
            return images
        if not images.is_floating_point():
            raise InputError(f"images hold whole numbers from {low:.0f} to {high:.0f}: hand in images / 255, in [0, 1]")
        if self.mean or self.std:
            raise InputError(f"images range over [{low:.3g}, {high:.3g}]: hand them in [0, 1], it normalises by itself")
        return images

    def normalise(self, batch: Tensor) -> Tensor:
        """(images - mean) / std, per channel."""
        if self.mean is not None:
            batch = batch - batch.new_tensor(self.mean).view(-1, 1, 1)
        return batch if self.std is None else batch / batch.new_tensor(self.std).view(-1, 1, 1)


def _picture(image: Any) -> Image.Image:
    """A PIL image or an array as a PIL image of mode L or RGB."""
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
