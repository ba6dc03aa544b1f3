"""Tables for papers: what is compared with what, by which test, what is set in bold, what is shown once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import ratherthan as rt
from ratherthan import ArrayReader, Dataset, Run, evaluate
from ratherthan.evaluation.tables import _holm, figure_of

METHODS, CONTRASTS = ("gradcam", "ixg", "ig"), ("none", "mean", "weighted")
Numbers = dict[tuple[str, str, str], Any]
"""Of each method, contrast and part its value of every sample."""


class Given(rt.Experiment):
    """Tells numbers that were made up."""

    name, keys, measures, reads_labels = "given", ("part",), ("score", "size"), False
    shown = ("score",)
    layout = (("method", "part"), ("contrast",))

    def __init__(self, numbers: Numbers, highest: bool) -> None:
        self.numbers = {key: torch.as_tensor(values, dtype=torch.float64) for key, values in numbers.items()}
        self.higher_is_better = {"score": highest}  # type: ignore[misc]

    def measure(self, batch: Any) -> Iterator[Any]:
        for (method, contrast, part), values in self.numbers.items():
            score = values[list(batch.positions)]
            yield batch.rows(method, contrast, part=part, score=score, size=0 * score + CONTRASTS.index(contrast))


def told(folder: Path, numbers: Numbers, highest: bool = True) -> Run:
    samples = len(next(iter(numbers.values())))
    names = tuple(f"s{i}" for i in range(samples))
    data = Dataset("made up", ("a",), names, (0,) * samples, ArrayReader(np.zeros((samples, 2, 2), np.uint8)))
    methods, contrasts = (list(dict.fromkeys(key[i] for key in numbers)) for i in (0, 1))
    given = Given(numbers, highest)
    return evaluate(given, nn.Flatten(), data, out=folder, methods=methods, contrasts=contrasts)


def noise(samples: int, seed: int = 0) -> Numbers:
    random = np.random.default_rng(seed)
    return {key: random.normal(size=samples) for key in product(METHODS, CONTRASTS, ("whole", "half"))}


# --------------------------------------------------------------------------------------------- comparing
def exact_signed_rank(differences: Any) -> float:
    """Wilcoxon's p by listing all signs: how often the positive ranks sum to as far from the middle as they do."""
    sizes = np.abs(differences)
    ranks = np.array([(sizes < each).sum() + ((sizes == each).sum() + 1) / 2 for each in sizes])
    ranks = ranks[differences != 0]  # zeros count half to either side whatever the signs, and leave the middle there
    middle, signs = ranks.sum() / 2, np.array(list(product((0, 1), repeat=len(ranks))))
    found = abs(ranks[differences[differences != 0] > 0].sum() - middle)
    return float((np.abs(signs @ ranks - middle) >= found - 1e-9).mean())


@pytest.mark.parametrize("whole", [False, True], ids=["no ties", "ties and zeros"])
def test_every_pair_is_what_a_loop_over_samples_says(whole: bool, tmp_path: Path) -> None:
    numbers = {key: np.round(2 * each) if whole else each for key, each in noise(7).items()}
    numbers["gradcam", "mean", "half"][3] = np.nan
    found = told(tmp_path, numbers).compare_methods()
    pairs = [
        (one, other) for one, other in combinations(product(METHODS, CONTRASTS), 2)
        if (one[0] == other[0]) != (one[1] == other[1])
    ]  # fmt: skip
    assert len(found) == 2 * len(pairs) == 2 * 18
    assert set(found["measure"]) == {"score"}
    rows = found.set_index(["part", "method", "contrast", "other_method", "other_contrast"])
    random = np.random.default_rng(3)
    for part, (one, other) in product(("whole", "half"), pairs):
        row = rows.loc[(part, *one, *other)]
        differences = numbers[*one, part] - numbers[*other, part]
        differences = differences[~np.isnan(differences)]
        assert row["n"] == len(differences) == 7 - np.isnan(numbers[*one, part] + numbers[*other, part]).sum()
        assert row["mean"] == pytest.approx(differences.mean())
        assert row["p"] == pytest.approx(exact_signed_rank(differences))
        drawn = random.choice(differences, (2000, len(differences))).mean(1)
        spread = differences.std() / math.sqrt(len(differences))
        assert row[["low", "high"]].tolist() == pytest.approx(
            np.quantile(drawn, [0.025, 0.975]), abs=0.35 * spread + 1 / 7 * whole
        )


