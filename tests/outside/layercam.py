"""LayerCAM (Jiang et al. 2021): activations weighed by their own positive gradients. Not linear in the seed."""

from dataclasses import dataclass

from torch import Tensor

import ratherthan as rt


@rt.register_method
@dataclass(frozen=True)
class LayerCAM(rt.LayerMethod):
    name = "layercam"

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient.clamp_min(0) * activation).sum(2)
