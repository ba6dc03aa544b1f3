"""The verb, its methods by name, what it returns and shows, and its command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from typer.testing import CliRunner

import ratherthan as rt
from nets import Linear
from pages import cases_of, numbers
from ratherthan import resolve
from ratherthan.app.cli import app
from ratherthan.registry import Classes
from ratherthan.words import percent

QUICK = rt.Schedule(outer_iterations=6, inner_iterations=30)


@dataclass(frozen=True)
class Brighten(rt.CounterfactualMethod):
    """A method with a known answer: every pixel half way to white; attributes are the mean and its negative."""

    name: ClassVar[str] = "brighten"
    default_foil: ClassVar[Any] = "any"
    any_foil: ClassVar[bool] = True

    scale: Tensor | None = None
    asked: ClassVar[list[Tensor]] = []

    def search(self, question: rt.SearchQuestion) -> rt.Counterfactual:
        assert question.foil is not None
        self.asked.append(question.foil)
        if len(self.asked) == 3:
            raise KeyboardInterrupt
        images, asked = question.images, question.asked
        examples = (1 + asked) / 2
        question.evaluations = 7 * len(asked)
        ones = torch.ones(len(asked), 1)
        return rt.Counterfactual.of(
            self,
            question,
            examples.unsqueeze(1),
            [[(rt.Status.FOUND, "by construction")]] * len(asked),
            ones,
            check=lambda logits: (0 * ones, ones > 0),
            answers={"attributes": torch.stack([examples.mean((1, 2, 3)), -examples.mean((1, 2, 3))], 1).unsqueeze(1)},
            attributes_before=torch.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], 1),
            attribute_names=("more light", "more shade"),
        )


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """`brighten` is registered for one test."""
    monkeypatch.setitem(rt.register_counterfactual_method.__self__, "brighten", Brighten)
    monkeypatch.setattr(Brighten, "asked", [])


@pytest.fixture
def model() -> rt.Model:
    module = Linear(3 * 6 * 9, 4)
    return rt.Model(module.requires_grad_(False), ["ant", "bee", "<cat>", "dog $5_1$"], channels=3)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 6, 9)


# ------------------------------------------------------------------------------------------- methods and questions
def test_a_method_of_ones_own_is_called_by_name(known: None, model: rt.Model, images: Tensor) -> None:
    how = rt.counterfactual(model, images, method="brighten")
    assert torch.equal(Brighten.asked[0], torch.full((3,), -1)), "any other class is its usual foil"
    torch.testing.assert_close(how.example, (1 + images) / 2)
    torch.testing.assert_close(how.difference, (1 - images) / 2)
    assert how.evaluations == 21
    assert (how.reconstruction, how.latents, how.error) == (None, None, None)
    fact, reached = int(how.fact[0]), int(how.reached[0, 0])
    assert reached == how.example_logits[0, 0].scatter(0, torch.tensor(fact), -99).argmax()
    frame = how.to_frame()
    assert set(frame["foil"]) == {"any"}
    torch.testing.assert_close(torch.tensor(frame["more light"].to_list()), how.example.mean((1, 2, 3)))
    each = rt.counterfactual(model, images, foil="Each", method=Brighten())
    assert Brighten.asked[1].shape == (3, 4)
    assert each.axis == "foil"


def test_what_an_answer_adds_is_named(known: None, model: rt.Model, images: Tensor) -> None:
    how = rt.counterfactual(model, images / 3, foil="bee", method="brighten")
    for i in range(3):
        assert "+ more light: then it " in how.text(i)
        assert "more shade" not in how.text(i)
    assert (
        rt.counterfactual(model, torch.ones(1, 3, 6, 9) - 0.01, foil="bee", method=Brighten()).text(0).count("+") == 1
    )


def test_ctrl_c_between_batches_keeps_what_was_found(known: None, model: rt.Model, images: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    how = rt.counterfactual(
        model, images, method=Brighten(), batch_size=1, progress=lambda done, of: seen.append((done, of))
    )
    assert how.interrupted
    assert len(how) == len(how.names) == 2
    assert seen == [(1, 3), (2, 3)]
    assert "interrupted" in str(how)


def test_only_a_copy_of_an_answer_that_was_found_is_no_other(known: None, model: rt.Model, images: Tensor) -> None:
    one = rt.counterfactual(model, images[:1], method=Brighten())
    twice = {
        f: getattr(one, f).repeat_interleave(2, 1) for f in ("examples", "example_logits", "distance", "violation")
    }
    for status, expected in ((["found", "found"], [True, False]), (["not found", "found"], [False, True])):
        two = dataclasses.replace(one, statuses=[status], reasons=[["so", "so"]], **twice)
        assert two.distinct().tolist() == [expected]


def test_any_is_refused_by_a_method_that_needs_a_class(model: rt.Model, images: Tensor) -> None:
    method = rt.CDeepEx(rt.Manifold(Colours(), 5))
    for foil in ("any", "others", {0, 1, 2}):
        with pytest.raises(rt.InputError, match="towards one class"):
            rt.counterfactual(model, images, foil=foil, method=method)
    with pytest.raises(rt.InputError, match="such as CDeepEx"):
        rt.counterfactual(model, images, method=rt.CDeepEx)  # type: ignore[arg-type]


def test_a_name_belongs_to_one_class() -> None:
    names: Classes[Any] = Classes("experiment", object, "Mask()")
    first = type("First", (), {"name": "mask"})
    assert names.register(names.register(first)) is first
    with pytest.raises(rt.InputError, match="an experiment named 'mask' exists already"):
        names.register(type("Second", (), {"name": "mask"}))
    with pytest.raises(rt.InputError, match="did you mean 'mask'"):
        names.make("masc")


def test_words_may_be_written_in_any_case() -> None:
    logits = torch.tensor([[1.0, 3, 2]])
    assert resolve(logits, foil="Runner-Up").foil.tolist() == [[2]]
    assert resolve(logits, foil=" any ").foils.tolist() == resolve(logits, foil="others").foils.tolist()
    assert resolve(logits, foil="Each", names=["a", "Each", "c"]).foil.tolist() == [[1]], "a class of this name"


# ------------------------------------------------------------------------------------------------ bad input
class Colours(nn.Module):
    """Images 3 x 6 x 9 from 5 latents; a first latent above 5 gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 3 * 6 * 9)

    def decode(self, z: Tensor) -> Tensor:
        made = torch.sigmoid(self.map(z)).reshape(-1, 3, 6, 9)
        return made / (z[:, 0] < 5).view(-1, 1, 1, 1) * (z[:, 0] < 5).view(-1, 1, 1, 1)

    def encode(self, images: Tensor) -> Tensor:
        whitened = torch.logit(images.flatten(1).clamp(0.01, 0.99)) - self.map.bias
        return whitened @ torch.linalg.pinv(self.map.weight).T


