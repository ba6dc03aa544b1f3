"""`sanity`: does the map depend on the network's weights, and on the class asked about?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.model import Model
from ratherthan.settings import Interval


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

    stages: Annotated[int, Interval(0)] = 8

    name: ClassVar[str] = "sanity"
    reads_labels = False
    keys = ("check", "randomised")
    measures = ("correlation",)
    higher_is_better: ClassVar[dict[str, bool]] = {"swap": False}  # a cascade is no contest
    layout = (("method", "check", "randomised"), ("contrast",))

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row for the swap, one for every stage."""
        first, second = batch.clean().topk(2).indices.unbind(1)
        intact = {key: why.attribution for key, why in batch.explain(fact=first).items()}
        for key, why in batch.explain(fact=second).items():
            swapped = spearman(intact[key], why.attribution)
            yield batch.rows(*key, check="swap", randomised=0.0, correlation=swapped)
        for share, random in cascade(batch.model, self.stages, batch.seed):
            for key, why in replace(batch, model=random).explain(fact=first).items():
                kept = spearman(intact[key], why.attribution)
                yield batch.rows(*key, check="cascade", randomised=share, correlation=kept)


def cascade(model: Model, stages: int, seed: int) -> Iterator[tuple[float, Model]]:
    """The network with more and more random layers, from the last to the first, and the share of them.

    Args:
        model: The network; it is copied.
        stages: In how many equal steps.
        seed: Of the draws.
    """
    random = copy.copy(model)
    random.module = copy.deepcopy(model.module)
    layers = [each for each in random.module.modules() if next(each.parameters(recurse=False), None) is not None]
    layers.reverse()
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for stage in range(1, stages + 1):
        until = round(stage * len(layers) / stages)
        for layer in layers[done:until]:
            _randomise(layer, generator)
        done = until
        yield done / max(1, len(layers)), random


def _randomise(layer: nn.Module, generator: torch.Generator) -> None:
    for parameter in layer.parameters(recurse=False):
        spread = parameter.data.float().std(correction=0).item()
        drawn = torch.randn(parameter.shape, generator=generator) * spread + parameter.data.float().mean().item()
        parameter.data = drawn.to(parameter.data)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of maps (n, [C,] h, w), channels summed: (n,), NaN where one of them is constant."""
    x, y = _ranks(a), _ranks(b)
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


def _ranks(maps: Tensor) -> Tensor:
    """Ranks about their mean, equal values sharing theirs: (n, pixels), float64."""
    from scipy.stats import rankdata

    planes = maps.sum(1) if maps.ndim == 4 else maps
    ranks = torch.from_numpy(rankdata(planes.flatten(1).double().cpu().numpy(), axis=1))
    return ranks - ranks.mean(1, keepdim=True)
