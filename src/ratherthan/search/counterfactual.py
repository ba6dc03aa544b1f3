"""The verb `counterfactual`, WHAT would have to change, and what it returns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ratherthan.attribution.explaining import _check_length, _names, _rows, _versions
from ratherthan.attribution.pullback import clean_room
from ratherthan.contrast import resolve
from ratherthan.errors import InputError, first_line, unknown
from ratherthan.explanation import _percent, _plain
from ratherthan.model import Model
from ratherthan.search.cdeepex import XGEM, Answers, CDeepEx
from ratherthan.search.core import Status
from ratherthan.search.manifold import Manifold

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ratherthan.render import Case

_FORMAT = "ratherthan counterfactual 1"
_SIDES = ("remove", "add")
_SAME = 0.02  # root mean square difference of pixels below which two answers are one
_METHODS: dict[str, type[CDeepEx]] = {method.name: method for method in (CDeepEx, XGEM)}


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """What would have to change for the foil.

    N images, Q foils each (1 unless foils were asked for as an axis), R answers to each question, best first.

    Attributes:
        images: (N, C, H, W) in image space.
        reconstruction: (N, C, H, W): what the manifold makes of the images.
        examples: (N, Q, R, C, H, W): the answers; where none was found, the nearest miss.
        status: N x Q x R: how each search ended; the values of `Status`.
        reasons: The same in words.
        fact: (N, Q) class indices.
        foils: (N, Q) class indices.
        logits: (N, classes) of the images.
        example_logits: (N, Q, R, classes), from a fresh pass over the examples.
        distance: (N, Q, R): |z - z0| on the manifold.
        violation: (N, Q, R): by how much the worst constraint is missed, in logits.
        latents: (N, Q, R, ...): where the answers lie.
        error: (N,): root mean square error of the reconstruction's pixels.
        class_kept: (N,) bool: whether the reconstruction has the image's class.
        path: (N, Q, T, C, H, W): from the image to the best answer.
        path_logits: (N, Q, T, classes).
        axis: Whether several foils were asked for.
        interrupted: Whether Ctrl-C ended the search.
        method: Its name.
        settings: Its settings.
        class_names: Names of the classes, or None.
        names: (N) names of the images.
        versions: Versions of what computed it.
    """

    images: Tensor
    reconstruction: Tensor
    examples: Tensor
    status: list[list[list[str]]]
    reasons: list[list[list[str]]]
    fact: Tensor
    foils: Tensor
    logits: Tensor
    example_logits: Tensor
    distance: Tensor
    violation: Tensor
    latents: Tensor
    error: Tensor
    class_kept: Tensor
    path: Tensor
    path_logits: Tensor
    axis: bool
    interrupted: bool
    method: str
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
        return torch.tensor([[[s == Status.FOUND for s in row] for row in rows] for rows in self.status])

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

    def distinct(self) -> Tensor:
        """(N, Q, R) bool: answers found that are no copy of a better one."""
        kept = self.found_each.clone()
        flat = self.examples.flatten(3)
        for later in range(1, kept.shape[2]):
            apart = (flat[:, :, later : later + 1] - flat[:, :, :later]).square().mean(3).sqrt() > _SAME
            kept[:, :, later] &= (apart | ~kept[:, :, :later].to(apart.device)).all(2).cpu()
        return kept

    def path_probabilities(self) -> Tensor:
        """(N, [Q,] T, classes): class probabilities on the way (CDeepEx, Fig. 5b)."""
        return self._lead(self.path_logits.softmax(3))

    # ----------------------------------------------------------------------------------------- in words
    def text(self, sample: int, q: int = 0) -> str:
        """One line about one question."""
        fact, foil = int(self.fact[sample, q]), int(self.foils[sample, q])
        asked = f"What would make {self._class(fact)} {self._class(foil)}?"
        if self.status[sample][q][0] != Status.FOUND:
            return f"{asked} {self.status[sample][q][0]}: {self.reasons[sample][q][0]}."
        p = self.example_logits[sample, q, 0].softmax(0)
        change = self.examples[sample, q, 0] - self.images[sample]
        added, removed = change.clamp_min(0).sum().item(), (-change).clamp_min(0).sum().item()
        others = int(self.distinct()[sample, q].sum()) - 1
        more = f"; {others} other answer{'s' * (others > 1)}" if others else ""
        return (
            f"{asked} Add {added:.1f} and remove {removed:.1f} of ink, and it is {_percent(p[fact].item())} "
            f"{self._class(fact)}, {_percent(p[foil].item())} {self._class(foil)}{more}."
        )

    def __str__(self) -> str:
        lines = [f"{name}: {self.text(i, q)}" for i, name in enumerate(self.names) for q in range(self.foils.shape[1])]
        stopped = ", interrupted" if self.interrupted else ""
        return "\n".join([*lines, f"({self.method} on {self.settings.get('manifold')}{stopped})"])

    def __repr__(self) -> str:
        return f"Counterfactual({self.method}, {int(self.found.sum())} of {self.found.numel()} found)"

    def __len__(self) -> int:
        return len(self.images)

    def to_frame(self) -> DataFrame:
        """One row per image, foil and answer."""
        import pandas as pd

        distinct, rows = self.distinct(), []
        for i, q, r in (
            torch.cartesian_prod(*(torch.arange(size) for size in self.distance.shape)).reshape(-1, 3).tolist()
        ):
            p, change = self.example_logits[i, q, r].softmax(0), self.examples[i, q, r] - self.images[i]
            rows.append({
                "sample": self.names[i], "fact": self._class(int(self.fact[i, q])),
                "foil": self._class(int(self.foils[i, q])), "method": self.method, "answer": r,
                "status": self.status[i][q][r], "reason": self.reasons[i][q][r], "distinct": bool(distinct[i, q, r]),
                "p_fact": p[self.fact[i, q]].item(), "p_foil": p[self.foils[i, q]].item(),
                "top": self._class(int(p.argmax())), "distance": self.distance[i, q, r].item(),
                "violation": self.violation[i, q, r].item(), "l1": change.abs().sum().item(),
                "l2": change.square().sum().sqrt().item(), "inversion_error": self.error[i].item(),
                "class_kept": bool(self.class_kept[i]),
            })  # fmt: skip
        return pd.DataFrame(rows)

    # ----------------------------------------------------------------------------------------- showing it
    def cases(self) -> list[Case]:
        """What the report draws: the signed change of each question over its image."""
        from ratherthan.render import Case, MapView

        cases = []
        for i, name in enumerate(self.names):
            change = (self.examples[i, :, 0] - self.images[i]).sum(1).cpu().numpy()
            views = tuple(
                MapView(self._class(int(foil)), self.method, change[q], self.text(i, q))
                for q, foil in enumerate(self.foils[i])
            )
            p = self.logits[i].softmax(0)
            bars = tuple((self._class(k), p[k].item()) for k in p.topk(min(6, len(p))).indices.tolist())
            cases.append(
                Case(Path(name).name, _picture(self.images[i]), self._class(int(self.fact[i, 0])), bars, views)
            )
        return cases

    def plot(self, frames: int = 5) -> Figure:
        """A film strip per question: image, reconstruction, the way, the answer, what it adds and removes."""
        from ratherthan.render import grid, overlay, shared_limit

        pictures: list[tuple[str, Any]] = []
        steps = torch.linspace(0, self.path.shape[2] - 1, frames + 2).round().long()[1:-1].tolist()
        for i, name in enumerate(self.names):
            for q in range(self.foils.shape[1]):
                fact, foil = int(self.fact[i, q]), int(self.foils[i, q])
                change = (self.examples[i, q, 0] - self.images[i]).sum(0).cpu().numpy()
                way = self.path_logits[i, q].softmax(1)
                pictures += [
                    (f"{Path(name).name}\n{self._class(fact)}", _picture(self.images[i])),
                    ("reconstruction", _picture(self.reconstruction[i])),
                    *((self._odds(way[t], fact, foil), _picture(self.path[i, q, t])) for t in steps),
                    (f"{self.status[i][q][0]}\n{self._odds(way[-1], fact, foil)}", _picture(self.examples[i, q, 0])),
                    ("red: add, blue: remove", overlay(_picture(self.images[i]), change, shared_limit([change]))),
                ]
        return grid(pictures, frames + 4, title=f"{self.method}: what would have to change?", cell=1.1)

    def plot_path(self, sample: int, q: int = 0) -> Figure:
        """Class probabilities along the way (CDeepEx, Fig. 5b): fact, foil and the likeliest other."""
        from matplotlib.figure import Figure

        p = self.path_logits[sample, q].softmax(1).cpu()
        fact, foil = int(self.fact[sample, q]), int(self.foils[sample, q])
        third = p.index_fill(1, torch.tensor([fact, foil]), -1).amax(1)
        sheet = Figure(figsize=(4.5, 3), layout="constrained")
        axes = sheet.subplots()
        for values, label in (
            (p[:, fact], self._class(fact)),
            (p[:, foil], self._class(foil)),
            (third, "likeliest other"),
        ):
            axes.plot(values.numpy(), label=label)
        axes.set(xlabel="along the way", ylabel="probability", ylim=(0, 1))
        axes.legend()
        return sheet

    def _repr_html_(self) -> str:
        from base64 import b64encode
        from html import escape

        from ratherthan.render import figure_png

        lines = "<br>".join(escape(line) for line in str(self).splitlines())
        return f'<img src="data:image/png;base64,{b64encode(figure_png(self.plot())).decode()}"><p>{lines}</p>'

    def save(self, path: str | Path) -> Path:
        """Write it to a file, whole or not at all.

        Args:
            path: ".png": the film strips. ".html": a page that needs nothing else. ".safetensors": everything.

        Returns:
            The path.

        Raises:
            InputError: If the file has another ending.
        """
        from ratherthan.render import figure_png, write_report
        from ratherthan.render.files import write_atomically

        path = Path(path)
        if path.suffix == ".html":
            title, intro = "What would have to change?", f"Method {self.method} on {self.settings.get('manifold')}."
            return write_report(self.cases(), path, title, intro, sides=_SIDES)
        if path.suffix == ".png":
            return write_atomically(path, [figure_png(self.plot())])
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            tensors = {key: value.cpu().contiguous().clone() for key, value in own.items() if isinstance(value, Tensor)}
            words = {key: value for key, value in own.items() if key not in tensors}
            words["settings"] = {key: _plain(value) for key, value in self.settings.items()}
            return write_atomically(path, [save(tensors, {"ratherthan": json.dumps({**words, "format": _FORMAT})})])
        raise InputError(f"cannot save {str(path)!r}: end it in .png, .html or .safetensors")

    @classmethod
    def load(cls, path: str | Path) -> Counterfactual:
        """Read what `save` wrote to a .safetensors file.

        Raises:
            InputError: If it is no such file.
        """
        from safetensors import safe_open

        try:
            with safe_open(str(path), "pt") as file:
                words = json.loads((file.metadata() or {}).get("ratherthan", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:  # missing, truncated or foreign: safetensors has its own error for each
            raise InputError(f"cannot load {str(path)!r}: {first_line(error)}") from error
        if words.pop("format", None) != _FORMAT:
            raise InputError(f"{str(path)!r} holds no counterfactual saved by this version of ratherthan")
        names = {key: words[key] and tuple(words[key]) for key in ("names", "class_names")}
        return cls(**tensors, **{**words, **names})

    # ----------------------------------------------------------------------------------------- inside
    def _lead(self, values: Tensor) -> Tensor:
        return values if self.axis else values.squeeze(1)

    def _class(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)

    def _odds(self, p: Tensor, fact: int, foil: int) -> str:
        return f"{self._class(fact)} {p[fact]:.0%}, {self._class(foil)} {p[foil]:.0%}"


def counterfactual(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = "runner-up",
    method: str | CDeepEx = "cdeepex",
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Counterfactual:
    """Find the nearest natural image that the network could as well call the foil.

    Args:
        model: The network.
        images: What `Model.preprocess` takes: (N, C, H, W) in image space, paths, PIL images, arrays.
        fact: The class to move away from; None: the prediction.
        foil: The class to move towards: "runner-up", an index or a name; "each", "topK" or a list: each in turn.
        method: "cdeepex" or "xgem", for a zoo model that names a manifold; or an object, e.g. `CDeepEx(manifold)`.
        batch_size: Searches (images x foils x restarts) at once; it changes no answer.
        progress: Called with (images done, images in all) after every batch.

    Returns:
        The answers, each verified by a fresh pass, or the nearest miss and why there is none.

    Raises:
        InputError: If an argument cannot be used, or an image lies outside [0, 1].
        ModelError: If the manifold makes images of another shape.

    Example:
        >>> how = counterfactual(load("zoo:mnist"), images, foil=8)
        >>> how.example, how.found, how.reason
    """
    model = Model.wrap(model)
    method = _with_manifold(_method(method), model)
    if model.output == "value":
        raise InputError("this model gives a value; a counterfactual moves from one class to another")
    batch = model.preprocess(images)
    if batch.min() < -1e-4 or batch.max() > 1 + 1e-4:
        raise InputError(f"images range over [{batch.min():.3g}, {batch.max():.3g}]: hand them in [0, 1]")
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, not {batch_size}")
    _check_length(fact, len(batch), "fact")
    _check_length(foil, len(batch), "foil")
    assert method.manifold is not None
    method.manifold.to(batch).check(batch)
    parts: list[dict[str, Any]] = []
    axis, start = False, 0
    while start < len(batch) and not (parts and parts[-1]["interrupted"]):
        with clean_room(model.module), torch.no_grad():
            # how many foils there are shows only when they are resolved
            share = _questions(model, batch[start : start + 1], fact, foil, slice(start, start + 1), len(batch))[1]
            rows = slice(start, start + max(1, batch_size // (share.shape[1] * method.restarts)))
            fact_index, foil_index, logits, axis = _questions(model, batch[rows], fact, foil, rows, len(batch))
        samples = range(len(batch))[rows]
        answers = method.answer(model, batch[rows], fact_index, foil_index, samples)
        parts.append(_part(batch[rows], logits, fact_index, foil_index, answers))
        start = rows.stop
        if progress is not None:
            progress(min(start, len(batch)), len(batch))
    names = _names(images, len(batch))[: min(start, len(batch))]
    known = model.class_names
    words: dict[str, Any] = {
        "axis": axis,
        "method": method.name,
        "settings": method.settings(),
        "class_names": known,
        "names": names,
    }
    return Counterfactual(**_joined(parts), **words, versions=_versions())


def _questions(
    model: Model, images: Tensor, fact: Any, foil: Any, rows: slice, count: int
) -> tuple[Tensor, Tensor, Tensor, bool]:
    logits = model.logits(images)
    model.check(logits)
    question = resolve(logits, _rows(fact, rows, count), _rows(foil, rows, count), model.class_names)
    if question.axis == "fact":
        raise InputError("a counterfactual starts from one fact; give the foils as a list instead")
    if (question.foil < 0).any():
        raise InputError("a counterfactual moves towards one class: ask with 'runner-up', a class, a list, or 'each'")
    return question.fact, question.foil, logits, question.axis is not None


def _method(method: str | CDeepEx) -> CDeepEx:
    if isinstance(method, CDeepEx):
        return method
    if not isinstance(method, str):
        raise InputError(f"a method is a name or an object such as CDeepEx(manifold), not {type(method).__name__}")
    if method not in _METHODS:
        raise InputError(unknown("counterfactual method", method, _METHODS))
    return _METHODS[method]()


def _with_manifold(method: CDeepEx, model: Model) -> CDeepEx:
    """A zoo model's own manifold, where none is given."""
    from ratherthan.zoo import registry as zoo

    if method.manifold is not None:
        return method
    entry = zoo.ENTRIES.get(model.name.removeprefix("zoo:")) if model.name.startswith("zoo:") else None
    if entry is None or entry.manifold is None:
        raise InputError(f"{model.name} names no manifold: give one, e.g. CDeepEx(Manifold(decoder, latent_shape))")
    return dataclasses.replace(method, manifold=Manifold.load(entry.manifold))


