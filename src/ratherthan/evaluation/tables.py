"""A run and its numbers: tidy, summed up with bootstrap intervals, as the papers' tables, and drawn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from inspect import cleandoc
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ratherthan.errors import InputError, told_as, unknown
from ratherthan.evaluation.experiment import Experiment, find_experiment
from ratherthan.evaluation.shards import BadShard, Shards
from ratherthan.files import write_atomically
from ratherthan.references import cite
from ratherthan.settings import check_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

_RESAMPLES = 1000
_FEW = 30  # samples; an interval of fewer is not to be relied on
_NAMES = {
    "none": "original", "model-mean": "zeros", "relative": "relative probability",
    "logit": "change in y_t", "probability": "change in p_t", "accuracy": "change in accuracy",
    "gradcam": "Grad-CAM", "la": "LA", "gradient": "Gradient", "ixg": "Input × Gradient", "ig": "Integrated Gradients",
    "smoothgrad": "SmoothGrad", "lrp": "LRP", "deeplift": "DeepLIFT", "occlusion": "Occlusion", "pda": "PDA",
    "lime": "LIME", "cem": "CEM", "cem-maf": "CEM-MAF", "cdeepex": "CDeepEx", "xgem": "xGEM",
}  # fmt: skip
"""How papers write what is registered under these names."""
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

    def compare_methods(self, measure: str | None = None, contrast: str | None = None) -> DataFrame:
        """Each method against each other, and each contrast of a method against each other, on the same samples.

        Holm's correction is for all rows of the answer: the fewer are asked for, the less each has to show. Of methods
        that agree on every sample the first takes part, so of contrasts; `note` names the others.

        Args:
            measure: The only measure that is compared; None: those that tables show.
            contrast: The only contrast under which methods are compared; None: all, and with each other, too.

        Returns:
            A row for each pair that differs in the method or in the contrast. Beside what was compared (method and
            contrast; other_method and other_contrast), by key and measure, are: mean, low, high, n (the mean of the
            first minus the other, its 95 % interval as in `summary`, its samples); rank, other_rank (the mean ranks
            among all that is compared there, 1 for the best, over the samples where all are defined; undefined where
            neither high nor low is praised); p (of Wilcoxon's signed-rank test, zeros count half to either side);
            p_holm (the same after the correction).

        Raises:
            InputError: If there is no such measure or contrast, or nothing to compare.
        """
        from scipy.stats import wilcoxon

        lines, values = self._values()
        measures = list(self.experiment.measures)
        for kind, given, known in (("measure", measure, measures), ("contrast", contrast, lines["contrast"].unique())):
            if given is not None and given not in known:
                raise InputError(unknown(kind, given, known))
        lines = lines[(lines["contrast"] == contrast) | (contrast is None)]
        for kind in ("method", "contrast"):
            lines = lines[lines[kind].isin(list(_alike(kind, lines, values)))]
        ranked = lines[lines["measure"].isin([measure] if measure else self._shown)].assign(rank=np.nan)
        who, alike = ["method", "contrast"], [*self.experiment.keys, "measure"]
        for _, cell in ranked.groupby(alike, sort=False):
            praised, all_defined = self._praised(cell), ~np.isnan(values[:, cell.index]).any(1)
            if praised is not None and all_defined.any():
                ranked.loc[cell.index, "rank"] = ranks(values[all_defined][:, cell.index], praised)
        one = ranked.reset_index(names="line")
        pairs = one.merge(one.rename(columns=lambda name: name if name in alike else f"other_{name}"), on=alike)
        same_method, same_contrast = (pairs[each] == pairs[f"other_{each}"] for each in who)
        pairs = pairs[(pairs["line"] < pairs["other_line"]) & (same_method ^ same_contrast)].reset_index(drop=True)
        if pairs.empty:
            raise InputError("nothing to compare: this is one method under one contrast, or all agree on every sample")
        differences = values[:, pairs["line"]] - values[:, pairs["other_line"]]
        told = self._summed(pairs[[*who, "other_method", "other_contrast", *alike]], differences)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where nothing is defined
            p = wilcoxon(differences, axis=0, zero_method="zsplit", nan_policy="omit").pvalue
        told = told.assign(rank=pairs["rank"], other_rank=pairs["other_rank"], p=p)
        return told.assign(p_holm=_holm(told["p"]))

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
    def table(
        self, intervals: bool = True, bold: tuple[str, str] = ("**", "**"), costs: DataFrame | None = None
    ) -> DataFrame:
        """The summary laid out as in the papers, as text.

        In bold is the best contrast of a cell (the best method, where there is one contrast), but only if the interval
        of its paired difference to the next does not hold 0. Of methods that agree on every sample the first is shown,
        so of contrasts; `note` names the others.

        Args:
            intervals: Whether each mean is followed by its interval.
            bold: What is put around the best.
            costs: What `costs` gives, for a column with forward and backward passes; None: there is none.
        """
        import pandas as pd

        down, across = map(list, self.experiment.layout)
        lines, values = self._values()
        summary = self._summed(lines, values)
        shown = summary[summary["measure"].isin(self._shown)]
        for kind in ("method", "contrast"):
            shown = shown[shown[kind].isin(list(_alike(kind, lines, values)))]
        shown = shown.assign(text=shown["mean"].map(figure_of))
        best = self._best(shown, values)
        shown.loc[best, "text"] = bold[0] + shown.loc[best, "text"] + bold[1]
        if intervals:
            shown["text"] += " (" + shown["low"].map(figure_of) + " to " + shown["high"].map(figure_of) + ")"
        labels = shown[[*down, *across]].map(written)
        rows = labels.set_index(down).index.unique()
        seen = labels.sort_values(across, key=lambda column: pd.factorize(column)[0])  # in order of appearance
        columns = seen.set_index(across).index.unique()
        table = labels.assign(text=shown["text"]).pivot(index=down, columns=across, values="text")
        table = table.reindex(index=rows, columns=columns).fillna("")
        if self.experiment.lead is not None:
            before = summary[summary["measure"] == self.experiment.lead]
            before = before.groupby([before[key].map(written) for key in down])["mean"].mean().map(figure_of)
            table.insert(0, _heading(self.experiment.lead, across), before)
        if costs is not None:
            told = {written(row.method): f"{row.forward:g} + {row.backward:g}" for row in costs.itertuples()}
            methods = table.index.get_level_values("method") if "method" in down else []
            table.insert(0, _heading("passes", across), [told.get(each, "") for each in methods])
        return table

    @property
    def _shown(self) -> tuple[str, ...]:
        """The measures of tables and plots."""
        return self.experiment.shown or self.experiment.measures

    def _best(self, shown: DataFrame, values: Any) -> list[int]:
        """The lines that are better than all they compete with, by an interval of the difference that holds no 0."""
        rivals = "contrast" if shown["contrast"].nunique() > 1 else "method"
        pairs = []
        for _, cell in shown.groupby([key for key in sum(self.experiment.layout, ()) if key != rivals], sort=False):
            ranked = cell["mean"].dropna().sort_values(ascending=not (praised := self._praised(cell)))
            if praised is not None and len(ranked) > 1:
                pairs.append(ranked.index[:2].tolist())
        if not pairs:
            return []
        best, other = np.array(pairs).T
        apart = self._summed(shown.loc[best], values[:, best] - values[:, other])
        return list(apart.index[(apart["low"] > 0) | (apart["high"] < 0)])

    def _praised(self, cell: DataFrame) -> bool | None:
        """Whether the highest or the lowest value of a cell is the best; None: neither."""
        praised = self.experiment.higher_is_better
        return next((praised[key] for key in cell.iloc[0][["measure", *self.experiment.keys]] if key in praised), None)

    def note(self, intervals: bool = True) -> str:
        """One line that says what the numbers rest on, and which columns or lines were left out as equal to others.

        Args:
            intervals: Whether they stand in the table.
        """
        (lines, values), data = self._values(), self.shards.settings["data"]
        skipped = f", {len(self.skipped)} unreadable" if self.skipped else ""
        alike = {**_alike("method", lines, values), **_alike("contrast", lines, values)}
        equal = "; ".join(" = ".join(map(written, (one, *others))) for one, others in alike.items() if others)
        counts = (~np.isnan(values)).sum(0)[lines["measure"].isin(self._shown)]
        fewest = int(min(counts[counts > 0], default=0))
        return (
            f"{self.experiment.name} on {data['name']}: {len(values)} of {data['samples']} samples took part{skipped}; "
            f"mean{' (95 % bootstrap interval)' * intervals}; in bold what is better than the next best by a paired "
            "95 % interval without 0."
            + f" Equal on every sample and shown once: {equal}." * bool(equal)
            + f" Only {fewest} samples: with fewer than {_FEW} rely on neither intervals nor bold." * (fewest < _FEW)
        )

    def to_markdown(self, intervals: bool = True, costs: DataFrame | None = None) -> str:
        """The table in Markdown, with the note below it; see `table`."""
        table = self.table(intervals, costs=costs)
        flat, rules = _flat(table), ["---"] * table.index.nlevels + ["---:"] * len(table.columns)
        lines = [list(flat.columns), rules, *flat.to_numpy().tolist()]
        cells = (" | ".join(str(cell).translate(_MARKDOWN) for cell in line) for line in lines)
        return "\n".join(f"| {line} |" for line in cells) + f"\n\n{self.note(intervals).translate(_MARKDOWN)}\n"

    def to_latex(
        self,
        intervals: bool = False,
        *,
        siunitx: bool = False,
        caption: str | None = None,
        label: str | None = None,
        costs: DataFrame | None = None,
    ) -> str:
        r"""The table in LaTeX, for the packages booktabs and multirow.

        Args:
            intervals: Whether each mean is followed by its interval.
            siunitx: Align numbers at their points, in columns S of that package (with `\sisetup{detect-all}` for bold).
            caption: In LaTeX; None: the note.
            label: None: "tab:" and the experiment's name.
            costs: As in `table`.
        """
        bold = (r"\bfseries ", "") if siunitx and not intervals else (r"\textbf{", "}")
        table = self.table(intervals, bold, costs)
        table = table.rename(index=_escaped, columns=_escaped)
        if siunitx:  # in braces what is not a number alone
            table = table.map(
                lambda cell: f"{{{cell}}}" if intervals or cell in ("", "undefined") or " + " in cell else cell
            )
        return str(
            table.style.to_latex(
                column_format="l" * table.index.nlevels + ("S" if siunitx else "r") * len(table.columns),
                hrules=True, siunitx=siunitx, multicol_align="c", multirow_align="t",
                caption=caption or _escaped(self.note(intervals)), label=label or f"tab:{self.experiment.name}",
            )
        )  # fmt: skip

    def citations(self) -> str:
        """BibTeX of ratherthan, the experiment, methods and contrasts; of your own and of plug-ins there is none."""
        settings, known = self.shards.settings, list[str]()
        methods = (name.partition("(")[0] for name in settings["methods"])
        for name in (settings["experiment"]["name"], *methods, *settings["contrasts"]):
            with suppress(InputError):
                known += [name] * bool(cite(name))
        return cite(*known)

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

        shown = self._shown
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
                look = {"color": _COLOURS.get(contrast), "label": written(contrast), "error_kw": {"lw": 0.8}}
                panel.bar(left, rows["mean"], width, yerr=reach, **look)
                panel.hlines(before["mean"], before["at"] - 0.42, before["at"] + 0.42, color="#24292f", lw=0.8, ls=":")
            panel.axhline(0, color="#24292f", lw=0.6)
            panel.set_title(f"{written(measure)}, {written(method)}", fontsize=9)
            panel.set_xticks(range(len(groups)), [" ".join(map(written, each)) for each in groups])
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


def _alike(kind: str, lines: DataFrame, values: Any) -> dict[str, list[str]]:
    """Methods, or contrasts, and the later ones whose every value agrees with theirs, to a thousandth."""
    rest = [key for key in lines if key != kind]
    places = lines.assign(line=lines.index).pivot(index=rest, columns=kind, values="line")
    told: dict[str, list[str]] = {}
    for name in lines[kind].unique():
        for first, others in told.items():
            pair = places[[first, name]].dropna(how="all")
            if pair.notna().all(axis=None):
                one, other = (values[:, pair[each].astype(int)] for each in pair)
                if np.allclose(one, other, rtol=1e-3, atol=1e-6, equal_nan=True):
                    others.append(name)
                    break
        else:
            told[name] = []
    return told


def _heading(name: str, across: Sequence[str]) -> Any:
    """The label of a column that none of what varies across belongs to."""
    return name if len(across) == 1 else (name, *[""] * (len(across) - 1))


def ranks(values: Any, highest_first: bool) -> Any:
    """Mean rank of each column, 1 for the best, equal values sharing theirs: (samples, columns) to (columns,)."""
    from scipy.stats import rankdata

    return rankdata(-values if highest_first else values, axis=1).mean(0)


def _holm(p: Series) -> Series:
    """p-values that hold for all of them together (Holm 1979): the smallest times m, the next times m - 1, ..."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def _means(times: Any, values: Any) -> Any:
    """Weighted means without what is undefined: (resamples, samples), (samples, groups) to (resamples, groups)."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (times @ np.where(defined, values, 0.0)) / (times @ defined)


_LATEX = str.maketrans({
    **{each: "\\" + each for each in "_%&#${}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\n": " ", "\r": " ", "×": r"$\times$",
})  # fmt: skip
_MARKDOWN = str.maketrans({**{each: "\\" + each for each in "\\|<`"}, "\n": " ", "\r": " "})


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


def figure_of(value: float) -> str:
    """A number as tables have it."""
    if np.isnan(value):
        return "undefined"
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:.1f}" if 100 <= abs(value) < 1e6 else f"{value:.1e}"


def written(value: Any) -> str:
    """How a value, or a method with or without settings, is written in a paper."""
    if isinstance(value, float):
        return f"{value:.3g}"
    name, bracket, settings = str(value).partition("(")
    return _NAMES.get(name, name) + bracket + settings
