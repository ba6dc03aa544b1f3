"""What a method costs: passes through the network, counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ratherthan.attribution.explain import compare
from ratherthan.attribution.method import Method, get_method
from ratherthan.model import Model
from ratherthan.verbs import Samples

if TYPE_CHECKING:
    from pandas import DataFrame


def costs(
    model: Model | nn.Module, images: Any, methods: Sequence[str | Method], fact: Any = None, foil: Any = None
) -> DataFrame:
    """Count what attribution methods ask of the network, each by itself.

    Args:
        model: The network.
        images: As in `explain`; one is enough.
        methods: The methods.
        fact: As in `explain`.
        foil: As in `explain`; with several foils a method that pulls them back at once counts them once.

    Returns:
        A row per method: method; forward and backward, passes of one image through the network for one image explained.

    Example:
        >>> run.to_latex(costs=costs(model, images[:1], ["gradcam", "lime"]))
    """
    import pandas as pd

    model, rows = Model.wrap(model), list[dict[str, Any]]()
    samples = Samples.of(model, images)
    compare(model, samples, fact, foil, methods, ["weighted"])  # what is found out about a network is found out once
    for method in map(get_method, methods):
        with _counted(model.module) as seen:
            compare(model, samples, fact, foil, [method], ["weighted"])
        rows.append({"method": method.name} | {kind: count / len(samples) for kind, count in seen.items()})
    return pd.DataFrame(rows)


@contextmanager
def _counted(network: nn.Module) -> Iterator[dict[str, int]]:
    seen = {"forward": 0, "backward": 0}

    def forward(_: nn.Module, given: Any, output: Any) -> None:
        count = len(next(each for each in tree_leaves(output) if isinstance(each, Tensor)))
        seen["forward"] += count
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and each.requires_grad:
                each.register_hook(  # type: ignore[no-untyped-call]
                    lambda _: seen.__setitem__("backward", seen["backward"] + count)
                )
                return

    hook = network.register_forward_hook(forward)
    try:
        yield seen
    finally:
        hook.remove()
