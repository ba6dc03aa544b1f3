"""Volumes, signals and rows of a table: maps in one, two and three dimensions, and without any."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from addresses import kept
from nets import Counter, of_kind
from pages import cases_of, maps_of
from ratherthan import ForwardPass, Signals, Table, Volumes
from ratherthan.attribution.layers import located
from ratherthan.render.colours import overlay
from ratherthan.render.kinds import contact_sheet, draw, plot

CLASSES = 4
SHAPES = {"volumes": (2, 4, 6, 5), "images": (2, 6, 5), "signals": (2, 9), "table": (7,)}
INPUTS: dict[str, Callable[..., rt.Inputs]] = {"volumes": Volumes, "signals": Signals, "table": Table}


def numbers(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1


class Seen(nn.Module):
    """logits = W x, with a layer that hands the input on."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.features, self.head = nn.Identity(), nn.Linear(math.prod(shape), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def linear(kind: str) -> tuple[rt.Model, Tensor, Tensor, Tensor]:
    """A model that normalises, two inputs, d logits / dx, and mean per channel, as broad as the input."""
    torch.manual_seed(0)
    shape = SHAPES[kind]
    mean, std = torch.linspace(-2, 2, shape[0]).double(), torch.linspace(0.5, 3, shape[0]).double()
    inputs = INPUTS[kind](mean=mean.tolist(), std=std.tolist())
    model = rt.Model(Seen(shape).double().eval(), inputs=inputs, layer="features")
    broad = (-1, *[1] * (len(shape) - 1))
    slope = model.module.head.weight.detach().view(CLASSES, *shape) / std.view(broad)
    return model, numbers(2, *shape), slope, mean.view(broad).expand(shape)


def seeds_of(model: rt.Model, x: Tensor, foil: Any, contrast: str) -> Tensor:
    logits = model.logits(x).detach()
    return rt.get_contrast(contrast).seed(logits, rt.resolve(logits, 1, foil))


