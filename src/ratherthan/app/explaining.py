"""What `ratherthan explain` does: images in batches, a figure each, one page and one file of numbers for all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ratherthan.app.images import FIGURE, Failure, read_all, unused_stem
from ratherthan.app.terminal import printable, words
from ratherthan.attribution import Method, compare
from ratherthan.attribution.explanation import Explanation, save_report, to_panels
from ratherthan.attribution.method import get_method
from ratherthan.contrast import get_contrast
from ratherthan.errors import InputError, first_line, unknown
from ratherthan.model import Model

ALL = ("none", "mean", "max", "weighted", "probability", "loss")
"""The contrasts that any fact and foils can be asked with, as `--contrast all` and the demo show them."""

SHOWN, PRINTED = 20, 5
"""Of many facts or foils, the page shows and the terminal prints so many, likeliest first; the file holds all."""


@dataclass(frozen=True)
class Asked:
    """A question to a model as given on the command line.

    Attributes:
        model: The model.
        fact: As `explain` takes it.
        foil: As `explain` takes it.
        method: The method.
        contrasts: Names of the contrasts; None is the default one.
    """

    model: Model
    fact: Any
    foil: Any
    method: Method
    contrasts: tuple[str | None, ...]


def asked(
    model: Model, fact: str | None, foil: str | None, method: str, settings: dict[str, Any], contrast: str | None
) -> Asked:
    """Read the question off the command line.

    Raises:
        InputError: If a method, a setting or a contrast does not exist, or the method takes no layer.
    """
    how: tuple[str | None, ...] = (None,) if contrast is None else tuple(dict.fromkeys(words(contrast)))
    if not how:
        raise InputError(f"--contrast {contrast!r} names none; choose from {', '.join(ALL)}, or all")
    if how == ("all",):
        how = tuple(name for name in ALL if model.output.of_classes or get_contrast(name).for_values)
    for name in how:
        get_contrast(name or "weighted")
    return Asked(model, classes(fact, model), classes(foil, model), _configured(method, settings, model), how)


def _configured(name: str, settings: dict[str, Any], model: Model) -> Method:
    method = get_method(name)
    usual = method.settings()
    if "layer" in settings and "layer" not in usual:
        raise InputError(f"method {name!r} explains the image, not a layer; leave --layer out")
    check_settings(name, settings, usual)
    if "layer" in settings:
        model.submodule(settings["layer"])
    try:
        return type(method)(**settings)
    except TypeError as error:
        raise InputError(f"method {name!r} cannot take these settings: {first_line(error)}") from error


def check_settings(name: str, settings: dict[str, Any], usual: dict[str, Any]) -> None:
    """Compare what was set with the usual settings of the method of this name.

    Raises:
        InputError: If there is no such setting, or it is a number and what was given is none.
    """
    for key, value in settings.items():
        if key not in usual:
            raise InputError(unknown(f"setting of {name}", key, usual))
        if isinstance(usual[key], (int, float)) and not isinstance(value, (int, float)):
            raise InputError(f"{key} of {name} is a number, e.g. {usual[key]}; not {value!r}")
        if type(usual[key]) is int and isinstance(value, float):
            raise InputError(f"{key} of {name} is a whole number, e.g. {usual[key]}; not {value!r}")


def classes(text: str | None, model: Model) -> Any:
    """Read a fact or foil: a word, a class, a value for a regressor, or a comma-separated list of them.

    A name that holds a comma itself ("tabby, tabby cat") is one class.
    """
    if text is None or text in (model.class_names or ()):
        return text
    parts = words(text)
    if not model.output.of_classes:
        try:
            values = [float(part) for part in parts]
        except ValueError as error:
            raise InputError(f"this model gives a value: ask with numbers, e.g. 0.75, not {text!r}") from error
        return values if len(values) > 1 else values[0]
    return parts if len(parts) > 1 else text


@dataclass
class Answers:
    """Explanations of images, as they come.

    Attributes:
        asked: The question.
        out: The folder to write to, or None to write nothing.
        failures: The images that could not be explained.
        files: What was written.
    """

    asked: Asked
    out: Path | None
    failures: list[Failure] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    _batches: list[list[Explanation]] = field(default_factory=list)
    _stems: set[str] = field(default_factory=set)
    _shape: torch.Size | None = None

    def add(self, paths: Sequence[Path], finished: Callable[[int], None]) -> None:
        """Explain a batch of files and draw a figure of each."""
        images, names = read_all(paths, self.asked.model, self.failures, self._shape)
        finished(len(paths) - len(images))
        if images:
            self._shape = images[0].shape
            how = self.asked
            batch = torch.stack(images)
            found = compare(how.model, batch, how.fact, how.foil, [how.method], how.contrasts, batch_size=len(batch))
            shown = tuple(printable(str(path)) for path in names)
            self._batches.append([dataclasses.replace(each, names=shown) for each in found])
            self._draw(names, finished)

    def finish(self) -> list[Explanation]:
        """Write the page and the numbers of all images that were explained.

        Returns:
            An explanation per contrast; empty if no image was explained.
        """
        found = [Explanation.joined(column) for column in zip(*self._batches, strict=True)]
        if found and self.out is not None:
            for each in found:
                name = f"explanation.{each.contrast}" if len(found) > 1 else "explanation"
                self.files.append(each.save(self.out / f"{name}.safetensors"))
            self.files.append(save_report([each.likeliest(SHOWN) for each in found], self.out / "why.html"))
        return found

    def _draw(self, paths: Sequence[Path], finished: Callable[[int], None]) -> None:
        from ratherthan.files import write_atomically
        from ratherthan.render import figure, figure_png

        for i, path in enumerate(paths):
            if self.out is not None:
                cases = to_panels([each[i].likeliest(SHOWN) for each in self._batches[-1]])
                target = self.out / (unused_stem(printable(path.stem), self._stems) + FIGURE)
                self.files.append(write_atomically(target, [figure_png(figure(cases))]))
            finished(1)


def lines(found: Sequence[Explanation]) -> list[str]:
    """A line for each image, or for each image and fact or foil, about the first weighted contrast there is."""
    why = next((each for each in found if each.contrast == "weighted"), found[0])
    few = why.likeliest(PRINTED)
    told = [f"{name}: {few.text(i, q)}" for i, name in enumerate(few.names) for q in range(few.questions)]
    if few.questions < why.questions:
        told.append(f"(the {few.questions} likeliest of {why.questions} {why.axis}s of each image)")
    return told


def summary(answers: Answers, found: Sequence[Explanation]) -> list[str]:
    """What the terminal shows: a line for each answer, and where the files are."""
    if not found:
        return []
    figures = [path for path in answers.files if path.name.endswith(FIGURE)]
    others = [path for path in answers.files if path not in figures]
    drawn = str(figures[0]) if len(figures) == 1 else f"{answers.out}/*{FIGURE} ({len(figures)})"
    kinds = {".html": "page", ".safetensors": "numbers"}
    where = found[0].layer or "the image"
    return [
        *lines(found),
        f"{'method':8} {found[0].method} on {where}",
        f"{'figure' if len(figures) == 1 else 'figures':8} {drawn}",
        *(f"{kinds[path.suffix]:8} {path}" for path in others),
    ]


def as_json(model: Model, answers: Answers, found: Sequence[Explanation]) -> str:
    """What a script wants to know: a row for each image, contrast and question, failures, files."""
    rows = [row for each in found for row in each.to_frame().to_dict("records")]
    told = {
        "model": model.name,
        "explanations": [{key: finite(value) for key, value in row.items()} for row in rows],
        "failures": [dataclasses.asdict(failure) for failure in answers.failures],
        "files": [str(path) for path in answers.files],
    }
    return json.dumps(told, indent=1, allow_nan=False)


def finite(value: Any) -> Any:
    """A value fit for JSON, which knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
