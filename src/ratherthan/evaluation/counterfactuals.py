"""`counterfactuals`: are the altered images what they claim to be, near, natural, and the same from every start?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor

from ratherthan import data
from ratherthan.contrast import rival
from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.inference import preserve_state
from ratherthan.loading import load
from ratherthan.model import Model, fingerprint
from ratherthan.search.counterfactual import Counterfactual
from ratherthan.search.method import get_counterfactual_method

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
        reference: The data that autoencoders are fitted on, or its name in `data` (its training part is taken); None:
            im1 and im2 are undefined. They are linear: the first 32 principal components of a class.
        tolerance: Of `boundary`, in logits.
        visible: Of `sparsity`, in [0, 1].
        noticed: Of `gained` and `lost`, in the attributes' own unit.
    """

    foil: str | int = "runner-up"
    second: Any = None
    second_weights: str | None = None
    reference: Any = None
    tolerance: float = 0.01
    visible: float = 0.1
    noticed: float = 0.01

    name: ClassVar[str] = "counterfactuals"
    measures = (
        "found", "boundary", "third", "foil", "p_fact", "p_foil", "p_third", "second", "distance", "l1", "l2",
        "sparsity", "im1", "im2", "density", "gained", "lost", "diversity", "agreement",
    )  # fmt: skip
    layout = (("measure",), ("method",))
    methods = ("cdeepex", "xgem")
    contrasts = ()

    def __post_init__(self) -> None:
        if not isinstance(self.foil, int) and self.foil not in ("runner-up", "random", "any"):
            raise InputError(f"foil is 'runner-up', 'random', 'any' or a class index, not {self.foil!r}")

    def options(self) -> dict[str, Any]:
        """The settings; networks and data by what they hold."""
        own = {"foil": self.foil, "tolerance": self.tolerance, "visible": self.visible, "noticed": self.noticed}
        second = None if self._second is None else fingerprint(self._second.module)
        return {**own, "second": second, "reference": self._reference and self._reference.fingerprint()}

    def method(self, method: Any) -> Any:
        """A search for counterfactuals."""
        return get_counterfactual_method(method)

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and sample that has a foil."""
        logits = batch.logits([batch.images])[0]
        fact = logits.argmax(1)
        foil = self._foils(batch, logits)
        rows = foil != fact
        batch, fact, foil = batch.keep(rows), fact[rows], foil[rows]
        for name, method in batch.searches.items() if batch.ids else ():
            answers = batch.search(method, fact, foil)
            reached = answers.reached[:, 0]
            measures = self._measures(batch.images, fact, reached, answers)
            yield batch.rows(name, "", {}, **measures, **_path(fact, reached, answers))

    def _foils(self, batch: Batch, logits: Tensor) -> Tensor:
        fact, classes = logits.argmax(1), logits.shape[1]
        if self.foil == "any":
            return torch.full_like(fact, -1)
        if self.foil == "runner-up":
            return rival(logits, fact)
        if self.foil == "random":
            step = 1 + (batch.uniform(0, 1, "foil") * (classes - 1)).long().clamp_max(classes - 2)
            return (fact + step) % classes
        if not 0 <= int(self.foil) < classes:
            raise InputError(f"foil {self.foil} is no class of this model: give 0 to {classes - 1}")
        return torch.full_like(fact, int(self.foil))

    def _measures(self, images: Tensor, fact: Tensor, foil: Tensor, answers: Counterfactual) -> dict[str, Tensor]:
        each, found, example, logits = answers.found_each, answers.found, answers.example, answers.example_logits[:, 0]
        top = logits.argmax(1)
        p_fact, p_foil, p_third = _three(logits.unsqueeze(1), fact, foil)[:, 0].unbind(1)
        of_fact, of_foil = (logits.gather(1, side.unsqueeze(1)).squeeze(1) for side in (fact, foil))
        change = (example - images).flatten(1)
        largest = (example - images).abs().amax(1).flatten(1)
        distances = {
            "distance": answers.distance[:, 0],
            "l1": change.abs().sum(1),
            "l2": change.square().sum(1).sqrt(),
            "sparsity": (largest > self.visible).double().mean(1),
            **dict(zip(("im1", "im2"), self._realism(example, fact, foil), strict=True)),
            "density": _density(answers).to(images.device),
            **self._concepts(answers, len(images)),
        }
        return {
            "found": found,
            "boundary": ((of_fact - of_foil).abs() <= self.tolerance) & (p_third < torch.minimum(p_fact, p_foil)),
            "third": (top != fact) & (top != foil),
            "foil": top == foil,
            "p_fact": p_fact,
            "p_foil": p_foil,
            "p_third": p_third,
            "second": self._judged(answers.examples, foil, each),
            **{key: value.double().masked_fill(~found, torch.nan) for key, value in distances.items()},
            **_spread(answers.examples, each),
        }

    # ----------------------------------------------------------------------------------------- second opinions
    @cached_property
    def _second(self) -> Model | None:
        if self.second is None:
            return None
        return (
            load(self.second, weights=self.second_weights) if isinstance(self.second, str) else Model.wrap(self.second)
        )

    def _judged(self, examples: Tensor, foil: Tensor, found: Tensor) -> Tensor:
        if self._second is None:
            return torch.full(foil.shape, torch.nan, device=foil.device)
        self._second.module.to(examples.device)
        with preserve_state(self._second.module), torch.no_grad():
            classes = self._second.logits(examples.flatten(0, 1).to(self._second.dtype)).argmax(1).view(found.shape)
        return (found & (classes == foil.unsqueeze(1))).sum(1) / found.sum(1)  # NaN where none was found

    def _concepts(self, answers: Counterfactual, count: int) -> dict[str, Tensor]:
        if answers.attributes is None or answers.attributes_before is None:
            return dict.fromkeys(("gained", "lost"), answers.distance.new_full((count,), torch.nan))
        change = answers.attributes[:, 0] - answers.attributes_before
        return {"gained": (change > self.noticed).sum(1), "lost": (change < -self.noticed).sum(1)}

    @cached_property
    def _reference(self) -> data.Dataset | None:
        if self.reference is None:
            return None
        return data.load(self.reference, split="train") if isinstance(self.reference, str) else self.reference

    @cached_property
    def _autoencoders(self) -> list[_Linear]:
        """One per class, then that of all."""
        assert self._reference is not None
        parts = [(images.flatten(1), labels) for _, images, labels in data.batches(self._reference, 1024)]
        pixels, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        classes = [pixels[labels == label] for label in range(int(labels.max()) + 1)]
        return [_Linear.fitted(each) for each in (*classes, pixels)]

    def _realism(self, examples: Tensor, fact: Tensor, foil: Tensor) -> tuple[Tensor, Tensor]:
        flat = examples.flatten(1).cpu().double()
        if self._reference is None:
            return (torch.full((len(flat),), torch.nan, device=examples.device),) * 2
        made = torch.stack([autoencoder(flat) for autoencoder in self._autoencoders])
        highest = int(torch.maximum(fact, foil).max())
        if highest > len(made) - 2:
            raise InputError(f"the reference has {len(made) - 1} classes, but class {highest} is asked about")
        row = torch.arange(len(flat))
        as_foil, as_fact, as_any = made[foil.cpu(), row], made[fact.cpu(), row], made[-1]
        im1 = _squared(flat - as_foil) / (_squared(flat - as_fact) + _TINY)
        im2 = _squared(as_foil - as_any) / (flat.abs().sum(1) + _TINY)
        return im1.to(examples.device), im2.to(examples.device)


@dataclass(frozen=True)
class _Linear:
    """The best linear autoencoder of some images: their mean and first principal components, in float64."""

    mean: Tensor
    components: Tensor

    @classmethod
    def fitted(cls, pixels: Tensor) -> _Linear:
        """Of images (N, pixels)."""
        pixels = pixels.double()
        mean = pixels.mean(0)
        centred = pixels - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        return cls(mean, vectors[:, -_COMPONENTS:])

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, pixels) to what can be said with the components."""
        return self.mean + (pixels - self.mean) @ self.components @ self.components.T


