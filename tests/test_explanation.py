"""What `explain` returns: what it holds, says, writes and reads back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ratherthan as rt
from nets import Dense, Linear, images, make
from pages import cases_of, maps_of
from ratherthan.attribution.explanation import to_panels
from ratherthan.render.figure import figure
from turns import of_today

NAMES = ("ant", "bee", "<cat>", "dog & cow", "eel")


@pytest.fixture
def model() -> rt.Model:
    return make(Dense, class_names=NAMES, layer="features")


def test_heatmap_sums_channels_and_upsamples_bilinearly_and_nothing_else(model: rt.Model) -> None:
    layer = rt.explain(model, images(), foil=["bee", "eel"])
    expected = torch.nn.functional.interpolate(layer.attribution, (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(layer.heatmap(), expected)
    assert layer.heatmap().min() < 0 < layer.heatmap().max()
    pixels = rt.explain(model, images(), foil="runner-up", method="ixg")
    torch.testing.assert_close(pixels.heatmap(), pixels.attribution.sum(1))


def test_a_zero_map_stays_zero_and_is_said_to_be_empty(tmp_path: Path, model: rt.Model) -> None:
    why = rt.explain(model, images(1), fact="ant", foil="ant")
    assert not why.heatmap().any()
    assert "no relevance anywhere" in str(why)
    picture = Image.open(why.save(tmp_path / "why.png"))
    assert picture.width > 300


def test_text_says_question_probabilities_and_score(model: rt.Model) -> None:
    why = rt.explain(model, images(2), fact="ant", foil="bee")
    p = why.logits.softmax(1)
    line = str(why).splitlines()[1]
    assert line.startswith("image 1: Why ant, rather than bee?")
    lead = why.logits[1, 0] - why.logits[1, 1]
    assert f"? Log-odds of ant over bee: {lead:+.2f} ({p[1, 0]:.1%} against {p[1, 1]:.1%}); " in line
    for map_, line in zip(why.heatmap(), str(why).splitlines(), strict=False):
        share = map_[map_ > 0].sum() / map_.abs().sum()
        assert share != pytest.approx(0.5, abs=0.02)  # or the wrong side would pass
        assert line.endswith(f"; {round(100 * share.item())}% of the relevance is for it.")
    assert str(why).endswith("(gradcam on layer features; input as it is, in [0, 1])")


def test_text_rounds_neither_a_small_probability_nor_doubt_away() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 3).double())
    torch.nn.init.zeros_(flat[1].weight)
    for lead, words in ((15.0, ("> 99.9%", "< 0.1%")), (3.0, ("90.9%", "4.5%")), (6.9, ("99.8%", "0.1%"))):
        flat[1].bias.data = torch.tensor([lead, 0.0, 0.0], dtype=torch.float64)
        line = str(rt.explain(flat, images(1), 0, 1, "ixg"))
        assert f"({words[0]} against {words[1]}); " in line


def test_the_bars_hold_fact_and_foil_however_unlikely(tmp_path: Path) -> None:
    """Beside the six likeliest classes."""
    many = make(lambda: Dense(12), layer="features")
    order = many.logits(images(1)).argsort(descending=True)[0].tolist()
    for fact, foil in ((order[9], order[11]), (order[0], order[10]), (order[8], order[1])):
        (case,) = rt.explain(many, images(1), fact=fact, foil=foil).panels()
        shown = list(dict.fromkeys([*order[:6], fact, foil]))
        assert [name for name, _ in case.probabilities] == [f"class {each}" for each in shown]
        p = many.logits(images(1)).softmax(1)[0]
        assert [value for _, value in case.probabilities] == pytest.approx([p[each].item() for each in shown])


def test_frame_has_a_row_per_sample_and_question(model: rt.Model) -> None:
    why = rt.explain(model, images(2), fact="ant", foil=["bee", {"eel", "dog & cow"}], contrast="mean")
    frame = why.to_frame()
    assert list(frame["foil"]) == ["bee", "dog & cow or eel"] * 2
    p = why.logits.softmax(1)
    assert frame["p_foil"][1] == pytest.approx((p[0, 3] + p[0, 4]).item())
    heat = why.heatmap()[1, 0]
    assert heat[frame["peak_row"][2], frame["peak_column"][2]] == heat.max()
    assert frame["relevance_for"][2] - frame["relevance_against"][2] == pytest.approx(heat.sum().item(), abs=1e-6)


def test_of_many_maps_a_few_are_upsampled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand heatmaps of one image fill 200 MB, so 64 are upsampled at once, none twice for the lines of a page."""
    pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 200))
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), *pooled)
    why = rt.explain(rt.Model(module, layer="1"), images(1, torch.float32), foil="each")
    drawn: list[int] = []
    upsample = torch.nn.functional.interpolate

    def noted(maps: torch.Tensor, *given: object, **more: object) -> torch.Tensor:
        drawn.append(len(maps))
        return upsample(maps, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "interpolate", noted)
    why.cases()
    assert drawn == [64, 64, 64, 8]
    drawn.clear()
    assert str(why).count("Why ") == 5
    assert drawn == [5]


