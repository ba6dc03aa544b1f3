"""Every method on ten real photographs, by two real networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ratherthan as rt
from ratherthan import data
from turns import of_today

# settings that keep what re-evaluates the network quick
QUICK: dict[str, Any] = {
    "smoothgrad": rt.SmoothGrad(samples=2),
    "ig": rt.IntegratedGradients(n_steps=4),
    "lime": rt.Lime(samples=32),
    "occlusion": rt.Occlusion(size=28, stride=28),
    "pda": rt.PredictionDifference(window=28, stride=28, samples=2),
}
HALVED = {"lime", "occlusion", "pda", "scan"}  # run the network up to 400 times on each image
REGIONS = {"gradcam", "la", "lime", "occlusion", "pda", "scan"}  # maps of places, which can be covered
COUNT = 10
NETWORKS = ["efficientnet_lite0", "squeezenet1_0"]


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest, data_root: Path) -> rt.Model:
    names = data_root / "imagenet_samples/class_names.json"
    squeezenet = data_root / "squeezenet/squeezenet1_0_caffe.safetensors"
    weights = squeezenet if request.param == "squeezenet1_0" else None
    return rt.load(f"zoo:{request.param}", weights=weights, class_names=names)


@pytest.fixture(scope="module")
def photographs(model: rt.Model, data_root: Path) -> Tensor:
    samples = data.load("imagenet_samples", data_root).subset([0, 7, 84, 130, 207, 281, 340, 388, 637, 985])
    seen = samples.with_transform(lambda image: model.preprocess(image)[0])
    return torch.stack([seen[index][0] for index in range(COUNT)])


def margin(model: rt.Model, images: Tensor, why: rt.Explanation) -> Tensor:
    with torch.no_grad():
        logits = torch.cat([model.logits(part) for part in images.split(2)])
    return (logits.gather(1, why.fact[:, None]) - logits.gather(1, why.foil[:, None]))[:, 0]


@pytest.mark.parametrize("method", of_today(rt.methods(), 2))
def test_every_method_explains_photographs(model: rt.Model, photographs: Tensor, method: str, tmp_path: Path) -> None:
    if method == "scan" and model.name.removeprefix("zoo:") not in of_today([*NETWORKS, *NETWORKS[::-1]], 4):
        pytest.skip("another day's turn: 400 passes for each image")
    images = torch.nn.functional.avg_pool2d(photographs, 2) if method in HALVED else photographs
    images = images[: COUNT // 2] if method == "scan" else images
    why = rt.explain(model, images, foil="runner-up", method=QUICK.get(method, method), batch_size=2)
    heat = why.heatmap()
    assert heat.shape == (len(images), *images.shape[-2:])
    assert heat.isfinite().all()
    # where no weight works, scan has no map, and says so
    kept = why.diagnostics["kept"] > 0 if method == "scan" else torch.ones(len(images), dtype=torch.bool)
    if method == "pda":  # its smoothed probabilities tell nothing beyond one in ten thousand times N
        kept = why.score < math.log(1e4 * QUICK["pda"].training_samples)
    assert kept.float().mean() >= 0.5
    assert heat[kept].flatten(1).any(1).all()
    assert (heat[kept].flatten(1).std(1) > 0).all()
    if method in REGIONS:
        for_it, against = (_covered(images, sign * heat) for sign in (1, -1))
        harm = margin(model, against, why) - margin(model, for_it, why)
        assert harm[kept].mean() > 1  # logits
    why[0].save(tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 10_000


def _covered(images: Tensor, heat: Tensor) -> Tensor:
    """The images without the fifth of their pixels where the map is largest."""
    largest = heat >= heat.flatten(1).quantile(0.8, dim=1)[:, None, None]
    return torch.where(largest[:, None], images.mean((2, 3), keepdim=True), images)
