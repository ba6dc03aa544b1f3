"""One training harness for all recipes: seeded, checkpointed after every epoch, resumable to the same weights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional

from ratherthan import data
from ratherthan.errors import InputError, first_line
from ratherthan.search.concepts import MEASURES, effects
from ratherthan.search.manifold import Manifold
from ratherthan.zoo.recipes import Recipe, recipe
from ratherthan.zoo.registry import ENTRIES, MANIFOLDS, ZooModel, get, read_weights
from ratherthan.zoo.sheets import write_sheets
from ratherthan.zoo.vae import OwnImages

_TRAVERSED = 64  # held-out images from which the latents of a generative model are moved, to see what they do


@dataclass(frozen=True)
class Progress:
    """Where a training stands: after `batch` of `batches` batches of epoch `epoch` (from 1) of `epochs`."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float


def train(
    name: str,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = True,
    limit: int | None = None,
    image_size: tuple[int, int] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a network of the zoo and write its weights and its model card.

    After every epoch a checkpoint is written beside the weights (temporary file, fsync, rename). A training that was
    killed goes on from there and ends, on the same machine with the same number of threads, at exactly the weights of
    an uninterrupted one. The global random numbers are as before afterwards. Beside a generative model lie two sheets,
    `NAME.samples.png` and `NAME.traversal.png` (see `ratherthan.zoo.sheets`).

    Any folder of images makes a manifold of their size and colour: `train("zoo:vae", "photos", image_size=(64, 64))`,
    then `Manifold.load("zoo:vae", weights="vae.safetensors")`.

    Args:
        name: The network, e.g. `zoo:mnist`.
        data_root: The folder of data sets; by default the environment variable RATHERTHAN_DATA. For `zoo:vae` the
            folder of your own images, at any depth; every tenth is held out.
        out: The file to write (`.safetensors`), or the folder for `NAME.safetensors`; by default the working directory.
            The card lies beside it, as `.md` and `.json`.
        epochs: Passes over the training images; by default the recipe's.
        seed: Of the first weights, the order of the images and their augmentation.
        device: Where to compute, e.g. "cuda".
        resume: Go on from a checkpoint where there is one; False starts afresh.
        limit: Use only the first images of each split, for a quick trial.
        image_size: For `zoo:vae`, the height and width that images are brought to; by default those of the first.
        report: Called after every batch.

    Returns:
        The path of the weights.

    Raises:
        InputError: No such network, recipe or device, no data, no epoch, a checkpoint of other settings lies here, or a
            size is given for a network that has one.
    """
    entry = get(name, ENTRIES | MANIFOLDS)
    if entry.recipe is None:
        raise InputError(f"zoo:{entry.name} has no recipe: its weights are given, not trained")
    how = recipe(entry.recipe)
    epochs = how.epochs if epochs is None else epochs
    if epochs < 1:
        raise InputError(f"epochs must be at least 1, not {epochs}")
    if isinstance(how, OwnImages):
        entry, how = _own(entry, how, data_root, image_size)
    elif image_size is not None:
        raise InputError(f"zoo:{entry.name} has its own image size, {entry.image_size}; only zoo:vae takes one")
    run = _Run(entry, how, data_root, epochs, seed, _device(device), limit)
    out = Path(out or ".")
    out = out if out.suffix == ".safetensors" else out / f"{entry.name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".checkpoint")
    if not resume:
        checkpoint.unlink(missing_ok=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        run.restore(checkpoint)
        for epoch in range(run.done, run.epochs):
            run.epoch(epoch, report)
            run.save(checkpoint)
        card = run.card()
    state = {key: value.cpu().contiguous() for key, value in run.network.state_dict().items()}
    metadata = {"format": "pt", "zoo": entry.name, "class_names": json.dumps(card["classes"])}
    metadata["input"] = json.dumps({"image_size": entry.image_size, "channels": entry.channels})
    if card["effects"]:
        metadata["effects"] = json.dumps(card["effects"])
    _write(out, to_safetensors(state, metadata))
    if entry.name in MANIFOLDS:
        write_sheets(entry, run.network, run.held_out(32).to(run.device), out)
    _write(out.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())
    _write(out.with_suffix(".md"), _markdown(card).encode())
    checkpoint.unlink(missing_ok=True)
    return out


@dataclass
class _Run:
    """The state of one training: what learns, epochs done."""

    entry: ZooModel
    recipe: Recipe
    root: str | Path | None
    epochs: int
    seed: int
    device: torch.device
    limit: int | None
    done: int = 0
    skipped: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.data = self._split(recipe.train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = self.entry.build()
            if recipe.start:
                _adopt(self.network, self.root, recipe.start)
            self.network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # faster
            for module in recipe.frozen:
                self.network.get_submodule(module).requires_grad_(False)
            self.learner = recipe.learner(self.network)
        self.settings = {  # what must agree for a checkpoint to be gone on from
            **{"zoo": self.entry.name, "recipe": asdict(recipe), "epochs": self.epochs, "seed": self.seed},
            **{"limit": self.limit, "data": self.data.fingerprint()},
        }

    def _split(self, split: str) -> data.Dataset:
        whole = self.recipe.open(self.root, split)
        whole = whole if whole.transform else whole.with_transform(partial(_fit, self.entry))
        return whole.subset(range(len(whole))[: self.limit])

    def epoch(self, number: int, report: Callable[[Progress], None] | None) -> None:
        """Train for one epoch. All its randomness follows from the seed and its number."""
        key = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        torch.manual_seed(int.from_bytes(key[7:14], "big"))  # dropout draws from the global numbers
        order = self.recipe.order(self.data.labels, generator)
        batches = data.batches(self.data, self.recipe.batch_size, self.recipe.workers, order)
        recipe = self.recipe.at(number, self.epochs)
        self.network.train()
        for index, (_, images, labels) in enumerate(batches):
            progress = (number + index / len(batches)) / self.epochs
            self.learner.set_rate(self.recipe.rate_at(progress))
            images, targets = recipe.examples(images, labels, generator, training=True)
            loss = self.learner.step(self._normalised(images), targets.to(self.device), index)
            if report:
                report(Progress(number + 1, self.epochs, index + 1, len(batches), loss))
        self.skipped |= {f"{skip.id}: {skip.reason}" for skip in batches.skipped}
        self.done = number + 1

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.entry.mean, self.entry.std))
        return ((images - mean) / std).to(self.device, memory_format=torch.channels_last)

    @torch.no_grad()
    def measure(self, split: str) -> dict[str, float]:
        """The recipe's metrics on a split, in evaluation mode."""
        self.network.eval()
        batches = data.batches(self._split(split), 256, self.recipe.workers)
        generator, outputs = torch.Generator().manual_seed(self.seed), []
        torch.manual_seed(self.seed)  # a generative model may draw samples
        for _, images, labels in batches:
            images, targets = self.recipe.examples(images, labels, generator, training=False)
            outputs.append((self.learner.outputs(self._normalised(images)).cpu(), targets))
        logits, targets = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        self.skipped |= {f"{skip.id}: {skip.reason}" for skip in batches.skipped}
        return {"images": len(targets), **self.recipe.metrics(logits, targets)}

    @torch.no_grad()
    def effects(self) -> dict[str, list[list[float]]]:
        """For each concept correlation and strength of every latent, measured on held-out images; see `Effect`."""
        if self.entry.measure is None:
            return {}
        self.network.eval()
        manifold = Manifold(self.network, self.network.latents, scale=self.entry.scale)  # type: ignore[arg-type]
        latents = manifold.encode(self.held_out(_TRAVERSED).to(self.device))
        found = effects(manifold, latents, MEASURES[self.entry.measure])
        return {
            name: [[round(x, 3) for x in row.nan_to_num(0).tolist()] for row in (each.correlation, each.strength)]
            for name, each in found.items()
        }

    def held_out(self, count: int) -> Tensor:
        """Images of a split that was not trained on, evenly spread; (N, C, H, W) in [0, 1]."""
        whole = self._split(self.recipe.tests[0])
        chosen = whole.subset(range(0, len(whole), max(1, len(whole) // count))[:count])
        return next(iter(data.batches(chosen, count)))[1]

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "settings": self.settings,
            "done": self.done,
            "skipped": sorted(self.skipped),
            **{name: part.state_dict() for name, part in self.learner.parts.items()},
        }
        temporary = path.with_suffix(".checkpoint.part")
        with temporary.open("wb") as file:
            torch.save(state, file)
        _commit(temporary, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint where there is one."""
        if not path.is_file():
            return
        hint = "remove it or use resume=False"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            differing = [key for key, value in self.settings.items() if state["settings"].get(key) != value]
        except Exception as error:  # whatever the unpickler makes of foreign bytes
            raise InputError(f"{path} is no checkpoint; {hint}") from error
        if differing:
            raise InputError(f"{path} is of a training with other {', '.join(differing)}; {hint}")
        self.done, self.skipped = state["done"], set(state["skipped"])
        for name, part in self.learner.parts.items():
            part.load_state_dict(state[name])

    def card(self) -> dict[str, Any]:
        """The model card as data."""
        entry, options = self.entry, f" --epochs {self.epochs}" if self.epochs != self.recipe.epochs else ""
        options += " --size {}x{}".format(*entry.image_size) if entry.own else ""
        return {
            "name": f"zoo:{entry.name}",
            "about": self.recipe.about(self.data.class_names),
            "classes": list(self.data.class_names) if entry.output == "logits" else [],
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "input": {key: getattr(entry, key) for key in ("channels", "image_size", "mean", "std", "fit")},
            "training_images": len(self.data),
            "metrics": {split: self.measure(split) for split in self.recipe.tests},
            "effects": self.effects(),
            "settings": self.settings,
            "skipped": sorted(self.skipped),
            "command": f"ratherthan train zoo:{entry.name} --data DIR --seed {self.seed}{options}",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": f"{self.device.type}, {torch.get_num_threads()} threads",
        }


def _own(
    entry: ZooModel, how: OwnImages, folder: str | Path | None, size: tuple[int, int] | None
) -> tuple[ZooModel, OwnImages]:
    """Fit a network to somebody's images."""
    try:
        channels, *found = data.images(folder)[0][0].shape
    except data.CorruptImage as error:
        raise InputError(f"the first image tells size and colour, but {error}") from error
    image_size = size or (found[0], found[1])
    return entry.sized(image_size, channels), replace(how, image_size=image_size, channels=channels)


def _fit(entry: ZooModel, image: Any) -> Tensor:
    if isinstance(image, Tensor):
        wanted = entry.image_size
        small = image.shape[1:] != wanted
        return functional.interpolate(image[None], wanted, mode="bilinear", antialias=True)[0] if small else image
    return data.fit_image(image, entry.image_size, entry.fit, entry.crop_fraction, entry.channels)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without CUDA
        raise InputError(f"device {name!r} cannot be used here: {first_line(error)}") from error


def _adopt(network: nn.Module, root: str | Path | None, name: str) -> None:
    """Take over the tensors that fit; the others (the head for other classes) keep their first values."""
    root = Path(root or os.environ.get("RATHERTHAN_DATA", "."))
    found = [path for path in (root / name, root.parent / name) if path.is_file()]
    if not found:
        raise InputError(f"no {root / name}: this training starts from weights that must lie there")
    own = network.state_dict()
    state = {key: tensor for key, tensor in read_weights(found[0])[0].items() if key in own}
    network.load_state_dict({**own, **{key: state[key] for key in state if state[key].shape == own[key].shape}})


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    _commit(temporary, path)


def _commit(temporary: Path, path: Path) -> None:
    """Make a finished temporary file the file: a reader sees the old one or the new one, never half of one."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _markdown(card: dict[str, Any]) -> str:
    settings, metrics = card["settings"], card["metrics"]
    columns = list(next(iter(metrics.values())))
    rows = [f"| {split} | {' | '.join(_figure(*cell) for cell in row.items())} |" for split, row in metrics.items()]
    table = [f"| split | {' | '.join(columns).replace('_', ' ')} |", "| --- " * (1 + len(columns)) + "|", *rows]
    return f"""# {card["name"]}

{card["parameters"]:,} parameters, {card["about"]}.
Trained on {card["training_images"]:,} images of {settings["recipe"]["dataset"]} for {settings["epochs"]} epochs, seed \
{settings["seed"]} (content {settings["data"]}); {len(card["skipped"])} images skipped as corrupt.

{chr(10).join(table)}

{_told(card["effects"])}Made by `{card["command"]}` with torch {card["versions"]["torch"]} on {card["device"]}.
"""


def _told(effects: dict[str, list[list[float]]]) -> str:
    """The coordinates that move each concept most."""
    lines = []
    for name, (correlations, strengths) in effects.items():
        first = sorted(range(len(strengths)), key=lambda i: -abs(strengths[i]))[:3]
        lines.append(f"- {name}: " + ", ".join(f"z{i} {strengths[i]:+.2f} ({correlations[i]:+.2f})" for i in first))
    heading = "What its latents move, in standard deviations of the concept per unit (and their correlation):\n\n"
    return heading + "\n".join(lines) + "\n\n" if lines else ""


def _figure(metric: str, value: float) -> str:
    if metric == "images":
        return f"{value:,}"
    return f"{value:.2%}" if metric.endswith("accuracy") else f"{value:.3f}"


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Draw a bar in the terminal; what it yields is the `report` of `train`."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("loss {task.fields[loss]:.4f}")
    console = Console(stderr=True)
    with Bar(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=None, epoch="-", loss=float("nan"))

        def report(step: Progress) -> None:
            done = (step.epoch - 1) * step.batches + step.batch
            shown = f"{step.epoch}/{step.epochs}"
            bar.update(task, total=step.epochs * step.batches, completed=done, epoch=shown, loss=step.loss)

        yield report
