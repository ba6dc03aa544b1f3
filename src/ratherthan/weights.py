"""State dicts and their metadata: read without running anybody's code, checked, put into a network."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ratherthan.errors import ModelError, first_line, let_stop


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        path: A `.safetensors` file; or a `.pt`, `.pth`, `.ckpt` or `.pth.tar` file that holds tensors by name, or a
            training checkpoint that holds one such state dict.

    Returns:
        The tensors by name.

    Raises:
        ModelError: There is no such file, it is damaged, or it holds something else.
    """
    path = Path(path)
    with _opened(path) as file:
        if file is not None:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with torch.serialization.safe_globals([Namespace]):  # timm writes the arguments of a training beside
            found = torch.load(path, map_location="cpu", weights_only=True)
    inside = {"": found} | {key: found.get(key) for key in _WRAPPED if isinstance(found, dict)}
    mappings = {key: each for key, each in inside.items() if isinstance(each, Mapping)}
    states = {key: each for key, each in mappings.items() if all(isinstance(value, Tensor) for value in each.values())}
    if len(states) != 1:
        what = f"several state dicts ({', '.join(states)})" if states else "no plain state dict (tensors by name)"
        raise ModelError(f"{path} holds {what}; save `net.state_dict()`")
    return dict(*states.values())


_WRAPPED = ("state_dict", "model_state_dict", "model", "module", "net", "state_dict_ema", "model_ema")


def read_metadata(path: str | Path) -> dict[str, str]:
    """What is written beside the tensors of a safetensors file, which are not read for it; nothing for other files.

    Raises:
        ModelError: There is no such file, or it is damaged.
    """
    with _opened(Path(path)) as file:
        return {} if file is None else file.metadata() or {}


_COUNT = "num_batches_tracked"  # files from before PyTorch 0.4.1 have none, and evaluation needs none


def fit_weights(module: nn.Module, path: str | Path, name: str | None = None, hint: str = "") -> nn.Module:
    """Put weights from a file into a network, which keeps its dtype and device.

    Args:
        module: The network; nothing is changed where the weights do not fit.
        path: See `read_weights`. What a wrapper has put before all names ("module.", "_orig_mod.") does not count.
        name: What to call the network in an error; by default its class.
        hint: What to say where a shape does not fit.

    Returns:
        The network.

    Raises:
        ModelError: The file cannot be read; tensors are missing, too many, of another shape or kind; or a number in
            them is not finite. How many batches a norm has seen may be missing.
    """
    wanted = module.state_dict()
    state = _unwrapped(read_weights(path), wanted)
    if state.keys() != wanted.keys() and hasattr(module, "from_pretrained"):
        state = _renamed(module, state)
    complaint = f"{path} does not fit {name or type(module).__name__}"
    if missing := [key for key in wanted if key not in state and not key.endswith(_COUNT)]:
        raise ModelError(f"{complaint}: missing {_listed(missing)}")
    if extra := [key for key in state if key not in wanted]:
        raise ModelError(f"{complaint}: it has no {_listed(extra)}")
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise ModelError(f"{complaint}: {key} is {tuple(tensor.shape)}, not {tuple(wanted[key].shape)}{hint}")
        plain = tensor.layout == torch.strided and (tensor.element_size() > 1 or not tensor.is_floating_point())
        if not plain or tensor.is_floating_point() != wanted[key].is_floating_point():
            kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "").replace("strided ", "")
            raise ModelError(f"{complaint}: {key} is {kind}, not {wanted[key].dtype}".replace("torch.", ""))
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{complaint}: {key} holds NaN or infinite numbers")
    module.load_state_dict(wanted | state)
    return module


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _unwrapped(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what stands before all names, where the rest is what is wanted."""
    first = next(iter(wanted), "")
    prefixes = (key.removesuffix(first) for key in state if key.endswith(f".{first}"))
    needed = {key for key in state if not key.endswith(_COUNT)}
    found = next((p for p in prefixes if {p + key for key in wanted if not key.endswith(_COUNT)} == needed), "")
    return {key.removeprefix(found): tensor for key, tensor in state.items()}


def _renamed(module: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of today: transformers renames on loading, and saves what it loads under the old names."""
    how = {"config": module.config, "state_dict": dict(state), "output_loading_info": True}
    made, told = type(module).from_pretrained(None, **how)
    return state if told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"] else made.state_dict()


def describe(path: Path) -> str:
    """What a file is, if it is a network and no weights, and what to do with it."""
    inside = list[str]()
    with suppress(zipfile.BadZipFile, NotImplementedError), zipfile.ZipFile(path) as archive:
        inside = archive.namelist()
    if path.suffix == ".onnx":
        return "is an ONNX network: only PyTorch's can be explained"
    if any("/code/" in name for name in inside):
        return "is a TorchScript network: in Python, Model(torch.jit.load(FILE)), for methods that explain the image"
    if any("exported_program" in name or "/models/" in name for name in inside):
        return "is an exported program: give it as the model, under a name that ends in .pt2"
    return ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, or None for others; whatever goes wrong is one ModelError, without PyTorch's advice."""
    if not path.is_file():
        raise ModelError(f"no weights at {path}: there is no such file")
    try:
        with safe_open(path, "pt") if path.suffix == ".safetensors" else nullcontext() as file:
            yield file
    except Exception as error:
        let_stop(error)
        why = first_line(error) if isinstance(error, (SafetensorError, OSError)) else "it is no file of tensors"
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            why = "it holds other objects, e.g. a whole pickled network; save `net.state_dict()`"
        raise ModelError(f"cannot read weights from {path}: {describe(path) or why}") from error
