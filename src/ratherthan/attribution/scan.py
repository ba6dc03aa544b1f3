"""`scan`: what CDeepEx compares itself with (cdeepex section 4.1), a way to combine the plain maps of fact and foil."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratherthan.attribution.explanation import on_plane
from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, get_method, register_method
from ratherthan.contrast import Question, Target, get_contrast
from ratherthan.errors import InputError

WEIGHTS = tuple(0.005 * step for step in range(1, 401))
_NOTE = f"kept: how many of {len(WEIGHTS)} weights lowered the fact and raised the foil; where 0, the map is zero"
_BATCH = 64


@register_method
@dataclass(frozen=True)
class Scan(Method):
    """Subtract the foil's map from the fact's by every weight, keep what works, take the mean.

    With E_t and E_p the plain maps of fact and foil (contrast `none`), on the plane of the image and scaled to
    max |E| = 1, and E_w = E_t - w E_p for w = .005, .010 ... 2.000: the evidence is removed from the image,
    x (1 - relu(E_w) / max relu(E_w)), all weights in one batched forward pass. E_w is kept where p_t falls and p_p
    rises. Scaling and removal are our reading; the paper leaves them open.

    The map is the mean of the kept E_w at the method's own resolution, zero where none was kept; how many were kept is
    in the diagnostics, (N, Q). Without a foil (contrast `none`) it is the method's plain map.

    Attributes:
        method: What makes the plain maps: a name or a method with settings.
    """

    name = "scan"
    method: str | Method = "gradcam"

    def settings(self) -> dict[str, Any]:
        """The method by its name, with its settings where it was given as an object."""
        own = self.method
        return {"method": own if isinstance(own, str) else {"name": own.name, **own.settings()}}

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Make the forward pass of the method."""
        get_method(self.method).prepare(forward_pass)

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, ...) as the method's maps.

        Raises:
            InputError: If a question has several foils, or the contrast would weigh them in another way.
        """
        method = forward_pass.once(self, lambda: get_method(self.method))
        if target.contrast.name == "none":
            return method.attribute(forward_pass, target)
        if target.contrast.name not in ("mean", "max", "weighted"):
            raise InputError(f"scan weighs fact and foil in its own way: leave contrast {target.contrast.name!r} out")
        if not target.question.single:
            raise InputError("scan compares with one class at a time: give a foil, e.g. 'runner-up' or a class")
        fact, foil = target.question.fact, target.question.foil
        found = method.attribute(forward_pass, _plain(target, torch.cat([fact, foil], 1)))
        summed = found.values.sum(2) if found.values.ndim == 5 else found.values
        planes = on_plane(summed, forward_pass.images)
        largest = planes.abs().amax((-2, -1))
        scale = torch.where(largest > 0, largest, 1)
        e_fact, e_foil = (planes / scale[..., None, None]).chunk(2, 1)
        weights = torch.tensor(WEIGHTS, dtype=planes.dtype, device=planes.device)
        kept = _kept(forward_pass, target, e_fact, e_foil, weights)
        count = kept.sum(-1)
        mean_weight = (kept * weights).sum(-1) / count.clamp_min(1)
        lead = (..., *[None] * (found.values.ndim - 2))
        raw_fact, raw_foil = (found.values / scale[lead]).chunk(2, 1)
        values = (count > 0)[lead] * (raw_fact - mean_weight[lead] * raw_foil)
        return Attribution(values, found.layer, {"kept": count, "scan": _NOTE})


def _plain(target: Target, classes: Tensor) -> Target:
    """Why each of these classes, (N, Q), by itself?"""
    return Target(target.logits, Question.against_all(classes, target.logits.shape[-1]), get_contrast("none"))


def _kept(forward_pass: ForwardPass, target: Target, e_fact: Tensor, e_foil: Tensor, weights: Tensor) -> Tensor:
    """(N, Q, weights) bool: does removing the evidence lower the fact and raise the foil?"""
    shape = (*e_fact.shape[:2], len(weights))
    cases = torch.cartesian_prod(*(torch.arange(length, device=weights.device) for length in shape))
    answers = []
    for n, q, w in (part.T for part in torch.split(cases, _BATCH)):
        evidence = (e_fact[n, q] - weights[w, None, None] * e_foil[n, q]).clamp_min(0)
        most = evidence.amax((-2, -1), keepdim=True)
        removed = evidence / torch.where(most > 0, most, 1)
        answers.append(forward_pass.forward(forward_pass.images[n] * (1 - removed).unsqueeze(1)))
    n, q, _ = cases.T
    change = torch.cat(answers).softmax(-1) - forward_pass.logits.softmax(-1)[n]
    fact, foil = (each[n, q].unsqueeze(1) for each in (target.question.fact, target.question.foil))
    return ((change.gather(1, fact) < 0) & (change.gather(1, foil) > 0)).reshape(shape)
