"""The default Grad-CAM on networks of three libraries: right or refused, and nothing left behind.

The questions stand in `benchmarks/sweep.py`, which also writes `docs/networks.md`; none of them uses what finds layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import sweep
from networks import SPECIAL, SWEPT

from turns import of_today

# with random weights these mix the whole image, so that moving pixels tells nothing about places
UNDECIDED = {
    "transformers:levit",
    "timm:levit_128s",
    "timm:levit_conv_128s",
    "torchvision:efficientnet_b0",
    "torchvision:inception_v3",
    "timm:mobilenetv4_hybrid_medium",
    "timm:lcnet_050",
    "timm:fbnetc_100",
    "timm:spnasnet_100",
    "timm:botnet26t_256",
    "timm:efficientvit_b0",
    "timm:efficientvit_m0",
    "transformers:cvt",
}
# all that its classes know of the image passes norms of several kinds: LA has nothing to say, Grad-CAM has
REFUSED = {"timm:cait_xxs24_224": "'la' says nothing at this layer"}
METHODS = (rt.GradCAM, rt.LinearApproximation)


@pytest.mark.parametrize("name", of_today(SWEPT))
def test_a_network_of_a_library(name: str) -> None:
    found = sweep.sweep(name)
    if name in REFUSED:
        assert found.outcome == "refused"
        assert found.note.startswith(REFUSED[name])
        return
    assert (found.outcome, found.note) == ("right", "")
    assert not found.undecided or name in UNDECIDED


@pytest.mark.parametrize("name", SPECIAL)
def test_a_network_whose_tokens_are_not_just_the_image(name: str) -> None:
    found = sweep.sweep(name)
    assert found.outcome in ("right", "refused"), found.note
    assert not found.undecided
    assert "\n" not in found.note
    if "SegFormer" in name and found.outcome == "right":
        assert found.grid == (64, 64)  # where its four branches have met, not one of them


# ------------------------------------------------------------------------------ would the questions notice a fault?
class Small(nn.Module):
    """Four by four cells, a class token behind them, an activation that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.plane, self.act = nn.Conv2d(3, 8, 8, 8), nn.ReLU()
        self.token, self.norm = nn.Parameter(torch.randn(1, 1, 8)), nn.LayerNorm(8)
        self.head = nn.Linear(8, sweep.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.act(self.act(self.plane(x)) - 0.1)
        tokens = torch.cat([patches.flatten(2).transpose(1, 2), self.token.expand(len(x), -1, -1)], 1)
        return self.head(self.act(torch.relu(self.norm(tokens)).mean(1)))


@pytest.fixture
def small() -> tuple[nn.Module, Tensor]:
    module, x = Small().double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    return module, x


@pytest.mark.parametrize(
    ("address", "function"),
    [
        ("plane", lambda m, x: m.plane(x)),
        ("act", lambda m, x: m.act(m.plane(x))),
        ("act#2", lambda m, x: m.act(m.act(m.plane(x)) - 0.1)),
        ("sub()", lambda m, x: m.act(m.plane(x)) - 0.1),
        ("act.relu()#2", lambda m, x: m.act(m.act(m.plane(x)) - 0.1)),
    ],
)
def test_a_layer_is_found_by_its_address(small: tuple[nn.Module, Tensor], address: str, function: sweep.Fold) -> None:
    module, x = small
    ((values, zero),), logits = sweep.record(module, x, address)
    assert torch.equal(values, function(module, x))
    assert torch.equal(logits, module(x))
    assert torch.autograd.grad(logits.sum(), zero)[0].any()
    assert sweep.record(module, x, "act#9")[0] == []


def test_a_wrong_map_a_wrong_place_and_a_wrong_layer_are_noticed(
    small: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = small
    why, la = (rt.explain(module, x, 1, 3, rt_method(layer="plane"), contrast="mean") for rt_method in METHODS)
    count, fitting = sweep.reference(module, x, why, la)
    assert count == 1
    assert [fold.keywords["rows"] for _, fold in fitting] == [2]  # type: ignore[attr-defined]
    assert sweep.where_cells_lie(module, x, why, fitting, 2) is True
    turned = [(0, sweep.partial(fold, rows=3, columns=2)) for _, fold in fitting]
    assert sweep.where_cells_lie(module, x, why, turned, 2) is False
    object.__setattr__(why, "attribution", why.attribution.flip(1))
    assert sweep.reference(module, x, why, la)[1] == []


def test_tokens_read_one_place_too_early_are_noticed(small: tuple[nn.Module, Tensor]) -> None:
    module, x = small
    ((values, _),), _ = sweep.record(module, x, "norm")
    layouts = {
        fold.keywords["before"]: fold
        for fold in sweep.layouts(values.shape, 2, (4, 4))
        if not fold.keywords["by_columns"]
    }  # type: ignore[attr-defined]
    assert set(layouts) == {0, 1}
    why = rt.explain(module, x, 1, 3, rt.GradCAM(layer="plane"))
    object.__setattr__(why, "layer", "norm")
    assert sweep.where_cells_lie(module, x, why, [(0, layouts[0])], 2) is True
    assert sweep.where_cells_lie(module, x, why, [(0, layouts[1])], 2) is False


def test_what_is_left_behind_is_noticed(small: tuple[nn.Module, Tensor]) -> None:
    module, _ = small
    before = sweep.state_of(module)
    assert sweep.left_behind(before, sweep.state_of(module)) == []
    hook = module.get_submodule("act").register_forward_hook(lambda *_: None)
    assert sweep.left_behind(before, sweep.state_of(module)) == ["hooks"]
    hook.remove()
    module.get_submodule("norm").eval()
    module.cache = {}  # type: ignore[assignment]
    torch.rand(1)
    with torch.no_grad():
        module.get_parameter("head.bias").add_(1e-6)
    assert set(sweep.left_behind(before, sweep.state_of(module))) == {
        "training",
        "attributes",
        "random numbers",
        "weights",
    }
