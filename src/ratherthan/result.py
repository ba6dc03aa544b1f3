"""What all results have in common: rows by sample, words for classes; they show themselves, are saved and read back."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError, told_as
from ratherthan.inputs.text import words_of
from ratherthan.outputs import OUTPUTS
from ratherthan.settings import AtLeastOne, check_value, types_of
from ratherthan.words import printable, shorten

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ratherthan.render.case import Case
    from ratherthan.render.page import Frame

PRINTED = 5
"""Of many facts or foils, a text names so many; files of numbers hold all."""
TOLD = 80
"""Letters of a text that stand for it where there are answers about it."""
_FORMAT = 5
_TENSOR = "$tensor"  # stands in the words for a tensor that is stored beside them
_FINITE = ("images", "logits", "attribution", "score", "examples", "example_logits")
_BY_SAMPLE = ("names", "tokens", "diagnostics")  # fields by sample that are neither tensors nor lists


class Shape(str):
    """The shape of a field, by letters that mean one size in all fields.

    Q is there where there is an axis; "*" is C, H, W of pictures and anything of other inputs, "plane" is H, W of
    pictures and the length of texts, "..." anything of all.
    """


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(ABC):
    """What a verb returns about N samples. Tensors and lists among the fields have a row for each.

    Where one of fact and foil forms an axis of Q questions, what belongs to a question is (N, Q, ...), else (N, ...).

    Attributes:
        kind: What it is called in files and messages, e.g. "explanation".
        leading: Which of many questions `likeliest` puts first.
        asks: The question that it answers, the heading of its page.
        images: (N, C, H, W) in image space; (N, T) token ids of texts, -1 behind the end of the shorter; volumes
            (N, C, D, H, W); signals (N, C, T); rows of a table (N, F).
        logits: (N, classes) of the images; (N, 1) values for a regressor.
        fact: (N, [Q]) class indices.
        axis: Which of the two varies along Q: "fact", "foil", or None.
        method: Name of the method.
        settings: Its settings.
        output: What the model gives, the name of an `Output`.
        class_names: Where the model has them.
        names: What to call the samples, e.g. their paths.
        labels: (N,) class indices that a data set says they have; -1 where it is not known; None: nowhere.
        tokens: Of texts, what the tokens of each read, see `Text.tokens`; of tables names and values of the columns;
            empty for all else.
        versions: Of what computed it.
        preprocessing: What images went through before the network saw them, in words.
        shown: The channels of images that are drawn, see `Images`; None: all, or their mean.
        model: What the network is called.
        command: What was typed to ask, where it was typed.
    """

    kind: ClassVar[str]
    leading: ClassVar[str] = "first"
    asks: ClassVar[str] = ""
    images: Annotated[Tensor, Shape("N *")]
    logits: Annotated[Tensor, Shape("N K")]
    fact: Annotated[Tensor, Shape("N Q")]
    axis: Literal["fact", "foil"] | None = None
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    output: str = "logits"
    class_names: Annotated[tuple[str, ...], Shape("K")] | None = None
    names: Annotated[tuple[str, ...], Shape("N")] = ()
    labels: Annotated[Tensor | None, Shape("N")] = None
    tokens: tuple[tuple[str, ...], ...] = ()
    versions: dict[str, str] = field(default_factory=lambda: versions())
    preprocessing: str = ""
    shown: tuple[int, ...] | None = None
    model: str = ""
    command: str = ""

    @abstractmethod
    def plot(self) -> Figure:
        """A figure of everything."""

    @abstractmethod
    def cases(self) -> list[Case]:
        """What a page shows, a case per sample."""

    @classmethod
    def beside(cls, results: Sequence[Self]) -> list[Case]:
        """What a page shows of several of this kind, of the same samples."""
        from functools import reduce

        return [reduce(type(row[0]).joined, row) for row in zip(*(each.cases() for each in results), strict=True)]

    @abstractmethod
    def text(self, sample: int, q: int = 0) -> str:
        """One line about one question."""

    @abstractmethod
    def to_frame(self) -> DataFrame:
        """A row per sample and question (and answer, where there are several)."""

    def records(self) -> list[dict[str, Any]]:
        """The rows of `to_frame` as JSON has them: None where a number is not defined."""
        rows: list[dict[str, Any]] = json.loads(self.to_frame().to_json(orient="records", double_precision=15))
        return rows

    # ----------------------------------------------------------------------------------------- samples and questions
    def __len__(self) -> int:
        return len(self.images)

    @property
    def questions(self) -> int:
        """How many questions were asked about each sample."""
        return 1 if self.axis is None else self.fact.shape[1]

    def by_question(self, values: Tensor) -> Tensor:
        """(N, ...) or (N, Q, ...), as the result has it, always as (N, Q, ...)."""
        return values.unsqueeze(1) if self.axis is None else values

    def __getitem__(self, rows: int | slice) -> Self:
        """The result of one sample, or of some."""
        chosen = range(len(self))[rows]  # an IndexError where there is no such sample
        kept = slice(chosen, chosen + 1) if isinstance(chosen, int) else rows
        assert isinstance(kept, slice)
        return dataclasses.replace(self, **{key: _rows(value, kept) for key, value in self._by_sample().items()})

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Results of consecutive samples as one; evaluations are summed, one that was interrupted marks the whole."""
        counts = (f.name for f in dataclasses.fields(cls) if isinstance(getattr(parts[0], f.name), int))
        return cls._merged(parts, [*parts[0]._by_sample(), *counts])

    @classmethod
    def _merged(cls, parts: Sequence[Self], keys: Iterable[str], dim: int = 0) -> Self:
        """The first of them with some fields of all, one sample after another, or (1) one question."""
        columns = {key: [getattr(each, key) for each in parts] for key in keys if getattr(parts[0], key) is not None}
        return dataclasses.replace(parts[0], **{key: _joined(column, dim) for key, column in columns.items()})

    def _by_sample(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if isinstance(v, (Tensor, list)) or k in _BY_SAMPLE}

    def labelled(self, labels: Sequence[int]) -> Self:
        """The same with what a data set says that the samples are; what is none of the classes is not known."""
        known = torch.tensor(list(labels))
        return (
            dataclasses.replace(self, labels=torch.where(known < self.logits.shape[1], known, -1))
            if len(known)
            else self
        )

    # ----------------------------------------------------------------------------------------- words
    def class_label(self, index: int) -> str:
        """What to call a class; in quotes where its name is more than can be seen, as that of the token " dog"."""
        name = self.class_names[index] if self.class_names else f"class {index}"
        return name if name.strip() == name and name else f'"{printable(name)}"'

    def probabilities(self) -> Tensor:
        """(N, classes) probabilities of the images: a softmax, or of labels sigmoids, with 0 for none of them.

        Raises:
            InputError: If the model gives a value.
        """
        if self.output == "value":
            raise InputError("this model gives a value, not class probabilities")
        return OUTPUTS.find(self.output).probabilities(self.logits)

    @property
    def seen(self) -> str:
        """What is asked about."""
        if not self.images.is_floating_point():
            return "text"
        return "image" if self.images.ndim == 4 else "input"

    def __str__(self) -> str:
        return "\n".join([*self.lines(), f"({self.made_by()})"])

    def lines(self) -> list[str]:
        """A line for each sample and question; of many questions a few."""
        few, shown = self.likeliest(PRINTED), min(PRINTED, self.questions)
        names = [shorten(name, TOLD) for name in self.names] if self.tokens else self.names
        asked = [(i, q) for i in range(len(few)) for q in range(shown) if not few.idle(i, q)]
        told = [printable(f"{names[i]}: {few.text(i, q)}") for i, q in asked]
        which = f"({shown} of {self.questions} questions about each {self.seen}, the {self.leading})"
        return told + [which] * (shown < self.questions)

    def idle(self, sample: int, q: int) -> bool:
        """Whether a question asks about nothing: a class, rather than itself, among all of them."""
        return False

    def likeliest(self, count: int) -> Self:
        """The same with the few questions that are worth showing first; where there is no saying which, with all."""
        return self

    def made_by(self) -> str:
        """The method and what it worked on, for the last line of a text and the head of a page."""
        return self.method + self._fed

    @property
    def _fed(self) -> str:
        return f"; input {self.preprocessing}" if self.preprocessing else ""

    def picture(self, image: Tensor) -> np.ndarray[Any, Any]:
        """One of these images, or one like them, (C, H, W), as the rendering takes it; see `picture`."""
        return picture(image, self.shown)

    def title(self, sample: int) -> str:
        """What to call a sample where there is little room."""
        return shorten(self.names[sample], TOLD) if self.tokens else Path(self.names[sample]).name

    def about(self, sample: int) -> dict[str, Any]:
        """What a page's case says of a sample before anything else: name, picture, and its label, if it is known."""
        label = -1 if self.labels is None else int(self.labels[sample])
        return {
            "name": self.title(sample),
            "view": self.view(sample),
            "label": self.class_label(label) if label >= 0 else "",
        }

    def view(self, sample: int) -> dict[str, Any]:
        """What was asked about, as a page takes it; see `render.case`."""
        from ratherthan.render import case

        values, tokens = self.images[sample], self.tokens[sample] if self.tokens else ()
        if tokens:
            return case.written(tokens, None if values.is_floating_point() else words_of(tokens))
        if values.ndim == 2:
            return case.lines(values.detach().float().cpu().numpy())
        return case.volume(_slices(values)) if values.ndim == 4 else case.picture(self.picture(values))

    def drawn(self, sample: int, columns: Sequence[int] | None = None) -> tuple[Any, np.ndarray[Any, Any] | None]:
        """The picture of what was asked about, and whose value lies at each of its pixels.

        Args:
            sample: Which.
            columns: Of a table those that are written; None: all.

        Returns:
            A picture, and positions as `kinds.draw` gives them; None: a map is spread over all of it.
        """
        from ratherthan.render.kinds import draw

        values, tokens = self.images[sample], self.tokens[sample] if self.tokens else ()
        if values.ndim == 3 or (values.ndim == 1 and not tokens):
            return self.picture(values), None
        array = _slices(values) if values.ndim == 4 else values.detach().float().cpu().numpy()
        return draw(array, tokens, columns)

    # ----------------------------------------------------------------------------------------- files
    def save(self, path: str | Path) -> Path:
        """Write it to a file, whole or not at all.

        Args:
            path: ".png": the figure. ".html": a page that needs nothing else. ".safetensors": everything, for `load`.

        Returns:
            The path.

        Raises:
            InputError: If the file has another ending.
        """
        from ratherthan.files import write_atomically
        from ratherthan.render.figure import figure_png

        path = Path(check_value("the path of a result", str | Path, path))
        if path.suffix == ".html":
            return save_report([self], path)
        if path.suffix == ".png":
            return write_atomically(path, [figure_png(self.plot())])
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            places = {id(value): key for key, value in fields.items()}
            tensors: dict[str, Tensor] = {}

            def set_aside(value: Any) -> Any:
                """A tensor is stored beside the words; what else JSON does not know, by its `repr`."""
                if not isinstance(value, Tensor):
                    return repr(value)
                place = places.get(id(value), f"tensor {len(tensors)}")
                tensors[place] = value.detach().cpu().contiguous().clone()
                return {_TENSOR: place}

            header = json.dumps({"kind": self.kind, "format": _FORMAT, "fields": fields}, default=set_aside)
            return write_atomically(path, [save(tensors, {"ratherthan": header})])
        raise InputError(f"cannot save {str(path)!r}: end it in .png, .html or .safetensors")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote to a .safetensors file.

        Raises:
            InputError: If it is no such file.
        """
        from safetensors import safe_open

        if not Path(check_value("the path of a result", str | Path, path)).is_file():
            raise InputError(f"cannot load {str(path)!r}: no such file")
        # missing, truncated or foreign: safetensors has its own error for each
        with told_as(InputError, f"cannot load {str(path)!r}", Exception), safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get("ratherthan", "{}")
            header = json.loads(text, object_hook=lambda e: file.get_tensor(e[_TENSOR]) if _TENSOR in e else e)
        if not isinstance(header, dict) or header.get("kind") != cls.kind:
            raise InputError(f"{str(path)!r} holds no {cls.kind} saved by ratherthan")
        if header.get("format") != _FORMAT:
            raise InputError(f"{str(path)!r} was saved by another version of ratherthan: compute it again")
        # `InputError` is a ValueError, too: a list of unequal lists, a name too many
        with told_as(InputError, f"{str(path)!r} is no {cls.kind} that ratherthan saved", ValueError, TypeError):
            return cls(**_fitting(cls, check_value("fields", dict[str, Any], header.get("fields"))))

    def show(self, height: int = 720) -> Frame:
        """The live page in a notebook, as the last line of a cell.

        Args:
            height: Of its frame in pixels.
        """
        from ratherthan.render.page import Frame, render

        page = _report([self])
        page["cases"] = (each.told() for each in page["cases"])
        return Frame("".join(render(**page)), check_value("height", AtLeastOne, height))

    def _repr_html_(self) -> str:
        from base64 import b64encode
        from html import escape

        from ratherthan.render.figure import figure_png

        lines = "<br>".join(escape(line) for line in str(self).splitlines())
        with suppress(InputError):  # rows of a table have no picture
            drawn = b64encode(figure_png(self.plot())).decode()
            return f'<img src="data:image/png;base64,{drawn}" style="max-width:100%"><p>{lines}</p>'
        return f"<p>{lines}</p>"


def _fitting(kind: type[Result], fields: dict[str, Any]) -> dict[str, Any]:
    """Fields read from a file, if a result of this kind can have them: each by its type, all by their sizes.

    Raises:
        InputError: If it cannot.
    """
    types, sizes, seen = types_of(kind), dict[str, int](), np.shape(fields.get("images", ()))
    plane = ["H", "W"] if len(seen) == 4 else ["L"]  # of texts their length
    sizes |= {"L": seen[-1]} if len(seen) == 2 else {}
    found = {key: check_value(key, types.get(key, NoneType), value) for key, value in fields.items()}
    for key in found:
        hints = (types.get(key), *get_args(types.get(key)))
        shape = next((each for hint in hints for each in getattr(hint, "__metadata__", ()) if type(each) is Shape), "")
        values = list(found[key].values()) if isinstance(found[key], dict) else [found[key]]
        for value in values if shape else ():
            if isinstance(value, Tensor) or (value is not None and value is found[key]):
                letters = shape.replace("plane", " ".join(plane)).split()
                _check_shape(key, [each for each in letters if each != "Q" or found.get("axis")], value, sizes)
    read = found.get("tokens", ())
    if read and (len(read) != sizes["N"] or max(map(len, read)) > found["images"].shape[-1]):
        raise InputError("tokens are those of other texts")
    classes = OUTPUTS.find(found.get("output", "logits")).of_classes
    for key, low in {"fact": 0, "foil": -1, "labels": -1}.items():
        given = found.get(key)
        if given is not None and (classes or key == "fact") and not ((given >= low) & (given < sizes["K"])).all():
            raise InputError(f"{key} is a class that is none of {sizes['K']}")
    return found


def _check_shape(key: str, shape: list[str], value: Any, sizes: dict[str, int]) -> None:
    given = tuple(np.shape(value))
    if shape[-1] == "*":
        shape = shape[:-1] + (["C", "H", "W"] if len(given) == len(shape) + 2 else ["..."])
    letters = [each for each in shape if each != "..."]
    fits = len(given) == len(letters) or (len(given) > len(letters) and "..." in shape)
    if not fits or any(sizes.setdefault(*each) != each[1] for each in zip(letters, given, strict=False)):
        meant = ", ".join(f"{letter} = {sizes[letter]}" for letter in letters if letter in sizes)
        raise InputError(f"{key} of shape {given} is not ({', '.join(shape)}), {meant}")
    if isinstance(value, Tensor) and (value.is_complex() or (key in _FINITE and not value.isfinite().all())):
        raise InputError(f"{key} holds what is no finite number")


def _rows(value: Any, rows: slice) -> Any:
    if isinstance(value, dict):
        return value | {key: each[rows] for key, each in value.items() if isinstance(each, Tensor)}
    return value[rows]


def _joined(column: list[Any], dim: int) -> Any:
    first = column[0]
    if isinstance(first, int):
        return any(column) if isinstance(first, bool) else sum(column)
    if isinstance(first, Tensor):
        # rows that end at different lengths are filled up: with NaN, whole numbers with -1
        if first.ndim > 1 and dim == 0:
            widest = max(each.shape[-1] for each in column)
            empty = torch.nan if first.is_floating_point() else -1 if first.dtype != torch.bool else False
            column = [torch.nn.functional.pad(each, (0, widest - each.shape[-1]), value=empty) for each in column]
        return torch.cat(column, dim)
    if isinstance(first, dict):
        kept = {k: v for k, v in first.items() if all(k in each for each in column)}
        return kept | {k: _joined([each[k] for each in column], dim) for k, v in kept.items() if isinstance(v, Tensor)}
    return type(first)(row for rows in column for row in rows)


# --------------------------------------------------------------------------------------------- words
def versions() -> dict[str, str]:
    """Versions of what computes."""
    from ratherthan import __version__

    return {"ratherthan": __version__, "torch": torch.__version__}


def laid_over(values: np.ndarray[Any, Any], owner: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Values of positions as a map over the picture whose pixels these own; see `Result.drawn`."""
    return np.atleast_2d(values) if owner is None else np.append(values, 0.0)[owner]


