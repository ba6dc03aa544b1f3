"""What a page holds, read as its script reads it, by code of its own."""

from __future__ import annotations

import base64
import json
import re
import struct
from math import prod
from typing import Any

import numpy as np


def cases_of(page: str) -> list[dict[str, Any]]:
    """The JSON beside each article."""
    return [
        json.loads(told)
        for told in re.findall(r'<script type="application/json" data-case="[^"]*">(.*?)</script>', page)
    ]


def numbers(group: dict[str, Any]) -> np.ndarray:
    """The maps of a contrast in the units of what they stand for, one for each foil or way."""
    data, size = base64.b64decode(group["values"]), prod(group["shape"])
    whole = struct.unpack(f"<{len(data)}b" if group["levels"] == 127 else f"<{len(data) // 2}h", data)
    rows = [np.array(whole[i : i + size]).reshape(group["shape"]) for i in range(0, len(whole), size)]
    return np.stack([row * limit / group["levels"] for row, limit in zip(rows, group["limits"], strict=True)])


def maps_of(case: dict[str, Any]) -> dict[tuple[str, str], np.ndarray]:
    """By contrast and foil."""
    return {
        (group["contrast"], foil): values
        for group in case["why"]["groups"]
        for foil, values in zip(group["foils"], numbers(group), strict=True)
    }


def order_of(enough: dict[str, Any]) -> np.ndarray:
    """The number of each feature, from 1, the most important first; 0 where nothing is kept."""
    data = base64.b64decode(enough["order"])
    return np.array(struct.unpack(f"<{len(data) // 2}H", data)).reshape(enough["shape"])
