"""What every experiment is: numbers measured on a batch of images for each method and contrast."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ratherthan.attribution import Method, compare
from ratherthan.attribution.explanation import Explanation
from ratherthan.attribution.method import get_method
from ratherthan.contrast import Contrast
from ratherthan.errors import InputError, unknown
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.registry import Classes
from ratherthan.search.method import SearchMethod, SearchQuestion

Rows = dict[str, Sequence[Any]]
"""A table by columns."""


@dataclass(frozen=True)
class Batch:
    """Images under experiment, and what they are explained by.

    Attributes:
        model: The model, in eval mode.
        images: (n, C, H, W) in image space.
        positions: Their places in the data set.
        ids: Their names.
        labels: (n,) their classes.
        methods: Attribution methods by the name they bear in the results.
        contrasts: Contrasts, likewise.
        seed: Of all random draws.
        at_once: Images per forward pass.
        layout: How altered images lie in memory when they enter the network.
        searches: Methods that search for an altered image, or a part of one, by the name they bear in the results.
    """

    model: Model
    images: Tensor
    positions: tuple[int, ...]
    ids: tuple[str, ...]
    labels: Tensor
    methods: Mapping[str, Method]
    contrasts: Mapping[str, Contrast]
    seed: int
    at_once: int
    layout: torch.memory_format = torch.contiguous_format
    searches: Mapping[str, Any] = field(default_factory=dict)

    def explain(self, fact: Any = None, foil: Any = None) -> dict[tuple[str, str], Explanation]:
        """All methods and contrasts, by (method, contrast); methods that can share a forward pass do."""
        ways = (list(self.methods.values()), list(self.contrasts.values()))
        found = compare(self.model, self.images, fact, foil, *ways, batch_size=self.at_once)
        return dict(zip(product(self.methods, self.contrasts), found, strict=True))

    def search(self, method: SearchMethod, fact: Tensor, foil: Tensor | None = None) -> Any:
        """What one of the `searches` answers; ended by Ctrl-C it raises, for half a search is no result.

        Args:
            method: The search.
            fact: (n,) class indices.
            foil: (n,) class indices, -1 for any other; None: the fact is kept.

        Raises:
            KeyboardInterrupt: If interrupted.
        """
        method.check(self.model, self.images)
        with preserve_state(nn.ModuleList([self.model.module, *method.modules()])):
            found = method.search(SearchQuestion(self.model, self.images, fact, foil, self.positions))
        if found.interrupted:
            raise KeyboardInterrupt
        return found

    def logits(self, variants: Iterable[Tensor]) -> Tensor:
        """Class scores of altered versions of the images, in as few forward passes as fit.

        Args:
            variants: V tensors (n, C, H, W), made while they are consumed.

        Returns:
            (V, n, classes).
        """
        outputs: list[Tensor] = []
        waiting: list[Tensor] = []
        with torch.no_grad():
            for variant in variants:
                waiting.append(variant)
                if sum(map(len, waiting)) >= self.at_once:
                    chunks = torch.split(torch.cat(waiting), self.at_once)
                    full = [chunk for chunk in chunks if len(chunk) == self.at_once]
                    outputs += map(self._forward, full)
                    waiting = list(chunks[len(full) :])
            if waiting:
                outputs.append(self._forward(torch.cat(waiting)))
        return torch.cat(outputs).reshape(-1, len(self.ids), outputs[0].shape[1])

    def _forward(self, images: Tensor) -> Tensor:
        return self.model.logits(images.contiguous(memory_format=self.layout))

    def keep(self, chosen: Tensor) -> Batch:
        """Only the samples where `chosen`, (n,) bool, holds."""
        rows = chosen.nonzero().flatten().tolist()
        positions, ids = (tuple(each[i] for i in rows) for each in (self.positions, self.ids))
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], positions=positions, ids=ids)

    def uniform(self, low: float, high: float, *key: str) -> Tensor:
        """(n,) one random number per sample; it depends on the seed, the sample's name and the key only."""
        drawn = [Random("|".join((str(self.seed), name, *key))).uniform(low, high) for name in self.ids]
        return self.images.new_tensor(drawn)

    def rows(self, method: str, contrast: str, settings: Mapping[str, Any], **measures: Tensor) -> Rows:
        """One row per sample; the measures are (n,)."""
        same = {"method": method, "contrast": contrast, **settings}
        columns: Rows = {"position": self.positions, "sample": self.ids, "label": self.labels.tolist()}
        columns |= {key: [value] * len(self.ids) for key, value in same.items()}
        return columns | {key: value.double().tolist() for key, value in measures.items()}


class Experiment(ABC):
    """A way to find out how faithful explanations are.

    A subclass is a frozen dataclass whose fields are its settings, with `measure` and the names below.

    Attributes:
        name: What it is registered under.
        settings: Columns that tell the rows of one sample, method and contrast apart.
        measures: Columns of numbers.
        shown: The measures that tables and plots show, by default all.
        lead: A measure that opens every line of a table, e.g. the value before anything was altered.
        layout: Columns that vary down a table, and those that vary across it ("measure" is the measure's name).
        methods: What is compared unless the caller says otherwise.
        contrasts: Likewise.
    """

    name: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ()
    lead: ClassVar[str | None] = None
    layout: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("method",), ("measure", "contrast"))
    methods: ClassVar[tuple[str, ...]] = ("gradcam",)
    contrasts: ClassVar[tuple[str, ...]] = ("none", "weighted")

    @abstractmethod
    def measure(self, batch: Batch) -> Iterator[Rows]:
        """The rows of a batch. What they hold may not depend on which samples share it."""

    def method(self, method: Any) -> Any:
        """What is compared, from its name: an attribution method, unless the experiment knows others too.

        Raises:
            InputError: If there is none of this name.
        """
        return get_method(method)

    def better(self, cell: Mapping[str, Any]) -> int:
        """Whether a table should praise the highest (1) or lowest (-1) contrast of a cell, or none (0)."""
        return 0

    def options(self) -> dict[str, Any]:
        """The settings by name, fit for JSON; what cannot be written there is replaced by a description."""
        return {name: getattr(self, name) for name in _fields(type(self))}


_EXPERIMENTS: Classes[Experiment] = Classes("experiment", Experiment, "Mask()")
register_experiment = _EXPERIMENTS.register


def experiments() -> list[str]:
    """The registered names."""
    return list(_EXPERIMENTS)


def experiment_kind(name: str) -> type[Experiment]:
    """The class of an experiment.

    Raises:
        InputError: If none has this name.
    """
    return _EXPERIMENTS.find(name)


def get_experiment(experiment: str | Experiment, /, **settings: Any) -> Experiment:
    """A name with settings, or an experiment, as an experiment.

    Raises:
        InputError: If there is no such experiment or setting.
    """
    if isinstance(experiment, Experiment):
        if settings:
            raise InputError(f"give the settings {', '.join(settings)} to {type(experiment).__name__}(...) itself")
        return experiment
    kind = experiment_kind(experiment)
    for name in settings:
        chosen(f"setting of {experiment}", name, _fields(kind))
    return kind(**settings)


def _fields(kind: type[Experiment]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def chosen(kind: str, given: str, known: Iterable[str]) -> str:
    """A word from a list of words.

    Raises:
        InputError: If it is none of them.
    """
    known = list(known)
    if given not in known:
        raise InputError(unknown(kind, given, known))
    return given
