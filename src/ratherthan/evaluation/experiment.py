"""What every experiment is: numbers measured on a batch of images for each method and contrast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from random import Random
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.attribution.explain import compare
from ratherthan.attribution.explanation import Explanation
from ratherthan.attribution.method import Method, get_method
from ratherthan.baselines import baseline_images
from ratherthan.contrast import Contrast, Target, get_contrast, resolve
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.registry import Classes
from ratherthan.search.method import SearchQuestion
from ratherthan.settings import Settings

Rows = dict[str, Sequence[Any]]
"""A table by columns."""
BaselineWord = Literal["blur", "model-mean", "mean"]
"""What stands where pixels are taken away, see `baselines.baseline_images`."""


@dataclass(frozen=True)
class Batch:
    """Images under experiment, and what they are explained by.

    Attributes:
        model: The model, in eval mode.
        images: (n, C, H, W) in image space.
        positions: Their places in the data set.
        ids: Their names.
        labels: (n,) their classes.
        methods: What is compared, by the name it bears in the results: attribution methods, and searches for an altered
            image or a part of one.
        contrasts: Contrasts, likewise.
        seed: Of all random draws.
        batch_size: Images per forward pass.
        channels_last: Whether altered images lie in memory channels last when they enter the network.
    """

    model: Model
    images: Tensor
    positions: tuple[int, ...]
    ids: tuple[str, ...]
    labels: Tensor
    methods: Mapping[str, Any]
    contrasts: Mapping[str, Contrast]
    seed: int
    batch_size: int
    channels_last: bool = False  # a torch.memory_format is pickled by a walk through all modules, which may miss it

    @property
    def searches(self) -> dict[str, Any]:
        """Those of the methods that search for an altered image, or a part of one."""
        return {name: each for name, each in self.methods.items() if not isinstance(each, Method)}

    # ----------------------------------------------------------------------------------------- asking
    def explain(self, fact: Any = None, foil: Any = None) -> dict[tuple[str, str], Explanation]:
        """All attribution methods and contrasts, by (method, contrast); what can share a forward pass does."""
        methods = {name: each for name, each in self.methods.items() if isinstance(each, Method)}
        asked = (list(methods.values()), list(self.contrasts.values()))
        found = compare(self.model, self.images, fact, foil, *asked, batch_size=self.batch_size)
        return dict(zip(product(methods, self.contrasts), found, strict=True))

    def search(self, fact: Tensor, foil: Tensor | None = None) -> Iterator[tuple[str, Any]]:
        """What each search answers, by its name; ended by Ctrl-C it raises, for half a search is no result.

        Args:
            fact: (n,) class indices.
            foil: (n,) class indices, -1 for any other; None: the fact is kept.

        Raises:
            KeyboardInterrupt: If interrupted.
        """
        for name, method in self.searches.items():
            method.check(self.model, self.images)
            with preserve_state(nn.ModuleList([self.model.module, *method.modules()])), self.model.differentiated():
                found = method.search(SearchQuestion(self.model, self.images, fact, foil, self.positions))
            if found.interrupted:
                raise KeyboardInterrupt
            yield name, found

    def logits(self, variants: Iterable[Tensor]) -> Tensor:
        """Class scores of altered versions of the images, in as few forward passes as fit.

        Args:
            variants: V tensors (n, C, H, W), made while they are consumed.

        Returns:
            (V, n, classes).
        """
        images = (image for variant in variants for image in variant)
        outputs, layout = [], torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.no_grad():
            while chunk := list(islice(images, self.batch_size)):
                outputs.append(self.model.logits(torch.stack(chunk).contiguous(memory_format=layout)))
        return torch.cat(outputs).reshape(-1, len(self.ids), outputs[0].shape[1])

    def clean(self) -> Tensor:
        """(n, classes) scores of the images themselves."""
        return self.scores(self.images)

    def scores(self, images: Tensor) -> Tensor:
        """(n, classes) scores of the images as they have become."""
        return self.logits([images])[0]

    def held(self, why: Explanation, contrast: Contrast, foil: Any, logits: Tensor) -> Tensor:
        """A contrast of altered images, the weights of the foils held as they are at the images themselves.

        Args:
            why: Of the images; its fact is the prediction.
            contrast: Which one.
            foil: What the predictions are compared with.
            logits: (V, n, classes) of altered images.

        Returns:
            (V, n), float64.
        """
        target = Target(why.logits, resolve(why.logits, foil=foil), contrast)
        return target.scalar(logits)[..., 0].double()

    def sure(self, why: Explanation, foil: Any, logits: Any) -> Tensor:
        """The probability of the fact among itself and the foils, (V, n), by logits of (V, n, classes)."""
        return get_contrast("weighted").scalar(logits, resolve(why.logits, foil=foil))[..., 0].sigmoid()

    # ----------------------------------------------------------------------------------------- helping
    def baseline(self, word: BaselineWord, sigma: Tensor | float = 15.0) -> Tensor:
        """(n, C, H, W): the images with every pixel replaced, see `baselines.baseline_images`."""
        return baseline_images(self.images, word, sigma, getattr(self.model.inputs, "mean", None))

    def keep(self, chosen: Tensor) -> Batch:
        """Only the samples where `chosen`, (n,) bool, holds."""
        rows = chosen.nonzero().flatten().tolist()
        positions, ids = (tuple(each[i] for i in rows) for each in (self.positions, self.ids))
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], positions=positions, ids=ids)

    def uniform(self, low: float, high: float, *key: str) -> Tensor:
        """(n,) one random number per sample; it depends on the seed, the sample's name and the key only."""
        drawn = [Random("|".join((str(self.seed), name, *key))).uniform(low, high) for name in self.ids]
        return self.images.new_tensor(drawn)

    def generators(self, *key: str) -> list[np.random.Generator]:
        """A generator per sample; what it draws depends on the same as `uniform`."""
        return [np.random.default_rng(list("|".join((str(self.seed), name, *key)).encode())) for name in self.ids]

    def rows(self, method: str, contrast: str = "", /, **columns: Any) -> Rows:
        """One row per sample.

        Args:
            method: Which one was measured.
            contrast: Likewise.
            **columns: The experiment's keys, one value for all samples, and its measures, (n,) each.
        """
        rows: Rows = {"position": self.positions, "sample": self.ids, "label": self.labels.tolist()}
        columns = {"method": method, "contrast": contrast, **columns}
        return rows | {
            name: value.double().tolist() if isinstance(value, Tensor) else [value] * len(self.ids)
            for name, value in columns.items()
        }


