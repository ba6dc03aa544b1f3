"""State dicts and their metadata: read without running anybody's code, checked, put into a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ratherthan.errors import ModelError, first_line


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        path: A `.safetensors` file, or a `.pt` or `.pth` file that holds nothing but tensors.

    Returns:
        The tensors by name.

    Raises:
        ModelError: There is no such file, it is damaged, or it holds something else.
    """
    path = Path(path)
    with _readable(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no plain state dict (tensors by name); save `net.state_dict()`")
    return state


def read_metadata(path: str | Path) -> dict[str, str]:
    """What is written beside the tensors of a safetensors file, which are not read for it; nothing for other files.

    Raises:
        ModelError: There is no such file, or it is damaged.
    """
    path = Path(path)
    with _readable(path):
        if path.suffix != ".safetensors":
            return {}
        with safe_open(path, "pt") as file:
            return file.metadata() or {}


def fit_weights(module: nn.Module, path: str | Path, name: str | None = None) -> nn.Module:
    """Put weights from a file into a network, which keeps its dtype and device.

    Args:
        module: The network; nothing is changed where the weights do not fit.
        path: See `read_weights`.
        name: What to call the network in an error; by default its class.

    Returns:
        The network.

    Raises:
        ModelError: The file cannot be read; tensors are missing, too many or of another shape; or a number in them is
            not finite.
    """
    wanted, state = module.state_dict(), read_weights(path)
    complaint = f"{path} does not fit {name or type(module).__name__}"
    if missing := [key for key in wanted if key not in state]:
        raise ModelError(f"{complaint}: missing {_listed(missing)}")
    if extra := [key for key in state if key not in wanted]:
        raise ModelError(f"{complaint}: it has no {_listed(extra)}")
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise ModelError(f"{complaint}: {key} is {tuple(tensor.shape)}, not {tuple(wanted[key].shape)}")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{complaint}: {key} holds NaN or infinite numbers")
    module.load_state_dict(state)
    return module


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read is one ModelError."""
    if not path.is_file():
        raise ModelError(f"no weights at {path}: there is no such file")
    try:
        yield
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ModelError(f"cannot read weights from {path}: {first_line(error)}") from error
