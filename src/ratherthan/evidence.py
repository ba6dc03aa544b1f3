"""A bundle of evidence: a folder that holds an answer with all that speaks for it, and that can be computed again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.attribution.explain import ask_again
from ratherthan.attribution.explanation import SHOWN, Explanation, to_panels
from ratherthan.errors import InputError, RatherThanError, first_line, told_as
from ratherthan.evaluation.sanity import cascade, spearman
from ratherthan.files import MAX_TEXT, read_text, regular, whole_folder, write_atomically
from ratherthan.inference import preserve_state
from ratherthan.model import Model, fingerprint
from ratherthan.progress import Progress, reporter
from ratherthan.render.figure import figure, figure_png
from ratherthan.result import PRINTED, save_report, versions
from ratherthan.search.counterfactual import Counterfactual
from ratherthan.search.method import COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS, SearchMethod, SearchResult
from ratherthan.search.pertinent_positive import PertinentPositive
from ratherthan.settings import AtLeastOne, NotEmpty, Positive, Seed, check_value

MANIFEST = "manifest.json"
TOLERANCE = 1e-3
"""By which share of the largest of them logits and maps may differ when they are computed again."""
NOISE = 0.02
"""Of what is added to an input to see how stable its map is: standard deviation, as a share of the input's range."""
_CORRELATION = 0.02  # by which a rank correlation may differ: near ties change places
_CHECKS, _KIND = "checks.json", "ratherthan bundle"
_RANKED = "correlations of "  # what is compared by its difference, see `_CORRELATION`
_STAGES = 4
_DIGITS = 5  # of a map, before its values are ranked: what is rounding is a tie
_SEAL, _BLANK = re.compile(rb'"seal": "([0-9a-f]{64})"'), b'"seal": "' + b"0" * 64 + b'"'
_SEARCHES: dict[str, tuple[type[SearchResult], Any, str]] = {
    "counterfactual": (Counterfactual, COUNTERFACTUAL_METHODS, "cdeepex"),
    "pertinent_positive": (PertinentPositive, PERTINENT_POSITIVE_METHODS, "cem-maf"),
}
"""By part of a bundle its result, its methods, and the one that is tried first."""
_FIELDS: dict[str, Any] = {
    "schema_version": Literal[1], "tolerance": Positive, "seed": Seed, "seeds": AtLeastOne, "model": Mapping[str, Any],
    "explanations": Annotated[tuple[str, ...], NotEmpty()], "files": Mapping[str, str],
    "searches": tuple[Literal["counterfactual", "pertinent_positive"], ...],
}  # fmt: skip


