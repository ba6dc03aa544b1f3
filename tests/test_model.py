"""The forward_pass: preprocessing, class names, what a network may return, and every way to load one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import InputError, LayerError, Model, ModelError
from ratherthan.loading import fit_weights


def small(classes: int = 3, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


class Returning(nn.Module):
    """Returns what it is told, with one parameter to have a dtype and a device."""

    def __init__(self, output: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.output, self.weight = output, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> object:
        return self.output(x)


def pixels(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------- preprocessing
def test_images_come_in_every_form(tmp_path: Path) -> None:
    model, array = Model(small()), pixels()
    expected = torch.from_numpy(array / 255).permute(2, 0, 1).float()[None]
    Image.fromarray(array).save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array, array / 255.0, expected[0]]
    for form in forms:
        assert torch.allclose(model.preprocess(form), expected)
    assert torch.equal(model.preprocess([*forms[:4], torch.cat([expected, expected])]), expected.expand(6, -1, -1, -1))
    double = Model(small().double()).preprocess(array)
    assert double.dtype == torch.float64


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 255.0), (-1.0, 1.0), (0.0, 1.01), (-0.01, 1.0)], ids=["bytes", "signed", "above", "below"]
)
def test_images_out_of_range_are_refused_where_the_model_normalises(low: float, high: float) -> None:
    images = low + (high - low) * torch.linspace(0, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)
    for settings in ({"mean": 0.5}, {"std": 0.2}, {"mean": (0.1, 0.2, 0.3), "std": (0.2, 0.2, 0.2)}):
        with pytest.raises(InputError, match=r"range over \[.*\]: hand them in \[0, 1\]"):
            Model(small(), **settings).preprocess(images)  # type: ignore[arg-type]
    assert torch.equal(Model(small()).preprocess(images), images)  # it may want them so
    with pytest.raises(InputError, match="whole numbers from 0 to 215"):
        Model(small()).preprocess((torch.arange(216) % 216).view(2, 3, 6, 6))


def test_greys_colours_and_transparency() -> None:
    grey = pixels()[..., 0]
    expected = torch.from_numpy(grey / 255).float()
    for form in (grey, grey[..., None], Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        assert torch.equal(Model(small(channels=1)).preprocess(form), expected[None, None])
        assert torch.equal(Model(small()).preprocess(form), expected.expand(1, 3, -1, -1))
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    for form in (clear, Image.fromarray(clear)):
        assert torch.equal(Model(small()).preprocess(form), torch.ones(1, 3, 2, 2))  # laid over white
    checked = np.array([[True, False], [False, True]])
    assert torch.equal(Model(small(channels=1)).preprocess(checked), torch.eye(2)[None, None])


def test_size_crop_and_normalisation_by_hand() -> None:
    array = np.repeat(np.repeat(pixels(8, 12), 4, 0), 4, 1)  # 32 x 48 of 4 x 4 blocks
    blocks = torch.from_numpy(array[::4, ::4] / 255).permute(2, 0, 1).float()
    nearest = {"interpolation": "nearest"}
    assert torch.equal(Model(small(), size=(8, 12), **nearest).preprocess(array)[0], blocks)
    assert torch.equal(Model(small(), size=8, fit="crop", **nearest).preprocess(array)[0], blocks[:, :, 2:10])
    half = Model(small(), size=4, fit="crop", crop_fraction=0.5, **nearest)
    assert torch.equal(half.preprocess(array)[0], blocks[:, 2:6, 4:8])
    squashed = Model(small(), size=(4, 6), crop_fraction=0.5, **nearest)
    assert torch.equal(squashed.preprocess(array)[0], blocks[:, 2:6, 3:9])
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    seen = Model(Returning(lambda x: x.flatten(1)[:, :5]), mean=mean, std=std).logits(blocks[None])
    assert torch.allclose(seen, (blocks[0].flatten()[:5] - 0.4)[None] / 0.1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (3, "not int"),
        (["missing.png"], "missing.png"),
        (np.zeros((2, 3, 4, 5)), "shape"),
        (np.zeros((0, 4, 3)), "shape"),
        (np.zeros((4, 4, 2)), "shape"),
        (np.full((4, 4), 7.0), r"finite numbers in \[0, 1\]"),
        (np.full((4, 4), np.nan), "finite numbers"),
        (np.full((4, 4), "a"), "finite numbers"),
        (torch.zeros(0, 3, 4, 4), "N >= 1"),
        (torch.zeros(4), r"\(N, C, H, W\)"),
        (torch.full((1, 3, 4, 4), torch.nan), "NaN"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.complex64), "complex"),
        (torch.full((1, 3, 4, 4), 200, dtype=torch.uint8), "images / 255"),
        (torch.full((1, 3, 4, 4), -1.0), "normalises by itself"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)], "size=224"),
    ],
)
def test_what_is_no_image_is_refused(images: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model(small(), mean=[0.5]).preprocess(images)


def test_files_need_one_or_three_channels() -> None:
    with pytest.raises(InputError, match="1 or 3 channels"):
        Model(small(channels=4), channels=4).preprocess(pixels())
    for settings in ({}, {"channels": 4}, {"mean": (0.1, 0.2, 0.3, 0.4)}):
        model = Model(small(channels=4), **settings)  # type: ignore[arg-type]
        assert model.preprocess(torch.rand(2, 4, 8, 8)).shape == (2, 4, 8, 8)


# --------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "logit"}, "did you mean 'logits'"),
        ({"fit": "crop it"}, "did you mean 'crop'"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"crop_fraction": 0}, "above 0 and at most 1"),
        ({"size": 0}, "a tuple of 2 values, each a whole number of at least 1"),
        ({"size": (1, 2, 3)}, "a tuple of 2 values, each a whole number of at least 1"),
        ({"size": 224.0}, "a tuple of 2 values, each a whole number of at least 1"),
        ({"class_names": "cat"}, "a list of names"),
        ({"class_names": {0: "cat"}}, "a list of names"),
        ({"mean": [0.1, 0.2]}, "2 values for images of 3 channels"),
        ({"std": [0.1, 0.0, 0.1]}, "positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model(small(), **settings)


def test_one_mean_serves_all_channels_and_names_may_be_numbers() -> None:
    model = Model(small(), [7, 8], mean=0.5)  # type: ignore[arg-type]
    assert model.inputs.mean == (0.5,)
    assert model.class_names == ("7", "8")


def test_replace_keeps_all_other_settings() -> None:
    settings = {
        "class_names": ("a", "b", "c"), "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0), "size": (5, 7), "fit": "crop",
        "crop_fraction": 0.5, "interpolation": "bicubic", "channels": 3, "layer": "0", "output": "logits", "name": "x",
    }  # fmt: skip
    model = Model(small(), **settings)

    def told(model: Model) -> dict[str, object]:
        inputs = model.inputs.settings()
        return {key: inputs[key] if key in inputs else getattr(model, key) for key in settings}

    expected = settings | {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "size": [5, 7], "output": model.output}
    assert told(model) == expected
    assert told(model.replace(layer="1")) == expected | {"layer": "1"}
    changed = model.replace(std=(2.0, 2.0, 2.0))
    assert told(changed) == expected | {"std": [2.0, 2.0, 2.0]}
    assert changed.module is model.module


def test_what_is_no_module_layer_or_device_is_refused() -> None:
    with pytest.raises(InputError, match="not str"):
        Model("resnet")  # type: ignore[arg-type]
    model = Model(small())
    assert model.submodule("0") is model.module[0] is model.submodule(model.module[0])
    for layer in ("00", "", nn.ReLU()):
        with pytest.raises(LayerError):
            model.submodule(layer)
    for device in ("cuda:77", "abacus"):
        with pytest.raises(InputError, match="cannot be used here"):
            model.to(device)
    shared = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    shared.add_module("alias", shared[0])
    assert Model(shared).submodule("alias") is shared[0]


# --------------------------------------------------------------------------------------------- what networks return
@pytest.mark.parametrize(
    ("output", "settings", "message"),
    [
        (lambda x: (x, x), {}, "returns a tuple"),
        (lambda x: {"logits": x}, {}, "returns a dict"),
        (lambda x: x, {}, r"returns shape \(2, 3, 4, 4\)"),
        (lambda x: x.flatten(1)[:1], {}, "for 2 samples"),
        (lambda x: x.flatten(1)[:, :2], {"output": "value"}, r"\(2, 1\) is needed"),
        (lambda x: x.flatten(1)[:, :4].softmax(1), {}, "returns probabilities"),
        (lambda x: x.flatten(1)[:, :4] * torch.nan, {}, "NaN or infinite scores for sample 0"),
        (lambda x: x.flatten(1)[:, :4], {"class_names": ["a", "b"]}, "2 class names for a model with 4"),
        (lambda x: x @ torch.zeros(3, 3), {}, r"fails on images of shape \(2, 3, 4, 4\)"),
        (lambda x: x.nothing, {}, "fails on images"),
    ],
)
def test_outputs_that_cannot_be_explained_are_refused(
    output: Callable[[Tensor], object], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        rt.explain(Model(Returning(output), **settings), torch.rand(2, 3, 4, 4), method="gradient")


def test_outputs_become_logits() -> None:
    x = torch.rand(2, 3, 4, 4)
    y = x.flatten(1)[:, :1]
    assert torch.equal(Model(Returning(lambda _: y)).logits(x), torch.cat([-y / 2, y / 2], 1))
    one = Model(Returning(lambda _: y), output="probabilities").logits(x)
    assert torch.allclose(one.softmax(1)[:, 1:], y, atol=1e-6)
    many = Model(Returning(lambda _: torch.tensor([[1.0, 0.0], [0.25, 0.75]])), output="probabilities").logits(x)
    assert torch.allclose(many.exp(), torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    assert many.isfinite().all()
    assert Model(Returning(lambda _: y.bfloat16())).logits(x).dtype == torch.float32
    assert torch.equal(Model(Returning(lambda _: y[:, 0]), output="value").logits(x), y)


# --------------------------------------------------------------------------------------------- class names
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.json", '["ant", "bee", "cat"]'),
        ("names.json", '[["n1", "ant"], ["n2", "bee"], ["n3", "cat"]]'),
        ("names.json", '{"2": "cat", "0": "ant", "1": "bee"}'),
        ("names.json", '{"3": ["n10", "cat"], "2": ["n9", "bee"], "1": ["n1", "ant"]}'),
        ("names.json", '\ufeff["ant", "bee", "cat"]'),
        ("names.txt", "ant\n bee \ncat\n\n \n"),
        ("names.txt", "\ufeffant\r\nbee\r\ncat"),
    ],
)
def test_class_names_from_a_file(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(text.encode())
    assert rt.read_class_names(tmp_path / file) == ["ant", "bee", "cat"]


def test_a_line_separator_inside_a_name_begins_no_other(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\u2028bee\ncat\u0085dog\n", encoding="utf-8")
    assert rt.read_class_names(tmp_path / "names.txt") == ["ant\u2028bee", "cat\u0085dog"]


def test_names_that_occur_twice_are_told_apart_by_their_index() -> None:
    """ImageNet has two cranes: a bird and a machine."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    model = Model(module, ["crane", "tench", "crane"])
    assert model.class_names == ("crane (0)", "tench", "crane (2)")
    why = rt.explain(model, torch.rand(1, 1, 2, 2), fact="crane (2)", foil="crane (0)", method="ixg")
    assert (why.fact.item(), why.foil.item()) == (2, 0)
    assert "Why crane (2), rather than crane (0)?" in str(why)
    with pytest.raises(InputError, match=r"did you mean 'crane \(2\)' or 'crane \(0\)'"):
        rt.explain(model, torch.rand(1, 1, 2, 2), fact="crane", method="ixg")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("missing.txt", None, "cannot read"),
        ("binary.txt", b"\xff\xfe\x00", "cannot read"),
        ("broken.json", b"[", "cannot read .*broken.json.*: Expecting value"),
        ("number.json", b"3", "a list of names"),
        ("empty.json", b"[]", "a list of names"),
        ("words.json", b'{"ant": "bee"}', "none has the index 1"),
        ("gap.json", b'{"0": "ant", "1": "bee", "3": "cat"}', "names 3 classes, but none has the index 2"),
        ("power.json", b'{"\\u00b2": "a"}', "none has the index 1"),
        ("digits.json", b'{"' + b"9" * 5000 + b'": "a"}', "none has the index 1"),
        ("deep.json", b"[" * 100_000, "cannot read"),
        ("half.json", b'["a", "\\ud800"]', "name 1 is half a character"),
        ("empty_name.json", b'["a", " "]', "name 1 is empty"),
        ("blank.txt", b"ant\n\ncat\n", "name 1 is empty"),
        ("utf16.txt", "ant\nbee".encode("utf-16"), "UTF-8"),
        ("/dev/zero", None, "not a regular file"),
        ("numbers.json", b"[1, 2]", "a list of names"),
    ],
)
def test_files_that_hold_no_class_names(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        rt.read_class_names(tmp_path / file)


# --------------------------------------------------------------------------------------------- loading
def test_weights_fit_or_are_refused(tmp_path: Path) -> None:
    module, other = small(), small()
    save_file(module.state_dict(), tmp_path / "net.safetensors")
    torch.save(module.state_dict(), tmp_path / "net.pt")
    for file in ("net.safetensors", "net.pt"):
        nn.init.zeros_(other[0].weight)
        fit_weights(other, tmp_path / file)
        assert torch.equal(other[0].weight, module[0].weight)
    with pytest.raises(ModelError, match="does not fit"):
        fit_weights(small(classes=4), tmp_path / "net.pt")
    torch.save(module, tmp_path / "whole.pt")  # a pickled module could run code
    with pytest.raises(ModelError, match=r"whole\.pt"):
        fit_weights(small(), tmp_path / "whole.pt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "give one of zoo:NAME, hf:NAME, .*torchvision:NAME, timm:NAME"),
        ("zoo:", "give one of"),
        ("zoo:minst", "did you mean 'mnist'"),
        ("missing.pt2", "there is no file 'missing.pt2'"),
        ("missing.py:make", "would run code"),
        ("hf:/nowhere/at/all", "hf:/nowhere/at/all: "),
    ],
)
def test_specs_that_lead_nowhere(spec: str, message: str) -> None:
    with pytest.raises((InputError, ModelError), match=message) as caught:
        rt.load(spec)
    assert "\n" not in str(caught.value)