def test_colour_images_of_any_size_and_an_independent_check(model: rt.Model) -> None:
    manifold = rt.Manifold(Colours(), 5)
    with torch.no_grad():
        images = manifold.decode(torch.randn(4, 5))
    how = rt.counterfactual(model, images, foil="top2", method=rt.CDeepEx(manifold, margin=0.05, retries=1))
    assert how.found[:, 0].all(), "each has its runner-up"
    for i, q in how.found.nonzero().tolist():
        logits = model.module(how.example[i, q : q + 1])[0]
        fact, foil = how.fact[i, q], how.foil[i, q]
        assert abs(logits[fact] - logits[foil]) <= 0.01
        others = logits.index_fill(0, torch.stack([fact, foil]), -99)
        assert others.max() + 0.05 <= min(logits[fact], logits[foil]) + 0.01
        assert 0 <= how.example[i, q].min() <= how.example[i, q].max() <= 1


def test_a_row_of_nan_harms_no_other(model: rt.Model) -> None:
    manifold = rt.Manifold(Colours(), 5)
    with torch.no_grad():
        images = manifold.decode(torch.randn(3, 5))
    usual = rt.counterfactual(model, images, method=rt.CDeepEx(manifold, schedule=QUICK, retries=0))
    far = torch.zeros(1, 5)
    far[0, 0] = 40.0
    with torch.no_grad():
        images[1] = torch.sigmoid(manifold.module[0].map(far)).reshape(3, 6, 9)
    how = rt.counterfactual(model, images, method=rt.CDeepEx(manifold, schedule=QUICK, retries=0))
    assert how.status[1] in ("diverged", "inversion failed")
    assert how.reason[1]
    for i in (0, 2):
        torch.testing.assert_close(how.example[i], usual.example[i], atol=1e-5, rtol=0)
        assert how.status[i] == usual.status[i]


