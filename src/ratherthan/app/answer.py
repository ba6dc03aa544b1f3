"""What explain, counterfactual and pertinent-positive share: read images, ask, write, print, say what failed."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ratherthan as rt
from ratherthan.app.images import gather, read_all
from ratherthan.app.options import KINDS, AskOptions, WorkerOptions, words
from ratherthan.app.table import lines
from ratherthan.app.terminal import complain, say, say_json
from ratherthan.attribution.explanation import to_panels
from ratherthan.data import Dataset
from ratherthan.errors import InputError, RatherThanError, told_as
from ratherthan.evaluation.workers import spread
from ratherthan.files import check_free, check_place, file_stems, write_atomically
from ratherthan.model import fingerprint
from ratherthan.progress import reporter
from ratherthan.render.figure import figure, figure_png
from ratherthan.render.panel import Panel
from ratherthan.search.method import get_counterfactual_method
from ratherthan.verbs import Samples
from ratherthan.words import printable

ALL = ("none", "mean", "max", "weighted", "probability", "loss")
"""The contrasts that any fact and foils can be asked with, as `--contrast all` and the demo show them."""
_ALIKE = 8
"""Images that fail alike before any is done: it is not their fault, and no more are tried."""


@dataclass(frozen=True)
class Verb:
    """How a verb is spoken of.

    Attributes:
        result: What it returns.
        doing: What is going on, for the bar.
        done: What has become of the images, for messages.
        folder: Where answers go unless the user says otherwise.
        page: Name of the page; the figures end in it, too.
        numbers: Name of the file of numbers.
    """

    result: type[rt.Result]
    doing: str
    done: str
    folder: str
    page: str
    numbers: str


EXPLAIN = Verb(rt.Explanation, "explaining", "explained", "explained", "why", "explanation")
COUNTERFACTUAL = Verb(rt.Counterfactual, "searching", "searched", "changed", "how", "how")
POSITIVE = Verb(rt.PertinentPositive, "searching", "searched", "enough", "enough", "enough")


# --------------------------------------------------------------------------------------------- what is asked
def classes(text: str | None, model: rt.Model) -> Any:
    """Read a fact or foil: a word, a class, a value for a regressor, or a comma-separated list of them.

    A name that holds a comma itself ("tabby, tabby cat") is one class.
    """
    if text is None or text in (model.class_names or ()):
        return text
    known = model.class_names or ()
    parts = [part if part in known else part.strip() for part in text.split(",") if part.strip()]
    if not model.output.of_classes:
        with told_as(InputError, f"this model gives a value: ask with numbers, e.g. 0.75, not {text!r}", ValueError):
            values = [float(part) for part in parts]
        if not all(map(math.isfinite, values)) or not values:
            raise InputError(f"this model gives a value: ask with finite numbers, e.g. 0.75, not {text!r}")
        return values if len(values) != 1 else values[0]
    return parts if len(parts) > 1 else text


def contrasts_of(text: str | None, model: rt.Model) -> list[str | None]:
    """Read the contrasts; None is the model's usual one, "all" are those that it can be asked with.

    Raises:
        InputError: If there is none of such a name, or none at all.
    """
    if text is None:
        return [None]
    names = list(dict.fromkeys(words(text)))
    if not names:
        raise InputError(f"--contrast {text!r} names none; choose from {', '.join(ALL)}, or all")
    if names == ["all"]:
        return [name for name in ALL if model.output.of_classes or rt.get_contrast(name).for_values]
    return [rt.get_contrast(name).name for name in names]


def attribution_method(name: str, settings: dict[str, Any]) -> rt.Method:
    """The method with its settings.

    Raises:
        InputError: If there is no such method or setting, or the method takes no layer.
    """
    if "layer" in settings and not hasattr(rt.get_method(name), "layer"):
        raise InputError(f"method {name!r} explains the image, not a layer; leave --layer out")
    return rt.get_method(name, **settings)


def counterfactual_method(name: str, settings: dict[str, Any]) -> rt.CounterfactualMethod:
    """The method with its settings; those of its `schedule` count as its own.

    Raises:
        InputError: If there is no such method or setting.
    """
    usual = get_counterfactual_method(name)
    schedule = getattr(usual, "schedule", None)
    own = {key: given for key, given in settings.items() if hasattr(usual, key) or not hasattr(schedule, key)}
    paced = {key: given for key, given in settings.items() if key not in own}
    if paced and "schedule" not in own:
        own["schedule"] = replace(schedule, **paced)  # type: ignore[type-var]
    return get_counterfactual_method(name, **own)


# --------------------------------------------------------------------------------------------- what is done
@dataclass(frozen=True)
class _Part:
    """What has become of some images: answers, a list of one per contrast each, and names of the others, and why."""

    answers: list[list[Any]]
    unread: list[tuple[str, str]]
    refused: list[tuple[str, str]]


@dataclass(frozen=True)
class _Asking:
    """What is done with some of the images, in this process or in a worker.

    Attributes:
        model: Who is asked.
        samples: The images, or texts.
        ask: The verb.
        asked: Fact and foil.
        labelled: Whether the images have labels that are meant.
        shape: That all must have; None: that of the first that can be read.
        report: Whom to tell how many are done, within this process.
    """

    model: rt.Model
    samples: Any
    ask: Callable[..., Any]
    asked: dict[str, Any]
    labelled: bool
    shape: Sequence[int] | None
    report: Callable[[float], object] | None

    def __call__(self, positions: Sequence[int]) -> _Part:
        """Read them and ask about them at once; where that is refused, about each by itself."""
        part = _Part([], [], [])
        if read := read_all(self.samples, positions, self.model, part.unread, self.shape):
            images: Any = [image for image, _ in read]
            images = images if isinstance(images[0], str) else torch.stack(images)
            some = Samples.of(self.model, images, names=[printable(name) for _, name in read])
            labels = {self.samples.ids[i]: self.samples.labels[i] for i in positions} if self.labelled else {}
            known = tuple(labels[name] for _, name in read if labels)
            self._put(replace(some, start=positions[0], labels=known), part)
        return part

    def _put(self, some: Samples, part: _Part) -> None:
        report = self.report
        told = None if report is None else lambda done, total: report(done)
        try:
            answers = self.ask(self.model, some, **self.asked, progress=told)
        except RatherThanError as error:
            if len(some) == 1:
                part.refused.append((some.names[0], str(error)))
                return
            for i in range(len(some)):
                self._put(some[i : i + 1], part)
                if report and not some.start and _alike([part]) >= _ALIKE:  # none is done: it is not their fault
                    return
        else:
            part.answers.append(answers if isinstance(answers, list) else [answers])


def answer(
    verb: Verb,
    given: AskOptions,
    work: WorkerOptions,
    prepared: Callable[[rt.Model], Any],
    at_once: int,
    bundle: Path | None = None,
    **question: str | None,
) -> None:
    """Answer a question about images, as far as they can be read.

    Args:
        verb: Which verb.
        given: Images, the model, where to write to.
        work: Who answers.
        prepared: Makes of the model the verb itself, which returns a result, or a list of one per contrast.
        at_once: Images to read and ask about at once. Answers do not depend on who gives them, but may to rounding on
            what they are asked together with.
        bundle: The folder of a bundle of evidence, which then takes the place of the verb's own.
        **question: The foil as it is named on the command line, where there is one.

    Raises:
        InputError: If answers cannot be written where the user says; if images could not be read, at the end.
        KeyboardInterrupt: If stopped, after what is done was written and printed.
    """
    out = given.out or (None if given.as_json or bundle else Path(verb.folder))
    if given.out is not None:
        check_place(given.out, KINDS)
    if bundle is not None:
        check_free(bundle)
    model, command = given.load(given.continuation), shlex.join(["ratherthan", *sys.argv[1:]])
    ask = prepared(model)
    asked = {name: classes(text, model) for name, text in {"fact": given.fact, **question}.items()}
    samples, failures = gather(given, model)
    made = {"command": command, "model": f"{model.name} (weights {fingerprint(model.module)[:12]})"}
    total = 0 if samples is None else len(samples)
    parts = {start: range(total)[start : start + at_once] for start in range(0, total, at_once)}
    heard, stopped, over = dict[int, _Part](), False, 0
    with reporter(True, verb.doing) as report:
        here = not work.workers and work.engine == "processes"
        shape = _shape(samples, model) if len(parts) > 1 else None
        told = (lambda done: report(done, total)) if here else None
        job = _Asking(model, samples, ask, asked, given.data is not None, shape, told)
        try:
            with closing(spread(job, parts, model.device, **vars(work))) as spreading:
                for start, part in spreading:
                    heard[start] = part
                    if _alike(heard.values()) >= min(_ALIKE, total):
                        raise InputError(part.refused[0][1])
                    if part.answers and getattr(part.answers[-1][0], "interrupted", False):
                        raise KeyboardInterrupt
                    over += len(parts[start])
                    report(over, total)
        except KeyboardInterrupt:
            stopped = True
    in_order = [heard[start] for start in sorted(heard)]
    failures += [failure for part in in_order for failure in part.unread + part.refused]
    batches = [[replace(each, **made) for each in answers] for part in in_order for answers in part.answers]
    found: list[Any] = [verb.result.joined(column) for column in zip(*batches, strict=True)]
    files = _write_all(verb, found, out) if found and out is not None else []
    if found and bundle is not None and not stopped:
        files.append(rt.bundle(found, model, bundle, command=command, progress=True))
    if given.as_json:
        say_json(_as_json(model, verb, found, failures, files))
    elif found:
        told = next((each for each in found if getattr(each, "contrast", "") == "weighted"), found[0])
        say("\n".join([*lines(told), *_whereabouts(verb, found[0], files)]))
    for failure in failures:
        complain(": ".join(failure))
    done = len(found[0]) if found else 0
    if stopped:
        part = ", the last in part" * (bool(found) and getattr(found[0], "interrupted", False))
        raise KeyboardInterrupt(f"stopped by Ctrl-C: {done} of {total} images {verb.done}{part}")
    if failures:
        raise InputError(f"{len(failures)} not {verb.done}, {done} {verb.done}")


def _shape(samples: Dataset | tuple[str, ...] | None, model: rt.Model) -> Sequence[int] | None:
    """The shape of the first image that can be read, which all others must have."""
    for index in range(len(samples) if isinstance(samples, Dataset) else 0):
        if read := read_all(samples, [index], model, []):  # type: ignore[arg-type]
            return tuple(read[0][0].shape)
    return None


def _alike(heard: Collection[_Part]) -> int:
    """How many were refused, if all that were asked about are, for one reason."""
    if any(part.answers for part in heard):
        return 0
    reasons = [reason for part in heard for _, reason in part.refused]
    return len(reasons) if len(set(reasons)) == 1 else 0


# --------------------------------------------------------------------------------------------- what is written
def _write_all(verb: Verb, found: list[Any], out: Path) -> list[Path]:
    """Write the results, one per contrast, to one file; or into a folder, with a figure of each image."""
    if out.suffix in KINDS and not out.is_dir():
        return _write(found, out)
    files = _write(found, out / f"{verb.numbers}.safetensors") + _write(found, out / f"{verb.page}.html")
    figures, stems = list[Path](), file_stems(Path(name).stem for name in found[0].names)
    with reporter(True, "drawing") as report:
        for i, stem in enumerate(stems):
            figures += _write([each[i] for each in found], out / f"{stem}.{verb.page}.png")
            report(i + 1, len(found[0]))
    return figures + files


def _write(found: list[Any], path: Path) -> list[Path]:
    """One file of all results; their numbers are in a file each."""
    if path.suffix == ".safetensors":
        several = len(found) > 1
        return [each.save(path.with_suffix(f".{each.contrast}.safetensors") if several else path) for each in found]
    if len(found) == 1:
        return [found[0].save(path)]
    return [rt.save_report(found, path) if path.suffix == ".html" else draw(to_panels(found), path)]


def draw(panels: Sequence[Panel], path: Path) -> Path:
    """A figure of panels as a file."""
    return write_atomically(path, [figure_png(figure(panels))])


# --------------------------------------------------------------------------------------------- what is printed
def _whereabouts(verb: Verb, result: Any, files: Sequence[Path]) -> list[str]:
    """The method, and what lies where; many figures on one line."""
    figures = [path for path in files if path.suffix == ".png"]
    many = figures if len(figures) > 1 else []
    shown = [f"{'figures':8} {many[0].parent}/*.{verb.page}.png ({len(many)})"] if many else []
    shown += [f"{KINDS.get(path.suffix, 'bundle'):8} {path}" for path in files if path not in many]
    return [f"{'method':8} {result.made_by()}", *shown]


def _as_json(
    model: rt.Model, verb: Verb, found: list[Any], failures: Sequence[tuple[str, str]], files: Sequence[Path]
) -> dict[str, Any]:
    """What a script wants to know: a row for each image, question and contrast or answer; failures; files."""
    return {
        "model": model.name,
        verb.result.kind.replace(" ", "_") + "s": [row for each in found for row in each.records()],
        "failures": [{"image": image, "reason": reason} for image, reason in failures],
        "files": [str(path) for path in files],
    }