# --------------------------------------------------------------------------------------------- writing one
def bundle(
    why: Explanation | Sequence[Explanation],
    model: Model | nn.Module,
    folder: str | Path,
    *,
    counterfactual: str | SearchMethod | None = "usual",
    pertinent_positive: str | SearchMethod | None = "usual",
    seed: int = 0,
    seeds: int = 5,
    command: str = "",
    progress: Progress = None,
) -> Path:
    """Put an explanation into a folder with all that speaks for it, so that others can check it by `verify`.

    The folder holds the question, maps and contrasts (numbers, figure, page), what would have to change and what is
    enough for the same samples, how far the maps miss their sum where the method says so, how much of them is left of a
    network with random weights, how stable they are over seeds or under noise, and a manifest with a hash of each file.
    What cannot be had is there as one line that says why. It is written whole or not at all.

    Args:
        why: The explanation, or several of the same samples, e.g. by `compare`.
        model: The network that was explained.
        folder: Where to; a new folder, or an empty one.
        counterfactual: The method that finds what would have to change for the likeliest foils; "usual": the first that
            fits the network; None: it is left out.
        pertinent_positive: The method that finds what is enough, likewise.
        seed: Of the random weights and of the noise.
        seeds: How many other seeds, or draws of noise, the maps are compared with.
        command: What was typed, for the manifest.
        progress: True draws a bar; a callable is called with (parts done, parts in all).

    Returns:
        The folder.

    Raises:
        InputError: If the explanation does not come out again of this network, or there is something in the folder.

    Example:
        >>> why = explain(model, images, foil="runner-up")
        >>> bundle(why, model, "evidence")
        >>> print(verify("evidence", model))
    """
    results = [why] if isinstance(why, Explanation) else list(why)
    if not results or not all(isinstance(each, Explanation) for each in results):
        raise InputError("a bundle is made of an explanation, or of several of the same samples")
    for key, value in {"seed": seed, "seeds": seeds}.items():
        check_value(key, _FIELDS[key], value)
    model = Model.wrap(model)
    with reporter(progress, "bundling") as report, whole_folder(Path(os.path.abspath(folder))) as draft:
        for each in results:
            if said := [line for line, far in _differences(each, model) if not far <= TOLERANCE]:
                raise InputError(f"{said[0]} differ when they are computed again: was another network explained?")
        names = [f"explanation.{i + 1}" if results[1:] else "explanation" for i in range(len(results))]
        checks = {name: _checks(each, model, seed, seeds) for name, each in zip(names, results, strict=True)}
        report(1, 3)
        parts = {"counterfactual": counterfactual, "pertinent_positive": pertinent_positive}
        found = {key: _sought(key, method, results[0], model) for key, method in parts.items()}
        searched = {key: each for key, each in found.items() if isinstance(each, SearchResult)}
        report(2, 3)
        for name, result in [*zip(names, results, strict=True), *searched.items()]:
            result.save(draft / f"{name}.safetensors")
        for name, answer in searched.items():
            answer.save(draft / f"{name}.png")
        write_atomically(draft / "why.png", [figure_png(figure(to_panels(results)))])
        _draw_randomised(results[0], model, seed, draft)
        save_report([*results, *searched.values()], draft / "why.html")
        _write(draft / "question.json", {"questions": [row for each in results for row in _questions(each)]})
        _write(draft / _CHECKS, {"noise": NOISE, "maps": checks})
        left_out = {key: each for key, each in found.items() if isinstance(each, str)}
        contents = {"explanations": names, "searches": sorted(searched), "left_out": left_out}
        _seal(draft, {"command": command, "seed": seed, "seeds": seeds, "model": _about(model)} | contents)
        report(3, 3)
    return Path(folder)


def _questions(why: Explanation) -> list[dict[str, Any]]:
    """What was asked, answered and measured, a row for each sample and question."""
    places = product(range(len(why)), range(why.questions))
    said = ({"question": why.question(*at), "answer": why.text(*at)} for at in places)
    return [words | row for words, row in zip(said, why.records(), strict=True)]


def _about(model: Model) -> dict[str, Any]:
    """What a network is known by."""
    seen = {"inputs": model.inputs.name, "preprocessing": model.inputs.describe(), "output": model.output.name}
    names = None if model.class_names is None else list(model.class_names)
    return {"name": model.name, "fingerprint": fingerprint(model.module), **seen, "class_names": names}


def _write(path: Path, told: dict[str, Any]) -> None:
    write_atomically(path, [json.dumps({"schema_version": 1} | told, indent=1, allow_nan=False).encode()])


def _seal(folder: Path, told: dict[str, Any]) -> None:
    """Write the manifest, with a hash of each file and one of itself, taken with zeros in its place."""
    files = {path.name: _digest(path.read_bytes()) for path in sorted(folder.iterdir())}
    known = versions() | {"python": platform.python_version(), "numpy": np.__version__}
    made = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": known, "tolerance": TOLERANCE}
    _write(folder / MANIFEST, {"kind": _KIND, "seal": "0" * 64} | made | told | {"files": files})
    content = (folder / MANIFEST).read_bytes()
    write_atomically(folder / MANIFEST, [content.replace(_BLANK, f'"seal": "{_digest(content)}"'.encode(), 1)])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --------------------------------------------------------------------------------------------- what speaks for it
