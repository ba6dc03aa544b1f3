"""What was saved and then changed by somebody else: it loads as it is, or is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import ratherthan as rt

FAST = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Fields = dict[str, Any]
Tensors = dict[str, Tensor]


@cache
def results() -> dict[str, rt.Result]:
    """One of each kind, about two digits."""
    model = rt.load("zoo:mnist", class_names=[f"digit {i}" for i in range(10)])
    images = torch.zeros(2, 1, 28, 28)
    images[0, 0, 4:24, 13:16] = images[1, 0, 5:8, 6:22] = 1
    judge = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 28), torch.nn.Flatten())
    few = rt.Schedule(outer_iterations=1, inner_iterations=1)
    return {
        "each": rt.explain(model, images, foil="each"),
        "sets": rt.explain(model, images, foil={3, 4}),
        "value": rt.explain(rt.Model(judge, output="value"), images, foil=0.5, method="ixg"),
        "counterfactual": rt.counterfactual(model, images, foil=[3, 8], method=rt.CDeepEx(schedule=few, retries=0)),
        "positive": rt.pertinent_positive(model, images, method=rt.CEMPositive(binary_search_steps=1, iterations=2)),
    }


def parts(path: Path) -> tuple[Any, Tensors]:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["ratherthan"]), tensors


def crafted(which: str, path: Path, change: Callable[[Fields, Tensors], object]) -> Any:
    """The result in a file whose fields, or tensors, were changed."""
    result = results()[which]
    header, tensors = parts(result.save(path))
    change(header["fields"], tensors)
    path.write_bytes(save(tensors, {"ratherthan": json.dumps(header)}))
    return type(result).load(path)


def tensor(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[Fields, Tensors], object]:
    return lambda fields, tensors: tensors.update({key: change(tensors[key]).contiguous()})


def field(**changed: Any) -> Callable[[Fields, Tensors], object]:
    return lambda fields, tensors: fields.update(changed)


REQUIRED = ("images", "logits", "fact", "foil", "attribution", "score", "method", "contrast")


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        *(("each", lambda fields, tensors, key=key: fields.pop(key), key) for key in REQUIRED),
        ("each", field(colour="red"), "colour"),
        ("each", field(names=["a"]), "names of shape (1,)"),
        ("each", field(names=["a", "b", "c"]), "names of shape (3,)"),
        ("each", field(names=[1, 2]), "names is a tuple of text"),
        ("each", field(names="ab"), "names"),
        ("each", field(class_names=["a"] * 9), "class_names of shape (9,)"),
        ("each", field(class_names=[["a"] * 10]), "class_names"),
        ("each", field(axis="zzz"), "axis"),
        ("each", field(axis=None), "fact of shape (2, 10)"),
        ("each", field(output="zzz"), "unknown output 'zzz'"),
        ("each", field(method=5), "method is text"),
        ("each", field(layer=[1]), "layer"),
        ("each", field(settings=[]), "settings"),
        ("each", field(images=3), "images is a Tensor"),
        ("each", field(diagnostics=[]), "diagnostics"),
        ("each", tensor("fact", lambda t: t + 10), "fact is a class that is none of 10"),
        ("each", tensor("fact", lambda t: t - 1000), "fact is a class"),
        ("each", tensor("foil", lambda t: t - 1000), "foil is a class"),
        ("each", tensor("foil", lambda t: t[:, :9]), "foil of shape (2, 9)"),
        ("each", tensor("images", lambda t: t[:1]), "(2, 10) is not (N, K)"),
        ("each", tensor("images", lambda t: t[0]), "(2, 10) is not (N, K)"),
        ("each", tensor("images", lambda t: t.to(torch.complex64)), "images holds what is no finite number"),
        ("each", tensor("logits", lambda t: t * torch.nan), "logits holds what is no finite number"),
        ("each", tensor("logits", lambda t: t[:, :9]), "(10,) is not (K)"),
        ("each", tensor("attribution", lambda t: t / 0), "attribution holds"),
        ("each", tensor("attribution", lambda t: t[:, :3]), "attribution of shape (2, 3,"),
        ("each", tensor("score", lambda t: t[0]), "score of shape (10,)"),
        ("sets", tensor("sets", lambda t: t[:, :9]), "sets of shape (2, 9)"),
        ("value", tensor("foil", lambda t: t[:1]), "foil of shape (1,)"),
        ("value", field(class_names=["a", "b"]), "class_names of shape (2,)"),
        ("counterfactual", field(statuses=[["found"]]), "statuses of shape (1, 1)"),
        ("counterfactual", field(statuses=[["found"], [["found"], 3]]), "counterfactual"),
        ("counterfactual", field(statuses="found"), "statuses is a list"),
        ("counterfactual", field(foil=None), "foil"),
        ("counterfactual", field(attribute_names=["a"]), ""),
        ("counterfactual", tensor("path", lambda t: t[:, :, :3]), "(2, 2, 16, 10) is not (N, Q, T, K)"),
        ("counterfactual", tensor("examples", lambda t: t * torch.nan), "examples holds"),
        ("positive", tensor("mask", lambda t: t[:, 1:]), "mask of shape (2, 27, 28)"),
        ("positive", field(evaluations="many"), "evaluations is a whole number"),
        ("positive", field(interrupted=1), "interrupted"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    which: str, change: Callable[[Fields, Tensors], object], message: str, tmp_path: Path
) -> None:
    if message == "":  # names of attributes that no other field speaks of are harmless
        assert str(crafted(which, tmp_path / "x.safetensors", change)) == str(results()[which])
        return
    with pytest.raises(rt.InputError) as refused:
        crafted(which, tmp_path / "x.safetensors", change)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "header",
    ["[]", "3", "null", "{}", "[" * 100_000, '"x"', '{"kind": "explanation"}', '{"kind": "explanation", "format": 5}',
     '{"kind": "explanation", "format": 5, "fields": null}', '{"kind": "explanation", "format": 4, "fields": []}',
     '{"kind": "explanation", "format": 5, "fields": {"images": {"$tensor": "gone"}}}',
     '{"kind": "explanation", "format": 5, "fields": {"images": {"$tensor": []}}}'],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"images": torch.zeros(1, 1, 4, 4)}, {"ratherthan": header}))
    with pytest.raises(rt.InputError, match=r"x\.safetensors"):
        rt.Explanation.load(path)


def test_a_pipe_and_no_path_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(rt.InputError, match="no such file"):  # to open it would wait for ever
        rt.Explanation.load(tmp_path / "pipe.safetensors")
    for path in (None, 5):
        with pytest.raises(rt.InputError, match="the path of a result is text or a Path"):
            results()["each"].save(path)  # type: ignore[arg-type]
    with pytest.raises(rt.InputError, match="end it in"):
        results()["each"].save(tmp_path)


def one_line(error: Exception) -> None:
    assert len(str(error).splitlines()) == 1


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.lists(st.one_of(st.integers(-3, 3), st.text(max_size=3), st.lists(st.integers(-3, 3), max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(-3, 3), max_size=2),
)  # fmt: skip


@FAST
@given(data=st.data(), which=st.sampled_from(["each", "sets", "value", "counterfactual", "positive"]))
def test_a_file_with_one_field_of_something_else_can_be_used_or_is_refused(
    data: st.DataObject, which: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    fields, _ = parts(results()[which].save(path))
    key = data.draw(st.sampled_from(sorted(fields["fields"])))
    value = data.draw(JUNK)
    try:
        loaded = crafted(which, path, field(**{key: value}))
    except rt.InputError as refused:
        one_line(refused)
    else:
        assert len(loaded) == 2
        assert str(loaded)
        assert len(loaded.to_frame()) >= 2


@FAST
@given(place=st.integers(0, 10**7), bit=st.integers(0, 7), cut=st.booleans())
def test_a_file_with_one_bit_changed_or_cut_loads_or_is_refused(
    place: int, bit: int, cut: bool, tmp_path: Path
) -> None:
    path = results()["sets"].save(tmp_path / "x.safetensors")
    content = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(content[:8], "little")
    place %= head + 64  # the numbers that follow have no meaning that could be wrong
    content[place] ^= 1 << bit
    path.write_bytes(content[:place] if cut else content)
    try:
        loaded = rt.Explanation.load(path)
    except rt.InputError as refused:
        one_line(refused)
    else:
        assert str(loaded)
