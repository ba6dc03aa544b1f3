"""The verb `explain`: WHERE in this input is P preferred over Q?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ratherthan.attribution.explanation import Explanation, beside
from ratherthan.attribution.forward import MEMORY_BUDGET, ForwardPass
from ratherthan.attribution.method import Attribution, Method, get_method
from ratherthan.attribution.perturbation import Perturbation
from ratherthan.contrast import (
    Contrast,
    ContrastFunction,
    Question,
    Target,
    get_contrast,
    resolve_in_parts,
    resolve_values,
)
from ratherthan.errors import InputError, UnsupportedError
from ratherthan.inference import preserve_state
from ratherthan.model import HALF, Model
from ratherthan.outputs import OUTPUTS
from ratherthan.progress import Progress, reporter
from ratherthan.settings import Positive, check_value
from ratherthan.verbs import Samples

_BYTES = 40  # for each class of each question while it is answered: its foil, their weights, the seed
AnyContrast = str | Contrast | ContrastFunction


def explain(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    method: str | Method = "gradcam",
    contrast: AnyContrast | None = None,
    *,
    layer: str | nn.Module | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress = None,
) -> Explanation:
    """Explain why the network prefers the fact over the foil.

    Several threads may explain one network, or networks that share parts: they take turns. A network that another
    thread trains or calls by itself meanwhile is not guarded, and random numbers are those of the whole process.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays; or a data set.
        fact: The class to explain; None: the prediction. See `contrast.resolve` for all that can be said.
        foil: What it is compared with; None: all other classes. For a regressor, a value.
        method: A registered name (see `methods()`), or an object with settings, e.g. `GradCAM(layer="layer4")`.
        contrast: A registered name (see `contrasts()`), a `Contrast`, or a function; None: "weighted" for classes,
            "loss" for a value with a foil, "none" for a value without.
        layer: The layer that a layer method named by `method` explains, e.g. "layer4"; None: the model's, else found.
        names: What to call the images; None: their paths, or their names in a data set, or numbers.
        batch_size: Images per forward pass.
        memory_budget: Bytes that pulling back may take at once.
        progress: True draws a bar; a callable is called with (images done, images in all) after every batch.

    Returns:
        The explanation; its attribution has a dimension Q where facts or foils form an axis.

    Raises:
        InputError: If an argument cannot be used.
        ModelError: If the network cannot be explained.

    Example:
        >>> why = explain(model, images, foil="runner-up")
        >>> why.save("why.html")
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "memory_budget": memory_budget, "progress": progress}
    (found,) = compare(model, images, fact, foil, [method], [contrast], layer=layer, names=names, **settings)
    return found


def compare(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    methods: Sequence[str | Method] = ("gradcam",),
    contrasts: Sequence[AnyContrast | None] = ("none", "mean", "max", "weighted"),
    *,
    layer: str | nn.Module | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress = None,
) -> list[Explanation]:
    """Explain the same images by several methods and contrasts, sharing every forward pass that can be shared.

    Args:
        model: As in `explain`, like all that is not named here.
        images: As in `explain`.
        fact: As in `explain`.
        foil: As in `explain`.
        methods: The methods.
        contrasts: The contrasts.
        layer: As in `explain`.
        names: As in `explain`.
        batch_size: As in `explain`.
        memory_budget: As in `explain`.
        progress: As in `explain`.

    Returns:
        One explanation for each method and contrast, methods outermost.
    """
    check_value("memory_budget", Positive, memory_budget)
    for what, given in (("methods", methods), ("contrasts", contrasts)):
        if isinstance(given, str):
            raise InputError(f"{what} is a list, e.g. [{given!r}], not {given!r}")
    model = Model.wrap(model)
    chosen = [_method(each, layer) for each in methods]
    if any(hasattr(each, "layer") for each in chosen):
        model.check_open()
    weighed = [None if each is None else get_contrast(each) for each in contrasts]
    samples = Samples.of(model, images, fact, foil, names)
    parts: list[list[Explanation]] = []
    with preserve_state(model.module), model.differentiated(), reporter(progress, "explaining") as report:
        for batch in samples.batches(1 if model.output.one_by_one else batch_size, report):
            about = model.about(batch.positions)
            forward_pass = ForwardPass(
                about, batch.images, memory_budget, batch.sharing(report, samples.positions.stop)
            )
            parts.append([each for method in chosen for each in _explained(forward_pass, batch, method, weighed)])
    return [Explanation.joined(column).labelled(samples.labels) for column in zip(*parts, strict=True)]


def _method(given: str | Method, layer: str | nn.Module | None) -> Method:
    if layer is not None and not hasattr(get_method(given), "layer"):
        raise InputError(f"method {get_method(given).name!r} explains the image, not a layer; leave layer out")
    return get_method(given) if layer is None else get_method(given, layer=layer)


def _explained(
    forward_pass: ForwardPass, batch: Samples, method: Method, contrasts: Sequence[Contrast | None]
) -> Iterator[Explanation]:
    method.prepare(forward_pass)
    for contrast in contrasts:
        yield answered(forward_pass, batch.names, method, targets_of(forward_pass, batch.fact, batch.foil, contrast))


def answered(
    forward_pass: ForwardPass, names: tuple[str, ...], method: Method, targets: Iterable[Target]
) -> Explanation:
    """What a method, prepared for this forward pass, says to questions that form one axis."""
    found = ((target, method.attribute(forward_pass, target)) for target in targets)
    return beside([explanation_of(forward_pass, target, method, each, names) for target, each in found])