def _sought(key: str, method: Any, why: Explanation, model: Model) -> SearchResult | str:
    """What a search finds for the same samples, or why there is nothing."""
    if method is None:
        return "left out"
    kind, known, first = _SEARCHES[key]
    try:
        how: SearchMethod = known.make(_usual(known, first, model) if method == "usual" else method)
        few = why.likeliest(PRINTED)
        single = kind is Counterfactual and few.axis != "fact" and few.output != "value" and bool((few.foil >= 0).all())
        asked = few.images, few.fact if few.axis != "foil" else few.fact[:, 0], few.foil if single else None, few.names
        found = kind.sought(how, model, *asked, batch_size=64, progress=None)
    except RatherThanError as error:
        return first_line(error)
    if found.interrupted:  # half a search is no evidence
        raise KeyboardInterrupt
    return found


def _usual(known: Any, first: str, model: Model) -> str:
    """The first method for this kind of input that needs nothing which the model does not name."""
    for name in (first, *known.names()):
        with suppress(RatherThanError):
            if known.find(name).takes == model.inputs.name and known.make(name).prepared(model):
                return str(name)
    raise InputError(f"no {known.kind} takes {model.inputs.name} as {model.name} does")


def _checks(why: Explanation, model: Model, seed: int, seeds: int) -> dict[str, dict[str, Any]]:
    """Completeness, randomisation and stability of maps, of many questions of the likeliest."""
    few, found = why.likeliest(SHOWN), dict[str, dict[str, Any]]()
    parts = {"completeness": _completeness, "randomisation": _randomisation, "stability": _stability}
    for name, check in parts.items():
        try:
            found[name] = check(few, model, seed, seeds)
        except RatherThanError as error:
            found[name] = {"reason": first_line(error)}
    return found


def _completeness(why: Explanation, *_: Any) -> dict[str, Any]:
    figures = {key: each for key, each in why.diagnostics.items() if isinstance(each, Tensor)}
    if "convergence delta" not in figures:
        raise InputError(f"{why.method} does not say what its maps add up to here")
    return {key: _plain(why.by_question(each).cpu().numpy()) for key, each in figures.items()}


def _randomisation(why: Explanation, model: Model, seed: int, *_: Any) -> dict[str, Any]:
    """How alike the maps of a network are whose weights are random from the last layer on."""
    stages = cascade(model, _STAGES, seed)
    return {"stages": [{"randomised": share} | _alike(why, [ask_again(why, each)]) for share, each in stages]}


def _draw_randomised(why: Explanation, model: Model, seed: int, folder: Path) -> None:
    """A figure of maps beside those of a network with random weights, where that has any."""
    few, (*_, (_, random)) = why.likeliest(PRINTED), cascade(model, 1, seed)
    with suppress(RatherThanError):  # the checks say why
        beside = dataclasses.replace(ask_again(few, random), method="random weights:")
        write_atomically(folder / "randomised.png", [figure_png(figure(to_panels([few, beside])))])


def _stability(why: Explanation, model: Model, seed: int, seeds: int) -> dict[str, Any]:
    """How alike maps are over seeds of the method; without any, under small noise on the input."""
    numbers = range(1, seeds + 1)
    if "seed" in why.settings:
        own = int(why.settings["seed"])
        return {"over": "seeds of the method"} | _alike(why, [ask_again(why, model, seed=own + i) for i in numbers])
    if not why.images.is_floating_point():
        raise InputError(f"{why.method} draws no random numbers, and there is no small noise on a text")
    noisy = (_noisy(why.images, seed + i) for i in numbers)
    return {"over": "noise on the input"} | _alike(why, [ask_again(why, model, each) for each in noisy])


