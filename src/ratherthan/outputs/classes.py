"""What a network says: one object turns what the module returns into scores (N, K) and knows what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ratherthan.errors import ModelError
from ratherthan.registry import Classes
from ratherthan.settings import Interval, Settings

if TYPE_CHECKING:
    from ratherthan.model import Model


class Output(Settings):
    """How scores are read from what a module returns, and what they mean.

    Attributes:
        of_classes: Whether the scores are logits of K classes; if not, one value per sample.
        exclusive: Whether one of the classes is the answer; if not, each may be, and the last of the logits is that of
            none.
    """

    of_classes: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True

    def scores(self, returned: Any, samples: int, who: str) -> Tensor:
        """The tensor in what a module returned, (N, K), unchanged; (N,) is (N, 1) where each sample has one value.

        Args:
            returned: A tensor, or an object whose `logits` are one.
            samples: N.
            who: The model's name, for messages.

        Raises:
            ModelError: If there is no such tensor.
        """
        found = getattr(returned, "logits", returned)
        if not isinstance(found, Tensor):
            what, key = type(returned).__name__, next(iter(returned), 0) if isinstance(returned, dict) else 0
            raise ModelError(f"{who} returns a {what}: pick the logits, Model(net, forward=lambda m, x: m(x)[{key!r}])")
        found = found.unsqueeze(1) if found.ndim == 1 and not self.of_classes else found
        if found.ndim != 2 or len(found) != samples or not (self.of_classes or found.shape[1] == 1):
            given, wanted = tuple(found.shape), "classes" if self.of_classes else "1"
            dense = "; of a segmentation say where, output=Region((x, y)) (--region X,Y)" * (found.ndim == 4)
            raise ModelError(
                f"{who} returns shape {given} for {samples} samples; ({samples}, {wanted}) is needed{dense}"
            )
        return found

    @property
    def one_by_one(self) -> bool:
        """Whether it is another for each sample, so that they are asked about one by one."""
        return False

    def pools(self, maps: Tensor, plane: tuple[int, ...]) -> tuple[Tensor, ...]:
        """What the scores may be made of maps of them, (N, K, h, w), of images of a plane (H, W): (N, K) each."""
        cells = maps.flatten(2)
        return cells.mean(2), cells.amax(2), cells.sum(2), cells.logsumexp(2)

    def of(self, samples: Sequence[int]) -> Output:
        """The output that some samples have, by their positions in the call."""
        return self

    def run(self, run: Callable[[Tensor], Any], seen: Tensor, model: Model) -> Any:
        """What the module returns for what it sees; an output may ask it about more."""
        return run(seen)

    def names(self, model: Model) -> tuple[str, ...] | None:
        """What the classes are called, where the output knows."""
        return None

    def logits(self, scores: Tensor, who: str) -> Tensor:
        """The scores as logits, (N, K); -y/2 and y/2 for the single log-odds y of a sigmoid classifier.

        Raises:
            ModelError: If they are not what this output promises.
        """
        return _both_sides(scores) if self.of_classes else scores

    @classmethod
    def probabilities(cls, logits: Tensor) -> Tensor:
        """(..., K) of logits."""
        return logits.softmax(-1)

    def check(self, logits: Tensor, ending: Callable[[], str]) -> None:
        """Refuse logits that show that the network gives something else.

        Args:
            logits: (N, K).
            ending: Runs the network once more, to tell which operation its scores come from, e.g. "sigmoid".

        Raises:
            ModelError: If so.
        """


def tensor_in(returned: Any, axes: int, samples: int, who: str, wanted: str) -> Tensor:
    """The tensor of N samples in what a module returned: itself, or its `logits`.

    Args:
        returned: What the module returned.
        axes: How many it has, that of the samples among them.
        samples: N.
        who: The model's name.
        wanted: The end of the message.

    Raises:
        ModelError: If there is none.
    """
    found = getattr(returned, "logits", returned)
    if not isinstance(found, Tensor) or found.ndim != axes or len(found) != samples:
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"{who} returns {given}; {wanted}")
    return found


OUTPUTS: Classes[Output] = Classes("output", Output, "Logits()")


@OUTPUTS.register
class Logits(Output):
    """Logits of K classes; a single one is the log-odds of a sigmoid classifier."""

    name = "logits"

    def check(self, logits: Tensor, ending: Callable[[], str]) -> None:
        """Refuse probabilities: rows in [0, 1] of sum 1, or what comes from a softmax or a sigmoid.

        Logits may well lie in [0, 1]; those that do are asked where they come from.

        Raises:
            ModelError: If they are.
        """
        single = _is_single(logits)
        scores = logits[:, 1:] - logits[:, :1] if single else logits
        if not ((scores >= 0) & (scores <= 1)).all():
            return
        missed = _misses_one(scores)
        last = "softmax" if missed <= _ROUNDING * scores.shape[1] and not single else ending()
        if last == "sigmoid" and not single:
            raise ModelError(_LABELS.format(scores.shape[1]))
        if last == "sigmoid" or (last in ("softmax", "exp") and missed <= _COARSE):
            raise ModelError("the model returns probabilities: hand in its logits, or give output='probabilities'")


@OUTPUTS.register
class Probabilities(Output):
    """Probabilities of K classes, whose logarithm serves as logits; a single one is that of class 1."""

    name = "probabilities"

    def logits(self, scores: Tensor, who: str) -> Tensor:
        """Log p; for a single p, its log-odds."""
        if scores.min() < 0 or scores.max() > 1.001:
            raise ModelError(f"{who} should return probabilities, but they are not all in [0, 1]: are they logits?")
        if scores.shape[1] == 1:
            return _both_sides(torch.logit(scores, torch.finfo(scores.dtype).eps))
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()

    def check(self, logits: Tensor, ending: Callable[[], str]) -> None:
        """Refuse rows whose sum is not 1, within the rounding of half precision.

        Raises:
            ModelError: If they are.
        """
        missed = 0.0 if _is_single(logits) else _misses_one(logits.exp())
        if missed > _COARSE or (missed > _ROUNDING * logits.shape[1] and ending() == "sigmoid"):
            raise ModelError(_LABELS.format(logits.shape[1]))


@OUTPUTS.register
@dataclass(frozen=True)
class Value(Output):
    """One number per sample: a regressor.

    Attributes:
        index: Which of several it gives; None: there is one.
    """

    index: Annotated[int, Interval(0)] | None = None

    name = "value"
    of_classes = False

    def scores(self, returned: Any, samples: int, who: str) -> Tensor:
        """(N, 1).

        Raises:
            ModelError: If there is no such value.
        """
        if self.index is None:
            return super().scores(returned, samples, who)
        found = Logits().scores(returned, samples, who)
        if self.index >= found.shape[1]:
            raise ModelError(f"{who} gives {found.shape[1]} values; there is no value {self.index}")
        return found[:, [self.index]]


@OUTPUTS.register
@dataclass(frozen=True)
class Labels(Output):
    """Independent labels, any number of which may hold: the score of each is its log-odds, its probability a sigmoid.

    Behind the K labels stands the logit 0 of what is none of them. Asked without a foil, the question about label A is
    "why A, rather than not A?", and every contrast is its log-odds y_A; with a label B as the foil it is y_A - y_B.

    Attributes:
        given: What the network gives, "logits" or "probabilities" (then y = log p / (1 - p)).
    """

    given: Literal["logits", "probabilities"] = "logits"

    name = "labels"
    exclusive = False

    def logits(self, scores: Tensor, who: str) -> Tensor:
        """(N, K) log-odds, and 0 behind them: (N, K + 1)."""
        if self.given == "probabilities":
            if scores.min() < 0 or scores.max() > 1:
                raise ModelError(f"{who} should return probabilities of labels, but they are not all in [0, 1]")
            scores = torch.logit(scores, torch.finfo(scores.dtype).eps)
        return torch.nn.functional.pad(scores, (0, 1))

    def check(self, logits: Tensor, ending: Callable[[], str]) -> None:
        """Refuse probabilities where log-odds are promised.

        Raises:
            ModelError: If they come from a sigmoid.
        """
        scores = logits[:, :-1]
        if self.given == "logits" and ((scores >= 0) & (scores <= 1)).all() and ending() == "sigmoid":
            raise ModelError(
                "the labels are probabilities: hand in their logits, or give output=Labels('probabilities')"
            )

    @classmethod
    def probabilities(cls, logits: Tensor) -> Tensor:
        """Sigmoids; 0 for what is none."""
        return torch.nn.functional.pad(logits[..., :-1].sigmoid(), (0, 1))


NONE = "(none)"
"""What stands behind independent labels is called so."""
_ROUNDING, _COARSE = 2**-21, 2**-5  # by which probabilities miss a sum of 1: per class in float32; in all in bfloat16
_LABELS = (
    "the {} outputs are probabilities whose sum is not 1: independent labels, not classes. "
    "Say so: Model(net, output=Labels('probabilities'))"
)


def _is_single(logits: Tensor) -> bool:
    """Whether they are the two halves of a single score."""
    return logits.shape[1] == 2 and not logits.sum(1).any()


def _misses_one(scores: Tensor) -> float:
    return (scores.sum(1) - 1).abs().max().item()


class Several(Output):
    """Several values, refused until one says which is meant."""

    name = "several"

    def scores(self, returned: Any, samples: int, who: str) -> Tensor:
        """None.

        Raises:
            ModelError: Always.
        """
        raise ModelError(f"{who} gives several values, by its config: say which, Model(net, output=Value(0))")


def output_of(module: nn.Module) -> Output:
    """What a network gives where nothing is said: logits, unless the config of a transformers network tells."""
    config = getattr(module, "config", None)
    said, labels = getattr(config, "problem_type", None), getattr(config, "id2label", None)
    several = isinstance(labels, dict) and len(labels) > 1
    if said == "multi_label_classification" and several:
        return Labels()
    if said == "regression":
        return Several() if several else Value()
    return Logits()


def plain_ending(logits: Tensor) -> str:
    """Whether the graph of logits shows that they come straight from a sum ("linear"), as no probabilities do."""
    made_by = logits.grad_fn.name() if logits.grad_fn is not None else ""
    return "linear" if made_by.startswith(("Addmm", "Mm", "Add", "Mean", "Convolution")) else ""


class Ending(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a network run, and tells which operation a tensor comes from, through all that only copies numbers.

    It sees what runs inside scripted, traced and quantised modules, and under no_grad.
    """

    _copying = ("_to_copy", "clone", "clamp", "clamp_min", "clamp_max", "cat", "stack", "index", "select")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made_by: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note which memory its result has; a view has that of its source."""
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if isinstance(result, Tensor):
            source = next((_memory(each) for each in tree_leaves(args) if isinstance(each, Tensor)), 0)
            if source != _memory(result) or name.endswith("_"):
                last = self._made_by.get(source, "") if name.rstrip("_") in self._copying else name
                self._made_by[_memory(result)] = last
        return result

    def of(self, tensor: Tensor) -> str:
        """The operation, "sigmoid" or "softmax" for all their kinds; nothing where it was not seen."""
        name = self._made_by.get(_memory(tensor), "").strip("_")
        return next((kind for kind in ("sigmoid", "softmax") if kind in name and "log" not in name), name)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _both_sides(scores: Tensor) -> Tensor:
    return torch.cat([-scores / 2, scores / 2], 1) if scores.shape[1] == 1 else scores
