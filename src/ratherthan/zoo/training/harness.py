"""One training harness for all recipes: seeded, checkpointed after every epoch, resumable to the same weights."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ratherthan import data
from ratherthan.errors import InputError, let_stop
from ratherthan.files import check_place, locked, write_atomically
from ratherthan.inference import to_device
from ratherthan.outputs import OUTPUTS
from ratherthan.progress import Progress, reporter
from ratherthan.settings import AtLeastOne, Interval, Seed, check_value
from ratherthan.weights import read_weights
from ratherthan.zoo.concepts import effects
from ratherthan.zoo.registry import ZooDecoder, ZooEntry, get
from ratherthan.zoo.training.recipes import Recipe

_STEPS = 11  # from -3 to 3
_SHOWN = 32  # latents drawn: of more, those that change the image most
_TRAVERSED = 64  # held-out images from which the latents of a generative model are moved, to see what they do


def train(
    name: str, data_root: str | Path | None = None, out: str | Path | None = None, *,
    epochs: int | None = None, seed: int = 0, device: str = "cpu", resume: bool = True, limit: int | None = None,
    image_size: tuple[int, int] | None = None, progress: Progress = None,
) -> Path:  # fmt: skip
    """Train a network of the zoo and write its weights and its model card.

    After every epoch a checkpoint is written beside the weights. A training that was killed goes on from there and
    ends, on the same machine with the same number of threads, at exactly the weights of an uninterrupted one. The
    global random numbers are as before afterwards. Beside a generative model lie two sheets, `NAME.samples.png` and
    `NAME.traversal.png` (see `write_sheets`).

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
        progress: True draws a bar; a callable gets (batches done, batches of all epochs).

    Returns:
        The path of the weights.

    Raises:
        InputError: No such network, recipe or device, no data, no epoch, a checkpoint of other settings lies here, or a
            size is given for a network that has one.
    """
    entry = get(name, generative=None)
    recipe = entry.recipe
    if recipe is None:
        raise InputError(f"zoo:{entry.name} has no recipe: its weights are given, not trained")
    out = Path("." if out is None else out)
    check_place(out, [".safetensors"])
    out = out if out.suffix == ".safetensors" and not out.is_dir() else out / f"{entry.name}.safetensors"
    epochs = recipe.epochs if epochs is None else epochs
    check_value("epochs", AtLeastOne, epochs)
    check_value("seed", Seed, seed)
    if entry.any_size:
        channels, *first = data.images(data_root)[0][0].shape
        entry = entry.sized(image_size or (first[0], first[1]), channels)
    elif image_size is not None:
        raise InputError(f"zoo:{entry.name} has its own image size, {entry.image_size}; only zoo:vae takes one")
    training = _Training(entry, recipe, data_root, epochs, seed, device, limit)
    checkpoint = out.with_suffix(".checkpoint")
    kept = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
    with locked(out), kept, reporter(progress, "training") as report:
        if not resume:
            checkpoint.unlink(missing_ok=True)
        training.restore(checkpoint)
        for epoch in range(training.done, epochs):
            training.epoch(epoch, report)
            training.save(checkpoint)
        _write(out, training, training.card())
        checkpoint.unlink(missing_ok=True)
    return out


def _write(out: Path, training: _Training, card: dict[str, Any]) -> None:
    """Weights, sheets and card, each whole or not at all; the card last."""
    entry, network = training.entry, training.network
    state = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    told = {"class_names": card["classes"]}
    told |= {"input": {key: getattr(entry, key) for key in ("image_size", "channels")}} if entry.sees is None else {}
    told |= {"effects": card["effects"]} if card["effects"] else {}
    metadata = {"format": "pt", "zoo": entry.name, **{key: json.dumps(value) for key, value in told.items()}}
    write_atomically(out, [_sorted(to_safetensors(state, metadata))])
    if entry.generative:
        write_sheets(entry, network, training.held_out(32).to(training.device), out)
    write_atomically(out.with_suffix(".json"), [(json.dumps(card, indent=1) + "\n").encode()])
    write_atomically(out.with_suffix(".md"), [_markdown(card).encode()])


def _sorted(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library's own changes from one run to the next."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


@dataclass
class _Training:
    """The state of one training: what learns, epochs done."""

    entry: ZooEntry
    recipe: Recipe
    root: str | Path | None
    epochs: int
    seed: int
    device: str
    limit: int | None
    done: int = 0
    skipped: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        to_device(torch.empty(0), self.device)
        self.data = self._split(self.recipe.train)
        # of images the channels last: that is faster
        self.layout = torch.channels_last if self.entry.sees is None else torch.preserve_format
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = self.entry.build()
            if self.recipe.start:
                _adopt(self.network, self.root, self.recipe.start)
            self.network.to(self.device).to(memory_format=self.layout)  # type: ignore[call-overload]
            for module in self.recipe.frozen:
                self.network.get_submodule(module).requires_grad_(False)
            self.learner = self.recipe.learner(self.network)
        self.settings = {  # what must agree for a checkpoint to be gone on from
            "zoo": self.entry.name, "recipe": asdict(self.recipe), "image_size": self.entry.image_size,
            "epochs": self.epochs, "seed": self.seed, "limit": self.limit, "data": self.data.fingerprint(),
        }  # fmt: skip

    def _split(self, split: str) -> data.Dataset:
        whole = self.recipe.open(self.root, split)
        whole = whole if whole.transform else whole.with_transform(self.entry.inputs.prepare)
        return whole.subset(range(len(whole))[: self.limit])

    def epoch(self, number: int, report: Callable[..., None]) -> None:
        """Train for one epoch. All its randomness follows from the seed and its number."""
        key = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        torch.manual_seed(int.from_bytes(key[7:14], "big"))  # dropout draws from the global numbers
        order = self.recipe.order(self.data.labels, generator)
        batches = data.batches(self.data, self.recipe.batch_size, self.recipe.workers, order)
        recipe, steps = self.recipe.at(number, self.epochs), len(batches)
        self.learner.recipe = recipe
        self.network.train()
        for index, (_, images, labels) in enumerate(batches):
            self.learner.set_rate(recipe.rate_at((number + index / steps) / self.epochs))
            images, targets = recipe.examples(images, labels, generator, training=True)
            loss = self.learner.step(self._normalised(images), targets.to(self.device), index)
            report(number * steps + index + 1, self.epochs * steps, f"loss {loss:.4f}")
        self.skipped |= {f"{skip.id}: {skip.reason}" for skip in batches.skipped}
        self.done = number + 1

    def _normalised(self, images: Tensor) -> Tensor:
        return self.entry.inputs.normalise(images).to(self.device, memory_format=self.layout)

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
        return {self.entry.inputs.name: len(targets), **self.recipe.metrics(logits, targets)}

    @torch.no_grad()
    def effects(self) -> dict[str, list[list[float]]]:
        """For each concept correlation and strength of every latent, measured on held-out images; see `Effect`."""
        if self.entry.measure is None:
            return {}
        self.network.eval()
        latents = self.network.encode(self._normalised(self.held_out(_TRAVERSED)))  # type: ignore[operator]
        found = effects(ZooDecoder(self.network, self.entry.scale), latents, self.entry.measure)
        pairs = {name: torch.stack([each.correlation, each.strength]) for name, each in found.items()}
        return {name: pair.nan_to_num(0).round(decimals=3).tolist() for name, pair in pairs.items()}

    def held_out(self, count: int) -> Tensor:
        """Images of a split that was not trained on, evenly spread; (N, C, H, W) in [0, 1]."""
        return next(iter(data.batches(self._split(self.recipe.tests[0]).spread(count), count)))[1]

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        buffer, parts = io.BytesIO(), {name: part.state_dict() for name, part in self.learner.parts.items()}
        torch.save({"settings": self.settings, "done": self.done, "skipped": sorted(self.skipped), **parts}, buffer)
        write_atomically(path, [buffer.getvalue()])

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint where there is one."""
        if not path.is_file():
            return
        hint = "; remove it or use resume=False"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            differing = [key for key, value in self.settings.items() if state["settings"].get(key) != value]
            if not differing:
                self.done = check_value("done", Annotated[int, Interval(0, self.epochs)], state["done"])
                self.skipped = set(check_value("skipped", tuple[str, ...], state["skipped"]))
                for name, part in self.learner.parts.items():
                    part.load_state_dict(state[name])
        except Exception as error:  # whatever the unpickler makes of foreign bytes, with advice to run them
            let_stop(error)
            raise InputError(f"{path} is no checkpoint{hint}") from error
        if differing:
            raise InputError(f"{path} is of a training with other {', '.join(differing)}{hint}")

    def card(self) -> dict[str, Any]:
        """The model card as data."""
        entry, names = self.entry, list(self.data.class_names)
        options = f" --epochs {self.epochs}" if self.epochs != self.recipe.epochs else ""
        options += " --size {}x{}".format(*entry.image_size) if entry.any_size else ""
        return {
            "name": f"zoo:{entry.name}",
            "about": self.recipe.about.format(count=len(names), names=", ".join(names)),
            "classes": names if OUTPUTS.make(entry.output).of_classes else [],
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "input": {"kind": entry.inputs.name, **asdict(entry.inputs)},  # type: ignore[call-overload]
            "training_images": len(self.data),
            "metrics": {split: self.measure(split) for split in self.recipe.tests},
            "effects": self.effects(),
            "settings": self.settings,
            "skipped": sorted(self.skipped),
            "command": f"ratherthan train zoo:{entry.name} --data DIR --seed {self.seed}{options}",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": f"{torch.device(self.device).type}, {torch.get_num_threads()} threads",
        }