def _noisy(images: Tensor, seed: int) -> Tensor:
    """Inputs (N, ...) with Gaussian noise, a share of the range of each; of rows of a table, of each value."""
    flat = images.flatten(1)
    spread = (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (images.ndim - 1)) if images.ndim > 2 else images.abs()
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    return images + NOISE * spread * drawn


def _alike(why: Explanation, others: Sequence[Explanation]) -> dict[str, Any]:
    """Rank correlation of maps with others, mean over these: N rows of Q, and over all that are defined."""
    places = product(range(len(why)), range(why.questions))
    found = np.array([[_correlation(why, each, *at) for each in others] for at in places])
    mean, least = (float(np.nanmean(found)), float(np.nanmin(found))) if (found == found).any() else (None, None)
    return {"mean": mean, "least": least, "correlation": _plain(found.mean(1).reshape(len(why), -1))}


def _correlation(one: Explanation, other: Explanation, sample: int, q: int) -> float:
    rows = (torch.from_numpy(each.plain_map(sample, q).reshape(1, -1)).double() for each in (one, other))
    return float(spearman(*((row / (row.abs().max() + 1e-300)).round(decimals=_DIGITS) for row in rows)))


def _plain(values: np.ndarray[Any, Any]) -> list[list[float | None]]:
    """Rows of numbers as JSON has them: None where there is none."""
    return [[each if np.isfinite(each) else None for each in row] for row in values.tolist()]


# --------------------------------------------------------------------------------------------- checking one
@dataclass(frozen=True)
class Verification:
    """Whether a bundle is as it was written, and comes out again.

    Attributes:
        folder: The bundle.
        differences: A line for everything that differs; empty: it agrees.
        deviations: What was computed again, and by how much it differs: logits and maps as a share of the largest of
            them, rank correlations by their difference; empty where that was not reached.
        tolerance: By how much logits and maps may.
    """

    folder: Path
    differences: tuple[str, ...]
    deviations: dict[str, float]
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def __str__(self) -> str:
        if not self.agrees:
            return "\n".join([f"{self.folder} differs:", *(f"  {line}" for line in self.differences)])
        far = max(each for name, each in self.deviations.items() if not name.startswith(_RANKED))
        what = f"every file is as it was written, and {len(self.deviations)} of what they say came out again"
        return (
            f"{self.folder} agrees: {what}, logits and maps within {far:.1g} of the largest ({self.tolerance:g} may be)"
        )


