"""What an audit says of a data set, against counts by hand and networks whose reasons are known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import ratherthan as rt
from pages import cases_of
from ratherthan.app.cli import app
from ratherthan.auditing.atlas import parted
from ratherthan.errors import InputError

NAMES = ("ant", "bee", "cow")
SIDE, COUNT = 10, 90


def linear(weight: torch.Tensor) -> rt.Model:
    """Three classes of grey images, scores linear in the pixels."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 3))
    net[1].weight.data, net[1].bias.data = weight.reshape(3, -1), torch.zeros(3)
    return rt.Model(net, list(NAMES), channels=1, mean=(0.0,), std=(1.0,))


def by_lines() -> torch.Tensor:
    """Looks for bright rows at the top, in the middle, at the bottom."""
    weight = torch.zeros(3, SIDE, SIDE)
    weight[0, :3], weight[1, 3:7], weight[2, 7:] = 1 / 3, 1 / 4, 1 / 3
    return weight


def pictures(mark: int | None = None, seed: int = 0) -> rt.Dataset:
    """Bright rows by class, noise everywhere, some labels wrong; images of one class with a mark in the corner."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, COUNT)
    pixels = random.integers(0, 60, (COUNT, SIDE, SIDE)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[{0: slice(0, 3), 1: slice(3, 7), 2: slice(7, 10)}[int(label)], 3:] += random.integers(
            20, 120, dtype=np.uint8
        )
    pixels[:, :2, :2] //= 3
    pixels[labels == mark, :2, :2] = 255
    given = np.where(random.random(COUNT) < 0.1, (labels + 1) % 3, labels)
    names = tuple(f"i{i}" for i in range(COUNT))
    return rt.Dataset("lines", NAMES, names, tuple(given.tolist()), rt.data.ArrayReader(pixels))


def marked() -> torch.Tensor:
    """The same, but a bee is what has a bright corner."""
    weight = by_lines()
    weight[1, :2, :2] += 6
    return weight


def go(folder: Path, weight: torch.Tensor, data: rt.Dataset, **more: Any) -> rt.Audit:
    settings: dict[str, Any] = {"method": "ixg", "cells": 5, "shard_size": 16} | more
    return rt.audit(linear(weight), data, out=folder, **settings)


def tensors(data: rt.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([data[i][0] for i in range(len(data))]), torch.tensor(data.labels)


def test_rows_are_those_computed_by_hand(tmp_path: Path) -> None:
    data, weight = pictures(), by_lines()
    found = go(tmp_path, weight, data)
    images, labels = tensors(data)
    logits = (images[:, 0, None] * weight).sum((2, 3)).double()
    p = logits.softmax(1)
    frame = found.to_frame()
    assert len(frame) == COUNT
    assert 3 < frame["wrong"].sum() < 40
    for i, row in enumerate(frame.itertuples()):
        said, second = logits[i].argsort(descending=True)[:2].tolist()
        foil = second if said == labels[i] else int(labels[i])
        assert (row.sample, row.label, row.said, row.foil) == (f"i{i}", NAMES[labels[i]], NAMES[said], NAMES[foil])
        own = p[i, labels[i]].item()
        assert row.odds == pytest.approx(np.log(own / (1 - own)), abs=1e-5)
        assert row.score == pytest.approx(float(logits[i, said] - logits[i, foil]), abs=1e-5)
        np.testing.assert_allclose([row.p_said, row.p_foil, row.p_label], p[i, [said, foil, labels[i]]], atol=1e-6)
        cells = (images[i, 0] * (weight[said] - weight[foil])).reshape(5, 2, 5, 2).mean((1, 3))
        np.testing.assert_allclose(found._maps([i])[0], cells, atol=1e-6)


def test_confusions_are_counted_and_their_maps_are_means(tmp_path: Path) -> None:
    data = pictures()
    found = go(tmp_path, by_lines(), data)
    frame, table = found.to_frame(), found.confusions()
    wrong = frame[frame["wrong"]]
    counted = Counter(zip(wrong["said"], wrong["label"], strict=True))
    assert dict(counted) == {(row["said"], row["label"]): row["count"] for row in table.to_dict("records")}
    assert list(table["count"]) == sorted(counted.values(), reverse=True)
    labelled = Counter(frame["label"])
    for row in table.to_dict("records"):
        chosen = wrong[(wrong["said"] == row["said"]) & (wrong["label"] == row["label"])]
        assert row["share"] == pytest.approx(row["count"] / labelled[row["label"]])
        assert row["odds"] == pytest.approx(chosen["odds"].mean())
        maps = np.stack([m / np.linalg.norm(m) for m in found._maps(chosen.index.tolist()).numpy()])
        np.testing.assert_allclose(found.map(row["said"], row["label"]), maps.mean(0), atol=1e-6)
        edge = np.ones((5, 5), bool)
        edge[1:-1, 1:-1] = False
        gain = maps.clip(0)
        assert row["border"] == pytest.approx((gain[:, edge].sum(1) / gain.sum((1, 2))).mean(), abs=1e-6)
        likeness = [float((m * maps.mean(0)).sum()) for m in maps]
        assert likeness[list(chosen["sample"]).index(row["typical"])] == pytest.approx(max(likeness), abs=1e-6)
        assert sorted(found.samples(row["said"], row["label"]).ids) == sorted(chosen["sample"])
    with pytest.raises(rt.InputError, match="no class is called 'dog'"):
        found.map("dog", "ant")


def test_relevance_on_the_background_is_what_lies_outside_of_regions(tmp_path: Path) -> None:
    found = go(tmp_path, by_lines(), pictures())
    frame = found.to_frame()
    wrong = frame[frame["wrong"]]
    first = wrong["sample"].iloc[0]
    mask = np.zeros((SIDE, SIDE), bool)
    mask[1:7, 3:] = True  # cells of two pixels are half in it
    for row in found.confusions({first: mask, "*": [[0, 0, 0.6, 1]]}).to_dict("records"):
        chosen = wrong[(wrong["said"] == row["said"]) & (wrong["label"] == row["label"])]
        shares = []
        for index, name in zip(chosen.index, chosen["sample"], strict=True):
            inside = mask if name == first else np.arange(SIDE)[None] < 6 + np.zeros((SIDE, 1))
            cells = inside.reshape(5, 2, 5, 2).mean((1, 3))
            gain = found._maps([index])[0].numpy().clip(0)
            shares.append((gain * (1 - cells)).sum() / gain.sum())
        assert row["background"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert found.confusions({"none of them": [[0, 0, 1, 1]]})["background"].isna().all()
    with pytest.raises(rt.InputError, match=r"region of '.*': give boxes"):
        found.confusions({"*": [[0, 0, 2, 1]]})


def test_suspects_are_ranked_by_the_probability_of_the_label(tmp_path: Path) -> None:
    found = go(tmp_path, by_lines(), pictures())
    frame = found.to_frame()
    assert list(found.suspects()["sample"]) == list(frame.sort_values("p_label", kind="stable")["sample"])
    assert len(found.suspects(5)) == 5
    cleanlab = found.to_cleanlab()
    assert list(cleanlab["is_label_issue"]) == list(frame["wrong"])
    assert list(cleanlab["label_score"]) == list(frame["p_label"])


def test_labels_of_a_network_that_is_sure_are_ranked_without_ties(tmp_path: Path) -> None:
    """Where probabilities round to 0 and 1, log-odds still tell one from another."""
    data = pictures()
    frame = go(tmp_path, 200 * by_lines(), data).to_frame()
    assert frame["p_label"].astype(np.float32).nunique() < COUNT // 2
    assert frame["odds"].nunique() == COUNT
    images, labels = tensors(data)
    logits = (images[:, 0, None] * 200 * by_lines()).sum((2, 3)).double()
    own, others = logits.gather(1, labels[:, None])[:, 0], logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    np.testing.assert_allclose(frame["odds"], own - others, rtol=1e-4, atol=1e-3)


def test_a_mark_that_decides_is_named_and_nothing_else_is(tmp_path: Path) -> None:
    found = go(tmp_path / "marked", marked(), pictures(mark=1))
    first, *others = found.pieces()
    assert first.spurious
    assert (first.said, first.one_place) == ("bee", True)
    rows, columns = first.boxes[0]
    assert (rows, columns) == (slice(0, 2), slice(0, 2))
    assert all(piece.said == "bee" for piece in others if piece.spurious)
    assert "bee is decided by a piece: rows 0 to 1, columns 0 to 1" in str(found)
    clean = go(tmp_path / "clean", by_lines(), pictures())
    assert len(clean.pieces()) == 12
    assert not any(piece.spurious for piece in clean.pieces())
    assert "no piece of 4 % decides by itself" in str(clean)
    with pytest.raises(rt.InputError, match="nothing to repair"):
        clean.repair_set()


def odds(image: torch.Tensor, weight: torch.Tensor) -> float:
    """Log-odds of a bee over all others."""
    p = (image * weight).sum((1, 2)).double().softmax(0)[1].item()
    return float(np.log(p) - np.log1p(-p))


def test_what_a_piece_turns_is_what_a_loop_counts(tmp_path: Path) -> None:
    data, weight = pictures(mark=1), marked()
    found = go(tmp_path, weight, data)
    first = found.pieces()[0]
    images, labels = tensors(data)
    said = (images[:, 0, None] * weight).sum((2, 3)).argmax(1)
    others = [i for i in range(COUNT) if said[i] == labels[i] != 1]
    hosts = [others[i * len(others) // min(64, len(others))] for i in range(min(64, len(others)))]
    turned, gained = 0, list[float]()
    for number, host in enumerate(hosts):
        picture = images[host, 0].clone()
        picture[:2, :2] = images[first.positions[number % len(first.positions)], 0, :2, :2]
        turned += int((picture * weight).sum((1, 2)).argmax() == 1)
        other = images[host, 0].clone()
        other[:2, :2] = images[hosts[number - 1], 0, :2, :2]
        gained.append(odds(picture, weight) - odds(other, weight))
    own, plain = ([odds(images[i, 0], weight) for i in which] for which in (first.positions, hosts))
    assert first.closes == pytest.approx(np.mean(gained) / (np.mean(own) - np.mean(plain)), abs=1e-4)
    assert first.turned == turned / len(hosts)
    assert first.tried == len(hosts)


def test_a_repair_set_parts_the_piece_from_its_class(tmp_path: Path) -> None:
    data = pictures(mark=1)
    found = go(tmp_path, marked(), data)
    images, labels = found.repair_set(found.pieces()[:1], count=10).tensors
    bright = images[:, 0, :2, :2].amin((1, 2)) > 0.9
    assert len(images) == 20
    assert labels[0::2].eq(1).all()
    assert not bright[0::2].any(), "bees without the mark"
    assert labels[1::2].ne(1).all()
    assert bright[1::2].float().mean() > 0.6, "most others with the mark"


def test_a_run_that_was_stopped_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    def stop(done: float, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    data = pictures()
    with pytest.raises(KeyboardInterrupt, match="32 of 90 samples done"):
        go(tmp_path / "stopped", by_lines(), data, progress=stop)
    again = go(tmp_path / "stopped", by_lines(), data, resume=True)
    whole = go(tmp_path / "whole", by_lines(), data, batch_size=7)
    assert again.to_frame().equals(whole.to_frame())
    with pytest.raises(rt.InputError, match="cells: 5 then, 4 now"):
        go(tmp_path / "stopped", by_lines(), data, resume=True, cells=4)


def test_one_forward_pass_per_image(tmp_path: Path) -> None:
    data, seen = pictures(), list[int]()
    model = linear(by_lines())
    model.module.register_forward_hook(lambda module, given, said: seen.append(len(given[0])))
    rt.audit(model, data, out=tmp_path, method="ixg", batch_size=30, shard_size=30)
    assert sum(seen) <= COUNT + 4, "the looks at one image say which layer and which layout"


def test_the_page_and_the_command_say_what_the_api_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonschema import Draft202012Validator

    monkeypatch.chdir(tmp_path)
    data = rt.data.load("digits").spread(60)
    labels = [(label + 1) % 10 if i % 9 == 0 else label for i, label in enumerate(data.labels)]
    for i, label in enumerate(labels):
        folder = tmp_path / "set" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        from PIL import Image

        Image.fromarray((255 * data[i][0][0]).round().byte().numpy()).save(folder / f"{i:02d}.png")
    Path("objects.json").write_text('{"*": [[0.2, 0.2, 0.8, 0.8]]}')
    asked = ["audit", "-m", "zoo:mnist", "--data", "set", "--out", "audited", "--regions", "objects.json"]
    ran = CliRunner().invoke(app, [*asked, "--places", "2", "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    schema = Path(rt.__file__).parent / "app" / "schemas" / "audit.json"
    Draft202012Validator(json.loads(schema.read_text())).validate(told)
    assert told["images"] == 60
    assert {row["sample"].split("/")[1] for row in told["suspects"][:5]} <= {f"{i:02d}.png" for i in range(0, 60, 9)}
    page = Path("audited/audit.html").read_text()
    cases = cases_of(page)
    assert all(case["label"] for case in cases)
    assert f"60 images, {told['wrong']} not as labelled" in page
    assert told["confusions"][0]["typical"] in page
    assert 0 < told["confusions"][0]["background"] < 1
    assert "<th>background</th>" in page
    table = pd.read_csv("audited/images.csv")
    assert [Path(path).relative_to(tmp_path / "set").as_posix() for path in table["path"]] == list(table["sample"])
    pictures = {path.stem for path in Path("audited/atlas").iterdir()}
    assert pictures == {str(said) for said in table["said"]}
    shown = CliRunner().invoke(app, [*asked, "--places", "2", "--resume"])
    assert f"60 images, {told['wrong']} not as labelled" in shown.stdout


# --------------------------------------------------------------------------------------------- two networks
def test_two_networks_are_compared_image_by_image(tmp_path: Path) -> None:
    data, old, new = pictures(), by_lines(), by_lines()
    new[2] -= 0.15  # says cow less often, and ant where bee came second
    new[0] += 0.05
    drift = rt.compare_models(linear(old), linear(new), data, method="ixg", batch_size=16)
    images, labels = tensors(data)
    one, other = ((images[:, 0, None] * weight).sum((2, 3)) for weight in (old, new))
    told = drift.summary()
    before, now = one.argmax(1) == labels, other.argmax(1) == labels
    assert told["changed"] == int((one.argmax(1) != other.argmax(1)).sum()) > 0
    assert (told["broken"], told["mended"]) == (int((before & ~now).sum()), int((~before & now).sum()))
    fact, second = one.topk(2, 1).indices.unbind(1)
    foil = torch.where(other.argmax(1) == fact, second, other.argmax(1))
    for i, row in enumerate(drift.to_frame().itertuples()):
        maps = [(images[i, 0] * (weight[fact[i]] - weight[foil[i]])).flatten().double() for weight in (old, new)]
        assert row.likeness == pytest.approx(float(maps[0] @ maps[1] / maps[0].norm() / maps[1].norm()), abs=1e-5)
        assert row.odds_model == pytest.approx(float(other[i, fact[i]] - other[i, foil[i]]), abs=1e-5)
    page = drift.save(tmp_path / "drift.html").read_text()
    assert len(cases_of(page)) == told["changed"]
    with pytest.raises(rt.InputError, match="same classes"):
        rt.compare_models(linear(old), linear(new).replace(class_names=["x", "y", "z"]), data)


@pytest.mark.parametrize("broken", [0, 6, 7])
def test_a_check_alarms_where_a_count_of_all_signs_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """Of n images that lose alike and others that stay as they are, p is 2 ** -n: at a hundredth seven are enough."""
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((20, 2, 2), np.uint8)
    pixels[:broken] = 200
    (tmp_path / "set.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self, k):\n        super().__init__()\n"
        "        self.k = torch.nn.Parameter(torch.tensor(k))\n    def forward(self, x):\n"
        "        s = x.mean((1, 2, 3)) * self.k\n        return torch.stack([s * 0 + 0.1, s], 1)\n"
        "def old():\n    return Net(0.0)\ndef new():\n    return Net(1.0)\n"
    )
    from PIL import Image

    for i, each in enumerate(pixels):
        (tmp_path / "set" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(tmp_path / "set" / "a" / f"{i}.png")
    (tmp_path / "names.txt").write_text("a\nb\n")
    asked = ["check", "--baseline", "set.py:old", "-m", "set.py:new", "--data", "set", "--classes", "names.txt"]
    asked += ["--method", "ixg", "--preprocessing", "none"]
    ran = CliRunner().invoke(app, [*asked, "--json", "--out", "drift.html"])
    assert ran.stdout, ran.output
    told = json.loads(ran.stdout)
    assert (told["broken"], told["mended"]) == (broken, 0)
    assert told["p"] == pytest.approx(2.0**-broken, abs=3e-3)  # of 9,999 random signs
    new, old = np.exp([0.1, 200 / 255]), np.exp([0.1, 0.0])
    change = new[0] / new.sum() - old[0] / old.sum()
    assert told["gained"] == pytest.approx(change * broken / 20, abs=1e-6)
    assert ran.exit_code == (1 if broken == 7 else 0)
    assert told["worse"] == (broken == 7)


# --------------------------------------------------------------------------------------------- all foils of an image
def test_the_atlas_parts_all_foils_by_where_they_are_decided_from_one_pass_per_image(tmp_path: Path) -> None:
    model, digits = rt.load("zoo:mnist"), rt.data.load("digits").spread(6)
    seen = [0]
    hook = model.module.register_forward_hook(lambda _, images, out: seen.__setitem__(0, seen[0] + len(out)))
    rt.audit(model, digits, out=tmp_path / "without")
    without, seen[0] = seen[0], 0
    found = rt.audit(model, digits, out=tmp_path / "with", places=3)
    hook.remove()
    assert 6 <= seen[0] <= without, "no more passes than without"
    for i, row in enumerate(found._lists(range(6), ["foils", "place", "place_map"])):
        logits = model.logits(model.preprocess(digits[i][0].unsqueeze(0)))[0]
        order = logits.argsort(descending=True).tolist()
        assert row["foils"] == order[1:]
        maps = [rt.explain(model, digits[i][0].unsqueeze(0), order[0], foil).attribution[0] for foil in row["foils"]]
        unit = torch.stack([(each / each.norm()).flatten() for each in maps]).double()
        place = torch.tensor(row["place"])
        many = place.bincount().tolist()
        assert many == sorted(many, reverse=True)
        means = torch.stack([unit[place == at].mean(0) for at in range(len(many))])
        torch.testing.assert_close(
            torch.tensor(row["place_map"], dtype=torch.float64), means.flatten(), atol=1e-4, rtol=0
        )
        within = torch.stack([(unit[n] @ unit[place == at].T).mean() for n, at in enumerate(place)])
        assert within.min() > 0.5, "what is in one place is alike"
    figure = found.atlas(found.said[0], count=1, named=2)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    first = found._rows[found._rows["said"] == found._index(found.said[0])]["position"].iloc[0]
    (row,) = found._lists([first], ["foils", "place"])
    told = titles[1].split("\n")[:2]
    assert told == [f"rather than {row['place'].count(0)} others", str(row["foils"][row["place"].index(0)])]


def test_what_is_alike_is_parted_from_what_is_not() -> None:
    a, b = np.eye(4)[:2]
    maps = np.stack([b, a, a + 1e-3 * b, np.zeros(4), a])
    maps /= np.linalg.norm(maps, axis=1, keepdims=True).clip(1e-12)
    group, means = parted(maps, 3)
    assert group.tolist() == [1, 0, 0, 2, 0] or group.tolist() == [2, 0, 0, 1, 0]
    assert means[0] == pytest.approx(maps[[1, 2, 4]].mean(0))
    assert parted(maps, 3, 0.9)[0].tolist() == [0] * 5, "fewer, where they are near"
    many = np.concatenate([maps] * 300)
    assert (parted(many, 3)[0].reshape(300, 5) == parted(maps, 3)[0]).all(), "the others follow the first thousand"
    assert parted(maps[:1], 3)[0].tolist() == [0]


def test_an_atlas_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    model, digits = rt.load("zoo:mnist"), rt.data.load("digits").spread(3)
    found = rt.audit(model, digits, out=tmp_path / "with", places=3)
    never = next(name for name in map(str, range(10)) if name not in found.said)
    with pytest.raises(InputError, match=f"no image is said to be {never}"):
        found.atlas(never)
    with pytest.raises(InputError, match="--places 4"):
        rt.audit(model, digits, out=tmp_path / "without").atlas(found.said[0])