class Experiment(Settings, ABC):
    """A way to find out how faithful explanations are.

    A subclass is a frozen dataclass whose fields are its settings, with `measure` and the names below.

    Attributes:
        name: What it is registered under.
        keys: Columns that tell the rows of one sample, method and contrast apart.
        measures: Columns of numbers.
        higher_is_better: Which contrast of a cell a table praises: True the highest, False the lowest, by measure, or
            by a value of a key where it depends on that; of what is not named, none.
        shown: The measures that tables and plots show; empty: all.
        lead: A measure that opens every line of a table, e.g. the value before anything was altered.
        layout: Columns that vary down a table, and those that vary across it ("measure" is the measure's name).
        methods: What is compared unless the caller says otherwise.
        contrasts: Likewise.
        searches: The registries of searches that it takes beside attribution methods.
        reads_labels: Whether labels matter. If so, a class of the data set that the model has not is refused; if not,
            its label is -1. One with a setting `target` reads them where that is "label".
    """

    keys: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]]
    higher_is_better: ClassVar[dict[str, bool]] = {}
    shown: ClassVar[tuple[str, ...]] = ()
    lead: ClassVar[str | None] = None
    layout: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("method",), ("measure", "contrast"))
    methods: ClassVar[tuple[Any, ...]] = ("gradcam",)
    contrasts: ClassVar[tuple[str, ...]] = ("none", "weighted")
    searches: ClassVar[tuple[Classes[Any], ...]] = ()
    reads_labels: ClassVar[bool] = True

    @abstractmethod
    def measure(self, batch: Batch) -> Iterator[Rows]:
        """The rows of a batch. What they hold may not depend on which samples share it."""

    def method(self, method: Any) -> Any:
        """What is compared, from its name: one of `searches`, or an attribution method.

        Raises:
            InputError: If there is none of this name.
        """
        for known in self.searches:
            if isinstance(method, known.base) or method in known.names():
                return known.make(method)
        return get_method(method)


_EXPERIMENTS: Classes[Experiment] = Classes("experiment", Experiment, "Mask()")
register_experiment = _EXPERIMENTS.register
get_experiment = _EXPERIMENTS.make
find_experiment = _EXPERIMENTS.find
experiments = _EXPERIMENTS.names
