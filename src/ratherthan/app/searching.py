"""What `ratherthan counterfactual` does: a search over all images at once, a page, figures and numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ratherthan.app.explaining import check_settings, classes, finite
from ratherthan.app.images import ALTERED, Failure, read_all, unused_stem
from ratherthan.app.terminal import KINDS, is_one_file, printable
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.search.counterfactual import Counterfactual, counterfactual
from ratherthan.search.manifold import Manifold
from ratherthan.search.method import CounterfactualMethod, get_counterfactual_method
from ratherthan.search.solver import Schedule

PAGE, NUMBERS = "how.html", "how.safetensors"
_PRINTED = 5
"""Of many foils of an image the terminal prints the first so many; the page and the numbers hold all."""


def configured(
    name: str, settings: dict[str, Any], manifold: str | None, weights: Path | None, model: Model
) -> CounterfactualMethod:
    """Read the method off the command line.

    Args:
        name: Its name.
        settings: Its settings; those of its `schedule` count as its own.
        manifold: Name of a manifold of the zoo; None: the model's own.
        weights: The manifold's weights.
        model: The model, who says which manifold is meant where only weights are given.

    Raises:
        InputError: If the method, a setting or the manifold does not exist.
        ModelError: If the weights cannot be read.
    """
    method = get_counterfactual_method(name)
    known = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    schedule = known.get("schedule")
    inner = dataclasses.asdict(schedule) if isinstance(schedule, Schedule) else {}
    check_settings(name, settings, {**inner, **known})
    own = {key: value for key, value in settings.items() if key in known}
    paced = {key: value for key, value in settings.items() if key not in known}
    if paced and schedule is not None:
        own["schedule"] = dataclasses.replace(schedule, **paced)
    if manifold is not None or weights is not None:
        if "manifold" not in known:
            raise InputError(f"method {name!r} takes no manifold; leave --manifold out")
        own["manifold"] = Manifold.of(model, weights) if manifold is None else Manifold.load(manifold, weights)
    return dataclasses.replace(method, **own)  # type: ignore[type-var]


@dataclasses.dataclass
class Search:
    """Images, the question about them, and what became of it.

    Attributes:
        found: The answers, or None where no image could be read.
        failures: The images that could not be read.
        files: What was written.
    """

    model: Model
    found: Counterfactual | None
    failures: list[Failure]
    files: list[Path] = dataclasses.field(default_factory=list)


def run(
    model: Model,
    paths: Sequence[Path],
    failures: list[Failure],
    question: tuple[str | None, str | None],
    method: CounterfactualMethod,
    batch_size: int,
    finished: Callable[..., None],
) -> Search:
    """Read the images and search.

    Args:
        model: The model.
        paths: Image files.
        failures: What was not found already.
        question: Fact and foil as given on the command line.
        method: The method.
        batch_size: Searches at once.
        finished: Called with (images done, in all).

    Returns:
        The answers, not yet written.
    """
    images, names = read_all(paths, model, failures)
    if not images:
        return Search(model, None, failures)
    fact, foil = (classes(each, model) for each in question)
    found = counterfactual(model, torch.stack(images), fact, foil, method, batch_size=batch_size, progress=finished)
    shown = tuple(printable(str(path)) for path in names[: len(found)])
    return Search(model, dataclasses.replace(found, names=shown), failures)


def write(search: Search, out: Path) -> None:
    """Write the answers: to one file, whose ending says what it holds, or into a folder: page, figures and numbers."""
    found = search.found
    if found is None:
        return
    if is_one_file(out):
        search.files.append(found.save(out))
        return
    from ratherthan.files import write_atomically
    from ratherthan.render import draw_trajectories, figure_png

    films, stems = found.trajectories(), set[str]()
    for i, name in enumerate(found.names):
        picture = figure_png(draw_trajectories(films[i * found.questions : (i + 1) * found.questions]))
        search.files.append(write_atomically(out / (unused_stem(Path(name).stem, stems) + ALTERED), [picture]))
    search.files += [found.save(out / PAGE), found.save(out / NUMBERS)]


def summary(search: Search) -> list[str]:
    """What the terminal shows: a line for each answer, and where the files are."""
    found = search.found
    if found is None:
        return []
    lines = [
        f"{name}: {found.text(i, q)}"
        for i, name in enumerate(found.names)
        for q in range(min(_PRINTED, found.questions))
    ]
    if found.questions > _PRINTED:
        lines.append(f"(the first {_PRINTED} of {found.questions} foils of each image)")
    figures = [path for path in search.files if path.name.endswith(ALTERED)]
    lines.append(f"{'method':8} {str(found).splitlines()[-1][1:-1]}")
    if len(figures) > 1:
        lines.append(f"{'figures':8} {figures[0].parent}/*{ALTERED} ({len(figures)})")
    return lines + [f"{KINDS[p.suffix]:8} {p}" for p in search.files if len(figures) < 2 or p not in figures]


def as_json(search: Search) -> str:
    """What a script wants to know: a row for each image, foil and answer, failures, files."""
    rows = [] if search.found is None else search.found.to_frame().to_dict("records")
    told = {
        "model": search.model.name,
        "counterfactuals": [{key: finite(value) for key, value in row.items()} for row in rows],
        "failures": [dataclasses.asdict(failure) for failure in search.failures],
        "files": [str(path) for path in search.files],
    }
    return json.dumps(told, indent=1, allow_nan=False)
