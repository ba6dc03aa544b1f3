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
from ratherthan.evaluation.masking import ranks
from ratherthan.inference import preserve_state
from ratherthan.loading import load
from ratherthan.model import Model, fingerprint
from ratherthan.search.counterfactual import Counterfactual
from ratherthan.search.method import ANY, get_counterfactual_method
from ratherthan.settings import Interval, NotNegative

_COMPONENTS = 32
_STEPS = 50  # as the authors of `cout` take
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
        second     the share of the answers found, over all restarts, that a second network calls Q (Hvilshoj et al.,
                   2021: the oracle score)
        non_adversarial   the same of a network distilled from the model on other views: what it does not follow was
                   made for the weights of the model, not for what it has learnt (Bender et al., 2025)
        label_variation   mean over the classes i other than P and Q of JS(s_i(x), s_i(x')), s the probabilities of the
                   second network and JS the Jensen-Shannon divergence in bits of "i" and "not i": 0 where nothing but
                   P and Q has changed (Hvilshoj et al., 2021, with classes for labels)
        cout       integral over u in [0, 1] of p_Q - p_P of x with the share u of its pixels, those that change most
                   first, as in x': 1 where few pixels do it all, -1 where none (Khorram and Fuxin, 2022)
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
        distilled: A network that was taught the answers of the model on images that were shifted, blurred and the like
            (docs/results/measures.py has such a training), or its name; None: `non_adversarial` is undefined.
        distilled_weights: Its weights, where it is given by name.
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
    distilled: Any = None
    distilled_weights: str | Path | None = None
    reference: Any = None
    tolerance: NotNegative = 0.01
    visible: NotNegative = 0.1
    noticed: NotNegative = 0.01

    name: ClassVar[str] = "counterfactuals"
    reads_labels = False
    measures = (
        "found", "boundary", "third", "foil", "p_fact", "p_foil", "p_third", "second", "non_adversarial",
        "label_variation", "cout", "distance", "l1", "l2", "sparsity", "im1", "im2", "density", "gained", "lost",
        "diversity", "agreement",
    )  # fmt: skip
    layout = (("measure",), ("method",))
    methods = ("cdeepex", "xgem")
    contrasts = ()

    def settings(self) -> dict[str, Any]:
        """The settings; networks and data by what they hold."""
        plain = {key: getattr(self, key) for key in ("foil", "tolerance", "visible", "noticed")}
        networks = {"second": self._second, "distilled": self._distilled}
        held = {key: None if each is None else fingerprint(each.module) for key, each in networks.items()}
        return {**plain, **held, "reference": self._reference and self._reference.fingerprint()}

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
            measures = self._measures(batch, fact, reached, answers)
            yield batch.rows(name, **measures, **_path(fact, reached, answers))

    def _foils(self, batch: Batch, logits: Tensor) -> Tensor:
        fact, classes = logits.argmax(1), logits.shape[1]
        if self.foil == "runner-up":
            return rival(logits, fact)
        if self.foil == "random":
            step = 1 + (batch.uniform(0, 1, "foil") * (classes - 1)).long().clamp_max(classes - 2)
            return (fact + step) % classes
        return torch.full_like(fact, ANY if self.foil == "any" else class_index(self.foil, classes))

    def _measures(self, batch: Batch, fact: Tensor, foil: Tensor, answers: Counterfactual) -> dict[str, Tensor]:
        each, found, example, logits = answers.found_each, answers.found, answers.example, answers.example_logits[:, 0]
        top = logits.argmax(1)
        p = _three(logits.unsqueeze(1), fact, foil)[:, 0]
        lead = logits.gather(1, torch.stack([fact, foil], 1)).diff()[:, 0]
        change = (example - batch.images).flatten(2)
        distances = {
            "distance": answers.distance[:, 0],
            "l1": change.flatten(1).abs().sum(1),
            "l2": change.flatten(1).square().sum(1).sqrt(),
            "sparsity": (change.abs().amax(1) > self.visible).double().mean(1),
            "cout": _transition(batch, fact, foil, example),
            **self._realism(example, fact, foil, answers.class_names),
        }
        if self._second is not None:
            before, after = (_asked(self._second, each, logits) for each in (batch.images, example))
            distances["label_variation"] = _label_variation(before, after, fact, foil)
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
            "second": _votes(self._second, answers, foil),
            "non_adversarial": _votes(self._distilled, answers, foil),
            **{key: value.double().cpu().masked_fill(~found.cpu(), torch.nan) for key, value in distances.items()},
            **_spread(answers.examples, each),
        }

    # ----------------------------------------------------------------------------------------- second opinions
    @cached_property
    def _second(self) -> Model | None:
        return _network(self.second, self.second_weights)

    @cached_property
    def _distilled(self) -> Model | None:
        return _network(self.distilled, self.distilled_weights)

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


def _network(given: Any, weights: str | Path | None) -> Model | None:
    if isinstance(given, str):
        return load(given, weights=weights)
    return None if given is None else Model.wrap(given)


def _asked(network: Model, images: Tensor, alike: Tensor) -> Tensor:
    """Logits (..., classes) of another network for images (..., C, H, W); it is to have the classes of some logits."""
    network.module.to(images.device)
    with preserve_state(network.module), torch.no_grad():
        logits = network.logits(images.flatten(0, -4).to(network.dtype))
    if logits.shape[-1] != alike.shape[-1]:
        raise InputError(f"{network.name} has {logits.shape[-1]} classes, the model {alike.shape[-1]}: give one of its")
    return logits.reshape(*images.shape[:-3], -1)


def _votes(network: Model | None, answers: Counterfactual, foil: Tensor) -> Tensor:
    """The share of the answers found that another network calls the foil; NaN where there is none."""
    found = answers.found_each
    if network is None:
        return torch.full(foil.shape, torch.nan)
    classes = _asked(network, answers.examples, answers.example_logits).argmax(2)
    share: Tensor = (found & (classes == foil.unsqueeze(1))).sum(1) / found.sum(1)
    return share


def _label_variation(before: Tensor, after: Tensor, fact: Tensor, foil: Tensor) -> Tensor:
    """The mean divergence of the classes other than fact and foil, (N,), from logits (N, classes)."""

    def entropy(p: Tensor) -> Tensor:
        nats: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
        return nats / math.log(2)

    p, q = before.double().softmax(1), after.double().softmax(1)
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    others = torch.ones_like(p).scatter(1, torch.stack([fact, foil], 1), 0)
    return (divergence * others).sum(1) / others.sum(1)


def _transition(batch: Batch, fact: Tensor, foil: Tensor, example: Tensor) -> Tensor:
    """By how much the foil is likelier than the fact, on average while the image becomes the example."""
    place = ranks((example - batch.images).abs().sum(1)).unsqueeze(1)
    pixels = place[0].numel()
    kept = (pixels - round(step * pixels / _STEPS) for step in range(_STEPS + 1))
    variants = (torch.where(place >= count, example, batch.images) for count in kept)
    p = batch.logits(variants).double().softmax(2)
    row = torch.arange(len(fact), device=p.device)
    return torch.trapezoid(p[:, row, foil] - p[:, row, fact], dx=1 / _STEPS, dim=0)


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
