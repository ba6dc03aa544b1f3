"""An experiment that somebody else adds, with imports from `ratherthan` alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import ratherthan as rt
from ratherthan.data import Dataset
from ratherthan.data.dataset import ArrayReader


# --8<-- average drop: 13 lines
@rt.register_experiment
@dataclass(frozen=True)
class AverageDrop(rt.Experiment):
    """Average drop (Chattopadhay et al., Grad-CAM++, 2018): max(0, y - o) / y, the map being a soft mask.

    y is the probability of the predicted class, o that of the image times the map, rectified and stretched to [0, 1].
    """

    name = "average-drop"
    measures = ("drop",)
    higher_is_better: ClassVar[dict[str, bool]] = {"drop": False}

    def measure(self, batch: rt.Batch) -> Iterator[rt.Rows]:
        for (method, contrast), why in batch.explain().items():
            mask = why.heatmap().clamp_min(0)
            mask /= mask.amax((1, 2), keepdim=True)
            shown = batch.logits([batch.images * mask.unsqueeze(1)])[0]
            y, o = (logits.softmax(1).gather(1, why.fact.unsqueeze(1))[:, 0] for logits in (why.logits, shown))
            yield batch.rows(method, contrast, drop=(y - o).clamp_min(0) / y)


# --8<-- end
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


def test_it_takes_few_lines() -> None:
    source = Path(__file__).read_text().split("# --8<--")[1].split('"""')
    lines = [line for line in (source[0] + source[2]).splitlines()[1:] if line.strip()]
    assert len(lines) <= 22


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
    best = table["drop", {"none": "original", "weighted": "weighted"}[means.idxmin()]]["GradCAM"]
    assert best == f"**{means.min():.3f}**"
    with pytest.raises(rt.InputError, match="unknown setting of average-drop 'steps'"):
        rt.evaluate("average-drop", model, data, out=tmp_path / "other", steps=3)