def _density(answers: Counterfactual) -> Tensor:
    """(N,): mean over the latents of log N(z; 0, 1); NaN without a manifold."""
    if answers.latents is None:
        return torch.full(answers.distance.shape[:1], torch.nan)
    return -0.5 * (answers.latents[:, 0].flatten(1).square() + math.log(2 * math.pi)).mean(1)


def _squared(values: Tensor) -> Tensor:
    return values.square().sum(1)


def _three(logits: Tensor, fact: Tensor, foil: Tensor) -> Tensor:
    """Probabilities of fact, foil and the likeliest other class, (N, T, 3), from logits (N, T, classes)."""
    p = logits.softmax(2)
    sides = torch.stack([fact, foil], 1).unsqueeze(1).expand(-1, p.shape[1], -1)
    return torch.cat([p.gather(2, sides), p.scatter(2, sides, -1).amax(2, keepdim=True).clamp_min(0)], 2)


def _path(fact: Tensor, foil: Tensor, answers: Counterfactual) -> Mapping[str, Tensor]:
    """The probabilities along the path as columns, frame by frame."""
    along = _three(answers.path_logits, fact, foil)
    names = ("fact", "foil", "third")
    frames = range(along.shape[1])
    return {f"path_{name}_{t:02d}": along[:, t, i] for i, name in enumerate(names) for t in frames}


def _spread(examples: Tensor, found: Tensor) -> dict[str, Tensor]:
    """How far the answers found from different starts lie apart; NaN for less than two."""
    from skimage.metrics import structural_similarity

    diversity, agreement = [], []
    for answers, kept in zip(examples.double().cpu(), found.cpu(), strict=True):
        pairs = list(combinations(answers[kept], 2))
        apart = [(a - b).norm().item() for a, b in pairs]
        similarity: Callable[..., float] = partial(structural_similarity, channel_axis=0, data_range=1.0)
        alike = [similarity(a.numpy(), b.numpy(), win_size=_window(a)) for a, b in pairs]
        diversity.append(sum(apart) / len(apart) if pairs else torch.nan)
        agreement.append(sum(alike) / len(alike) if pairs else torch.nan)
    return {"diversity": torch.tensor(diversity), "agreement": torch.tensor(agreement)}


def _window(image: Tensor) -> int:
    """The 7 pixels of the measure, or what fits."""
    side = min(7, image.shape[1], image.shape[2])
    return side - 1 + side % 2
