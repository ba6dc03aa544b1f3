"""A run and its numbers: tidy, summed up with bootstrap intervals, as the papers' tables, and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Experiment, experiment_kind
from ratherthan.evaluation.shards import BadPart, Parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_RESAMPLES = 1000
_NAMES = {
    "none": "original", "gradcam": "GradCAM", "la": "LA", "relative": "relative probability",
    "logit": "change in y_t", "probability": "change in p_t", "accuracy": "change in accuracy",
}  # fmt: skip
_COLOURS = {"none": "#8b949e", "mean": "#d9a441", "max": "#c2573a", "weighted": "#2f6fab"}
Weights = Any  # numpy array (resamples, samples)


@dataclass(frozen=True, repr=False)
class Run:
    """The results of an experiment.

    Attributes:
        parts: Where they lie.
        experiment: What was measured.
    """

    parts: Parts
    experiment: Experiment

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in a folder, finished or not.

        Raises:
            InputError: If there is none.
        """
        parts = Parts.open(Path(folder))
        options = dict(parts.settings["experiment"])
        kind = experiment_kind(options.pop("name"))
        experiment = object.__new__(kind)  # only what it is called and how it is shown is needed
        for name, value in options.items():
            object.__setattr__(experiment, name, value)
        return cls(parts, experiment)

    def __repr__(self) -> str:
        return f"Run({self.experiment.name} on {self.parts.settings['data']['name']}, {self.parts.folder})"

    def _repr_html_(self) -> str:
        return str(self.summary().to_html(index=False))

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Samples that could not be read, and why."""
        return [each for number in range(self.parts.count) for each in self._part(number)[1]]

    def frame(self) -> DataFrame:
        """All rows: one per sample, method, contrast and setting.

        Raises:
            InputError: If a part is missing or damaged, or no sample took part.
        """
        import pandas as pd

        tables = [self._part(number)[0].to_pandas() for number in range(self.parts.count)]
        filled = [table for table in tables if len(table)]
        if not filled:
            raise InputError(f"{self!r}: not one sample took part (of {self.parts.samples})")
        return pd.concat(filled, ignore_index=True)

    def _part(self, number: int) -> tuple[Any, list[tuple[str, str]]]:
        try:
            return self.parts.read(number)
        except BadPart as reason:
            raise InputError(f"{self.parts.folder} is unfinished: {reason}; run it again with resume=True") from reason

    # ----------------------------------------------------------------------------------------- summing up
    def summary(self) -> DataFrame:
        """Mean of every measure with its 95 % interval, from 1,000 bootstrap resamples of the samples.

        Returns:
            One row per method, contrast, setting and measure: mean, low, high, n (samples where it is defined).
        """
        groups, values = self._values()
        return self._summed(groups, values)

    def difference(self, contrast: str = "weighted", baseline: str = "none") -> DataFrame:
        """The mean difference between two contrasts on the same samples, with its 95 % interval.

        Raises:
            InputError: If one of them was not measured.
        """
        groups, values = self._values()
        rest = [column for column in groups.columns if column != "contrast"]
        sides = [groups.index[groups["contrast"] == name] for name in (contrast, baseline)]
        if not len(sides[0]) or not len(sides[1]):
            raise InputError(f"this run compares {', '.join(groups['contrast'].unique())}; not {contrast}, {baseline}")
        place = {tuple(row): i for i, row in zip(sides[1], groups.loc[sides[1], rest].to_numpy(), strict=True)}
        pairs = [(i, place[tuple(row)]) for i, row in zip(sides[0], groups.loc[sides[0], rest].to_numpy(), strict=True)]
        first, second = (list(each) for each in zip(*pairs, strict=True))
        kept = groups.loc[first, rest].reset_index(drop=True)
        return self._summed(kept, {key: each[:, first] - each[:, second] for key, each in values.items()})

    def _values(self) -> tuple[DataFrame, dict[str, Any]]:
        """The groups in order of appearance, and per measure the values (samples, groups), NaN where there is none."""
        frame = self.frame()
        keys = ["method", "contrast", *self.experiment.settings]
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
        random = np.random.default_rng(int(self.parts.settings["seed"]))
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
        import pandas as pd

        down, across = self.experiment.layout
        summary = self.summary()
        shown = summary[summary["measure"].isin(self.experiment.shown or self.experiment.measures)]
        alike = [key for key in (*down, *across) if key != "contrast"]
        cells: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
        for values, cell in shown.groupby(alike, sort=False):
            sign = self.experiment.better(dict(zip(alike, values, strict=True)))
            texts = [_number(mean) for mean in cell["mean"]]
            best = texts[int((sign * cell["mean"]).argmax())] if sign and len(set(texts)) > 1 else None
            for text, row in zip(texts, cell.to_dict("records"), strict=True):
                figure = f"{bold[0]}{text}{bold[1]}" if text == best else text
                reach = f" ({_number(row['low'])} to {_number(row['high'])})" if intervals else ""
                line = cells.setdefault(tuple(_label(row[k]) for k in down), self._lead(summary, row))
                line[tuple(_label(row[k]) for k in across)] = figure + reach
        table = pd.DataFrame.from_dict(cells, orient="index").fillna("")
        seen = [{"": -1} | {_label(v): i for i, v in enumerate(shown[key].unique())} for key in across]
        columns = sorted(
            cells[next(iter(cells))], key=lambda c: [level.get(v, -1) for level, v in zip(seen, c, strict=True)]
        )
        table = table[columns]
        table.index = _index(list(cells), down)
        table.columns = _index(columns, across)
        return table

    def _lead(self, summary: DataFrame, row: dict[str, Any]) -> dict[tuple[str, ...], str]:
        if self.experiment.lead is None:
            return {}
        down, across = self.experiment.layout
        alike = summary["measure"] == self.experiment.lead
        for key in down:
            alike &= (summary[key] == row[key]) if key != "measure" else True
        return {(self.experiment.lead, *[""] * (len(across) - 1)): _number(summary.loc[alike, "mean"].mean())}

    def note(self) -> str:
        """One line that says what the numbers rest on."""
        took_part, settings = self.frame()["position"].nunique(), self.parts.settings
        skipped = f", {len(self.skipped)} unreadable" if self.skipped else ""
        return (
            f"{self.experiment.name} on {settings['data']['name']}: {took_part} of {self.parts.samples} samples took "
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

        summary = self.summary()
        shown = self.experiment.shown or self.experiment.measures
        methods, contrasts = summary["method"].unique(), list(summary["contrast"].unique())
        keys = list(self.experiment.settings)
        groups = list(dict.fromkeys(map(tuple, summary[keys].to_numpy().tolist())))
        figure = Figure((max(4.4, 0.16 * len(groups) * len(contrasts) + 1.6) * len(methods), 2.4 * len(shown) + 0.9))
        axes = figure.subplots(len(shown), len(methods), squeeze=False, sharex=True, sharey="row")
        for panel, (measure, method) in zip(axes.flat, [(s, m) for s in shown for m in methods], strict=True):
            of_panel = summary[(summary["measure"] == measure) & (summary["method"] == method)]
            for place, contrast in enumerate(contrasts):
                rows = of_panel[of_panel["contrast"] == contrast]
                at = [groups.index(tuple(each)) for each in rows[keys].to_numpy().tolist()]
                x = np.array(at) + (place + 0.5) / len(contrasts) * 0.8 - 0.4
                mean = rows["mean"].to_numpy()
                reach = np.abs(rows[["low", "high"]].to_numpy().T - mean)
                look = {"color": _COLOURS.get(contrast), "label": _label(contrast), "error_kw": {"lw": 0.8}}
                panel.bar(x, mean, 0.8 / len(contrasts), yerr=reach, **look)
                if self.experiment.lead is not None:
                    lead = summary[(summary["measure"] == self.experiment.lead) & (summary["method"] == method)]
                    before = lead[lead["contrast"] == contrast]["mean"]
                    panel.hlines(before, np.array(at) - 0.42, np.array(at) + 0.42, color="#24292f", lw=0.8, ls=":")
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


def _index(keys: list[tuple[str, ...]], names: tuple[str, ...]) -> Any:
    import pandas as pd

    if len(names) == 1:
        return pd.Index([key[0] for key in keys], name=names[0])
    return pd.MultiIndex.from_tuples(keys, names=names)


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%")


def _number(value: float) -> str:
    if np.isnan(value):
        return "undefined"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.1e}"


def _label(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _NAMES.get(value, str(value))
