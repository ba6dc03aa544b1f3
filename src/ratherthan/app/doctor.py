"""What `ratherthan doctor` looks at: versions, devices, extras, weights, data. Nothing is downloaded or changed."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

import torch

from ratherthan import __version__, data, zoo

_CORE = ("torch", "numpy", "pillow", "captum", "scikit-image", "matplotlib", "pandas", "pyarrow", "safetensors")


def look() -> dict[str, Any]:
    """Everything there is to tell, by topic."""
    return {
        "versions": {
            "ratherthan": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _CORE},
        },
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "extras": _extras(),
        "zoo": {name: _weights(name) for name in zoo.names()},
        "data": _data(),
    }


def as_text(found: dict[str, Any]) -> str:
    """What `look` found, for people."""
    devices = ", ".join(f"{name} ({what})" for name, what in found["devices"].items())
    parts = {
        "versions": {name: it or "missing" for name, it in found["versions"].items()},
        "computes on": {"devices": devices, "threads": found["threads"]},
        "extras": {
            name: ", ".join(f"{package} {it}" for package, it in packages.items())
            if all(packages.values())
            else f"not here; pip install 'ratherthan[{name}]'"
            for name, packages in found["extras"].items()
        },
        "zoo": {f"zoo:{name}": it for name, it in found["zoo"].items()},
        "data": found["data"],
    }
    lines = []
    for topic, rows in parts.items():
        width = max(map(len, rows))
        lines += [topic, *(f"  {name:{width}}  {it}" for name, it in rows.items())]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras() -> dict[str, dict[str, str | None]]:
    """The optional packages by extra, as the package's own metadata lists them."""
    found: dict[str, dict[str, str | None]] = {}
    for line in metadata("ratherthan").get_all("Requires-Dist") or []:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] not in ("dev", "docs"):
            found.setdefault(match[2], {})[match[1]] = _version(match[1])
    return found


def _devices() -> dict[str, str]:
    found = {"cpu": f"{os.cpu_count()} cores"}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = "Apple"
    return found


def _weights(name: str) -> str:
    entry = zoo.get(name)
    if entry.weights is not None and entry.weights.is_file():
        return f"ready ({entry.weights.stat().st_size / 2**20:.1f} MB in the package)"
    if entry.recipe is not None:
        return f"no weights in the package; ratherthan train zoo:{name} --data DIR, then --weights FILE"
    return "no weights in the package; give --weights FILE"


def _data() -> dict[str, str]:
    root = os.environ.get("RATHERTHAN_DATA")
    if not root:
        return {"RATHERTHAN_DATA": "not set: the folder that holds mnist/, flowers102/, ...; or give --data"}
    here = [name for name in data.names() if (Path(root) / name).is_dir()]
    state = (
        f"{root} ({', '.join(here) or 'no known data set in it'})" if Path(root).is_dir() else f"{root} is no folder"
    )
    return {"RATHERTHAN_DATA": state}
