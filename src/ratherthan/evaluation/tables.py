"""A run and its numbers: tidy, summed up with bootstrap intervals, as the papers' tables, and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Experiment, find_experiment
from ratherthan.evaluation.shards import BadShard, Shards

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_RESAMPLES = 1000
_NAMES = {
    "none": "original", "gradcam": "GradCAM", "la": "LA", "model-mean": "zeros", "relative": "relative probability",
    "logit": "change in y_t", "probability": "change in p_t", "accuracy": "change in accuracy",
}  # fmt: skip
_COLOURS = {"none": "#8b949e", "mean": "#d9a441", "max": "#c2573a", "weighted": "#2f6fab"}
Weights = Any  # numpy array (resamples, samples)


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
        return [each for number in range(self.shards.count) for each in self._shard(number)[1]]

    def to_frame(self) -> DataFrame:
        """All rows: one per sample, method, contrast and setting.

        Raises:
            InputError: If a shard is missing or damaged, or no sample took part.
        """
        import pandas as pd

        tables = [self._shard(number)[0].to_pandas() for number in range(self.shards.count)]
        filled = [table for table in tables if len(table)]
        if not filled:
            raise InputError(f"{self!r}: not one sample took part (of {self.shards.samples})")
        return pd.concat(filled, ignore_index=True)

    def _shard(self, number: int) -> tuple[Any, list[tuple[str, str]]]:
        try:
            return self.shards.read(number)
        except BadShard as reason:
            raise InputError(f"{self.shards.folder} is unfinished: {reason}; run it again with resume=True") from reason

    # ----------------------------------------------------------------------------------------- summing up
    def summary(self) -> DataFrame:
        """Mean of every measure with its 95 % interval, from 1,000 bootstrap resamples of the samples.

        Returns:
            One row per method, contrast, setting and measure: mean, low, high, n (samples where it is defined).
        """
        groups, values = self._values()
        return self._summed(groups, values)

    def difference(self, contrast: str = "weighted", against: str = "none") -> DataFrame:
        """The mean difference between two contrasts on the same samples, with its 95 % interval.

        Raises:
            InputError: If one of them was not measured.
        """
        groups, values = self._values()
        rest = [column for column in groups.columns if column != "contrast"]
        sides = [groups.index[groups["contrast"] == name] for name in (contrast, against)]
        if not len(sides[0]) or not len(sides[1]):
            raise InputError(f"this run compares {', '.join(groups['contrast'].unique())}; not {contrast}, {against}")
        place = {tuple(row): i for i, row in zip(sides[1], groups.loc[sides[1], rest].to_numpy(), strict=True)}
        pairs = [(i, place[tuple(row)]) for i, row in zip(sides[0], groups.loc[sides[0], rest].to_numpy(), strict=True)]
        first, second = (list(each) for each in zip(*pairs, strict=True))
        kept = groups.loc[first, rest].reset_index(drop=True)
        return self._summed(kept, {key: each[:, first] - each[:, second] for key, each in values.items()})

    def _values(self) -> tuple[DataFrame, dict[str, Any]]:
        """The groups in order of appearance, and per measure the values (samples, groups), NaN where there is none."""
        frame = self.to_frame()
        keys = ["method", "contrast", *self.experiment.keys]
        group = frame.groupby(keys, sort=False).ngroup().to_numpy()
        groups = frame[keys].drop_duplicates().reset_index(drop=True)
        _, sample = np.unique(frame["position"].to_numpy(), return_inverse=True)
        values = {}
        for measure in self.experiment.measures:
            values[measure] = np.full((sample.max() + 1, len(groups)), np.nan)
            values[measure][sample, group] = frame[measure].to_numpy()
        return groups, values

    def _summed(self, groups: DataFrame, values: dict[str, Any]) -> DataFrame:
        import pandas as pd

        samples = len(next(iter(values.values())))
        random = np.random.default_rng(int(self.shards.settings["seed"]))
        resampled: dict[str, list[Any]] = {measure: [] for measure in values}
        for _ in range(_RESAMPLES // 50):
            times = random.multinomial(samples, np.full(samples, 1 / samples), size=50).astype(float)
            for measure, each in values.items():
                resampled[measure].append(_means(times, each))
        tables = []
        for measure, each in values.items():
            drawn = np.concatenate(resampled[measure])
            low, high = _nan_quantiles(drawn)
            figures = {"mean": _means(np.ones((1, samples)), each)[0], "low": low, "high": high}
            tables.append(groups.assign(measure=measure, **figures, n=(~np.isnan(each)).sum(0)))
        return pd.concat(tables, ignore_index=True)

    # ----------------------------------------------------------------------------------------- tables
    def table(self, intervals: bool = True, bold: tuple[str, str] = ("**", "**")) -> DataFrame:
        """The summary laid out as in the papers, as text; the best contrast of a cell is set in bold.

        Args:
            intervals: Whether each mean is followed by its interval.
            bold: What is put around the best.
        """
        down, across = map(list, self.experiment.layout)
        summary = self.summary()
        shown = summary[summary["measure"].isin(self._shown)].copy()
        alike = [key for key in (*down, *across) if key != "contrast"]
        for _, cell in shown.groupby(alike, sort=False):
            shown.loc[cell.index, "text"] = self._texts(cell, intervals, bold)
        labels = shown[[*down, *across]].map(_label)
        order = {key: labels[key].unique().tolist() for key in labels}
        table = labels.assign(text=shown["text"]).pivot(index=down, columns=across, values="text").fillna("")
        table = table.loc[list(dict.fromkeys(labels.set_index(down).index))]
        for level, key in reversed(list(enumerate(across))):
            table = table.sort_index(
                axis=1, level=level, key=lambda c, k=key: c.map(order[k].index), kind="stable", sort_remaining=False
            )
        if self.experiment.lead is not None:
            before = summary[summary["measure"] == self.experiment.lead]
            before = before.groupby([before[key].map(_label) for key in down])["mean"].mean().map(_number)
            table.insert(0, (self.experiment.lead, *[""] * (len(across) - 1)), before)
        return table

    @property
    def _shown(self) -> tuple[str, ...]:
        return self.experiment.shown or self.experiment.measures

    def _texts(self, cell: DataFrame, intervals: bool, bold: tuple[str, str]) -> list[str]:
        """What stands in the table for the contrasts of a cell, the best of them in bold."""
        praised = self.experiment.higher_is_better
        judged = [praised[value] for value in cell.iloc[0][["measure", *self.experiment.keys]] if value in praised]
        texts = [_number(mean) for mean in cell["mean"]]
        best = (
            texts[(cell["mean"] if judged[0] else -cell["mean"]).argmax()] if judged and len(set(texts)) > 1 else None
        )
        reach = [
            f" ({_number(low)} to {_number(high)})" * intervals
            for low, high in zip(cell["low"], cell["high"], strict=True)
        ]
        return [
            (f"{bold[0]}{text}{bold[1]}" if text == best else text) + more
            for text, more in zip(texts, reach, strict=True)
        ]

    def note(self) -> str:
        """One line that says what the numbers rest on."""
        took_part, settings = self.to_frame()["position"].nunique(), self.shards.settings
        skipped = f", {len(self.skipped)} unreadable" if self.skipped else ""
        return (
            f"{self.experiment.name} on {settings['data']['name']}: {took_part} of {self.shards.samples} samples took "
            f"part{skipped}; mean (95 % bootstrap interval); the better contrast in bold."
        )

    def to_markdown(self, intervals: bool = True) -> str:
        """The table in Markdown, with the note below it."""
        table = self.table(intervals)
        columns = table.columns.to_frame().to_numpy().tolist()
        heads = [*table.index.names, *(" ".join(filter(None, column)) for column in columns)]
        lines = [heads, ["---"] * table.index.nlevels + ["---:"] * len(table.columns)]
        starts = table.index.to_frame().to_numpy().tolist()
        lines += [[*start, *row] for start, row in zip(starts, table.to_numpy().tolist(), strict=True)]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + f"\n\n{self.note()}\n"

    def to_latex(self, intervals: bool = False) -> str:
        """The table in LaTeX (booktabs, multirow), captioned with the note."""
        table = self.table(intervals, (r"\textbf{", "}"))
        table = table.rename(index=_escaped, columns=_escaped)
        return str(table.to_latex(escape=False, multicolumn_format="c", caption=_escaped(self.note())))

    # ----------------------------------------------------------------------------------------- drawing
    def plot(self) -> Figure:
        """Bars with intervals, one per contrast, in the manner of weighted-contrast Fig. 3.

        There is a panel per measure and method. A dotted line marks the value before anything was altered.
        """
        from matplotlib.figure import Figure

        summary, shown, keys = self.summary(), self._shown, list(self.experiment.keys)
        methods, contrasts = summary["method"].unique(), list(summary["contrast"].unique())
        groups = list(dict.fromkeys(map(tuple, summary[keys].to_numpy().tolist())))
        figure = Figure((max(4.4, 0.16 * len(groups) * len(contrasts) + 1.6) * len(methods), 2.4 * len(shown) + 0.9))
        axes = figure.subplots(len(shown), len(methods), squeeze=False, sharex=True, sharey="row")
        for panel, (measure, method) in zip(axes.flat, product(shown, methods), strict=True):
            of_method = summary[summary["method"] == method]
            for place, contrast in enumerate(contrasts):
                of_contrast = of_method[of_method["contrast"] == contrast]
                rows = of_contrast[of_contrast["measure"] == measure]
                at = np.array([groups.index(tuple(each)) for each in rows[keys].to_numpy().tolist()])
                reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["mean"].to_numpy())
                look = {"color": _COLOURS.get(contrast), "label": _label(contrast), "error_kw": {"lw": 0.8}}
                width = 0.8 / len(contrasts)
                panel.bar(at + (place + 0.5) * width - 0.4, rows["mean"], width, yerr=reach, **look)
                before = of_contrast[of_contrast["measure"] == self.experiment.lead]["mean"]
                panel.hlines(
                    before, at[: len(before)] - 0.42, at[: len(before)] + 0.42, color="#24292f", lw=0.8, ls=":"
                )
            panel.axhline(0, color="#24292f", lw=0.6)
            panel.set_title(f"{_label(measure)}, {_label(method)}", fontsize=9)
            panel.set_xticks(range(len(groups)), [" ".join(map(_label, each)) for each in groups], fontsize=7)
            panel.tick_params(axis="x", rotation=90 if len(groups) > 4 else 0)
            panel.tick_params(axis="y", labelsize=7)
            panel.set_xlabel(", ".join(keys) if measure == shown[-1] else "", fontsize=7)
            panel.spines[["top", "right"]].set_visible(False)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize=8, frameon=False
        )
        figure.set_layout_engine("constrained")
        return figure


def _means(times: Weights, values: Any) -> Any:
    """Weighted means without what is undefined: (resamples, samples), (samples, groups) to (resamples, groups)."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (times @ np.where(defined, values, 0.0)) / (times @ defined)


def _nan_quantiles(drawn: Any) -> tuple[Any, Any]:
    undefined = np.isnan(drawn).all(0)
    low, high = np.nanquantile(np.where(undefined, 0.0, drawn), [0.025, 0.975], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%")


def _number(value: float) -> str:
    if np.isnan(value):
        return "undefined"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.1e}"


def _label(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _NAMES.get(value, str(value))
