from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from pages import cases_of, maps_of, numbers, order_of
from ratherthan import InputError
from ratherthan.files import write_atomically
from ratherthan.render.case import LONGEST, Case, Map, grids, image_uri, part, path, picture, volume, why
from ratherthan.render.colours import (
    AGAINST,
    FACT,
    FADED,
    FOIL,
    FOR,
    diverging,
    overlay,
    palette,
    resample,
    sequential,
    shared_limit,
    tint,
)
from ratherthan.render.figure import figure, grid
from ratherthan.render.page import write_page
from ratherthan.render.panel import Heatmap, Panel
from ratherthan.render.searches import Trajectory, draw_excerpts, draw_probabilities, draw_trajectories, excerpt_row
from ratherthan.words import percent, shorten

NASTY = "<script>alert('x')</script> & \"quoted\" $\\frac{"


def spot(row: int, column: int, value: float, size: int = 28) -> np.ndarray:
    values = np.zeros((size, size))
    values[row, column] = value
    return values


def case(maps: tuple[Heatmap, ...] | None = None, name: str = "seven.png", size: int = 28) -> Panel:
    maps = maps or (
        Heatmap("1", "weighted", spot(3, 4, 2.0), "the bar speaks for 7"),
        Heatmap("9", "weighted", spot(20, 9, -1.0), "the gap speaks for 9"),
        Heatmap("1", "probability", spot(3, 4, 1e-6), "a small effect"),
    )
    image = np.linspace(0, 1, size * size).reshape(size, size)
    return Panel(name, image, "7", (("9", 0.2), ("7", 0.7), ("1", 0.1)), maps)


def trajectory(**changes: Any) -> Trajectory:
    black = np.zeros((4, 6, 1))
    usual: dict[str, Any] = {
        "name": "a.png", "question": "Why 4, rather than 9?", "text": "", "status": "found", "image": black,
        "reconstruction": None, "path": [black] * 5, "answer": black + np.eye(4, 6)[..., None],
        "fact": ("4", [1.0] * 5), "foil": ("9", [0.0] * 5), "others": [0.0] * 5,
    }  # fmt: skip
    return Trajectory(**{**usual, **changes})


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