def _adopt(network: nn.Module, root: str | Path | None, name: str) -> None:
    """Take over the tensors that fit; the others (the head for other classes) keep their first values."""
    root = Path(root or os.environ.get("RATHERTHAN_DATA", "."))
    places = root / name, root.parent / name
    given, own = read_weights(next(filter(Path.is_file, places), places[0])), network.state_dict()
    fitting = {key: value for key, value in given.items() if key in own and value.shape == own[key].shape}
    network.load_state_dict(fitting, strict=False)


def _markdown(card: dict[str, Any]) -> str:
    settings, metrics = card["settings"], card["metrics"]
    kind = next(iter(next(iter(metrics.values()))))
    columns = " | ".join(next(iter(metrics.values()))).replace("_", " ")
    rows = [f"| {split} | {' | '.join(_figure(*cell) for cell in row.items())} |" for split, row in metrics.items()]
    return f"""# {card["name"]}

{card["parameters"]:,} parameters, {card["about"]}.
Trained on {card["training_images"]:,} {kind} of {settings["recipe"]["dataset"]} for {settings["epochs"]} epochs, seed \
{settings["seed"]} (content {settings["data"]}); {len(card["skipped"])} {kind} skipped as corrupt.

| split | {columns} |
{"| --- " * (2 + columns.count("|"))}|
{chr(10).join(rows)}

{_told(card["effects"])}Made by `{card["command"]}` with torch {card["versions"]["torch"]} on {card["device"]}.
"""


