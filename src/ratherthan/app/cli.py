"""The command line. Each command parses, calls the public API and prints; torch is loaded only by those that run."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from inspect import cleandoc
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import ratherthan as rt
from ratherthan.app import options
from ratherthan.app.listing import Topic, completion, listed
from ratherthan.app.options import (
    LOOPBACK,
    AskOptions,
    ModelOptions,
    ServedOptions,
    SetOptions,
    WorkerOptions,
    about_model,
    pairs,
    question,
    words,
)
from ratherthan.app.terminal import complain, say, say_json, warn
from ratherthan.errors import InputError, RatherThanError, first_line, see
from ratherthan.files import check_place

_SUSPECTS = 100  # rows of suspect labels in JSON; the table of all images has all


class Commands(TyperGroup):
    """Turns what goes wrong in any command into one line and an exit code: 2, or 130 for Ctrl-C."""

    stopped = "stopped by Ctrl-C"

    def main(self, *args: Any, **more: Any) -> Any:
        """Parse and run; a wrong option is one line, too, where typer would draw a box."""
        code: Any = 2
        try:
            code = super().main(*args, **{**more, "standalone_mode": False})
        except KeyboardInterrupt:
            code = 130
        except RatherThanError as error:
            complain(str(error))
        except OSError as error:
            reason = error.strerror or first_line(error)
            complain(f"{error.filename}: {reason}" if error.filename else reason)
        except MemoryError as error:
            remedy = "give a smaller --size or --batch-size, or fewer images"
            complain(f"not enough memory: {remedy} ({first_line(error)})" + see("out-of-memory"))
        except Exception as error:
            if not hasattr(error, "format_message"):  # usage errors, of a click that typer keeps to itself
                raise
            context = getattr(error, "ctx", None)
            where = context.command_path if context else "ratherthan"
            complain(f"{error.format_message().rstrip('.')} (see {where} --help)")
        if code == 130:
            complain(self.stopped)
        sys.exit(code if isinstance(code, int) else 0)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options; an empty text is none, and as a path it would be the working folder."""
        for before, each in zip(["ratherthan", *args], args, strict=False):
            if not each.strip() or (each.startswith("-") and each.partition("=")[1:] == ("=", "")):
                raise InputError(f"{before if not each.strip() else each} is followed by an empty text: leave it out")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; of an interrupt typer keeps no more than the exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            self.stopped = str(stop) or self.stopped
            raise


