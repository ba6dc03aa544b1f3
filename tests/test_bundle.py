"""Bundles of evidence: what is in them against answers of one's own, and whatever is altered is found."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from scipy.stats import spearmanr
from torch import nn
from typer.testing import CliRunner

import nets
import ratherthan as rt
from ratherthan import evidence
from ratherthan.app.cli import app
from ratherthan.attribution import explain as asking
from ratherthan.attribution.explain import ask_again

KINDS = ("images", "volumes", "signals", "table", "text")


@cache
def ready() -> tuple[Path, rt.Model, rt.Explanation]:
    """A bundle of two noise images, without searches, made once for the tests that alter their copy of it."""
    folder = Path(tempfile.mkdtemp()) / "it"
    return folder, *made(folder)


def copied(folder: Path) -> tuple[rt.Model, rt.Explanation]:
    """The same in another place."""
    shutil.copytree(ready()[0], folder)
    return copy.deepcopy(ready()[1]), ready()[2]


def made(folder: Path, **settings: Any) -> tuple[rt.Model, rt.Explanation]:
    """A bundle of two noise images, without searches."""
    model = nets.make(nets.Dense, layer="features")
    why = rt.explain(model, nets.images(2), foil="runner-up", method="ig")
    rt.bundle(why, model, folder, **{"counterfactual": None, "pertinent_positive": None, "seeds": 2, **settings})
    return model, why


def sealed(folder: Path) -> None:
    """Make the hashes those of the files again, as one would who wants to cheat."""
    place = folder / "manifest.json"
    manifest = json.loads(place.read_text())
    names = [path.name for path in folder.iterdir() if path != place]
    manifest |= {"files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}}
    text = json.dumps(manifest | {"seal": "0" * 64})
    place.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()))


# --------------------------------------------------------------------------------------------- asking again
@pytest.mark.parametrize(
    ("fact", "foil", "method", "contrast"),
    [
        (None, None, "gradcam", "weighted"),
        (None, "each", "la", "mean"),
        (2, {1, 4}, "ixg", "max"),
        ("each", 0, "ig", "weighted"),
        (None, [0, {1, 2}], "occlusion", "probability"),
        (None, 3, "smoothgrad", "loss"),
        (None, None, "lrp", "none"),
    ],
)
@pytest.mark.parametrize("at_once", [3, 2**40])
def test_a_question_is_asked_again(
    fact: Any, foil: Any, method: str, contrast: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nets.make(nets.Dense, layer="features")
    why = rt.explain(model, nets.images(3), fact, foil, method, contrast)
    why = rt.Explanation.load(why.save(tmp_path / "why.safetensors"))
    monkeypatch.setattr(asking, "_at_once", lambda forward_pass: at_once)
    again = ask_again(why, nets.make(nets.Dense), batch_size=2)
    torch.testing.assert_close(again.attribution, why.attribution)
    torch.testing.assert_close(again.score, why.score)
    assert again.question(1, again.questions - 1) == why.question(1, why.questions - 1)
    assert (again.axis, again.layer, again.names) == (why.axis, why.layer, why.names)


@pytest.mark.parametrize("foil", [None, 0.5, [0.5, 1.5]])
def test_a_value_is_asked_about_again(foil: Any) -> None:
    model = nets.make(lambda: nets.Dense(1), layer="features", output="value")
    why = rt.explain(model, nets.images(2), foil=foil, method="ixg")
    again = ask_again(why, model)
    torch.testing.assert_close(again.attribution, why.attribution)
    assert again.question(1) == why.question(1)


def test_each_image_is_asked_again_about_its_region() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    model = rt.Model(net, list("abc"), output=rt.Region([(2, 3), (9, 1), (5, 5)]))
    why = rt.explain(model, nets.images(3), foil="runner-up", method="ixg")
    again = ask_again(why, model)
    torch.testing.assert_close(again.logits, why.logits)
    torch.testing.assert_close(again.attribution, why.attribution)


# --------------------------------------------------------------------------------------------- what is in it
def ranks(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(spearmanr(one.sum(0).flatten(), other.sum(0).flatten()).statistic)


def test_checks_equal_those_by_hand(tmp_path: Path) -> None:
    model, why = copied(tmp_path / "it")
    checks = json.loads((tmp_path / "it" / "checks.json").read_text())["maps"]["explanation"]

    baseline = model.logits(torch.zeros_like(why.images)).detach()
    for i, (fact, foil) in enumerate(zip(why.fact.tolist(), why.foil.tolist(), strict=True)):
        gain = (why.logits[i, fact] - why.logits[i, foil]) - (baseline[i, fact] - baseline[i, foil])
        missed = float(why.attribution[i].sum() - gain)
        assert checks["completeness"]["convergence delta"][i] == [pytest.approx(missed, abs=1e-12)]

    random, generator = copy.deepcopy(model.module), torch.Generator().manual_seed(0)
    for layer in reversed([each for each in random.modules() if list(each.parameters(recurse=False))]):
        for each in layer.parameters(recurse=False):
            drawn = torch.randn(each.shape, generator=generator)
            each.data = (drawn * each.data.float().std(correction=0) + each.data.float().mean()).double()
    asked = {"fact": why.fact, "foil": why.foil, "method": "ig"}
    other = rt.explain(rt.Model(random), why.images, **asked).attribution
    last = checks["randomisation"]["stages"][-1]
    assert last["randomised"] == 1
    for i in range(2):
        assert last["correlation"][i] == [pytest.approx(ranks(why.attribution[i], other[i]), abs=1e-3)]

    found = []
    for seed in (1, 2):
        noise = torch.randn(why.images.shape, generator=torch.Generator().manual_seed(seed)).double()
        spread = torch.stack([each.max() - each.min() for each in why.images]).view(-1, 1, 1, 1)
        other = rt.explain(model, why.images + 0.02 * spread * noise, **asked).attribution
        found.append([ranks(why.attribution[i], other[i]) for i in range(2)])
    means = torch.tensor(found).mean(0).tolist()
    assert checks["stability"]["over"] == "noise on the input"
    assert [row[0] for row in checks["stability"]["correlation"]] == pytest.approx(means, abs=1e-3)
    assert checks["stability"]["least"] == pytest.approx(min(map(min, found)), abs=1e-3)


def test_a_method_that_draws_is_compared_over_its_seeds(tmp_path: Path) -> None:
    model = nets.make(nets.Dense, layer="features")
    how = rt.SmoothGrad(samples=3, seed=4)
    why = rt.explain(model, nets.images(1), 0, 1, how)
    rt.bundle(why, model, tmp_path / "it", counterfactual=None, pertinent_positive=None, seeds=2)
    told = json.loads((tmp_path / "it" / "checks.json").read_text())["maps"]["explanation"]["stability"]
    others = [rt.explain(model, nets.images(1), 0, 1, replace(how, seed=seed)).attribution[0] for seed in (5, 6)]
    expected = sum(ranks(why.attribution[0], each) for each in others) / 2
    assert told["over"] == "seeds of the method"
    assert told["mean"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_comes_out_again(kind: str, tmp_path: Path) -> None:
    model, inputs = nets.of_kind(kind, 2)
    why = rt.explain(model, inputs, foil="runner-up", method="ixg")
    rt.bundle(why, model, tmp_path / "it", seeds=1)
    manifest = json.loads((tmp_path / "it" / "manifest.json").read_text())
    if kind in ("images", "text"):
        assert manifest["searches"] == ["counterfactual", "pertinent_positive"]
        how = rt.Counterfactual.load(tmp_path / "it" / "counterfactual.safetensors")
        assert (how.fact.tolist(), how.foil.tolist()) == (why.fact.tolist(), why.foil.tolist())
        assert how.method == ("cem" if kind == "images" else "words")
    else:
        assert not manifest["searches"]
        assert all(f"takes {model.inputs.name}" in reason for reason in manifest["left_out"].values())
        assert len(manifest["left_out"]) == 2
    checks = json.loads((tmp_path / "it" / "checks.json").read_text())["maps"]["explanation"]
    assert "ixg does not say" in checks["completeness"]["reason"]
    assert ("reason" in checks["stability"]) == (kind == "text")
    found = rt.verify(tmp_path / "it", model)
    assert found.agrees, str(found)
    assert max(found.deviations.values()) < 1e-6


def test_several_contrasts_and_many_foils(tmp_path: Path) -> None:
    model = nets.make(nets.Dense, layer="features")
    results = rt.compare(model, nets.images(2), foil="each", methods=["ixg"], contrasts=["none", "weighted"])
    rt.bundle(results, model, tmp_path / "it", seeds=1, counterfactual="cem", pertinent_positive=None)
    assert rt.verify(tmp_path / "it", model).agrees
    told = json.loads((tmp_path / "it" / "question.json").read_text())["questions"]
    assert len(told) == 2 * 2 * 5
    assert told[-1]["question"] == results[1].question(1, 4)
    assert told[-1]["score"] == pytest.approx(float(results[1].score[1, 4]))
    page = (tmp_path / "it" / "why.html").read_text()
    assert "weighted" in page
    assert rt.Counterfactual.load(tmp_path / "it" / "counterfactual.safetensors").questions == 5


def test_what_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    net = nets.make(nets.Dense, layer="features")
    model = net.replace(output="labels", class_names=list("abcde"))
    why = rt.explain(model, nets.images(1), fact="a", method="ixg")
    rt.bundle(why, model, tmp_path / "labels", seeds=1)
    manifest = json.loads((tmp_path / "labels" / "manifest.json").read_text())
    assert all("not labels: ask about one label" in each for each in manifest["left_out"].values())
    assert rt.verify(tmp_path / "labels", model).agrees
    why = rt.explain(net, nets.images(1), "each", 0, "ixg")
    rt.bundle(why, net, tmp_path / "facts", seeds=1)
    manifest = json.loads((tmp_path / "facts" / "manifest.json").read_text())
    assert all("a search starts from one class" in each for each in manifest["left_out"].values())


# --------------------------------------------------------------------------------------------- what is altered is found
def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    model, _ = copied(tmp_path / "it")
    assert rt.verify(tmp_path / "it", model).agrees
    for path in sorted((tmp_path / "it").iterdir()):
        content = path.read_bytes()
        places = range(len(content)) if path.name == "manifest.json" else (0, len(content) // 3, len(content) - 1)
        for place in places:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            found = None
            with suppress(rt.InputError) if path.name == "manifest.json" else nullcontext():
                found = rt.verify(tmp_path / "it", model)
            if found is not None:  # else it is no longer read as a manifest
                assert found.differences == (f"{path.name} is not as it was written",), place
                assert not found.deviations
        path.write_bytes(content)
    (tmp_path / "it" / "more.txt").touch()
    (tmp_path / "it" / "why.png").unlink()
    assert rt.verify(tmp_path / "it", model).differences == (
        "more.txt is no part of the bundle", "why.png is missing",
    )  # fmt: skip


def nudged(model: rt.Model) -> rt.Model:
    module = copy.deepcopy(model.module)
    module.head.bias.data[0] += 1e-9
    return rt.Model(module, layer="features")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (nudged, "the network has another fingerprint: "),
        (lambda model: model.replace(mean=0.1), "the network has another preprocessing: "),
        (lambda model: model.replace(output="labels"), "the network has another output: 'logits' then, 'labels' now"),
        (
            lambda model: rt.Model(model.module, forward=lambda m, x: m(x) * 1.01),
            "logits of explanation differ by 0.01",
        ),
    ],
)
def test_another_network_is_found(change: Callable[[rt.Model], rt.Model], line: str, tmp_path: Path) -> None:
    model, _ = copied(tmp_path / "it")
    found = rt.verify(tmp_path / "it", change(model))
    assert found.differences[0].startswith(line), str(found)
    assert not found.agrees
    assert line in str(found)


def test_other_class_names_are_found(tmp_path: Path) -> None:
    model = nets.make(nets.Dense, layer="features", class_names=list("abcde"))
    why = rt.explain(model, nets.images(1), method="ixg")
    rt.bundle(why, model, tmp_path / "it", counterfactual=None, pertinent_positive=None, seeds=1)
    found = rt.verify(tmp_path / "it", model.replace(class_names=list("abced")))
    assert found.differences == ("the network has another class names",)


def test_what_was_altered_and_sealed_again_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    model, why = made(folder, counterfactual="cem", pertinent_positive="cem")
    kept = {path: path.read_bytes() for path in folder.iterdir()}

    def differing() -> list[str]:
        sealed(folder)
        found = rt.verify(folder, model)
        for path, content in kept.items():
            path.write_bytes(content)
        return [re.sub(r" differ by .*", "", line) for line in found.differences]

    assert differing() == []
    moved = why.attribution.clone()
    moved[1] += 2e-3 * moved.abs().max()
    for key, value in {"attribution": moved, "score": why.score * 1.01, "logits": why.logits + 0.1}.items():
        replace(why, **{key: value}).save(folder / "explanation.safetensors")
        name = {"attribution": "maps", "score": "scores", "logits": "logits"}[key]
        assert f"{name} of explanation" in differing()
    replace(why, settings=why.settings | {"n_steps": 2}).save(folder / "explanation.safetensors")
    assert "maps of explanation" in differing()
    for key, kind in {"counterfactual": rt.Counterfactual, "pertinent_positive": rt.PertinentPositive}.items():
        found = kind.load(folder / f"{key}.safetensors")
        replace(found, examples=found.examples * 0.9).save(folder / f"{key}.safetensors")
        assert differing() == [f"logits of the {key.replace('_', ' ')}"]
    for check, change in {
        "completeness": lambda told: told["convergence delta"][0].__setitem__(0, 0.01),
        "randomisation": lambda told: told["stages"][1].__setitem__("mean", 0.9),
        "stability": lambda told: told.__setitem__("least", None),
    }.items():
        told = json.loads((folder / "checks.json").read_text())
        change(told["maps"]["explanation"][check])
        (folder / "checks.json").write_text(json.dumps(told))
        ranked = "" if check == "completeness" else "correlations of "
        assert differing() == [f"{ranked}{check} of explanation"]


def test_the_tolerance_is_what_may_differ(tmp_path: Path) -> None:
    model, _ = copied(tmp_path / "it")
    other = rt.Model(model.module, forward=lambda m, x: m(x) * (1 + 5e-4))
    assert rt.verify(tmp_path / "it", other).deviations["logits of explanation"] == pytest.approx(5e-4, rel=1e-6)
    assert rt.verify(tmp_path / "it", other).agrees
    assert not rt.verify(tmp_path / "it", other, tolerance=4e-4).agrees
    with pytest.raises(rt.InputError, match="tolerance is a number above 0"):
        rt.verify(tmp_path / "it", other, tolerance=-1.0)


# --------------------------------------------------------------------------------------------- whole or not at all
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_it_is_written_whole_or_not_at_all(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(evidence, "save_report", fail)
    with pytest.raises(type(error)):
        made(tmp_path / "deep" / "it")
    assert not list(tmp_path.rglob("*it*"))


def test_half_a_search_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rt.Counterfactual.sought
    stopped = classmethod(lambda cls, *given, **more: replace(whole(*given, **more), interrupted=True))
    monkeypatch.setattr(rt.Counterfactual, "sought", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "it", counterfactual="cem")
    assert not list(tmp_path.iterdir())


def test_a_picture_as_the_baseline_comes_out_again_and_what_has_no_name_is_refused(tmp_path: Path) -> None:
    model = nets.make(nets.Dense, layer="features")
    how = rt.IntegratedGradients(baseline=nets.images(2)[1:])
    alone = {"counterfactual": None, "pertinent_positive": None, "seeds": 1}
    rt.bundle(rt.explain(model, nets.images(1), 0, 1, how), model, tmp_path / "picture", **alone)
    assert rt.verify(tmp_path / "picture", model).agrees
    why = rt.explain(model, nets.images(1), 0, 1, contrast=lambda y, fact, foils: y.square().sum(1))
    with pytest.raises(rt.InputError, match="unknown contrast"):
        rt.bundle(why, model, tmp_path / "nameless", **alone)
    assert not (tmp_path / "nameless").exists()


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    made(tmp_path / "it")  # an empty folder
    before = (tmp_path / "it" / "manifest.json").read_bytes()
    with pytest.raises(rt.InputError, match="holds something already: name a new folder"):
        made(tmp_path / "it")
    assert (tmp_path / "it" / "manifest.json").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(rt.InputError, match="is a file: name a new folder"):
        made(tmp_path / "file")


def test_what_another_network_was_asked_is_refused(tmp_path: Path) -> None:
    model = nets.make(nets.Dense, layer="features")
    why = rt.explain(model, nets.images(1), 0, 1, "ixg")
    with pytest.raises(rt.InputError, match="logits differ when they are computed again: was another network"):
        rt.bundle(why, rt.Model(model.module, forward=lambda m, x: 2 * m(x)), tmp_path / "it")
    with pytest.raises(rt.InputError, match="maps differ"):
        rt.bundle(replace(why, attribution=-why.attribution), model, tmp_path / "it")
    with pytest.raises(rt.InputError, match="made of an explanation"):
        rt.bundle([], model, tmp_path / "it")
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"kind": "ratherthan run"}', '{"seal": "%s"}' % ("0" * 64)])
def test_what_is_no_bundle_is_said(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(rt.InputError, match=r"manifest.json: cannot be read|holds no bundle"):
        rt.verify(tmp_path, nets.make(nets.Dense))


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"explanations": []},
        {"explanations": ["../../it/explanation"]},
        {"explanations": ["why"]},
        {"explanations": 3},
        {"searches": ["words"]},
        {"searches": ["counterfactual"]},
        {"tolerance": 0},
        {"seeds": 0},
        {"seed": "one"},
        {"model": None},
        {"model": {}},
        {"files": []},
    ],
)
def test_a_manifest_of_others_is_refused_or_differs(changes: dict[str, Any], tmp_path: Path) -> None:
    model, _ = copied(tmp_path / "it")
    place = tmp_path / "it" / "manifest.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    if "files" not in changes:
        sealed(tmp_path / "it")
    else:
        text = json.dumps(json.loads(place.read_text()) | {"seal": "0" * 64})
        place.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()))
    try:
        found = rt.verify(tmp_path / "it", model)
    except rt.InputError:
        return
    assert found.differences


@pytest.mark.parametrize(
    "changes",
    [{"maps": {}}, {"maps": {"explanation": {}}}, {"maps": 1}, {"maps": {"explanation": 1}}, {"maps": None}],
)
def test_checks_of_others_are_refused_or_differ(changes: dict[str, Any], tmp_path: Path) -> None:
    model, _ = copied(tmp_path / "it")
    place = tmp_path / "it" / "checks.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    sealed(tmp_path / "it")
    try:
        found = rt.verify(tmp_path / "it", model)
    except rt.InputError:
        return
    assert found.differences


# --------------------------------------------------------------------------------------------- the command line
def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_line_makes_and_verifies_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawing = Image.new("L", (28, 28))
    ImageDraw.Draw(drawing).line((14, 4, 14, 24), fill=255, width=3)
    drawing.save("one.png")
    asked = ("explain", "one.png", "-m", "zoo:mnist", "--foil", "runner-up", "--bundle", "evidence")
    monkeypatch.setattr("sys.argv", ["/somewhere/ratherthan", *asked])
    result = call(*asked)
    assert result.exit_code == 0, result.stderr
    assert "bundle   evidence" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evidence", "one.png"]
    manifest = json.loads(Path("evidence/manifest.json").read_text())
    assert manifest["command"] == "ratherthan explain one.png -m zoo:mnist --foil runner-up --bundle evidence"
    methods = [
        kind.load(f"evidence/{name}.safetensors").method
        for name, kind in (("counterfactual", rt.Counterfactual), ("pertinent_positive", rt.PertinentPositive))
    ]
    assert methods == ["cdeepex", "cem-maf"]
    result = call("verify", "evidence", "-m", "zoo:mnist")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("evidence agrees: every file is as it was written")
    result = call("verify", "evidence", "-m", "zoo:mnist_paper")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines()[0] == "evidence differs:"
    assert "another fingerprint" in result.stdout
    result = call("verify", "nowhere", "-m", "zoo:mnist")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: nowhere/manifest.json: cannot be read")
    result = call(*asked)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: evidence holds something already: name a new folder\n"
