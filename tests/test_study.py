"""Studies: the assignment by brute force, what pages tell, and the analysis by hand and by simulation."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jsonschema import validate
from PIL import Image
from scipy.stats import t, ttest_1samp
from torch import Tensor, nn
from typer.testing import CliRunner

import ratherthan as rt
from ratherthan.app import study
from ratherthan.app.cli import app

SIDE, JUDGES = 12, 6
SCHEMAS = Path(study.__file__).parent / "schemas"
NET = """
import torch
from torch import nn


class Sides(nn.Module):
    \"\"\"Class 0 by the brightness on the left, class 1 by that on the right, class 2 by that above.\"\"\"

    def forward(self, x):
        return torch.stack([x[..., :6].sum((1, 2, 3)), x[..., 6:].sum((1, 2, 3)), x[..., :6, :].sum((1, 2, 3)) - 9], 1)


def make():
    return Sides()
"""
scope: dict[str, Any] = {}
exec(NET, scope)


def explained(count: int = 17) -> tuple[rt.Model, list[rt.Explanation]]:
    """Images that are brighter on the left, so that small parts leave it so."""
    images = 0.2 * torch.from_numpy(np.random.default_rng(1).random((count, 1, SIDE, SIDE), dtype=np.float32)) + 0.5
    images[..., :6] += 0.25
    model = rt.Model(scope["make"](), ("left", "right", "above"), channels=1)
    names = [f"secret-{i}.png" for i in range(count)]
    return model, rt.compare(
        model, images, foil="runner-up", methods=["ixg"], contrasts=["none", "weighted"], names=names
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, list[rt.Explanation]]:
    out = tmp_path_factory.mktemp("study") / "out"
    model, results = explained()
    return study.make(results, model, out, JUDGES, bare=True, baseline=0.0, seed=3), out, results


def told(page: Path) -> dict[str, Any]:
    (data,) = re.findall(r'<script type="application/json" id="study">(.*?)</script>', page.read_text(), re.DOTALL)
    return dict(json.loads(data))


# --------------------------------------------------------------------------------------------- who sees what
def test_every_judge_sees_every_image_once_and_conditions_go_round(made: Any) -> None:
    key, _, _ = made
    trials, conditions = key["trials"], key["conditions"]
    assert conditions == ["ixg, none", "ixg, weighted", "no map"]
    seen = {(each["judge"], each["image"]): each["condition"] for each in trials}
    judges, images = range(1, JUDGES + 1), sorted({each["image"] for each in trials})
    assert len(trials) == len(seen) == JUDGES * len(images) == JUDGES * key["images"]
    assert key["images"] + key["left_out"] == 17
    for judge in judges:  # as often as can be
        counts = Counter(seen[judge, image] for image in images)
        assert max(counts.values()) - min(counts[name] for name in conditions) <= 1
        numbers = [each["trial"] for each in trials if each["judge"] == judge]
        assert sorted(numbers) == list(range(1, len(images) + 1))
    for image in images:  # a Latin square: every image under every condition, by three judges in a row
        for first in judges[:-2]:
            assert {seen[judge, image] for judge in range(first, first + 3)} == set(conditions)
    orders = {tuple(each["image"] for each in trials if each["judge"] == judge) for judge in judges}
    assert len(orders) == JUDGES


def test_the_truth_is_what_the_network_says_and_size_does_not_tell_it(made: Any) -> None:
    key, _, results = made
    module, images = scope["make"](), dict(zip(results[0].names, results[0].images, strict=True))

    def says(image: Tensor, part: list[float]) -> str:
        image, (top, left, bottom, right) = image.clone(), (round(each * SIDE) for each in part)
        image[:, top:bottom, left:right] = 0
        return ("left", "right", "above")[int(module(image[None]).argmax())]

    truths = {}
    for each in key["trials"]:
        image, part = images[each["image"]], each["part"]
        assert says(image, part) == each["truth"]
        assert each["fact"] == says(image, [0, 0, 0, 0])
        area = (part[2] - part[0]) * (part[3] - part[1])
        thirds = [(low / 3, high / 3) for low, high in product(range(4), repeat=2) if low < high]
        alike = {
            says(image, [t, left, b, r])
            for (t, b), (left, r) in product(thirds, thirds)
            if abs((b - t) * (r - left) - area) < 1e-9
        }
        assert {each["fact"], each["foil"]} <= alike  # parts as large give either
        truths[each["image"]] = each["truth"] == each["foil"]
    assert 0.3 < sum(truths.values()) / len(truths) < 0.7


def test_half_of_the_truths_are_the_foil_under_every_condition_of_every_judge(tmp_path: Path) -> None:
    """Else one who always says the same would be right under one condition and wrong under another."""
    model, results = explained(16)
    for seed in range(4):
        key = study.make(results, model, tmp_path / str(seed), 2, baseline=0.0, seed=seed)
        for judge, condition in product((1, 2), key["conditions"]):
            own = [each for each in key["trials"] if (each["judge"], each["condition"]) == (judge, condition)]
            assert abs(2 * sum(each["truth"] == each["foil"] for each in own) - len(own)) <= 1


def test_images_of_which_the_network_says_otherwise_or_that_have_no_foil_are_left_out(tmp_path: Path) -> None:
    model, results = explained(12)
    right = [
        rt.explain(model, each.images, fact=0, foil=torch.tensor([1] * 11 + [0]), method="ixg", contrast=each.contrast)
        for each in results
    ]
    assert study.make(right, model, tmp_path / "a", 1, baseline=0.0)["left_out"] == 1
    wrong = rt.explain(model, results[0].images, fact=1, foil=0, method="ixg")
    with pytest.raises(rt.InputError, match="of 12 images 0 can be asked about"):
        study.make([wrong], model, tmp_path / "b", 1, baseline=0.0)


# --------------------------------------------------------------------------------------------- what pages tell
def test_pages_are_blind_and_ask_for_nothing_outside(made: Any) -> None:
    key, out, _ = made
    pages = sorted((out / "pages").glob("*.html"))
    assert [page.name for page in pages] == [f"judge-{judge:02d}.html" for judge in range(1, JUDGES + 1)]
    for page in pages:
        text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page.read_text())
        for secret in (*key["conditions"], "ixg", "weighted", "contrast", "none,", "truth", "secret-", key["model"]):
            assert secret not in text, secret
        assert "default-src 'none'" in text
        assert not re.search(r"https?://(?!www\.w3\.org)", text)
    fields = {name for trial in told(pages[0])["trials"] for name in trial}
    assert fields == {"image", "covered", "map", "fact", "part", "sides"}


def test_a_trial_shows_what_the_key_says(made: Any) -> None:
    key, out, results = made
    images = dict(zip(results[0].names, results[0].images, strict=True))
    sides = set()
    for each in key["trials"]:
        trial = told(out / "pages" / f"judge-{each['judge']:02d}.html")["trials"][each["trial"] - 1]
        assert ("map" in trial) == (each["condition"] != study.BARE)
        assert (trial["part"], trial["fact"]) == (each["part"], each["fact"])
        assert set(trial["sides"]) == {each["fact"], each["foil"]}
        sides.add((trial["sides"][0] == each["truth"], trial["sides"][0] == each["fact"]))
        expected = images[each["image"]][0].clone()
        shown = {
            name: Image.open(io.BytesIO(base64.b64decode(trial[name].partition(",")[2])))
            for name in ("image", "covered")
        }
        assert np.allclose(np.asarray(shown["image"].convert("L")) / 255, expected, atol=0.02)
        top, left, bottom, right = (round(share * SIDE) for share in each["part"])
        expected[top:bottom, left:right] = 0
        assert np.allclose(np.asarray(shown["covered"].convert("L")) / 255, expected, atol=0.02)
    assert len(sides) == 4  # neither the right button nor the fact is always on one side


def test_conditions_differ_in_the_map_only(made: Any) -> None:
    key, out, _ = made
    maps: dict[tuple[str, str], set[str]] = {}
    for each in key["trials"]:
        trial = told(out / "pages" / f"judge-{each['judge']:02d}.html")["trials"][each["trial"] - 1]
        maps.setdefault((each["image"], each["condition"]), set()).add(trial.get("map", ""))
    assert all(len(shown) == 1 for shown in maps.values())
    some = [(maps[image, "ixg, none"], maps[image, "ixg, weighted"]) for image, _ in maps]
    assert all(plain != weighted for plain, weighted in some)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    model, results = explained(4)
    other = rt.explain(model, results[0].images, fact=2, foil=0, method="ixg", names=results[0].names)
    with pytest.raises(rt.InputError, match="of the same images and facts"):
        study.make([results[0], other], model, tmp_path / "out")
    for outputs in (3, 4):
        stranger = rt.Model(nn.Sequential(nn.Flatten(), nn.Linear(144, outputs)), name="stranger")
        with pytest.raises(rt.InputError, match=r"by ixg \(none\) are of another network than stranger"):
            study.make(results, stranger, tmp_path / "out", baseline=0.5)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------- what answers say
KEY = {
    "study": "x", "conditions": ["a", "b"],
    "trials": [
        {"judge": judge, "trial": i + 1, "image": f"i{i}", "condition": "ab"[(i + judge) % 2], "fact": "P", "foil": "Q",
         "truth": "P"}
        for judge in (1, 2, 3) for i in range(4)
    ],
}  # fmt: skip


def answering(judge: int, right: str, study_id: str = "x") -> dict[str, Any]:
    rows = [{"trial": i + 1, "said": "PQ"[mark == "0"], "seconds": 1.0} for i, mark in enumerate(right) if mark != " "]
    return {"study": study_id, "judge": judge, "answers": rows}


def test_accuracies_differences_and_judges_by_hand() -> None:
    # judge 1 sees b a b a, judge 2 a b a b, judge 3 b a b a, and leaves one out
    told = study.marked(KEY, [answering(1, "1101"), answering(2, "1011"), answering(3, "01 1")])
    tables = study.analysed(told, KEY["conditions"])
    rows = tables["accuracies"].set_index("condition")
    assert rows.loc["a", ["accuracy", "answers"]].tolist() == [1.0, 6]
    assert rows.loc["b", ["accuracy", "answers"]].tolist() == [2 / 5, 5]
    (row,) = tables["differences"].to_dict("records")
    assert row["difference"] == pytest.approx(3 / 5)
    own = [1 - 1 / 2, 1 - 1 / 2, 1 - 0 / 1]
    for name, sought in (("005", 0.05), ("010", 0.1), ("020", 0.2)):
        ratio = pd.Series(own).var() / sought**2
        enough = (n for n in range(2, 1000) if (t.ppf(0.975, n - 1) + t.ppf(0.8, n - 1)) ** 2 * ratio <= n)
        assert row[f"judges_{name}"] == next(enough)


def test_so_many_judges_see_the_difference_in_four_of_five_studies() -> None:
    rng = np.random.default_rng(0)
    needed = int(study.judges_needed(rng.normal(0.1, 0.25, 2000), 0.1))
    found = ttest_1samp(rng.normal(0.1, 0.25, (4000, needed)), 0, axis=1).pvalue < 0.05
    assert 0.77 < found.mean() < 0.83
    few = int(study.judges_needed(rng.normal(0.1, 0.08, 2000), 0.1))
    assert 5 <= few <= 8
    assert 0.78 < (ttest_1samp(rng.normal(0.1, 0.08, (4000, few)), 0, axis=1).pvalue < 0.05).mean() < 0.9
    assert np.isnan(study.judges_needed(np.array([0.5, np.nan]), 0.1))


def table_of(right: np.ndarray, condition: np.ndarray) -> pd.DataFrame:
    judge, image = np.indices(right.shape)
    columns = {"judge": judge, "image": image, "condition": np.array(["a", "b"])[condition], "right": right}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


def test_the_interval_is_that_of_a_loop_over_judges_and_images_drawn() -> None:
    rng = np.random.default_rng(2)
    right, condition = rng.random((8, 10)) < 0.7, np.add.outer(np.arange(8), np.arange(10)) % 2
    rows = study.analysed(table_of(right, condition), "ab")["accuracies"].set_index("condition")
    drawn: list[float] = []
    for _ in range(2000):
        judges, images = rng.integers(0, 8, 8), rng.integers(0, 10, 10)
        kept = [right[j, i] for j in judges for i in images if condition[j, i] == 0]
        drawn.append(float(np.mean(kept)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert rows.loc["a", "low"] == pytest.approx(low, abs=0.03)
    assert rows.loc["a", "high"] == pytest.approx(high, abs=0.03)


def test_judges_who_guess_are_at_chance_and_intervals_hold_for_other_images() -> None:
    """Images that most take for one thing, or the other: 0.5 lies in 95 % intervals, not so if answers were drawn."""
    rng, covered, naive, studies = np.random.default_rng(0), 0, 0, 24
    condition = np.add.outer(np.arange(20), np.arange(20)) % 2
    for _ in range(studies):
        right = rng.random((20, 20)) < rng.choice([0.2, 0.8], 20)
        row = study.analysed(table_of(right, condition), "ab")["accuracies"].iloc[0]
        covered += row["low"] <= 0.5 <= row["high"]
        naive += abs(right[condition == 0].mean() - 0.5) <= 1.96 * 0.5 / np.sqrt(200)
    assert covered >= 0.9 * studies
    assert naive < 0.85 * studies
    guessed = rng.random((20, 20)) < 0.5
    row = study.analysed(table_of(guessed, condition), "ab")["accuracies"].iloc[0]
    assert row["accuracy"] == pytest.approx(0.5, abs=0.12)
    assert row["low"] < 0.5 < row["high"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([answering(1, "1111", "y")], "answers to study y; the key is that of x"),
        ([answering(1, "1111"), answering(1, "1111")], "judge 1 answers a trial twice"),
        ([answering(7, "1111")], "judge 7: trial 1 was not asked"),
        ([answering(1, "11111")], "judge 1: trial 5 was not asked"),
        ([answering(1, "    ")], "there is not one answer"),
        ([{"study": "x", "judge": 1, "answers": [{"trial": 1, "said": "R"}]}], "'R' not offered"),
    ],
)
def test_answers_that_cannot_be_are_refused(answers: Any, message: str) -> None:
    with pytest.raises(rt.InputError, match=message):
        study.marked(KEY, answers)


# --------------------------------------------------------------------------------------------- on the command line
def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert result.exit_code == code, result.stderr
    return result


def test_from_saved_explanations_to_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    Path("names.txt").write_text("left\nright\nabove\n")
    Path("consent.txt").write_text("You may <b>stop</b>.\n\nThank you.")
    files = [each.save(f"why.{each.contrast}.safetensors") for each in explained()[1]]
    shown = call(
        "make", *files, "-m", "net.py:make", "--classes", "names.txt", "--judges", 2, "--baseline", 0, "--consent",
        "consent.txt",
    )  # fmt: skip
    assert "conditions ixg, none; ixg, weighted" in shown.stdout
    assert "<p>You may &lt;b&gt;stop&lt;/b&gt;.</p>" in Path("study/pages/judge-01.html").read_text()
    key = json.loads(Path("study/key.json").read_text())
    validate(key, json.loads((SCHEMAS / "study-key.json").read_text()))
    for judge in (1, 2):
        rows = [
            {"trial": each["trial"], "said": each["truth"], "seconds": 1.5}
            for each in key["trials"]
            if each["judge"] == judge
        ]
        told = {
            "kind": study.ANSWERS,
            "schema_version": 1,
            "study": key["study"],
            "judge": judge,
            "agreed": True,
            "saved": "",
            "answers": rows,
        }
        validate(told, json.loads((SCHEMAS / "study-answers.json").read_text()))
        Path(f"{judge}.json").write_text(json.dumps(told))
    found = json.loads(call("results", "study/key.json", "1.json", "2.json", "--json").stdout)
    validate(found, json.loads((SCHEMAS / "study.json").read_text()))
    assert [each["accuracy"] for each in found["accuracies"]] == [1, 1]
    assert (found["judges"], found["answers"]) == (2, 2 * key["images"])
    alone = json.loads(call("results", "study/key.json", "1.json", "--json").stdout)
    validate(alone, json.loads((SCHEMAS / "study.json").read_text()))
    assert alone["differences"][0]["judges_010"] is None
    assert "2 judges" in call("results", "study/key.json", "1.json", "2.json").stdout
    Path("bad.json").write_text(json.dumps(told | {"judge": "2"}))
    assert "judge is a whole number, not '2'" in call("results", "study/key.json", "bad.json", code=2).stderr
    Path("bad.json").write_text("{")
    assert "bad.json cannot be used" in call("results", "study/key.json", "bad.json", code=2).stderr
    assert "it is no study answers" in call("results", "study/key.json", "study/key.json", code=2).stderr
    assert "holds something already" in call("make", *files, "-m", "net.py:make", code=2).stderr