def verify(folder: str | Path, model: Model | nn.Module, tolerance: float | None = None) -> Verification:
    """Check a bundle: its files by their hashes, then the network, then logits, maps, answers and checks, anew.

    Args:
        folder: What `bundle` wrote.
        model: The network, from wherever the one who checks has it.
        tolerance: By which share of the largest of them logits and maps may differ, and what is missing of a sum by
            which share of the contrast; None: as the bundle says, 1e-3. Rank correlations may by 0.02.

    Returns:
        Whether it agrees; what differs in files or network ends the check there.

    Raises:
        InputError: If there is no bundle in the folder.
    """
    check_value("tolerance", Positive | None, tolerance)
    folder, model = Path(folder), Model.wrap(model)
    manifest = _manifest(folder)
    if manifest is None:
        return Verification(folder, (f"{MANIFEST} is not as it was written",), {}, tolerance or TOLERANCE)
    allowed = tolerance or manifest["tolerance"]
    differences = [*_damaged(folder, manifest["files"])] or [*_other(manifest["model"], model)]
    deviations = {} if differences else dict(_deviations(folder, manifest, model))
    for name, far in deviations.items():
        may = _CORRELATION if name.startswith(_RANKED) else allowed
        if not far <= may:
            differences.append(f"{name} differ by {far:.2g}, more than {may:g}")
    return Verification(folder, tuple(differences), deviations, allowed)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a bundle; None: it is not as it was written.

    Raises:
        InputError: If there is none.
    """
    content = regular(folder / MANIFEST, MAX_TEXT).read_bytes()
    with told_as(InputError, f"{folder} holds no bundle: {MANIFEST} cannot be used", ValueError, RecursionError):
        told = json.loads(content)
    seal = _SEAL.search(content)
    if seal is None or not isinstance(told, dict) or told.get("kind") != _KIND:
        raise InputError(f"{folder} holds no bundle of ratherthan")
    if _digest(content[: seal.start()] + _BLANK + content[seal.end() :]) != seal[1].decode():
        return None
    return {key: check_value(f"{key} in {MANIFEST}", hint, told.get(key)) for key, hint in _FIELDS.items()}


def _damaged(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(present | set(files)):
        if name not in present:
            yield f"{name} is missing"
        elif name not in files:
            yield f"{name} is no part of the bundle"
        elif not (folder / name).is_file() or _digest((folder / name).read_bytes()) != files[name]:
            yield f"{name} is not as it was written"


def _other(then: Mapping[str, Any], model: Model) -> Iterator[str]:
    """How the network differs from the one that was explained."""
    for key, value in _about(model).items():
        if key != "name" and value != then.get(key):
            told = "" if key == "class_names" else f": {then.get(key)!r} then, {value!r} now"
            yield f"the network has another {key.replace('_', ' ')}{told}"


def _deviations(folder: Path, manifest: Mapping[str, Any], model: Model) -> Iterator[tuple[str, float]]:
    """What was computed again, and how far it is from what is written."""
    with told_as(InputError, f"{_CHECKS} cannot be used", ValueError, RecursionError, LookupError, TypeError):
        told = {name: dict(json.loads(read_text(folder / _CHECKS))["maps"][name]) for name in manifest["explanations"]}
    for name, before in told.items():
        why = Explanation.load(folder / f"{name}.safetensors")
        yield from ((f"{what} of {name}", far) for what, far in _differences(why, model))
        for check, now in _checks(why, model, manifest["seed"], manifest["seeds"]).items():
            far, ranked = _apart(before.get(check), now), _RANKED * (check != "completeness")
            yield f"{ranked}{check} of {name}", far if ranked else far / max(float(why.score.abs().max()), 1e-12)
    for key in manifest["searches"]:
        found = _SEARCHES[key][0].load(folder / f"{key}.safetensors")
        yield f"logits of the {key.replace('_', ' ')}", _far(_looked(found, model), found.example_logits)


def _differences(why: Explanation, model: Model) -> Iterator[tuple[str, float]]:
    again = ask_again(why, model)
    yield "logits", _far(again.logits, why.logits)
    yield "scores", _far(again.score, why.score)
    yield "maps", _far(again.attribution, why.attribution)


def _far(now: Tensor, then: Tensor) -> float:
    """The largest difference, as a share of the largest value; infinite where shapes differ."""
    if now.shape != then.shape:
        return float("inf")
    now, then = (each.detach().double().cpu() for each in (now, then))
    far, largest = (now - then).abs().max(), then.abs().max()
    return float(far / largest) if largest else float("inf") if far else 0.0


def _looked(found: SearchResult, model: Model) -> Tensor:
    """Logits of the answers of a search, by a fresh pass."""
    examples, lead = found.examples.to(model.device), found.examples.ndim - found.images.ndim + 1
    with preserve_state(model.module), torch.no_grad():
        rows = [model.about([i]).logits(each.flatten(0, lead - 2)) for i, each in enumerate(examples)]
    return torch.stack(rows).view(found.example_logits.shape)


def _apart(then: Any, now: Any) -> float:
    """The largest difference of any number in what checks say; infinite where they say something else."""
    if isinstance(then, (int, float)) and isinstance(now, (int, float)):
        return abs(then - now)
    if isinstance(then, dict) and isinstance(now, dict) and then.keys() == now.keys():
        then, now = list(then.values()), [now[key] for key in then]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return max(map(_apart, then, now), default=0.0)
    return 0.0 if then == now else float("inf")
