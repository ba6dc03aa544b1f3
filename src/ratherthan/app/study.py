"""What `ratherthan study` does: pages of trials out of saved explanations, and what the answers of judges say.

A trial is forward simulation: the network says P of an image; a part of it is covered; will it still say P, or Q?
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pandas import DataFrame
from torch import Tensor

from ratherthan.app.terminal import SCHEMA_VERSION
from ratherthan.attribution.explanation import Explanation
from ratherthan.baselines import baseline_within
from ratherthan.contrast import rival
from ratherthan.errors import InputError, told_as
from ratherthan.files import read_text, whole_folder, write_atomically
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.registry import unique_name
from ratherthan.render import case, colours
from ratherthan.render.page import filled
from ratherthan.settings import check_value

CONSENT = """\
You will see photographs or drawings that a computer program has named. In each, a part will be covered, and you say \
which of two names the program gives then. There is no need to know the right name of anything.

You are asked for nothing about yourself. Your answers and how long each took are written into a file on your own \
machine; nothing is sent. You may stop at any time by closing the page; then nothing is kept."""
BARE = "no map"
"""The condition of images without a map."""
KEY, ANSWERS = "ratherthan study key", "ratherthan study answers"
_FIELDS: dict[str, dict[str, Any]] = {
    KEY: {"judge": int, "trial": int} | dict.fromkeys(("image", "condition", "fact", "foil", "truth"), str),
    ANSWERS: {"judge": int, "trial": int, "said": str},
}
_GRID = 3  # parts are rectangles of so many rows and columns of the image,
_LARGEST = 6  # ... and of so many of its cells at most
_RESAMPLES = 2000
_SOUGHT = (0.05, 0.1, 0.2)  # differences of accuracy
_SAME = 0.05  # share of the largest logit by which logits may differ, in another precision or on another device
Array = np.ndarray[Any, Any]


# --------------------------------------------------------------------------------------------- making one
def make(
    results: Sequence[Explanation],
    model: Model,
    out: Path,
    judges: int = 20,
    bare: bool = False,
    baseline: Any = 0.5,
    consent: str = CONSENT,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a page for each judge, and the key that tells what was on them.

    An image is used if the network says P of it, and there are two parts of equal size of which one, covered, leaves it
    so and the other makes it say Q. Half of the images, at random, are asked about with the one. Judge j sees the image
    that comes i-th under the condition (i + j) modulo their number, in an order and with buttons of its own.

    Args:
        results: Explanations of the same images and facts, a condition each.
        model: The network that they are about.
        out: A new folder.
        judges: How many pages.
        bare: Whether images without a map are a condition, too.
        baseline: What covers a part, in [0, 1].
        consent: What a judge reads first; an empty line starts another paragraph.
        seed: Of what is drawn at random.

    Returns:
        The key.

    Raises:
        InputError: If the results do not belong together or to the model, or no image can be used.
    """
    first, rng = results[0], np.random.default_rng(seed)
    if first.images.ndim != 4 or not model.output.of_classes:
        raise InputError("a study shows images, and asks for classes")
    for each in results:
        same = each.names == first.names and torch.equal(each.fact, first.fact)
        if each.axis or not same or not torch.equal(each.images, first.images):
            raise InputError("all explanations must be of the same images and facts, with one question about each")
    if twice := [name for name, count in Counter(first.names).items() if count > 1]:
        raise InputError(f"two images are called {twice[0]!r}: a study tells images by their names")
    _check_model(results, model)
    conditions = list[str]()
    for each in results:
        conditions.append(unique_name(f"{each.method}, {each.contrast}", conditions.__contains__, "{} ({})"))
    conditions += [BARE] * bare
    single = next((each.foil for each in results if bool((each.foil >= 0).all())), rival(first.logits, first.fact))
    covers = baseline_within(first.images, baseline)
    facts, foils = ([first.class_label(each) for each in column.tolist()] for column in (first.fact, single))
    pairs = {
        i: _pair(model, first.images[i], covers[i], int(first.fact[i]), int(single[i]), rng)
        for i in range(len(first))
        if facts[i] != foils[i]
    }
    usable = rng.permutation([i for i, pair in pairs.items() if pair]).tolist()
    if len(usable) < 2:
        raise InputError(f"of {len(first)} images {len(usable)} can be asked about: give more, or another --baseline")
    # each judge has as many of either truth under each condition, as the conditions go round
    turned = {i: k // len(conditions) % 2 for k, i in enumerate(usable)}
    told: list[dict[str, Any]] = []
    for judge in range(1, judges + 1):
        for number, place in enumerate(rng.permutation(len(usable)).tolist(), 1):
            i = usable[place]
            told.append({
                "judge": judge, "trial": number, "image": first.names[i],
                "condition": conditions[(place + judge) % len(conditions)], "fact": facts[i], "foil": foils[i],
                "part": pairs[i][turned[i]], "truth": (facts[i], foils[i])[turned[i]],
            })  # fmt: skip
    study = sha256(json.dumps([told, seed]).encode()).hexdigest()[:12]
    key = {
        "kind": KEY, "schema_version": SCHEMA_VERSION, "study": study, "model": model.name, "conditions": conditions,
        "judges": judges, "images": len(usable), "left_out": len(first) - len(usable), "trials": told,
    }  # fmt: skip
    pictures = _pictures(results, conditions, covers, {i: pairs[i][turned[i]] for i in usable})
    paragraphs = [each for each in consent.split("\n\n") if each.strip()]
    with whole_folder(out) as folder:
        write_atomically(folder / "key.json", [json.dumps(key, indent=1).encode()])
        for judge in range(1, judges + 1):
            trials = [
                {key: each[key] for key in ("fact", "part")}  # neither the condition nor the truth
                | {"sides": rng.permutation([each["fact"], each["foil"]]).tolist()}
                | pictures[each["image"], each["condition"]]
                for each in told
                if each["judge"] == judge
            ]
            page = filled("study.html.j2", consent=paragraphs, study={"study": study, "judge": judge, "trials": trials})
            write_atomically(folder / "pages" / f"judge-{judge:02d}.html", [page.encode()])
    return key


def _check_model(results: Sequence[Explanation], model: Model) -> None:
    images = results[0].images
    with preserve_state(model.module), torch.no_grad():
        said = torch.cat([model.logits(part.to(model.device, model.dtype)).cpu() for part in torch.split(images, 16)])
    for each in results:
        told, known = each.logits.to(said), each.logits.shape == said.shape
        if not known or bool((told - said).abs().max() > _SAME * said.abs().max()):
            what = f"the explanations by {each.method} ({each.contrast}) are of another network than {model.name}"
            raise InputError(f"{what}: its scores of the images are not theirs; give the one that they are of")


def _pair(
    model: Model, image: Tensor, cover: Tensor, fact: int, foil: int, rng: np.random.Generator
) -> list[list[float]]:
    """Two parts of equal size, [top, left, bottom, right] in [0, 1], that leave the fact and give the foil, or none."""
    edges = [(low / _GRID, high / _GRID) for low in range(_GRID) for high in range(low + 1, _GRID + 1)]
    parts = [[t, left, b, r] for t, b in edges for left, r in edges]
    shown = torch.stack([image, *(_covered(image, cover, part) for part in parts)])
    with preserve_state(model.module), torch.no_grad():
        whole, *said = model.logits(shown.to(model.device, model.dtype)).argmax(1).tolist()
    by_size: dict[int, tuple[list[list[float]], list[list[float]]]] = {}
    for part, now in zip(parts, said, strict=True):
        cells = round(_GRID**2 * (part[2] - part[0]) * (part[3] - part[1]))
        if now in (fact, foil) and cells <= _LARGEST:
            by_size.setdefault(cells, ([], []))[now == foil].append(part)
    both = [each for each in by_size.values() if all(each)]
    if whole != fact or not both:
        return []
    return [side[rng.integers(len(side))] for side in both[rng.integers(len(both))]]


def _covered(image: Tensor, cover: Tensor, part: Sequence[float]) -> Tensor:
    within, changed = window(part, *image.shape[1:]), image.clone()
    changed[:, *within] = cover[:, *within]
    return changed


def window(part: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of a part, [top, left, bottom, right] in [0, 1]."""
    top, left, bottom, right = (round(each * size) for each, size in zip(part, (height, width) * 2, strict=True))
    return slice(top, bottom), slice(left, right)


def _pictures(
    results: Sequence[Explanation], conditions: Sequence[str], covers: Tensor, parts: Mapping[int, Sequence[float]]
) -> dict[tuple[str, str], dict[str, str]]:
    """What is shown of an image under a condition: itself, what it is covered to, and a map at a scale of its own."""
    first, shown = results[0], dict[tuple[str, str], dict[str, str]]()
    for i, part in parts.items():
        image = first.picture(first.images[i])
        both = {"image": image, "covered": first.picture(_covered(first.images[i], covers[i], part))}
        sources = {name: case.image_uri(each)[0] for name, each in both.items()}
        for condition, values in zip_longest(conditions, [each[i].heatmap()[0].numpy() for each in results]):
            drawn = None if values is None else colours.overlay(image, values, colours.shared_limit([values]))
            shown[first.names[i], condition] = sources | ({} if drawn is None else {"map": case.image_uri(drawn)[0]})
    return shown


# --------------------------------------------------------------------------------------------- looking at answers
def read(path: Path, kind: str) -> dict[str, Any]:
    """A key, or what a page saved.

    Raises:
        InputError: If the file is none.
    """
    with told_as(InputError, f"{path} cannot be used", ValueError, RecursionError):
        told = check_value("what it holds", Mapping[str, Any], json.loads(read_text(path)))
        if (told.get("kind"), told.get("schema_version")) != (kind, SCHEMA_VERSION):
            raise InputError(f"it is no {kind.removeprefix('ratherthan ')} that ratherthan wrote")
        fields = _FIELDS[kind]
        check_value("study", str, told.get("study"))
        if kind == ANSWERS and told.get("agreed") is not True:
            raise InputError("its judge did not agree to take part")
        rows = told.get("trials" if kind == KEY else "answers")
        for row in check_value("its list", Sequence[Mapping[str, Any]], rows):
            for name, hint in fields.items():
                check_value(name, hint, {**told, **row}.get(name))
    return dict(told)


def marked(key: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> DataFrame:
    """All answers, with the trial that each is about and whether it is `right`.

    Raises:
        InputError: If they are of another study, one judge's are given twice, or an answer is none that was offered.
    """
    if others := [each.get("study") for each in answers if each.get("study") != key["study"]]:
        raise InputError(f"answers to study {others[0]}; the key is that of {key['study']}")
    kept = [(each.get("judge"), row["trial"], row["said"]) for each in answers for row in each["answers"]]
    given = DataFrame(kept, columns=["judge", "trial", "said"])
    if given.empty:
        raise InputError("there is not one answer")
    if given.duplicated(["judge", "trial"]).any():
        raise InputError(f"judge {given[given.duplicated(['judge', 'trial'])]['judge'].iloc[0]} answers a trial twice")
    told = given.merge(DataFrame(key["trials"]), "left", on=["judge", "trial"])
    strange = told[(told["said"] != told["fact"]) & (told["said"] != told["foil"])]
    for row in strange.to_dict("records"):
        raise InputError(f"judge {row['judge']}: trial {row['trial']} was not asked, or {row['said']!r} not offered")
    return told.assign(right=told["said"] == told["truth"])


def analysed(told: DataFrame, conditions: Sequence[str], seed: int = 0) -> dict[str, DataFrame]:
    """How often judges were right under each condition, and how far the conditions differ.

    Intervals are of 95 %, by a bootstrap that draws judges and images at once, so they hold for other judges and other
    images (Owen, 2007: rather too wide than too narrow). `judges_005` and so on: with so many judges four of five
    studies on these images find a difference of 0.05 at a level of 5 %, by the spread between the judges that there
    are, as in a paired t-test.

    Args:
        told: What `marked` gives.
        conditions: Their names, in order.
        seed: Of the bootstrap.

    Returns:
        Tables "accuracies" and "differences".
    """

    def table(values: Any) -> Array:
        """(judges, images), 0 where there is no answer."""
        frame = told.assign(value=values.astype(float)).pivot(index="judge", columns="image", values="value")
        return np.asarray(frame.fillna(0.0))

    names = [name for name in conditions if (told["condition"] == name).any()]
    masks = [table(told["condition"] == name) for name in names]
    right, rng = table(told["right"]), np.random.default_rng(seed)
    judges, images = (rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) for n in right.shape)
    with np.errstate(invalid="ignore"):
        own = [(right * mask).sum(1) / mask.sum(1) for mask in masks]  # of each judge
        drawn = [(judges @ (right * mask) * images).sum(1) / (judges @ mask * images).sum(1) for mask in masks]
    means = [float((right * mask).sum() / mask.sum()) for mask in masks]
    rows = [
        {"condition": name, "accuracy": mean, **_interval(each), "answers": int(mask.sum())}
        for name, mask, mean, each in zip(names, masks, means, drawn, strict=True)
    ]
    differences = [
        {"condition": names[a], "other": names[b], "difference": means[a] - means[b]}
        | _interval(drawn[a] - drawn[b])
        | {f"judges_{100 * d:03.0f}": judges_needed(own[a] - own[b], d) for d in _SOUGHT}
        for a, b in combinations(range(len(names)), 2)
    ]
    return {"accuracies": DataFrame(rows), "differences": DataFrame(differences)}


def _interval(drawn: Array) -> dict[str, float]:
    low, high = np.nanquantile(drawn, [0.025, 0.975])  # a draw may have no answer under a condition
    return {"low": float(low), "high": float(high)}


def judges_needed(differences: Array, sought: float) -> float:
    """How many judges see a difference, by the spread of those of (judges,); NaN of fewer than two of them."""
    from scipy.stats import t

    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return np.nan
    spread, number = known.var(ddof=1) / sought**2, 2
    while spread * t.ppf([0.975, 0.8], number - 1).sum() ** 2 > number:  # a level of 5 %, found in 80 %
        number += 1
    return float(number)
