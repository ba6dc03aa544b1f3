"""The question: a fact, the foils it is compared with, and how the foils are weighed.

Everything here is tensor code on logits. A `Question` says *what* is compared; a `Contrast` says *how*, with three
faces: `scalar` (a number per question), `seed` (its derivative with respect to the logits, which linear
back-propagation pulls back) and `describe` (the question in words).

Shapes: N samples, Q questions per sample (1 unless facts or foils form an axis), C classes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError, told_as, unknown
from ratherthan.registry import Registry
from ratherthan.settings import type_name

FoilWeights = Literal["frozen", "live"]
WORDS = ("predicted", "each", "others", "all", "any", "runner-up", "positive")
"""Words of questions, besides "topK". A class that is called so is met first, see `_Resolver._word`."""
ContrastFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


# --------------------------------------------------------------------------------------------- the question
@dataclass(frozen=True)
class Question:
    """Facts and foils of a batch, resolved to indices.

    Attributes:
        fact: (N, Q) class indices; all zero for a regressor, which has one output.
        foil: (N, Q) the class compared with; -1 where several classes are foils together; a value for a regressor. It
            is the fact itself only where that is asked for, which only the `loss` contrast answers with more than zero.
        classes: C, how many there are.
        axis: Which of the two varies along Q, or None where Q is 1 and the answer carries no such axis.
        sets: (N, Q, C) bool, the foil set of each question; None: `foil` tells them, -1 for all classes but the fact.
        of_values: Whether a regressor is asked.
    """

    fact: Tensor
    foil: Tensor
    classes: int
    axis: Literal["fact", "foil"] | None = None
    sets: Tensor | None = None
    of_values: bool = False

    @cached_property
    def foils(self) -> Tensor:
        """(N, Q, C) bool: the foil set of each question."""
        return foil_sets(self.fact, self.foil, self.classes) if self.sets is None else self.sets

    @cached_property
    def single(self) -> bool:
        """Whether each question has one class as its foil, so that its set need not be written out."""
        return self.sets is None and bool((self.foil >= 0).all())

    @staticmethod
    def against_all(fact: Tensor, classes: int) -> Question:
        """Why each fact, (N,) or (N, Q), rather than any other class?"""
        fact = fact.unsqueeze(1) if fact.ndim == 1 else fact
        return Question(fact, torch.full_like(fact, -1), classes)

    def __getitem__(self, some: slice | Tensor | tuple[slice, slice]) -> Question:
        """The same question for some of the samples, or for some of the samples some of the questions."""
        sets = None if self.sets is None else self.sets[some]
        return replace(self, fact=self.fact[some], foil=self.foil[some], sets=sets)


def resolve(logits: Tensor, fact: Any = None, foil: Any = None, names: Sequence[str] | None = None) -> Question:
    """Turn what a user asks into indices, once, at the border.

    Args:
        logits: (N, C) class scores of the samples.
        fact: The class to explain. None or "predicted": the network's answer. A class index or name. A tensor or array
            of shape (N,): one per sample. A list, "each" or "topK": an axis of facts.
        foil: What it is compared with. None, "others" or "any": all other classes. "runner-up": the likeliest other
            class. A class index or name. A set: several classes together. A tensor or array of shape (N,): one per
            sample, (N, Q): an axis per sample. A list, "each" or "topK" (the K likeliest others): an axis of foils; a
            list of N lists: an axis per sample. Elements of a list may be sets.
        names: Class names, where there are any.

    Returns:
        The question; its axis is "fact" or "foil" where one of them is an axis.

    Raises:
        InputError: If a class does not exist, a length is wrong, or both fact and foil are axes.
    """
    (question,) = resolve_in_parts(logits, fact, foil, names)
    return question


def resolve_in_parts(
    logits: Tensor,
    fact: Any = None,
    foil: Any = None,
    names: Sequence[str] | None = None,
    at_once: int = 2**62,
    exclusive: bool = True,
) -> Iterator[Question]:
    """The same, cut along the axis: of 20,000 classes each against each, the foils alone would fill 400 MB.

    Args:
        logits: As in `resolve`, like all that is not named here.
        fact: As in `resolve`.
        foil: As in `resolve`.
        names: As in `resolve`.
        at_once: Questions about each sample in one part.
        exclusive: Whether one of the classes is the answer. If not, they are labels, and the last stands for none: no
            fact can be that, and it is the foil unless one says otherwise. The fact may then be "positive": an axis of
            the labels whose log-odds are above 0, which must be as many for all samples.
    """
    resolver = (_Resolver if exclusive else _LabelResolver)(logits.detach(), names)
    facts, fact_is_axis = resolver.facts(fact)
    given, foil_is_axis = resolver.foils(foil, facts)
    if fact_is_axis and foil_is_axis:
        raise InputError("fact and foil are both axes (lists, 'each' or 'topK'); give one of them as a single class")
    axis: Literal["fact", "foil"] | None = "fact" if fact_is_axis else "foil" if foil_is_axis else None
    for start in range(0, max(facts.shape[1], given.shape[1]), at_once):
        ours, theirs = (e if e.shape[1] == 1 else e[:, start : start + at_once] for e in (facts, given))
        theirs = (
            torch.nn.functional.pad(theirs, (0, logits.shape[1] - theirs.shape[-1])) if theirs.ndim == 3 else theirs
        )
        foil, sets = _told(ours, theirs) if theirs.dtype == torch.bool else (theirs, None)
        if logits.shape[1] == 2 and exclusive:  # all others are one
            foil = torch.where(foil < 0, 1 - ours, foil)
        foil = foil.expand(-1, max(ours.shape[1], foil.shape[1]))
        yield Question(ours.expand_as(foil), foil, logits.shape[1], axis, sets)


def _told(fact: Tensor, sets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Sets by what they have in them, and as sets if any is neither a single class nor all but the fact."""
    # a set of several foils never holds the fact; a single foil may be the fact (asked for by name)
    several = sets.sum(-1, keepdim=True) > 1
    sets = sets & ~(several & _one_hot(fact, sets.shape[-1]))
    count = sets.sum(-1)
    foil = torch.where(count == 1, sets.int().argmax(-1), -1)
    return foil, None if ((count == 1) | (count == sets.shape[-1] - 1)).all() else sets


