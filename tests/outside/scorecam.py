"""Score-CAM (Wang et al. 2020): channels weighed by the contrast of the image that they let through."""

from dataclasses import dataclass

import torch

import ratherthan as rt


@rt.register_method
@dataclass(frozen=True)
class ScoreCAM(rt.LayerMethod):
    name = "scorecam"

    def attribute(self, forward_pass: rt.ForwardPass, target: rt.Target) -> rt.Attribution:
        graph, grid = self.activation(forward_pass)
        images, channels = forward_pass.images, grid.fold(graph.leaf.detach())
        masks = torch.nn.functional.interpolate(channels, images.shape[-2:], mode="bilinear")
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        masks = (masks - low) / (high - low).clamp_min(1e-8)
        seen = [forward_pass.forward(images * mask.unsqueeze(1)) for mask in masks.unbind(1)]
        weights = target.scalar(torch.stack(seen)).softmax(0)
        return rt.Attribution(torch.einsum("knq,nkhw->nqhw", weights, channels), graph.layer)
