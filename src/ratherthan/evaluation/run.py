"""The verb `evaluate`: an experiment on a data set that survives being killed."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ratherthan.attribution.activation import LayerMethod
from ratherthan.attribution.forward import MEMORY_BUDGET
from ratherthan.attribution.layers import find_layer
from ratherthan.attribution.method import Method
from ratherthan.contrast import Contrast, ContrastFunction, get_contrast
from ratherthan.data import Dataset, batches
from ratherthan.data import load as load_data
from ratherthan.errors import InputError, ModelError, UnsupportedError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, get_experiment
from ratherthan.evaluation.shards import BadPart, Parts
from ratherthan.evaluation.tables import Run
from ratherthan.inference import preserve_state
from ratherthan.model import Model, fingerprint
from ratherthan.search.attributes import modules

_ACTIVATIONS = 64  # numbers that a network holds at once per number of its input: about those of VGG-16


def evaluate(
    experiment: str | Experiment,
    model: Model | nn.Module,
    dataset: Any,
    *,
    out: str | Path,
    methods: Sequence[str | Method] | None = None,
    contrasts: Sequence[str | Contrast | ContrastFunction] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    workers: int = 0,
    part_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Run:
    """Measure how faithful explanations are.

    Results are written part by part, each whole or not at all, so a run that is interrupted or killed can be resumed
    and ends with the same table. They depend neither on `batch_size` nor on `workers`.

    Args:
        experiment: A registered name (see `experiments()`), or an object such as `Mask(preset="strict")`.
        model: The model.
        dataset: A `data.Dataset`, a torch data set, or what `data.load` takes. Images are brought to the model's size
            unless the set has a transform of its own.
        out: The folder of the run.
        methods: Attribution methods; None: what the experiment compares by default.
        contrasts: Contrasts, likewise.
        limit: Use so many samples only, evenly spread over the set.
        batch_size: Images per forward pass; None: as many as fit 1 GiB, or half the free memory of a GPU.
        seed: Of all random draws.
        resume: Go on with the run in `out`, if there is one.
        workers: Processes that decode images.
        part_size: Samples per part; what is lost when a run is killed.
        progress: Called with (samples done, samples in all) before the first part and after each.
        **settings: Settings of the experiment, where it is given by name, e.g. preset="strict".

    Returns:
        The finished run.

    Raises:
        InputError: If an argument cannot be used, or `out` holds a run with other settings.
        KeyboardInterrupt: If interrupted; its text says how to go on.

    Example:
        >>> run = evaluate("mask", model, "mnist", methods=["gradcam", "la"], out="runs/mask", limit=1000)
        >>> print(run.to_markdown())
    """
    chosen, model = get_experiment(experiment, **settings), Model.wrap(model)
    if not model.output.of_classes:
        raise UnsupportedError(f"{chosen.name} compares classes; this model gives a value")
    if part_size < 1 or (batch_size is not None and batch_size < 1) or (limit is not None and limit < 1):
        raise InputError("part_size, batch_size and limit are at least 1")
    how = _by_label([chosen.method(each) for each in methods or chosen.methods], "method")
    how = {label: method if isinstance(method, Method) else method.prepared(model) for label, method in how.items()}
    ways = _by_label([get_contrast(each) for each in contrasts or chosen.contrasts], "contrast")
    data = _data(dataset, model, limit)
    _fix_layer(model, how, data)
    parts = Parts(Path(out), _settings(chosen, model, data, how, ways, seed, part_size))
    about = {"device": str(model.device), "python": platform.python_version(), "model": model.name}
    with parts.claimed(resume, about):
        _Work(parts, chosen, model, data, how, ways, seed, batch_size).go(workers, progress)
    return Run(parts, chosen)


@dataclass(frozen=True)
class _Work:
    """A run and what it works with."""

    parts: Parts
    experiment: Experiment
    model: Model
    data: Dataset
    methods: dict[str, Any]
    contrasts: dict[str, Contrast]
    seed: int
    batch_size: int | None

    def go(self, workers: int, progress: Callable[[int, int], None] | None) -> None:
        """Compute the parts that are not there."""
        missing = self._missing()
        left = [position for number in missing for position in self.parts.positions(number)]
        done = len(self.data) - len(left)
        try:
            if progress is not None:
                progress(done, len(self.data))
            # a batch of the loader is a part: parts are of one size and are missing as a whole
            loader = batches(self.data, self.parts.size, workers, left)
            for positions, images, labels in loader if left else ():
                number = int(positions[0]) // self.parts.size
                blocks = self._measured(positions.tolist(), images, labels)
                self._write(number, blocks, loader.skipped)
                missing.remove(number)
                done += len(self.parts.positions(number))
                if progress is not None:
                    progress(done, len(self.data))
            for number in missing:  # not one image of these could be read
                self._write(number, [], loader.skipped)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped with {done} of {len(self.data)} samples done, kept in {self.parts.folder}; go on with the "
                "same call and resume=True (on the command line: the same command and --resume)"
            ) from None

    def _missing(self) -> list[int]:
        missing = []
        for number in range(self.parts.count):
            try:
                self.parts.read(number)
            except BadPart as reason:
                missing.append(number)
                if self.parts.path(number).exists():
                    warnings.warn(f"{reason}; it is computed again", stacklevel=5)
        return missing

    def _measured(self, positions: list[int], images: Tensor, labels: Tensor) -> list[Rows]:
        at_once = self.batch_size or fitting(images[0], self.model)
        maps = {name: each for name, each in self.methods.items() if isinstance(each, Method)}
        searches = {name: each for name, each in self.methods.items() if name not in maps}
        blocks: list[Rows] = []
        with preserve_state(self.model.module):
            for rows in torch.split(torch.arange(len(images)), at_once):
                places = tuple(positions[row] for row in rows.tolist())
                batch = Batch(
                    self.model,
                    self.model.preprocess(images[rows]),
                    places,
                    tuple(self.data.ids[place] for place in places),
                    labels[rows].to(self.model.device),
                    maps,
                    self.contrasts,
                    self.seed,
                    at_once,
                    self._layout,
                    searches,
                )
                blocks += self.experiment.measure(batch)
        return blocks

    @cached_property
    def _layout(self) -> torch.memory_format:
        """Channels last on a processor, where convolutions are up to twice as fast so, if the network can take it."""
        image = next((images for _, images, _ in batches(self.data, 1)), None)
        if self.model.device.type != "cpu" or image is None:
            return torch.contiguous_format
        try:
            with torch.no_grad():
                self.model.logits(self.model.preprocess(image).contiguous(memory_format=torch.channels_last))
        except ModelError:  # e.g. `view` where only `reshape` would do
            return torch.contiguous_format
        return torch.channels_last

    def _write(self, number: int, blocks: list[Rows], skipped: Sequence[Any]) -> None:
        names = {self.data.ids[position] for position in self.parts.positions(number)}
        self.parts.write(number, blocks, [(each.id, each.reason) for each in skipped if each.id in names])


def fitting(image: Tensor, model: Model) -> int:
    """How many images (C, H, W) fit into memory at once: 1 GiB, or half the free memory of a GPU, is taken."""
    budget = torch.cuda.mem_get_info(model.device)[0] // 2 if model.device.type == "cuda" else MEMORY_BUDGET
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    # on a processor a batch beyond a few photographs gains nothing, and falls out of its caches
    most = 4096 if model.device.type == "cuda" else max(4, 2**18 // image[0].numel())
    return int(max(1, min(most, budget // (_ACTIVATIONS * image.numel() * itemsize))))


def _data(dataset: Any, model: Model, limit: int | None) -> Dataset:
    data = load_data(dataset)
    if data.transform is None:
        data = data.with_transform(model.inputs.prepare)
    if len(set(data.ids)) < len(data.ids):
        raise InputError(f"{data.name}: two samples bear one name; results are told apart by it")
    if limit is None or limit >= len(data):
        return data
    return data.subset([index * len(data) // limit for index in range(limit)])


def _fix_layer(model: Model, methods: dict[str, Any], data: Dataset) -> None:
    """Find the layer before the run begins, for it belongs to the settings."""
    if model.layer is None and any(isinstance(each, LayerMethod) and each.layer is None for each in methods.values()):
        image = next(iter(batches(data, 1)), None)
        if image is None:
            raise InputError(f"{data.name}: not one image can be read")
        with preserve_state(model.module):
            model.layer = find_layer(model, model.preprocess(image[1]))


def _by_label(given: Sequence[Any], kind: str) -> dict[str, Any]:
    """Names for the results: a method's settings are named where they are not the default ones."""
    labelled = {}
    for each in given:
        settings = {}
        if kind == "method":
            usual = type(each)().settings()
            settings = {k: v for k, v in _plain(each.settings()).items() if v != _plain(usual[k])}
        label = each.name + (f"({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else "")
        if label in labelled:
            raise InputError(f"the {kind} {label!r} was given twice")
        labelled[label] = each
    return labelled


def _settings(
    experiment: Experiment,
    model: Model,
    data: Dataset,
    methods: dict[str, Any],
    contrasts: dict[str, Contrast],
    seed: int,
    part_size: int,
) -> dict[str, Any]:
    """All that the numbers depend on."""
    from ratherthan import __version__

    def weights(method: Any) -> dict[str, Any]:
        manifold, attributes = getattr(method, "manifold", None), getattr(method, "attributes", None)
        own = {} if manifold is None else {"manifold weights": fingerprint(manifold.module)}
        return own | ({"attribute weights": [fingerprint(each) for each in modules(attributes)]} if attributes else {})

    return {
        "experiment": {"name": experiment.name, **_plain(experiment.options())},
        "model": {
            "weights": fingerprint(model.module),
            "class_names": _plain(model.class_names),
            "inputs": model.inputs.settings(),
            "output": model.output.name,
            "layer": model.layer,
        },
        "data": {"name": data.name, "samples": len(data), "fingerprint": data.fingerprint()},
        "methods": {label: _plain(method.settings()) | weights(method) for label, method in methods.items()},
        "contrasts": list(contrasts),
        "seed": seed,
        "part_size": part_size,
        "versions": {"ratherthan": __version__, "torch": torch.__version__},
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it; of other objects the name, never an address, which changes from run to run."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}, {fingerprint(value)}"
    return getattr(value, "__qualname__", None) or type(value).__qualname__
