"""Files of networks and weights: loaded right, or one line that says what the file is and what to do."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import InputError, ModelError
from ratherthan.app.cli import main
from ratherthan.loading import fit_weights
from ratherthan.weights import read_weights
from ratherthan.zoo import registry as zoo


def small(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def export(path: Path) -> Path:
    torch.export.save(torch.export.export(small().eval(), (torch.rand(1, 3, 8, 8),)), path)
    return path


class Marker:
    """Something that no weights file should hold."""


# --------------------------------------------------------------------------------------------- weights
FITTING: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: prefixed(state, "_orig_mod.module."),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"param_groups": [{"lr": 0.1}]}},
    "Lightning": lambda state: {
        "epoch": 1, "pytorch-lightning_version": "2.5", "state_dict": prefixed(state, "backbone."),
        "callbacks": {}, "lr_schedulers": [], "hyper_parameters": {"lr": 0.1},
    },
    "timm": lambda state: {
        "epoch": 9, "arch": "resnet10t", "state_dict": prefixed(state, "module."), "version": 2,
        "args": argparse.Namespace(lr=0.1, opt="sgd"), "metric": 71.5,
    },
    "half precision": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", FITTING)
def test_weights_are_found_where_frameworks_put_them(kind: str, tmp_path: Path) -> None:
    trained, net = small(), small()
    trained(torch.rand(4, 3, 8, 8))
    ending = {"Lightning": ".ckpt", "timm": ".pth.tar"}.get(kind, ".pt")
    torch.save(FITTING[kind](trained.state_dict()), tmp_path / f"net{ending}")
    fit_weights(net, tmp_path / f"net{ending}")
    tol = 1e-3 if kind == "half precision" else 0
    for key, value in net.state_dict().items():
        assert value.dtype == trained.state_dict()[key].dtype
        torch.testing.assert_close(value, trained.state_dict()[key], atol=tol, rtol=tol)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text.pt": (lambda f: f.write_text("hello"), "it is no file of tensors"),
    "empty.pt": (lambda f: f.write_bytes(b""), "it is no file of tensors"),
    "whole.pt": (lambda f: torch.save(small(), f), "other objects, e.g. a whole pickled network; save `net"),
    "old.pt": (
        lambda f: torch.save(small(), f, _use_new_zipfile_serialization=False), "other objects.*net.state_dict",
    ),
    "pickle.pt": (lambda f: f.write_bytes(pickle.dumps({"a": Marker()})), "save `net.state_dict|no file of tensors"),
    "list.pt": (lambda f: torch.save([1, 2], f), "no plain state dict"),
    "number.pt": (lambda f: torch.save(torch.ones(2), f), "no plain state dict"),
    "two.pt": (
        lambda f: torch.save({"state_dict": small().state_dict(), "state_dict_ema": small().state_dict()}, f),
        r"several state dicts \(state_dict, state_dict_ema\)",
    ),
    "script.pt": (lambda f: torch.jit.script(small().eval()).save(f), r"is a TorchScript network: .*torch.jit.load"),
    "exported.pt": (
        lambda f: export(f.with_suffix(".pt2")).rename(f),
        "is an exported program: give it as the model",
    ),
    "net.onnx": (lambda f: f.write_bytes(b"\x08\x07\x12\x07pytorch"), "is an ONNX network"),
    "broken.safetensors": (lambda f: f.write_bytes(b"\x08\0\0\0\0\0\0\0{}"), "cannot read weights"),
    "half_prefix.pt": (
        lambda f: torch.save({**prefixed(small().state_dict(), "module."), "b": torch.ones(1)}, f), "missing 0.weight",
    ),
    "whole_numbers.safetensors": (
        lambda f: save_file({k: v.long() for k, v in small().state_dict().items()}, f), "is int64, not float32",
    ),
    "float8.pt": (
        lambda f: torch.save({k: v.to(torch.float8_e4m3fn) for k, v in small().state_dict().items()}, f),
        "0.weight is float8_e4m3fn, not float32",
    ),
    "sparse.pt": (
        lambda f: torch.save({**small().state_dict(), "5.weight": torch.ones(3, 4).to_sparse()}, f),
        "5.weight is sparse_coo float32, not float32",
    ),
    "complex.pt": (
        lambda f: torch.save({**small().state_dict(), "5.weight": torch.ones(3, 4) * 1j}, f), "5.weight is complex64",
    ),
    "nan.pt": (
        lambda f: torch.save({**small().state_dict(), "5.weight": torch.full((3, 4), torch.nan)}, f), "NaN or infinite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_count_of_batches_may_be_missing(prefix: str, tmp_path: Path) -> None:
    """Files from before PyTorch 0.4.1 have none; everything else has to be there."""
    net, other = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2))
    other(torch.rand(2, 1, 8, 8))
    state = {prefix + key: each for key, each in other.state_dict().items() if key != "1.num_batches_tracked"}
    save_file(state, tmp_path / "old.safetensors")
    fit_weights(net, tmp_path / "old.safetensors")
    image = torch.rand(1, 1, 8, 8)
    assert torch.equal(net.eval()(image), other.eval()(image))
    del state[f"{prefix}1.running_mean"]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match=r"missing .*running_mean|missing 0.weight"):
        fit_weights(net, tmp_path / "bad.safetensors")


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_cannot_be_used_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write, message = REFUSED[name]
    write(tmp_path / name)
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ModelError, match=message) as error:
        fit_weights(net, tmp_path / name)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # PyTorch's advice would run the code in the file
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": small().state_dict(), "args": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="other objects"):
        read_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("names", ["[", "3", '{"a": 1}', '["a", ["b"]]', "[" * 100_000, "null"])
def test_class_names_written_in_weights(names: str, tmp_path: Path) -> None:
    state = zoo.load_weights(zoo.get("mnist")).state_dict()
    save_file(state, tmp_path / "mnist.safetensors", metadata={"class_names": names})
    with pytest.raises(ModelError, match=r"mnist.safetensors.*class.names") as error:
        rt.load("zoo:mnist", weights=tmp_path / "mnist.safetensors")
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- given as the model
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.onnx", "is an ONNX network"),
        ("script.pt", "is a TorchScript network"),
        ("net.pth", r"seems to hold weights: name their network, e.g. load\('torchvision:resnet50', weights="),
        ("net.safetensors", "seems to hold weights"),
    ],
)
def test_a_file_given_as_the_model_is_told_apart(name: str, message: str, tmp_path: Path) -> None:
    write = {
        "net.onnx": REFUSED["net.onnx"][0],
        "script.pt": REFUSED["script.pt"][0],
        "net.pth": lambda f: torch.save(small().state_dict(), f),
        "net.safetensors": lambda f: save_file(small().state_dict(), f),
    }[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as error:
        rt.load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_an_exported_program_tells_nothing_of_normalisation(tmp_path: Path) -> None:
    export(tmp_path / "net.pt2")
    with pytest.warns(UserWarning, match=r"net.pt2 tells no mean and std: images are not normalised; give both"):
        rt.load(tmp_path / "net.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = rt.load(tmp_path / "net.pt2", mean=0.5, std=0.5)
    assert model.inputs.mean == (0.5,)
    with pytest.raises(ModelError, match="one image by itself works: give batch_size=1"):
        rt.explain(model, torch.rand(2, 3, 8, 8), method="ixg")
    assert rt.explain(model, torch.rand(2, 3, 8, 8), method="ixg", batch_size=1).attribution.shape == (2, 3, 8, 8)


# --------------------------------------------------------------------------------------------- transformers
def vit(folder: Path, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=8, **config,
        )
    )  # fmt: skip
    net.save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return net.eval()


def test_a_folder_by_itself_and_its_own_weights_under_old_names(tmp_path: Path) -> None:
    net, x = vit(tmp_path, num_labels=3), torch.rand(1, 3, 32, 32)
    model = rt.load(tmp_path)
    assert model.name == f"hf:{tmp_path}"
    expected = net(model.normalise(x)).logits
    assert torch.equal(model.logits(x), expected)
    saved = read_weights(tmp_path / "model.safetensors")
    assert saved.keys() != net.state_dict().keys()  # transformers renames, or this shows nothing
    with torch.no_grad():
        net.classifier.bias.add_(1)
    net.save_pretrained(tmp_path / "other")
    again = rt.load(tmp_path, weights=tmp_path / "other" / "model.safetensors")
    torch.testing.assert_close(again.logits(x), expected + 1)
    saved.pop("classifier.bias")
    save_file(saved, tmp_path / "lacking.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        rt.load(tmp_path, weights=tmp_path / "lacking.safetensors")


def test_labels_and_values_by_their_config(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 32, 32)
    labels = vit(tmp_path / "labels", num_labels=3, problem_type="multi_label_classification")
    why = rt.explain(rt.load(tmp_path / "labels"), x, 2)
    assert torch.allclose(why.score, labels(why.images * 2 - 1).logits[:, 2], atol=1e-6)
    one = rt.load(
        tmp_path / "labels", output="logits", class_names=["no", "yes"], forward=lambda m, x: m(x).logits[:, [2]]
    )
    assert torch.allclose(rt.explain(one, x, "yes").score, labels(one.normalise(x)).logits[:, 2], atol=1e-6)
    value = vit(tmp_path / "value", num_labels=1, problem_type="regression")
    model = rt.load(tmp_path / "value")
    assert torch.allclose(rt.explain(model, x, method="ixg").score, value(model.normalise(x)).logits[:, 0])


# --------------------------------------------------------------------------------------------- factories
FACTORIES = """
import sys
from torch import nn

print("imported")

class Stop(BaseException):
    pass

def quits():
    sys.exit(0)

def stops():
    raise Stop("no more")

def prints():
    print("building")
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.mark.parametrize(("name", "message"), [("quits", "SystemExit: 0"), ("stops", "Stop: no more")])
def test_a_factory_that_ends_the_program_is_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made.py").write_text(FACTORIES)
    with pytest.raises(ModelError, match=message):
        rt.load(f"{tmp_path}/made.py:{name}", trust_code=True)
    (tmp_path / "interrupted.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        rt.load(f"{tmp_path}/interrupted.py:make", trust_code=True)


def test_what_a_factory_prints_does_not_spoil_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "made.py").write_text(FACTORIES)
    Image.new("L", (12, 12), 90).save(tmp_path / "a.png")
    call = ["ratherthan", "explain", f"{tmp_path}/a.png", "--model", f"{tmp_path}/made.py:prints", "--json"]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    assert end.value.code == 0
    assert json.loads(told.out)["explanations"]
    assert "imported\nbuilding" in told.err
