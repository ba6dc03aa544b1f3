"""The verb `explain`: WHERE in this input is P preferred over Q?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ratherthan.attribution.explanation import Explanation
from ratherthan.attribution.forward import MEMORY_BUDGET, ForwardPass
from ratherthan.attribution.method import Attribution, Method, get_method
from ratherthan.contrast import Contrast, ContrastFunction, Target, get_contrast, resolve, resolve_values
from ratherthan.errors import InputError
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.progress import Progress, reporter
from ratherthan.verbs import Samples

AnyContrast = str | Contrast | ContrastFunction


def explain(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    method: str | Method = "gradcam",
    contrast: AnyContrast | None = None,
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress = None,
) -> Explanation:
    """Explain why the network prefers the fact over the foil.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays; or a data set.
        fact: The class to explain; None: the prediction. See `contrast.resolve` for all that can be said.
        foil: What it is compared with; None: all other classes. For a regressor, a value.
        method: A registered name (see `methods()`), or an object with settings, e.g. `GradCAM(layer="layer4")`.
        contrast: A registered name (see `contrasts()`), a `Contrast`, or a function; None: "weighted" for classes,
            "loss" for a value with a foil, "none" for a value without.
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
    (found,) = compare(model, images, fact, foil, [method], [contrast], names=names, **settings)
    return found


def compare(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    methods: Sequence[str | Method] = ("gradcam",),
    contrasts: Sequence[AnyContrast | None] = ("none", "mean", "max", "weighted"),
    *,
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
        names: As in `explain`.
        batch_size: As in `explain`.
        memory_budget: As in `explain`.
        progress: As in `explain`.

    Returns:
        One explanation for each method and contrast, methods outermost.
    """
    if memory_budget <= 0:
        raise InputError(f"memory_budget is a positive number of bytes, not {memory_budget}")
    for what, given in (("methods", methods), ("contrasts", contrasts)):
        if isinstance(given, str):
            raise InputError(f"{what} is a list, e.g. [{given!r}], not {given!r}")
    model = Model.wrap(model)
    chosen = [get_method(each) for each in methods]
    weighed = [None if each is None else get_contrast(each) for each in contrasts]
    samples = Samples.of(model, images, fact, foil, names)
    parts: list[list[Explanation]] = []
    with preserve_state(model.module), reporter(progress, "explaining") as report:
        for batch in samples.batches(batch_size, report):
            forward_pass = ForwardPass(model, batch.images, memory_budget, batch.sharing(report, len(samples)))
            parts.append([each for method in chosen for each in _explained(forward_pass, batch, method, weighed)])
    return [Explanation.joined(column) for column in zip(*parts, strict=True)]


def _explained(
    forward_pass: ForwardPass, batch: Samples, method: Method, contrasts: Sequence[Contrast | None]
) -> Iterator[Explanation]:
    method.prepare(forward_pass)
    for contrast in contrasts:
        target = target_of(forward_pass.model, forward_pass.logits, batch.fact, batch.foil, contrast)
        yield explanation_of(forward_pass, target, method, method.attribute(forward_pass, target), batch.names)


def target_of(model: Model, logits: Tensor, fact: Any, foil: Any, contrast: Contrast | None = None) -> Target:
    """The question about a batch, and the contrast that fits what the model gives.

    Args:
        model: The network.
        logits: (N, classes), or (N, 1) values.
        fact: As in `explain`.
        foil: As in `explain`.
        contrast: None: as `explain` chooses it.

    Raises:
        InputError: If the question does not fit the model.
    """
    if model.output.of_classes:
        return Target(logits, resolve(logits, fact, foil, model.class_names), contrast or get_contrast("weighted"))
    if fact is not None:
        raise InputError("this model gives a value: the fact is what it gives, only a foil can be chosen")
    contrast = contrast or get_contrast("none" if foil is None else "loss")
    if not contrast.for_values:
        raise InputError(f"contrast {contrast.name!r} compares classes; this model gives a value: use 'loss' or 'none'")
    if foil is None and contrast.name != "none":
        raise InputError("'loss' compares with a value: give one, e.g. foil=0.75")
    return Target(logits, resolve_values(logits, foil), contrast)


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
    """
    question, output = target.question, forward_pass.model.output
    if found.values.shape[:2] != question.fact.shape:
        wanted, shape = tuple(question.fact.shape), tuple(found.values.shape)
        raise InputError(f"method {method.name!r} gives maps of shape {shape}; it must begin with {wanted}")
    score = target.contrast.scalar(forward_pass.logits, question)
    for what, values in ((f"contrast {target.contrast.name!r}", score), (f"method {method.name!r}", found.values)):
        if not values.isfinite().all():
            raise InputError(f"{what} gives NaN or infinite values for this question: no map can be right")

    def lead(values: Any) -> Any:
        return values.squeeze(1) if question.axis is None and isinstance(values, Tensor) else values

    return Explanation(
        images=forward_pass.images, logits=forward_pass.logits, names=names, output=output.name,
        preprocessing=forward_pass.model.inputs.describe(),
        class_names=forward_pass.model.class_names if output.of_classes else None,
        axis=question.axis, fact=lead(question.fact), foil=lead(question.foil), foil_sets=lead(question.foils),
        contrast=target.contrast.name, score=lead(score), method=method.name, settings=method.settings(),
        attribution=lead(found.values.detach()), layer=found.layer,
        diagnostics={key: lead(value) for key, value in found.diagnostics.items()},
    )  # fmt: skip