def ask_again(
    why: Explanation, model: Model, images: Tensor | None = None, batch_size: int = 16, **settings: Any
) -> Explanation:
    """Ask the question of an explanation once more.

    Args:
        why: The explanation; facts, foils and layer stay its own.
        model: The network, or another in its place.
        images: (N, ...) in the place of its own, as its `images` are.
        batch_size: Images per forward pass.
        **settings: Settings of the method that are to be others.

    Returns:
        What it is now.

    Raises:
        InputError: If the method or the contrast cannot be made again from what a result keeps of them.
    """
    known = {"layer": why.layer} if why.layer is not None and "layer" in why.settings else {}
    method = get_method(why.method, **why.settings | known | settings)
    contrast, of_values = get_contrast(why.contrast), not OUTPUTS.find(why.output).of_classes
    asked = {key: getattr(why, key) for key in ("fact", "foil", "sets")}
    asked = {key: None if each is None else why.by_question(each).to(model.device) for key, each in asked.items()}
    question = Question(**asked, classes=why.logits.shape[1], axis=why.axis, of_values=of_values)
    samples = Samples((why.images if images is None else images).to(model.device), why.names)
    parts: list[Explanation] = []
    with preserve_state(model.module), model.differentiated(), reporter(None, "") as report:
        for batch in samples.batches(1 if model.output.one_by_one else batch_size, report):
            forward_pass = ForwardPass(model.about(batch.positions), batch.images)
            method.prepare(forward_pass)
            here = question[batch.start : batch.start + len(batch)]
            at_once = _at_once(forward_pass)
            some = (slice(start, start + at_once) for start in range(0, why.questions, at_once))
            targets = (Target(forward_pass.logits, here[:, each], contrast) for each in some)
            parts.append(answered(forward_pass, batch.names, method, targets))
    return Explanation.joined(parts)


def _at_once(forward_pass: ForwardPass) -> int:
    """How many questions about each sample fit the memory at once."""
    return max(1, forward_pass.budget // (_BYTES * forward_pass.logits.numel()))


def targets_of(forward_pass: ForwardPass, fact: Any, foil: Any, contrast: Contrast | None = None) -> Iterator[Target]:
    """The questions about a batch, and the contrast that fits what the model gives; of many some at a time.

    Args:
        forward_pass: Model and images.
        fact: As in `explain`.
        foil: As in `explain`.
        contrast: None: as `explain` chooses it.

    Raises:
        InputError: If the question does not fit the model.
    """
    model, logits = forward_pass.model, forward_pass.logits
    if contrast is not None and contrast.name == "loss":
        model.check_exclusive("contrast 'loss'")
    if model.output.of_classes:
        names, at_once = model.class_names, _at_once(forward_pass)
        for question in resolve_in_parts(logits, fact, foil, names, at_once, model.output.exclusive):
            yield Target(logits, question, contrast or get_contrast("weighted"))
        return
    if fact is not None:
        raise InputError("this model gives a value: the fact is what it gives, only a foil can be chosen")
    contrast = contrast or get_contrast("none" if foil is None else "loss")
    if not contrast.for_values:
        raise InputError(f"contrast {contrast.name!r} compares classes; this model gives a value: use 'loss' or 'none'")
    if foil is None and contrast.name != "none":
        raise InputError("'loss' compares with a value: give one, e.g. foil=0.75")
    yield Target(logits, resolve_values(logits, foil), contrast)


def explanation_of(
    forward_pass: ForwardPass, target: Target, method: Method, found: Attribution, names: tuple[str, ...]
) -> Explanation:
    """Put what a method found into a result.

    Args:
        forward_pass: Model and images.
        target: The question.
        method: What answered it.
        found: Its attribution, (N, Q, ...).
        names: Of the samples.

    Raises:
        InputError: If the attribution does not begin with (N, Q), or holds NaN or infinite values.
        UnsupportedError: If half precision leaves no more than rounding of it.
    """
    question, output = target.question, forward_pass.model.output
    if found.values.shape[:2] != question.fact.shape:
        wanted, shape = tuple(question.fact.shape), tuple(found.values.shape)
        raise InputError(f"method {method.name!r} gives maps of shape {shape}; it must begin with {wanted}")
    score = target.contrast.scalar(forward_pass.logits, question)
    for what, values in ((f"contrast {target.contrast.name!r}", score), (f"method {method.name!r}", found.values)):
        if not values.isfinite().all():
            raise InputError(f"{what} gives NaN or infinite values for this question: no map can be right")

    dtype = forward_pass.model.dtype
    if isinstance(method, Perturbation) and dtype in HALF:  # below it, a seventh of a map is rounding
        floor = 3 * torch.finfo(dtype).eps * forward_pass.logits.abs().amax(1, keepdim=True)
        if (found.values.flatten(2).square().mean(2).sqrt() < floor).any():
            what = f"{dtype} rounds away what {method.name!r} measures, differences of logits"
            raise UnsupportedError(f"{what}: use float32 weights, e.g. copy.deepcopy(net).float()")

    def lead(values: Any) -> Any:
        return values.squeeze(1) if question.axis is None and isinstance(values, Tensor) else values

    return Explanation(
        images=forward_pass.given, logits=forward_pass.logits, names=names, output=output.name,
        preprocessing=forward_pass.model.inputs.describe(),
        model=forward_pass.model.name,
        class_names=forward_pass.model.class_names if output.of_classes else None,
        tokens=forward_pass.tokens, shown=forward_pass.model.inputs.show,
        axis=question.axis, fact=lead(question.fact), foil=lead(question.foil), sets=lead(question.sets),
        contrast=target.contrast.name, score=lead(score), method=method.name, settings=method.settings(),
        attribution=lead(forward_pass.model.inputs.map_of(found.values.detach())), layer=found.layer,
        diagnostics={key: lead(value) for key, value in found.diagnostics.items()},
    )  # fmt: skip