def test_of_many_foils_the_likeliest_are_told_and_drawn(tmp_path: Path) -> None:
    """Printed, drawn, on a page and in a notebook: the same ones, the likeliest first."""
    torch.manual_seed(0)
    pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 40))
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), *pooled)
    why = rt.explain(rt.Model(module, layer="1"), images(2), foil="each")
    ranked = [[f"class {k}?" for k in row.argsort(descending=True, stable=True)[1:].tolist()] for row in why.logits]
    lines = str(why).splitlines()
    told = [line.split("rather than ")[1].split(" <")[0].split("? ")[0] + "?" for line in lines if ": Why " in line]
    assert told == ranked[0][:5] + ranked[1][:5]
    assert lines[-2:] == ["(5 of 40 questions about each image, the likeliest)", f"({why.made_by()})"]
    assert [view.foil + "?" for view in why.panels()[1].maps] == ranked[1][:20]
    page = cases_of(why.save(tmp_path / "why.html").read_text())
    assert [[f"{foil}?" for foil in one["why"]["groups"][0]["foils"]] for one in page] == ranked, "all of them"
    html = why._repr_html_()
    assert html.count("rather than") == 10
    assert ranked[0][0] in html
    assert len(why.to_frame()) == 80, "the numbers hold all"


FOILS_AT_ONCE = """
import resource, sys, torch
import ratherthan as rt
classes, budget = 6000, 2**25
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 5, stride=5), torch.nn.ReLU(), torch.nn.Flatten(),
                          torch.nn.Linear(50, classes))
x = torch.rand(1, 1, 28, 28)
ask = dict(method="gradcam", memory_budget=budget)
few = rt.explain(net, x, foil="top3", **ask)
str(few), few.plot(), few.save(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
each = rt.explain(net, x, **{sys.argv[1]: "each"}, **ask)
str(each), each.plot()
each.save(sys.argv[2])
print((peak() - before) / budget)
few = rt.explain(net, x, **{sys.argv[1]: [5, 4711, 17]}, **ask)
for key in ("attribution", "score", "fact", "foil", "foil_sets"):
    torch.testing.assert_close(getattr(each, key)[:, [5, 4711, 17]], getattr(few, key))
"""


