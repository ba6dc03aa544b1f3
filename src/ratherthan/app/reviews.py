"""What `ratherthan reviews merge` does: the verdicts of several people, as pages save them, become one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ratherthan.app.terminal import SCHEMA_VERSION, complain, say
from ratherthan.errors import InputError, told_as
from ratherthan.files import read_text, write_atomically
from ratherthan.registry import unique_name
from ratherthan.settings import check_value

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ["case", "name", "fact", "reviewer", "verdict", "comment"]
_KINDS = (".csv", ".json")
_FIELDS: dict[str, Any] = {
    "name": str, "fact": str, "verdict": Literal["", "agree", "disagree", "unsure"], "comment": str,
}  # fmt: skip


def merge(files: Sequence[Path], out: Path | None) -> None:
    """Merge the files that can be used; write or print the table, and print how far its reviewers agree.

    Args:
        files: A file of each reviewer, who is called like it.
        out: A .csv or .json file; None: the table is printed.

    Raises:
        InputError: If the table cannot be written there; if files could not be used, at the end.
    """
    from pandas import DataFrame

    if out is not None and (out.suffix not in _KINDS or out.is_dir()):
        raise InputError(f"--out {out}: name a file that ends in {' or '.join(_KINDS)}")
    known, rows, reviewers = dict[str, tuple[str, str]](), list[dict[str, str]](), list[str]()
    for path in files:
        try:
            reviews = read(path, known)
        except InputError as error:
            complain(str(error))
            continue
        known |= {case: (told["name"], told["fact"]) for case, told in reviews.items()}
        reviewers.append(unique_name(path.stem, reviewers.__contains__, "{} ({})"))
        rows += [told | {"case": case, "reviewer": reviewers[-1]} for case, told in reviews.items()]
    if reviewers:
        rows.sort(key=lambda row: (len(row["case"]), row["case"]))  # case-2 before case-10
        _tell(DataFrame(rows, columns=COLUMNS), reviewers, out)
    if len(reviewers) < len(files):
        raise InputError(f"{len(files) - len(reviewers)} not merged, {len(reviewers)} merged")


def read(path: Path, known: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """The reviews in a file that a page saved, by case.

    Args:
        path: The file.
        known: Name and fact of the cases of other files.

    Raises:
        InputError: If it is none, or about other cases.
    """
    with told_as(InputError, f"{path} cannot be used", ValueError, RecursionError):
        told = check_value("what it holds", Mapping[str, Any], json.loads(read_text(path)))
        if (told.get("kind"), told.get("schema_version")) != ("ratherthan reviews", 1):
            raise InputError("it holds no reviews that a page of ratherthan saved")
        reviews = check_value("reviews", Mapping[str, Mapping[str, Any]], told.get("reviews"))
        for case, review in reviews.items():
            for key, hint in _FIELDS.items():
                check_value(f"{key} of {case}", hint, review.get(key))
            name, fact = known.get(case, (review["name"], review["fact"]))
            if (name, fact) != (review["name"], review["fact"]):
                raise InputError(f"it is about another page: its {case} is {review['name']!r}, that of others {name!r}")
    return {case: {key: review[key] for key in _FIELDS} for case, review in reviews.items()}


def _tell(table: DataFrame, reviewers: Sequence[str], out: Path | None) -> None:
    cases, same, kappa = agreement(table, reviewers)
    if out is None:
        say(table.to_string(index=False))
    elif out.suffix == ".csv":
        write_atomically(out, [table.to_csv(index=False).encode()])
    else:
        found = {"reviewers": list(reviewers), "cases": cases, "same_verdict": same, "kappa": kappa}
        told = {"schema_version": SCHEMA_VERSION, "agreement": found, "reviews": table.to_dict("records")}
        write_atomically(out, [json.dumps(told, indent=1).encode()])
    share = f" ({same / cases:.0%})" if cases else ""
    what = f"cases with a verdict of each reviewer: {cases}; the same verdict: {same}{share}"
    say(what + (f"; Cohen's kappa {kappa:.2f}" if kappa is not None else ""))
    if out is not None:
        say(f"table    {out}")


def agreement(table: DataFrame, reviewers: Sequence[str]) -> tuple[int, int, float | None]:
    """How far reviewers agree.

    Args:
        table: The merged one.
        reviewers: Their names.

    Returns:
        The number of cases with a verdict of every reviewer, on how many of them all are the same, and Cohen's kappa of
        two reviewers: (p_o - p_e) / (1 - p_e), p_o the share of cases with the same verdict, p_e that to be expected if
        each gave as many of each verdict by chance. None of more reviewers, or where p_e is 1.
    """
    given = table[table["verdict"] != ""].pivot(index="case", columns="reviewer", values="verdict")
    given = given.reindex(columns=list(reviewers)).dropna()
    same = given.nunique(axis=1) == 1
    kappa = None
    if len(reviewers) == 2 and len(given):
        one, other = (given[name].value_counts(normalize=True) for name in reviewers)
        chance = float(one.mul(other, fill_value=0).sum())
        kappa = float((same.mean() - chance) / (1 - chance)) if chance < 1 else None
    return len(given), int(same.sum()), kappa
