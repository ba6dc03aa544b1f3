"""Average drop (Chattopadhay et al., Grad-CAM++, 2018): max(0, y - o) / y, the map being a soft mask."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import ratherthan as rt


@rt.register_experiment
@dataclass(frozen=True)
class AverageDrop(rt.Experiment):
    """y is the probability of the predicted class, o that of the image times the map, rectified and stretched."""

    name = "average-drop"
    measures = ("drop",)
    higher_is_better: ClassVar[dict[str, bool]] = {"drop": False}

    def measure(self, batch: rt.Batch) -> Iterator[rt.Rows]:
        for (method, contrast), why in batch.explain().items():
            mask = why.heatmap().clamp_min(0)
            mask /= mask.amax((1, 2), keepdim=True)
            shown = batch.logits([batch.images * mask.unsqueeze(1)])[0]
            y, o = (logits.softmax(1).gather(1, why.fact.unsqueeze(1))[:, 0] for logits in (why.logits, shown))
            yield batch.rows(method, contrast, drop=(y - o).clamp_min(0) / y)
