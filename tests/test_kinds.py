"""The zoo's networks of signals, films and scenes, and its transformer: their data, their weights, maps of them."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from addresses import kept
from ratherthan import InputError, Region, data, zoo
from ratherthan.data import MadeReader, SceneReader
from ratherthan.zoo.kinds import SceneRecipe
from test_cli import call, complaints

SHIPPED = {name: zoo.get(name) for name in ("beats", "drifts", "scenes", "fashion_mnist_vit")}
MADE = ("beats", "drifts", "scenes")


def write_idx(root: Path) -> Path:
    """A data root whose mnist/ and fashion_mnist/ hold 40 + 20 bright bars of an own length each."""
    for name in ("mnist", "fashion_mnist"):
        (root / name).mkdir(parents=True)
        for stem, count in (("train", 40), ("t10k", 20)):
            images = np.zeros((count, 28, 28), np.uint8)
            for index, image in enumerate(images):
                image[4:24, 10 : 11 + index % 10] = 255
            labels = (np.arange(count) % 10).astype(np.uint8)
            for array, what in ((images, "images-idx3"), (labels, "labels-idx1")):
                sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
                packed = gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
                (root / name / f"{stem}-{what}-ubyte.gz").write_bytes(packed)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("root"))


def stack(dataset: data.Dataset, count: int) -> Tensor:
    return torch.stack([dataset[index][0] for index in range(count)])


# --------------------------------------------------------------------------------------------- the data
@pytest.mark.parametrize("name", MADE)
def test_made_samples_follow_from_their_names(root: Path, name: str) -> None:
    one, again, both = (data.load(name, root, split) for split in ("test", "test", "train+test"))
    first = len(both) - len(one)
    assert both.ids[first:] == one.ids
    assert both.labels[first:] == one.labels
    for index in (0, 7, 11):
        assert torch.equal(one[index][0], again[index][0])
        assert torch.equal(one[index][0], both[first + index][0])
    assert not torch.equal(one[0][0], both[0][0])
    assert one.subset([3, 4]).fingerprint() == again.subset([3, 4]).fingerprint() != one.subset([3, 5]).fingerprint()
    with pytest.raises(InputError, match=f"split of {name}"):
        data.load(name, root, "valid")


def test_beats_are_what_they_are_called() -> None:
    beats = data.load("beats")  # needs no files
    for index in range(30):
        (lead, _), name = beats[index][0].numpy(), beats.class_names[beats.labels[index]]
        peaks = [t for t in range(40, 280) if lead[t] == lead[t - 20 : t + 20].max() and lead[t] > 0.6]
        assert 1 <= len(peaks) <= 3
        width = np.mean([(lead[t - 20 : t + 20] > lead[t] / 2).sum() for t in peaks])
        before = np.mean([lead[t - 26 : t - 21].mean() for t in peaks])  # 0.16 s
        assert (width > 8) == (name == "wide QRS")
        assert (before < 0.06) == (name == "no P wave")


def test_every_frame_of_a_drift_is_the_last_one_moved(root: Path) -> None:
    drifts = data.load("drifts", root)
    moves = {"left": (0, -2), "right": (0, 2), "up": (-2, 0), "down": (2, 0)}
    for index in range(8):
        frames, step = drifts[index][0][0], moves[drifts.class_names[drifts.labels[index]]]
        assert frames[0].sum() > 0
        for before, after in itertools.pairwise(frames):
            assert torch.equal(torch.roll(before, step, (0, 1)), after)


def test_scenes_know_what_every_pixel_belongs_to(root: Path) -> None:
    scenes = data.load("scenes", root)
    assert scenes.class_names[:2] == ("ground", "0")
    assert scenes.class_names[11:] == ("trouser", "pullover", "dress", "sneaker", "bag")
    length = {**{1 + digit: 1 + digit for digit in range(10)}, 11: 2, 12: 3, 13: 4, 14: 8, 15: 9}  # of the bars
    reader, seen = scenes.reader, set()
    assert isinstance(reader, SceneReader)
    for index in range(60):
        classes, things = reader.classes(index), 0
        for quarter in itertools.product((slice(0, 32), slice(32, 64)), repeat=2):
            labels = set(classes[quarter].unique().tolist()) - {0}
            assert len(labels) < 2
            for label in labels:
                rows, columns = (each.tolist() for each in classes[quarter].nonzero(as_tuple=True))
                things += 1
                seen.add(label)
                assert len(rows) == 20 * length[label]
                assert 4 <= min(rows) <= 8
                assert max(rows) == min(rows) + 19
                assert 10 <= min(columns) <= 14
                assert max(columns) == min(columns) + length[label] - 1
        assert 2 <= things <= 4
        image = scenes[index][0][0]
        assert 0 <= image.min() <= image.max() <= 1
        assert image[classes > 0].min() > 0.68
        assert image[classes == 0].mean() < 0.5
    assert seen == set(range(1, 16))


# --------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("name", SHIPPED)
def test_every_kind_is_trained_and_its_card_tells_the_truth(root: Path, tmp_path: Path, name: str) -> None:
    out = rt.train(f"zoo:{name}", root, tmp_path / "w.safetensors", epochs=1, limit=16)
    card, entry = json.loads(out.with_suffix(".json").read_text()), SHIPPED[name]
    test = data.load(entry.recipe.dataset, root, "test")  # type: ignore[union-attr]
    model = rt.load(f"zoo:{name}", weights=out)
    assert model.class_names == test.class_names
    right = 0.0
    for index in range(16):
        truth = test.reader.classes(index) if isinstance(test.reader, SceneReader) else torch.tensor(test.labels[index])
        given = model.module(model.inputs.normalise(test[index][0][None])).argmax(1)[0]
        right += (given == truth).double().mean().item() / 16
    kind = {"beats": "signals", "drifts": "volumes"}.get(name, "images")
    assert card["metrics"]["test"][kind] == 16
    assert card["metrics"]["test"]["accuracy"] == pytest.approx(right)
    assert f"Trained on 16 {kind} of {entry.recipe.dataset}" in out.with_suffix(".md").read_text()  # type: ignore[union-attr]


def test_the_ground_is_calmed_in_the_last_epochs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, loss = list[float](), SceneRecipe.loss

    def noted(recipe: SceneRecipe, logits: Tensor, labels: Tensor) -> Tensor:
        weights.append(recipe.calm)
        return loss(recipe, logits, labels)

    monkeypatch.setattr(SceneRecipe, "loss", noted)
    rt.train("zoo:scenes", root, tmp_path / "w.safetensors", epochs=3, limit=8)
    assert weights == [0, 5, 5]
    logits, labels = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randint(0, 3, (2, 3, 3))
    misfit, varied = 0.0, []
    for place in itertools.product(range(2), range(3), range(3)):
        scores, label = logits[place[0], :, place[1], place[2]], int(labels[place])
        shares = scores.exp() / scores.exp().sum()
        misfit -= float(0.9 * shares[label].log() + 0.1 * shares.log().mean()) / 18
        if label == 0:
            varied.append(float((scores[1:] - scores[1:].mean()).square().sum() / 2))
    found = loss(SceneRecipe("scenes", 1, 1e-3), logits, labels)
    assert float(found) == pytest.approx(misfit + 5 * np.mean(varied))


def test_train_says_what_it_was_tested_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rt, "train", lambda *_, **__: SHIPPED["beats"].weights)
    result = call("train", "zoo:beats", "--out", tmp_path)
    assert result.stdout.startswith("test (600 signals): accuracy ")


# --------------------------------------------------------------------------------------------- what ships
def test_shipped_weights_are_small() -> None:
    sizes = [entry.weights.stat().st_size for entry in SHIPPED.values()]  # type: ignore[union-attr]
    assert max(sizes) < 400_000
    assert sum(sizes) < 800_000


@pytest.mark.parametrize("name", ["beats", "drifts"])
def test_shipped_weights_know_samples_made_afresh(name: str, request: pytest.FixtureRequest) -> None:
    if name != "beats":
        request.getfixturevalue("data_root")
    test = data.load(name)
    assert isinstance(test.reader, MadeReader)
    fresh = MadeReader(tuple(f"test/{number}" for number in range(10**6, 10**6 + 60)), test.reader.make)
    model = rt.load(f"zoo:{name}")
    with torch.no_grad():
        found = model.logits(torch.stack([fresh.read(index) for index in range(60)])).argmax(1)
    truth = torch.tensor([(10**6 + number) % len(test.class_names) for number in range(60)])
    assert (found == truth).float().mean() >= 0.95


def test_shipped_weights_know_scenes_made_afresh(data_root: Path) -> None:
    test = data.load("scenes")
    assert isinstance(test.reader, SceneReader)
    fresh = SceneReader(tuple(f"test/{number}" for number in range(10**6, 10**6 + 40)), test.reader.make)
    model, right = rt.load("zoo:scenes"), [0.0] * 16
    pixels = [0] * 16
    with torch.no_grad():
        for index in range(40):
            classes, found = fresh.classes(index), model.module(fresh.read(index)[None]).argmax(1)[0]
            for label in classes.unique().tolist():
                right[label] += (found == classes)[classes == label].sum().item()
                pixels[label] += int((classes == label).sum())
    assert right[0] / pixels[0] > 0.98
    assert np.mean([r / p for r, p in zip(right[1:], pixels[1:], strict=True) if p]) > 0.8


# --------------------------------------------------------------------------------------------- maps of them
def asked(name: str, count: int, root: Path) -> tuple[rt.Model, Tensor]:
    """The shipped network in float64, and inputs."""
    shipped = rt.load(f"zoo:{name}")
    model = shipped.replace(output=Region((10, 10, 30, 40))) if name == "scenes" else shipped
    model.module.double()
    return model, stack(data.load(SHIPPED[name].recipe.dataset, root), count).double()  # type: ignore[union-attr]


def contrast(model: rt.Model, x: Tensor) -> Tensor:
    """Class 1 against class 2."""
    seen = x if model.inputs.mean is None else (x - model.inputs.mean[0]) / model.inputs.std[0]  # type: ignore[attr-defined]
    scores = model.module(seen)
    scores = scores[:, :, 10:40, 10:30].mean((2, 3)) if isinstance(model.output, Region) else scores
    return scores[:, 1] - scores[:, 2]


@pytest.mark.parametrize("name", SHIPPED)
def test_maps_equal_autograd(root: Path, name: str) -> None:
    model, x = asked(name, 2, root)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(contrast(model, leaf).sum(), leaf)
    assert gradient.abs().max() > 1e-6
    for method, expected in (("gradient", gradient), ("ixg", x * gradient)):
        found = rt.explain(model, x, 1, 2, method).attribution
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    layer = SHIPPED[name].layer or ""
    activation, value = kept(model.module, layer, lambda: contrast(model, leaf))
    (slope,) = torch.autograd.grad(value.sum(), activation)
    activation = activation.detach()
    if name == "fashion_mnist_vit":  # the class token is the first; 7 x 7 patches follow
        activation, slope = (each[:, 1:].transpose(1, 2).unflatten(2, (7, 7)) for each in (activation, slope))
    plane = tuple(range(2, slope.ndim))
    for method, weights in (("la", slope), ("gradcam", slope.mean(plane, keepdim=True))):
        why = rt.explain(model, x, 1, 2, method)
        assert why.layer == layer
        torch.testing.assert_close(why.attribution, (weights * activation).sum(1), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", SHIPPED)
def test_deeplift_shares_out_the_change_from_black(root: Path, name: str) -> None:
    model, x = asked(name, 2, root)
    found = rt.explain(model, x, 1, 2, "deeplift").attribution.flatten(1).sum(1)
    with torch.no_grad():
        change = contrast(model, x) - contrast(model, torch.zeros_like(x))
    torch.testing.assert_close(found, change, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_occlusion_equals_a_loop(root: Path, name: str) -> None:
    model, x = asked(name, 1, root)
    size = {"beats": (50,), "drifts": (3, 20, 20), "scenes": (32, 32)}.get(name, (14, 14))
    method = rt.Occlusion(size=size, stride=size, baseline=0.25)
    found = rt.explain(model, x, 1, 2, method).attribution[0, 0]
    with torch.no_grad():
        for corner in np.ndindex(*(math.ceil(side / w) for side, w in zip(x.shape[2:], size, strict=True))):
            window = tuple(slice(c * w, (c + 1) * w) for c, w in zip(corner, size, strict=True))
            covered = x.clone()
            covered[(slice(None), slice(None), *window)] = 0.25
            drop = contrast(model, x) - contrast(model, covered)
            torch.testing.assert_close(found[window], drop.expand_as(found[window]).to(found), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["beats", "drifts"])
def test_lrp_0_of_rectified_convolutions_is_input_times_gradient(root: Path, name: str) -> None:
    model, x = asked(name, 2, root)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(contrast(model, leaf).sum(), leaf)
    torch.testing.assert_close(rt.explain(model, x, 1, 2, rt.LRP("z")).attribution, x * gradient, rtol=1e-7, atol=1e-9)


def test_lrp_of_the_transformer_is_that_of_achtibat(root: Path) -> None:
    """Input times gradient, where the norm's divisor is constant, products halve, and GELU hands on all it is given."""
    model, x = asked("fashion_mnist_vit", 2, root)
    net: Any = model.module

    def halved(product: Tensor) -> Tensor:
        return product / 2 + product.detach() / 2

    def norm(layer: nn.LayerNorm, tokens: Tensor) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        divisor = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt().detach()
        return centred / divisor * layer.weight + layer.bias

    def gelu(hidden: Tensor) -> Tensor:
        return hidden * (nn.functional.gelu(hidden) / hidden).detach()

    seen = ((x - 0.286) / 0.353).requires_grad_()
    tokens = net.patches(seen).flatten(2).transpose(1, 2)
    tokens = torch.cat([net.token.expand(len(x), -1, -1), tokens], 1) + net.places
    for block in net.blocks:
        rows = block.attention_in(norm(block.norm1, tokens))
        q, k, v = (part.unflatten(2, (4, 12)).transpose(1, 2) for part in rows.split(48, 2))
        attention = (halved(q @ k.transpose(2, 3)) / math.sqrt(12)).softmax(3)
        mixed = halved(attention @ v).transpose(1, 2).flatten(2)
        tokens = tokens + block.attention_out(mixed)
        first, _, last = block.mlp
        tokens = tokens + last(gelu(first(norm(block.norm2, tokens))))
    logits = net.head(norm(net.norm, tokens[:, 0]))
    torch.testing.assert_close(logits, model.logits(x), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 2]).sum(), seen)
    expected = seen.detach() * gradient
    found = rt.explain(model, x, 1, 2, rt.LRP("z")).attribution
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_what_speaks_for_an_object_lies_on_its_strokes(data_root: Path) -> None:
    """Asked in a box "why this, rather than the object whose score is the next?"; docs/results/scenes.md has it all."""
    scenes, model, shares = data.load("scenes"), rt.load("zoo:scenes"), []
    for index in range(40):
        image, classes = scenes[index][0][None], scenes.reader.classes(index)[:32, :32]  # type: ignore[attr-defined]
        if not classes.any():
            continue
        strokes, fact = classes > 0, int(classes.max())
        with torch.no_grad():
            scores = model.module(image)[0, :, :32, :32][:, strokes].mean(1)
        scores[0] = -torch.inf  # of the ground
        first, second = scores.topk(2).indices.tolist()
        if first == fact:
            there = model.replace(output=Region((0, 0, 32, 32)))
            positive = rt.explain(there, image, fact, second, "la").heatmap()[0].clamp_min(0)
            shares.append(float(positive[:32, :32][strokes].sum() / positive.sum()))
            assert strokes.sum() < 0.2 * positive.numel()
    assert len(shares) >= 20
    assert np.mean(shares) >= 0.9


