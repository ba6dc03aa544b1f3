"""The app of a hosted Space, started on loopback and asked as a browser asks it."""

from __future__ import annotations

import html
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ratherthan as rt
from pages import cases_of

pytest.importorskip("gradio", reason="needs gradio: pip install gradio")
client = pytest.importorskip("gradio_client")
SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.fixture(scope="module")
def space() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("space", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    yield module
    module.app.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rt.example("chelsea").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_example_is_explained_on_the_page(space: Any, photo: Path) -> None:
    asked = client.Client(space.app.local_url, verbose=False)
    answer = asked.predict(client.handle_file(str(photo)), 3, "weighted", api_name="/ask")
    (held,) = re.findall(r'<iframe [^>]*srcdoc="([^"]*)"', answer)
    (case,) = cases_of(html.unescape(held))
    logits = space.MODEL.logits(space.MODEL.preprocess(str(photo)))[0]
    names = space.MODEL.class_names or [f"class {number}" for number in range(1000)]
    fact, *foils = (names[each] for each in logits.topk(4).indices)
    (group,) = case["why"]["groups"]
    assert (case["fact"], group["foils"]) == (fact, foils)
    assert case["name"] == "your photograph"
    with pytest.raises(Exception, match="Choose a photograph"):
        asked.predict(None, 3, "weighted", api_name="/ask")


def test_nothing_is_reported(space: Any) -> None:
    assert space.app.analytics_enabled is False
    assert space.app.share is False


def test_the_header_names_the_app() -> None:
    _, head, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["sdk"] == "gradio"
    assert (SPACE / told["app_file"]).is_file()
    assert len((SPACE / "app.py").read_text().splitlines()) <= 40
