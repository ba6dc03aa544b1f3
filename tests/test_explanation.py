"""What `explain` returns: what it holds, says, writes and reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import ratherthan as rt
from nets import Dense, Linear, images, make
from ratherthan.attribution import explanation
from ratherthan.attribution.explanation import to_panels

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
    assert f"{p[1, 0]:.1%} against {p[1, 1]:.1%}" in line
    assert f"weighted {why.logits[1, 0] - why.logits[1, 1]:+.2f}" in line
    assert str(why).endswith("(gradcam on layer features)")


def test_frame_has_a_row_per_sample_and_question(model: rt.Model) -> None:
    why = rt.explain(model, images(2), fact="ant", foil=["bee", {"eel", "dog & cow"}], contrast="mean")
    frame = why.to_frame()
    assert list(frame["foil"]) == ["bee", "dog & cow or eel"] * 2
    p = why.logits.softmax(1)
    assert frame["p_foil"][1] == pytest.approx((p[0, 3] + p[0, 4]).item())
    heat = why.heatmap()[1, 0]
    assert heat[frame["peak_row"][2], frame["peak_column"][2]] == heat.max()
    assert frame["relevance_for"][2] - frame["relevance_against"][2] == pytest.approx(heat.sum().item(), abs=1e-6)


def test_each_line_draws_the_map_it_is_about_and_no_other(model: rt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    why = rt.explain(model, images(2), foil="each")
    drawn = []
    on_plane = explanation._on_plane
    monkeypatch.setattr(explanation, "_on_plane", lambda maps, *rest: drawn.append(maps.shape) or on_plane(maps, *rest))
    assert str(why).count("Why ") == len(why.to_frame()) == 10
    assert drawn == [why.attribution.shape[2:]] * 20


@pytest.mark.parametrize("foil", [None, "runner-up", "each"])
@pytest.mark.parametrize("method", ["gradcam", "ixg"])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, model: rt.Model, foil: str | None, method: str) -> None:
    why = rt.explain(model, images(2), foil=foil, method=method)
    again = rt.Explanation.load(why.save(tmp_path / "why.safetensors"))
    for name in ("images", "attribution", "logits", "fact", "foil", "foils", "score"):
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


def test_html_needs_nothing_else_and_escapes_names(tmp_path: Path, model: rt.Model) -> None:
    compared = rt.compare(model, images(2), foil=["<cat>", "eel"], contrasts=["none", "mean", "weighted"])
    page = rt.save_report(compared, tmp_path / "why.html").read_text()
    assert "&lt;cat&gt;" in page
    assert "<cat>" not in page
    assert "http://" not in page
    assert "https://" not in page
    for contrast in ("none", "mean", "weighted"):
        assert contrast in page


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
