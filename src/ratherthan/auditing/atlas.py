"""Of an image all foils at once: by where it is decided that it is not one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ratherthan.attribution.explain import answered, targets_of
from ratherthan.render.colours import as_rgb, overlay, shared_limit
from ratherthan.render.figure import FAINT, Picture, Row, draw_rows
from ratherthan.render.panel import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ratherthan.attribution.forward import ForwardPass
    from ratherthan.attribution.method import Method
    from ratherthan.contrast import Contrast

_APART = 0.05  # maps whose cosine is above 0.95 look alike
_LINKED = 1000  # maps whose distances to one another are held: 4 MB


def places_of(
    forward_pass: ForwardPass, said: Tensor, method: Method, contrast: Contrast, count: int, cells: int
) -> dict[str, list[Any]]:
    """Part all foils of each image by where they are told from what it is said to be.

    The maps of all K - 1 foils, from one forward pass, are made of unit length and parted by how alike they are.

    Args:
        forward_pass: Model and N images; the method is prepared for it.
        said: (N,) the facts.
        method: What shows where.
        contrast: How the fact is weighed against a foil.
        count: Places, at most.
        cells: Rows and columns of a place's map, at most; larger ones are averaged over cells.

    Returns:
        Of each image `foils`, the likeliest first; `place`, that of each of these, 0 the one of most; `place_map`, of
        each place the mean of its maps, one after another.
    """
    names = tuple(map(str, range(len(said))))
    few = list[Tensor]()
    for target in targets_of(forward_pass, said, "each", contrast):
        maps = answered(forward_pass, names, method, [target]).plain_maps().double()
        few.append(adaptive_avg_pool2d(maps, min(cells, *maps.shape[2:])).flatten(2))
    every = torch.nn.functional.normalize(torch.cat(few, 1), dim=2).cpu().numpy()
    found: dict[str, list[Any]] = {"foils": [], "place": [], "place_map": []}
    order = forward_pass.logits.argsort(dim=1, descending=True, stable=True)
    for i, fact in enumerate(said.tolist()):
        foils = order[i][order[i] != fact].tolist()
        place, means = parted(every[i, foils], count, _APART)
        found["foils"].append(foils)
        found["place"].append(place.tolist())
        found["place_map"].append(means.flatten().tolist())
    return found


def parted(
    maps: np.ndarray[Any, Any], count: int, apart: float = 0.0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Part maps into alike ones, by average linkage of their cosines.

    Args:
        maps: (n, cells) of unit length, or zero; of more than a thousand the others follow the first.
        count: Groups, at most.
        apart: Fewer, where they would be nearer than this: 1 - cosine.

    Returns:
        (n,) the group of each, 0 the largest; and the mean map of each group.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    first = maps[:_LINKED]
    # of unit vectors the squared distance is twice 1 - cosine, and it knows what zero is
    group = np.zeros(len(first), int)
    if len(first) > 1:
        tree = linkage(first, "average", "sqeuclidean")
        few = [fcluster(tree, count, "maxclust"), fcluster(tree, 2 * apart, "distance")]
        group = min(few, key=max) - 1
    if len(maps) > _LINKED:
        means = np.stack([first[group == number].mean(0) for number in range(group.max() + 1)])
        group = np.append(group, ((maps[_LINKED:, None] - means) ** 2).sum(2).argmin(1))
    order = np.argsort(-np.bincount(group), kind="stable")
    group = np.argsort(order, kind="stable")[group]
    return group, np.stack([maps[group == number].mean(0) for number in range(len(order))])


def draw_atlas(
    fact: str, shown: Sequence[tuple[str, np.ndarray[Any, Any], dict[str, Any]]], names: Sequence[str], named: int
) -> Figure:
    """A row per image: the image, then a map for each place with the likeliest foils that are decided there.

    Args:
        fact: What the images are said to be.
        shown: Of each image what to call it, its picture, and its row of `places_of`.
        names: Of the classes.
        named: Foils that are named at each place.
    """
    rows = []
    for number, (name, image, found) in enumerate(shown):
        place, count = np.asarray(found["place"]), 1 + max(found["place"])
        cells = round((len(found["place_map"]) / count) ** 0.5)
        maps = np.asarray(found["place_map"]).reshape(count, cells, cells)
        limit = shared_limit(maps)
        pictures = [Picture(name, as_rgb(image), colour=FAINT)]
        for at, map_ in enumerate(maps):
            here = [names[found["foils"][i]] for i in np.flatnonzero(place == at)]
            told = "\n".join(
                [f"rather than {len(here)} other{'s' * (len(here) > 1)}", *here[:named], *[""] * (named - len(here))]
            )
            pictures.append(Picture(told, overlay(image, map_, limit)))
        rows.append(Row(pictures, "" if number else f"Why {fact}, rather than each of {len(place)} others?"))
    return draw_rows(rows, sides=Panel.sides)
