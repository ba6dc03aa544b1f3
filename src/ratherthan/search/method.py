"""What every search is, what it is asked, what it answers, and the names searches are registered under."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.contrast import margin, resolve
from ratherthan.errors import InputError
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.progress import Progress, reporter
from ratherthan.registry import Classes
from ratherthan.result import Result, Shape
from ratherthan.search.solver import Ends, Report, Status
from ratherthan.settings import Settings
from ratherthan.verbs import Samples

if TYPE_CHECKING:
    from pandas import DataFrame

ANY = -1
"""The foil "any other class than the fact"."""
_AT_ONCE = 256  # images of a fresh pass
_CLAIMS = (Status.FOUND, Status.NOTHING_NEEDED)  # what a fresh pass has to confirm


# --------------------------------------------------------------------------------------------- what is asked
@dataclass(eq=False)
class SearchQuestion:
    """What is asked about a batch of N images: K = N Q questions, those of an image beside each other.

    Attributes:
        model: The network.
        images: (N, C, H, W) in image space.
        fact: (N, [Q]) class indices.
        foil: (N, [Q]) class indices, -1 for any other class; where it is the fact there is nothing to search. None: the
            fact is to be kept, for pertinent positives.
        positions: (N) numbers of the images, which random numbers depend on.
        report: To be told how far the search is.
        axis: "foil" where several foils were asked for, and Q is there.
        names: What to call the images.
        evaluations: How many images `look` has shown to the network.
        shared: What a method wants to know again in the other batches of a call; it depends on none of the images.
        questions: Q, how many there are about each image.
        rows: (K,) the number of each question.
        image: (K,) the number of its image.
        asked: (K, C, H, W) its image.
        facts: (K,) its fact.
        foils: (K,) its foil, -1 for any other class.
        target: (K,) the class that is to win, -1 for any but the fact.
        same: The questions whose foil is the fact, by number, and what is answered: status and reason.
    """

    model: Model
    images: Tensor
    fact: Tensor
    foil: Tensor | None
    positions: Sequence[int]
    report: Report = lambda share: None
    axis: Literal["foil"] | None = None
    names: tuple[str, ...] = ()
    evaluations: int = field(default=0, init=False)
    shared: dict[str, Any] = field(default_factory=dict)
    _reached: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.questions = 1 if self.axis is None else self.fact.shape[1]
        self.facts = self.fact.flatten()
        self.foils = torch.full_like(self.facts, ANY) if self.foil is None else self.foil.flatten()
        self.target = self.facts if self.foil is None else self.foils
        self.rows = torch.arange(len(self.facts), device=self.facts.device)
        self.image = self.rows // self.questions
        self.asked = self.images[self.image]
        end = Status.FOIL_EQUALS_FACT, "foil and fact are the same class: nothing would have to change"
        self.same = dict.fromkeys(self.rows[self.facts == self.foils].tolist(), end)

    @cached_property
    def logits(self) -> Tensor:
        """(N, classes) of the images."""
        return self.fresh(self.images)

    def look(self, images: Tensor) -> Tensor:
        """Logits (M, classes) of images (M, C, H, W), which count as evaluations; differentiable."""
        self.evaluations += len(images)
        logits = self.model.logits(images)
        if images.requires_grad and torch.is_grad_enabled() and not self._reached:
            # once: without a gradient, an objective that also moves the images would go on in vain
            self._reached = torch.autograd.grad(logits.sum(), images, retain_graph=True) != ()
        return logits

    @torch.no_grad()
    def fresh(self, images: Tensor) -> Tensor:
        """Logits (..., classes) of images (..., C, H, W), by a pass of their own that is not counted."""
        lead = images.shape[: images.ndim - self.images.ndim + 1]
        flat = images.reshape(-1, *images.shape[len(lead) :])
        logits = torch.cat([self.model.logits(part) for part in torch.split(flat, _AT_ONCE)])
        return logits.view(*lead, -1)

    def reached(
        self, logits: Tensor, rows: Tensor | slice = slice(None), kappa: float = 0.0, slack: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """By how many logits answers miss what is asked for, and whether they are some, (M, ...) each; a tie is none.

        Args:
            logits: (M, ..., classes).
            rows: (M,) numbers of their questions.
            kappa: By how much the foil, or the fact where it is to be kept, is to lead.
            slack: How much of that may be missing.
        """
        fact, target = (each[rows].view(-1, *[1] * (logits.ndim - 2)) for each in (self.facts, self.target))
        ahead = lead(logits, fact.expand(logits.shape[:-1]), target.expand(logits.shape[:-1]))
        return (kappa - ahead).clamp_min(0), (ahead >= kappa - slack) & (ahead > 0)

    def by_question(self, values: Any) -> Any:
        """What belongs to K questions, a tensor or array (K, ...), as results have it: (N, [Q], ...)."""
        return values if self.axis is None else values.reshape(-1, self.questions, *values.shape[1:])


def lead(logits: Tensor, fact: Tensor, foil: Tensor) -> Tensor:
    """By how many logits the foil leads all other classes; where it is -1, the best other class the fact.

    Args:
        logits: (..., classes).
        fact: (...) class indices.
        foil: (...) class indices or -1.

    Returns:
        (...), negative while it is not reached.
    """
    anywhere = foil == ANY
    ahead = margin(logits, torch.where(anywhere, fact, foil))
    return torch.where(anywhere, -ahead, ahead)


# --------------------------------------------------------------------------------------------- what is answered
@dataclass(frozen=True, eq=False, kw_only=True)
class SearchResult(Result):
    """What a search found, R answers to each question, best first (one, unless a method has restarts).

    Attributes:
        foil: (N, [Q]) class indices, -1 for any class but the fact; None where the fact is kept.
        examples: (N, [Q], R, C, H, W): the answers; where none was found, the nearest miss.
        example_logits: (N, [Q], R, classes), from a fresh pass over the examples, the one that verified them.
        statuses: N lists, [of Q,] of R: how each search ended, the values of `Status`.
        reasons: The same in words.
        evaluations: Images that the network looked at during the search.
        interrupted: Whether Ctrl-C ended it.
    """

    foil: Annotated[Tensor, Shape("N Q")] | None = None
    examples: Annotated[Tensor, Shape("N Q R *")]
    example_logits: Annotated[Tensor, Shape("N Q R K")]
    statuses: Annotated[list[Any], Shape("N Q R")]
    reasons: Annotated[list[Any], Shape("N Q R")]
    evaluations: int = 0
    interrupted: bool = False

    @property
    def example(self) -> Tensor:
        """(N, [Q], C, H, W): the best answers, or nearest misses; see `found`."""
        return self.examples.select(self.fact.ndim, 0)

    @property
    def found(self) -> Tensor:
        """(N, [Q]) bool: whether the best answer is one, in a fresh pass."""
        return self.found_each[..., 0]

    @property
    def found_each(self) -> Tensor:
        """(N, [Q], R) bool, the same for all answers."""
        return torch.tensor(np.equal(self.statuses, str(Status.FOUND)), device=self.fact.device)

    @property
    def status(self) -> list[Any]:
        """N, or N lists of Q: how the best search ended."""
        return cast(list[Any], np.array(self.statuses)[..., 0].tolist())

    @property
    def reason(self) -> list[Any]:
        """The same in words."""
        return cast(list[Any], np.array(self.reasons)[..., 0].tolist())

    @property
    def difference(self) -> Tensor:
        """(N, [Q], C, H, W): what is added (positive) and removed."""
        return self.example - (self.images if self.axis is None else self.images.unsqueeze(1))

    def best(self, values: Any, sample: int, q: int = 0) -> Any:
        """What belongs to one question: a tensor's row, or that of a list."""
        return values[sample] if self.axis is None else values[sample][q]

    def to_frame(self) -> DataFrame:
        """One row per image, foil and answer."""
        import pandas as pd

        places = product(range(len(self)), range(self.questions), range(self.examples.shape[self.fact.ndim]))
        return pd.DataFrame([self._row(*each) for each in places])

    def _row(self, i: int, q: int, r: int) -> dict[str, Any]:
        fact, p = int(self.best(self.fact, i, q)), self.best(self.example_logits, i, q)[r].softmax(0)
        return {
            "sample": self.names[i], "fact": self.class_label(fact), "method": self.method,
            "status": self.best(self.statuses, i, q)[r], "reason": self.best(self.reasons, i, q)[r],
            "p_fact": p[fact].item(), "top": self.class_label(int(p.argmax())),
        }  # fmt: skip

    def _bars(self, sample: int) -> tuple[tuple[str, float], ...]:
        """The likeliest classes, for a panel."""
        p = self.probabilities()[sample]
        return tuple((self.class_label(k), p[k].item()) for k in p.topk(min(6, len(p))).indices.tolist())

    def made_by(self) -> str:
        """The method, the manifold, and whether it was interrupted."""
        manifold = self.settings.get("manifold")
        return f"{self.method}{f' on {manifold}' if manifold else ''}{', interrupted' * self.interrupted}{self._fed}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method}, {int(self.found.sum())} of {self.found.numel()} found)"

    @staticmethod
    def fields_of(how: SearchMethod, question: SearchQuestion) -> dict[str, Any]:
        """The fields that a question answers by itself; the other ones are the method's."""
        asked = ("images", "logits", "fact", "foil", "axis", "names", "evaluations")
        made = {"method": how.name, "settings": how.settings(), "output": question.model.output.name}
        inputs = question.model.inputs
        seen = {"preprocessing": inputs.describe(), "tokens": inputs.read(question.images), "shown": inputs.show}
        names = {"class_names": question.model.class_names, "model": question.model.name}
        return {key: getattr(question, key) for key in asked} | made | seen | names

    @classmethod
    def answering(cls, how: SearchMethod, question: SearchQuestion, ends: Ends, holds: Tensor, **more: Any) -> Self:
        """The result of a method, whose claims stand where a fresh pass confirms them.

        Args:
            how: The method.
            question: K questions.
            ends: K lists of R: how each search ended, and why.
            holds: (K, R) bool: whether a fresh pass confirms it.
            **more: Further fields.
        """
        refuted = Status.NOT_FOUND, "what seemed an answer is none in a fresh pass"
        pairs = (zip(*row, strict=True) for row in zip(ends, holds.tolist(), strict=True))
        confirmed = [[refuted if end[0] in _CLAIMS and not held else end for end, held in row] for row in pairs]
        said = question.by_question(np.array(confirmed))
        told = {"statuses": said[..., 0].tolist(), "reasons": said[..., 1].tolist()}
        return cls(**cls.fields_of(how, question), **told, **more)

    @classmethod
    def sought(
        cls, how: SearchMethod, model: Model | nn.Module, *given: Any, batch_size: int, progress: Progress
    ) -> Self:
        """Ask a method about all images, batch after batch; Ctrl-C keeps what is done.

        Args:
            how: The method.
            model: The network.
            *given: Images, fact, foil and names, see `Samples.of`.
            batch_size: Searches at once.
            progress: Whom to tell.
        """
        model = Model.wrap(model)
        how, (images, fact, foil, names) = how.prepared(model), given
        samples = Samples.of(model, images, fact, how.default_foil if foil is None else foil, names)
        if not model.output.of_classes:
            raise InputError(f"this model gives a value; a {cls.kind} is about classes")
        does = sorted(each for each, kind in how.family().items() if kind.takes == model.inputs.name)
        model.check_takes(how.name, how.takes, f": use method={does[0]!r}" if does else "")
        if how.takes == "images" and samples.images.ndim != 4:
            raise InputError(f"a search alters images (N, C, H, W), not what has shape {tuple(samples.images.shape)}")
        for i, image in enumerate(samples.images if how.takes == "images" else ()):
            if image.min() < -1e-4 or image.max() > 1 + 1e-4:
                raise InputError(f"image {i} ranges over [{image.min():.3g}, {image.max():.3g}]: hand them in [0, 1]")
        how.check(model, samples.images)
        watched, parts, shared = nn.ModuleList([model.module, *how.modules()]), list[Self](), dict[str, Any]()
        with preserve_state(watched), model.differentiated(), reporter(progress, "searching") as report:
            if isinstance(how, CounterfactualMethod) and batch_size >= 1:
                # how many foils there are shows only when they are resolved
                batch_size = max(1, batch_size // (_question(model, samples[:1], how).questions * how.restarts))
            try:
                for batch in samples.batches(1 if model.output.one_by_one else batch_size, report):
                    question = _question(model, batch, how)
                    question.report = batch.sharing(report, samples.positions.stop)
                    if not model.output.one_by_one:  # else the network is asked about each image anew
                        question.shared = shared
                    parts.append(cast(Self, how.search(question)))
                    if parts[-1].interrupted:
                        break
            except KeyboardInterrupt:
                if not parts:
                    raise
                parts[-1] = replace(parts[-1], interrupted=True)
        found = cls.joined(parts)
        return found.labelled(samples.labels[: len(found)])


# --------------------------------------------------------------------------------------------- who answers
class SearchMethod(Settings, ABC):
    """A way to search. A subclass is a frozen dataclass whose fields are its settings.

    Attributes:
        name: What it is registered under.
        default_foil: The foil where none is asked for; None: the fact is kept.
        takes: What kind of input, the name of an `Inputs`.
    """

    default_foil: ClassVar[Any] = None
    takes: ClassVar[str] = "images"

    @classmethod
    def family(cls) -> dict[str, type[SearchMethod]]:
        """All methods that answer the same kind of question, by name."""
        return {}

    def prepared(self, model: Model) -> Self:
        """The method with what it lacks filled in from the model, e.g. the manifold that a zoo model names."""
        return self

    def check(self, model: Model, images: Tensor) -> None:
        """Refuse a model or images, (N, C, H, W), that it cannot work on, before any search begins.

        Raises:
            RatherThanError: If so.
        """

    def modules(self) -> list[nn.Module]:
        """The networks that it runs beside the model, those of its settings; they are in evaluation mode meanwhile."""
        given = (value if isinstance(value, (list, tuple)) else [value] for value in vars(self).values())
        found = [
            each if isinstance(each, nn.Module) else getattr(each, "module", None) for some in given for each in some
        ]
        return [each for each in found if isinstance(each, nn.Module)]

    @abstractmethod
    def search(self, question: SearchQuestion) -> SearchResult:
        """Answer all questions about a batch of images at once; `of` of the two results verifies what is found."""


class CounterfactualMethod(SearchMethod):
    """A way to find what would have to change.

    Attributes:
        any_foil: Whether it takes -1 for a foil: any class but the fact.
        restarts: Answers to each question, R.
    """

    default_foil: ClassVar[Any] = "runner-up"
    any_foil: ClassVar[bool] = False
    restarts: int = 1

    @classmethod
    def family(cls) -> dict[str, type[SearchMethod]]:
        """All that find what would have to change."""
        return dict(COUNTERFACTUAL_METHODS.items())


class PertinentPositiveMethod(SearchMethod):
    """A way to find a part that is enough."""

    @classmethod
    def family(cls) -> dict[str, type[SearchMethod]]:
        """All that find what is enough."""
        return dict(PERTINENT_POSITIVE_METHODS.items())


COUNTERFACTUAL_METHODS = Classes[CounterfactualMethod]("counterfactual method", CounterfactualMethod, "CDeepEx()")
register_counterfactual_method = COUNTERFACTUAL_METHODS.register
get_counterfactual_method = COUNTERFACTUAL_METHODS.make
counterfactual_methods = COUNTERFACTUAL_METHODS.names
PERTINENT_POSITIVE_METHODS = Classes[PertinentPositiveMethod](
    "method of pertinent positives", PertinentPositiveMethod, "CEMMAFPositive()"
)
register_pertinent_positive_method = PERTINENT_POSITIVE_METHODS.register
get_pertinent_positive_method = PERTINENT_POSITIVE_METHODS.make
pertinent_positive_methods = PERTINENT_POSITIVE_METHODS.names


# --------------------------------------------------------------------------------------------- the loop of both verbs
def _question(model: Model, batch: Samples, how: SearchMethod) -> SearchQuestion:
    model = model.about(batch.positions)
    with torch.no_grad():
        logits = model.logits(batch.images)
    model.check(logits, batch.images, batch.start)
    model.check_exclusive(how.name)
    asked = resolve(logits, batch.fact, batch.foil, model.class_names)
    if asked.axis == "fact":
        raise InputError("a search starts from one class: give one fact, or one per image; foils may be a list")
    foil = None
    if isinstance(how, CounterfactualMethod):
        foil = asked.foil
        if (foil < 0).any() and not (how.any_foil and asked.sets is None):
            words = "'runner-up', a class, a list, 'each'" + " or 'any'" * how.any_foil
            raise InputError(f"{how.name} moves towards one class: ask with {words}")
    fact = asked.fact
    if asked.axis is None:
        fact, foil = fact.squeeze(1), None if foil is None else foil.squeeze(1)
    question = SearchQuestion(model, batch.images, fact, foil, batch.positions, axis=asked.axis, names=batch.names)
    question.logits = logits
    return question