def test_holm_is_its_definition() -> None:
    p = np.random.default_rng(1).random(12) ** 3
    p[4] = p[7]
    for i, corrected in enumerate(_holm(pd.Series([*p, np.nan]))[:12]):
        smaller = [each for each in range(12) if p[each] <= p[i]]
        # rejected at level a if every smaller one is below a / (how many are not smaller than it)
        assert corrected == pytest.approx(min(1, max(p[each] * (p >= p[each]).sum() for each in smaller)))
    assert math.isnan(_holm(pd.Series([0.1, np.nan]))[1])
    assert _holm(pd.Series([0.1, np.nan]))[0] == 0.1


def test_the_correction_is_for_what_was_asked(tmp_path: Path) -> None:
    run = told(tmp_path, noise(20))
    whole, part = run.compare_methods(), run.compare_methods("score", "weighted")
    assert (len(whole), len(part)) == (36, 6)
    assert set(part["contrast"]) == set(part["other_contrast"]) == {"weighted"}
    smallest = part["p"].idxmin()
    assert part["p_holm"][smallest] == pytest.approx(6 * part["p"][smallest])
    assert run.compare_methods("size", "none")["mean"].eq(0).all()


@pytest.mark.parametrize("highest", [True, False])
def test_ranks_are_of_what_is_compared_on_samples_where_all_are_defined(highest: bool, tmp_path: Path) -> None:
    nan = np.nan
    numbers = {("gradcam", "none", "whole"): [3.0, 3, 1, 9], ("ixg", "none", "whole"): [2.0, 3, 2, 9]}
    numbers[("ig", "none", "whole")] = [1.0, 1, 3, nan]
    found = told(tmp_path, numbers, highest).compare_methods()
    ranks = dict(zip(found["method"], found["rank"], strict=True)) | {"ig": found["other_rank"].iloc[-1]}
    best_high = {"gradcam": (1 + 1.5 + 3) / 3, "ixg": (2 + 1.5 + 2) / 3, "ig": (3 + 3 + 1) / 3}
    assert ranks == pytest.approx(best_high if highest else {name: 4 - rank for name, rank in best_high.items()})


def test_where_nothing_is_praised_there_is_no_rank(tmp_path: Path) -> None:
    assert told(tmp_path, noise(5)).compare_methods("size")["rank"].isna().all()


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    run = told(tmp_path / "many", noise(5))
    with pytest.raises(rt.InputError, match="unknown measure 'scor'; did you mean 'score'"):
        run.compare_methods("scor")
    with pytest.raises(rt.InputError, match="unknown contrast 'loss'; known: none, mean, weighted"):
        run.compare_methods(contrast="loss")
    same = {("ixg", "none", "whole"): [1.0, 2], ("ig", "none", "whole"): [1.0, 2]}
    with pytest.raises(rt.InputError, match="nothing to compare"):
        told(tmp_path / "same", same).compare_methods()


