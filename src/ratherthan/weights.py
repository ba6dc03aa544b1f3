"""Weights from files, without executing anything in them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ratherthan.errors import ModelError, first_line


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a file, without executing anything in it.

    Raises:
        ModelError: If the file is missing, damaged or no state dict.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if str(path).endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"weights: there is no file {str(path)!r}") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"weights: cannot read {str(path)!r}: {first_line(error)}") from error
    except Exception as error:  # the unpickler refuses foreign objects with errors of its own
        raise ModelError(f"weights: {str(path)!r} is no plain state dict: {first_line(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"weights: {str(path)!r} holds no state dict (names to tensors)")
    return state


def fit_weights(module: nn.Module, path: str | Path) -> nn.Module:
    """Put weights from a file into a module.

    Raises:
        ModelError: If names or shapes differ, or a value is NaN.
    """
    state = read_weights(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ModelError(
            f"weights: {str(path)!r} do not fit {type(module).__name__}: {' '.join(lines)[:300]}"
        ) from error
    broken = next((name for name, v in state.items() if v.is_floating_point() and not v.isfinite().all()), None)
    if broken:
        raise ModelError(f"weights: {str(path)!r} hold NaN or infinite values in {broken!r}")
    return module
