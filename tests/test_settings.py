"""Settings are checked by their types, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

import ratherthan as rt


@dataclass(frozen=True)
class Oven(rt.Settings):
    name = "oven"
    trays: Annotated[int, rt.Interval(1)] = 1
    heat: Annotated[float, rt.Interval(0, 250, above=True)] = 180.0
    mode: Literal["fan", "grill"] = "fan"
    times: tuple[int, ...] = (10,)
    timer: Annotated[int, rt.Interval(1)] | Literal["off"] | None = None
    note: Any = None
    shelves: Mapping[str, Literal["high", "low"]] | None = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trays": 0}, "trays of oven is a whole number of at least 1, not 0"),
        ({"trays": 1.5}, "trays of oven is a whole number of at least 1, not 1.5"),
        ({"trays": True}, "trays of oven is a whole number of at least 1, not True"),
        ({"trays": "two"}, "trays of oven is a whole number of at least 1, not 'two'"),
        ({"heat": 0}, "heat of oven is a number above 0 and at most 250, not 0"),
        ({"heat": 251}, "heat of oven is a number above 0 and at most 250, not 251"),
        ({"heat": float("nan")}, "heat of oven is a number above 0 and at most 250, not nan"),
        ({"mode": "gril"}, "unknown mode of oven 'gril'; did you mean 'grill'?"),
        ({"mode": 3}, "mode of oven is 'fan' or 'grill', not 3"),
        ({"times": ("soon",)}, "times of oven"),
        ({"times": 10}, "times of oven"),
        ({"timer": 0}, "timer of oven"),
        ({"timer": "of"}, "timer of oven"),
        ({"shelves": {"first": "middle"}}, "shelves of oven"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_would(given: dict[str, Any], message: str) -> None:
    with pytest.raises(rt.InputError) as caught:
        Oven(**given)
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_fits_is_kept() -> None:
    made = Oven(2, 250, "grill", [1, 2], 5, object, {"first": "high"})  # type: ignore[arg-type]
    assert (made.trays, made.heat, made.mode, made.timer) == (2, 250, "grill", 5)
    assert made.times == (1, 2), "a list becomes a tuple"
    assert Oven(timer="off").timer == "off"


def test_settings_are_written_without_addresses() -> None:
    class Thing:
        pass

    written = Oven(note=Thing()).settings()
    assert written["note"].endswith("Thing")
    assert "0x" not in str(written)
    assert written["times"] == [10]