def test_a_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> None:
        raise ImportError(name)

    load = rt.load  # which is imported when it is first asked for
    monkeypatch.setattr(importlib, "import_module", missing)
    for spec, extra in (("timm:resnet18", "hub"), ("torchvision:resnet18", "hub"), ("hf:x", "hf")):
        with pytest.raises(InputError, match=rf"pip install 'ratherthan\[{extra}\]'"):
            load(spec)


FACTORY = """
from __future__ import annotations
from dataclasses import dataclass
from neighbour import CLASSES
from torch import nn

@dataclass
class Settings:
    width: int = 4

def make():
    return nn.Sequential(nn.Conv2d(3, Settings().width, 3), nn.Flatten(), nn.LazyLinear(CLASSES)).train()

def number():
    return 3

def broken():
    raise KeyError("no such thing")
"""


def test_a_factory_runs_only_when_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(FACTORY)
    (tmp_path / "neighbour.py").write_text("CLASSES = 5")
    (tmp_path / "raises.py").write_text("raise RuntimeError('at once')")
    search_path = list(sys.path)
    with pytest.raises(InputError, match="would run code"):
        rt.load(f"{tmp_path}/made.py:make")
    model = rt.load(f"{tmp_path}/made.py:make", trust_code=True, class_names=list("abcde"), layer="0", size=9)
    assert (model.layer, model.inputs.size, model.class_names) == ("0", (9, 9), tuple("abcde"))
    assert not model.module.training
    assert model.logits(torch.rand(2, 3, 9, 9)).shape == (2, 5)
    for function, message in (("number", "returns int"), ("broken", "KeyError: 'no such thing'"), ("absent", "absent")):
        with pytest.raises(ModelError, match=message):
            rt.load(f"{tmp_path}/made.py:{function}", trust_code=True)
    with pytest.raises(InputError, match="there is no Python file"):
        rt.load(f"{tmp_path}/gone.py:make", trust_code=True)
    with pytest.raises(ModelError, match="RuntimeError: at once"):
        rt.load(f"{tmp_path}/raises.py:make", trust_code=True)
    assert sys.path == search_path


