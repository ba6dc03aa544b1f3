"""Methods of other libraries on the bench, by the functions that docs/results/bench.py wraps them with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import interpolate

import ratherthan as rt
from ratherthan.evaluation.bench import any_other, tasks


@pytest.fixture(scope="module")
def page() -> ModuleType:
    path = Path(__file__).parents[2] / "docs/results/bench.py"
    spec = importlib.util.spec_from_file_location("bench_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_what_peers_reach_is_what_ours_reach_where_they_are_the_same(page: ModuleType, tmp_path: Path) -> None:
    """And none of them leaves a hook or a gradient behind."""
    ours = ["ixg", "gradcam"]
    found = rt.bench(tmp_path, tasks=["exact"], methods=[*ours, *page.PEERS], samples=3)
    frame = found.runs["exact"].to_frame().set_index(["method", "contrast"])["cosine"]
    for contrast in ("none", "weighted", "any_other"):
        same = {"captum InputXGradient": "ixg", "captum DeepLift": "ixg", "captum LayerGradCam": "gradcam"}
        for name, our in same.items():
            mine, theirs = frame[our, contrast].to_numpy(), frame[name, contrast].to_numpy()
            torch.testing.assert_close(torch.tensor(theirs), torch.tensor(mine), atol=1e-5, rtol=0)
    means = frame.groupby(level=[0, 1], sort=False).mean()
    assert len(means) == 3 * (len(ours) + len(page.PEERS))
    assert (means[:, "weighted"] > 0.3).all()
    assert means["grad-cam FinerCAM", "weighted"] > means["grad-cam FinerCAM", "none"]

    _, model, images = tasks.TASKS["exact"].build(tasks.Setting(2, 0, tmp_path, None))
    batch = torch.stack([images[i][0] for i in range(2)])
    for name in ("grad-cam GradCAM", "torchcam GradCAM"):
        (peer,) = [each for each in page.PEERS if each.label == name]
        for contrast in ("none", "weighted", any_other):
            rectified = rt.explain(model, batch, 0, 1, "gradcam", contrast).attribution.clamp_min(0)
            made = rt.explain(model, batch, 0, 1, peer, contrast).attribution
            mine = (
                rectified
                if made.shape == rectified.shape
                else interpolate(rectified[None], made.shape[1:], mode="bilinear")[0]
            )
            correlation = torch.corrcoef(torch.stack([made.flatten(), mine.flatten().to(made)]))[0, 1]
            assert correlation > 0.99, (name, contrast)
    for each in model.module.modules():
        assert not each._forward_hooks
        assert not each._forward_pre_hooks
        assert not each._backward_hooks
    assert all(each.grad is None for each in model.module.parameters())