def foil_sets(fact: Tensor, foil: Tensor, classes: int) -> Tensor:
    """Foils by their index, -1 for all classes but the fact, as sets: (...) to (..., classes) bool."""
    return torch.where((foil < 0).unsqueeze(-1), ~_one_hot(fact, classes), _one_hot(foil.clamp_min(0), classes))


def _one_hot(indices: Tensor, classes: int) -> Tensor:
    return indices.unsqueeze(-1) == torch.arange(classes, device=indices.device)  # one_hot takes 8 bytes a class


def resolve_values(output: Tensor, foil: Any) -> Question:
    """The same for a regressor: "why 0.58, rather than 0.75?".

    Args:
        output: (N, 1) values the network gave.
        foil: A number; a tensor or array (N,), one per sample; a list: an axis of values; None: no foil (contrast
            `none` only).

    Returns:
        The question, of values.

    Raises:
        InputError: If the foil is no number or its length is wrong.
    """
    count, is_axis = len(output), isinstance(foil, (list, tuple))
    wrong = f"a foil is a finite number here, not {foil!r}: ask with a number, one per sample, or a list of them"
    with told_as(InputError, wrong, TypeError, ValueError, RuntimeError):
        values = torch.as_tensor(float("nan") if foil is None else foil, dtype=output.dtype, device=output.device)
    if foil is not None and not (values.numel() and values.isfinite().all()):
        raise InputError(wrong)
    dimensions = 2 if is_axis else 1
    if values.ndim > dimensions or (values.ndim == dimensions and len(values) != count):
        raise InputError(f"foil values of shape {tuple(values.shape)}: give one per sample, or a list for an axis")
    values = values.expand(count, -1) if is_axis else values.expand(count).unsqueeze(1)
    fact = torch.zeros_like(values, dtype=torch.long)
    sets = torch.zeros(*values.shape, 1, dtype=torch.bool, device=output.device)
    return Question(fact, values, 1, "foil" if is_axis else None, sets, of_values=True)