def _slices(volume: Tensor) -> np.ndarray[Any, Any]:
    """A volume (C, D, H, W) as the rendering takes it: (D, H, W) or (D, H, W, 3), stretched to [0, 1]."""
    values = volume.detach().float().cpu()
    low, high = values.aminmax()
    values = (values - low) / (high - low) if high > low else torch.zeros_like(values)
    array: np.ndarray[Any, Any] = (values.movedim(0, -1) if len(values) == 3 else values.mean(0)).numpy()
    return array


def save_report(
    results: Sequence[Result] | Sequence[Sequence[Result]],
    path: str | Path,
    title: str | None = None,
    intro: str = "",
) -> Path:
    """Write one self-contained HTML page about some samples: where, what would have to change, what is enough.

    Args:
        results: Of the same samples: explanations by different contrasts or methods, counterfactuals, pertinent
            positives, or several of these. Or lists of these, one below the other, each of samples and a model of its
            own.
        path: Where to.
        title: The page's heading; None: the question.
        intro: A paragraph below it; an empty line starts another.

    Returns:
        The path.

    Raises:
        InputError: If there are none, or they are about different samples.
    """
    from ratherthan.render.page import write_page

    return write_page(path=path, **_report(results, title, intro))


def _report(
    results: Sequence[Result] | Sequence[Sequence[Result]], title: str | None = None, intro: str = ""
) -> dict[str, Any]:
    """What `render.page` takes."""
    alone = [each for each in results if isinstance(each, Result)]
    groups = [alone] if len(alone) == len(results) else [list(each) for each in results if not isinstance(each, Result)]
    if not all(groups) or (alone and len(alone) < len(results)):
        raise InputError("give results of the same samples, or lists of these; none, or an empty list, is no page")
    every = [each for group in groups for each in group]
    versions = ", ".join(f"{name} {number}" for name, number in every[0].versions.items())
    about = {"method": [each.made_by() for each in every], "model": [each.model for each in every]}
    about["command"] = [each.command for each in every]
    said = {name: "; ".join(filter(None, dict.fromkeys(each))) for name, each in about.items()}
    said |= {"versions": versions, "written": str(date.today())}
    asked = every[0].asks if len(set(map(type, every))) == 1 else "Why, and what else would be?"
    return {
        "cases": [case for group in groups for case in _cases(group)], "title": title or asked, "intro": intro,
        "about": [each for each in said.items() if each[1]],
    }  # fmt: skip


