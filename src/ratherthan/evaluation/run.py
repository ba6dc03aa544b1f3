"""The verb `evaluate`: an experiment on a data set that survives being killed."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import platform
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ratherthan.attribution.forward import MEMORY_BUDGET
from ratherthan.attribution.layers import layer_of
from ratherthan.attribution.method import Method
from ratherthan.contrast import Contrast, ContrastFunction, get_contrast
from ratherthan.data import Dataset, LabelMap, batches, match_labels
from ratherthan.data import load as load_data
from ratherthan.errors import InputError, LayerError, ModelError, UnsupportedError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, get_experiment
from ratherthan.evaluation.shards import Shards
from ratherthan.evaluation.tables import Run
from ratherthan.evaluation.workers import MOST, Engine, spread
from ratherthan.inference import preserve_state
from ratherthan.model import Model, fingerprint
from ratherthan.progress import Progress, reporter
from ratherthan.result import versions
from ratherthan.settings import AtLeastOne, Interval, Seed, check_value, to_jsonable

_ACTIVATIONS = 64  # numbers that a network holds at once per number of its input: about those of VGG-16


def evaluate(
    experiment: str | Experiment,
    model: Model | nn.Module,
    dataset: Any,
    *,
    out: str | Path,
    methods: Sequence[str | Method] | None = None,
    contrasts: Sequence[str | Contrast | ContrastFunction] | None = None,
    label_map: LabelMap = None,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    workers: int = 0,
    engine: Engine = "processes",
    address: str | None = None,
    shard_size: int = 64,
    progress: Progress = None,
    **settings: Any,
) -> Run:
    """Measure how faithful explanations are.

    Results are written shard by shard, each whole or not at all, so a run that is interrupted or killed can be resumed
    and ends with the same table. They depend neither on `batch_size` nor on `workers` or `engine`.

    Args:
        experiment: A registered name (see `experiments()`), or an object such as `Mask(preset="sound")`.
        model: The model.
        dataset: A `data.Dataset`, a torch data set, or what `data.load` takes. Images are prepared as the model does
            it, `model.inputs.prepare`, unless the set has a transform of its own. Its classes are matched to the
            model's by name, see `data.match_labels`.
        out: The folder of the run.
        methods: Attribution methods, or searches where the experiment takes them; None: what it compares by default.
        contrasts: Contrasts, likewise.
        label_map: What a class of the set is called in the model, where its name differs; or a file that says so.
        limit: Use so many samples only, evenly spread over the set.
        batch_size: Images per forward pass; None: as many as fit 1 GiB, or half the free memory of a GPU.
        seed: Of all random draws.
        resume: Go on with the run in `out`, if there is one.
        workers: How many measure side by side, a shard each, with one thread each; where the model is on a GPU, with a
            GPU each if there are several. 0: this process alone; of Ray, all the cores or GPUs of the cluster. One that
            dies loses nothing: its shard is given to another, three times at most.
        engine: "processes" of this machine, or "ray" (extra `ray`): actors on one machine or many. The model, the data
            and the methods are sent to them by pickling; nothing but this process writes results.
        address: Of a Ray cluster, e.g. "auto" or "ray://head:10001"; None: $RAY_ADDRESS, or one on this machine as long
            as the run lasts. Ray that was initialised before is used as it is.
        shard_size: Samples per shard; what is lost when a run is killed.
        progress: True draws a bar; a callable is called with (samples done, samples in all) before the first shard and
            after each.
        **settings: Settings of the experiment, where it is given by name, e.g. preset="sound".

    Returns:
        The finished run.

    Raises:
        InputError: If an argument cannot be used, or `out` holds a run with other settings.
        UnsupportedError: If something cannot be sent to workers.
        RatherThanError: If a shard ended the workers that had it three times.
        KeyboardInterrupt: If interrupted; its text says how to go on.

    Example:
        >>> run = evaluate("mask", model, "mnist", methods=["gradcam", "la"], out="runs/mask", limit=1000)
        >>> print(run.to_markdown())
    """
    chosen, model = get_experiment(experiment, **settings), Model.wrap(model)
    if not model.output.of_classes:
        raise UnsupportedError(f"{chosen.name} compares classes; this model gives a value")
    model.check_images(chosen.name)
    check_value("shard_size", AtLeastOne, shard_size)
    check_value("batch_size", AtLeastOne | None, batch_size)
    check_value("limit", AtLeastOne | None, limit)
    check_value("seed", Seed, seed)
    check_value("workers", Annotated[int, Interval(0, MOST)], workers)
    check_value("engine", Engine, engine)
    check_value("address", str | None, address)
    if address is not None and engine != "ray":
        raise InputError("address is of a Ray cluster: give engine='ray', too")
    compared = _by_name("method", [(_label(each), each) for each in map(chosen.method, methods or chosen.methods)])
    compared = {k: each if isinstance(each, Method) else each.prepared(model) for k, each in compared.items()}
    ways = _by_name("contrast", [(each.name, each) for each in map(get_contrast, contrasts or chosen.contrasts)])
    read = chosen.reads_labels and getattr(chosen, "target", "label") == "label"
    data = match_labels(load_data(dataset), model.class_names, label_map, read)
    if len(set(data.ids)) < len(data.ids):
        raise InputError(f"{data.name}: two samples bear one name; results are told apart by it")
    data = data.with_transform(data.transform or model.inputs.prepare).spread(limit)
    model, channels_last = _probed(model, data, read)
    compares = {name: _function(getattr(way, "function", name)) for name, way in ways.items()}
    fixed = {"contrasts": compares, "seed": seed, "shard_size": shard_size, "versions": versions()}
    shards = Shards(Path(out), _plain(_subject(chosen, model, data, compared) | fixed))

    blank = Batch(model, torch.empty(0), (), (), torch.empty(0), compared, ways, seed, 0, channels_last)
    job, where = _Job(blank, data, chosen, batch_size), (model.device, workers, engine, address)
    about = {"device": str(model.device), "python": platform.python_version(), "model": model.name}
    with shards.claimed(resume, about), reporter(progress, "evaluating") as report:
        _fill(shards, lambda todo: spread(job, todo, *where), report)
    return Run(shards, chosen)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is done with the samples of a shard, in this process or in a worker; `blank` is a batch without any."""

    blank: Batch
    data: Dataset
    experiment: Experiment
    batch_size: int | None

    def __call__(self, positions: Sequence[int]) -> tuple[list[Rows], list[tuple[str, str]]]:
        """The rows of these samples; and those that could not be read, and why."""
        model, blocks = self.blank.model, list[Rows]()
        loader = batches(self.data, len(positions), order=positions)
        for shard in loader:
            size = self.batch_size or fitting(shard[1][0], model)
            with preserve_state(model.module):
                for places, images, labels in zip(*(torch.split(column, size) for column in shard), strict=True):
                    names = tuple(self.data.ids[place] for place in places)
                    samples = {"positions": tuple(places.tolist()), "ids": names, "labels": labels.to(model.device)}
                    images = model.preprocess(images)
                    batch = dataclasses.replace(self.blank, images=images, batch_size=size, **samples)
                    blocks += self.experiment.measure(batch)
        return blocks, [(each.id, each.reason) for each in loader.skipped]


