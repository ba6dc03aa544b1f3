"""The page of an audit: its tables, the mean maps of the pairs, and cases of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ratherthan.attribution.explain import explain
from ratherthan.attribution.explanation import to_cases
from ratherthan.data import batches
from ratherthan.render import case
from ratherthan.render.page import Part, write_page
from ratherthan.render.panel import Panel
from ratherthan.result import picture

if TYPE_CHECKING:
    from pandas import DataFrame

    from ratherthan.auditing.parts import Piece
    from ratherthan.auditing.run import Audit
    from ratherthan.data import Dataset
    from ratherthan.render.case import Case

_PAIRS, _DRAWN, _EACH, _SUSPECTS = 30, 8, 2, 30  # rows; pairs that are shown, cases of each; rows
_MEANT = 64  # images behind a mean one
_INTRO = """\
Said P, labelled Q: how often, where it is decided on average, and the most typical cases of the most frequent \
pairs. A suspect is an image whose label the network speaks against: look whether the label is right. A piece is a \
twenty-fifth of an image, cut out where the relevance for a class lies, and put onto images of other classes; if it \
closes at least a quarter of the gap between these and images of the class, in log-odds, the class is decided by \
something that is no part of the object."""


def write(found: Audit, path: Path, regions: Any = None) -> Path:
    """Write the page."""
    confusions, suspects = found.confusions(regions), found.suspects(_SUSPECTS)
    drawn = list(confusions[:_DRAWN][["said", "label"]].itertuples(index=False, name=None))
    parts = [Part("What it takes for what", str(found).splitlines()[0], _table(confusions[:_PAIRS]))]
    parts.append(Part("Suspect labels", "The likeliest to be wrong first.", _table(suspects)))
    if pieces := found.pieces():
        parts.append(Part("Pieces", str(found).splitlines()[-1], _table(table_of(pieces)[:_PAIRS])))
    settings = found.run.shards.settings
    about = {"model": found.model.name, "weights": settings["model"]["weights"], "layer": settings["model"]["layer"]}
    about |= {"input": found.model.inputs.describe(), "data": f"{found.data.name}, {settings['data']['fingerprint']}"}
    about |= {"method": f"{found.method.name}, {found.contrast.name}", **settings["versions"]}
    told = [(key, str(each)) for key, each in about.items()]
    return write_page(_cases(found, drawn), path, f"Where does {found.model.name} go wrong?", _INTRO, told, parts)


def table_of(pieces: Sequence[Piece]) -> DataFrame:
    """A row per piece."""
    import pandas as pd

    columns = ("said", "where", "relevance", "closes", "turned", "control", "tried", "spurious")
    return pd.DataFrame([{name: getattr(piece, name) for name in columns} for piece in pieces], columns=columns)


def _table(frame: DataFrame) -> str:
    return str(frame.to_html(index=False, border=0, float_format="{:.3g}".format))


def _cases(found: Audit, pairs: list[tuple[str, str]]) -> list[Case]:
    """Of each pair what its images have in common, then the most typical of them."""
    cases: list[Case] = []
    for said, label in pairs:
        data = found.samples(said, label)
        few = data.subset(range(min(_EACH, len(data))))
        foils = torch.tensor(few.labels)
        cases.append(_mean(found, said, label, data.spread(_MEANT)))
        cases += to_cases([explain(found.model, few, foil=foils, method=found.method, contrast=found.contrast)])
    return cases


def _mean(found: Audit, said: str, label: str, data: Dataset) -> Case:
    images = torch.cat([found.model.preprocess(each) for _, each, _ in batches(data, 16)])
    asked = f"Why {said}, rather than {label}?"
    map_ = case.Map(
        label, found.contrast.name, found.map(said, label).numpy(), asked, f"The mean of {len(data)} images."
    )
    view = case.picture(picture(images.mean(0), found.model.inputs.show))
    return case.Case(f"mean of {said}, labelled {label}", said, view, why=case.why([map_], Panel.sides), label=label)