def _cases(results: Sequence[Result]) -> list[Case]:
    """A case for each sample, with all that was found out about it."""
    from functools import reduce

    kinds = [[each for each in results if type(each) is kind] for kind in dict.fromkeys(map(type, results))]
    columns = [each[0].beside(each) for each in kinds]
    if len({tuple(case.name for case in column) for column in columns}) != 1:
        raise InputError("only results about the same samples, asked about the same fact, fit on one page")
    return [reduce(type(row[0]).joined, row) for row in zip(*columns, strict=True)]


def picture(image: Tensor, show: Sequence[int] | None = None) -> np.ndarray[Any, Any]:
    """An image (C, H, W) as the rendering takes it: floats (H, W, 1 or 3) in [0, 1].

    One channel is grey and three are colours; of any other number the mean is shown, or the channels that are named.

    Raises:
        InputError: If it has no rows and columns.
    """
    if image.ndim != 3:
        raise InputError(f"what has shape {tuple(image.shape)} is no picture: read to_frame(), or save .safetensors")
    shown = image.detach().float().cpu() if show is None else image.detach().float().cpu()[list(show)]
    shown = shown if len(shown) in (1, 3) else shown.mean(0, keepdim=True)
    array: np.ndarray[Any, Any] = shown.clamp(0, 1).permute(1, 2, 0).numpy()
    return array