def _fill(shards: Shards, spread: Callable[..., Generator[tuple[int, Any]]], report: Callable[..., object]) -> None:
    """Compute the shards that are not there."""
    positions, in_all = shards.positions, shards.settings["data"]["samples"]
    missing = {number: positions[number] for number in shards.missing()}
    done = in_all - sum(map(len, missing.values()))
    try:
        report(done, in_all)
        with closing(spread(missing)) as answers:  # workers end with it
            for number, (blocks, skipped) in answers:
                shards.write(number, blocks, skipped)
                done += len(missing[number])
                report(done, in_all)
    except KeyboardInterrupt:
        kept = f"stopped with {done} of {in_all} samples done, kept in {shards.folder}"
        how = "the same call and resume=True (on the command line: the same command and --resume)"
        raise KeyboardInterrupt(f"{kept}; go on with {how}") from None


def fitting(image: Tensor, model: Model) -> int:
    """How many images (C, H, W) fit into memory at once: 1 GiB, or half the free memory of a GPU, is taken."""
    budget = torch.cuda.mem_get_info(model.device)[0] // 2 if model.device.type == "cuda" else MEMORY_BUDGET
    # on a processor a batch beyond a few photographs gains nothing, and falls out of its caches
    most = 4096 if model.device.type == "cuda" else max(4, 2**18 // image[0].numel())
    return int(max(1, min(most, budget // (_ACTIVATIONS * image.numel() * model.dtype.itemsize))))


def _probed(model: Model, data: Dataset, labels: bool) -> tuple[Model, bool]:
    """What one image tells: the model with its layer named, and whether images should lie in memory channels last.

    The layer belongs to the settings of a run, and `sanity` has to explain the same one when weights are random.
    """
    image = next((images for _, images, _ in batches(data, 1)), None)
    if image is None:
        return model, False
    image = model.preprocess(image)
    with preserve_state(model.module):
        with suppress(ModelError), torch.no_grad():
            classes, known = model.logits(image).shape[1], len(data.class_names)
            fewer = model.class_names is None and known != classes and not data.class_names[0].isdecimal()
            if labels and (fewer or max(data.labels) >= classes):
                raise InputError(f"{data.name} has {known} classes, the model {classes}: give the model class names")
        if model.layer is None:
            with suppress(LayerError):  # methods that need none do without; others say so themselves
                model = model.replace(layer=layer_of(model, image))
        if model.device.type == "cpu":  # where convolutions are up to twice as fast with channels last
            with suppress(ModelError), torch.no_grad():  # e.g. `view` where only `reshape` would do
                model.logits(image.contiguous(memory_format=torch.channels_last))
                return model, True
    return model, False


# --------------------------------------------------------------------------------------------- names and settings
def _label(method: Any) -> str:
    """Its name, and its settings where they are not the default ones."""
    usual, own = (_plain(each.settings()) for each in (type(method)(), method))
    changed = ", ".join(f"{key}={value}" for key, value in own.items() if value != usual[key])
    return f"{method.name}({changed})" if changed else str(method.name)


def _by_name(kind: str, given: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(given)) < len(given):
        raise InputError(f"a {kind} was given twice: {', '.join(name for name, _ in given)}")
    return dict(given)


def _subject(experiment: Experiment, model: Model, data: Dataset, methods: dict[str, Any]) -> dict[str, Any]:
    """What is measured, as the manifest has it."""
    return {
        "experiment": {"name": experiment.name, **experiment.settings()},
        "model": {
            "weights": fingerprint(model.module),
            "class_names": model.class_names,
            "inputs": model.inputs.settings(),
            "output": model.output.name,
            "layer": model.layer,
            "forward": _function(model.forward),
        },
        "data": {
            "name": data.name,
            "samples": len(data),
            "fingerprint": data.fingerprint(),
            "transform": _function(data.transform),
        },
        "methods": methods,
    }


def _function(given: Any) -> Any:
    """What tells one function from another: its name, and a hash of its source, its code and what is bound to it."""
    if isinstance(given, partial):
        name, does = _function(given.func), list[Any]([given.args, given.keywords])
    elif inspect.isfunction(given):
        name, code = given.__qualname__, given.__code__
        constants = [each for each in code.co_consts if isinstance(each, (str, int, float))]
        does = [code.co_code.hex(), code.co_names, constants]  # two functions may share a line
        does += [given.__defaults__, given.__kwdefaults__, inspect.getclosurevars(given).nonlocals]
        with suppress(OSError):  # typed in
            does.append(inspect.getsource(given))
    else:
        return given
    return {"function": name, "does": hashlib.sha256(repr(_plain(does)).encode()).hexdigest()[:16]}


def _plain(value: Any) -> Any:
    """A value as JSON has it, dataclasses by their fields; tensors and networks, e.g. a manifold's, by their hash."""

    def described(each: Any) -> Any:
        if isinstance(each, (Tensor, nn.Module)):
            return f"{type(each).__name__}, {fingerprint(each)}"
        if dataclasses.is_dataclass(each) and not isinstance(each, type):
            return {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
        return to_jsonable(each)

    return json.loads(json.dumps(value, default=described, skipkeys=True))