def class_index(given: Any, classes: int, names: Sequence[str] | None = None) -> int:
    """Find a class by index or by name (exact, or one of comma-separated synonyms; case does not matter).

    Args:
        given: An index in [0, classes), or a name, or an index in digits.
        classes: How many classes there are.
        names: Their names, where known.

    Returns:
        The index.

    Raises:
        InputError: If there is no such class, or if several bear the name.
    """
    if isinstance(given, str):
        wanted, known = given.strip().casefold(), [name.casefold() for name in names or ()]
        exact = [i for i, name in enumerate(names or ()) if name == given]  # tokens differ by case and spaces alone
        exact = exact or [i for i, name in enumerate(known) if name == wanted]
        matches = exact or [i for i, name in enumerate(known) if wanted in map(str.strip, name.split(","))]
        if len(matches) > 1:
            raise InputError(f"{given!r} names classes {' and '.join(map(str, matches))}; give the index instead")
        if not matches and not (wanted.isdecimal() and len(wanted) < 19):
            nameless = f"class {given!r}: this model has no class names; give an index from 0 to {classes - 1}"
            raise InputError(unknown("class", given, names) if names else nameless)
        given = matches[0] if matches else int(wanted)
    if not isinstance(given, (int, np.integer)) or isinstance(given, bool):
        raise InputError(f"a class is an index or a name, not {type(given).__name__} ({given!r})")
    if not 0 <= given < classes:
        raise InputError(f"class {given} does not exist: this model has classes 0 to {classes - 1}")
    return int(given)


class _Resolver:
    """Reads the many ways to name facts and foils, for one batch of logits."""

    def __init__(self, logits: Tensor, names: Sequence[str] | None) -> None:
        self.logits, self.names = logits, names
        self.samples, self.classes = logits.shape

    def facts(self, fact: Any) -> tuple[Tensor, bool]:
        """(N, 1) or (N, Q) indices, and whether they form an axis."""
        word = self._word(fact)
        if fact is None or word == "predicted":
            return self.logits.argmax(1, keepdim=True), False
        if word == "each":
            return torch.arange(self.classes, device=self.logits.device).expand(self.samples, -1), True
        if count := self._top(word, self.classes):
            return self.logits.topk(count, dim=1).indices, True
        if isinstance(fact, (Tensor, np.ndarray)) and np.ndim(fact):
            return self._per_sample(fact, "fact")
        if isinstance(fact, (list, tuple)):
            row = torch.tensor([self._class(each) for each in fact], device=self.logits.device)
            return row.expand(self.samples, -1), True
        return torch.full((self.samples, 1), self._class(fact), device=self.logits.device), False

    def foils(self, foil: Any, facts: Tensor) -> tuple[Tensor, bool]:
        """(N, 1) or (N, Q) indices, -1 for all others, or sets (N, 1 or Q, C) bool; and whether they form an axis."""
        word, is_axis = self._word(foil), isinstance(foil, (list, tuple))
        if self.classes < 2 and (foil is None or word):
            raise InputError("this model has a single class: there is nothing to contrast it with")
        if foil is None or word in ("others", "all", "any"):
            return torch.full_like(facts[:, :1], -1), False
        if word == "each":
            return torch.arange(self.classes, device=self.logits.device).expand(self.samples, -1), True
        if count := 1 if word == "runner-up" else self._top(word, self.classes - 1):
            return self._rivals(facts, count), word != "runner-up"
        if isinstance(foil, (Tensor, np.ndarray)) and np.ndim(foil):
            return self._per_sample(foil, "foil")
        return (self._foil_list(list(foil)) if is_axis else self._foil_set(foil).expand(self.samples, 1, -1)), is_axis

    def _word(self, spec: Any) -> str:
        """A word in lower case, "runner-up"; empty for what is none, or is exactly the name of a class."""
        if isinstance(spec, (list, tuple, AbstractSet)) and not spec:
            raise InputError(f"an empty {type(spec).__name__} asks nothing: give at least one class")
        return spec.strip().casefold() if isinstance(spec, str) and spec not in (self.names or ()) else ""

    def _foil_list(self, foil: list[Any]) -> Tensor:
        if not any(isinstance(each, (list, tuple)) for each in foil):
            return torch.stack([self._foil_set(each) for each in foil]).expand(self.samples, -1, -1)
        lengths = {len(each) if isinstance(each, (list, tuple)) else -1 for each in foil}
        if len(foil) != self.samples or len(lengths) != 1 or not lengths.isdisjoint({-1, 0}):
            wanted = f"{self.samples} lists of equal length"
            raise InputError(f"foils per sample: give {wanted}, not {len(foil)} of lengths {sorted(lengths)}")
        return torch.stack([torch.stack([self._foil_set(each) for each in row]) for row in foil])

    def _foil_set(self, foil: Any) -> Tensor:
        members = list(foil) if isinstance(foil, AbstractSet) else [foil]
        self._word(foil)  # no empty set
        row = torch.zeros(self.classes, dtype=torch.bool, device=self.logits.device)
        row[[self._class(member) for member in members]] = True
        return row

    def _rivals(self, facts: Tensor, count: int) -> Tensor:
        others = self.logits.unsqueeze(1).masked_fill(_one_hot(facts, self.classes), -torch.inf)
        return others.topk(count, dim=2).indices.flatten(1)

    def _per_sample(self, given: Tensor | np.ndarray[Any, Any], what: str) -> tuple[Tensor, bool]:
        indices = torch.as_tensor(given, device=self.logits.device)
        if indices.is_floating_point() or indices.dtype == torch.bool or indices.ndim > 2:
            raise InputError(f"{what}: a tensor of class indices is whole numbers of shape (N,) or (N, Q)")
        if len(indices) != self.samples:
            raise InputError(f"{len(indices)} {what}s for {self.samples} samples; give one per sample")
        bad = indices[(indices < 0) | (indices >= self.classes)]
        if bad.numel():
            raise InputError(f"class {int(bad[0])} does not exist: this model has classes 0 to {self.classes - 1}")
        return (indices.unsqueeze(1), False) if indices.ndim == 1 else (indices, True)

    def _class(self, given: Any) -> int:
        return class_index(given.item() if isinstance(given, (Tensor, np.ndarray)) else given, self.classes, self.names)

    @staticmethod
    def _top(word: str, available: int) -> int:
        """K of "topK"; 0 for any other word."""
        match = re.fullmatch(r"top-?(\d{1,18})", word)
        count = int(match.group(1)) if match else 0
        if match and not 1 <= count <= available:
            raise InputError(f"{word!r}: there are only {available} classes to choose from; give at least 'top1'")
        return count


