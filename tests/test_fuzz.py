"""Settings, pictures and lists of names as nobody would write them: used, or refused in one line."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import ratherthan as rt
from ratherthan.app.options import pairs, value
from ratherthan.attribution.method import methods
from ratherthan.evaluation.experiment import experiments, get_experiment
from ratherthan.search.method import COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS

FAST = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def one_line(error: Exception) -> None:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 2000


# --------------------------------------------------------------------------------------------- settings
MAKERS: dict[str, Any] = {
    **dict.fromkeys(methods(), rt.get_method),
    **dict.fromkeys(experiments(), get_experiment),
    **{f"change {name}": COUNTERFACTUAL_METHODS.make for name in COUNTERFACTUAL_METHODS.names()},
    **{f"keep {name}": PERTINENT_POSITIVE_METHODS.make for name in PERTINENT_POSITIVE_METHODS.names()},
}
ODD = st.one_of(
    st.sampled_from(["1e999", "-1e999", "nan", "9" * 5000, "-" * 10_000 + "1", "{[]: 1}", "[" * 500, "None", "0", "-1",
                     "[1, 'a']", "1.5", "True", "'x'", "()", "{}", "{1: 2}", "1e308", str(2**63), "b'x'", "1j", "..."]),
    st.integers().map(str), st.floats().map(repr), st.text(max_size=8),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=3).map(repr),
)  # fmt: skip


@pytest.mark.parametrize("maker", MAKERS)
@FAST
@given(data=st.data(), text=ODD)
def test_a_setting_of_anything_is_taken_or_refused(maker: str, data: st.DataObject, text: str) -> None:
    make, name = MAKERS[maker], maker.split()[-1]
    try:
        known = sorted(make(name).settings())
    except rt.InputError:  # it cannot do without one that has no default
        return
    key = data.draw(st.sampled_from([*known, "nothing"]))
    try:
        told = make(name, **pairs([f"{key}={text}"])).settings()[key]
    except rt.RatherThanError as error:
        one_line(error)
    else:
        numbers = [each for each in flat(told) if isinstance(each, (int, float))]
        assert all(abs(each) < 2**63 if isinstance(each, int) else np.isfinite(each) for each in numbers)


def flat(given: Any) -> list[Any]:
    if isinstance(given, (list, tuple)):
        return [one for each in given for one in flat(each)]
    return [one for each in given.values() for one in flat(each)] if isinstance(given, dict) else [given]


@FAST
@given(text=st.text(max_size=30))
@example("9" * 5000)
@example("{[]: 1}")
def test_any_text_has_a_value(text: str) -> None:
    assert not isinstance(value(text), list)


# --------------------------------------------------------------------------------------------- pictures
@cache
def good(kind: str) -> bytes:
    """A small picture in a file of this kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "gif", "bmp", "webp"])
@FAST
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.one_of(st.none(), st.floats(0, 1)),
    more=st.binary(max_size=8),
)
def test_a_changed_picture_is_a_picture_or_one_line(
    kind: str, changes: list[tuple[int, int]], keep: float | None, more: bytes, tmp_path: Path
) -> None:
    content = bytearray(good(kind))
    for place, byte in changes:
        content[place % len(content)] = byte
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(bytes(content if keep is None else content[: int(keep * len(content))]) + more)
    try:
        image = rt.Model(torch.nn.Identity(), size=(8, 8)).preprocess(path)
    except rt.InputError as error:
        one_line(error)
    else:
        assert image.shape == (1, 3, 8, 8)
        assert image.isfinite().all()
        assert image.min() >= 0
        assert image.max() <= 1


# --------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("ending", ["json", "txt"])
@FAST
@given(content=st.one_of(
    st.binary(max_size=40), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.text(max_size=5), max_size=4).map(lambda names: repr(names).replace("'", '"').encode()),
    st.sampled_from([b"[" * 100_000, b'{"\xc2\xb2": "a"}', b'{"' + b"9" * 5000 + b'": "a"}', b'["\\ud800", "b"]',
                     b'[["n1", "a"], ["n2"]]', b'{"0": "a", "5": "b"}', b'[[], ["a"]]', b"[null]", b"\xef\xbb\xbfa"]),
))  # fmt: skip
def test_names_of_classes_are_read_or_refused(ending: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"names.{ending}"
    path.write_bytes(content)
    try:
        names = rt.read_class_names(path)
    except rt.InputError as error:
        one_line(error)
    else:
        assert all(isinstance(name, str) for name in names)
        assert len(names) == len(rt.Model(torch.nn.Identity(), names).class_names or ())
