"""`known-answer`: does a map say what is known, by construction, to tell the fact from the foil?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity

from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment

_EQUAL = 1e-6  # of the largest sum: what rounding leaves


class Truth(NamedTuple):
    """What is known of an image.

    Attributes:
        fact: The class asked about.
        foil: The class it is compared with.
        cells: (rows, columns) what each cell of a grid adds to the fact's lead over the foil; or 1, -1 and 0 where no
            more is known than for which of the two it speaks.
        shared: (rows, columns) of bool: cells that speak for both alike, so that nothing is left of them.
    """

    fact: int
    foil: int
    cells: Any
    shared: Any


@register_experiment
@dataclass(frozen=True, eq=False)
class KnownAnswer(Experiment):
    """Maps against truth that is known by construction, see `bench`.

    The map of "why the fact, rather than the foil?" is summed over the cells of the truth's grid. With m the sums, t
    the truth, and AUC(A, B) the share of pairs of a cell of A and a cell of B in which that of A is higher (half, where
    they are equal within a millionth of the largest m),

        cosine = m t / (|m| |t|)                                   (a map that knows nothing: 0 on average)
        fact   = AUC of m of cells with t > 0 over irrelevant ones (it knows nothing of the fact: 0.5)
        foil   = AUC of -m of cells with t < 0 over irrelevant ones (it knows nothing of the foil: 0.5)
        shared = AUC of m of cells with t > 0 over shared ones     (what both have counts as much as what tells: 0.5)

    Where there are no such cells, the measure is undefined. A map of zeros has 0 and 0.5.

    Attributes:
        truth: A `Truth` for each sample's name; others are left out.
    """

    truth: Any = None

    name: ClassVar[str] = "known-answer"
    reads_labels = False
    measures = ("cosine", "fact", "foil", "shared")
    higher_is_better: ClassVar[dict[str, bool]] = dict.fromkeys(measures, True)
    layout = (("method", "contrast"), ("measure",))
    methods = ("gradcam", "ixg")

    def __post_init__(self) -> None:
        """Check the truth.

        Raises:
            InputError: If there is none, or it cannot be one.
        """
        super().__post_init__()
        if not isinstance(self.truth, Mapping) or not self.truth:
            raise InputError(
                "known-answer needs truth={sample name: Truth(fact, foil, cells, shared)}; see ratherthan bench"
            )
        for name, each in self.truth.items():
            grids = [np.shape(grid) for grid in each[2:]] if isinstance(each, tuple) and len(each) == 4 else []
            if len(grids) != 2 or grids[0] != grids[1] or len(grids[0]) != 2:
                raise InputError(f"truth of {name!r}: give Truth(fact, foil, cells, shared), two grids of one size")

    def settings(self) -> dict[str, Any]:
        """The truth by its hash."""
        listed = {
            name: [*each[:2], *(np.asarray(grid).tolist() for grid in each[2:])] for name, each in self.truth.items()
        }
        return {"truth": hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]}

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast for the samples whose truth is known."""
        batch = batch.keep(torch.tensor([name in self.truth for name in batch.ids]))
        if not batch.ids:
            return
        known = [self.truth[name] for name in batch.ids]
        fact, foil, cells, shared = (
            torch.as_tensor(np.array(each)).to(batch.images.device) for each in zip(*known, strict=True)
        )
        grid, cells, shared = cells.shape[1:], cells.double().flatten(1), shared.bool().flatten(1)
        irrelevant = (cells == 0) & ~shared
        for (method, contrast), why in batch.explain(fact, foil).items():
            sums = adaptive_avg_pool2d(why.heatmap().double(), (grid[0], grid[1])).flatten(1)
            yield batch.rows(
                method, contrast, cosine=cosine_similarity(sums, cells, eps=1e-300),
                fact=auc(sums, cells > 0, irrelevant), foil=auc(-sums, cells < 0, irrelevant),
                shared=auc(sums, cells > 0, shared),
            )  # fmt: skip


def auc(values: Tensor, ours: Tensor, others: Tensor) -> Tensor:
    """The share of pairs in which ours is higher, equal ones counted half: (n, cells) each to (n,), NaN for no pair."""
    gap = values.unsqueeze(2) - values.unsqueeze(1)
    gap[gap.abs() <= _EQUAL * values.abs().amax(1).view(-1, 1, 1)] = 0
    pairs = (ours.unsqueeze(2) & others.unsqueeze(1)).double()
    return ((gap.sign() + 1) / 2 * pairs).sum((1, 2)) / pairs.sum((1, 2))