class _LabelResolver(_Resolver):
    """The same for independent labels, behind which stands what is none of them."""

    def __init__(self, logits: Tensor, names: Sequence[str] | None) -> None:
        super().__init__(logits[:, :-1], None if names is None else names[:-1])

    def facts(self, fact: Any) -> tuple[Tensor, bool]:
        if self._word(fact) != "positive":
            return super().facts(fact)
        counts = sorted(set((self.logits > 0).sum(1).tolist()))
        if len(counts) != 1 or not counts[0]:
            found = " and ".join(map(str, counts))
            many = f"'positive' is an axis of the labels that hold, as many for each sample; here hold {found}"
            raise InputError(f"{many}: ask about one sample, or name labels")
        return self.logits.topk(counts[0], dim=1).indices, True

    def foils(self, foil: Any, facts: Tensor) -> tuple[Tensor, bool]:
        if foil is None:
            return torch.full_like(facts[:, :1], self.classes), False
        if self._word(foil) in ("others", "all", "any"):
            raise InputError(f"labels are independent, there are no {foil!r}: leave the foil out, or give a label")
        return super().foils(foil, facts)


# --------------------------------------------------------------------------------------------- the contrasts
class Contrast(ABC):
    """How the foils are weighed against the fact. A subclass needs a `scalar`; `seed` follows by autograd.

    Attributes:
        words: The question, with {fact} and {foil}.
        measure: What its number is, with {fact} and {foil}; empty: its name.
        for_values: Whether it can be asked of a model that gives a value.
    """

    name: ClassVar[str] = ""
    words: ClassVar[str] = "Why {fact}, rather than {foil}?"
    measure: ClassVar[str] = ""
    for_values: ClassVar[bool] = False

    @abstractmethod
    def scalar(self, logits: Tensor, question: Question) -> Tensor:
        """The contrast itself.

        Args:
            logits: (..., N, C) class scores; leading dimensions hold altered versions of the same N samples.
            question: Facts and foils of the N samples.

        Returns:
            (..., N, Q), in logits unless the contrast says otherwise.
        """

    def describe(self, fact: str, foil: str) -> str:
        """The question in words, for a fact and a foil (or several, already joined) given by name."""
        return self.words.format(fact=fact, foil=foil)

    def seed(self, logits: Tensor, question: Question) -> Tensor:
        """The derivative of the scalar with respect to the logits: (N, C) -> (N, Q, C)."""
        with torch.enable_grad():
            copies = logits.detach().unsqueeze(1).repeat(1, question.fact.shape[1], 1).requires_grad_()
            rows = [self.scalar(copies[:, q], question[:, q : q + 1]) for q in range(copies.shape[1])]
            total = torch.cat(rows, 1).sum()
            if not total.requires_grad:
                raise InputError(f"contrast {self.name!r} cannot be differentiated: compute it from the logits")
            (seeds,) = torch.autograd.grad(total, copies)
        return seeds


