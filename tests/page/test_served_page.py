"""The page of `ratherthan serve`, in a real browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_saved_page import accessible

pytest.importorskip("starlette", reason="needs starlette: pip install 'ratherthan[serve]'")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    options = ["--also", "zoo:fashion_mnist", "--port", "0", "--cases", str(folder)]
    command = [sys.executable, "-m", "ratherthan", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[1]
        server.kill()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_file_is_asked_about_in_every_way(address: str, look: Any, tmp_path: Path, width: int, scheme: str) -> None:
    pixels, stroke = np.zeros((28, 28), np.uint8), tmp_path / f"{width}.png"
    pixels[4:24, 13:16] = 255
    Image.fromarray(pixels).save(stroke)
    page = look(address, width, scheme, axe=True)
    assert accessible(page) == []
    page.get_by_label("a file of your own").set_input_files(stroke)
    page.get_by_role("button", name="ask", exact=True).click()
    card = page.locator(f"article[data-name='{width}.png']")
    card.get_by_role("heading", level=2).wait_for()
    assert "Why 1, rather than" in card.get_by_role("heading").first.inner_text()
    requests = list[str]()
    page.on("request", lambda made: requests.append(made.url))
    for chip in card.locator("[data-kind=foil] input").all():
        chip.click()
    assert requests == [], "other foils without a request"
    card.get_by_role("button", name="what is enough?").click()
    page.get_by_role("tabpanel", name="what is enough").wait_for(timeout=60_000)
    card.get_by_role("button", name="what would have to change?").click()
    card.get_by_role("tabpanel", name="what would have to change").wait_for(timeout=90_000)
    assert card.get_by_role("tab").all_inner_texts() == ["why", "what would have to change", "what is enough"]
    assert accessible(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.reload()
    assert card.count() == 1, "kept"


def test_what_cannot_be_is_said_beside_the_question(address: str, look: Any, tmp_path: Path) -> None:
    page = look(address)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.get_by_role("button", name="ask", exact=True).click()
    page.get_by_role("alert").filter(has_text="choose a file, or an example").wait_for()
    page.get_by_label("a file of your own").set_input_files(tmp_path / "broken.png")
    with page.expect_response("**/ask") as answered:
        page.get_by_role("button", name="ask", exact=True).click()
    assert answered.value.status == 400
    page.get_by_role("alert").filter(has_text="not an image").wait_for()


def test_an_example_and_another_model_are_chosen(address: str, look: Any) -> None:
    page = look(address)
    page.get_by_label("model").select_option("zoo:fashion_mnist")
    page.get_by_label("example").select_option("cat")
    page.get_by_label("foil: a class, or each").fill("coat")
    page.get_by_role("button", name="ask", exact=True).click()
    card = page.locator("article[data-name='cat']").first
    card.get_by_role("heading", level=2).wait_for()
    assert card.get_by_role("heading").first.inner_text().endswith("rather than coat?")