# --------------------------------------------------------------------------------------------- bold
@pytest.mark.parametrize("highest", [True, False])
@pytest.mark.parametrize("kind", ["contrast", "method"])
def test_bold_is_what_beats_the_next_best_by_an_interval_without_0(kind: str, highest: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    base, sign = random.normal(size=40), 1 if highest else -1
    gains = {"whole": (0.5, 0.2, 0.0), "half": (0.02, 0.0, -3.0)}  # by far; within noise, and both far from the third
    numbers = {
        (("gradcam", name, part) if kind == "contrast" else (name, "none", part)): base
        + sign * gain + 0.1 * random.normal(size=40)
        for part, all_gains in gains.items()
        for name, gain in zip(CONTRASTS if kind == "contrast" else METHODS, all_gains, strict=True)
    }  # fmt: skip
    run = told(tmp_path, numbers, highest)
    table = run.table(intervals=False).stack(0).to_frame("text").reset_index()
    bold = table[table["text"].str.startswith("**")]
    assert bold["part"].tolist() == ["whole"]
    best = "gradcam" if kind == "method" else "none"
    assert bold[kind].tolist() == [{"gradcam": "Grad-CAM", "none": "original"}[best]]
    differences = run.compare_methods().query("part == 'half'")
    assert sorted(differences["low"] * differences["high"] < 0) == [False, False, True]


# --------------------------------------------------------------------------------------------- shown once
def test_what_is_equal_is_shown_once_everywhere_and_named_in_the_note(tmp_path: Path) -> None:
    numbers = noise(40)
    for contrast, part in product(CONTRASTS, ("whole", "half")):
        numbers["ig", contrast, part] = numbers["ixg", contrast, part] * (1 + 1e-6)
    for method, part in product(METHODS, ("whole", "half")):
        numbers[method, "mean", part] = numbers[method, "none", part]
    for each in numbers.values():
        each[5] = np.nan
    run = told(tmp_path / "run", numbers)
    # original and mean score the same, but `size`, which is not shown, tells them apart: they are equal by chance
    assert "Equal on every sample and shown once: Input × Gradient = Integrated Gradients." in run.to_markdown()
    numbers = {key: each for key, each in numbers.items() if key[1] != "mean"}
    run = told(tmp_path / "two", numbers)
    assert list(run.table().columns.get_level_values(0)) == ["original", "weighted"]
    assert list(run.table().index.get_level_values(0).unique()) == ["Grad-CAM", "Input × Gradient"]
    run.save(tmp_path / "page.html")
    texts = {".md": run.to_markdown(), ".tex": run.to_latex(), ".html": (tmp_path / "page.html").read_text()}
    for ending, text in texts.items():
        shown = text.replace(r"$\times$", "×")
        assert shown.count("Integrated Gradients") == 1, ending
        assert "Input × Gradient = Integrated Gradients." in shown, ending
    assert set(run.compare_methods()["method"]) | set(run.compare_methods()["other_method"]) == {"gradcam", "ixg"}
    numbers = {key: each[:8] for key, each in numbers.items()}
    for change in ("value", "defined", "missing"):
        other = {key: each.copy() for key, each in numbers.items()}
        if change == "value":
            other["ig", "none", "half"][7] += 0.01
        elif change == "defined":
            other["ig", "none", "half"][7] = np.nan
        else:
            del other["ig", "none", "half"]
        assert "Equal" not in told(tmp_path / change, other).note(), change


def test_equal_contrasts_are_named(tmp_path: Path) -> None:
    model = rt.Model(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)), layer="1")
    pixels = np.random.default_rng(0).integers(0, 256, (31, 8, 8), dtype=np.uint8)
    data = Dataset("noise", tuple("abcd"), tuple(map(str, range(31))), (0,) * 31, ArrayReader(pixels))
    asked: dict[str, Any] = {"methods": ["ixg"], "contrasts": ["none", "mean", "max", "weighted"], "steps": 4}
    for name in ("deletion", "insertion"):
        pair = evaluate(name, model, data, out=tmp_path / name, foil="runner-up", **asked)
        assert "Equal on every sample and shown once: mean = max = weighted." in pair.to_markdown()
        assert pair.table().shape == (1, 2)
        others = evaluate(name, model, data, out=tmp_path / f"{name} others", **asked)
        assert "Equal" not in others.note()
        assert others.table().shape == (1, 4)


def test_a_few_samples_are_warned_of(tmp_path: Path) -> None:
    numbers = noise(30)
    assert "Only" not in told(tmp_path / "30", numbers).note()
    numbers["ig", "mean", "half"][4] = np.nan
    assert (
        "Only 29 samples: with fewer than 30 rely on neither intervals nor bold."
        in told(tmp_path / "29", numbers).note()
    )


# --------------------------------------------------------------------------------------------- LaTeX
NUMBER = re.compile(r"(\\bfseries )?-?\d+\.\d+(e-?\d+)?")


@pytest.mark.parametrize("siunitx", [False, True])
@pytest.mark.parametrize("intervals", [False, True])
def test_latex_has_a_rule_a_label_and_as_many_cells_as_columns(siunitx: bool, intervals: bool, tmp_path: Path) -> None:
    numbers = noise(30)
    for contrast, part in product(CONTRASTS, ("whole", "half")):
        numbers["gradcam", contrast, part] *= 1e-4
    numbers["ixg", "weighted", "whole"] += 5
    numbers["ig", "mean", "half"][:] = np.nan
    run = told(tmp_path, numbers)
    latex = run.to_latex(intervals, siunitx=siunitx, caption="Ours.", label="tab:ours")
    assert latex.count("\\caption{Ours.}\n\\label{tab:ours}\n") == 1
    inside = re.search(
        r"\\begin{tabular}{ll(r{3}|S{3})}\n\\toprule\n(.*)\\bottomrule\n\\end{tabular}", latex, re.DOTALL
    )
    assert inside is not None
    assert inside[1] == ("SSS" if siunitx else "rrr")
    head, body = inside[2].split("\\midrule\n")
    lines = [line.removesuffix(r" \\").split(" & ") for line in (head + body).splitlines()]
    assert {len(line) for line in lines} == {5}
    cells = [cell for line in lines[2:] for cell in line[2:]]
    assert len(cells) == 18
    assert sum("bf" in cell for cell in cells) == 1
    assert r"\multirow[t]{2}{*}{Input $\times$ Gradient}" in body
    if siunitx:  # what is no number would be an error there
        heads = [cell for line in lines[:2] for cell in line]
        assert all(NUMBER.fullmatch(cell) or re.fullmatch(r"{.*}", cell) for cell in cells + heads)
        assert any(NUMBER.fullmatch(cell) for cell in cells) is not intervals


