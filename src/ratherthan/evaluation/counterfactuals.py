"""`counterfactuals`: are the altered images what they claim to be, near, natural, and the same from every start?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ratherthan import data
from ratherthan.contrast import class_index, rival
from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.inference import preserve_state
from ratherthan.loading import load
from ratherthan.model import Model, fingerprint
from ratherthan.search.counterfactual import Counterfactual
from ratherthan.search.method import ANY, get_counterfactual_method
from ratherthan.settings import Interval, NotNegative

_COMPONENTS = 32
_TINY = 1e-8


@register_experiment
@dataclass(frozen=True, eq=False)
class Counterfactuals(Experiment):
    """What a search for counterfactuals gives, for an image x with fact P, foil Q and best answer x'.

        found      the method calls its answer found
        boundary   P and Q are the two likeliest classes of x', and |logit P - logit Q| <= tolerance
        third      another class than P and Q is the likeliest of x'
        foil       Q is the likeliest class of x'
        p_fact, p_foil, p_third   the probabilities in x' of P, Q and the likeliest other class
        second     the share of the answers found, over all restarts, that a second network calls Q
        distance   in the measure that the method minimises: |z - z0| on a manifold
        l1, l2     sum of |x' - x|, and the root of the sum of squares
        sparsity   the share of pixels that change by more than `visible`
        im1        |x' - A_Q(x')|^2 / |x' - A_P(x')|^2, A_i the autoencoder of class i: low where x' is like a Q
        im2        |A_Q(x') - A(x')|^2 / |x'|_1, A that of all classes: low where x' is natural (Van Looveren and
                   Klaise, 2019, eq. 7 and 8)
        density    log of the prior at the latents of x', a standard normal distribution, per latent; on a manifold
        gained, lost   how many attributes rose, and fell, by more than `noticed` (methods with attribute functions)
        diversity  the mean l2 between answers found from different starts
        agreement  their mean structural similarity (Wang et al., 2004): 1 where every start finds the same image

    found, boundary, third and foil are shares of all searches, the probabilities means over all, nearest misses among
    them; the others are means over answers that were found. Each row also keeps the probabilities of P, Q and the
    likeliest other class along the path (cdeepex Fig. 5b), as the columns path_fact_00 ... path_third_15.

    Attributes:
        foil: "runner-up", "random" (by the seed and the sample's name), a class index, or "any" for methods that take
            it. Images whose fact it is take no part.
        second: A second network, independently trained, or its name for `load`; None: `second` is undefined.
        second_weights: Its weights, where it is given by name.
        reference: The data that autoencoders are fitted on, or its name in `data` (its training part is taken), matched
            to the model's classes by name; None: im1 and im2 are undefined. They are linear: the first 32 principal
            components of a class.
        tolerance: Of `boundary`, in logits.
        visible: Of `sparsity`, in [0, 1].
        noticed: Of `gained` and `lost`, in the attributes' own unit.
    """

    foil: Literal["runner-up", "random", "any"] | Annotated[int, Interval(0)] = "runner-up"
    second: Any = None
    second_weights: str | Path | None = None
    reference: Any = None
    tolerance: NotNegative = 0.01
    visible: NotNegative = 0.1
    noticed: NotNegative = 0.01

    name: ClassVar[str] = "counterfactuals"
    reads_labels = False
    measures = (
        "found", "boundary", "third", "foil", "p_fact", "p_foil", "p_third", "second", "distance", "l1", "l2",
        "sparsity", "im1", "im2", "density", "gained", "lost", "diversity", "agreement",
    )  # fmt: skip
    layout = (("measure",), ("method",))
    methods = ("cdeepex", "xgem")
    contrasts = ()

    def settings(self) -> dict[str, Any]:
        """The settings; networks and data by what they hold."""
        plain = {key: getattr(self, key) for key in ("foil", "tolerance", "visible", "noticed")}
        second = None if self._second is None else fingerprint(self._second.module)
        return {**plain, "second": second, "reference": self._reference and self._reference.fingerprint()}

    def method(self, method: Any) -> Any:
        """A search for counterfactuals."""
        return get_counterfactual_method(method)

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and sample that has a foil."""
        logits = batch.clean()
        batch.model.check(logits, batch.images)
        fact, foil = logits.argmax(1), self._foils(batch, logits)
        rows = foil != fact
        batch, fact, foil = batch.keep(rows), fact[rows], foil[rows]
        for name, answers in batch.search(fact, foil) if batch.ids else ():
            reached = answers.reached[:, 0]
            measures = self._measures(batch.images, fact, reached, answers)
            yield batch.rows(name, **measures, **_path(fact, reached, answers))

    def _foils(self, batch: Batch, logits: Tensor) -> Tensor:
        fact, classes = logits.argmax(1), logits.shape[1]
        if self.foil == "runner-up":
            return rival(logits, fact)
        if self.foil == "random":
            step = 1 + (batch.uniform(0, 1, "foil") * (classes - 1)).long().clamp_max(classes - 2)
            return (fact + step) % classes
        return torch.full_like(fact, ANY if self.foil == "any" else class_index(self.foil, classes))

    def _measures(self, images: Tensor, fact: Tensor, foil: Tensor, answers: Counterfactual) -> dict[str, Tensor]:
        each, found, example, logits = answers.found_each, answers.found, answers.example, answers.example_logits[:, 0]
        top = logits.argmax(1)
        p = _three(logits.unsqueeze(1), fact, foil)[:, 0]
        lead = logits.gather(1, torch.stack([fact, foil], 1)).diff()[:, 0]
        change = (example - images).flatten(2)
        distances = {
            "distance": answers.distance[:, 0],
            "l1": change.flatten(1).abs().sum(1),
            "l2": change.flatten(1).square().sum(1).sqrt(),
            "sparsity": (change.abs().amax(1) > self.visible).double().mean(1),
            **self._realism(example, fact, foil, answers.class_names),
        }
        if answers.latents is not None:  # the mean over the latents of log N(z; 0, 1)
            z = answers.latents[:, 0].flatten(1)
            distances["density"] = -0.5 * (z.square() + math.log(2 * math.pi)).mean(1)
        if answers.attributes is not None and answers.attributes_before is not None:
            risen = answers.attributes[:, 0] - answers.attributes_before
            distances["gained"], distances["lost"] = ((each > self.noticed).sum(1) for each in (risen, -risen))
        unknown = dict.fromkeys(self.measures, torch.full(fact.shape, torch.nan))
        return unknown | {
            "found": found,
            "boundary": (lead.abs() <= self.tolerance) & (p[:, 2] < p[:, :2].amin(1)),
            "third": (top != fact) & (top != foil),
            "foil": top == foil,
            **dict(zip(("p_fact", "p_foil", "p_third"), p.unbind(1), strict=True)),
            **self._judged(answers.examples, foil, each),
            **{key: value.double().cpu().masked_fill(~found.cpu(), torch.nan) for key, value in distances.items()},
            **_spread(answers.examples, each),
        }

    # ----------------------------------------------------------------------------------------- second opinions
    @cached_property
    def _second(self) -> Model | None:
        if isinstance(self.second, str):
            return load(self.second, weights=self.second_weights)
        return None if self.second is None else Model.wrap(self.second)

    def _judged(self, examples: Tensor, foil: Tensor, found: Tensor) -> dict[str, Tensor]:
        """The share of the answers found that the second network calls the foil; NaN where there is none."""
        if self._second is None:
            return {}
        self._second.module.to(examples.device)
        with preserve_state(self._second.module), torch.no_grad():
            classes = self._second.logits(examples.flatten(0, 1).to(self._second.dtype)).argmax(1).view(found.shape)
        return {"second": (found & (classes == foil.unsqueeze(1))).sum(1) / found.sum(1)}

    @cached_property
    def _reference(self) -> data.Dataset | None:
        if self.reference is None:
            return None
        return data.load(self.reference, split="train" if isinstance(self.reference, str) else None)

    def _realism(
        self, examples: Tensor, fact: Tensor, foil: Tensor, names: tuple[str, ...] | None
    ) -> dict[str, Tensor]:
        if self._reference is None:
            return {}
        flat = examples.flatten(1).cpu().double()
        made = torch.stack([autoencoder(flat) for autoencoder in _autoencoders(self._reference, names)])
        highest = int(torch.maximum(fact, foil).max())
        if highest > len(made) - 2:
            raise InputError(f"the reference has {len(made) - 1} classes, but class {highest} is asked about")
        row = torch.arange(len(flat))
        as_foil, as_fact, as_any = made[foil.cpu(), row], made[fact.cpu(), row], made[-1]
        like_foil, like_fact, alike = (d.square().sum(1) for d in (flat - as_foil, flat - as_fact, as_foil - as_any))
        return {"im1": like_foil / (like_fact + _TINY), "im2": alike / (flat.abs().sum(1) + _TINY)}


@lru_cache(4)
def _autoencoders(reference: data.Dataset, names: tuple[str, ...] | None) -> list[Callable[[Tensor], Tensor]]:
    """One per class of a model with these names, then that of all."""
    known = data.match_labels(reference, names)
    read = [(images.flatten(1), labels) for _, images, labels in data.batches(known, 1024)]
    pixels, labels = (torch.cat(column) for column in zip(*read, strict=True))
    classes = [pixels[labels == label] for label in range(int(labels.max()) + 1)]
    return [_autoencoder(each) for each in (*classes, pixels)]


def _autoencoder(pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """The best linear one of images (N, pixels): their mean and first principal components, in float64."""
    pixels = pixels.double()
    mean = pixels.mean(0)
    _, vectors = torch.linalg.eigh((pixels - mean).T @ (pixels - mean))
    components = vectors[:, -_COMPONENTS:]
    return lambda images: mean + (images - mean) @ components @ components.T


def _three(logits: Tensor, fact: Tensor, foil: Tensor) -> Tensor:
    """Probabilities of fact, foil and the likeliest other class, (N, T, 3), from logits (N, T, classes)."""
    p = logits.softmax(2)
    sides = torch.stack([fact, foil], 1).unsqueeze(1).expand(-1, p.shape[1], -1)
    return torch.cat([p.gather(2, sides), p.scatter(2, sides, -1).amax(2, keepdim=True).clamp_min(0)], 2)


def _path(fact: Tensor, foil: Tensor, answers: Counterfactual) -> dict[str, Tensor]:
    """The probabilities along the path as columns, frame by frame."""
    along = _three(answers.path_logits, fact, foil)
    sides = enumerate(("fact", "foil", "third"))
    return {f"path_{side}_{t:02d}": along[:, t, i] for i, side in sides for t in range(along.shape[1])}


def _spread(examples: Tensor, found: Tensor) -> dict[str, Tensor]:
    """How far the answers found from different starts lie apart; NaN for less than two."""
    rows = zip(examples.double().cpu(), found.cpu(), strict=True)
    pairs = [list(combinations(answers[kept], 2)) for answers, kept in rows]
    measures: dict[str, Any] = {"diversity": torch.dist, "agreement": _similarity}
    return {
        name: torch.tensor([fmean(float(measure(*two)) for two in each) if each else torch.nan for each in pairs])
        for name, measure in measures.items()
    }


def _similarity(a: Tensor, b: Tensor) -> float:
    """Structural similarity in windows of 7 pixels, or what fits."""
    from skimage.metrics import structural_similarity

    side = min(7, a.shape[1], a.shape[2])
    compared = partial(structural_similarity, win_size=side - 1 + side % 2, channel_axis=0, data_range=1.0)
    return float(compared(a.numpy(), b.numpy()))
