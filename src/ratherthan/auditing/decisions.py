"""What is noted of every image: what the network says, what it is labelled, and where that is decided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ratherthan.attribution.explain import answered, targets_of
from ratherthan.attribution.forward import ForwardPass
from ratherthan.auditing.atlas import places_of
from ratherthan.contrast import odds
from ratherthan.errors import UnsupportedError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows
from ratherthan.settings import AtLeastOne, Interval


@dataclass(frozen=True)
class Decisions(Experiment):
    """A row per image, from one forward pass: why P, the class that it is said to be, rather than Q?

    Q is the label where that is another class, else the runner-up. `odds` are the log-odds of the label over all other
    classes, y_L - logsumexp_{k != L} y_k: the order of its probability, without ties where that rounds to 0 or 1.

    Attributes:
        cells: Rows and columns of the map that is kept of each image; larger ones are averaged over cells.
        places: So many at most, by which all foils of an image are parted, see `atlas.places_of`; 0: none.
    """

    cells: AtLeastOne = 14
    places: Annotated[int, Interval(0)] = 0

    name: ClassVar[str] = "audit"
    measures = ("p_said", "p_foil", "p_label", "odds", "score")
    methods = ("gradcam",)
    contrasts = ("weighted",)

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per image; `map` has the relevance of each cell, positive for P."""
        methods, contrasts = list(batch.methods.items()), list(batch.contrasts.items())
        with batch.model.differentiated():
            forward_pass = ForwardPass(batch.model, batch.images)
            methods[0][1].prepare(forward_pass)  # so that this pass is the one that is asked what it says
            logits = forward_pass.logits.double()
            if logits.shape[1] < 2 or not batch.model.output.exclusive:
                raise UnsupportedError("an audit asks why P, rather than Q: give a model of two or more classes")
            said, second = logits.topk(2, 1).indices.unbind(1)
            foil = torch.where(batch.labels == said, second, batch.labels)
            for (name, method), (way, contrast) in product(methods, contrasts):
                targets = targets_of(forward_pass, said, foil, contrast)
                why = answered(forward_pass, batch.ids, method, targets)
                maps = adaptive_avg_pool2d(why.heatmap().float(), min(self.cells, *batch.images.shape[-2:]))
                yield {
                    **batch.rows(name, way, **_numbers(logits, said, foil, batch.labels), score=why.score),
                    "said": said.tolist(), "foil": foil.tolist(), "map": maps.flatten(1).cpu().tolist(),
                    **(places_of(forward_pass, said, method, contrast, self.places, self.cells) if self.places else {}),
                }  # fmt: skip


def _numbers(logits: Tensor, said: Tensor, foil: Tensor, labels: Tensor) -> dict[str, Tensor]:
    p = logits.softmax(1)
    asked = {"p_said": said, "p_foil": foil, "p_label": labels}
    return {name: p.gather(1, each[:, None])[:, 0] for name, each in asked.items()} | {"odds": odds(logits, labels)}
