"""A run and its numbers: tidy, summed up with bootstrap intervals, as the papers' tables, and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from inspect import cleandoc
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ratherthan.errors import InputError, told_as
from ratherthan.evaluation.experiment import Experiment, find_experiment
from ratherthan.evaluation.shards import BadShard, Shards
from ratherthan.files import write_atomically
from ratherthan.settings import check_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_RESAMPLES = 1000
_NAMES = {
    "none": "original", "gradcam": "GradCAM", "la": "LA", "model-mean": "zeros", "relative": "relative probability",
    "logit": "change in y_t", "probability": "change in p_t", "accuracy": "change in accuracy",
}  # fmt: skip
_COLOURS = {"none": "#8b949e", "mean": "#d9a441", "max": "#c2573a", "weighted": "#2f6fab"}


@dataclass(frozen=True, repr=False)
class Run:
    """The results of an experiment.

    Attributes:
        shards: Where they lie.
        experiment: What was measured.
    """

    shards: Shards
    experiment: Experiment

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in a folder, finished or not.

        Raises:
            InputError: If there is none.
        """
        shards = Shards.open(Path(folder))
        settings = dict(shards.settings["experiment"])
        experiment = object.__new__(find_experiment(settings.pop("name")))  # only how it is shown is needed
        vars(experiment).update(settings)
        return cls(shards, experiment)

    def __repr__(self) -> str:
        return f"Run({self.experiment.name} on {self.shards.settings['data']['name']}, {self.shards.folder})"

    def _repr_html_(self) -> str:
        return str(self.summary().to_html(index=False))

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Samples that could not be read, and why."""
        return [each for _, skipped in self._read() for each in skipped]

    def to_frame(self) -> DataFrame:
        """All rows: one per sample, method, contrast and setting.

        Raises:
            InputError: If a shard is missing or damaged, or no sample took part.
        """
        import pandas as pd

        tables = [table.to_pandas() for table, _ in self._read() if len(table)]
        if not tables:
            unread = "".join(f"; {name}: {reason}" for name, reason in self.skipped[:1])
            samples = self.shards.settings["data"]["samples"]
            raise InputError(f"{self!r}: not one sample took part (of {samples}){unread}")
        return pd.concat(tables, ignore_index=True)

    def _read(self) -> list[tuple[Any, list[tuple[str, str]]]]:
        unfinished = f"{self.shards.folder} is unfinished"
        with told_as(InputError, unfinished, BadShard, then="; run it again with resume=True"):
            return [self.shards.read(number) for number in range(len(self.shards.positions))]

    # ----------------------------------------------------------------------------------------- summing up
    def summary(self) -> DataFrame:
        """Mean of every measure with its 95 % interval, from 1,000 bootstrap resamples of the samples.

        Returns:
            One row per method, contrast, setting and measure: mean, low, high, n (samples where it is defined).
        """
        return self._summed(*self._values())

    def difference(self, contrast: str = "weighted", against: str = "none") -> DataFrame:
        """The mean difference between two contrasts on the same samples, with its 95 % interval.

        Raises:
            InputError: If one of them was not measured.
        """
        lines, values = self._values()
        alike = list(lines.columns.drop("contrast"))
        one, other = (lines[lines["contrast"] == name].reset_index(names="line") for name in (contrast, against))
        pairs = one.merge(other, on=alike)
        if pairs.empty:
            raise InputError(f"this run compares {', '.join(lines['contrast'].unique())}; not {contrast}, {against}")
        return self._summed(pairs[alike], values[:, pairs["line_x"]] - values[:, pairs["line_y"]])

    def _values(self) -> tuple[DataFrame, Any]:
        """What the lines of the summary are about, in order of appearance, and (samples, lines), NaN for no value."""
        keys, measures = ["method", "contrast", *self.experiment.keys], list(self.experiment.measures)
        rows = self.to_frame().melt(["position", *keys], measures, "measure", "its value")
        rows["line"] = rows.groupby([*keys, "measure"], sort=False).ngroup()
        values = rows.pivot(index="position", columns="line", values="its value").to_numpy(float)
        return rows[[*keys, "measure"]].drop_duplicates(ignore_index=True), values

    def _summed(self, lines: DataFrame, values: Any) -> DataFrame:
        import pandas as pd

        samples = len(values)
        random, alike = np.random.default_rng(int(self.shards.settings["seed"])), np.full(samples, 1 / samples)
        times = (random.multinomial(samples, alike, size=50).astype(float) for _ in range(_RESAMPLES // 50))
        drawn = pd.DataFrame(np.concatenate([_means(each, values) for each in times]))
        low, high = drawn.quantile([0.025, 0.975]).to_numpy()
        mean = _means(np.ones((1, samples)), values)[0]
        return lines.assign(mean=mean, low=low, high=high, n=(~np.isnan(values)).sum(0))

    # ----------------------------------------------------------------------------------------- tables
    def table(self, intervals: bool = True, bold: tuple[str, str] = ("**", "**")) -> DataFrame:
        """The summary laid out as in the papers, as text; the best contrast of a cell is set in bold.

        Args:
            intervals: Whether each mean is followed by its interval.
            bold: What is put around the best.
        """
        import pandas as pd

        down, across = map(list, self.experiment.layout)
        summary = self.summary()
        shown = summary[summary["measure"].isin(self.experiment.shown or self.experiment.measures)]
        shown = shown.assign(text=shown["mean"].map(_number))
        for _, cell in shown.groupby([key for key in (*down, *across) if key != "contrast"], sort=False):
            best = self._best(cell)
            shown.loc[cell.index[cell["text"] == best], "text"] = f"{bold[0]}{best}{bold[1]}"
        if intervals:
            shown["text"] += " (" + shown["low"].map(_number) + " to " + shown["high"].map(_number) + ")"
        labels = shown[[*down, *across]].map(_label)
        rows = labels.set_index(down).index.unique()
        seen = labels.sort_values(across, key=lambda column: pd.factorize(column)[0])  # in order of appearance
        columns = seen.set_index(across).index.unique()
        table = labels.assign(text=shown["text"]).pivot(index=down, columns=across, values="text")
        table = table.reindex(index=rows, columns=columns).fillna("")
        if self.experiment.lead is not None:
            before = summary[summary["measure"] == self.experiment.lead]
            before = before.groupby([before[key].map(_label) for key in down])["mean"].mean().map(_number)
            table.insert(0, (self.experiment.lead, *[""] * (len(across) - 1)), before)
        return table

    def _best(self, cell: DataFrame) -> str | None:
        """The text of the contrast that is praised, if the contrasts of a cell differ and one can be better."""
        praised = self.experiment.higher_is_better
        judged = [praised[value] for value in cell.iloc[0][["measure", *self.experiment.keys]] if value in praised]
        if not judged or cell["text"].nunique() == 1:
            return None
        return str(cell["text"].iloc[(cell["mean"] if judged[0] else -cell["mean"]).argmax()])

    def note(self) -> str:
        """One line that says what the numbers rest on."""
        took_part, data = self.to_frame()["position"].nunique(), self.shards.settings["data"]
        skipped = f", {len(self.skipped)} unreadable" if self.skipped else ""
        return (
            f"{self.experiment.name} on {data['name']}: {took_part} of {data['samples']} samples took part{skipped}; "
            "mean (95 % bootstrap interval); the better contrast in bold."
        )

    def to_markdown(self, intervals: bool = True) -> str:
        """The table in Markdown, with the note below it."""
        table = self.table(intervals)
        flat, rules = _flat(table), ["---"] * table.index.nlevels + ["---:"] * len(table.columns)
        lines = [list(flat.columns), rules, *flat.to_numpy().tolist()]
        cells = (" | ".join(str(cell).translate(_MARKDOWN) for cell in line) for line in lines)
        return "\n".join(f"| {line} |" for line in cells) + f"\n\n{self.note().translate(_MARKDOWN)}\n"

    def to_latex(self, intervals: bool = False) -> str:
        """The table in LaTeX (booktabs, multirow), captioned with the note."""
        table = self.table(intervals, (r"\textbf{", "}"))
        table = table.rename(index=_escaped, columns=_escaped)
        return str(table.to_latex(escape=False, multicolumn_format="c", caption=_escaped(self.note())))

    def save(self, path: str | Path) -> Path:
        """Write the table or the plot to a file, whole or not at all.

        Args:
            path: ".html": a page of both, with what they rest on. ".md", ".tex": the table. ".png": the plot.

        Returns:
            The path.

        Raises:
            InputError: If the file has another ending, or the run is unfinished.
        """
        from ratherthan.render.figure import figure_png

        makes = {
            ".md": lambda: self.to_markdown().encode(), ".tex": lambda: self.to_latex().encode(),
            ".png": lambda: figure_png(self.plot()),
        }  # fmt: skip
        path = Path(check_value("the path of a run", str | Path, path))
        if path.suffix == ".html":
            return self._page(path)
        if path.suffix not in makes:
            raise InputError(f"cannot save {str(path)!r}: end it in .html, .md, .tex or .png")
        return write_atomically(path, [makes[path.suffix]()])

    def _page(self, path: Path) -> Path:
        from ratherthan.render.figure import figure_png
        from ratherthan.render.page import Part, write_page

        settings, what = self.shards.settings, cleandoc(type(self.experiment).__doc__ or "").partition("\n\n")[0]
        table = _flat(self.table(bold=("<b>", "</b>")).rename(index=escape, columns=escape))
        parts = [
            Part("Table", table=table.to_html(escape=False, index=False, border=0)),
            Part("Plot", picture=figure_png(self.plot()), says="the numbers of the table as bars with intervals"),
        ]
        data, told = settings["data"], {key: each for key, each in settings["experiment"].items() if key != "name"}
        told |= {"weights": settings["model"]["weights"], "data": f"{data['name']}, {data.get('fingerprint')}"}
        about = [(key, str(each)) for key, each in (told | settings.get("versions", {})).items()]
        title = f"How faithful? {self.experiment.name} on {data['name']}"
        return write_page([], path, title, f"{what}\n\n{self.note()}", about, parts)

    # ----------------------------------------------------------------------------------------- drawing
    def plot(self) -> Figure:
        """Bars with intervals, one per contrast, in the manner of weighted-contrast Fig. 3.

        There is a panel per measure and method. A dotted line marks the value before anything was altered.
        """
        from matplotlib.figure import Figure

        shown = self.experiment.shown or self.experiment.measures
        summary, keys = self.summary(), list(self.experiment.keys)
        methods, contrasts = summary["method"].unique(), list(summary["contrast"].unique())
        places = list(map(tuple, summary[keys].to_numpy().tolist()))
        groups, width = list(dict.fromkeys(places)), 0.8 / len(contrasts)
        summary["at"] = list(map(groups.index, places))
        figure = Figure((max(4.4, 0.16 * len(groups) * len(contrasts) + 1.6) * len(methods), 2.4 * len(shown) + 0.9))
        axes = figure.subplots(len(shown), len(methods), squeeze=False, sharex=True, sharey="row")
        for panel, (measure, method) in zip(axes.flat, product(shown, methods), strict=True):
            for place, contrast in enumerate(contrasts):
                drawn = summary[(summary["method"] == method) & (summary["contrast"] == contrast)]
                rows, before = (drawn[drawn["measure"] == name] for name in (measure, self.experiment.lead))
                left = rows["at"] + (place + 0.5) * width - 0.4
                reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["mean"].to_numpy())
                look = {"color": _COLOURS.get(contrast), "label": _label(contrast), "error_kw": {"lw": 0.8}}
                panel.bar(left, rows["mean"], width, yerr=reach, **look)
                panel.hlines(before["mean"], before["at"] - 0.42, before["at"] + 0.42, color="#24292f", lw=0.8, ls=":")
            panel.axhline(0, color="#24292f", lw=0.6)
            panel.set_title(f"{_label(measure)}, {_label(method)}", fontsize=9)
            panel.set_xticks(range(len(groups)), [" ".join(map(_label, each)) for each in groups])
            panel.tick_params(axis="x", rotation=90 if len(groups) > 4 else 0)
            panel.tick_params(labelsize=7)
            panel.set_xlabel(", ".join(keys) if measure == shown[-1] else "", fontsize=7)
            panel.spines[["top", "right"]].set_visible(False)
        named = axes[0, 0].get_legend_handles_labels()
        figure.legend(*named, loc="outside upper right", ncols=4, fontsize=8, frameon=False)
        figure.set_layout_engine("constrained")
        return figure


def _flat(table: DataFrame) -> DataFrame:
    """A table with one line of heads."""
    flat = table.reset_index()
    heads = [" ".join(filter(None, column)) for column in flat.columns.to_frame().to_numpy().tolist()]
    return flat.set_axis(heads, axis=1)


def _means(times: Any, values: Any) -> Any:
    """Weighted means without what is undefined: (resamples, samples), (samples, groups) to (resamples, groups)."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (times @ np.where(defined, values, 0.0)) / (times @ defined)


_LATEX = str.maketrans({
    **{each: "\\" + each for each in "_%&#${}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\n": " ", "\r": " ",
})  # fmt: skip
_MARKDOWN = str.maketrans({**{each: "\\" + each for each in "\\|<`"}, "\n": " ", "\r": " "})


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


def _number(value: float) -> str:
    if np.isnan(value):
        return "undefined"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.1e}"


def _label(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _NAMES.get(value, str(value))
