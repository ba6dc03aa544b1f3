"""FoilBench: contrastive explanations, ours or those of other libraries, against truth known by construction."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratherthan.attribution.explain import explain
from ratherthan.attribution.gradient import IntegratedGradients
from ratherthan.attribution.method import Method
from ratherthan.errors import InputError, RatherThanError, first_line
from ratherthan.evaluation.bench.contestants import Peer, RandomMaps, any_other
from ratherthan.evaluation.bench.known import KnownAnswer, Truth
from ratherthan.evaluation.bench.tasks import TASKS, Setting, Task, find_tasks
from ratherthan.evaluation.run import evaluate
from ratherthan.evaluation.tables import Run, figure_of, ranks, written
from ratherthan.files import write_atomically
from ratherthan.progress import Progress
from ratherthan.settings import AtLeastOne, Seed, check_value

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Bench", "KnownAnswer", "Peer", "RandomMaps", "Task", "Truth", "any_other", "bench"]

METHODS: tuple[str | Method, ...] = (
    "random", "gradcam", "la", "gradient", "ixg", IntegratedGradients(n_steps=16), "deeplift", "lrp", "occlusion",
)  # fmt: skip
CONTRASTS = ("none", "weighted", any_other)
_WHO = ["method", "contrast"]


def bench(
    out: str | Path,
    *,
    methods: Sequence[str | Method] | None = None,
    tasks: Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    data_root: str | Path | None = None,
    progress: Progress = None,
) -> Bench:
    """Ask "why P, rather than Q?" where the answer is known, and measure how near each method comes to it.

    Every task is a run of its own in a folder of `out`, in shards; the same call goes on where it was interrupted.
    Each method is asked three ways: why P (contrast `none`), rather than Q (`weighted`; of one foil all contrasts are
    that), and rather than any other class (`any_other`, which does not heed Q). docs/bench.md describes the tasks.

    Args:
        out: The folder.
        methods: Names, "random" among them, or objects; `Peer` wraps those of other libraries. None: ours, and noise.
        tasks: Names; None: all. parts needs MNIST, mosaic and sensitivity imagenet_samples and EfficientNet-Lite0.
        samples: Images of each task; None: what the task says.
        seed: Of all that is drawn.
        data_root: Where data sets lie; None: $RATHERTHAN_DATA.
        progress: As in `evaluate`.

    Returns:
        The results.

    Raises:
        InputError: If an argument cannot be used, or `out` holds other results.

    Example:
        >>> print(bench("bench", methods=["random", "gradcam", "ixg"], tasks=["exact"]).to_markdown())
    """
    check_value("samples", AtLeastOne | None, samples)
    check_value("seed", Seed, seed)
    folder, root = Path(out), None if data_root is None else Path(data_root)
    runs = {}
    for name, task in find_tasks(tasks).items():
        experiment, model, images = task.build(Setting(samples or task.samples, seed, folder, root))
        asked = [RandomMaps() if each == "random" else each for each in (METHODS if methods is None else methods)]
        able = [each for each in asked if _can(each, name, model, images)]
        if not able:
            raise InputError(f"no method that was named can do {name}")
        runs[name] = evaluate(
            experiment, model, images, out=folder / name, methods=able, contrasts=CONTRASTS, seed=seed, resume=True,
            shard_size=10, progress=progress,
        )  # fmt: skip
    return Bench(runs)


def _can(method: str | Method, task: str, model: Any, images: Any) -> bool:
    """Whether a method takes this network; one that refuses it has no line in this task."""
    image = (images.transform or model.inputs.prepare)(images.reader.read(images.positions[0]))
    try:
        explain(model, image.unsqueeze(0), foil="runner-up", method=method)
    except InputError:
        raise
    except RatherThanError as error:
        warnings.warn(f"{getattr(method, 'name', method)} is left out of {task}: {first_line(error)}", stacklevel=3)
        return False
    return True


@dataclass(frozen=True)
class Bench:
    """Results of the bench.

    Attributes:
        runs: A `Run` for each task, with its own tables, comparisons and page.
    """

    runs: dict[str, Run]

    def summary(self) -> DataFrame:
        """One row per task, method and contrast: mean of the task's measure, low, high (95 %), n, rank.

        The rank is the mean over the images of the rank among all methods and contrasts of the task, 1 for the best.
        """
        import pandas as pd

        parts = []
        for task, run in self.runs.items():
            measure = TASKS[task].measure
            values = _told(run.to_frame()).pivot(index="position", columns=_WHO, values=measure)
            each = ranks(values.to_numpy(float), run.experiment.higher_is_better[measure])
            lines = _told(run.summary(), measure).assign(task=task)
            parts.append(lines.join(pd.Series(each, values.columns, name="rank"), on=_WHO))
        return pd.concat(parts, ignore_index=True)[["task", *_WHO, "measure", "mean", "low", "high", "n", "rank"]]

    def gains(self) -> DataFrame:
        """What asking "rather than Q" adds to "why P": mean paired difference, low, high, n, by task and method."""
        import pandas as pd

        found = {task: run.difference("weighted", "none") for task, run in self.runs.items()}
        parts = [_told(each, TASKS[task].measure).assign(task=task) for task, each in found.items()]
        return pd.concat(parts, ignore_index=True)[["task", "method", "measure", "mean", "low", "high", "n"]]

    def to_markdown(self) -> str:
        """The table of all tasks, and that of the gains."""
        summary, runs = self.summary(), self.runs.items()
        known = [task for task, run in runs if isinstance(run.experiment, KnownAnswer)]
        placed = summary.assign(rank=summary["rank"].where(summary["task"].isin(known)))
        means = placed.groupby(_WHO, sort=False)["rank"].agg(
            lambda each: each.mean() if each.count() == len(known) else nan
        )
        whole = _laid_out(summary, _WHO).assign(rank=means.map("{:.1f}".format).replace("nan", "-"))
        counts = ", ".join(f"{run.to_frame()['position'].nunique()} of {task}" for task, run in runs)
        chance = ", ".join(f"{TASKS[task].chance:g} in {task}" for task, _ in runs)
        praised = {task: run.experiment.higher_is_better[TASKS[task].measure] for task, run in runs}
        about = (
            f"Mean (95 % bootstrap interval) of {counts}. Rank: among all lines, mean over images, then over the tasks "
            f"with a truth; 1 is the best. A map that knows nothing reaches {chance}."
            + "".join(f" Of {task} lower is better." for task, higher in praised.items() if not higher)
        )
        paired = "Weighted minus none on the same images, with the 95 % interval of the paired difference:"
        return f"{_markdown(whole)}\n\n{about}\n\n{paired}\n\n{_markdown(_laid_out(self.gains(), ['method']))}\n"

    def save(self, path: str | Path) -> Path:
        """Write both tables to a .md file.

        Raises:
            InputError: If it has another ending.
        """
        if Path(path).suffix != ".md":
            raise InputError(f"cannot save {str(path)!r}: end it in .md")
        return write_atomically(Path(path), [self.to_markdown().encode()])


def _told(frame: DataFrame, measure: str | None = None) -> DataFrame:
    """The rows of a measure; of class-sensitivity those of the comparison with the runner-up."""
    frame = frame if measure is None else frame[frame["measure"] == measure]
    return frame[frame["other"] == "runner-up"] if "other" in frame else frame


def _laid_out(rows: DataFrame, down: list[str]) -> DataFrame:
    """A line for each of `down`, a column for each task, both in order of appearance."""
    mean, low, high = (rows[each].map(figure_of) for each in ("mean", "low", "high"))
    rows = rows.assign(text=mean + " (" + low + " to " + high + ")")
    lines = list(dict.fromkeys(rows[down].itertuples(index=False, name=None)))
    table = rows.pivot(index=down, columns="task", values="text").fillna("-")
    return table.reindex(
        index=lines if len(down) > 1 else [name for (name,) in lines], columns=list(rows["task"].unique())
    )


def _markdown(table: DataFrame) -> str:
    names, rules = list(table.index.names), ["---"] * table.index.nlevels + ["---:"] * len(table.columns)
    lines = [[*names, *table.columns], rules]
    for key, row in table.iterrows():
        lines.append([*map(written, key if isinstance(key, tuple) else (key,)), *row])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
