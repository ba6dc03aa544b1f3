"""What the latents of a generative model mean to people: names for what `zoo.concepts` measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ratherthan.errors import InputError, unknown
from ratherthan.search.attributes import LatentCoordinate
from ratherthan.search.manifold import Manifold
from ratherthan.zoo.concepts import Effect

if TYPE_CHECKING:
    from ratherthan.model import Model

_FELT = 0.1  # standard deviations per unit of a coordinate, below which its effect is not worth a name


def named(
    manifold: Manifold,
    effects: Mapping[str, Effect],
    words: Mapping[str, str],
    least: float = 0.6,
    most: int = 3,
) -> tuple[LatentCoordinate, ...]:
    """Attribute functions of the coordinates whose effect has been measured.

    A coordinate is named after the concept that it moves most strongly, and only if it moves that one steadily (see
    `least`) and by at least a tenth of a standard deviation per unit. No attribute may fall, so naming both directions
    of one concept would hold its coordinates still.

    Args:
        manifold: The manifold.
        effects: What was measured of it.
        words: What more of a concept is called, or less of it if "-" stands before its name, e.g. {"size": "larger",
            "-roundness": "longer"}. Concepts that are not named count all the same: a coordinate that moves one of them
            more is not named after another.
        least: Correlation from which on a coordinate is said to move the concept.
        most: How many coordinates a concept may have, the strongest first.

    Raises:
        InputError: If a concept was not measured.
    """
    wanted = [
        (concept.removeprefix("-"), -1 if concept.startswith("-") else 1, word) for concept, word in words.items()
    ]
    for concept, _, _ in wanted:
        if concept not in effects:
            raise InputError(unknown("concept", concept, effects))
    if not wanted:
        return ()
    strengths = torch.stack([each.strength.nan_to_num(0).abs() for each in effects.values()])
    own = strengths.argmax(0)  # (L,): which concept each coordinate moves most
    found: list[LatentCoordinate] = []
    for concept, direction, word in wanted:
        row, effect = list(effects).index(concept), effects[concept]
        steady = (effect.correlation.abs() >= least) & (effect.correlation * effect.strength > 0)
        mine = (own == row) & steady & (strengths[row] >= _FELT)
        ranked = strengths[row].masked_fill(~mine, -1).argsort(descending=True, stable=True)
        for index in ranked[: min(most, int(mine.sum()))].tolist():
            evidence = (
                f"z{index}: {effect.correlation[index]:+.2f} correlation with {concept}, "
                f"{effect.strength[index]:+.2f} standard deviations per unit"
            )
            sign = direction if effect.strength[index] > 0 else -direction
            found.append(LatentCoordinate(manifold=manifold, index=index, sign=sign, names=(word,), evidence=evidence))
    return tuple(found)


def worded(model: Model, manifold: Manifold) -> tuple[LatentCoordinate, ...]:
    """The attribute functions for which a zoo model has words, and whose effect the manifold's weights tell.

    Args:
        model: The model; one that is not of the zoo has no words.
        manifold: The manifold.
    """
    from ratherthan.zoo import registry as zoo

    entry = zoo.entry_of(model.name)
    words = {} if entry is None else entry.words
    known = {concept: word for concept, word in words.items() if concept.removeprefix("-") in manifold.effects}
    return named(manifold, manifold.effects, known)
