"""`load` with torchvision and timm for real: weights from files, and what happens without a network connection."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import ratherthan as rt
from ratherthan import InputError, ModelError


def picture(width: int = 301, height: int = 220) -> Image.Image:
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = np.stack([np.sin(9 * across), np.cos(7 * down), across * down], -1)
    return Image.fromarray(np.uint8(127.5 + 120 * waves))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "efficientnet_b0"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    module = torchvision.models.get_model(name, weights=None).eval()
    torch.save(module.state_dict(), tmp_path / "net.pth")
    model = rt.load(f"torchvision:{name}", weights=tmp_path / "net.pth")
    published = torchvision.models.get_model_weights(name).DEFAULT
    assert model.class_names == tuple(published.meta["categories"])
    assert model.name == f"torchvision:{name}"
    assert not any(each.training for each in model.module.modules())
    expected = published.transforms()(picture())[None]
    normalised = model.normalise(model.preprocess(picture()))
    assert normalised.shape == expected.shape
    assert (normalised - expected).abs().max() < 1.01 / 255 / min(model.inputs.std)  # one step of 8 bits
    assert torch.allclose(model.logits(model.preprocess(picture())), module(normalised))
    why = rt.explain(model, picture(), fact="tench", foil=["goldfish", "great white shark"])
    assert why.fact_name(0) == "tench"
    assert why.attribution.shape[1] == 2


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mixer_s32_224", "resnetv2_50x1_bit"])
def test_timm(name: str, tmp_path: Path) -> None:
    module = timm.create_model(name).eval()
    save_file(module.state_dict(), tmp_path / "net.safetensors")
    model = rt.load(f"timm:{name}", weights=tmp_path / "net.safetensors")
    config = timm.data.resolve_model_data_config(module)
    expected = timm.data.create_transform(**config, is_training=False)(picture())[None]
    normalised = model.normalise(model.preprocess(picture()))
    assert normalised.shape == expected.shape
    assert (normalised - expected).abs().max() < 1.01 / 255 / min(config["std"])
    assert torch.allclose(model.logits(model.preprocess(picture())), module(normalised))
    if model.class_names:
        assert len(model.class_names) == module.num_classes


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:resnet10t"])
def test_fine_tuned_weights_are_loaded_by_their_class_names(spec: str, tmp_path: Path) -> None:
    kind, name = spec.split(":")
    build = timm.create_model if kind == "timm" else torchvision.models.get_model
    module = build(name, num_classes=3)
    save_file(module.state_dict(), tmp_path / "net.safetensors")
    model = rt.load(spec, weights=tmp_path / "net.safetensors", class_names=["ant", "bee", "cat"], size=96)
    assert model.class_names == ("ant", "bee", "cat")
    assert model.preprocess(picture()).shape == (1, 3, 96, 96)
    assert rt.explain(model, picture(), fact="bee", foil="cat").foil.tolist() == [2]
    with pytest.raises(ModelError, match="does not fit"):
        rt.load(spec, weights=tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("spec", "suggested"), [("torchvision:resnet81", "'resnet18'"), ("timm:resnet_50", "'resnet50'")]
)
def test_unknown_names_are_answered_with_close_ones(spec: str, suggested: str) -> None:
    with pytest.raises(InputError, match=f"did you mean .*{suggested}"):
        rt.load(spec)


@pytest.mark.parametrize("spec", ["torchvision:fasterrcnn_resnet50_fpn", "torchvision:deeplabv3_resnet50"])
def test_networks_that_classify_no_images_are_unknown(spec: str) -> None:
    with pytest.raises(InputError, match="unknown torchvision model"):
        rt.load(spec)


def test_weights_that_cannot_be_fetched_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError, match=r"^torchvision:squeezenet1_1: .*cannot be fetched.*weights=FILE$"):
        rt.load("torchvision:squeezenet1_1")

    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"^timm:resnet10t: .*cannot be fetched.*weights=FILE$"):
        rt.load("timm:resnet10t")


def test_weights_of_other_classes_ask_for_their_names(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match="if its classes are others, give class_names="):
        rt.load("timm:resnet10t", weights=tmp_path / "net.safetensors")


def test_a_folder_that_timm_saved(tmp_path: Path) -> None:
    module = timm.create_model("resnet10t", num_classes=3).eval()
    timm.models.save_for_hf(module, tmp_path, model_config={"label_names": ["ant", "bee", "cat"]})
    x = torch.rand(1, 3, 64, 64)
    for spec in (str(tmp_path), f"timm:local-dir:{tmp_path}"):
        model = rt.load(spec)
        assert torch.allclose(model.logits(x), module(model.normalise(x)), atol=1e-5)
        assert model.class_names == ("ant", "bee", "cat")