def _of_fact(logits: Tensor, question: Question) -> Tensor:
    """y_t: (..., N, C) -> (..., N, Q)."""
    return logits.gather(-1, question.fact.expand(*logits.shape[:-1], -1))


def _of_foil(logits: Tensor, question: Question) -> Tensor:
    """y_q of single foils: (..., N, C) -> (..., N, Q)."""
    return logits.gather(-1, question.foil.expand(*logits.shape[:-1], -1))


def _of_foils(logits: Tensor, question: Question) -> Tensor:
    """The foils' logits, all others at -inf: (..., N, Q, C)."""
    return logits.unsqueeze(-2).masked_fill(~question.foils, -torch.inf)


def _unit(index: Tensor, logits: Tensor) -> Tensor:
    """e_i: (N, Q) -> (N, Q, C)."""
    return logits.new_zeros(*index.shape, logits.shape[-1]).scatter_(-1, index.unsqueeze(-1), 1)


def _share(logits: Tensor, question: Question) -> Tensor:
    """1_S / |S|: (N, Q, C)."""
    return question.foils / question.foils.sum(-1, keepdim=True).to(logits.dtype)


class Plain(Contrast):
    """`none`: y_t, "why P?" with no foil at all. For a regressor, its value."""

    name = "none"
    words = "Why {fact}?"
    measure = "logit of {fact}"
    for_values = True

    def scalar(self, logits: Tensor, question: Question) -> Tensor:
        """y_t."""
        return _of_fact(logits, question)

    def seed(self, logits: Tensor, question: Question) -> Tensor:
        """e_t."""
        return _unit(question.fact, logits)


class Difference(Contrast):
    """y_t minus what the foils come to together; of a single foil that is y_q, whatever the contrast."""

    def scalar(self, logits: Tensor, question: Question) -> Tensor:
        """The fact's logit minus that of the foils together."""
        pooled = _of_foil(logits, question) if question.single else self.pooled(logits, question)
        return _of_fact(logits, question) - pooled

    def seed(self, logits: Tensor, question: Question) -> Tensor:
        """e_t minus the weights of the foils."""
        weights = _unit(question.foil, logits) if question.single else self.weights(logits, question)
        return weights.neg_().scatter_add_(-1, question.fact.unsqueeze(-1), torch.ones_like(weights[..., :1]))

    @abstractmethod
    def pooled(self, logits: Tensor, question: Question) -> Tensor:
        """What the foils come to: (..., N, C) -> (..., N, Q)."""

    @abstractmethod
    def weights(self, logits: Tensor, question: Question) -> Tensor:
        """Its derivative: (N, C) -> (N, Q, C)."""


class Mean(Difference):
    """`mean`: y_t - mean_S y (Gu et al. 2018; weighted-contrast section 3.3)."""

    name = "mean"
    words = "Why {fact}, rather than {foil} (mean)?"
    measure = "lead of {fact} over the mean of {foil}"

    def pooled(self, logits: Tensor, question: Question) -> Tensor:
        """Mean over the foils."""
        return torch.einsum("...nc,nqc->...nq", logits, _share(logits, question))

    def weights(self, logits: Tensor, question: Question) -> Tensor:
        """1_S / |S|."""
        return _share(logits, question)


class Max(Difference):
    """`max`: y_t - max_S y (Dhurandhar et al. 2018; weighted-contrast section 3.3)."""

    name = "max"
    words = "Why {fact}, rather than {foil} (strongest)?"
    measure = "lead of {fact} over {foil}"

    def pooled(self, logits: Tensor, question: Question) -> Tensor:
        """The strongest foil."""
        return _of_foils(logits, question).amax(-1)

    def weights(self, logits: Tensor, question: Question) -> Tensor:
        """e_{s*}; of equal foils the first."""
        return _unit(_of_foils(logits, question).argmax(-1), logits)