def _told(effects: dict[str, list[list[float]]]) -> str:
    """The coordinates that move each concept most."""
    lines = ["What its latents move, in standard deviations of the concept per unit (and their correlation):\n"]
    for name, (correlations, strengths) in effects.items():
        first = sorted(range(len(strengths)), key=lambda i: -abs(strengths[i]))[:3]
        lines.append(f"- {name}: " + ", ".join(f"z{i} {strengths[i]:+.2f} ({correlations[i]:+.2f})" for i in first))
    return "\n".join([*lines, "", ""]) if effects else ""


def _figure(metric: str, value: float) -> str:
    return format(value, "," if isinstance(value, int) else ".2%" if metric.endswith("accuracy") else ".3f")


# ----------------------------------------------------------------------------------------- what it makes, on two sheets
@torch.no_grad()
def write_sheets(entry: ZooEntry, network: nn.Module, images: Tensor, out: str | Path) -> tuple[Path, Path]:
    """Draw the sheets of a generative model of the zoo.

    Args:
        entry: What it is.
        network: With its weights, in evaluation mode.
        images: (N, C, H, W) in [0, 1], not trained on: what is reconstructed, where there is an encoder, and the walk
            along the latents starts at the first; without encoder it starts at a sample.
        out: The weights, beside which the sheets will lie.

    Returns:
        The paths of `NAME.samples.png` (draws from the prior; images beside their reconstructions) and of
        `NAME.traversal.png` (each latent from -3 to 3, the others fixed; Fig. 5 and 6 of the CEM-MAF paper).
    """
    from ratherthan.render.figure import figure_png, grid

    (low, high), decoder = entry.scale, ZooDecoder(network, entry.scale)

    def decode(latents: Tensor) -> Tensor:
        return decoder.decode(latents.to(images)).cpu()

    drawn = torch.randn(64, network.latents, generator=torch.Generator().manual_seed(0))  # type: ignore[call-overload]
    sheets, start = [("samples of the prior", _mosaic(decode(drawn), 8))], drawn[:1]
    if hasattr(network, "encode"):
        codes = network.encode(images * (high - low) + low)  # type: ignore[operator]
        pairs = torch.stack([images.cpu(), decode(codes)], 1).flatten(0, 1)
        sheets.append(("images, each beside its reconstruction", _mosaic(pairs[:64], 8)))
        start = codes[:1].cpu()
    places = torch.linspace(-3, 3, _STEPS)
    walks = start.repeat(start.shape[1], _STEPS, 1)
    walks.diagonal(dim1=0, dim2=2).copy_(places[:, None].expand(-1, start.shape[1]))
    rows = torch.stack([decode(walk) for walk in walks])
    effect = (rows[:, 0] - rows[:, -1]).abs().flatten(1).mean(1)
    shown = effect.topk(min(_SHOWN, len(rows))).indices.sort().values.tolist()
    strips = [(f"z{index} from -3 to 3", _mosaic(rows[index], _STEPS)) for index in shown]
    name, which = f"zoo:{entry.name}", f" ({_SHOWN} of {len(rows)} latents)" if len(rows) > len(shown) else ""
    paths = Path(out).with_suffix(".samples.png"), Path(out).with_suffix(".traversal.png")
    write_atomically(paths[0], [figure_png(grid(sheets, len(sheets), title=name, cell=5.0))])
    write_atomically(paths[1], [figure_png(grid(strips, 2, title=name + which, cell=5.0))])
    return paths


def _mosaic(images: Tensor, columns: int) -> Any:
    """Images side by side with a white line between, as an array (H, W, C)."""
    framed = nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    rows = [torch.cat(list(row), 2) for row in torch.split(framed, columns)]
    rows = [nn.functional.pad(row, (0, rows[0].shape[2] - row.shape[2]), value=1.0) for row in rows]
    return torch.cat(rows, 1).permute(1, 2, 0).squeeze(2).numpy()
