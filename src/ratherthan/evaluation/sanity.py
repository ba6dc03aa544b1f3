"""`sanity`: does the map depend on the network's weights, and on the class asked about?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ratherthan.attribution.explanation import Explanation
from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment


@register_experiment
@dataclass(frozen=True)
class Sanity(Experiment):
    """Sanity checks for maps (Adebayo et al. 2018), and how much the map of the fact differs from that of the foil.

    Cascade: from the last layer to the first, weights are replaced by draws from N(mean, std) of each tensor; at every
    stage the map of t1 is compared with the intact network's. Swap: the map of t1 is compared with that of t2 (foils:
    all other classes each). Compared are maps as they are, signed and at their own resolution, by

        correlation = Spearman's rank correlation, tied values sharing their mean rank

    Near 0 is right for a randomised network; a map that stays (near 1) is an edge detector. For the swap, 1 says that
    the map does not tell t1 from t2; a contrastive map comes near -1. Where a map is constant the value is undefined.

    Attributes:
        stages: Number of stages of the cascade; each randomises an equal share of the layers more.
    """

    stages: int = 8

    name: ClassVar[str] = "sanity"
    settings = ("check", "randomised")
    measures = ("correlation",)
    layout = (("method", "check", "randomised"), ("contrast",))

    def __post_init__(self) -> None:
        if self.stages < 0:
            raise InputError(f"stages is a number of at least 0, not {self.stages}")

    def better(self, cell: Mapping[str, Any]) -> int:
        """Different maps for different classes; a cascade is no contest."""
        return -1 if cell["check"] == "swap" else 0

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row for the swap, one for every stage."""
        top = batch.logits([batch.images])[0].topk(2).indices
        first = {key: _planes(why) for key, why in batch.explain(fact=top[:, 0]).items()}
        for (method, contrast), why in batch.explain(fact=top[:, 1]).items():
            swapped = spearman(first[method, contrast], _planes(why))
            yield batch.rows(method, contrast, {"check": "swap", "randomised": 0.0}, correlation=swapped)
        for share, module in self._cascade(batch):
            random = copy.copy(batch.model)
            random.module = module
            for (method, contrast), why in replace(batch, model=random).explain(fact=top[:, 0]).items():
                kept = spearman(first[method, contrast], _planes(why))
                yield batch.rows(method, contrast, {"check": "cascade", "randomised": share}, correlation=kept)

    def _cascade(self, batch: Batch) -> Iterator[tuple[float, nn.Module]]:
        """The network with more and more random layers, and the share of them."""
        module = copy.deepcopy(batch.model.module)
        layers = [each for each in module.modules() if next(each.parameters(recurse=False), None) is not None]
        layers.reverse()
        generator = torch.Generator().manual_seed(batch.seed)
        done = 0
        for stage in range(1, self.stages + 1):
            until = round(stage * len(layers) / self.stages)
            for layer in layers[done:until]:
                _randomise(layer, generator)
            done = until
            yield done / max(1, len(layers)), module


def _randomise(layer: nn.Module, generator: torch.Generator) -> None:
    for parameter in layer.parameters(recurse=False):
        spread = parameter.data.float().std(correction=0).item()
        drawn = torch.randn(parameter.shape, generator=generator) * spread + parameter.data.float().mean().item()
        parameter.data = drawn.to(parameter.data)


def _planes(why: Explanation) -> Tensor:
    """(n, h, w): the maps at their own resolution, channels summed."""
    return why.attribution.sum(1) if why.attribution.ndim == 4 else why.attribution


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of maps (n, h, w): (n,), NaN where one of them is constant."""
    x, y = (_mean_ranks(each.flatten(1)) for each in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


def _mean_ranks(values: Tensor) -> Tensor:
    ordered = values.sort(1).values.contiguous()
    before, until = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (before + until).double() / 2
