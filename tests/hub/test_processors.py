"""Image processors of transformers that are prepared for, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from ratherthan.errors import ModelError
from ratherthan.inputs import Images
from ratherthan.loading import _check_prepares_alike, _hf_settings

transformers = pytest.importorskip("transformers")
SMALL = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "crop_pct": 0.9}


def checked(kind: str, **settings: Any) -> None:
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    _check_prepares_alike(Images(3, **_hf_settings(processor.to_dict())), processor, kind)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {}), ("ViT", {"resample": 3}), ("DeiT", {}), ("Beit", {}), ("CLIP", {}), ("Bit", {}), ("Siglip", {}),
        ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),  # as ResNet's are
        ("ConvNext", {"size": {"shortest_edge": 384}}), ("PoolFormer", {}), ("MobileNetV2", {}), ("Segformer", {}),
    ],
)  # fmt: skip
def test_ordinary_processors_pass(kind: str, settings: dict[str, Any]) -> None:
    checked(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "settings"), [("PoolFormer", SMALL), ("Levit", {}), ("MobileViT", {}), ("EfficientNet", {})]
)
def test_processors_that_move_the_picture_are_refused(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="prepares images in a way that is not known"):
        checked(kind, **settings)
