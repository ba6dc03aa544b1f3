"""Ways to a class, as a bank of latents shows them: searches on a manifold begin where they cross the boundary.

What a class has and others lack is the difference between a latent of it and the nearest of another class. Most of one
such difference is noise, as two digits differ in more than what makes one an 8; in the mean of many it cancels. A
feature that the image is far from having has no gradient there; a way still leads to it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ratherthan.search.method import ANY

Ahead = Callable[[Tensor], Tensor]
"""Latents (M, ...) to whether the foil leads there, (M,) bool."""
_WAYS = 128  # differences that are tried
_HALVINGS = 6  # of the piece of a way that the boundary lies on


def ways_to(latents: Tensor, classes: Tensor, fact: int, foil: int) -> Tensor:
    """Differences between latents of the foil, at most 128, evenly spread, and for each the nearest of another class.

    Args:
        latents: (M, ...).
        classes: (M,) what the network says of them, -1 for one that it has no scores for.
        fact: The class to leave.
        foil: The class to reach, -1 for any but the fact.

    Returns:
        (W, ...), none where the bank lacks the foil or anything else.
    """
    wanted = classes != fact if foil == ANY else classes == foil
    there, other = latents[wanted & (classes >= 0)], latents[~wanted & (classes >= 0)]
    if not len(there) or not len(other):
        return latents[:0]
    some = there[torch.linspace(0, len(there) - 1, min(_WAYS, len(there)), device=there.device).long()]
    return some - other[torch.cdist(some.flatten(1), other.flatten(1)).argmin(1)]


def crossings(ahead: Ahead, origin: Tensor, ways: Tensor) -> Tensor:
    """Where ways cross the boundary: the steps from the origin to just behind it, the shortest first.

    Args:
        ahead: Where the foil leads.
        origin: (...), where it does not.
        ways: (W, ...); those at whose end the foil does not lead are left out.
    """
    ways = ways[ahead(origin + ways)] if len(ways) else ways
    low, high = (ways.new_full((len(ways), *[1] * origin.ndim), share) for share in (0.0, 1.0))
    for _ in range(_HALVINGS if len(ways) else 0):
        middle = (low + high) / 2
        beyond = ahead(origin + middle * ways).view(low.shape)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    steps = high * ways
    return steps[steps.flatten(1).norm(dim=1).argsort(stable=True)]


def first_steps(ahead: Ahead, origin: Tensor, ways: Tensor, several: bool) -> Tensor:
    """Steps from the origin across the boundary: along the mean of all ways; if several are wanted, along each.

    Where the mean does not cross it, the mean of as many as possible of the shortest steps along single ways does.

    Returns:
        (S, ...), none where no way crosses.
    """
    common = crossings(ahead, origin, _mean(ways))
    if len(common) and not several:
        return common
    single = crossings(ahead, origin, ways)
    count = len(single)
    while count and not len(common):
        common, count = crossings(ahead, origin, _mean(single[:count])), count // 2
    return torch.cat([common, single])


def _mean(ways: Tensor) -> Tensor:
    """The mean of ways, as long as they are on average, (1, ...); or none of none."""
    mean, far = ways.mean(0, keepdim=True), ways.flatten(1).norm(dim=1).mean()
    return mean * (far / mean.norm().clamp_min(1e-12)) if len(ways) else ways