app = typer.Typer(
    cls=Commands, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
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


def _command(
    *examples: str, name: str | None = None, group: typer.Typer | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command; of groups of options each field is an option."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        paragraphs = re.sub(r"(?<=\S)\n(?=\S)", " ", cleandoc(function.__doc__ or ""))
        return (group or app).command(name, help=paragraphs, epilog=_examples(*examples))(options.with_groups(function))

    return register


@app.callback(
    invoke_without_command=True,
    epilog=_examples("demo", "explain photo.jpg", "explain photo.jpg --model hf:microsoft/resnet-50", "explain --help"),
)
def overview(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Why P, rather than Q? Ask a neural network, and see the answer on what it was shown."""
    if version:
        say(f"ratherthan {rt.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(context.get_help())


@_command(
    "explain photo.jpg",
    'explain cat_dog.png --fact "bull mastiff" --foil "tiger cat"',
    "explain photos/ --model torchvision:resnet50 --foil top3 --contrast none,weighted --out answers",
    "explain --data photos/ --model torchvision:resnet50 --only wrong --limit 20",
    "explain digit.png --model zoo:mnist --foil 3,5,8 --method ig --set n_steps=50 --json",
    "explain digit.png --model zoo:mnist --foil runner-up --bundle evidence",
)
def explain(
    asked: AskOptions,
    workers: WorkerOptions,
    foil: options.Foil = None,
    method: Annotated[
        str,
        question(
            "gradcam, la, ixg, gradient, ig, lrp, lime, occlusion, scan ...",
            autocompletion=completion("methods", "explain"),
        ),
    ] = "gradcam",
    settings: options.Settings = None,
    layer: Annotated[str | None, question("The layer to explain. Default: found by itself.")] = None,
    contrast: Annotated[
        str | None,
        question(
            "weighted (default), none, mean, max, probability, loss; all.", autocompletion=completion("contrasts")
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A new folder for the answer with all evidence for it; see verify.")
    ] = None,
    batch_size: options.BatchSize = 16,
) -> None:
    """Show where in an image the network prefers one class over another.

    Contrasts say how foils are weighed; several, with commas, stand beside each other.

    Writes a page with all images, a figure of each and the numbers into the folder explained, or --out, and prints a
    short table. With --bundle this goes into that folder, with what would have to change, what is enough and checks
    of the maps, for ratherthan verify to compute again.
    """
    from ratherthan.app.answer import EXPLAIN, answer, attribution_method, contrasts_of

    def ask(network: rt.Model) -> Any:
        chosen = attribution_method(method, pairs(settings, layer=layer))
        return partial(rt.compare, methods=[chosen], contrasts=contrasts_of(contrast, network), batch_size=batch_size)

    answer(EXPLAIN, asked, workers, ask, batch_size, bundle, foil=foil)


@_command(
    "counterfactual digit.png --model zoo:mnist --foil 8",
    "counterfactual digits/ --model zoo:mnist --foil 3,5,8 --restarts 3 --out answers",
    "counterfactual digit.png --model zoo:mnist --foil each --method xgem --set retries=0 --json",
    "counterfactual coat.png --model zoo:fashion_mnist --manifold mnist_vae --manifold-weights mine.safetensors"
    " --out coat.html",
)
def counterfactual(
    asked: AskOptions,
    workers: WorkerOptions,
    foil: options.Foil = None,
    method: Annotated[
        str, question("cdeepex, xgem, cem, cem-maf ...", autocompletion=completion("methods", "counterfactual"))
    ] = "cdeepex",
    manifold: Annotated[
        str | None,
        about_model("Generative model of the images, e.g. mnist_vae. Default: the one that the model names."),
    ] = None,
    manifold_weights: Annotated[Path | None, about_model("Its weights. Default: those in the package.")] = None,
    bank: Annotated[
        str | None,
        options.about_data(
            "Images that show a search on a manifold where to begin: a folder or glob of any, or a set by name, of"
            " which the training part. Default: samples of the manifold."
        ),
    ] = None,
    restarts: Annotated[int | None, question("Independent answers to each question.", min=1)] = None,
    settings: options.Settings = None,
    seed: options.Seed = None,
    batch_size: options.BatchSize = 64,
) -> None:
    """Show what would have to change in an image for the network to call it something else.

    Writes a page with the way to each answer, a figure of each image and the numbers into the folder changed, or --out,
    and prints a short table.
    """
    from ratherthan.app.answer import COUNTERFACTUAL, answer, counterfactual_method
    from ratherthan.app.images import read_bank

    def ask(network: rt.Model) -> Any:
        makes = None
        if manifold is not None:
            makes = rt.Manifold.load(manifold, manifold_weights)
        elif manifold_weights is not None:
            makes = rt.Manifold.of(network, manifold_weights)
        images = None if bank is None else read_bank(bank, asked.data_root)
        given = pairs(settings, restarts=restarts, seed=seed, manifold=makes, bank=images)
        return partial(rt.counterfactual, method=counterfactual_method(method, given), batch_size=batch_size)

    answer(COUNTERFACTUAL, asked, workers, ask, batch_size, foil=foil)


@_command(
    "pertinent-positive digit.png --model zoo:mnist",
    "pertinent-positive photos/ --model torchvision:resnet50 --superpixels slic --count 200 --baseline 0.5"
    " --out enough.html",
    "pertinent-positive digit.png --model zoo:mnist --confidence 0.9 --baselines 0,0.5,mean --json",
    name="pertinent-positive",
)
def pertinent_positive(
    asked: AskOptions,
    workers: WorkerOptions,
    method: Annotated[
        str, question("cem-maf, cem or words.", autocompletion=completion("methods", "pertinent-positive"))
    ] = "cem-maf",
    superpixels: Annotated[str | None, question("slic, quickshift, felzenszwalb, grid or pixels.")] = None,
    count: Annotated[int | None, question("How many of them. Default: 200.", min=1)] = None,
    baseline: Annotated[
        str | None,
        question("What replaces what is left out: 0.5, mean, blur ... Default: what says least to the network."),
    ] = None,
    baselines: Annotated[str | None, question("Several, with commas: the part is enough on each.")] = None,
    kappa: Annotated[float | None, question("By how many logits the part keeps the class. Default: 5.")] = None,
    confidence: Annotated[float | None, question("Or which share of its probability, e.g. 0.9.")] = None,
    settings: options.Settings = None,
    batch_size: options.BatchSize = 64,
) -> None:
    """Show which small part of an image is enough for the network to say what it says.

    Parts are single pixels of small grey images, slic superpixels of others. They keep the class by a margin, at most
    by that of the whole image. Where what stands for nothing has the class already, nothing is needed.

    Writes a page with all images, a figure of each and the numbers into the folder enough, or --out, and prints a
    short table.
    """
    from ratherthan.app.answer import POSITIVE, answer
    from ratherthan.search.method import get_pertinent_positive_method
    from ratherthan.superpixels import DEFAULT_COUNT

    def ask(network: rt.Model) -> Any:
        parts = None
        if superpixels is not None or count is not None:
            parts = rt.Superpixels(superpixels or "slic", count or DEFAULT_COUNT)  # type: ignore[arg-type]
        several = baselines and tuple(map(options.value, options.words(baselines)))
        given = pairs(
            settings, baseline=baseline and options.value(baseline), superpixels=parts, baselines=several, kappa=kappa,
            confidence=confidence,
        )  # fmt: skip
        chosen = get_pertinent_positive_method(method, **given)
        return partial(rt.pertinent_positive, method=chosen, batch_size=batch_size)

    answer(POSITIVE, asked, workers, ask, batch_size)


@_command("verify evidence --model zoo:mnist", "verify evidence --model zoo:mnist --tolerance 0.01 --json")
def verify(
    folder: Annotated[Path, typer.Argument(help="What explain --bundle wrote.")],
    model: ModelOptions,
    continuation: options.Continuation = None,
    tolerance: Annotated[
        float | None, typer.Option(help="By which share of the largest logits and maps may differ. Default: 0.001.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a bundle of evidence: its files, then the network, then logits, maps, answers and checks, computed again.

    Ends with exit code 0 if all of it agrees, 1 if not.
    """
    found = rt.verify(folder, model.load(continuation), tolerance)
    if as_json:
        deviations = {name: each if isfinite(each) else None for name, each in found.deviations.items()}
        told = {"folder": str(folder), "agrees": found.agrees, "tolerance": found.tolerance}
        say_json(told | {"differences": list(found.differences), "deviations": deviations})
    else:
        say(str(found))
    raise typer.Exit(0 if found.agrees else 1)


@_command(
    "evaluate mask --model zoo:mnist --data mnist --data-root data --methods gradcam,la --contrasts none,weighted"
    " --out runs/mask --limit 1000",
    "evaluate mask --model zoo:mnist --data mnist --preset sound --out runs/sound --resume --workers 4",
)
def evaluate(
    experiment: Annotated[
        str,
        typer.Argument(
            help="mask, equal-mask, sign-perturbation, insertion, sanity ...", autocompletion=completion("experiments")
        ),
    ],
    model: ModelOptions,
    sets: SetOptions,
    workers: WorkerOptions,
    methods: Annotated[
        str | None, question("With commas. Default: the experiment's.", autocompletion=completion("methods"))
    ] = None,
    contrasts: Annotated[
        str | None, question("With commas. Default: the experiment's.", autocompletion=completion("contrasts"))
    ] = None,
    preset: Annotated[str | None, question("Which protocol: sound, reference or paper, where it has them.")] = None,
    settings: options.Settings = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the run. Default: runs/EXPERIMENT.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once. Default: what fits.")] = None,
    seed: options.Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure how faithful explanations are; killed, it goes on where it stopped with --resume."""
    from ratherthan.evaluation.experiment import get_experiment

    network = model.load()
    chosen = get_experiment(experiment, **pairs(settings, preset=preset))
    folder = out or Path("runs") / experiment
    check_place(folder)
    run = rt.evaluate(
        chosen, network, sets.dataset(), out=folder, methods=methods and words(methods),
        contrasts=contrasts and words(contrasts), label_map=sets.label_map, limit=sets.limit, batch_size=batch_size,
        seed=seed or 0, resume=resume, progress=True, **vars(workers),
    )  # fmt: skip
    _show(run, folder, as_json)


def _records(frame: Any) -> Any:
    """The rows of a table as JSON has them."""
    return json.loads(frame.to_json(orient="records"))


def _show(run: Any, folder: Path, as_json: bool) -> None:
    """Print the summary as JSON; or the table, after writing it, the plot and a page of both into the run's folder."""
    for name, reason in run.skipped:
        warn(f"skipped {name}: {reason}")
    if as_json:
        summary = _records(run.summary())
        skipped = [{"image": name, "reason": reason} for name, reason in run.skipped]
        say_json({"folder": str(folder), "summary": summary, "skipped": skipped})
        return
    for name in ("table.md", "table.tex", "plot.png", "run.html"):
        run.save(folder / name)
    say(run.to_markdown(intervals=False).rstrip() + "\n")
    written = {"run": "", "tables": f"/table.md, {folder}/table.tex", "plot": "/plot.png", "page": "/run.html"}
    say("\n".join(f"{what:8} {folder}{where}" for what, where in written.items()))


@_command("bench", "bench --tasks exact,placed,saturated --methods random,gradcam,ixg --samples 50 --out known --json")
def bench(
    out: Annotated[Path, typer.Option(help="The folder of all runs. The same command goes on with them.")] = Path(
        "bench"
    ),
    methods: Annotated[
        str | None, question("With commas. Default: ours, and noise.", autocompletion=completion("methods"))
    ] = None,
    tasks: Annotated[
        str | None, question("exact, placed, saturated, parts, mosaic, sensitivity; with commas. Default: all.")
    ] = None,
    samples: Annotated[int | None, question("Images of each task. Default: 200, of photographs 60.", min=1)] = None,
    data_root: options.DataRoot = None,
    seed: options.Seed = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask "why P, rather than Q?" where the answer is known, and measure how near methods come to it.

    parts needs MNIST; mosaic and sensitivity need imagenet_samples and the weights of zoo:efficientnet_lite0.
    """
    check_place(out)
    found = rt.bench(
        out, methods=methods and words(methods), tasks=tasks and words(tasks), samples=samples, seed=seed or 0,
        data_root=data_root, progress=True,
    )  # fmt: skip
    if as_json:
        rows = {"summary": found.summary(), "gains": found.gains()}
        say_json({"folder": str(out)} | {key: _records(each) for key, each in rows.items()})
        return
    for task, run in found.runs.items():
        run.save(out / task / "run.html")
    written = found.save(out / "bench.md")
    say(f"{found.to_markdown()}\ntable    {written}\npages    {out}/TASK/run.html")


@_command(
    "audit --model zoo:mnist --data mnist --data-root data --out audited",
    "audit --model torchvision:resnet50 --data photos/ --limit 2000 --resume --json",
)
def audit(
    model: ModelOptions,
    sets: SetOptions,
    workers: WorkerOptions,
    method: Annotated[
        str, question("gradcam, la, ixg ...", autocompletion=completion("methods", "explain"))
    ] = "gradcam",
    contrast: Annotated[
        str, question("How what it says is weighed against the label.", autocompletion=completion("contrasts"))
    ] = "weighted",
    settings: options.Settings = None,
    regions: Annotated[
        Path | None, question("Where the objects are, a .json file of boxes by image: what lies outside is background.")
    ] = None,
    places: Annotated[
        int, question("Draw for each class where it is told from all others, at so many places at most.", min=0)
    ] = 0,
    out: Annotated[Path, typer.Option(help="The folder of the run.")] = Path("audited"),
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once. Default: what fits.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Look through a labelled data set: what is taken for what, where that is decided, and which labels are suspect.

    Pieces of images that decide by themselves, such as a ruler or a stamp that belongs to one class, are named. Killed,
    it goes on where it stopped with --resume.
    """
    from ratherthan.app.answer import attribution_method
    from ratherthan.auditing.page import table_of
    from ratherthan.evaluation.localisation import read_regions

    check_place(out)
    where = None if regions is None else read_regions(regions)
    found = rt.audit(
        model.load(), sets.dataset(), out=out, method=attribution_method(method, pairs(settings)), contrast=contrast,
        places=places, label_map=sets.label_map, limit=sets.limit, batch_size=batch_size, resume=resume, progress=True,
        **vars(workers),
    )  # fmt: skip
    for name, reason in found.run.skipped:
        warn(f"skipped {name}: {reason}")
    pieces = found.pieces(progress=True)
    files = {"page": found.save(out / "audit.html", where), "table": found.save(out / "images.csv")}
    if places:
        files["atlas"] = found.save_atlas(out / "atlas", progress=True)
    if as_json:
        frames = {
            "confusions": found.confusions(regions),
            "suspects": found.suspects(_SUSPECTS),
            "pieces": table_of(pieces),
        }
        rows = {name: _records(each) for name, each in frames.items()}
        counts = {"images": len(found.to_frame()), "wrong": int(found.to_frame()["wrong"].sum())}
        say_json({"folder": str(out), **counts, **rows, "files": [str(path) for path in files.values()]})
        return
    say("\n".join([str(found), *(f"{what:8} {path}" for what, path in files.items())]))


@_command(
    "check --baseline zoo:fashion_mnist --model zoo:fashion_mnist_resnet --data fashion_mnist --limit 100",
    "check --baseline net.py:make --baseline-weights old.safetensors --model net.py:make --weights new.safetensors"
    " --data photos/ --out drift.html",
)
def check(
    model: ModelOptions,
    sets: SetOptions,
    baseline: Annotated[str, about_model("The network that is trusted, as for --model.")],
    baseline_weights: Annotated[Path | None, about_model("Its weights.")] = None,
    method: Annotated[
        str, question("gradcam, la, ixg ...", autocompletion=completion("methods", "explain"))
    ] = "gradcam",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="How often it may alarm where nothing is worse.")] = 0.01,
    out: Annotated[Path | None, typer.Option(help="A .html file: a page of what has changed.")] = None,
    batch_size: options.BatchSize = 16,
    as_json: options.AsJson = False,
) -> None:
    """Check a new network against one that is trusted: on which labelled images does it say otherwise, and why?

    Ends with exit code 1 if labels have lost probability, by a test of random signs at the level --alpha, else with 0.
    """
    from dataclasses import replace

    if out is not None:
        check_place(out, {".html": "page"})
    trusted = replace(model, model=baseline, weights=baseline_weights).load()
    found = rt.compare_models(
        trusted, model.load(), sets.dataset(), method=method, label_map=sets.label_map, limit=sets.limit,
        batch_size=batch_size, progress=True,
    )  # fmt: skip
    files = [] if out is None else [found.save(out)]
    worse = found.worse(alpha)
    if as_json:
        say_json({**found.summary(), "alpha": alpha, "worse": worse, "files": list(map(str, files))})
    else:
        say("\n".join([str(found), "worse" if worse else "not worse", *(f"page     {path}" for path in files)]))
    raise typer.Exit(1 if worse else 0)


@_command(
    "train zoo:mnist --data-root data --out mnist.safetensors",
    "train zoo:flowers102 --fresh",
    "train zoo:vae --data photos --size 64 --out photos.safetensors",
)
def train(
    network: Annotated[
        str,
        typer.Argument(metavar="zoo:NAME", help="zoo:vae learns your own images.", autocompletion=completion("models")),
    ],
    data: Annotated[
        str | None,
        options.about_data("For zoo:vae your images: a folder of any depth, a .tar, ... Else as --data-root."),
    ] = None,
    data_root: options.DataRoot = None,
    size: Annotated[str | None, typer.Option(help="For zoo:vae, 64 or HEIGHTxWIDTH. Default: as the images.")] = None,
    out: Annotated[Path | None, typer.Option(help="Weights file, or folder. Default: NAME.safetensors.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    seed: options.Seed = None,
    device: options.Device = "cpu",
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on from a checkpoint, or start afresh.")] = True,
) -> None:
    """Train a network of the zoo; killed, it goes on where it stopped.

    A generative model gets two sheets beside its weights: samples, and a walk along each latent. With zoo:vae a folder
    of images becomes a manifold of their size and colour: Manifold.load("zoo:vae", weights="photos.safetensors").
    """
    sides = options.image_size(size)
    try:
        path = rt.train(
            network, data or data_root, out, epochs=epochs, seed=seed or 0, device=device, resume=resume,
            image_size=sides, progress=True,
        )  # fmt: skip
    except KeyboardInterrupt:
        text = "stopped by Ctrl-C; the same command goes on after the last finished epoch"
        raise KeyboardInterrupt(text) from None
    card = json.loads(path.with_suffix(".json").read_text())
    for split, values in card["metrics"].items():
        (kind, count), *metrics = values.items()
        figures = [f"{key.replace('_', ' ')} {value:.4f}" for key, value in metrics]
        say(f"{split} ({count:,} {kind}): {', '.join(figures)}")
    say(f"weights  {path}\ncard     {path.with_suffix('.md')}")
    if (sheet := path.with_suffix(".samples.png")).is_file():
        say(f"sheets   {sheet}\n         {path.with_suffix('.traversal.png')}")


@_command("demo", "demo --out somewhere")
def demo(out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo")) -> None:
    """Explain a dozen handwritten digits that nearly were taken for another, and a photograph.

    Digits and networks lie in packages that come with the extra "demo".
    """
    from ratherthan.app.demo import run

    check_place(out)
    say("\n".join(run(out)))


@_command("list methods", "list models --json", name="list")
def list_(
    topic: Annotated[Topic, typer.Argument(help="What to list.")],
    as_json: options.AsJson = False,
) -> None:
    """List the names there are to choose from, with a line about each."""
    rows = listed(topic)
    if as_json:
        say(json.dumps(rows, indent=1))
        return
    for command in dict.fromkeys(row.get("command", "") for row in rows):
        here = [row for row in rows if row.get("command", "") == command]
        wide = max(len(row["name"]) for row in here)
        say("\n".join([f"{command}:"] * bool(command) + [f"{row['name']:{wide}}  {row['help']}" for row in here]))


@_command("cite gradcam weighted", "cite")
def cite(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Methods, contrasts, experiments, as ratherthan list tells them."),
    ] = None,
) -> None:
    """Print BibTeX entries of ratherthan and of what was used."""
    say(rt.cite(*names or ()))


@_command(
    "serve",
    "serve --model zoo:mnist --also zoo:fashion_mnist --cases served",
    "serve --model hf:microsoft/resnet-50 --port 9000",
)
def serve(
    model: ServedOptions,
    also: Annotated[list[str] | None, about_model("Another model to choose from; may be repeated.")] = None,
    cases: Annotated[Path, typer.Option(help="The folder where cases are kept, and found again.")] = Path("served"),
    host: Annotated[str, typer.Option(help="Where to listen. Others than loopback let other machines ask.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
) -> None:
    """Answer questions on a web page, on this machine: upload or pick an example, choose fact and foil.

    Nothing leaves the machine. What was asked and answered lies in the folder of the cases; stop with Ctrl-C.
    """
    try:
        from ratherthan.app.serve import run
    except ModuleNotFoundError as error:
        remedy = "pip install 'ratherthan[serve]'" + see("a-package-is-missing")
        raise InputError(f"{error.name} is not installed: {remedy}") from error
    check_place(cases)
    run(
        [model.load(), *(rt.load(name, device=model.device, trust_code=True) for name in also or ())], cases, host, port
    )


@_command("doctor", "doctor --json")
def doctor(as_json: options.AsJson = False) -> None:
    """Show versions, the device, which extras, weights and data are here, and how to get the others."""
    from ratherthan.app.doctor import as_text, look

    say_json(look()) if as_json else say(as_text(look()))


noted = typer.Typer(help="Verdicts that reviewers saved on pages of answers.")
app.add_typer(noted, name="reviews")


@_command("reviews merge anna.json ben.json --out reviews.csv", name="merge", group=noted)
def reviews_merge(
    files: Annotated[list[Path], typer.Argument(help="What pages saved, a file of each reviewer, named after them.")],
    out: Annotated[Path | None, typer.Option(help="A .csv or .json file. Default: the table is printed.")] = None,
) -> None:
    """Put the verdicts and comments of several people into one table, and say how far they agree."""
    from ratherthan.app import reviews

    reviews.merge(files, out)


studied = typer.Typer(help="Studies with people: does a map help to foretell what the network says?")
app.add_typer(studied, name="study")


@_command(
    "explain photos/ --model zoo:flowers102 --contrast none,weighted --out explained",
    "study make explained/*.safetensors --model zoo:flowers102 --judges 20 --out study",
    name="make",
    group=studied,
)
def study_make(
    files: Annotated[list[Path], typer.Argument(help="Explanations that explain saved, a condition each.")],
    model: ModelOptions,
    out: Annotated[Path, typer.Option(help="A new folder for the pages and their key.")] = Path("study"),
    judges: Annotated[int, typer.Option(min=1, help="How many people judge: each has a page.")] = 20,
    bare: Annotated[bool, typer.Option("--bare", help="Images without a map are a condition, too.")] = False,
    baseline: Annotated[str, question("What covers a part: 0.5, mean, blur ...")] = "0.5",
    consent: Annotated[Path | None, typer.Option(help="A text that judges agree to. Default: one that fits.")] = None,
    seed: options.Seed = None,
) -> None:
    """Make a page of trials for each judge: will the network still say P when this part is covered, or Q?

    Each sees every image under one condition, and no page tells which. Give out the pages; keep key.json.
    """
    from ratherthan.app import study
    from ratherthan.files import check_free, read_text

    check_free(out)
    text = study.CONSENT if consent is None else read_text(consent)
    results = [rt.Explanation.load(path) for path in files]
    key = study.make(results, model.load(), out, judges, bare, options.value(baseline), text, seed or 0)
    left = f"{key['left_out']} left out: no two parts of equal size leave what the network says and change it"
    say(f"{key['images']} images ({left})\nconditions {'; '.join(key['conditions'])}")
    say(f"pages    {out}/pages/judge-01.html ... ({judges})\nkey      {out}/key.json")


@_command("study results study/key.json answers/*.json", name="results", group=studied)
def study_results(
    key: Annotated[Path, typer.Argument(help="What study make wrote beside the pages.")],
    files: Annotated[list[Path], typer.Argument(help="What the pages saved, a file of each judge.")],
    as_json: options.AsJson = False,
) -> None:
    """Tell how often judges were right under each condition, and how far conditions differ."""
    from ratherthan.app import study

    known = study.read(key, study.KEY)
    told = study.marked(known, [study.read(path, study.ANSWERS) for path in files])
    tables = study.analysed(told, known["conditions"])
    counts = {"judges": told["judge"].nunique(), "images": told["image"].nunique(), "answers": len(told)}
    if as_json:
        say_json({"study": known["study"], **counts, **{name: _records(each) for name, each in tables.items()}})
        return
    shown = (each.to_string(index=False, float_format="{:.3f}".format) for each in tables.values())
    say("\n\n".join([", ".join(f"{number} {what}" for what, number in counts.items()), *shown]))