def by_windows(drop: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Of what every place loses, (..., plane): the mean over the windows that hold a place of what they lose."""
    plane = drop.shape[-len(size) :]
    total, count = torch.zeros_like(drop), torch.zeros(plane, dtype=drop.dtype)
    starts = [
        [s for i, s in enumerate(range(0, n, step)) if i == 0 or s - step + w < n]
        for n, w, step in zip(plane, size, stride, strict=True)
    ]
    for corner in itertools.product(*starts):
        window = tuple(slice(c, c + w) for c, w in zip(corner, size, strict=True))
        lost = drop[(..., *window)].flatten(drop.ndim - len(size)).sum(-1)
        total[(..., *window)] += lost.view(*lost.shape, *[1] * len(size))
        count[window] += 1
    return total / count


# --------------------------------------------------------------------------------------------- closed forms
@pytest.mark.parametrize("contrast", rt.contrasts())
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(
    "method",
    ["gradient", "smoothgrad", "ixg", "ig", "deeplift", "lrp", "gradcam", "la", "occlusion", "occluded by the mean"],
)
def test_linear_models_have_a_closed_form(kind: str, method: str, contrast: str) -> None:
    model, x, slope, mean = linear(kind)
    axes = len(SHAPES[kind]) - 1
    size, stride = (2, 3, 2)[:axes], (2, 1, 2)[:axes]
    if kind == "table" and method in ("gradcam", "la"):
        return  # it has no layer on a plane: refused, see test_every_method
    asked: Any = {
        "ig": rt.IntegratedGradients(n_steps=3), "lrp": rt.LRP("z"), "smoothgrad": rt.SmoothGrad(3),
        "occlusion": rt.Occlusion(size or None, stride or None, baseline=0.0),
        "occluded by the mean": rt.Occlusion(size or None, stride or None),
    }.get(method, method)  # fmt: skip
    for foil in (2, [2, {0, 3}], "each"):
        pulled = torch.einsum("nqk,k...->nq...", seeds_of(model, x, foil, contrast), slope)
        own = x.unsqueeze(1)
        plane = tuple(range(3, own.ndim))
        nothing = torch.zeros_like(own) if method == "occlusion" else own.mean(plane, keepdim=True) if axes else mean
        expected = own * pulled
        if method in ("gradient", "smoothgrad"):
            expected = pulled
        elif method == "lrp":
            expected = (own - mean) * pulled
        elif method in ("la", "gradcam"):
            expected = ((own - mean) * (pulled if method == "la" else pulled.mean(plane, keepdim=True))).sum(2)
        elif "occlu" in method:
            lost = (own - nothing) * pulled
            expected = by_windows(lost.sum(2, keepdim=True), size, stride) if axes else lost
        why = rt.explain(model, x, 1, foil, asked, contrast)
        torch.testing.assert_close(why.by_question(why.attribution), expected, rtol=1e-8, atol=1e-8)


def test_lime_hides_columns() -> None:
    model, x, slope, mean = linear("table")
    why = rt.explain(model, x, 1, [2, 3], rt.Lime(samples="all", alpha=0.0))
    expected = torch.einsum("nqk,kf->nqf", seeds_of(model, x, [2, 3], "weighted"), slope) * (x - mean).unsqueeze(1)
    torch.testing.assert_close(why.attribution, expected)


BLOCKS = {  # of a plane cut into about eight blocks, or three: where the cuts of each axis are
    "volumes": (8, ((0, 2, 4), (0, 3, 6), (0, 3, 5))), "signals": (3, ((0, 3, 6, 9),)),
}  # fmt: skip


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("contrast", rt.contrasts())
@pytest.mark.parametrize("kind", BLOCKS)
def test_lime_hides_blocks(kind: str, contrast: str, given: bool) -> None:
    model, x, slope, _ = linear(kind)
    count, cuts = BLOCKS[kind]
    own, labels = x.unsqueeze(1), torch.zeros(SHAPES[kind][1:], dtype=torch.long)
    pulled = torch.einsum("nqk,k...->nq...", seeds_of(model, x, [2, {0, 3}], contrast), slope)
    lost = (own - own.mean(tuple(range(3, own.ndim)), keepdim=True)) * pulled
    expected = torch.zeros_like(lost[:, :, :1])
    blocks = itertools.product(*([slice(*pair) for pair in itertools.pairwise(each)] for each in cuts))
    for number, block in enumerate(blocks):
        labels[block] = 3 * number  # labels may have gaps
        whole = lost[(..., *block)].flatten(2).sum(2)
        expected[(..., *block)] = whole.view(*whole.shape, *[1] * (lost.ndim - 2))
    parts: Any = labels if given else rt.Superpixels("grid", count)
    why = rt.explain(model, x, 1, [2, {0, 3}], rt.Lime(superpixels=parts, samples="all", alpha=0.0), contrast)
    torch.testing.assert_close(why.attribution, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(why.diagnostics["r2"], torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("method", ["gradient", "ixg", "ig", "lrp", "deeplift"])
@pytest.mark.parametrize("kind", ["volumes", "signals"])
def test_pooled_convolutions_are_linear(kind: str, method: str) -> None:
    """logits = W pooled(conv x): what unit vectors give, one by one, is the whole of it."""
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 3, 3, (1, 2, 1), bias=False) if kind == "volumes" else nn.Conv1d(2, 3, 3, 2, bias=False)
    pool = nn.AdaptiveAvgPool3d(1) if kind == "volumes" else nn.AdaptiveAvgPool1d(1)
    net = nn.Sequential(conv, pool, nn.Flatten(), nn.Linear(3, CLASSES, bias=False)).double().eval()
    shape = SHAPES[kind]
    with torch.no_grad():
        slope = net(torch.eye(math.prod(shape)).double().view(-1, *shape)).T.reshape(CLASSES, *shape)
    model, x = rt.Model(net, inputs=INPUTS[kind]()), numbers(2, *shape)
    why = rt.explain(model, x, 1, "each", rt.LRP("z") if method == "lrp" else method)
    pulled = torch.einsum("nqk,k...->nq...", seeds_of(model, x, "each", "weighted"), slope)
    expected = pulled if method == "gradient" else x.unsqueeze(1) * pulled
    torch.testing.assert_close(why.attribution, expected, rtol=1e-8, atol=1e-8)


# --------------------------------------------------------------------------------------------- layers
def tail(axes: int, width: int, cells: int = 0) -> list[nn.Module]:
    """Pooling and a linear map, or all cells side by side."""
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[axes]
    start = [] if cells else [pool(1)]
    return [*start, nn.Flatten(), nn.Linear(width * (cells or 1), CLASSES)]


def heart(*end: nn.Module) -> nn.Module:
    """Like those for electrocardiograms: unequal strides, no padding in one place."""
    start = [nn.Conv1d(2, 6, 7, 3, 3), nn.ReLU(), nn.MaxPool1d(3, 2, 1), nn.Conv1d(6, 8, 5, 2), nn.ReLU()]
    return nn.Sequential(*start, *end)


def scan(*end: nn.Module) -> nn.Module:
    start = [nn.Conv3d(2, 6, 3, (1, 2, 3), 1), nn.ReLU(), nn.MaxPool3d((1, 2, 1)), nn.Conv3d(6, 8, 3, padding=1)]
    return nn.Sequential(*start, nn.ReLU(), *end)


class Turned(nn.Module):
    """Depth, rows and columns in another order inside, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Conv3d(2, 6, 3, padding=1), nn.Linear(6, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.first(x.permute(0, 1, 4, 2, 3)).relu().permute(0, 3, 2, 4, 1)).mean((1, 2, 3)))