@pytest.mark.parametrize("axis", of_today(["foil", "fact"], 2))
def test_each_against_each_holds_the_memory_budget(axis: str, tmp_path: Path) -> None:
    """The foils of 6,000 questions about 6,000 classes are 36 MB, and their seeds four times as much."""
    command = [sys.executable, "-c", FOILS_AT_ONCE, axis, str(tmp_path / "each.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 7, "all at once it would be thirty"
    assert (tmp_path / "each.safetensors").stat().st_size < 6000 * 500


def test_batches_with_and_without_sets_of_foils_are_joined(model: rt.Model) -> None:
    foils = [[{3, 4}, 2], [1, 2]]
    whole = rt.explain(model, images(2), fact=0, foil=foils)
    parts = rt.explain(model, images(2), fact=0, foil=foils, batch_size=1)
    assert torch.equal(whole.foil_sets, parts.foil_sets)
    assert [[row.nonzero().flatten().tolist() for row in each] for each in parts.foil_sets] == [
        [[3, 4], [2]],
        [[1], [2]],
    ]
    torch.testing.assert_close(whole.attribution, parts.attribution)


@pytest.mark.parametrize(("contrast", "foil"), [("weighted", "each"), ("max", "top4"), ("loss", [4, {1, 2}, 0])])
@pytest.mark.parametrize("method", ["gradcam", "lrp", "occlusion", "ig"])
def test_cut_into_parts_the_questions_have_the_same_answers(
    model: rt.Model, method: str, contrast: str, foil: object
) -> None:
    whole = rt.explain(model, images(2), foil=foil, method=method, contrast=contrast)
    tight = rt.explain(model, images(2), foil=foil, method=method, contrast=contrast, memory_budget=1600)  # two at once
    for key in ("attribution", "score", "foil", "fact", "foil_sets"):
        torch.testing.assert_close(getattr(tight, key), getattr(whole, key), rtol=1e-4, atol=1e-6)
    assert tight.diagnostics.keys() == whole.diagnostics.keys()


@pytest.mark.parametrize("foil", [None, "runner-up", "each"])
@pytest.mark.parametrize("method", ["gradcam", "ixg"])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, model: rt.Model, foil: str | None, method: str) -> None:
    why = rt.explain(model, images(2), foil=foil, method=method)
    again = rt.Explanation.load(why.save(tmp_path / "why.safetensors"))
    for name in ("images", "attribution", "logits", "fact", "foil", "foil_sets", "score"):
        assert torch.equal(getattr(again, name), getattr(why, name)), name
    for name in ("axis", "method", "contrast", "layer", "class_names", "names", "output", "versions"):
        assert getattr(again, name) == getattr(why, name), name
    assert str(again) == str(why)


@pytest.mark.parametrize("content", [b"", b"not a tensor file", None])
def test_loading_something_else_is_one_clear_error(tmp_path: Path, model: rt.Model, content: bytes | None) -> None:
    path = tmp_path / "why.safetensors"
    if content is None:
        whole = rt.explain(model, images(1)).save(path).read_bytes()
        content = whole[: len(whole) // 2]
    path.write_bytes(content)
    with pytest.raises(rt.InputError, match=r"why\.safetensors"):
        rt.Explanation.load(path)
    with pytest.raises(rt.InputError, match=r"no such file|No such file"):
        rt.Explanation.load(tmp_path / "missing.safetensors")


def test_a_file_of_another_kind_or_time_is_refused(tmp_path: Path, model: rt.Model) -> None:
    path = rt.explain(model, images(1)).save(tmp_path / "why.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["ratherthan"])
    other = "was saved by another version of ratherthan: compute it again"
    for change, message in (
        ({"format": header["format"] + 1}, other),
        ({"format": 2}, other),
        ({"kind": "counterfactual"}, "holds no explanation"),
    ):
        save_file(load_file(path), tmp_path / "x.safetensors", {"ratherthan": json.dumps({**header, **change})})
        with pytest.raises(rt.InputError, match=rf"x\.safetensors' {message}"):
            rt.Explanation.load(tmp_path / "x.safetensors")
    with pytest.raises(rt.InputError, match="holds no"):
        rt.Counterfactual.load(path)


def test_html_needs_nothing_else_and_escapes_names(tmp_path: Path, model: rt.Model) -> None:
    compared = rt.compare(model, images(2), foil=["<cat>", "eel"], contrasts=["none", "mean", "weighted"])
    page = rt.save_report(compared, tmp_path / "why.html").read_text()
    assert "\\u003ccat>" in page
    assert "<cat>" not in page
    assert "http://" not in page
    assert "https://" not in page
    for i, shown in enumerate(cases_of(page)):  # the page opens on the first of each, the plain map is there once
        maps = maps_of(shown)
        assert next(iter(maps))[0] == "weighted"
        assert sorted(maps) == sorted({("none", ""), *((c, f) for c in ("mean", "weighted") for f in ("<cat>", "eel"))})
        for q, foil in enumerate(("<cat>", "eel")):
            expected = compared[2].attribution[i, q].numpy()
            np.testing.assert_allclose(maps["weighted", foil], expected, atol=np.abs(expected).max() / 254 + 1e-9)


def test_text_says_how_much_of_the_relevance_is_for_the_fact(model: rt.Model) -> None:
    why = rt.explain(model, images(3), fact="ant", foil=["bee", "eel"])
    said = re.findall(r"; (\d+)% of the relevance is for it\.", str(why))
    expected = []
    for heat in why.heatmap().flatten(0, 1).tolist():
        values = [value for row in heat for value in row]
        expected.append(sum(v for v in values if v > 0) / sum(abs(v) for v in values))
    assert len(said) == 6
    assert [int(each) / 100 for each in said] == pytest.approx(expected, abs=0.0051)
    assert max(abs(share - 0.5) for share in expected) > 0.1, "else for and against look alike"


def test_the_bars_hold_the_fact_and_the_foils_however_unlikely() -> None:
    model = make(lambda: Linear(3 * 12 * 12, 20), class_names=[f"c{k}" for k in range(20)])
    p = model.logits(images(1)).softmax(1)[0]
    order = p.argsort(descending=True).tolist()
    fact, foil = order[-1], order[-2]
    (panel,) = to_panels([rt.explain(model, images(1), fact=fact, foil=foil, method="ixg")])
    shown = dict(panel.probabilities)
    assert set(shown) == {f"c{k}" for k in [*order[:6], fact, foil]}
    assert shown[f"c{fact}"] == pytest.approx(p[fact].item())
    bars = {text.get_text() for text in figure([panel]).axes[2].texts}
    assert {f"c{fact}", f"c{foil}"} <= bars, "they are drawn, too"


def test_a_page_opens_with_the_weighted_map_and_writes_percentages_in_one_way(tmp_path: Path, model: rt.Model) -> None:
    compared = rt.compare(model, images(2), foil=["bee", "eel"], contrasts=["none", "mean", "weighted"])
    page = rt.save_report(compared, tmp_path / "why.html").read_text()
    for shown in cases_of(page):
        assert [group["contrast"] for group in shown["why"]["groups"]] == ["weighted", "none", "mean"]
    assert len(re.findall(r"\d%", page)) > 20
    assert not re.search(r"\d %", page)


def test_cases_hold_the_plain_map_once_and_say_which_method(model: rt.Model) -> None:
    compared = rt.compare(model, images(1), fact=0, foil=[1, 2], methods=["gradcam", "la"], contrasts=["none", "max"])
    (case,) = to_panels(compared)
    views = [(view.foil, view.contrast) for view in case.maps]
    assert views == [
        *[("", "gradcam none"), ("bee", "gradcam max"), ("<cat>", "gradcam max")],
        *[("", "la none"), ("bee", "la max"), ("<cat>", "la max")],
    ]
    facts = to_panels([rt.explain(model, images(2), fact="top3")])
    assert len(facts) == 6
    assert facts[0].fact == NAMES[int(rt.explain(model, images(2)).fact[0])]


def test_values_read_as_values() -> None:
    model = make(lambda: Linear(3 * 12 * 12, 1), output="value")
    why = rt.explain(model, images(1), foil=[0.75, 0.25], method="ixg")
    value = why.logits.item()
    assert str(why).splitlines()[0].startswith(f"image 0: Why {value:.3g}, rather than 0.75?")
    assert why.score.tolist()[0] == pytest.approx([(value - 0.75) ** 2, (value - 0.25) ** 2])


def test_shows_itself_in_a_notebook(model: rt.Model) -> None:
    page = rt.explain(model, images(1), fact="<cat>", foil="eel")._repr_html_()
    assert page.startswith('<img src="data:image/png;base64,')
    assert "&lt;cat&gt;" in page


def test_a_function_asks_by_its_name_and_is_refused_where_it_is_infinite(model: rt.Model) -> None:
    def margin(logits: torch.Tensor, fact: torch.Tensor, foils: torch.Tensor) -> torch.Tensor:
        rivals = logits.masked_fill(~foils, -torch.inf).topk(2).values
        return logits.gather(1, fact[:, None])[:, 0] - rivals.mean(1)

    why = rt.explain(model, images(1), fact="ant", foil={"bee", "eel"}, contrast=margin)
    assert str(why).startswith("image 0: Why ant, rather than bee or eel? (margin)")
    with pytest.raises(rt.InputError, match="'margin' gives NaN or infinite values"):
        rt.explain(model, images(1), fact="ant", foil="bee", contrast=margin)


def test_unknown_endings_are_refused(tmp_path: Path, model: rt.Model) -> None:
    with pytest.raises(rt.InputError, match=r"\.png, \.html or \.safetensors"):
        rt.explain(model, images(1)).save(tmp_path / "why.gif")
    assert json.dumps(rt.explain(model, images(1)).versions)


def test_labels_of_a_set_go_along_by_name_and_unknown_ones_are_not_guessed(tmp_path: Path) -> None:
    model = rt.Model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), ["owl", "cat", "dog"], channels=1)
    pixels = np.zeros((4, 2, 2), np.uint8)
    names, classes = tuple("abcd"), ("Cat", "dog", "emu")
    data = rt.Dataset("pets", classes, names, (0, 1, 2, -1), rt.data.ArrayReader(pixels), numbered=False)
    for found in (
        rt.explain(model, data, method="ixg", batch_size=3),
        rt.pertinent_positive(model, data, method=rt.CEMPositive(iterations=1, binary_search_steps=1)),
    ):
        assert found.labels is not None
        assert found.labels.tolist() == [1, 2, -1, -1]
        assert [case.label for case in found[1:].cases()] == ["dog", "", ""]
        assert type(found).load(found.save(tmp_path / "found.safetensors")).labels.tolist() == [1, 2, -1, -1]
    assert rt.explain(model, torch.zeros(1, 1, 2, 2), method="ixg").labels is None
    beyond = torch.utils.data.TensorDataset(torch.zeros(2, 1, 2, 2), torch.tensor([2, 7]))
    assert rt.explain(rt.Model(model.module, channels=1), beyond, method="ixg").labels.tolist() == [2, -1]