class Weighted(Difference):
    """`weighted`: y_t - logsumexp_S y, the log-odds of the fact against the foils (weighted-contrast eq. 1).

    Its seed is e_t - a with a = softmax(y_S), the paper's weights alpha. It stays right where the network is sure,
    while the gradient of the probability underflows.
    """

    name = "weighted"
    measure = "log-odds of {fact} over {foil}"

    def pooled(self, logits: Tensor, question: Question) -> Tensor:
        """Logsumexp over the foils."""
        return _of_foils(logits, question).logsumexp(-1)

    def weights(self, logits: Tensor, question: Question) -> Tensor:
        """Softmax over the foils."""
        return _of_foils(logits, question).softmax(-1)


class Probability(Weighted):
    """`probability`: p_t, the softmax over fact and foils (weighted-contrast proposition 2).

    The weighted contrast times p_t (1 - p_t): same sign and rank, but it vanishes where the network is sure.
    """

    name = "probability"
    words = "What makes {fact} probable, rather than {foil}?"
    measure = "probability of {fact}"

    def scalar(self, logits: Tensor, question: Question) -> Tensor:
        """p_t in [0, 1]."""
        return super().scalar(logits, question).sigmoid()

    def seed(self, logits: Tensor, question: Question) -> Tensor:
        """p_t (1 - p_t) (e_t - a)."""
        odds = super().scalar(logits, question)
        # sigmoid(-odds) keeps its digits where 1 - sigmoid(odds) has none left
        return (odds.sigmoid() * (-odds).sigmoid()).unsqueeze(-1) * super().seed(logits, question)


class Loss(Contrast):
    """`loss`: J(y, Q), whose gradient contrastive-gradcam section 3.1 takes for the contrast.

    Cross-entropy towards Q for classes (its mean over a set of foils), squared error for values. For a class it equals
    -(1 - p_Q) times the weighted contrast *for Q*: it does not depend on P, and is positive where the input speaks
    against Q. Asked with Q = P it shows what keeps the network from being surer of P.
    """

    name = "loss"
    words = "Why {fact}, rather than {foil}? (loss towards {foil})"
    measure = "loss towards {foil}"
    for_values = True

    def scalar(self, logits: Tensor, question: Question) -> Tensor:
        """-log p_Q (averaged over several foils), or (y - Q)^2."""
        if question.of_values:
            return (logits - question.foil).square()
        likely = logits.log_softmax(-1)
        if question.single:
            return -_of_foil(likely, question)
        return -torch.einsum("...nc,nqc->...nq", likely, _share(logits, question))

    def seed(self, logits: Tensor, question: Question) -> Tensor:
        """P - e_Q (averaged over several foils), or 2 (y - Q)."""
        if question.of_values:
            return 2 * (logits - question.foil).unsqueeze(-1)
        share = _unit(question.foil, logits) if question.single else _share(logits, question)
        return logits.softmax(-1).unsqueeze(1) - share

    def describe(self, fact: str, foil: str) -> str:
        """What speaks against Q, or, asked about the fact itself, against being surer of it?"""
        return f"What keeps it from being surer of {fact}?" if fact == foil else super().describe(fact, foil)


class FunctionContrast(Contrast):
    """A contrast from a function of (logits (N, C), fact (N,), foils (N, C)) to (N,); autograd gives its seed."""

    def __init__(self, function: ContrastFunction, name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))  # type: ignore[misc]

    def scalar(self, logits: Tensor, question: Question) -> Tensor:
        """The function's value, checked for its shape."""
        columns = []
        for q in range(question.fact.shape[1]):
            fact, foils = question.fact[:, q], question.foils[:, q]
            rows = [self.function(y, fact, foils) for y in logits.reshape(-1, *logits.shape[-2:])]
            if not isinstance(rows[0], Tensor) or rows[0].shape != fact.shape:
                given = f"shape {tuple(rows[0].shape)}" if isinstance(rows[0], Tensor) else type(rows[0]).__name__
                raise InputError(f"contrast {self.name!r} returned {given}, not one number per sample ({len(fact)},)")
            columns.append(torch.stack(rows).reshape(logits.shape[:-1]))
        return torch.stack(columns, -1)

    def describe(self, fact: str, foil: str) -> str:
        """The question, and the function's name."""
        return f"{super().describe(fact, foil)} ({self.name})"


