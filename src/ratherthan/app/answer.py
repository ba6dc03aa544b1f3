"""What explain, counterfactual and pertinent-positive share: read images, ask, write, print, say what failed."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ratherthan as rt
from ratherthan.app.images import gather, read_all
from ratherthan.app.options import KINDS, AskOptions, words
from ratherthan.app.table import lines
from ratherthan.app.terminal import complain, say, say_json
from ratherthan.attribution.explanation import to_panels
from ratherthan.data import Dataset
from ratherthan.errors import InputError, RatherThanError, told_as
from ratherthan.files import check_free, check_place, write_atomically
from ratherthan.model import fingerprint
from ratherthan.progress import reporter
from ratherthan.registry import unique_name
from ratherthan.render.figure import figure, figure_png
from ratherthan.render.panel import Panel
from ratherthan.search.method import get_counterfactual_method
from ratherthan.words import printable

ALL = ("none", "mean", "max", "weighted", "probability", "loss")
"""The contrasts that any fact and foils can be asked with, as `--contrast all` and the demo show them."""
_ALIKE = 8
"""Images that fail alike before any is done: it is not their fault, and no more are tried."""
_LONGEST = 200  # bytes: systems take names of 255, and an ending follows


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
def answer(
    verb: Verb,
    given: AskOptions,
    prepared: Callable[[rt.Model], Any],
    at_once: int = 0,
    bundle: Path | None = None,
    **question: str | None,
) -> None:
    """Answer a question about images, as far as they can be read.

    Args:
        verb: Which verb.
        given: Images, the model, where to write to.
        prepared: Makes of the model the verb itself, which returns a result, or a list of one per contrast.
        at_once: Images to read and ask about at once; 0: all, for a search draws random numbers by their position.
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
    labels = dict(zip(samples.ids, samples.labels, strict=True)) if isinstance(samples, Dataset) and given.data else {}
    weights = fingerprint(model.module)
    made = {"command": command, "model": f"{model.name} (weights {weights[:12]})"}
    batches, shape, stopped, wrong = list[list[Any]](), None, False, list[str]()
    total = 0 if samples is None else len(samples)
    size = at_once or max(1, total)

    def put(read: list[tuple[Any, str]]) -> None:
        images: Any = [image for image, _ in read]
        images = images if isinstance(images[0], str) else torch.stack(images)
        try:
            answers = ask(model, images, **asked, progress=None if at_once else report)
        except RatherThanError as error:
            if len(read) > 1:
                for each in read:
                    put([each])
                return
            wrong.append(str(error))
            failures.append((printable(read[0][1]), wrong[-1]))
            if not batches and len(set(wrong)) == 1 and len(wrong) >= min(_ALIKE, total):
                raise
            return
        answers = answers if isinstance(answers, list) else [answers]
        names = tuple(printable(name) for _, name in read[: len(answers[0])])  # a stopped search has less
        known = [labels[name] for _, name in read[: len(names)] if labels]
        batches.append([replace(each, names=names, **made).labelled(known) for each in answers])
        if getattr(answers[0], "interrupted", False):
            raise KeyboardInterrupt

    with reporter(True, verb.doing) as report:
        try:
            for start in range(0, total, size):
                assert samples is not None
                if read := read_all(samples, range(total)[start : start + size], model, failures, shape):
                    shape = getattr(read[0][0], "shape", None)
                    put(read)
                report(min(start + size, total), total)
        except KeyboardInterrupt:
            stopped = True
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


# --------------------------------------------------------------------------------------------- what is written
def _write_all(verb: Verb, found: list[Any], out: Path) -> list[Path]:
    """Write the results, one per contrast, to one file; or into a folder, with a figure of each image."""
    if out.suffix in KINDS and not out.is_dir():
        return _write(found, out)
    files = _write(found, out / f"{verb.numbers}.safetensors") + _write(found, out / f"{verb.page}.html")
    figures, taken = list[Path](), set[str]()
    with reporter(True, "drawing") as report:
        for i, name in enumerate(found[0].names):
            # names that differ in case alone are one file on some systems
            short = Path(name).stem.encode()[:_LONGEST].decode(errors="ignore")
            stem = unique_name(short, lambda each: each.casefold() in taken, "{}-{}")
            taken.add(stem.casefold())
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