def test_the_image_outside_of_image_space_is_named(model: rt.Model, images: Tensor) -> None:
    images[2, 0, 0, 0] = 1.5
    with pytest.raises(rt.InputError, match=r"image 2 ranges over \[.*1.5\]: hand them in \[0, 1\]"):
        rt.counterfactual(model, images, method=rt.CDeepEx(rt.Manifold(Colours(), 5)))
    images[2, 0, 0, 0] = torch.nan
    with pytest.raises(rt.InputError, match="NaN"):
        rt.counterfactual(model, images, method=rt.CDeepEx(rt.Manifold(Colours(), 5)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -1.0}, "margin of cdeepex is a number of at least 0, not -1.0"),
        ({"restarts": 0}, "restarts of cdeepex is a whole number of at least 1, not 0"),
        ({"bank": torch.zeros(4, 3)}, r"a bank of latents \(3,\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, model: rt.Model, images: Tensor
) -> None:
    with pytest.raises(rt.InputError, match=message):
        rt.counterfactual(model, images, method=rt.CDeepEx(rt.Manifold(Colours(), 5), **settings))


# ------------------------------------------------------------------------------------------- keeping and showing
def test_settings_that_are_tensors_are_kept(known: None, model: rt.Model, images: Tensor, tmp_path: Path) -> None:
    how = rt.counterfactual(model, images, foil=["bee", "ant"], method=Brighten(scale=torch.arange(3.0)))
    again = rt.Counterfactual.load(how.save(tmp_path / "how.safetensors"))
    assert torch.equal(again.settings["scale"], torch.arange(3.0))


def test_an_explanation_keeps_settings_that_are_tensors(model: rt.Model, images: Tensor, tmp_path: Path) -> None:
    why = rt.explain(model, images, foil="bee", method="gradient")
    why = dataclasses.replace(why, settings={"baseline": [torch.arange(4.0), 2], "steps": 3})
    again = rt.Explanation.load(why.save(tmp_path / "why.safetensors"))
    assert torch.equal(again.settings["baseline"][0], torch.arange(4.0))
    assert again.settings["baseline"][1] == 2
    with pytest.raises(rt.InputError, match="holds no counterfactual"):
        rt.Counterfactual.load(tmp_path / "why.safetensors")


def test_the_page_holds_the_way_and_its_curves(known: None, model: rt.Model, images: Tensor, tmp_path: Path) -> None:
    how = rt.counterfactual(model, images[:2], foil=["<cat>", "dog $5_1$"], method=Brighten())
    page = how.save(tmp_path / "how.html").read_text()
    assert page.count("<article") == 2
    assert "<cat>" not in page
    assert not re.search(r"\d %", page)
    shown = cases_of(page)
    assert [[each["odds"]["foil"]["name"] for each in one["change"]] for one in shown] == [["<cat>", "dog $5_1$"]] * 2
    for i, one in enumerate(shown):
        for q, each in enumerate(one["change"]):
            p = how.path_probabilities()[i, q, :, int(how.foil[i, q])]
            np.testing.assert_allclose(each["odds"]["foil"]["p"], p, atol=1e-6)
            assert each["said"]["foil"] == [percent(float(value)) for value in p]
            assert len(each["frames"]) == len(p)
            change = how.difference[i, q].sum(0).numpy()
            np.testing.assert_allclose(numbers(each)[0], change, atol=np.abs(change).max() / 254 + 1e-9)
    assert how.plot_path(1, 1).axes[0].lines[2].get_ydata()[-1] == pytest.approx(
        how.path_probabilities()[1, 1, -1, int(how.foil[1, 1])].item()
    )