def test_by_itself_latex_says_what_the_note_says_of_it(tmp_path: Path) -> None:
    run = told(tmp_path, noise(12))
    assert r"12 of 12 samples took part; mean; in bold" in run.to_latex()
    assert r"mean (95 \% bootstrap interval);" in run.to_latex(intervals=True)
    assert r"\label{tab:given}" in run.to_latex()


def test_settings_of_a_method_stay_behind_its_name(tmp_path: Path) -> None:
    model = rt.Model(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4)), layer="0")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    data = Dataset("noise", tuple("abcd"), tuple("xyz"), (0, 1, 2), ArrayReader(pixels))
    ways = [rt.SmoothGrad(2), rt.IntegratedGradients(3)]
    run = evaluate("deletion", model, data, out=tmp_path, methods=ways, steps=2)
    assert list(run.table().index) == ["SmoothGrad(samples=2)", "Integrated Gradients(n_steps=3)"]


def test_whom_a_table_owes(tmp_path: Path) -> None:
    """Of ours all, each once; of what is not registered nothing."""
    model = rt.Model(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4)), layer="0")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    data = Dataset("noise", tuple("abcd"), tuple("xy"), (0, 1), ArrayReader(pixels))

    def own(logits: torch.Tensor, fact: torch.Tensor, foils: torch.Tensor) -> torch.Tensor:
        return logits.gather(1, fact[:, None])[:, 0]

    ways = {"methods": ["gradcam", rt.SmoothGrad(2)], "contrasts": ["weighted", own]}
    told = Run.open(evaluate("deletion", model, data, out=tmp_path, steps=2, **ways).shards.folder).citations()
    assert told == rt.cite("deletion", "gradcam", "smoothgrad", "weighted")
    assert len(re.findall("^@", told, re.MULTILINE)) == 5


class Meter(torch.autograd.Function):
    """Counts the images that pass it in both directions."""

    ahead = back = 0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        Meter.ahead += len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, seed: torch.Tensor) -> torch.Tensor:
        Meter.back += len(seed)
        return seed


class Metered(nn.Module):
    """A linear classifier that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = Meter.apply(self.head(x.flatten(1)))
        return out


def test_costs_are_the_passes_that_a_network_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = rt.Model(Metered(), channels=1, size=8, preprocessing="none")
    methods = [rt.get_method("ixg"), rt.IntegratedGradients(n_steps=5), rt.Occlusion(size=4, stride=4)]
    images = torch.rand(2, 1, 8, 8)
    told = rt.costs(model, images, methods)
    for row, method in zip(told.itertuples(), methods, strict=True):
        Meter.ahead = Meter.back = 0
        rt.explain(model, images, method=method)
        assert (row.forward, row.backward) == (Meter.ahead / 2, Meter.back / 2), method.name
    assert told.set_index("method")["forward"].to_dict() == {"ixg": 1, "ig": 7, "occlusion": 5}
    assert told["backward"].tolist() == [1, 5, 0]
    table = numbers_of(tmp_path).table(costs=told)
    assert table["passes"].squeeze().tolist() == ["", "", "1 + 1", "1 + 1", "7 + 5", "7 + 5"]
    latex = numbers_of(tmp_path / "again").to_latex(siunitx=True, costs=told)
    assert "{7 + 5}" in latex


def numbers_of(folder: Path) -> Run:
    return told(folder, noise(40))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"), (0.001, "0.001"), (-2.34567, "-2.346"), (99.9994, "99.999"), (1e-4, "1.0e-04"),
        (403.04, "403.0"), (-1851.87, "-1851.9"), (2.5e6, "2.5e+06"), (math.nan, "undefined"),
    ],
)  # fmt: skip
def test_numbers_in_tables_keep_the_digits_that_count(value: float, text: str) -> None:
    assert figure_of(value) == text
