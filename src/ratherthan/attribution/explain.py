"""The verb `explain`: WHERE in this input is P preferred over Q?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ratherthan.attribution.explanation import Explanation, rebuilt
from ratherthan.attribution.forward import MEMORY_BUDGET, ForwardPass, check_budget
from ratherthan.attribution.method import Attribution, Method, get_method
from ratherthan.attribution.scan import scan
from ratherthan.contrast import (
    Contrast,
    ContrastFunction,
    Question,
    Scan,
    Target,
    get_contrast,
    resolve,
    resolve_values,
)
from ratherthan.errors import InputError
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.result import check_length, row_names, take_rows, versions

AnyContrast = str | Contrast | ContrastFunction


def explain(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    method: str | Method = "gradcam",
    contrast: AnyContrast | None = None,
    *,
    batch_size: int = 64,
    memory_budget: int = MEMORY_BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Explain why the network prefers the fact over the foil.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays.
        fact: The class to explain; None: the prediction. See `contrast.resolve` for all that can be said.
        foil: What it is compared with; None: all other classes. For a regressor, a value.
        method: A registered name (see `methods()`), or an object with settings, e.g. `GradCAM(layer="layer4")`.
        contrast: A registered name (see `contrasts()`), a `Contrast`, or a function; None: "weighted" for classes,
            "loss" for a value with a foil, "none" for a value without.
        batch_size: Images per forward pass.
        memory_budget: Bytes that pulling back may take at once.
        progress: Called with (images done, images in all) after every batch.

    Returns:
        The explanation; its attribution has a dimension Q where facts or foils form an axis.

    Raises:
        InputError: If an argument cannot be used.
        ModelError: If the network cannot be explained.

    Example:
        >>> why = explain(model, images, foil="runner-up")
        >>> why.save("why.html")
    """
    (found,) = compare(
        model,
        images,
        fact,
        foil,
        [method],
        [contrast],
        batch_size=batch_size,
        memory_budget=memory_budget,
        progress=progress,
    )
    return found


def compare(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    methods: Sequence[str | Method] = ("gradcam",),
    contrasts: Sequence[AnyContrast | None] = ("none", "mean", "max", "weighted"),
    *,
    batch_size: int = 64,
    memory_budget: int = MEMORY_BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> list[Explanation]:
    """Explain the same images by several methods and contrasts, sharing every forward pass that can be shared.

    Args:
        model: As in `explain`, like all that is not named here.
        images: As in `explain`.
        fact: As in `explain`.
        foil: As in `explain`.
        methods: The methods.
        contrasts: The contrasts.
        batch_size: As in `explain`.
        memory_budget: As in `explain`.
        progress: As in `explain`.

    Returns:
        One explanation for each method and contrast, methods outermost.
    """
    check_budget(memory_budget)
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, not {batch_size}")
    for what, given in (("methods", methods), ("contrasts", contrasts)):
        if isinstance(given, str):
            raise InputError(f"{what} is a list, e.g. [{given!r}], not {given!r}")
    model = Model.wrap(model)
    chosen = [get_method(each) for each in methods]
    how = [None if each is None else get_contrast(each) for each in contrasts]
    batch = model.preprocess(images).clone()  # the result keeps them, whatever becomes of the caller's
    check_length(fact, len(batch), "fact")
    check_length(foil, len(batch), "foil")
    parts: list[list[Explanation]] = []
    with preserve_state(model.module):
        for start in range(0, len(batch), batch_size):
            rows = slice(start, start + batch_size)
            forward_pass = ForwardPass(model, batch[rows], memory_budget)
            asked = (take_rows(fact, rows, len(batch)), take_rows(foil, rows, len(batch)))
            parts.append(_explain_batch(forward_pass, *asked, chosen, how))
            if progress is not None:
                progress(min(start + batch_size, len(batch)), len(batch))
    names = row_names(images, len(batch))
    return [_joined(list(column), names) for column in zip(*parts, strict=True)]


def _explain_batch(
    forward_pass: ForwardPass, fact: Any, foil: Any, methods: Sequence[Method], contrasts: Sequence[Contrast | None]
) -> list[Explanation]:
    found = []
    for method in methods:
        method.prepare(forward_pass)
        for contrast in contrasts:
            target = _target(forward_pass, fact, foil, contrast)
            maps = (
                scan(forward_pass, target, method)
                if isinstance(target.contrast, Scan)
                else method.attribute(forward_pass, target)
            )
            found.append(_result(forward_pass, target, method, maps))
    return found


def _target(forward_pass: ForwardPass, fact: Any, foil: Any, contrast: Contrast | None) -> Target:
    logits = forward_pass.logits
    if forward_pass.model.output.of_classes:
        question = resolve(logits, fact, foil, forward_pass.model.class_names)
        return Target(logits, question, contrast or get_contrast("weighted"))
    if fact is not None:
        raise InputError("this model gives a value: the fact is what it gives, only a foil can be chosen")
    contrast = contrast or get_contrast("none" if foil is None else "loss")
    if not contrast.for_values:
        raise InputError(f"contrast {contrast.name!r} compares classes; this model gives a value: use 'loss' or 'none'")
    if foil is None and contrast.name != "none":
        raise InputError("'loss' compares with a value: give one, e.g. foil=0.75")
    return Target(logits, resolve_values(logits, foil), contrast)


def _result(forward_pass: ForwardPass, target: Target, method: Method, maps: Attribution) -> Explanation:
    question: Question = target.question
    squeeze = question.axis is None

    def lead(values: Tensor) -> Tensor:
        return values.squeeze(1) if squeeze else values

    if maps.values.shape[:2] != question.fact.shape:
        wanted, shape = tuple(question.fact.shape), tuple(maps.values.shape)
        raise InputError(f"method {method.name!r} gives maps of shape {shape}; it must begin with {wanted}")
    score = target.contrast.scalar(forward_pass.logits, question)
    for what, values in ((f"contrast {target.contrast.name!r}", score), (f"method {method.name!r}", maps.values)):
        if not values.isfinite().all():
            raise InputError(f"{what} gives NaN or infinite values for this question: no map can be right")

    return Explanation(
        images=forward_pass.images,
        attribution=lead(maps.values.detach()),
        logits=forward_pass.logits,
        fact=lead(question.fact),
        foil=lead(question.foil),
        foils=lead(question.foils),
        score=lead(score),
        axis=question.axis,
        method=method.name,
        contrast=target.contrast.name,
        settings=method.settings(),
        layer=maps.layer,
        output=forward_pass.model.output.name,
        class_names=_class_names(forward_pass),
        diagnostics={
            key: lead(value) if isinstance(value, Tensor) else value for key, value in maps.diagnostics.items()
        },
        versions=versions(),
    )


def _joined(parts: list[Explanation], names: tuple[str, ...]) -> Explanation:
    """One explanation from those of the batches."""
    if len(parts) == 1:
        return dataclasses.replace(parts[0], names=names)
    return rebuilt(parts, torch.cat, names)


def _class_names(forward_pass: ForwardPass) -> tuple[str, ...] | None:
    names = forward_pass.model.class_names
    if names is not None and forward_pass.model.output.of_classes and len(names) == forward_pass.logits.shape[1]:
        return names
    return None