def _part(images: Tensor, logits: Tensor, fact: Tensor, foil: Tensor, answers: Answers) -> dict[str, Any]:
    """The fields of a result for one batch; K questions become (N, Q)."""
    shape = tuple(foil.shape)

    def grid(values: Tensor) -> Tensor:
        return values.reshape(*shape, *values.shape[1:])

    def nested(values: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        return [[[str(each) for each in values[i * shape[1] + q]] for q in range(shape[1])] for i in range(shape[0])]

    return {
        "images": images,
        "reconstruction": answers.inverted.reconstruction,
        "examples": grid(answers.examples),
        "status": nested(answers.status),
        "reasons": nested(answers.reason),
        "fact": fact,
        "foils": foil,
        "logits": logits,
        "example_logits": grid(answers.logits),
        "distance": grid(answers.distance),
        "violation": grid(answers.violation),
        "latents": grid(answers.latents),
        "error": answers.inverted.error,
        "class_kept": answers.inverted.class_kept,
        "path": grid(answers.path),
        "path_logits": grid(answers.path_logits),
        "interrupted": answers.interrupted,
    }


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for key, value in parts[0].items():
        column = [part[key] for part in parts]
        if isinstance(value, Tensor):
            joined[key] = torch.cat(column)
        else:
            joined[key] = any(column) if key == "interrupted" else [row for rows in column for row in rows]
    return joined


def _picture(image: Tensor) -> Any:
    return image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