class Mixed(nn.Module):
    """Its slices are mixed before the last convolution, which has rows and columns only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.act(self.first(x)).mean(2)).mean((2, 3)))


class Cubes(nn.Module):
    """A transformer of a volume cut into cubes, with a class token behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.token = nn.Conv3d(2, 8, (2, 4, 4), (2, 4, 4)), nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(x).flatten(2).transpose(1, 2)
        x = self.block(torch.cat([x, self.token.expand(len(x), -1, -1)], 1))
        return self.head(x[:, :-1].mean(1))


class Steps(nn.Module):
    """A recurrent network behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.steps, self.head = nn.Conv1d(2, 6, 4, 4), nn.GRU(6, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(self.cut(x).transpose(1, 2))[0].mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, tuple[int, ...]]] = {
    "heart": (lambda: heart(*tail(1, 8)), (2, 96), "4", (6,)),
    "heart, dense": (lambda: heart(*tail(1, 8, 6)), (2, 96), "4", (6,)),
    "scan": (lambda: scan(*tail(3, 8)), (2, 6, 24, 18), "4", (6, 6, 6)),
    "scan, dense": (lambda: scan(*tail(3, 8, 216)), (2, 6, 24, 18), "4", (6, 6, 6)),
    "turned": (Turned, (2, 4, 6, 5), "mix", (4, 6, 5)),
    "mixed": (Mixed, (2, 4, 6, 5), "act", (4, 6, 5)),
    "cubes": (Cubes, (2, 6, 16, 12), "block", (3, 4, 3)),
    "steps": (Steps, (2, 32), "steps", (8,)),
}


def built(name: str) -> tuple[rt.Model, Tensor]:
    torch.manual_seed(2)
    build, shape, _, _ = NETS[name]
    inputs = Volumes() if len(shape) == 4 else Signals()
    return rt.Model(build().double().eval(), inputs=inputs), numbers(2, *shape)


@pytest.mark.parametrize("name", NETS)
def test_a_place_moves_the_cell_that_is_drawn_there(name: str) -> None:
    """One place of the input is changed: how far the cells move, their centre is where the place is."""
    model, x = built(name)
    layer, grid = located(ForwardPass(model, x), None)
    assert (layer, grid.size) == NETS[name][2:]
    plane = x.shape[2:]
    generator = np.random.default_rng(0)
    for _ in range(20):
        place = tuple(int(generator.integers(side)) for side in plane)
        changed = x[:1].clone()
        changed[(0, slice(None), *place)] += 1e-3
        before, after = (
            grid.fold(kept(model.module, layer, lambda each=each: model.module(each))[0]) for each in (x[:1], changed)
        )
        moved = (after - before)[0].detach().square().sum(0)
        if not moved.any():
            continue  # beyond the last window
        for axis, (side, cells) in enumerate(zip(plane, grid.size, strict=True)):
            along = moved.movedim(axis, 0).flatten(1).sum(1) if len(plane) > 1 else moved
            cell = float((along * torch.arange(cells)).sum() / along.sum())
            drawn = (cell + 0.5) * side / cells - 0.5
            # what attends or runs on moves also far away, most where it is; a window reaches to its neighbours
            near = 1.5 * side / cells if name != "steps" else 3 * side / cells
            assert abs(drawn - place[axis]) <= near, (place, axis, drawn)


@pytest.mark.parametrize("method", ["gradcam", "la"])
@pytest.mark.parametrize("name", NETS)
def test_layer_methods_equal_an_autograd_loop(name: str, method: str) -> None:
    model, x = built(name)
    why = rt.explain(model, x, 1, [0, {2, 3}, 2], method)
    _, grid = located(ForwardPass(model, x), None)
    seeds = seeds_of(model, x, [0, {2, 3}, 2], "weighted")
    for i in range(len(x)):
        activation, logits = kept(model.module, why.layer, lambda i=i: model.module(x[i : i + 1].requires_grad_()))
        for q in range(3):
            (gradient,) = torch.autograd.grad((seeds[i, q] * logits[0]).sum(), activation, retain_graph=True)
            a, g = grid.fold(activation.detach())[0], grid.fold(gradient)[0]
            expected = torch.zeros(grid.size, dtype=x.dtype)
            for channel in range(len(a)):
                expected += a[channel] * (g[channel].mean() if method == "gradcam" else g[channel])
            assert expected.abs().max() > 1e-9
            torch.testing.assert_close(why.attribution[i, q], expected, rtol=1e-8, atol=1e-12)


def test_a_layer_without_depth_is_the_same_in_all_slices() -> None:
    model, x = built("mixed")
    why = rt.explain(model, x, 1, 2, layer="last")
    assert why.attribution.shape == (2, 1, 6, 5)
    torch.testing.assert_close(why.heatmap(), why.attribution.expand(-1, 4, -1, -1))
    activation, logits = kept(model.module, "last", lambda: model.module(x.requires_grad_()))
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 2]).sum(), activation)
    expected = (gradient.mean((2, 3), keepdim=True) * activation.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(why.attribution, expected)


@pytest.mark.parametrize("name", ["heart", "scan"])
def test_pooled_heads_need_one_pass_back_for_all_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = built(name)
    seeds = list[int]()
    pull = rt.Graph._pull
    monkeypatch.setattr(rt.Graph, "_pull", lambda graph, given: seeds.append(given.shape[1]) or pull(graph, given))
    with Counter(model) as counted:
        rt.explain(model, x, 1, "each")
        first = counted.passes
        rt.explain(model, x, 1, "each")
    assert counted.passes - first == 1
    assert sum(seeds) == 2, "one random seed a call"


# --------------------------------------------------------------------------------------------- on the plane
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", ["heart", "scan"])
def test_heatmaps_are_interpolated_along_each_axis(name: str, align_corners: bool) -> None:
    model, x = built(name)
    why = rt.explain(model, x, 1, [0, 2])

    def upsampled(maps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        for axis, (cells, side) in enumerate(zip(maps.shape[2:], x.shape[2:], strict=True), 2):
            at = np.linspace(0, cells - 1, side) if align_corners else (np.arange(side) + 0.5) * cells / side - 0.5
            maps = np.apply_along_axis(lambda row, at=at: np.interp(at, np.arange(len(row)), row), axis, maps)
        return maps

    expected = upsampled(why.attribution.numpy())
    np.testing.assert_allclose(why.heatmap(align_corners=align_corners).numpy(), expected, atol=1e-12)
    rectified = upsampled(why.attribution.clamp_min(0).numpy())
    plane = tuple(range(2, rectified.ndim))
    low, high = rectified.min(plane, keepdims=True), rectified.max(plane, keepdims=True)
    assert (high > low).any()
    expected = (rectified - low) / np.where(high > low, high - low, 1)
    np.testing.assert_allclose(why.heatmap("prabhushankar2020", align_corners).numpy(), expected, atol=1e-12)
    frame = why.to_frame()
    where = ["peak_slice", "peak_row", "peak_column"] if name == "scan" else ["peak_step"]
    for row, map_ in zip(frame[where].to_numpy().tolist(), why.heatmap().flatten(0, 1), strict=True):
        assert map_[tuple(row)] == map_.max()


@pytest.mark.parametrize("kind", ["volumes", "signals", "table"])
def test_channels_are_summed_where_a_map_has_them(kind: str) -> None:
    model, x, _, _ = linear(kind)
    why = rt.explain(model, x, 1, [0, 2], "ixg")
    expected = why.attribution.unsqueeze(2) if kind == "table" else why.attribution.sum(2)
    assert torch.equal(why.heatmap(), expected)
    alone = rt.explain(model, x, 1, 2, "ixg")
    assert torch.equal(alone.heatmap(), expected[:, 1])


# --------------------------------------------------------------------------------------------- drawn
def test_a_sheet_shows_evenly_spaced_slices() -> None:
    volume = np.random.default_rng(0).random((17, 5, 4))
    sheet, owner = contact_sheet(volume)
    assert owner is not None
    assert sheet.shape[:2] == owner.shape
    depth = np.unique(owner[owner >= 0] // 20)
    assert depth.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert np.unique(owner[owner >= 0]).tolist() == [20 * d + i for d in depth for i in range(20)]
    shown = owner >= 0
    np.testing.assert_array_equal(sheet[shown][:, 0], np.rint(volume.ravel()[owner[shown]] * 255))
    assert len(np.unique(contact_sheet(np.zeros((4, 6, 6, 3)))[1])) == 4 * 36 + 1


def test_slices_are_as_dark_as_they_are_low() -> None:
    model, x = of_kind("volumes", 1)
    image = np.asarray(rt.explain(model, x).panels()[0].image)
    owner = contact_sheet(np.zeros(x.shape[2:]))[1]
    assert owner is not None
    grey = (x[0].mean(0) - x.min()) / (x.max() - x.min())
    expected = np.rint(grey.flatten().numpy()[owner[owner >= 0]] * 255)
    assert np.abs(image[owner >= 0][:, 0] - expected).max() <= 1
    empty = rt.explain(model, torch.zeros_like(x)).panels()[0]
    assert not np.asarray(empty.image)[owner >= 0].any()


def test_a_line_follows_its_channel() -> None:
    steps = np.linspace(0, 1, 50)
    drawn, owner = plot(np.stack([steps, -steps, 0 * steps]))
    assert owner is None
    for channel, strip in enumerate(np.split(drawn, 3)):
        darkest = strip[2:].argmin(0)[10:-10]
        rising, middle = darkest[0] - darkest[-1], abs(darkest - len(strip) / 2).max()
        assert (rising > 80, -rising > 80, middle < 5)[channel]


def test_a_table_is_written_in_lines() -> None:
    picture, owner = draw(np.zeros(4), (" a = 1", " b = 2", " c = 3", " d = 4"), [0, 2, 3])
    assert owner is not None
    lines = [np.flatnonzero((owner == number).any(1)) for number in (0, 2, 3)]
    assert lines[0].max() < lines[1].min()
    assert lines[1].max() < lines[2].min()
    assert set(np.unique(owner)) == {-1, 0, 2, 3}
    for number in (0, 2, 3):
        assert (picture[owner == number] < 100).any()


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_is_drawn_told_and_saved(kind: str, tmp_path: Path) -> None:
    model, x = of_kind(kind, 2)
    for method in ("ixg", "occlusion" if kind == "table" else "gradcam"):
        why = rt.explain(model, x, 1, [0, 2], method)
        again = rt.Explanation.load(why.save(tmp_path / "why.safetensors"))
        assert torch.equal(again.heatmap(), why.heatmap())
        assert (again.tokens, str(again), again.names) == (why.tokens, str(why), why.names)
        assert len(why.save(tmp_path / "why.png").read_bytes()) > 10_000
        page = why.save(tmp_path / "why.html").read_text()
        assert f"{model.inputs.one} 1" in page
        for sample, shown in enumerate(cases_of(page)):
            for q, map_ in enumerate(maps_of(shown).values()):
                raw = why.attribution[sample, q].float().numpy()
                raw = raw.sum(0) if raw.ndim > len(map_.shape) else raw
                np.testing.assert_allclose(map_, raw, atol=np.abs(raw).max() / 254 + 1e-9)
        assert "<img" in why._repr_html_()
        for sample, panel in enumerate(why.panels()):
            for q, view in enumerate(panel.maps):
                values, heat = np.asarray(view.values), why.heatmap()[sample, q].float().numpy()
                if kind == "signals":
                    np.testing.assert_array_equal(values, heat[None])
                    continue
                owner = draw(np.zeros(x.shape[2:]), why.tokens[sample] if why.tokens else (), range(7))[1]
                np.testing.assert_array_equal(values, np.append(heat, 0.0)[owner].astype(np.float32))


def test_a_map_lies_behind_ink(tmp_path: Path) -> None:
    """Words and lines stay as dark as they are, and paper is coloured as strongly as the map is."""
    image = np.full((2, 4), 255, np.uint8)
    image[0] = 36
    drawn = overlay(image, [[-1.0, 0.0, 0.5, 1.0]] * 2, 1.0, behind=True).astype(int)
    assert drawn[0].max() <= 36
    assert (drawn[1, 1] == 255).all()
    saturation = drawn[1].max(-1) - drawn[1].min(-1)
    assert saturation[3] > saturation[2] > saturation[1] == 0
    assert drawn[1, 0].argmax() == 2
    assert drawn[1, 3].argmax() == 0
    for kind, paper in (("signals", True), ("table", True), ("text", True), ("volumes", False), ("images", False)):
        model, x = of_kind(kind, 1)
        why = rt.explain(model, x, method="ixg")
        assert why.panels()[0].paper == paper
        (shown,) = cases_of(why.save(tmp_path / "why.html").read_text())
        kinds = {"signals": "picture", "images": "picture", "volumes": "volume"}
        assert shown["view"]["kind"] == kinds.get(kind, kind)
        assert shown["view"].get("paper", False) == (kind == "signals")


def test_a_wide_table_shows_the_columns_that_matter() -> None:
    net = nn.Linear(100, 2, bias=False).double()
    with torch.no_grad():
        net.weight[:] = torch.zeros(2, 100)
        net.weight[1, ::10] = 1.0
    model = rt.Model(net, inputs=Table())
    panel = rt.explain(model, torch.ones(1, 100).double(), 1, 0, "ixg").panels()[0]
    values = np.asarray(panel.maps[0].values)
    assert np.asarray(panel.image).shape[:2] == values.shape
    rows = (values > 0).any(1)
    assert (np.diff(rows.astype(int)) == 1).sum() == 10
    words = rt.explain(model, torch.ones(1, 100).double(), 1, 0, "ixg").words(0)
    assert words[10] == ("column 10 = 1", 1.0)
    assert len(words) == 100


def test_columns_are_called_by_their_names() -> None:
    model = linear("table")[0]
    named = model.replace(columns=["age", "income", "c", "d", "e", "f", "g"])
    why = rt.explain(named, torch.tensor([30.0, 42000.0, 0.1, 0, 0, 0, 0]), 1, 2, "ixg")
    assert why.tokens[0][:3] == (" age = 30", " income = 42000", " c = 0.1")
    assert "income = 42000" in why.text(0)


def test_channels_to_show_are_chosen(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.rand(1, 6, 8, 8)
    model = rt.Model(net, channels=6, show=(3, 2, 1))
    why = rt.explain(model, x)
    np.testing.assert_array_equal(why.panels()[0].image, x[0, [3, 2, 1]].permute(1, 2, 0).numpy())
    again = rt.Explanation.load(why.save(tmp_path / "why.safetensors"))
    np.testing.assert_array_equal(again.panels()[0].image, why.panels()[0].image)
    scaled = model.replace(mean=[0.1] * 6, std=[0.5] * 6)
    torch.testing.assert_close(scaled.normalise(x[0]), (x[0] - 0.1) / 0.5)
    mean = rt.explain(rt.Model(net, channels=6), x).panels()[0].image
    np.testing.assert_allclose(mean, x[0].mean(0, keepdim=True).permute(1, 2, 0).numpy())
    for wrong in ((6, 0, 1), (0, 1), (-1,)):
        with pytest.raises(rt.InputError, match="show"):
            rt.Model(net, channels=6, show=wrong)


# --------------------------------------------------------------------------------------------- in, and refused
@pytest.mark.parametrize("kind", INPUTS)
def test_tensors_arrays_and_lists_are_one(kind: str) -> None:
    model, x, _, _ = linear(kind)
    expected = rt.explain(model, x, 1, 2, "ixg")
    one = x[0]
    for given in (x.numpy(), list(x), [each.numpy() for each in x], [each[None] for each in x]):
        assert torch.equal(rt.explain(model, given, 1, 2, "ixg").attribution, expected.attribution)
    for given in (one, one.numpy(), [one]):
        assert torch.equal(rt.explain(model, given, 1, 2, "ixg").attribution, expected.attribution[:1])
    whole = x.round().int()
    assert torch.equal(model.preprocess(whole), whole.double())
    single = rt.Model(model.module.float(), inputs=model.inputs)
    assert single.preprocess(x.numpy()).dtype == torch.float32
    x.zero_()
    assert expected.images.any()


SOLID = nn.Sequential(nn.Conv3d(2, 3, 3), nn.Flatten(), nn.Linear(24, 2))
BARE = {3: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten()), 5: nn.Sequential(nn.Conv3d(2, 3, 3), nn.Flatten())}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: rt.explain(BARE[5], torch.rand(1, 2, 4, 4, 4)), r"say Model\(net, inputs=Volumes\(\)\)"),
        (lambda: rt.explain(BARE[3], torch.rand(1, 2, 9)), r"say Model\(net, inputs=Signals\(\)\)"),
        (lambda: rt.explain(SOLID, torch.rand(2, 4, 4, 4)), r"\(C, D, H, W\), say Model\(net, inputs=Volumes\(\)\)"),
        (lambda: rt.explain(BARE[5], torch.rand(4, 4, 4)), r"a volume \(C, D, H, W\) inputs=Volumes\(\)"),
        (lambda: asked("signals", numbers(2, 9), rt.Lime(superpixels="slic")), r"axes of \(9,\): say 'grid'"),
        (lambda: asked("signals", numbers(2, 9), rt.Lime(superpixels=torch.zeros(8).long())), r"of shape \(8,\) for"),
        (lambda: rt.explain(nn.Linear(3, 2), torch.rand(1, 3), method="occlusion"), r"inputs=Table\(\)"),
        (lambda: asked("volumes", torch.rand(2, 9)), r"shape \(2, 9\): \(N, C, D, H, W\) with N >= 1.*\(C, D, H, W\)"),
        (lambda: asked("signals", torch.rand(0, 2, 9)), r"signals of shape \(0, 2, 9\): \(N, C, T\)"),
        (lambda: asked("table", torch.rand(2, 7, 1)), r"rows of a table of shape \(2, 7, 1\): \(N, F\)"),
        (lambda: asked("signals", torch.full((2, 9), torch.nan)), "the signals hold NaN or infinite"),
        (lambda: asked("signals", torch.rand(3, 9)), "mean has 2 values for signals of shape"),
        (lambda: asked("signals", [numbers(2, 9), numbers(2, 8)]), "signals of different sizes.*one at a time"),
        (lambda: asked("signals", "file.wav"), r"signals are tensors or arrays \(N, C, T\), not str"),
        (lambda: asked("signals", np.array([["a"]])), "signals are arrays of numbers"),
        (lambda: asked("signals", []), "no signals were given"),
        (lambda: asked("signals", torch.rand(1, 2, 9).to(torch.complex64)), "dense real numbers"),
        (lambda: Table(columns=("a", "b")).check(torch.rand(1, 3)), "2 names for 3 columns"),
        (lambda: Signals(std=0.0), "std must be positive"),
        (lambda: Signals(mean="a lot"), "mean of signals"),
        (lambda: asked("signals", numbers(2, 9), rt.Occlusion(size=(3, 3))), "size of occlusion .* each of 1 axes"),
        (lambda: asked("signals", numbers(2, 9), rt.Occlusion(size=10)), "10 pixels does not fit in 9"),
        (lambda: asked("signals", numbers(2, 9), rt.Occlusion(baseline="blur")), "a blur is one of images"),
        (lambda: asked("table", numbers(7), rt.Occlusion(baseline="mean")), "a row has no mean"),
        (lambda: asked("signals", numbers(2, 9), "scan"), "scan is about images; Seen takes signals"),
        (lambda: rt.pertinent_positive(linear("volumes")[0], numbers(2, 4, 6, 5)), "images; Seen takes volumes"),
        (lambda: rt.explain(linear("signals")[0], numbers(2, 8)), "fails on signals of shape"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_remedy(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(rt.RatherThanError, match=message) as refused:
        ask()
    assert "\n" not in str(refused.value)


def asked(kind: str, given: Any, method: Any = "ixg") -> rt.Explanation:
    return rt.explain(linear(kind)[0], given, 1, 2, method)