_OURS = (Plain(), Mean(), Max(), Weighted(), Probability(), Loss())
_REGISTERED: Registry[Contrast] = Registry("contrast", ((each.name, each) for each in _OURS))


contrasts = _REGISTERED.names


def register_contrast(name: str, contrast: Contrast | ContrastFunction) -> None:
    """Make a contrast known by name, everywhere a contrast can be named.

    Args:
        name: The name; it must be new.
        contrast: A `Contrast`, or a function of (logits (N, C), fact (N,), foils (N, C) bool) that returns (N,).

    Raises:
        InputError: If the name is taken, or it is neither.

    Example:
        >>> register_contrast("squared gap", lambda y, t, S: (y.gather(1, t[:, None])[:, 0] ** 2))
    """
    _REGISTERED.add(name, contrast if isinstance(contrast, Contrast) else FunctionContrast(_function(contrast), name))


def get_contrast(contrast: str | Contrast | ContrastFunction) -> Contrast:
    """A name, a contrast or a function, as a contrast.

    Raises:
        InputError: If the name is not registered, the object is no contrast, or the function has the name of another.
    """
    if isinstance(contrast, Contrast):
        return contrast
    if isinstance(contrast, str):
        return _REGISTERED.find(contrast)
    made = FunctionContrast(_function(contrast))
    known = _REGISTERED.get(made.name, made)
    if not isinstance(known, FunctionContrast) or known.function is not contrast:
        raise InputError(f"a contrast named {made.name!r} exists already; give the function another name")
    return made


def _function(given: object) -> ContrastFunction:
    if callable(given) and not isinstance(given, type):
        return given
    raise InputError(f"a contrast is a name, a Contrast or a function, not {type_name(given)}")


def margin(logits: Tensor, target: Tensor, others: Tensor | None = None) -> Tensor:
    """By how much a class leads the best of the others: the `max` contrast of a class that need not be the fact.

    Args:
        logits: (..., C) class scores.
        target: (...) class indices.
        others: (..., C) bool, the classes that it is compared with; None: all others.

    Returns:
        (...), in logits; negative where one of them is ahead.
    """
    own = target.unsqueeze(-1)
    compared = logits.scatter(-1, own, -torch.inf) if others is None else logits.masked_fill(~others, -torch.inf)
    return logits.gather(-1, own).squeeze(-1) - compared.amax(-1)


def rival(logits: Tensor, target: Tensor) -> Tensor:
    """The likeliest class but the target: (..., C) and (...) to (...)."""
    return logits.scatter(-1, target.unsqueeze(-1), -torch.inf).argmax(-1)


# --------------------------------------------------------------------------------------------- in use
@dataclass(frozen=True)
class Target:
    """A contrast applied to a question about samples whose logits are known: what attribution methods work from.

    Attributes:
        logits: (N, C) at the explained inputs.
        question: Facts and foils.
        contrast: How they are weighed.
    """

    logits: Tensor
    question: Question
    contrast: Contrast

    @property
    def seeds(self) -> Tensor:
        """(N, Q, C): derivative of the contrast with respect to the logits, at the explained inputs."""
        return self.contrast.seed(self.logits, self.question)

    def scalar(self, logits: Tensor, foil_weights: FoilWeights = "frozen") -> Tensor:
        """The contrast at other logits of the same samples.

        Args:
            logits: (..., N, C), e.g. of altered inputs.
            foil_weights: "frozen": linear in the logits, the weights of the foils held at the explained input (the
                paper's eq. 1); "live": re-evaluated at every point.

        Returns:
            (..., N, Q).
        """
        linear = self.question.single and type(self.contrast).scalar is Difference.scalar
        if linear or foil_weights == "live":
            return self.contrast.scalar(logits, self.question)
        return torch.einsum("...nc,nqc->...nq", logits, self.seeds)


def odds(logits: Tensor, fact: Tensor) -> Tensor:
    """The log-odds of the fact, the `weighted` contrast: (..., classes), (...) to (...)."""
    asked = Question.against_all(fact.flatten(), logits.shape[-1])
    return Weighted().scalar(logits.flatten(0, -2), asked).view(fact.shape)
