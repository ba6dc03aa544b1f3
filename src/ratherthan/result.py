"""What all results have in common: they show themselves, and are saved and read back whole."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError, first_line

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.figure import Figure

_FORMAT = 2
_TENSOR = "$tensor"  # stands in the words for a tensor that is stored beside them


class Result(ABC):
    """What a verb returns. A subclass is a frozen dataclass of tensors and plain values, with the three below.

    Attributes:
        kind: What it is called in files and messages, e.g. "explanation".
    """

    kind: ClassVar[str]

    @abstractmethod
    def plot(self) -> Figure:
        """A figure of everything."""

    @abstractmethod
    def write_page(self, path: Path) -> Path:
        """Write a page that needs nothing else; returns the path."""

    @abstractmethod
    def __str__(self) -> str:
        """A line for every question."""

    def save(self, path: str | Path) -> Path:
        """Write it to a file, whole or not at all.

        Args:
            path: ".png": the figure. ".html": a page that needs nothing else. ".safetensors": everything, for `load`.

        Returns:
            The path.

        Raises:
            InputError: If the file has another ending.
        """
        from ratherthan.files import write_atomically
        from ratherthan.render import figure_png

        path = Path(path)
        if path.suffix == ".html":
            return self.write_page(path)
        if path.suffix == ".png":
            return write_atomically(path, [figure_png(self.plot())])
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            tensors: dict[str, Tensor] = {}
            fields = dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
            words = {f.name: _split(getattr(self, f.name), f.name, tensors) for f in fields}
            header = {"kind": self.kind, "format": _FORMAT, "fields": words}
            return write_atomically(path, [save(tensors, {"ratherthan": json.dumps(header)})])
        raise InputError(f"cannot save {str(path)!r}: end it in .png, .html or .safetensors")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote to a .safetensors file.

        Raises:
            InputError: If it is no such file.
        """
        from safetensors import safe_open

        try:
            with safe_open(str(path), "pt") as file:
                header = json.loads((file.metadata() or {}).get("ratherthan", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:  # missing, truncated or foreign: safetensors has its own error for each
            raise InputError(f"cannot load {str(path)!r}: {first_line(error)}") from error
        if (header.get("kind"), header.get("format")) != (cls.kind, _FORMAT):
            raise InputError(f"{str(path)!r} holds no {cls.kind} saved by this version of ratherthan")
        types = {f.name: str(f.type) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        fields = {key: _join(value, tensors) for key, value in header["fields"].items()}
        return cls(**{k: tuple(v) if v is not None and types[k].startswith("tuple") else v for k, v in fields.items()})

    def _repr_html_(self) -> str:
        from base64 import b64encode
        from html import escape

        from ratherthan.render import figure_png

        picture = b64encode(figure_png(self.plot())).decode()
        lines = "<br>".join(escape(line) for line in str(self).splitlines())
        return f'<img src="data:image/png;base64,{picture}" style="max-width:100%"><p>{lines}</p>'


def _split(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value in words; its tensors, however deep, are put aside under the place they come from."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: place}
    if isinstance(value, dict):
        return {str(key): _split(each, f"{place}.{key}", tensors) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(each, f"{place}.{i}", tensors) for i, each in enumerate(value)]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value[_TENSOR]] if _TENSOR in value else {k: _join(each, tensors) for k, each in value.items()}
    return [_join(each, tensors) for each in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------- what making and reading share
def check_length(spec: Any, samples: int, what: str) -> None:
    """Refuse a fact or foil given per sample for another number of samples.

    Raises:
        InputError: If so.
    """
    if _per_sample(spec) and len(spec) != samples:
        raise InputError(f"{len(spec)} {what}s for {samples} samples; give one per sample")


def take_rows(spec: Any, rows: slice, samples: int) -> Any:
    """The part of a fact or foil that belongs to a batch, if it is given per sample; else the whole."""
    return spec[rows] if _per_sample(spec) and len(spec) == samples else spec


def _per_sample(spec: Any) -> bool:
    if isinstance(spec, (list, tuple)):
        return any(isinstance(each, (list, tuple)) for each in spec)
    return isinstance(spec, (Tensor, np.ndarray)) and np.ndim(spec) > 0


def row_names(images: Any, samples: int) -> tuple[str, ...]:
    """Names for the samples: paths where they were given, else numbers."""
    given = images if isinstance(images, (list, tuple)) else [images]
    named = [str(each) if isinstance(each, (str, Path)) else f"image {i}" for i, each in enumerate(given)]
    return tuple(named) if len(named) == samples else tuple(f"image {i}" for i in range(samples))


def versions() -> dict[str, str]:
    """Versions of what computes."""
    from ratherthan import __version__

    return {"ratherthan": __version__, "torch": torch.__version__}


def class_label(names: Sequence[str] | None, index: int) -> str:
    """What to call a class."""
    return names[index] if names else f"class {index}"


def percent(p: float) -> str:
    """A probability in a line of text; neither a small one nor doubt is rounded away."""
    return f"{p:.1%}" if 0.0005 < p < 0.9995 else "< 0.1%" if p < 0.5 else "> 99.9%"


def picture(image: Tensor) -> np.ndarray[Any, Any]:
    """An image (C, H, W) as the rendering takes it: floats (H, W, C) in [0, 1]."""
    array: np.ndarray[Any, Any] = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return array
