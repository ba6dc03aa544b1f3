"""Single images: read safely, bring to size, turn into image space."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from ratherthan.errors import InputError

Resize = Literal["squash", "crop"]


def read_image(source: str | Path | IO[bytes], name: str | None = None) -> Image.Image:
    """Decode an image file.

    Args:
        source: A path or an open binary file.
        name: What to call it in errors; the path where left out.

    Returns:
        The decoded image, in the file's own mode, turned upright as its EXIF says.

    Raises:
        InputError: If there is no such file, or it is empty, truncated, no image, or so large that decoding it is unsafe.
    """
    from PIL import ImageOps

    shown = name or str(source)
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise InputError(f"{shown}: there is no such file")
        if Path(source).stat().st_size == 0:
            raise InputError(f"{shown}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as picture:
                picture.load()
                return ImageOps.exif_transpose(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise InputError(f"{shown}: too large to decode safely (more than {limit:,} pixels); scale it down") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{shown}: not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{shown}: damaged or truncated image ({str(error).splitlines()[0]})") from error


def to_tensor(
    image: Any,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    resize: Resize = "squash",
    crop_share: float = 0.875,
) -> Tensor:
    """A PIL image or array in image space.

    Args:
        image: PIL image, or array (H, W) or (H, W, C), uint8 or floats in [0, 1].
        channels: 1 (grey) or 3 (RGB).
        size: Height and width to bring it to; None keeps its own.
        resize: "squash" ignores the aspect ratio; "crop" resizes the shorter side, then takes the centre.
        crop_share: Share of the shorter side that the centre crop keeps.

    Returns:
        float32 (channels, H, W) in [0, 1].

    Raises:
        InputError: If it is neither, or an array of another shape or range.
    """
    picture = image if isinstance(image, Image.Image) else _from_array(image)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None and picture.size != (size[1], size[0]):
        picture = _crop(picture, size, crop_share) if resize == "crop" else picture.resize((size[1], size[0]), _FILTER)
    values = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(values.reshape(*values.shape[:2], -1)).permute(2, 0, 1).contiguous()


_FILTER = Image.Resampling.BILINEAR
ImageFile.LOAD_TRUNCATED_IMAGES = False


def _crop(picture: Image.Image, size: tuple[int, int], crop_share: float) -> Image.Image:
    height, width = size
    scale = max(height / picture.height, width / picture.width) / crop_share
    big = picture.resize(
        (max(width, round(picture.width * scale)), max(height, round(picture.height * scale))), _FILTER
    )
    left, top = (big.width - width) // 2, (big.height - height) // 2
    return big.crop((left, top, left + width, top + height))


def _from_array(image: Any) -> Image.Image:
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is a path, a PIL image, an array or a tensor, not {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise InputError(f"an image array has shape (H, W) or (H, W, channels), not {image.shape}")
    if image.dtype != np.uint8:
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise InputError("an image array holds uint8, or finite numbers in [0, 1]")
        image = (image * 255).round().astype(np.uint8)
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