# --------------------------------------------------------------------------------------------- the command
def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "digits"
    folder.mkdir()
    for name, line in {"one": (14, 4, 14, 24), "slash": (20, 4, 9, 24)}.items():
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).line(line, fill=255, width=3)
        image.save(folder / f"{name}.png")
    return sorted(folder.iterdir())


FEW = ("--set", "outer_iterations=2", "--set", "inner_iterations=5", "--set", "retries=0")


def test_the_command_gives_the_answers_of_the_api(digits: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("counterfactual", digits[0].parent, "-m", "zoo:mnist", "--foil", "3,8", *FEW, "--out", out)
    assert result.exit_code == 0, result.output
    method = rt.CDeepEx(schedule=rt.Schedule(outer_iterations=2, inner_iterations=5), retries=0)
    expected = rt.counterfactual(rt.load("zoo:mnist"), [str(each) for each in digits], foil=[3, 8], method=method)
    saved = rt.Counterfactual.load(out / "how.safetensors")
    torch.testing.assert_close(saved.examples, expected.examples, atol=1e-4, rtol=0)
    assert (saved.names, saved.status) == (expected.names, expected.status)
    assert sorted(each.name for each in out.iterdir()) == [
        "how.html", "how.safetensors", "one.how.png", "slash.how.png"
    ]  # fmt: skip
    rows = [line.split()[:4] for line in result.stdout.splitlines() if ".png " in line and "how" not in line]
    assert [(row[0], row[1]) for row in rows] == [(path.name, "1") for path in digits for _ in range(2)]
    page = tmp_path / "answer.html"
    single = call("counterfactual", digits[0], "-m", "zoo:mnist", *FEW, "--method", "xgem", "--json", "--out", page)
    told = json.loads(single.stdout)
    assert told["files"] == [str(page)]
    assert page.read_text().count("<article") == 1
    assert told["counterfactuals"][0]["method"] == "xgem"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--foil", "17"], "class 17 does not exist"),
        (["--foil", "any"], "moves towards one class"),
        (["--method", "cdeepx"], "unknown counterfactual method 'cdeepx'; did you mean 'cdeepex'"),
        (["--set", "margn=1"], "unknown setting of cdeepex 'margn'; did you mean 'margin'"),
        (["--set", "inner_iterations=2.5"], "inner_iterations of schedule is a whole number"),
        (["--set", "outer_iterations=0"], "outer_iterations of schedule is a whole number of at least 1"),
        (["--manifold", "mnist_va"], "unknown manifold of the zoo 'mnist_va'; did you mean 'mnist_vae'"),
        (["--manifold-weights", "no.safetensors"], "no weights at no.safetensors"),
        (["--bank", "no.png"], "no.png: cannot be read (No such file"),
        (["--bank", "no*.png"], "--bank no*.png: no file matches"),
        (["--out", "four.pdf"], "ends in .pdf: name a folder or a file ending in .html, .png"),
    ],
)
def test_every_mistake_is_one_line(options: Sequence[str], message: str, digits: list[Path]) -> None:
    result = call("counterfactual", digits[0], "-m", "zoo:mnist", "--json", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_an_unreadable_image_is_named_and_the_others_are_searched(digits: list[Path]) -> None:
    digits[0].write_bytes(b"no image")
    result = call("counterfactual", *digits, "missing.png", "-m", "zoo:mnist", *FEW, "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert [Path(each["sample"]).name for each in told["counterfactuals"]] == ["slash.png"]
    assert [Path(each["image"]).name for each in told["failures"]] == ["one.png", "missing.png"]