def test_scenes_ask_where() -> None:
    scene = torch.rand(1, 1, 64, 64)
    with pytest.raises(rt.ModelError, match=r"of a segmentation say where, output=Region\(\(x, y\)\)") as refused:
        rt.explain(rt.load("zoo:scenes"), scene)
    assert "\n" not in str(refused.value)


# --------------------------------------------------------------------------------------------- the command line
@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    beats = stack(data.load("beats"), 4).numpy()
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "one.npy", beats[0])
    np.savez(folder / "three.npz", a=beats[1], b=beats[2:])
    return folder


def test_files_of_arrays_are_what_the_api_is_given(arrays: Path, tmp_path: Path) -> None:
    result = call("explain", arrays, "-m", "zoo:beats", "--foil", "each", "--method", "la", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    saved = rt.Explanation.load(tmp_path / "out" / "explanation.safetensors")
    expected = rt.explain(rt.load("zoo:beats"), stack(data.load("beats"), 4), foil="each", method="la")
    torch.testing.assert_close(saved.attribution, expected.attribution)
    assert saved.names == tuple(f"{arrays}/{name}" for name in ("one.npy", *(f"three.npz[{i}]" for i in range(3))))
    pictures = ["one.why.png", "three-2.why.png", "three-3.why.png", "three.why.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == pictures


def test_files_that_are_no_signals_are_one_line_each(arrays: Path) -> None:
    (arrays / "text.npy").write_text("no array")
    (arrays / "half.npz").write_bytes((arrays / "three.npz").read_bytes()[:2000])
    (arrays / "picture.png").write_bytes(b"\x89PNG")
    np.save(arrays / "object.npy", np.array([{}], object), allow_pickle=True)
    np.save(arrays / "flat.npy", np.zeros(300))
    np.save(arrays / "short.npy", np.zeros((2, 200)))
    np.save(arrays / "holes.npy", np.full((2, 300), np.nan))
    names = (
        "one.npy",
        "text.npy",
        "half.npz",
        "picture.png",
        "object.npy",
        "flat.npy",
        "short.npy",
        "holes.npy",
        "x.npy",
    )
    result = call("explain", *(arrays / name for name in names), "-m", "zoo:beats", "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert [row["sample"] for row in told["explanations"]] == [str(arrays / "one.npy")]
    reasons = {Path(each["image"]).name: each["reason"] for each in told["failures"]}
    assert set(reasons) == set(names[1:])
    for name in ("text.npy", "half.npz", "picture.png", "object.npy"):
        assert reasons[name] == "no .npy or .npz of signals (N, C, T)"
    assert "signals of shape (300,): (N, C, T)" in reasons["flat.npy"]
    assert reasons["short.npy"] == "shape (2, 200), the first signal (2, 300); ask one at a time"
    assert "NaN" in reasons["holes.npy"]
    assert "cannot be read" in reasons["x.npy"]


def test_sets_of_signals_and_what_is_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    result = call("explain", "-m", "zoo:beats", "--data", "beats", "--only", "right", "--limit", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("any of the 2 others") == 3
    assert complaints(call("explain", "-m", "zoo:beats", "--text", "hello")) == [
        "zoo:beats takes signals: leave --text and --continuation out"
    ]
    assert complaints(call("explain", "-m", "zoo:beats")) == ["give signals, or a set of them by --data"]
    (tmp_path / "empty").mkdir()
    assert complaints(call("explain", tmp_path / "empty", "-m", "zoo:beats"))[0].endswith(
        "no .npy or .npz in this folder"
    )


def test_a_region_is_named_on_the_command_line(root: Path, tmp_path: Path) -> None:
    asked = ("explain", "-m", "zoo:scenes", "--data", "scenes", "--data-root", root, "--limit", 1, "--method", "la")
    result = call(*asked, "--fact", "3", "--foil", "8", "--region", "10,12,30,40", "--out", tmp_path / "a.safetensors")
    assert result.exit_code == 0, result.output
    model = rt.load("zoo:scenes", output=Region((10, 12, 30, 40)))
    expected = rt.explain(model, stack(data.load("scenes", root), 1), "3", "8", "la")
    saved = rt.Explanation.load(tmp_path / "a.safetensors")
    torch.testing.assert_close(saved.attribution, expected.attribution)
    (complaint,) = complaints(call(*asked, "--region", "here"))
    assert complaint.startswith("a region is a point (x, y), a box (left, top, right, bottom)")
