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


def look() -> dict[str, dict[str, Any]]:
    """Everything there is to tell, by topic."""
    versions = {"ratherthan": __version__, "python": platform.python_version()}
    return {
        "versions": versions | {name: _version(name) for name in _CORE},
        "devices": _devices(),
        "extras": _extras(),
        "zoo": {name: _weights(name) for name in zoo.names()},
        "data": _data(),
    }


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """What `look` found, for people."""
    lines = []
    for topic, rows in found.items():
        lines.append(topic)
        for name, it in rows.items():
            if isinstance(it, dict):
                here = ", ".join(map(" ".join, it.items())) if all(it.values()) else ""
                it = here or f"not here; pip install 'ratherthan[{name}]'"
            lines.append(f"  {name:{max(map(len, rows))}}  {it or 'missing'}")
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
    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    found |= {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return found | ({"mps": "Apple"} if torch.backends.mps.is_available() else {})


def _weights(name: str) -> str:
    entry = zoo.get(name)
    if entry.weights is not None and entry.weights.is_file():
        return f"ready ({entry.weights.stat().st_size / 2**20:.1f} MB in the package)"
    made = "give" if entry.recipe is None else f"ratherthan train zoo:{name} --data DIR, then"
    return f"no weights in the package; {made} --weights FILE"


def _data() -> dict[str, str]:
    root = os.environ.get("RATHERTHAN_DATA")
    if not root:
        return {"RATHERTHAN_DATA": "not set: the folder that holds mnist/, flowers102/, ...; or give --data-root"}
    here = ", ".join(name for name in data.names() if (Path(root) / name).is_dir()) or "no known data set in it"
    return {"RATHERTHAN_DATA": f"{root} ({here})" if Path(root).is_dir() else f"{root} is no folder"}
