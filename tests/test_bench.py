"""FoilBench: its truths against the networks themselves, its measures against loops."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import ArrayReader, Dataset
from ratherthan.evaluation.bench import RandomMaps, any_other, tasks
from ratherthan.evaluation.bench.known import auc
from ratherthan.model import fingerprint

SETTING = tasks.Setting(6, 3, Path("nowhere"), None)


def stacked(images: Dataset) -> Tensor:
    return torch.stack([images[i][0] for i in range(len(images))])


# --------------------------------------------------------------------------------------------- truths
@pytest.mark.parametrize("name", ["exact", "placed", "saturated"])
def test_what_is_known_of_a_cell_is_what_the_lead_loses_with_it(name: str) -> None:
    """Cells of a network that adds them up: taken away one by one they tell all that there is to know."""
    experiment, model, images = tasks.TASKS[name].build(SETTING)
    size, grey = tasks.CELL, tasks.GREY / 255
    kinds = set()
    for i, name_of in enumerate(images.ids):
        truth, image = experiment.truth[name_of], images[i][0].double()  # type: ignore[attr-defined]
        variants = [image]
        for row, column in product(range(tasks.GRID), repeat=2):
            without = image.clone()
            without[:, row * size : (row + 1) * size, column * size : (column + 1) * size] = grey
            variants.append(without)
        with torch.no_grad():
            scores = model.module(torch.stack(variants))
        lead = scores[:, truth.fact] - scores[:, truth.foil]
        lost = (scores[0] - scores[1:]).reshape(tasks.GRID, tasks.GRID, -1)
        np.testing.assert_allclose((lead[0] - lead[1:]).reshape(tasks.GRID, -1), truth.cells, atol=1e-6)
        assert float(lead[0]) == pytest.approx(truth.cells.sum(), abs=1e-5)
        for_both = (lost[..., truth.fact] > 1e-6) & (lost[..., truth.foil] > 1e-6)
        assert for_both.tolist() == truth.shared.tolist()
        kinds |= {np.sign(value) for value in truth.cells[~truth.shared]}
        assert truth.shared.any()
    assert kinds == {-1, 0, 1}


def test_what_methods_reach_where_the_map_is_known(tmp_path: Path) -> None:
    """Input x gradient is exact where a network is a sum of ReLUs, and DeepLIFT where it saturates, too."""
    found = rt.bench(tmp_path, tasks=["exact", "saturated"], methods=["random", "ixg", "deeplift"], samples=12)
    means = {
        task: run.summary().set_index(["method", "contrast", "measure"])["mean"] for task, run in found.runs.items()
    }
    for measure in ("cosine", "fact", "foil", "shared"):
        assert means["exact"]["ixg", "weighted", measure] == pytest.approx(1, abs=1e-9)
        assert means["saturated"]["deeplift", "weighted", measure] == pytest.approx(1, abs=1e-6)
        assert means["saturated"]["ixg", "weighted", measure] < 0.9
        chance = 0 if measure == "cosine" else 0.5
        assert means["exact"]["random", "weighted", measure] == pytest.approx(chance, abs=0.2)
    plain = means["exact"].sort_index()["ixg", "none"]
    assert plain["fact"] == 1
    assert plain["foil"] == 0.5
    assert plain["shared"] == pytest.approx(0.5, abs=0.1)
    assert means["exact"]["ixg", "any_other", "cosine"] < 0.7  # another question


def each_digit_in_its_grey(split: str, root: Any, count: int) -> dict[int, np.ndarray]:
    return {digit: np.full((1, tasks.SIDE, tasks.SIDE), 20 * (digit + 1), np.uint8) for digit in range(10)}


def test_composed_digits_lie_where_the_truth_says_and_the_shared_one_cancels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_digits", each_digit_in_its_grey)
    monkeypatch.setattr(tasks, "_SHOWN_TO_IT", 60)
    setting = SETTING._replace(folder=tmp_path, samples=20)
    experiment, model, images = tasks.TASKS["parts"].build(setting)
    for i, name in enumerate(images.ids):
        truth, image = experiment.truth[name], images[i][0]  # type: ignore[attr-defined]
        shown = {
            (row, column): round(float(image[0, row * 16 + 8, column * 16 + 8]) * 255 / 20) - 1
            for row, column in product(range(2), repeat=2)
        }
        ours, theirs = (set(map(int, images.class_names[each].split(" and "))) for each in (truth.fact, truth.foil))
        for (row, column), digit in shown.items():
            side = int(digit in ours) - int(digit in theirs)
            assert side == truth.cells[row, column]
            assert (digit in ours and digit in theirs) == truth.shared[row, column]
        assert sorted(truth.cells.flatten().tolist()) == [-1, 0, 0, 1]
        with torch.no_grad():
            scores, found = model.module(image[None])[0], model.module[0](image[None])[0]  # type: ignore[index, operator]
        (our,), (their,) = ours - theirs, theirs - ours
        lead = 40 * (found[tasks.PARTS.index(our)] - found[tasks.PARTS.index(their)])
        assert float(scores[truth.fact] - scores[truth.foil]) == pytest.approx(float(lead), abs=1e-4)
    kept = (tmp_path / "parts-3.safetensors").read_bytes()
    again = tasks.TASKS["parts"].build(setting)[1]
    assert fingerprint(again.module) == fingerprint(model.module)
    assert (tmp_path / "parts-3.safetensors").read_bytes() == kept


def test_the_quarters_of_a_mosaic_are_what_the_truth_says(monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = Dataset("p", tuple("abcdefgh"), ("x",), (0,), ArrayReader(np.zeros((1, 4, 4, 3), np.uint8)))
    model = rt.Model(nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), size=4)
    recognised = [(torch.full((3, 2, 2), label / 10), label) for label in range(8)]
    monkeypatch.setattr(tasks, "_photographer", lambda root: model)
    monkeypatch.setattr(tasks.data, "load", lambda name, root: photographs)
    monkeypatch.setattr(tasks, "_recognised", lambda *given: iter(recognised))
    experiment, _, images = tasks.TASKS["mosaic"].build(SETTING)
    for i, name in enumerate(images.ids):
        truth = experiment.truth[name]  # type: ignore[attr-defined]
        shown = (images[i][0][0, ::2, ::2] * 10).round().int()
        assert shown[truth.cells == 1].tolist() == [truth.fact]
        assert shown[truth.cells == -1].tolist() == [truth.foil]
        assert len(set(shown.flatten().tolist())) == 4
        assert not truth.shared.any()


# --------------------------------------------------------------------------------------------- measures
def test_auc_is_a_count_of_pairs() -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.integers(0, 4, (5, 9)).astype(float))
    ours, others = (torch.from_numpy(random.random((5, 9)) < 0.5) for _ in range(2))
    others[4] = False
    for i, found in enumerate(auc(values, ours, others).tolist()):
        pairs = [(values[i, a], values[i, b]) for a in range(9) for b in range(9) if ours[i, a] and others[i, b]]
        counted = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
        assert found == pytest.approx(np.mean(counted)) if pairs else np.isnan(found)
    tie = torch.tensor([[1.0, 1.0 + 1e-8, 0.0]])
    assert auc(tie, torch.tensor([[True, False, False]]), torch.tensor([[False, True, False]])).item() == 0.5


TRUTH = rt.Truth(1, 2, [[3.0, 0.0], [-1.0, 0.0]], [[False, True], [False, False]])


def known(maps: Any, tmp_path: Path, label: str = "it", **more: Any) -> Any:
    data = Dataset("one", tuple("abc"), ("s",), (0,), ArrayReader(np.full((1, 4, 4, 1), 99, np.uint8)))
    model = rt.Model(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 3)))
    settings: dict[str, Any] = {"methods": [rt.Peer(label, maps)], "contrasts": ["weighted"], **more}
    return rt.evaluate(rt.KnownAnswer({"s": TRUTH}), model, data, out=tmp_path, **settings).to_frame()


@pytest.mark.parametrize(
    ("cells", "cosine", "fact", "foil", "shared"),
    [
        ([[3.0, 0.0], [-1.0, 0.0]], 1.0, 1.0, 1.0, 1.0),
        ([[1.0, 1.0], [0.0, 0.0]], 3 / np.sqrt(20), 1.0, 0.5, 0.5),  # a plain map
        ([[0.0, 0.0], [0.0, 0.0]], 0.0, 0.5, 0.5, 0.5),
        ([[-3.0, 0.0], [1.0, 0.0]], -1.0, 0.0, 0.0, 0.0),
    ],
)
def test_measures_of_maps_that_are_known(
    cells: Any, cosine: float, fact: float, foil: float, shared: float, tmp_path: Path
) -> None:
    whole = torch.tensor(cells).repeat_interleave(2, 0).repeat_interleave(2, 1)
    row = known(lambda module, images, fact, foil: whole[None], tmp_path).iloc[0]
    assert row[["cosine", "fact", "foil", "shared"]].tolist() == pytest.approx([cosine, fact, foil, shared], abs=1e-6)


# --------------------------------------------------------------------------------------------- contestants
def test_a_peer_is_asked_what_the_contrast_asks_and_leaves_nothing_behind(tmp_path: Path) -> None:
    asked, grown = [], []

    def maps(module: nn.Module, images: Tensor, fact: Tensor, foil: Tensor | None) -> Tensor:
        asked.append((fact.tolist(), None if foil is None else foil.tolist()))
        module(images).sum().backward()
        grown.append(module[0].weight.grad is not None)  # type: ignore[index, union-attr]
        return images[:, 0]

    model = rt.Model(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 3)), mean=(0.5,), std=(0.5,))
    before = torch.ones_like(model.module[0].weight)  # type: ignore[index, arg-type]
    model.module[0].weight.grad = before  # type: ignore[index, union-attr]
    images = torch.rand(2, 1, 4, 4)
    for contrast in ("none", "weighted", any_other):
        why = rt.explain(model, images, torch.tensor([1, 2]), torch.tensor([0, 0]), rt.Peer("it", maps), contrast)
        torch.testing.assert_close(why.attribution, (images[:, 0] - 0.5) / 0.5)  # as the network sees them
    assert asked == [([1, 2], None), ([1, 2], [0, 0]), ([1, 2], [-1, -1])]
    assert all(grown)
    gradients = [each.grad for each in model.module.parameters()]
    assert gradients[0] is before
    assert before.eq(1).all()
    assert gradients[1:] == [None] * 3
    with pytest.raises(rt.InputError, match=r"it gives maps of shape \(2, 1, 4, 4\), not \(2, h, w\)"):
        rt.explain(model, images, 0, 1, rt.Peer("it", lambda module, images, fact, foil: images))
    with pytest.raises(rt.InputError, match="peer has no function"):
        rt.explain(model, images, 0, 1, rt.Peer())


def test_noise_depends_on_the_image_and_the_question_alone() -> None:
    model = rt.Model(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(128, 3)))
    images = torch.rand(3, 1, 8, 8)
    maps = rt.explain(model, images, 1, 2, RandomMaps()).attribution
    torch.testing.assert_close(rt.explain(model, images[1:2], 1, 2, RandomMaps()).attribution[0], maps[1])
    for fact, foil in ((0, 2), (1, 0)):
        other = rt.explain(model, images, fact, foil, RandomMaps()).attribution
        assert abs(torch.corrcoef(torch.stack([other.flatten(), maps.flatten()]))[0, 1]) < 0.25
    assert abs(torch.corrcoef(maps.flatten(1))[0, 1]) < 0.4


# --------------------------------------------------------------------------------------------- the whole
def test_the_same_call_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    def go(**more: Any) -> rt.Bench:
        asked: dict[str, Any] = {"tasks": ["exact"], "methods": ["random", "ixg"], "samples": 12, **more}
        return rt.bench(tmp_path, **asked)

    whole = go().to_markdown()
    first, second = (tmp_path / "exact" / f"shard-0000{i}.parquet" for i in range(2))
    second.unlink()
    before = first.stat().st_mtime_ns
    assert go().to_markdown() == whole
    assert (first.stat().st_mtime_ns, second.exists()) == (before, True)
    with pytest.raises(rt.InputError, match="results are not mixed"):
        go(seed=1)
    with pytest.raises(rt.InputError, match="unknown task 'exakt'"):
        go(tasks=["exakt"])
    with pytest.raises(rt.InputError, match="unknown method"):
        go(methods=["ixgg"])


def test_the_table_ranks_all_and_sets_weighted_against_plain(tmp_path: Path) -> None:
    exact = ["random", "ixg", "la"]
    found = rt.bench(tmp_path, tasks=["exact", "placed"], methods=exact, samples=10)
    summary, frame = found.summary(), found.runs["exact"].to_frame()
    wide = frame.pivot(index="position", columns=["method", "contrast"], values="cosine")
    for row in summary[summary["task"] == "exact"].itertuples():
        mine = wide[row.method, row.contrast]
        higher, equal = wide.gt(mine, axis=0).sum(axis=1), wide.eq(mine, axis=0).sum(axis=1)
        assert row.rank == pytest.approx((higher + (equal + 1) / 2).mean())
        assert row.mean == pytest.approx(mine.mean())
    gain = found.gains().set_index(["task", "method"])["mean"]["exact", "ixg"]
    assert gain == pytest.approx((wide["ixg", "weighted"] - wide["ixg", "none"]).mean())
    text = found.save(tmp_path / "it.md").read_text()
    assert "| Input × Gradient | weighted | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) | 1." in text
    assert "reaches 0 in exact, 0 in placed" in text
    _, model, images = tasks.TASKS["exact"].build(SETTING)
    alike = rt.evaluate("class-sensitivity", model, images, out=tmp_path / "alike", methods=["ixg"])
    lines = rt.Bench({**found.runs, "sensitivity": alike}).to_markdown().splitlines()
    ranked = [line.split(" | ")[-1] for line in text.splitlines()[2:11]]
    assert [line.split(" | ")[-1] for line in lines[2:11]] == ranked  # what has no truth ranks nobody
    assert lines[2].split(" | ")[-2] == "-"
    assert any("Of sensitivity lower is better." in line for line in lines)
    with pytest.raises(rt.InputError, match=r"end it in \.md"):
        found.save(tmp_path / "it.png")


def test_a_method_that_refuses_a_network_is_left_out_with_a_warning(tmp_path: Path) -> None:
    def refusing(*asked: object) -> Tensor:
        raise rt.UnsupportedError("no rule for it")

    with pytest.warns(UserWarning, match="that is left out of exact: no rule for it"):
        found = rt.bench(tmp_path / "a", tasks=["exact"], methods=["ixg", rt.Peer("that", refusing)], samples=2)
    assert list(found.summary()["method"].unique()) == ["ixg"]
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(rt.InputError, match="no method that was named can do exact"),
    ):
        rt.bench(tmp_path / "b", tasks=["exact"], methods=[rt.Peer("that", refusing)], samples=2)
