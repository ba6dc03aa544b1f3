"""The verb `counterfactual`, WHAT would have to change, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ratherthan.contrast import resolve
from ratherthan.errors import InputError
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.registry import unique_name
from ratherthan.result import Result, class_label, picture, versions
from ratherthan.search.method import Answers, CounterfactualMethod, get_counterfactual_method
from ratherthan.search.solver import Status
from ratherthan.verbs import Samples
from ratherthan.words import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ratherthan.render import Trajectory

_SAME = 0.02  # root mean square difference of pixels below which two answers are one
_GROWN = 0.1  # an attribute that grew by this much is named


@dataclass(frozen=True, eq=False, kw_only=True)
class Counterfactual(Result):
    """What would have to change for the foil.

    N images, Q foils each (1 unless foils were asked for as an axis), R answers to each question, best first.

    Attributes:
        images: (N, C, H, W) in image space.
        examples: (N, Q, R, C, H, W): the answers; where none was found, the nearest miss.
        status: N x Q x R: how each search ended; the values of `Status`.
        reasons: The same in words.
        fact: (N, Q) class indices.
        foils: (N, Q) class indices; -1 for any class but the fact.
        logits: (N, classes) of the images.
        example_logits: (N, Q, R, classes), from a fresh pass over the examples.
        distance: (N, Q, R): how far each answer is, in the measure that the method minimises; |z - z0| on a manifold.
        violation: (N, Q, R): by how much the worst constraint is missed, in logits.
        path: (N, Q, T, C, H, W): from the image to the best answer.
        path_logits: (N, Q, T, classes).
        axis: Whether several foils were asked for.
        interrupted: Whether Ctrl-C ended the search.
        method: Its name.
        evaluations: Images that the network looked at for it.
        reconstruction: (N, C, H, W): what the manifold makes of the images; None without one.
        error: (N,): root mean square error of the reconstruction's pixels.
        class_kept: (N,) bool: whether the reconstruction has the image's class.
        latents: (N, Q, R, ...): where the answers lie on the manifold.
        attributes_before: (N, A): attributes of the images; None for a method that knows none.
        attributes: (N, Q, R, A): attributes of the answers.
        attribute_names: Names of the A attributes.
        attribute_thresholds: From which increase on each counts as added; empty: 0.1 for all.
        settings: The method's settings.
        class_names: Names of the classes, or None.
        names: (N) names of the images.
        versions: Versions of what computed it.
    """

    kind: ClassVar[str] = "counterfactual"

    images: Tensor
    examples: Tensor
    status: list[list[list[str]]]
    reasons: list[list[list[str]]]
    fact: Tensor
    foils: Tensor
    logits: Tensor
    example_logits: Tensor
    distance: Tensor
    violation: Tensor
    path: Tensor
    path_logits: Tensor
    axis: bool  # type: ignore[assignment]
    interrupted: bool
    method: str
    evaluations: int = 0
    reconstruction: Tensor | None = None
    error: Tensor | None = None
    class_kept: Tensor | None = None
    latents: Tensor | None = None
    attributes_before: Tensor | None = None
    attributes: Tensor | None = None
    attribute_names: tuple[str, ...] = ()
    attribute_thresholds: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    # ----------------------------------------------------------------------------------------- the best answers
    @property
    def example(self) -> Tensor:
        """(N, [Q,] C, H, W): the best answers, or nearest misses; see `found`."""
        return self._lead(self.examples[:, :, 0])

    @property
    def found(self) -> Tensor:
        """(N, [Q]) bool: whether the best answer meets every constraint in a fresh pass."""
        return self._lead(self.found_each[:, :, 0])

    @property
    def found_each(self) -> Tensor:
        """(N, Q, R) bool, the same for all answers."""
        found = [[[s == Status.FOUND for s in row] for row in rows] for rows in self.status]
        return torch.tensor(found, device=self.images.device)

    @property
    def reason(self) -> list[Any]:
        """N reasons, or N lists of Q: how the best search ended, in words."""
        rows = [
            [f"{s[0]}: {r[0]}" for s, r in zip(*pair, strict=True)]
            for pair in zip(self.status, self.reasons, strict=True)
        ]
        return rows if self.axis else [row[0] for row in rows]

    @property
    def difference(self) -> Tensor:
        """(N, [Q,] C, H, W): what is added (positive) and removed."""
        return self._lead(self.examples[:, :, 0] - self.images.unsqueeze(1))

    @property
    def foil(self) -> Tensor:
        """(N, [Q]) class indices."""
        return self._lead(self.foils)

    @property
    def reached(self) -> Tensor:
        """(N, Q, R): the foil; where any class would do, the likeliest other than the fact."""
        fact = self.fact.unsqueeze(2).unsqueeze(3).expand(*self.distance.shape, 1)
        likeliest = self.example_logits.scatter(3, fact, -torch.inf).argmax(3)
        return torch.where(self.foils.unsqueeze(2) < 0, likeliest, self.foils.unsqueeze(2))

    def distinct(self) -> Tensor:
        """(N, Q, R) bool: answers found that are no copy of a better one."""
        kept = self.found_each.clone()
        flat = self.examples.flatten(3)
        for later in range(1, kept.shape[2]):
            apart = (flat[:, :, later : later + 1] - flat[:, :, :later]).square().mean(3).sqrt() > _SAME
            kept[:, :, later] &= (apart | ~kept[:, :, :later]).all(2)
        return kept

    def path_probabilities(self) -> Tensor:
        """(N, [Q,] T, classes): class probabilities on the way (CDeepEx, Fig. 5b)."""
        return self._lead(self.path_logits.softmax(3))

    # ----------------------------------------------------------------------------------------- in words
    def question(self, sample: int, q: int = 0) -> str:
        """The question in words."""
        fact, foil = int(self.fact[sample, q]), int(self.foils[sample, q])
        return f"Why {self._class(fact)}, rather than {self._class(foil) if foil >= 0 else 'anything else'}?"

    def text(self, sample: int, q: int = 0) -> str:
        """One line about one question."""
        asked, status = self.question(sample, q), self.status[sample][q][0]
        if status != Status.FOUND:
            return f"{asked} {status}: {self.reasons[sample][q][0]}."
        fact, foil = int(self.fact[sample, q]), int(self.reached[sample, q, 0])
        p = self.example_logits[sample, q, 0].softmax(0)
        grown = ", ".join(f"+ {name}" for name in self.added(sample, q))
        change = self.examples[sample, q, 0] - self.images[sample]
        added, removed = change.clamp_min(0).mean().item(), (-change).clamp_min(0).mean().item()
        others = int(self.distinct()[sample, q].sum()) - 1
        more = f"; {others} other answer{'s' * (others > 1)}" if others else ""
        moved = [f"{sign}{share:.2%}" for sign, share in (("+", added), ("-", removed)) if share >= 0.00005]
        how = f"{grown}: then" if grown else f"Brightness {', '.join(moved) or 'hardly changed'}, and"
        sure = p[foil] > 0.5 and p[foil] > 1.1 * p[fact]
        would = f"it would be {self._class(foil)}" if sure else f"it could as well be {self._class(foil)}"
        odds = f"{percent(p[foil].item())} against {percent(p[fact].item())}"
        return f"{asked} {how} {would} ({odds}){more}."

    def added(self, sample: int, q: int = 0) -> list[str]:
        """Names of the attributes that the best answer has more of, the most grown first, each once."""
        if self.attributes is None or self.attributes_before is None:
            return []
        growth = self.attributes[sample, q, 0] - self.attributes_before[sample]
        order = growth.argsort(descending=True, stable=True).tolist()
        least = self.attribute_thresholds or (_GROWN,) * len(growth)
        return list(dict.fromkeys(self.attribute_names[k] for k in order if growth[k] >= least[k]))

    def __str__(self) -> str:
        lines = [f"{name}: {self.text(i, q)}" for i, name in enumerate(self.names) for q in range(self.questions)]
        return "\n".join([*lines, f"({self._how()}{', interrupted' * self.interrupted})"])

    def __repr__(self) -> str:
        return f"Counterfactual({self.method}, {int(self.found.sum())} of {self.found.numel()} found)"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def questions(self) -> int:
        """How many questions were asked about each image, Q."""
        return self.foils.shape[1]

    def to_frame(self) -> DataFrame:
        """One row per image, foil and answer."""
        import pandas as pd

        n, questions, answers = self.distance.shape
        where = [(i, q, r) for i in range(n) for q in range(questions) for r in range(answers)]
        distinct, reached = self.distinct(), self.reached
        return pd.DataFrame(
            [
                self._row(i, q, r)
                | {"distinct": bool(distinct[i, q, r]), "reached": self._class(int(reached[i, q, r]))}
                for i, q, r in where
            ]
        )

    def _row(self, i: int, q: int, r: int) -> dict[str, Any]:
        p, change = self.example_logits[i, q, r].softmax(0), self.examples[i, q, r] - self.images[i]
        foil = int(self.foils[i, q])
        row = {
            "sample": self.names[i],
            "fact": self._class(int(self.fact[i, q])),
            "foil": self._class(foil) if foil >= 0 else "any",
            "method": self.method,
            "answer": r,
            "status": self.status[i][q][r],
            "reason": self.reasons[i][q][r],
            "p_fact": p[self.fact[i, q]].item(),
            "p_foil": p[self.reached[i, q, r]].item(),
            "top": self._class(int(p.argmax())),
            "distance": self.distance[i, q, r].item(),
            "violation": self.violation[i, q, r].item(),
            "l1": change.abs().sum().item(),
            "l2": change.square().sum().sqrt().item(),
        }
        if self.error is not None and self.class_kept is not None:
            row |= {"inversion_error": self.error[i].item(), "class_kept": bool(self.class_kept[i])}
        if self.attributes is not None:
            for name, value in zip(self.attribute_names, self.attributes[i, q, r].tolist(), strict=True):
                row[unique_name(name, row.__contains__, "{} ({})")] = value
        return row

    # ----------------------------------------------------------------------------------------- showing it
    def trajectories(self) -> list[Trajectory]:
        """What the rendering draws: a film strip and the curves of each question."""
        from ratherthan.render import Trajectory

        films = []
        for i, name in enumerate(self.names):
            for q in range(self.questions):
                p = self.path_logits[i, q].softmax(1)
                fact, foil = int(self.fact[i, q]), int(self.reached[i, q, 0])
                others = p.index_fill(1, torch.tensor([fact, foil], device=p.device), -1).amax(1).clamp_min(0)
                films.append(
                    Trajectory(
                        name=Path(name).name,
                        question=self.question(i, q),
                        text=self.text(i, q).removeprefix(self.question(i, q)).strip(),
                        status=self.status[i][q][0],
                        image=picture(self.images[i]),
                        reconstruction=None if self.reconstruction is None else picture(self.reconstruction[i]),
                        path=[picture(each) for each in self.path[i, q]],
                        answer=picture(self.examples[i, q, 0]),
                        fact=(self._class(fact), p[:, fact].tolist()),
                        foil=(self._class(foil), p[:, foil].tolist()),
                        others=others.tolist(),
                    )
                )
        return films

    def plot(self, frames: int = 4) -> Figure:
        """A film strip per question: image, reconstruction, the way, the answer, what it adds and removes, the curves.

        Args:
            frames: How many pictures of the way.
        """
        from ratherthan.render import draw_trajectories

        return draw_trajectories(self.trajectories(), frames)

    def plot_path(self, sample: int, q: int = 0) -> Figure:
        """Class probabilities along the way (CDeepEx, Fig. 5b): fact, foil and the likeliest other."""
        from ratherthan.render import draw_probabilities

        return draw_probabilities(self.trajectories()[sample * self.questions + q])

    def write_page(self, path: Path) -> Path:
        """The page of `save`."""
        from ratherthan.render import write_page

        return write_page(self.trajectories(), path, "What would have to change?", f"Method {self._how()}.")

    # ----------------------------------------------------------------------------------------- inside
    def _lead(self, values: Tensor) -> Tensor:
        return values if self.axis else values.squeeze(1)

    def _class(self, index: int) -> str:
        return class_label(self.class_names, index)

    def _how(self) -> str:
        manifold = self.settings.get("manifold")
        return f"{self.method} on {manifold}" if manifold else self.method


def counterfactual(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    method: str | CounterfactualMethod = "cdeepex",
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Counterfactual:
    """Find the nearest image that the network would, or could as well, call the foil.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays.
        fact: The class to move away from; None: the prediction.
        foil: The class to move towards: "runner-up", an index or a name; "each", "topK" or a list: each in turn; "any"
            other class, where the method can. None: what the method is usually asked, mostly "runner-up".
        method: A registered name, for a zoo model that names a manifold; or an object, e.g. `CDeepEx(manifold)`.
        batch_size: Searches (images x foils x restarts) at once; it changes no answer. 64 fit the caches of a processor
            (256 took three times as long); a GPU takes more.
        progress: Called with (images done, images in all) now and then.

    Returns:
        The answers, each verified by a fresh pass, or the nearest miss and why there is none. Once a search has begun,
        Ctrl-C does not raise: what was found until then comes back, marked.

    Raises:
        InputError: If an argument cannot be used, or an image lies outside [0, 1].
        ModelError: If the manifold makes images of another shape.

    Example:
        >>> how = counterfactual(load("zoo:mnist"), images, foil=8)
        >>> how.example, how.found, how.reason
    """
    model = Model.wrap(model)
    if not model.output.of_classes:
        raise InputError("this model gives a value; a counterfactual moves from one class to another")
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, not {batch_size}")
    method = get_counterfactual_method(method).prepared(model)
    samples = Samples.of(model, images, fact, method.default_foil if foil is None else foil)
    batch = samples.images
    _check_range(batch)
    method.check(model, batch)
    return _Search(model, samples, method, progress).run(batch_size)


def _check_range(images: Tensor) -> None:
    low, high = images.flatten(1).amin(1), images.flatten(1).amax(1)
    outside = ((low < -1e-4) | (high > 1 + 1e-4)).nonzero().flatten().tolist()
    if outside:
        i = outside[0]
        raise InputError(f"image {i} ranges over [{low[i]:.3g}, {high[i]:.3g}]: hand them in [0, 1]")


@dataclass
class _Search:
    """One call of `counterfactual`: batch after batch, then a result."""

    model: Model
    samples: Samples
    method: CounterfactualMethod
    progress: Callable[[int, int], None] | None
    axis: bool = False

    @property
    def images(self) -> Tensor:
        return self.samples.images

    def run(self, batch_size: int) -> Counterfactual:
        parts: list[dict[str, Any]] = []
        start, interrupted = 0, False
        while start < len(self.images) and not interrupted:
            # how many foils there are shows only when they are resolved
            foils = self._questions(slice(start, start + 1))[1].shape[1]
            rows = slice(start, min(len(self.images), start + max(1, batch_size // (foils * self.method.restarts))))
            try:
                parts.append(self._batch(rows))
                interrupted = parts[-1]["interrupted"]
            except KeyboardInterrupt:
                if not parts:
                    raise
                interrupted = True
            else:
                start = rows.stop
        return Counterfactual(
            **{**_joined(parts), "interrupted": interrupted},
            axis=self.axis,
            method=self.method.name,
            settings=self.method.settings(),
            class_names=self.model.class_names,
            names=self.samples.names[:start],
            versions=versions(),
        )

    def _batch(self, rows: slice) -> dict[str, Any]:
        fact, foil, logits = self._questions(rows)
        images, samples = self.images[rows], range(len(self.images))[rows]
        answers = self.method.answer(self.model, images, fact, foil, samples, self._report(rows))
        if self.progress is not None:
            self.progress(rows.stop, len(self.images))
        return {"images": images, "fact": fact, "foils": foil, "logits": logits, **_fields(answers, tuple(foil.shape))}

    def _report(self, rows: slice) -> Callable[[int, int], None] | None:
        progress = self.progress
        if progress is None:
            return None
        furthest = rows.start

        def report(done: int, of: int) -> None:
            nonlocal furthest
            furthest = max(furthest, rows.start + int((rows.stop - rows.start) * done / max(1, of)))
            progress(furthest, len(self.images))

        return report

    def _questions(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Facts (n, Q), foils (n, Q) and logits (n, classes) of some images."""
        with preserve_state(self.model.module), torch.no_grad():
            logits = self.model.logits(self.images[rows])
        self.model.check(logits)
        fact, foil = self.samples[rows].fact, self.samples[rows].foil
        question = resolve(logits, fact, foil, self.model.class_names)
        if question.axis == "fact":
            raise InputError("a counterfactual starts from one fact; give the foils as a list instead")
        everything = question.foils.sum(-1) == logits.shape[1] - 1
        if ((question.foil < 0) & ~(everything & self.method.any_foil)).any():
            words = "'runner-up', a class, a list, 'each'" + " or 'any'" * self.method.any_foil
            raise InputError(f"{self.method.name} moves towards one class: ask with {words}")
        self.axis = question.axis is not None
        return question.fact, question.foil, logits


