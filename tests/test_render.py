from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ratherthan.errors import InputError
from ratherthan.render import (
    Heatmap,
    Panel,
    diverging,
    figure,
    grid,
    overlay,
    overlay_png,
    report_html,
    sequential,
    shared_limit,
    write_report,
)
from ratherthan.render.colours import FADED, film, palette, resample
from ratherthan.render.encode import LONGEST, image_uri, map_uri
from ratherthan.render.figure import percent
from ratherthan.render.panel import shorten

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


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


class Page(HTMLParser):
    """The tags, the attributes and the text a browser would see."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
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


def test_film_over_white_is_the_diverging_map_and_the_palette_is_the_film() -> None:
    values = np.linspace(-1, 1, 255).reshape(5, 51)
    coloured = film(values, 1.0).astype(float)
    opacity = coloured[..., 3:] / 255
    over_white = coloured[..., :3] * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(over_white, diverging(values, 1.0), atol=1)
    index, colours = palette(values, 1.0)
    np.testing.assert_array_equal(colours[index], film(values, 1.0))


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
    assert shared_limit([]) == shared_limit([np.zeros(3)]) == 0.0
    with pytest.raises(InputError):
        shared_limit([np.array([np.inf])])


def test_resample_puts_a_coarse_map_where_it_belongs() -> None:
    large = resample(spot(1, 2, 1.0, 7), (70, 70))
    assert np.unravel_index(large.argmax(), large.shape)[0] in range(10, 20)
    assert np.unravel_index(large.argmax(), large.shape)[1] in range(20, 30)
    assert resample(np.ones((40, 30)), (4, 3)) == pytest.approx(np.ones((4, 3)))


# --- cases


def test_scales_are_shared_by_foils_but_not_by_contrasts() -> None:
    assert case().limits() == {"weighted": 2.0, "probability": 1e-6}


def test_bars_always_hold_the_fact() -> None:
    many = Panel("x", np.zeros((2, 2)), "last", (*((str(i), 0.2) for i in range(4)), ("last", 0.01)), ())
    assert [name for name, _ in many.bars(3)] == ["0", "1", "last"]
    assert [name for name, _ in many.bars(3, ("3",))] == ["0", "3", "last"]
    assert [name for name, _ in many.bars(1, ("3",))] == ["last"]


def test_words() -> None:
    assert [percent(p) for p in (0, 1e-9, 0.123, 0.99999, 1)] == ["0.0 %", "< 0.1 %", "12.3 %", "> 99.9 %", "100.0 %"]
    assert shorten("German short-haired pointer", 12) == "German shor…"
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


def test_overlay_png_is_the_overlay_enlarged(tmp_path: object) -> None:
    one = case()
    path = overlay_png(f"{tmp_path}/deep/o.png", one.image, one.maps[0].values)
    written = np.asarray(Image.open(path))
    assert written.shape == (224, 224, 3)
    np.testing.assert_array_equal(written[::8, ::8], overlay(one.image, one.maps[0].values, 2.0))


# --- the report


def test_report_holds_every_text_picture_and_number() -> None:
    page = Page(report_html([case(), case(name="other.png")], "The title", "First.\n\nSecond."))
    for words in (
        "The title",
        "First.",
        "Second.",
        "the bar speaks for 7",
        "the gap speaks for 9",
        "70.0 %",
        "other.png",
    ):
        assert words in page.text
    assert "Why 7, rather than 9?" in page.text
    maps = page.all("img", **{"class": "map"})
    assert len(maps) == 6
    assert ["hidden" in shown for shown in maps[:3]] == [False, True, True]
    pixels = np.asarray(decode(maps[0]["src"] or "").convert("RGBA")).astype(int)
    assert pixels.shape == (28, 28, 4)
    assert pixels[3, 4, 0] - pixels[3, 4, 2] > 150
    assert pixels[3, 4, 3] > 240
    assert pixels[0, 0, 3] == 0
    assert [a["value"] for a in page.all("input", **{"data-kind": "foil", "name": "foil-2"})] == ["1", "9"]


def test_report_takes_every_name_as_text() -> None:
    hostile = Panel(
        NASTY, np.zeros((4, 4)), NASTY, ((NASTY, 1.0),), (Heatmap(NASTY, NASTY, np.ones((4, 4)), NASTY),) * 2
    )
    source = report_html([hostile, hostile], NASTY, NASTY)
    page = Page(source)
    assert len(page.all("script")) == 1
    assert page.text.count(NASTY) >= 9
    assert page.all("img", alt=NASTY)
    assert page.all("li", **{"data-name": NASTY})
    assert "<script>alert" not in source


def test_report_fetches_nothing() -> None:
    source = report_html([case()], "t")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|<link|<iframe", source)
    assert all((a["src"] or "").startswith("data:image/") for a in Page(source).all("img"))
    assert "default-src 'none'" in source


def test_report_stays_small_for_photographs() -> None:
    photo = np.random.default_rng(0).random((900, 1200, 3))
    uri, shape = image_uri(photo)
    assert shape == (336, LONGEST)
    assert decode(uri).size == (LONGEST, 336)
    assert decode(map_uri(np.ones((14, 14)), 1.0, shape)).size == (14, 14)
    assert decode(map_uri(np.ones((900, 1200)), 1.0, shape)).size == (LONGEST, 336)
    assert decode(map_uri(np.ones((7, 7)), 1.0, (28, 28))).size == (28, 28)


def test_report_is_whole_or_not_there(tmp_path: object) -> None:
    path = write_report([case()], f"{tmp_path}/sub/why.html", "good")
    before = path.read_text()
    broken = Panel("bad", np.zeros((3, 4, 5)), "a", (), ())
    with pytest.raises(InputError):
        write_report([case(), broken], path, "bad")
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["why.html"]
    with pytest.raises(InputError):
        write_report([], path, "none")


def test_report_without_maps_or_probabilities_is_still_a_page() -> None:
    page = Page(report_html([Panel("x.png", np.zeros((4, 4)), "0.58", (), ())], "t"))
    assert "x.png" in page.text
    assert not page.all("img", **{"class": "map"})


def test_importing_the_room_loads_neither_matplotlib_nor_jinja2() -> None:
    check = "import sys, ratherthan.render.report; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