def test_a_factory_may_describe_its_model_and_is_overruled(tmp_path: Path) -> None:
    (tmp_path / "described.py").write_text(
        "import ratherthan as rt\nfrom torch import nn\n"
        "def make():\n    return rt.Model(nn.Conv2d(1, 2, 3), mean=[0.5], size=12, interpolation='bicubic')\n"
    )
    model = rt.load(f"{tmp_path}/described.py:make", trust_code=True, size=(6, 7))
    assert (model.inputs.mean, model.inputs.size, model.inputs.interpolation, model.inputs.channels) == (
        (0.5,),
        (6, 7),
        "bicubic",
        1,
    )


def test_a_damaged_program_and_weights_for_a_program_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.pt2").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelError, match="is no exported program"):
        rt.load(tmp_path / "damaged.pt2")
    with pytest.raises(InputError, match="leave weights out"):
        rt.load(tmp_path / "damaged.pt2", weights="w.pt")


# --------------------------------------------------------------------------------------------- transformers
IMAGE_PROCESSORS = {
    "resized": ("ViTImageProcessor", {"size": {"height": 32, "width": 48}, "resample": 2}),
    "resized by an old file": ("ViTImageProcessor", {"size": 40}),
    "cropped": ("BitImageProcessor", {"size": {"shortest_edge": 44}, "crop_size": {"height": 36, "width": 36}}),
    "squashed, then cropped": (
        "DeiTImageProcessor", {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
    "crop_pct": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "crop_pct, warped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "not normalised": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    "rescaled to [-1, 1]": (
        "EfficientNetImageProcessor",
        {"size": {"height": 36, "width": 36}, "rescale_factor": 1 / 127.5, "rescale_offset": True,
         "do_normalize": False, "include_top": False, "resample": 3},
    ),
}  # fmt: skip


def save_hf(folder: Path, processor: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3,
        id2label={0: "ant", 1: "bee", 2: "cat"}, label2id={"ant": 0, "bee": 1, "cat": 2},
    )  # fmt: skip
    module = transformers.ResNetForImageClassification(config)
    module.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return module.eval()


@pytest.mark.parametrize("kind", IMAGE_PROCESSORS)
@pytest.mark.parametrize("shape", [(60, 90), (101, 77), (30, 40)])
def test_transformers_prepare_images_as_their_own_processor_does(
    kind: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    name, settings = IMAGE_PROCESSORS[kind]
    module = save_hf(tmp_path, {"image_processor_type": name, **settings})
    model = rt.load(f"hf:{tmp_path}")
    assert model.class_names == ("ant", "bee", "cat")
    down, across = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j]
    picture = Image.fromarray(
        np.uint8(127.5 + 120 * np.stack([np.sin(5 * down), np.cos(4 * across), down * across], -1))
    )
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(images=picture, return_tensors="pt")["pixel_values"]
    ours = model.normalise(model.preprocess(picture))
    assert ours.shape == theirs.shape
    step = 1.01 / 255 / min(model.inputs.std)  # of 8 bits; a crop may lie a pixel further where the margin is odd
    assert (ours - theirs).abs().max() < (6 * step if "crop" in kind else step)
    assert torch.allclose(model.logits(model.preprocess(picture)), module(ours).logits)


@pytest.mark.parametrize("crop", [28, 224])
def test_an_unknown_way_to_prepare_images_is_refused(crop: int, tmp_path: Path) -> None:
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": crop, "width": crop}}
    save_hf(tmp_path, {"image_processor_type": "LevitImageProcessor", **size})
    with pytest.raises(ModelError, match=r"LevitImageProcessor.* prepares images in a way that is not known"):
        rt.load(f"hf:{tmp_path}")


def test_transformers_weights_and_labels_from_elsewhere(tmp_path: Path) -> None:
    module = save_hf(tmp_path, {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}})
    nn.init.ones_(module.classifier[1].bias)
    save_file(module.state_dict(), tmp_path / "other.safetensors")
    model = rt.load(f"hf:{tmp_path}", weights=tmp_path / "other.safetensors", class_names=["x", "y", "z"])
    assert torch.equal(model.module.classifier[1].bias, torch.ones(3))
    assert model.class_names == ("x", "y", "z")
    assert rt.explain(model, pixels(), fact="y").layer == "resnet.encoder.stages.1"