def _fields(answers: Answers, shape: tuple[int, ...]) -> dict[str, Any]:
    """The fields of a result for one batch; K questions become (N, Q)."""

    def grid(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.reshape(*shape, *values.shape[1:])

    def nested(values: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        return [[[str(each) for each in values[i * shape[1] + q]] for q in range(shape[1])] for i in range(shape[0])]

    inverted = answers.inverted
    return {
        "status": nested(answers.status),
        "reasons": nested(answers.reason),
        "examples": grid(answers.examples),
        "example_logits": grid(answers.logits),
        "distance": grid(answers.distance),
        "violation": grid(answers.violation),
        "path": grid(answers.path),
        "path_logits": grid(answers.path_logits),
        "latents": grid(answers.latents),
        "attributes": grid(answers.attributes),
        "attributes_before": answers.attributes_before,
        "attribute_names": answers.attribute_names,
        "attribute_thresholds": answers.attribute_thresholds,
        "reconstruction": inverted and inverted.reconstruction,
        "error": inverted and inverted.error,
        "class_kept": inverted and inverted.class_kept,
        "evaluations": answers.evaluations,
        "interrupted": answers.interrupted,
    }


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = dict(parts[0])
    for key, value in joined.items():
        column = [part[key] for part in parts]
        if isinstance(value, Tensor):
            joined[key] = torch.cat(column)
        elif isinstance(value, list):
            joined[key] = [row for rows in column for row in rows]
    return joined | {"evaluations": sum(part["evaluations"] for part in parts)}
