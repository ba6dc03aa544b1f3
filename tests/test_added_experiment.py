"""An experiment that somebody else adds, with imports from `ratherthan` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ratherthan as rt
from outside.average_drop import AverageDrop
from ratherthan import ArrayReader, Dataset

SIDE, CLASSES, COUNT = 12, 4, 6


@pytest.fixture
def model() -> rt.Model:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(150, CLASSES))
    return rt.Model(nn.Sequential(*layers).double(), layer="1", mean=(0.4, 0.5, 0.6))


@pytest.fixture
def data() -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    names = tuple(f"s{i}" for i in range(COUNT))
    return Dataset("noise", tuple("abcd"), names, tuple(i % CLASSES for i in range(COUNT)), ArrayReader(pixels))


def test_average_drop_equals_a_loop(model: rt.Model, data: Dataset, tmp_path: Path) -> None:
    run = rt.evaluate("average-drop", model, data, out=tmp_path, batch_size=4)
    frame = run.to_frame().set_index(["sample", "contrast"])
    assert len(frame) == COUNT * 2
    for i in range(COUNT):
        image = data[i][0].double()
        activation = model.module[:2](model.normalise(image[None])).detach().requires_grad_()  # type: ignore[index]
        logits = model.module[2:](activation)[0]  # type: ignore[index]
        fact = int(logits.argmax())
        others = torch.cat([logits[:fact], logits[fact + 1 :]])
        for contrast, score in (("none", logits[fact]), ("weighted", logits[fact] - others.logsumexp(0))):
            (gradient,) = torch.autograd.grad(score, activation, retain_graph=True)
            cam = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
            cam = nn.functional.interpolate(cam, (SIDE, SIDE), mode="bilinear")[0, 0].detach().clamp_min(0)
            with torch.no_grad():
                y = model.logits(image[None]).softmax(1)[0, fact].item()
                o = model.logits((image * cam / cam.max())[None]).softmax(1)[0, fact].item()
            assert frame["drop"][f"s{i}", contrast] == pytest.approx(max(0.0, y - o) / y, abs=1e-9)
    assert (frame["drop"] > 0).any()


def test_it_is_known_everywhere(model: rt.Model, data: Dataset, tmp_path: Path) -> None:
    assert "average-drop" in rt.experiments()
    run = rt.evaluate(AverageDrop(), model, data, out=tmp_path, shard_size=2)
    table = rt.Run.open(tmp_path).table(intervals=False)
    means = run.to_frame().groupby("contrast")["drop"].mean()
    apart = run.difference().iloc[0]
    for name, shown, better in (("none", "original", apart["low"] > 0), ("weighted", "weighted", apart["high"] < 0)):
        assert table["drop", shown]["Grad-CAM"] == ("**{:.3f}**" if better else "{:.3f}").format(means[name])
    with pytest.raises(rt.InputError, match="unknown setting of average-drop 'steps'"):
        rt.evaluate("average-drop", model, data, out=tmp_path / "other", steps=3)