class Page(HTMLParser):
    """The tags, the attributes and the text a browser would see."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""  # with that of style and script
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]


# --- colours


def test_colours_are_monotone_from_blue_through_white_to_orange() -> None:
    colours = diverging(np.linspace(-1.5, 1.5, 301)[None], 1.0)[0].astype(int)
    assert (np.diff(colours[:, 0] - colours[:, 2]) >= 0).all()
    lightness = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness[50:151]) > 0).all()
    assert (np.diff(lightness[150:251]) < 0).all()
    assert colours[150].tolist() == [255, 255, 255]
    assert (colours[:51] == colours[0]).all()
    assert (colours[250:] == colours[-1]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.float16, np.float32, bool])
def test_every_dtype_gets_the_colours_of_its_numbers(dtype: type) -> None:
    numbers = np.array([[0, 1]]) if dtype is bool else np.array([[0, 1, 60, 127]])
    limit = 1.0 if dtype is bool else 127.0
    np.testing.assert_array_equal(diverging(numbers.astype(dtype), limit), diverging(numbers.astype(np.float64), limit))
    assert diverging(np.array([[-128]], dtype=np.int8), 127)[0, 0].tolist() == diverging([[-9e9]], 1)[0, 0].tolist()


def test_zero_map_is_neutral_and_negative_map_is_blue() -> None:
    zero = np.zeros((3, 4))
    assert (diverging(zero, shared_limit([zero])) == 255).all()
    assert (sequential(zero, 0.0) == 255).all()
    negative = -np.linspace(0.1, 1, 12).reshape(3, 4)
    colours = diverging(negative, shared_limit([negative])).astype(int)
    assert (colours[..., 2] > colours[..., 0]).all()


def test_sequential_darkens_and_ignores_negative_values() -> None:
    colours = sequential(np.array([[-5.0, 0.0, 0.3, 0.6, 1.0, 7.0]]), 1.0)[0].astype(int).sum(-1)
    assert colours[0] == colours[1] == 765
    assert (np.diff(colours[1:5]) < 0).all()
    assert colours[4] == colours[5]


@pytest.mark.parametrize(
    ("values", "limit"), [([[np.nan]], 1.0), ([1.0], 1.0), ([[1.0]], -1.0), ([[1.0]], np.nan), ([[1.0]], np.inf)]
)
def test_what_cannot_be_coloured_is_refused(values: object, limit: float) -> None:
    with pytest.raises(InputError):
        diverging(values, limit)


def test_tint_over_white_is_the_diverging_map_and_the_palette_is_the_tint() -> None:
    values = np.linspace(-1, 1, 255).reshape(5, 51)
    coloured = tint(values, 1.0).astype(float)
    opacity = coloured[..., 3:] / 255
    over_white = coloured[..., :3] * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(over_white, diverging(values, 1.0), atol=1)
    index, colours = palette(values, 1.0)
    np.testing.assert_array_equal(colours[index], tint(values, 1.0))


def test_overlay_keeps_the_grey_image_where_the_map_is_zero_and_tints_more_where_it_is_stronger() -> None:
    image = np.random.default_rng(0).random((6, 5, 3))
    values = np.zeros((6, 5))
    values[0, 0], values[0, 1], values[5, 4] = 1.0, 0.2, -1.0
    drawn = overlay(image, values, 1.0).astype(int)
    grey = 255 - FADED * (255 - np.rint(image * 255) @ [0.299, 0.587, 0.114])
    np.testing.assert_array_equal(drawn[values == 0], np.rint(grey)[values == 0][:, None].repeat(3, 1))
    warmth = drawn[..., 0] - drawn[..., 2]
    assert warmth[0, 0] > warmth[0, 1] > 0 > warmth[5, 4]
    np.testing.assert_array_equal(overlay((image * 255).round().astype(np.uint8), values, 1.0), drawn)
    np.testing.assert_array_equal(overlay(image[..., 0], values, 1.0), overlay(image[..., :1], values, 1.0))
    with pytest.raises(InputError, match=r"\(3, 6, 5\)"):
        overlay(image.transpose(2, 0, 1), values, 1.0)


def test_shared_limit_is_the_strongest_map_s_and_never_hides_a_sparse_map() -> None:
    ramp = np.linspace(-1, 0.5, 1001)
    assert shared_limit([ramp, 3 * ramp], 1.0) == 3.0
    assert shared_limit([ramp, 3 * ramp], 0.5) == pytest.approx(3 * np.quantile(np.abs(ramp), 0.5))
    assert shared_limit([spot(1, 1, -4.0, 100)], 0.9) == 4.0
    assert shared_limit([np.linspace(0, 1, 1001)]) == pytest.approx(0.995), "half a percent may burn out, no more"
    assert shared_limit([]) == shared_limit([np.zeros(3)]) == 0.0
    with pytest.raises(InputError):
        shared_limit([np.array([np.inf])])


def test_resample_puts_a_coarse_map_where_it_belongs() -> None:
    large = resample(spot(1, 2, 1.0, 7), (70, 70))
    assert np.unravel_index(large.argmax(), large.shape)[0] in range(10, 20)
    assert np.unravel_index(large.argmax(), large.shape)[1] in range(20, 30)
    assert resample(np.ones((40, 30)), (4, 3)) == pytest.approx(np.ones((4, 3)))


# --- panels and words


def test_scales_are_shared_by_foils_but_not_by_contrasts() -> None:
    assert case().limits() == {"weighted": 2.0, "probability": 1e-6}


def test_bars_always_hold_the_fact() -> None:
    many = Panel("x", np.zeros((2, 2)), "last", (*((str(i), 0.2) for i in range(4)), ("last", 0.01)), ())
    assert [name for name, _ in many.bars(3)] == ["0", "1", "last"]
    assert [name for name, _ in many.bars(3, ("3",))] == ["0", "3", "last"]
    assert [name for name, _ in many.bars(1, ("3",))] == ["last"]


def test_a_share_is_never_rounded_to_nothing_nor_doubt_to_certainty() -> None:
    assert [percent(p) for p in (0, 1e-9, 0.0005, 0.123, 0.9994, 0.99999, 1)] == [
        "0.0%", "< 0.1%", "0.1%", "12.3%", "99.9%", "> 99.9%", "100.0%"
    ]  # fmt: skip


def test_words() -> None:
    assert shorten("German short-haired pointer", 12) == "German shor…"
    assert shorten("two\n lines", 12) == "two lines"
    with pytest.raises(InputError):
        Heatmap("a", "mean", np.array([[np.nan]]))


# --- figures


def test_figure_has_a_panel_for_everything_and_the_right_colours_at_known_places() -> None:
    one = case()
    drawn = figure([one, one])
    assert len(drawn.axes) == 2 * (1 + 3 + 1) + 1
    strongest, halfway = (drawn.axes[i].images[0].get_array() for i in (1, 2))
    np.testing.assert_array_equal(strongest, overlay(one.image, one.maps[0].values, 2.0))
    np.testing.assert_array_equal(halfway, overlay(one.image, one.maps[1].values, 2.0))
    assert int(strongest[3, 4, 0]) - int(strongest[3, 4, 2]) > 120
    assert int(halfway[20, 9, 2]) - int(halfway[20, 9, 0]) > 60
    assert len(set(strongest[27, 27])) == 1
    words = " ".join(text.get_text() for text in drawn.texts)
    assert words.count("Why 7?") == 2
    assert [axes.get_title() for axes in drawn.axes[1:3]] == ["rather than 1 · weighted", "rather than 9 · weighted"]
    assert "shared by the foils" in drawn.axes[-1].get_xlabel()


def test_figure_pixels_as_rendered_show_the_sign() -> None:
    flat = Panel(
        "x", np.zeros((8, 8)), "a", (), (Heatmap("b", "mean", np.ones((8, 8))), Heatmap("b", "max", -np.ones((8, 8))))
    )
    drawn = figure([flat])
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=60)
    pixels = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    for axes, sign in ((drawn.axes[1], 1), (drawn.axes[2], -1)):
        box = axes.get_position()
        row, column = int((1 - (box.y0 + box.y1) / 2) * len(pixels)), int((box.x0 + box.x1) / 2 * len(pixels[0]))
        expected = overlay(flat.image, sign * np.ones((8, 8)), 1.0)[0, 0]
        np.testing.assert_allclose(pixels[row, column], expected, atol=2)


def test_figure_survives_hostile_names_and_says_what_it_leaves_out() -> None:
    one = case(tuple(Heatmap(f"{NASTY}{i}", "weighted", spot(i, i, 1.0), NASTY) for i in range(9)), name=NASTY)
    hostile = Panel(NASTY, one.image, NASTY, ((NASTY, 1.0),), one.maps)
    drawn = figure([hostile, case()], max_maps=2)
    drawn.savefig(io.BytesIO(), format="png", dpi=30)
    assert any("the first 2 of 9 maps" in text.get_text() for text in figure([one], max_maps=2).texts)
    with pytest.raises(InputError):
        figure([])


def test_grid_places_every_image() -> None:
    pictures = [(f"n{i}", np.full((4, 6, 3), i * 20, dtype=np.uint8)) for i in range(7)]
    drawn = grid(pictures, 3, title="all")
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in drawn.axes] == list(range(0, 140, 20))
    lefts = [round(axes.get_position().x0, 4) for axes in drawn.axes]
    assert lefts[0] == lefts[3] == lefts[6] < lefts[1] < lefts[2]


def bars(drawn: Any, axes: int) -> dict[str, tuple[str, float, str]]:
    """Of each class of a panel: the colour and length of its bar, and what stands behind it."""
    place = drawn.axes[axes]
    rows = {round(text.get_position()[1]): [] for text in place.texts}  # type: ignore[var-annotated]
    for text in sorted(place.texts, key=lambda text: text.get_position()[0]):
        rows[round(text.get_position()[1])].append(text.get_text())
    above = {round(bar.get_y() + bar.get_height() / 2): bar for bar in place.patches}  # the last of a row is on top
    return {
        name: (to_hex(above[row].get_facecolor()), above[row].get_width(), said) for row, (name, said) in rows.items()
    }


def test_the_bar_of_the_fact_is_orange_and_those_of_the_foils_blue() -> None:
    maps = tuple(Heatmap(foil, "weighted", spot(1, 1, 1.0)) for foil in ("1", "9"))
    some = Panel("x", np.zeros((28, 28)), "7", (("9", 0.2), ("7", 0.6), ("3", 0.1499), ("1", 0.0001)), maps)
    drawn = bars(figure([some]), 3)
    assert {name: (length, said) for name, (_, length, said) in drawn.items()} == {
        "7": (0.6, "60.0%"), "9": (0.2, "20.0%"), "3": (0.1499, "15.0%"), "1": (0.0001, "< 0.1%")
    }  # fmt: skip
    hues = {name: to_rgb(colour) for name, (colour, _, _) in drawn.items()}
    assert hues["7"][0] > hues["7"][2] + 0.4
    assert hues["9"][2] > hues["9"][0] + 0.2
    assert hues["1"] == hues["9"]
    assert max(hues["3"]) - min(hues["3"]) < 0.1


@pytest.mark.parametrize("sides", [("against the fact, for the foil", "for the fact"), ("left", "right")])
def test_the_colour_bar_says_what_blue_and_orange_mean(sides: tuple[str, str]) -> None:
    drawn = figure([case() if sides[0] != "left" else Panel("x", np.zeros((4, 4)), "7", (), (), sides)])
    bar = drawn.axes[-1].images[0].get_array().astype(int)
    assert bar[0, 0, 2] > bar[0, 0, 0] + 100
    assert bar[0, -1, 0] > bar[0, -1, 2] + 100
    box = drawn.axes[-1].get_position()
    said = {text.get_text(): (text.get_position()[0], text.get_color(), text.get_ha()) for text in drawn.texts}
    (at_blue, blue, ends), (at_orange, orange, starts) = said[sides[0]], said[sides[1]]
    assert at_blue < box.x0 < box.x1 < at_orange
    assert (blue, ends, orange, starts) == (AGAINST, "right", FOR, "left")


# --- trajectories and excerpts


def test_the_change_is_drawn_red_where_light_is_added_and_blue_where_it_goes() -> None:
    added, removed = trajectory(), trajectory(image=np.eye(4, 6)[..., None], answer=np.zeros((4, 6, 1)))
    for each, channel in ((added, 0), (removed, 2)):
        drawn = draw_trajectories([each]).axes[-2].images[0].get_array().astype(int)
        assert drawn[1, 1, channel] > drawn[1, 1, 2 - channel] + 50
        assert np.ptp(drawn[0, 1]) == 0, "what stays is grey"


def test_the_change_is_from_the_image_itself_not_from_its_reconstruction() -> None:
    image, other, answer = (np.random.default_rng(seed).random((4, 6, 3)) for seed in range(3))
    one = trajectory(image=image, reconstruction=other, answer=answer)
    np.testing.assert_allclose(one.change, sum(answer[..., c] - image[..., c] for c in range(3)))


ODDS = {"fact": ("4", [0.9, 0.8, 0.7, 0.6, 0.3]), "foil": ("9", [0.01, 0.11, 0.21, 0.31, 0.61])}


def test_the_pictures_of_a_trajectory_stand_in_order_over_the_odds_of_fact_and_foil() -> None:
    path = [np.full((4, 6, 1), k / 10) for k in range(5)]
    one = trajectory(
        path=path, image=path[0], answer=path[4], reconstruction=np.ones((4, 6, 3)), status="stopped", **ODDS
    )
    drawn = draw_trajectories([one], frames=3)
    *pictures, change, curves = drawn.axes
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in pictures] == [0, 255, 26, 51, 76, 102]
    assert [axes.get_title() for axes in pictures] == ["image", "reconstruction", "the path", "", "", "stopped"]
    expected = [("90.0%", "1.0%"), None, ("80.0%", "11.0%"), ("70.0%", "21.0%"), ("60.0%", "31.0%"), ("30.0%", "61.0%")]
    for axes, words in [*zip(pictures, expected, strict=True), (change, ("add", "remove"))]:
        box = axes.get_position()
        below = [
            text for text in drawn.texts if box.x0 < text.get_position()[0] < box.x1 and text.get_fontsize() == 7.5
        ]
        below.sort(key=lambda text: text.get_position()[0])
        colours = (FOR, AGAINST) if axes is change else (FACT, FOIL)
        assert [(text.get_text(), text.get_color()) for text in below] == list(zip(words or (), colours, strict=False))
    by_name = {line.get_label(): (list(line.get_ydata()), line.get_color()) for line in curves.lines}
    assert by_name == {"4": (ODDS["fact"][1], FACT), "9": (ODDS["foil"][1], FOIL), "other": ([0.0] * 5, "#a3abb5")}
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["4", "9", "other"]
    assert [list(line.get_ydata()) for line in draw_probabilities(one).axes[0].lines] == [
        list(line.get_ydata()) for line in curves.lines
    ]


def test_an_excerpt_shows_the_part_its_place_its_order_and_the_growing_confidence() -> None:
    image, part, dimmed = (np.random.default_rng(seed).random((5, 4, 3)) for seed in range(3))
    ranks = np.zeros((5, 4))
    ranks[1, 2], ranks[4, 0] = 1.0, 0.5
    one = excerpt_row("a.png", "$cat", "2 of 20 pixels", "found", image, part, dimmed, ranks, 0.9, [0.1, 0.4, 0.8])
    drawn = draw_excerpts([one, one])
    assert len(drawn.axes) == 2 * 5
    *pictures, curve = drawn.axes[5:]
    for axes, expected in zip(pictures[:3], (image, part, dimmed), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), np.rint(expected * 255))
    warmth = np.subtract(*(pictures[3].images[0].get_array().astype(int)[..., channel] for channel in (0, 2)))
    assert warmth[1, 2] > warmth[4, 0] > 20
    assert np.count_nonzero(warmth) == 2, "what is not kept is grey"
    assert [axes.get_title() for axes in pictures] == ["a.png", "enough", "the rest dimmed", "the first strongest"]
    assert {line.get_label(): list(line.get_ydata()) for line in curve.lines} == {
        "whole image": [0.9] * 3, "the part": [0.1, 0.4, 0.8]
    }  # fmt: skip
    assert curve.get_xlabel() == "with the first 0 to 2 features"
    words = [text.get_text() for text in drawn.texts]
    assert words.count("What is enough for $cat?") == words.count("2 of 20 pixels") == 2
    unordered = excerpt_row("a.png", "cat", "", "not found", image, part, dimmed, ranks, 0.9)
    drawn = draw_excerpts([unordered])
    assert [axes.get_title() for axes in drawn.axes][1:2] == ["not found"]
    assert len(drawn.axes) == 4, "without an order there is no curve"
    assert len(draw_excerpts([one, unordered]).axes) == 9
    with pytest.raises(InputError, match="at least one"):
        draw_excerpts([])


# --- the page


def shown(name: str = "seven.png", nasty: str = "") -> Case:
    maps = (
        Map(f"1{nasty}", "weighted", spot(3, 4, 2.0), f"Why 7, rather than 1?{nasty}", f"the bar speaks for 7{nasty}"),
        Map("9", "weighted", spot(20, 9, -1.0), "Why 7, rather than 9?", "the gap speaks for 9"),
        Map("1", f"probability{nasty}", spot(3, 4, 1e-6), "Why 7, rather than 1?", "a small effect"),
    )
    image = np.linspace(0, 1, 28 * 28).reshape(28, 28, 1)
    bars = (("9", 0.2), ("7", 0.7), (f"1{nasty}", 0.1))
    odds = {"fact": (f"7{nasty}", [0.7, 0.4]), "foil": ("9", [0.2, 0.6]), "other": ("other", [0.1, 0.0])}
    way = path(f"Why 7?{nasty}", f"then 9{nasty}", f"found{nasty}", [image, image / 2], image, image / 2, odds)
    ranks = np.where(image > 0.9, image, 0)[..., 0]
    enough = part(f"so much{nasty}", "found", ranks, [0.1, 0.8], 0.7)
    return Case(name, "7", picture(image), bars, why(maps, ("against", "for")), [way], enough)


def page_of(folder: Path, cases: Any, title: str = "t", intro: str = "", about: Any = ()) -> str:
    return write_page(cases, folder / "page.html", title, intro, about).read_text(encoding="utf-8")


def test_a_page_holds_every_text_picture_and_number(tmp_path: Path) -> None:
    source = page_of(tmp_path, [shown(), shown("other.png")], "The title", "First.\n\nSecond.", [("method", "la <b>")])
    page = Page(source)
    assert [tag["data-name"] for tag in page.all("article")] == ["seven.png", "other.png"]
    for words in ("The title", "First.", "Second.", "la <b>"):
        assert words in page.text
    for told in cases_of(source):
        maps = maps_of(told)
        assert list(maps) == [("weighted", "1"), ("weighted", "9"), ("probability", "1")]
        np.testing.assert_allclose(maps["weighted", "1"], spot(3, 4, 2.0), atol=2 / 254)
        np.testing.assert_allclose(maps["weighted", "9"], spot(20, 9, -1.0), atol=1 / 254)
        np.testing.assert_allclose(maps["probability", "1"], spot(3, 4, 1e-6), atol=1e-6 / 254)
        assert told["why"]["groups"][0]["texts"] == ["the bar speaks for 7", "the gap speaks for 9"]
        assert told["bars"] == [["7", 0.7, "70.0%"], ["9", 0.2, "20.0%"], ["1", 0.1, "10.0%"]]
        grey = np.asarray(decode(told["view"]["source"]).convert("L")).astype(float) / 255
        np.testing.assert_allclose(grey, np.linspace(0, 1, 784).reshape(28, 28), atol=0.01)
        (way,) = told["change"]
        assert way["odds"]["foil"] == {"name": "9", "p": [0.2, 0.6]}
        assert way["said"]["fact"] == ["70.0%", "40.0%"]
        np.testing.assert_allclose(numbers(way)[0], -np.linspace(0, 0.5, 784).reshape(28, 28), atol=0.5 / 254 + 0.003)
        order = order_of(told["enough"])
        assert (order > 0).sum() == told["enough"]["count"] == (np.linspace(0, 1, 784) > 0.9).sum()
        assert order[-1, -1] == 1, "the most important first"


def test_the_colours_of_a_page_are_those_of_figures(tmp_path: Path) -> None:
    source = page_of(tmp_path, [shown()])
    (told,) = re.findall(r'<script type="application/json" id="ramp">"(.*?)"</script>', source)
    colours = np.frombuffer(base64.b64decode(told), np.uint8).reshape(255, 4).astype(float)
    opacity = colours[:, 3:] / 255
    expected = diverging(np.linspace(-1, 1, 255)[None], 1.0)[0]
    np.testing.assert_allclose(colours[:, :3] * opacity + 255 * (1 - opacity), expected, atol=2)


def test_more_than_the_limit_of_a_map_is_clipped_and_nothing_else() -> None:
    values = np.append(np.linspace(-1, 1, 4000), 50.0)
    (read,) = numbers(grids([values]))
    limit = shared_limit([values])
    assert limit < 1.001
    (few,) = numbers(grids([values[-100:]]))
    assert few[-1] == 50.0
    np.testing.assert_allclose(read, np.clip(values, -limit, limit), atol=limit / 254 + 1e-12)
    assert (numbers(grids([np.zeros((2, 2))])) == 0).all()
    with pytest.raises(InputError, match="one shape"):
        grids([np.zeros(2), np.zeros(3)])
    with pytest.raises(InputError, match="NaN"):
        grids([np.array([np.nan])])


def test_slices_of_a_volume_stand_below_each_other() -> None:
    values = np.linspace(0, 1, 100)[:, None, None].repeat(8, 1).repeat(6, 2)
    view = volume(values)
    sheet = np.asarray(decode(view["source"]).convert("L")).astype(float) / 255
    assert (view["depth"], view["size"], len(view["slices"])) == (100, [8, 6], 64)
    assert sheet.shape == (64 * 8, 6)
    np.testing.assert_allclose(sheet[4::8, 3], values[view["slices"], 0, 0], atol=0.02)


def test_a_page_takes_every_name_as_text(tmp_path: Path) -> None:
    source = page_of(tmp_path, [shown(NASTY, NASTY)] * 2, NASTY, NASTY, [(NASTY, NASTY)])
    page = Page(source)
    data = [tag for tag in page.all("script") if tag.get("type") == "application/json"]
    assert len(page.all("script")) == len(data) + 1 == 4
    assert [tag["data-name"] for tag in page.all("article")] == [NASTY] * 2
    assert "<script>alert" not in source
    told = cases_of(source)[0]
    assert told["name"] == NASTY
    assert told["why"]["groups"][0]["foils"][0] == f"1{NASTY}"


def test_a_page_fetches_nothing(tmp_path: Path) -> None:
    source = page_of(tmp_path, [shown()])
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|<link|<iframe", source)
    assert "default-src 'none'" in source


def test_a_page_follows_its_own_style_and_script_alone(tmp_path: Path) -> None:
    """What slipped in by way of a name would have another hash, and no style is written at an element."""
    source = page_of(tmp_path, [shown()])
    (policy,) = (a["content"] or "" for a in Page(source).all("meta") if a.get("http-equiv"))
    named = dict(part.split(" ", 1) for part in policy.split("; "))
    assert named.keys() == {"default-src", "img-src", "style-src", "script-src"}
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert named[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"<[^>]* (style|on[a-z]+)=", source.split("<body>")[1].split("<script>")[0])


def test_a_photograph_on_a_page_stays_small() -> None:
    uri, size = image_uri(np.random.default_rng(0).random((900, 1200, 3)))
    assert size == [336, LONGEST]
    assert decode(uri).size == (LONGEST, 336)


def test_a_page_is_whole_or_not_there(tmp_path: Path) -> None:
    file = write_page([shown()], tmp_path / "sub" / "why.html", "good")
    before = file.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_page([shown(), Case("bad", "a", {"kind": np.zeros(1)})], file, "bad")
    assert file.read_text(encoding="utf-8") == before
    assert [each.name for each in file.parent.iterdir()] == ["why.html"]
    with pytest.raises(InputError, match="at least one"):
        write_page([], file, "none")
    with pytest.raises(InputError, match="at least one"):
        draw_trajectories([])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_a_page_as_far_as_the_umask_lets_them(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        path = write_page([shown()], tmp_path / "why.html", "t")
    finally:
        assert os.umask(before) == umask, "the umask itself is left alone"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    assert write_atomically(tmp_path / "x", [b"a", b"b"]).read_bytes() == b"ab"
    assert done == ["fsync", "replace"]


def test_importing_the_room_loads_neither_matplotlib_nor_jinja2() -> None:
    check = (
        "import sys; from ratherthan.render import page, searches; "
        "print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
