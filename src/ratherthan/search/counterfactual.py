"""The verb `counterfactual`, WHAT would have to change, and what it returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.baselines import SIDE, blur
from ratherthan.contrast import rival
from ratherthan.errors import see
from ratherthan.inputs.text import words_of
from ratherthan.model import Model
from ratherthan.progress import Progress
from ratherthan.registry import unique_name
from ratherthan.render.case import Case, path, swaps
from ratherthan.render.figure import figure
from ratherthan.render.panel import Heatmap, Panel
from ratherthan.render.searches import Trajectory, draw_probabilities, draw_trajectories
from ratherthan.result import Shape, laid_over
from ratherthan.search.method import CounterfactualMethod, SearchQuestion, SearchResult, get_counterfactual_method
from ratherthan.search.solver import Ends, Status
from ratherthan.words import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAMES = 16
"""Points of a path that are kept, the image and the answer among them."""
_SAME = 0.02  # root mean square difference of pixels below which two answers are one
_GROWN = 0.1  # an attribute that grew by this much is named
_TINY = 0.01  # share of an image's norm below which a change is not seen
_SLIGHT = 0.5  # pixels, of a blur
_LEFT = 0.5  # share of a change that rounding and a slight blur leave of what is no adversarial example


@dataclass(frozen=True, eq=False, kw_only=True)
class Counterfactual(SearchResult):
    """What would have to change for the foil; see `SearchResult` and `Result` for the other fields.

    N images, Q foils each where they were asked for as an axis, R answers to each question.

    Attributes:
        distance: (N, [Q], R): how far each answer is, in the measure that the method minimises; |z - z0| on a manifold.
        violation: (N, [Q], R): by how much the worst constraint is missed, in logits.
        survives: (N, [Q], R): of what an answer moved the foil's logit against the fact's, the share that is left after
            rounding to 8 bits or after a blur of half a pixel, whichever leaves less; NaN where it moved none of it.
            None of texts.
        path: (N, [Q], T, C, H, W): from the image to the best answer.
        path_logits: (N, [Q], T, classes).
        reconstruction: (N, C, H, W): what the manifold makes of the images; None without one.
        error: (N,): root mean square error of the reconstruction's pixels.
        class_kept: (N,) bool: whether the reconstruction has the image's class.
        latents: (N, [Q], R, ...): where the answers lie on the manifold.
        attributes_before: (N, A): attributes of the images; None for a method that knows none.
        attributes: (N, [Q], R, A): attributes of the answers.
        attribute_names: Names of the A attributes.
        attribute_thresholds: From which increase on each counts as added; empty: 0.1 for all.
        changes: Of texts, N lists, [of Q,] of [number of a word, the word, what stands there instead or None].
    """

    kind: ClassVar[str] = "counterfactual"
    asks: ClassVar[str] = "What would have to change?"

    foil: Annotated[Tensor, Shape("N Q")]
    distance: Annotated[Tensor, Shape("N Q R")]
    violation: Annotated[Tensor, Shape("N Q R")]
    survives: Annotated[Tensor, Shape("N Q R")] | None = None
    path: Annotated[Tensor, Shape("N Q T *")]
    path_logits: Annotated[Tensor, Shape("N Q T K")]
    reconstruction: Annotated[Tensor, Shape("N *")] | None = None
    error: Annotated[Tensor, Shape("N")] | None = None
    class_kept: Annotated[Tensor, Shape("N")] | None = None
    latents: Annotated[Tensor, Shape("N Q R ...")] | None = None
    attributes_before: Annotated[Tensor, Shape("N A")] | None = None
    attributes: Annotated[Tensor, Shape("N Q R A")] | None = None
    attribute_names: Annotated[tuple[str, ...], Shape("A")] = ()
    attribute_thresholds: tuple[float, ...] = ()
    changes: list[Any] | None = None

    @classmethod
    def of(
        cls,
        how: CounterfactualMethod,
        question: SearchQuestion,
        examples: Tensor,
        ends: Ends,
        distance: Tensor,
        *,
        check: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        way: Callable[[Tensor], Tensor] | None = None,
        answers: dict[str, Tensor] | None = None,
        **more: Any,
    ) -> Counterfactual:
        """Verify what a method found by a fresh pass, rank it, and show the way to the best.

        Args:
            how: The method.
            question: K questions.
            examples: (K, R, C, H, W).
            ends: K lists of R: how each search ended, and why.
            distance: (K, R): how far they are.
            check: Logits (K, R, classes) to by how much the worst constraint is missed, and whether an answer holds,
                (K, R) each; None: the foil is to be the likeliest class (for "any", the fact is not to be).
            way: Which of the R is the best, (K,), to the FRAMES - 2 pictures between the image and it,
                (K, T, C, H, W); None: evenly from one to the other.
            answers: Fields with an entry for each answer, (K, R, ...).
            **more: Further fields.

        Returns:
            The answers, found ones first, by distance, then misses by violation.
        """
        examples = examples.clamp(0, 1)
        logits = question.fresh(examples)
        violation, holds = (check or question.reached)(logits)
        claimed = [[status is Status.FOUND for status, _ in row] for row in ends]
        found = holds & torch.tensor(claimed, device=holds.device)
        order = torch.where(found, distance, violation).argsort(dim=1, stable=True)
        order = order.gather(1, (~found).gather(1, order).byte().argsort(dim=1, stable=True))
        ranked_ends = [[row[r] for r in best_first] for row, best_first in zip(ends, order.tolist(), strict=True)]
        at = torch.arange(len(order), device=order.device).unsqueeze(1), order
        each = {"examples": examples, "example_logits": logits, "distance": distance, "violation": violation}
        each["survives"] = _survives(question, examples, logits)
        ranked = {key: values[at] for key, values in (each | (answers or {})).items()}
        best, best_logits = ranked["examples"][:, :1], ranked["example_logits"][:, :1]
        evenly = torch.linspace(0, 1, FRAMES)[1:-1].to(best).view(1, -1, 1, 1, 1)
        start = question.asked.unsqueeze(1)
        between = torch.lerp(start, best, evenly) if way is None else way(order[:, 0]).clamp(0, 1)
        seen = [question.logits[question.image].unsqueeze(1), question.fresh(between), best_logits]
        path = {"path": torch.cat([start, between, best], 1), "path_logits": torch.cat(seen, 1)}
        more |= {key: question.by_question(values) for key, values in (ranked | path).items()}
        return cls.answering(how, question, ranked_ends, holds[at], **more)

    # ----------------------------------------------------------------------------------------- the answers
    @property
    def reached(self) -> Tensor:
        """(N, [Q], R): the foil; where any class would do, the likeliest other than the fact."""
        fact, foil = (each.unsqueeze(-1).expand(self.distance.shape) for each in (self.fact, self.foil))
        return torch.where(foil < 0, rival(self.example_logits, fact), foil)

    @cached_property
    def adversarial(self) -> Tensor:
        """(N, [Q], R) bool: answers found that explain nothing: no eye sees the change, or a slight blur undoes it.

        That is, |x' - x|_2 < 0.01 |x|_2, or less than half of it `survives`.
        """
        if self.survives is None:
            return torch.zeros_like(self.found_each)
        start = self.images.view(len(self), *[1] * self.fact.ndim, *self.images.shape[1:])
        size, change = start.flatten(-3).norm(dim=-1), (self.examples - start).flatten(-3).norm(dim=-1)
        hidden: Tensor = (change < _TINY * size) | (self.survives < _LEFT)
        return self.found_each & hidden & ~self.survives.isnan()  # the foil may have led before: nothing had to change

    def distinct(self) -> Tensor:
        """(N, [Q], R) bool: answers found that are no copy of a better one."""
        kept, flat = self.found_each.clone(), self.examples.flatten(-3)
        for later in range(1, kept.shape[-1]):
            apart = (flat[..., later : later + 1, :] - flat[..., :later, :]).square().mean(-1).sqrt() > _SAME
            kept[..., later] &= (apart | ~kept[..., :later]).all(-1)
        return kept

    def path_probabilities(self) -> Tensor:
        """(N, [Q], T, classes): class probabilities on the way (CDeepEx, Fig. 5b)."""
        return self.path_logits.softmax(-1)

    # ----------------------------------------------------------------------------------------- in words
    def question(self, sample: int, q: int = 0) -> str:
        """The question in words."""
        fact, foil = int(self.best(self.fact, sample, q)), int(self.best(self.foil, sample, q))
        return f"Why {self.class_label(fact)}, rather than {self._foil(foil, 'anything else')}?"

    def text(self, sample: int, q: int = 0) -> str:
        """One line about one question."""
        asked, status = self.question(sample, q), self.best(self.status, sample, q)
        if status != Status.FOUND:
            return f"{asked} {status}: {self.best(self.reason, sample, q)}."
        fact, foil = int(self.best(self.fact, sample, q)), int(self.best(self.reached, sample, q)[0])
        p = self.best(self.example_logits, sample, q)[0].softmax(0)
        grown = ", ".join(f"+ {name}" for name in self.added(sample, q))
        change = self.best(self.difference, sample, q) if self.changes is None else torch.zeros(1)
        added, removed = change.clamp_min(0).mean().item(), (-change).clamp_min(0).mean().item()
        others = int(self.best(self.distinct(), sample, q).sum()) - 1
        more = f"; {others} other answer{'s' * (others > 1)}" if others else ""
        moved = [f"{sign}{share:.2%}" for sign, share in (("+", added), ("-", removed)) if share >= 0.00005]
        how = f"{grown}: then" if grown else f"Brightness {', '.join(moved) or 'hardly changed'}, and"
        if self.changes is not None:
            how = f"{self._said(self.best(self.changes, sample, q))}: then"
        if self.best(self.adversarial, sample, q)[0]:
            more += "; this is an adversarial example, hardly an explanation"
        sure = p[foil] > 0.5 and p[foil] > 1.1 * p[fact]
        would = f"it {'would' if sure else 'could as well'} be {self.class_label(foil)}"
        odds = ", ".join(f"{self.class_label(each)} {percent(p[each].item())}" for each in (fact, foil))
        return f"{asked} {how} {would} ({odds}){more}."

    @staticmethod
    def _said(changes: list[Any]) -> str:
        told = (f"without {word!r}" if instead is None else f"{instead!r} for {word!r}" for _, word, instead in changes)
        return ", ".join(told).capitalize()

    def added(self, sample: int, q: int = 0) -> list[str]:
        """Names of the attributes that the best answer has more of, the most grown first, each once."""
        if self.attributes is None or self.attributes_before is None:
            return []
        growth = self.best(self.attributes, sample, q)[0] - self.attributes_before[sample]
        order = growth.argsort(descending=True, stable=True).tolist()
        least = self.attribute_thresholds or (_GROWN,) * len(growth)
        return list(dict.fromkeys(self.attribute_names[k] for k in order if growth[k] >= least[k]))

    def _row(self, i: int, q: int, r: int) -> dict[str, Any]:
        foil, reached = int(self.best(self.foil, i, q)), int(self.best(self.reached, i, q)[r])
        change = self.best(self.examples, i, q)[r] - self.images[i] if self.changes is None else torch.zeros(1)
        row = super()._row(i, q, r) | {
            "foil": self._foil(foil, "any"), "answer": r,
            "p_foil": self.best(self.example_logits, i, q)[r].softmax(0)[reached].item(),
            "distance": self.best(self.distance, i, q)[r].item(),
            "violation": self.best(self.violation, i, q)[r].item(), "l1": change.abs().sum().item(),
            "l2": change.square().sum().sqrt().item(),
        }  # fmt: skip
        if self.survives is not None:
            row |= {
                "survives": self.best(self.survives, i, q)[r].item(),
                "adversarial": bool(self.best(self.adversarial, i, q)[r]),
            }
        if self.error is not None and self.class_kept is not None:
            row |= {"inversion_error": self.error[i].item(), "class_kept": bool(self.class_kept[i])}
        if self.attributes is not None:
            for name, value in zip(self.attribute_names, self.best(self.attributes, i, q)[r].tolist(), strict=True):
                row[unique_name(name, row.__contains__, "{} ({})")] = value
        return row | {"distinct": bool(self.best(self.distinct(), i, q)[r]), "reached": self.class_label(reached)}

    def _foil(self, foil: int, any_other: str) -> str:
        return self.class_label(foil) if foil >= 0 else any_other

    # ----------------------------------------------------------------------------------------- showing it
    def panels(self) -> list[Panel]:
        """Of texts: the words that change, a map for each foil."""
        return [self._panel(i) for i in range(len(self))]

    def _panel(self, i: int) -> Panel:
        (image, owner), views = self.drawn(i), list[Heatmap]()
        words = words_of(self.tokens[i])
        for q in range(self.questions):
            changed = [number for number, _, _ in self.best(self.changes, i, q)]
            values = laid_over(-np.isin(words, changed).astype(float), owner)
            foil = self._foil(int(self.best(self.foil, i, q)), "anything else")
            views.append(Heatmap(foil, self.method, values, self.text(i, q)))
        fact = self.class_label(int(self.best(self.fact, i, 0)))
        return Panel(self.title(i), image, fact, self._bars(i), tuple(views), ("would have to change", ""), paper=True)

    def trajectories(self) -> list[Trajectory]:
        """What the rendering draws: a film strip and the curves of each question."""
        return [self._trajectory(i, q) for i in range(len(self)) for q in range(self.questions)]

    def _trajectory(self, i: int, q: int) -> Trajectory:
        p = self.best(self.path_logits, i, q).softmax(1)
        fact, foil = int(self.best(self.fact, i, q)), int(self.best(self.reached, i, q)[0])
        others = p.index_fill(1, torch.tensor([fact, foil], device=p.device), -1).amax(1).clamp_min(0)
        return Trajectory(
            name=self.title(i), question=self.question(i, q), status=self.best(self.status, i, q),
            text=self.text(i, q).removeprefix(self.question(i, q)).strip(), image=self.picture(self.images[i]),
            reconstruction=None if self.reconstruction is None else self.picture(self.reconstruction[i]),
            path=[self.picture(each) for each in self.best(self.path, i, q)],
            answer=self.picture(self.best(self.example, i, q)),
            fact=(self.class_label(fact), p[:, fact].tolist()), foil=(self.class_label(foil), p[:, foil].tolist()),
            others=others.tolist(),
        )  # fmt: skip

    def plot(self, frames: int = 4) -> Figure:
        """A film strip per question: image, reconstruction, the way, the answer, what it adds and removes, the curves.

        Of a text, the words that change.

        Args:
            frames: How many pictures of the way.
        """
        if self.changes is not None:
            return figure(self.panels())
        return draw_trajectories(self.trajectories(), frames)

    def plot_path(self, sample: int, q: int = 0) -> Figure:
        """Class probabilities along the way (CDeepEx, Fig. 5b): fact, foil and the likeliest other."""
        return draw_probabilities(self._trajectory(sample, q))

    def cases(self) -> list[Case]:
        """What a page shows: a case per sample, with the way to each foil."""
        return [self._case(i) for i in range(len(self))]

    def _case(self, i: int) -> Case:
        found = [self._found(i, q) for q in range(self.questions)]
        fact = self.class_label(int(self.best(self.fact, i, 0)))
        return Case(fact=fact, bars=self._bars(i), change=found, **self.about(i))

    def _found(self, i: int, q: int) -> dict[str, Any]:
        if self.changes is not None:
            text = self.text(i, q).removeprefix(self.question(i, q)).strip()
            changed = [(number, instead) for number, _, instead in self.best(self.changes, i, q)]
            return swaps(self.question(i, q), text, self.best(self.status, i, q), changed)
        shown = self._trajectory(i, q)
        odds = {"fact": shown.fact, "foil": shown.foil, "other": ("likeliest other", shown.others)}
        pictures = list(shown.path) if shown.reconstruction is None else [shown.reconstruction, *shown.path[1:]]
        return path(shown.question, shown.text, shown.status, pictures, shown.image, shown.answer, odds)


def counterfactual(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    method: str | CounterfactualMethod = "cdeepex",
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: Progress = None,
) -> Counterfactual:
    """Find the nearest image that the network would, or could as well, call the foil.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays; or a data set.
        fact: The class to move away from; None: the prediction.
        foil: The class to move towards: "runner-up", an index or a name; "each", "topK" or a list: each in turn; "any"
            other class, where the method can. None: what the method is usually asked, mostly "runner-up".
        method: A registered name, for a zoo model that names a manifold; or an object, e.g. `CDeepEx(manifold)`.
        names: What to call the images; None: their paths, or their names in a data set, or numbers.
        batch_size: Searches (images x foils x restarts) at once; it changes no answer. 64 fit the caches of a processor
            (256 took three times as long); a GPU takes more.
        progress: True draws a bar; a callable is called with (images done, images in all) now and then.

    Returns:
        The answers, each verified by a fresh pass, or the nearest miss and why there is none. Once an image is done or
        a search has begun, Ctrl-C does not raise: what was found until then comes back, marked.

    Raises:
        InputError: If an argument cannot be used, or an image lies outside [0, 1].
        ModelError: If the manifold makes images of another shape.

    Example:
        >>> how = counterfactual(load("zoo:mnist"), images, foil=8)
        >>> how.example, how.found, how.reason
    """
    how, given = get_counterfactual_method(method), (images, fact, foil, names)
    found = Counterfactual.sought(how, model, *given, batch_size=batch_size, progress=progress)
    if number := int(found.adversarial[..., 0].sum()):
        what = (
            f"{number} of {int(found.found.sum())} answers are adversarial examples, hardly explanations: the change is"
        )
        remedy = see("adversarial-examples-hardly-explanations")
        warnings.warn(f"{what} tiny, or a slight blur undoes it{remedy}", stacklevel=2)
    return found


def _survives(question: SearchQuestion, examples: Tensor, logits: Tensor) -> Tensor:
    """See `Counterfactual.survives`: (K, R), of examples (K, R, C, H, W) and their logits (K, R, classes)."""
    fact, foil = (each.unsqueeze(1).expand(logits.shape[:2]) for each in (question.facts, question.foils))
    foil = torch.where(foil < 0, rival(logits, fact), foil).unsqueeze(2)

    def ahead(logits: Tensor) -> Tensor:
        return (logits.gather(2, foil) - logits.gather(2, fact.unsqueeze(2)))[..., 0]

    def moved(before: Tensor, after: Tensor) -> Tensor:
        return ahead(after) - ahead(before[question.image].unsqueeze(1).expand_as(after))

    sigma = _SLIGHT * SIDE / min(examples.shape[-2:])
    altered: tuple[Callable[[Tensor], Tensor], ...]
    altered = (lambda images: (255 * images).round() / 255, lambda images: blur(images, sigma))
    flat = examples.flatten(0, 1)
    left = [
        moved(question.fresh(alter(question.images)), question.fresh(alter(flat)).view_as(logits)) for alter in altered
    ]
    whole = moved(question.logits, logits)
    return (torch.stack(left) / torch.where(whole > 0, whole, torch.nan)).amin(0)
