"""A network, its data set and its recipe are added from outside, by what `ratherthan` itself offers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ratherthan as rt
from outside.lenet import Bars, LeNet


def test_a_network_from_outside_is_trained_loaded_and_explained(tmp_path: Path) -> None:
    path = rt.train("zoo:lenet", out=tmp_path)
    model = rt.load("zoo:lenet", weights=path)
    assert list(model.class_names or ()) == ["lying", "standing"]
    test = rt.data.load("bars", split="test")
    images, labels = torch.stack([image for image, _ in test]), torch.tensor(test.labels)
    assert (model.logits(images).argmax(1) == labels).double().mean() >= 0.95
    why = rt.explain(model, images[:1], foil="standing")
    assert why.layer == "1"
    assert why.attribution.abs().max() > 0


def test_names_are_taken_once_and_misspellings_are_answered(tmp_path: Path) -> None:
    with pytest.raises(rt.InputError, match="named 'lenet' exists already"):
        rt.register_zoo_model(rt.ZooEntry("lenet", LeNet))
    with pytest.raises(rt.InputError, match="named 'bars' exists already"):
        rt.register_dataset("bars", lambda root, split: Bars(root, split))
    with pytest.raises(rt.InputError, match="did you mean 'lenet'"):
        rt.load("zoo:lennet")
    with pytest.raises(rt.InputError, match="did you mean 'bars'"):
        rt.data.load("barz")
    with pytest.raises(rt.ModelError, match="ratherthan train zoo:lenet"):
        rt.load("zoo:lenet")


def test_a_family_of_sets_gets_what_stands_after_the_colon() -> None:
    asked: list[tuple[object, ...]] = []

    def opened(root: object, split: object, detail: str) -> Bars:
        asked.append((root, split, detail))
        return Bars(None, "train")

    rt.register_dataset("bars of:", opened)
    assert len(rt.data.load("bars of:iron:2", "somewhere", "valid")) == 60
    assert asked == [("somewhere", "valid", "iron:2")]
    assert "bars of:" not in rt.data.names()
    with pytest.raises(rt.InputError, match="unknown data set 'bars of:'"):
        rt.data.load("bars of:")


NAMES = ("iqa", "celeba_bangs", "mnist_biased", "fashion_shoes")
FOUND_BY_ENTRY_POINT = f"""
import sys
import ratherthan as rt
from ratherthan import data, zoo
import ratherthan.registry as plugins

class Point:
    value = "ratherthan.replication"
    def load(self):
        import ratherthan.replication

plugins.entry_points = lambda group: [Point()] if group == "ratherthan.plugins" else []
assert zoo.get("mnist").name == "mnist"
assert "ratherthan.replication" not in sys.modules, "what is known needs no plug-in"
for name in {NAMES!r}:
    assert zoo.get(name).name == name
assert {{"celeba", "mnist_biased", "fashion_shoes"}} <= set(data.names())
print(rt.load("zoo:iqa").name)
"""


def test_plugins_are_found_when_a_name_is_not_known() -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", FOUND_BY_ENTRY_POINT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("zoo:iqa\n", "")


def test_nothing_in_the_house_imports_replication() -> None:
    house = Path(rt.__file__).parent
    for path in house.rglob("*.py"):
        if "replication" not in path.relative_to(house).parts:
            assert "ratherthan.replication" not in path.read_text(), path
