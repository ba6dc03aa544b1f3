"""What holds for every registered experiment; one that is registered has its small case here or fails.

Run as a program, this file serves runs that kill themselves: see `killed`.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401 (now, not in every fork)
import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from nets import make
from ratherthan import Dataset
from test_added_experiment import AverageDrop
from test_pullback import State, mixed_flags
from turns import of_today

CLASSES, SIDE, COUNT = 4, 12, 6
NAMES = rt.experiments()
every_experiment = pytest.mark.parametrize("name", NAMES)
by_turns = pytest.mark.parametrize("name", of_today(NAMES, 8))  # what takes longest


# --------------------------------------------------------------------------------------------- the small cases
class Net(nn.Module):
    """Batch norm and dropout, so that a pass in training mode is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh())
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Flatten(), nn.Linear(100, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def network(shift: float = 0.0, **settings: Any) -> rt.Model:
    """The network that is evaluated; `shift` is added to its last biases."""
    model = make(Net, **{"layer": "features", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), **settings})
    with torch.no_grad():
        model.module.head[2].weight *= 2  # type: ignore[index, union-attr, operator]  # answers of every class
        model.module.head[2].bias += shift * torch.arange(CLASSES)  # type: ignore[index, union-attr, operator]
    return model


@dataclass(frozen=True)
class Pixels:
    """Where the images come from: noisy patches, uint8."""

    values: np.ndarray[Any, Any]

    def read(self, index: int) -> Tensor:
        return torch.from_numpy(self.values[index]).permute(2, 0, 1).float() / 255

    def stamp(self, index: int) -> str:
        return str(int(self.values[index].astype(int).sum()))


def noise(count: int = COUNT, side: int = SIDE) -> Dataset:
    chance = np.random.default_rng(2)
    patches = chance.uniform(0, 255, (count, 3, 3, 3)).repeat(-(-side // 3), 1).repeat(-(-side // 3), 2)
    values = (patches[:, :side, :side] + chance.normal(0, 30, (count, side, side, 3))).clip(0, 255).astype(np.uint8)
    labels = tuple(i % CLASSES for i in range(count))
    return Dataset("noise", tuple("abcd"), tuple(f"s{i}" for i in range(count)), labels, Pixels(values))


@dataclass(frozen=True)
class Case:
    """How an experiment is tried.

    Attributes:
        settings: Those that keep it small.
        other: Settings that make it another run.
        better: Of a cell, whether its highest (1), its lowest (-1) or no contrast (0) is the best, as documented.
        wrong: For every setting values that it cannot have.
        methods: What is compared.
        others: What makes it another run, too.
        contrasts: Likewise.
        draws: Whether its numbers depend on the seed.
        asks: The setting that names a class, where there is one; images whose fact it is take no part.
        constant: Measures that are undefined or the same for all samples here; the others vary.
    """

    settings: dict[str, Any]
    other: dict[str, Any]
    better: Callable[[Mapping[str, Any]], int]
    wrong: dict[str, tuple[Any, ...]]
    methods: list[Any] = field(default_factory=lambda: ["gradcam"])
    others: list[Any] = field(default_factory=lambda: [rt.GradCAM("features.0")])
    contrasts: list[str] = field(default_factory=lambda: ["none", "weighted"])
    draws: bool = False
    asks: str | None = None
    constant: tuple[str, ...] = ()


def kept_features(cell: Mapping[str, Any]) -> int:
    return 1 if cell["keep"] == "positive" else -1


MASKS = {"preset": "reference", "threshold": 0.0, "baselines": ("blur", "mean")}
WRONG_MASKS = {"preset": ("papre",), "threshold": ("abc",), "sigma": (-1.0, "abc"), "baselines": ((), ("blurr",))}
WRONG_STEPS = {"steps": (0, 1.5, "abc"), "baseline": ("blurr",), "foil": ("each",)}
WRONG_PARTS = {"superpixels": ("slick",), "count": (0, "abc"), "baseline": ("blurr",), "foil": ("each",)}
TRUTH = {
    f"s{i}": rt.Truth(i % 4, (i + 1) % 4, [[2.0, -1.0], [0.0, 0.0]], [[False, False], [True, False]])
    for i in range(COUNT)
}
REGIONS = {"*": [[0.2, 0.1, 0.7, 0.8]], "s1": [[0.0, 0.5, 0.5, 1.0]]}
CASES: dict[str, Case] = {
    AverageDrop.name: Case({}, {}, lambda cell: -1, {}),  # added from outside
    "mask": Case(MASKS, {"threshold": 0.01}, kept_features, WRONG_MASKS, draws=True),
    "equal-mask": Case(MASKS, {"baselines": ("blur",)}, kept_features, WRONG_MASKS, draws=True),
    "confidence-drop": Case(
        {"share": 0.2},
        {"share": 0.3},
        lambda cell: int(cell["measure"] == "drop"),
        {"share": (0.0, 1.0, "abc"), "baseline": ("blurr",)},
    ),
    "deletion": Case({"steps": 3}, {"baseline": "mean"}, lambda cell: -1, WRONG_STEPS),
    "insertion": Case({"steps": 3}, {"foil": "runner-up"}, lambda cell: 1, WRONG_STEPS),
    "sign-perturbation": Case(
        {"iterations": (1, 2), "epsilon": 0.05},
        {"epsilon": 0.01},
        lambda cell: int(cell["measure"] != "logit"),
        {"iterations": ((), (0,), "abc", (1.5,)), "epsilon": (0.0, "abc"), "target": ("lable",)},
        methods=["gradient"],
        others=["ixg"],
    ),
    "sanity": Case(
        {"stages": 2},
        {"stages": 1},
        lambda cell: -int(cell["check"] == "swap"),
        {"stages": (-1, 1.5, "abc")},
        draws=True,
    ),
    "localisation": Case(
        {"regions": REGIONS, "target": "predicted"},
        {"target": "label"},
        lambda cell: 1,
        {"regions": ({}, 3, {"*": [[0, 0, 2, 1]]}), "target": ("lable",), "why_not": (CLASSES, -1, "abc")},
        asks="why_not",
    ),
    "known-answer": Case(
        {"truth": TRUTH},
        {"truth": TRUTH | {"s1": rt.Truth(1, 0, *TRUTH["s1"][2:])}},
        lambda cell: 1,
        {"truth": ({}, 3, {"s0": (1, 2, [[1.0]])}, {"s0": (1, 2, [[1.0]], [[True, False]])})},
    ),
    "properties": Case(
        {"squares": 3, "noises": 2},
        {"radius": 0.03},
        lambda cell: {"complexity": 0, "sensitivity": 0, "increase": 1}.get(cell["measure"], -1),
        {
            "baseline": ("blurr",),
            "foil": ("each",),
            "squares": (1, "abc"),
            "noises": (0, 1.5),
            "radius": (0.0, "abc"),
        },
        draws=True,
    ),
    "road": Case(
        {"shares": (0.3, 0.6)},
        {"noise": 0.0},
        lambda cell: -1 if cell["measure"] == "most" else 1,
        {"shares": ((), (1.0,), "abc"), "noise": (-1.0, "abc"), "foil": ("each",)},
        draws=True,
    ),
    "single-deletion": Case(
        {"count": 9},
        {"baseline": "mean"},
        lambda cell: 1,
        {"count": (0, 1.5, "abc"), "baseline": ("blurr",), "foil": ("each",)},
    ),
    "irof": Case({"superpixels": "grid", "count": 4}, {"baseline": "blur"}, lambda cell: 1, WRONG_PARTS),
    "f-fidelity": Case(
        {"count": 36, "shares": (0.3,), "draws": 1},
        {"alpha": 0.7},
        lambda cell: -1 if cell["measure"] == "minus" else 1,
        WRONG_PARTS
        | {"shares": ((), (1.0,), "abc"), "alpha": (0.0, 1.0, "abc"), "beta": (0.0, "abc"), "draws": (0, 1.5)},
        draws=True,
    ),
    "class-sensitivity": Case(
        {"share": 0.2}, {"share": 0.3}, lambda cell: -1, {"share": (0.0, 1.0, "abc")}, draws=True
    ),
    "counterfactuals": Case(
        {"foil": "random", "second": network(0.3).module, "distilled": network(0.5).module, "reference": noise(40)},
        {"tolerance": 0.02},
        lambda cell: 0,
        {
            "foil": ("best", CLASSES, -1, 1.5),
            "second": (3, "nothing.here"),
            "second_weights": (3,),
            "distilled": (3, "nothing.here"),
            "distilled_weights": (3,),
            "reference": ("nothing", 3),
            "tolerance": ("abc",),
            "visible": ("abc",),
            "noticed": ("abc",),
        },
        methods=[rt.CEM(kappa=0.3, binary_search_steps=1, iterations=2)],
        others=[rt.CEM(kappa=0.3, binary_search_steps=1, iterations=3)],
        contrasts=[],
        draws=True,
        asks="foil",
        constant=("boundary", "third", "foil", "density", "gained", "lost", "diversity", "agreement"),
    ),
    "pertinent": Case(
        {"superpixels": "grid", "count": 9, "baseline": 0.25, "threshold": 0.1},
        {"threshold": 0.2},
        lambda cell: -1 if cell["measure"] in ("fewer", "features", "share", "correlation") else 1,
        {"superpixels": ("slick",), "count": (0, "abc"), "baseline": ("meen",), "threshold": (1.0, -0.1, "abc")},
        methods=[rt.CEMPositive(kappa=0.1, binary_search_steps=2, iterations=4), "gradcam"],
        others=["gradcam"],
    ),
}


def case(name: str) -> Case:
    if name not in CASES:
        pytest.fail(f"experiment {name!r} is registered but not tested: give it a small case in CASES")
    return CASES[name]


def go(name: str, out: Path, model: Any = None, data: Any = None, **options: Any) -> rt.Run:
    small = case(name)
    given = {**small.settings, "methods": small.methods, "contrasts": small.contrasts, **options}
    return rt.evaluate(name, model or network(), data or noise(), out=out, **given)


def same(one: pd.DataFrame, other: pd.DataFrame, exactly: bool = True) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=exactly, rtol=1e-7, atol=1e-9)


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("shard-*"))


class Passes:
    """Counts the forward passes of a network, and does something in one of them."""

    def __init__(self, model: rt.Model, at: int = 0, act: Callable[[], Any] = lambda: None) -> None:
        self.count, self.at, self.act = 0, at, act
        model.module.features[1].register_forward_pre_hook(self.note)  # type: ignore[index, union-attr, operator]

    def note(self, *_: object) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    def __deepcopy__(self, memo: object) -> Passes:
        return self  # a copy of the network is counted with it


def test_every_setting_has_values_that_are_wrong(tmp_path: Path) -> None:
    for name in NAMES:
        known = {each.name for each in fields(type(go(name, tmp_path / name, limit=1).experiment))}  # type: ignore[arg-type]
        assert set(case(name).wrong) == known, name


# --------------------------------------------------------------------------------------------- right
@every_experiment
def test_a_row_for_every_sample_under_its_name(name: str, tmp_path: Path) -> None:
    run, data = go(name, tmp_path, shard_size=4), noise()
    frame, experiment = run.to_frame(), run.experiment
    keys = ["method", "contrast", *experiment.keys]
    assert list(frame.columns[:5]) == ["position", "sample", "label", "method", "contrast"]
    assert set(experiment.measures) <= set(frame.columns)
    assert not frame.duplicated(["sample", *keys]).any()
    assert list(frame["position"]) == sorted(frame["position"])
    for position, sample, label in frame[["position", "sample", "label"]].to_numpy().tolist():
        assert (sample, label) == (data.ids[position], data.labels[position])
    assert frame["sample"].nunique() == COUNT
    assert len(frame) == COUNT * len(frame[keys].drop_duplicates())
    varying = [each for each in experiment.measures if frame[each].nunique() > 1]  # or what follows would say little
    assert varying == [each for each in experiment.measures if each not in case(name).constant]


@every_experiment
def test_a_run_in_batches_is_its_samples_one_by_one(name: str, tmp_path: Path) -> None:
    whole = go(name, tmp_path / "whole").to_frame()
    same(go(name, tmp_path / "b", batch_size=1, shard_size=4).to_frame(), whole, exactly=False)
    same(go(name, tmp_path / "c", batch_size=4, shard_size=5, workers=0).to_frame(), whole, exactly=False)
    alone = [go(name, tmp_path / str(i), data=noise().subset([i])).to_frame().assign(position=i) for i in range(COUNT)]
    same(pd.concat(alone, ignore_index=True), whole, exactly=False)


# --------------------------------------------------------------------------------------------- nothing left behind
@every_experiment
def test_nothing_is_left_behind_and_training_mode_changes_nothing(name: str, tmp_path: Path) -> None:
    in_eval = go(name, tmp_path / "eval").to_frame()
    model = network()
    judge = case(name).settings.get("second")
    states = [State(mixed_flags(module)) for module in (model.module, judge) if module is not None]
    about = {key: value for key, value in vars(model).items() if key != "module"}
    tensors = [each.data_ptr() for each in model.module.state_dict().values()]
    frame = go(name, tmp_path / "run", model).to_frame()
    for state in states:
        state.unchanged()
    assert about == {key: value for key, value in vars(model).items() if key != "module"}
    assert tensors == [each.data_ptr() for each in model.module.state_dict().values()]
    same(frame, in_eval)
    model.module.train()
    same(go(name, tmp_path / "train", model).to_frame(), in_eval)
    assert model.module.training


@pytest.mark.parametrize("name", ["mask", "sanity"])
def test_a_layer_that_is_found_belongs_to_the_run_and_not_to_the_model(name: str, tmp_path: Path) -> None:
    """Where weights are random, another layer might be found."""

    def six_channels(layer: str | None) -> rt.Model:
        return make(
            lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(600, CLASSES)), layer=layer
        )

    model = six_channels(None)
    found = go(name, tmp_path / "found", model)
    assert model.layer is None
    assert json.loads((tmp_path / "found" / "manifest.json").read_text())["settings"]["model"]["layer"] == "1"
    same(found.to_frame(), go(name, tmp_path / "named", six_channels("1")).to_frame())


class Breaks(Exception):
    pass


def fail(error: BaseException) -> Callable[[], None]:
    def failing() -> None:
        raise error

    return failing


@every_experiment
def test_nothing_is_left_behind_by_a_failure_in_any_forward_pass(name: str, tmp_path: Path) -> None:
    """And the run goes on afterwards as if nothing had happened."""
    whole = go(name, tmp_path / "whole", limit=2).to_frame()
    model = network()
    mixed_flags(model.module)
    passes = Passes(model)
    for number in range(1, 1000):
        passes.count, passes.at, passes.act = 0, number, fail(Breaks())
        state = State(model.module)
        try:
            done = go(name, tmp_path / "run", model, limit=2, resume=True)
        except Breaks:
            state.unchanged()
            assert shards(tmp_path / "run") == []
        else:
            state.unchanged()
            same(done.to_frame(), whole)
            assert number > 2
            return


# --------------------------------------------------------------------------------------------- interrupted and killed
IN_SHARDS = {"shard_size": 2, "batch_size": 1}


def halfway(name: str, folder: Path) -> tuple[rt.Run, int]:
    """A whole run in shards of two samples, and the number of a forward pass for the second one of its second shard."""
    model, done = network(), []
    passes = Passes(model)
    run = go(name, folder, model, **IN_SHARDS, progress=lambda *at: done.append(passes.count))
    return run, (done[1] + 3 * done[2] + 3) // 4


@by_turns
@pytest.mark.parametrize("where", ["in a pass", "between shards"])
def test_ctrl_c_keeps_whole_shards_and_a_resume_ends_with_the_same_table(name: str, where: str, tmp_path: Path) -> None:
    whole, middle = halfway(name, tmp_path / "whole")
    model = network()
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        if where == "between shards" and done == 2:
            raise KeyboardInterrupt

    Passes(model, middle if where == "in a pass" else 0, fail(KeyboardInterrupt()))
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=rf"2 of {COUNT} samples done.*resume=True.*--resume"):
        go(name, folder, model, **IN_SHARDS, progress=stop)
    assert shards(folder) == ["shard-00000.parquet"]
    first = (folder / "shard-00000.parquet").stat().st_mtime_ns
    with pytest.raises(rt.InputError, match=r"unfinished: shard-00001\.parquet is missing.*resume=True"):
        rt.Run.open(folder).to_frame()
    done = go(name, folder, **IN_SHARDS, resume=True, progress=lambda *at: told.append(at))
    assert told == [(2, 6), (4, 6), (6, 6)]
    assert (folder / "shard-00000.parquet").stat().st_mtime_ns == first
    same(done.to_frame(), whole.to_frame())
    assert done.to_markdown() == whole.to_markdown()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but its call of this number is the last thing that happens."""
    calls = iter(range(1, number + 1))

    def called(*given: Any) -> Any:
        if next(calls) == number:
            die()
        return function(*given)

    return called


def serve() -> None:
    """For each line "name folder where number", fork a run that kills itself there and print how it ended."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        name, folder, where, number = line.split()
        child = os.fork()
        if not child:
            model = network()
            if where == "pass":
                Passes(model, int(number), die)
            else:
                os.replace = dying_at(int(number), os.replace)  # type: ignore[assignment]
            go(name, Path(folder), model, **IN_SHARDS)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


@pytest.fixture(scope="module")
def killed() -> Iterator[Callable[..., int]]:
    """A process that imports torch once and forks runs that get SIGKILL; gives their exit status."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, __file__], env=environment, **pipes) as process:
        source, sink = process.stdout, process.stdin
        assert source is not None
        assert sink is not None

        def ask(name: str, folder: Path, where: str, number: int) -> int:
            print(name, folder, where, number, file=sink, flush=True)
            return int(source.readline())

        try:
            assert source.readline() == "ready\n"
            yield ask
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("where", ["pass", "writing"])
@by_turns
def test_a_run_that_was_killed_ends_with_the_same_table(
    name: str, where: str, tmp_path: Path, killed: Callable[..., int]
) -> None:
    """In a forward pass of the second shard, or when that is about to be put in its place: it is done again, whole."""
    whole, middle = halfway(name, tmp_path / "whole")
    folder = tmp_path / "run"
    assert killed(name, folder, where, middle if where == "pass" else 3) == -signal.SIGKILL
    assert shards(folder) == ["shard-00000.parquet"]
    told: list[tuple[int, int]] = []
    done = go(name, folder, **IN_SHARDS, resume=True, progress=lambda *at: told.append(at))
    assert told[0] == (2, COUNT)
    same(done.to_frame(), whole.to_frame())
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *shards(folder)]


# --------------------------------------------------------------------------------------------- mixed up
def with_another_buffer() -> rt.Model:
    model = network()
    model.module.features[1].running_mean += 0.1  # type: ignore[index, union-attr, operator]
    return model


def relabelled() -> Dataset:
    data = noise()
    return Dataset(data.name, data.class_names, data.ids, tuple(3 - label for label in data.labels), data.reader)


CHANGES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "seed": (lambda: {"seed": 6}, "seed: 0 then, 6 now"),
    "weights": (lambda: {"model": network(0.1)}, r"model\.weights"),
    "buffer": (lambda: {"model": with_another_buffer()}, r"model\.weights"),
    "mean": (lambda: {"model": network(mean=(0.4, 0.5, 0.5))}, r"model\.inputs\.mean"),
    "std": (lambda: {"model": network(std=None)}, r"model\.inputs\.std: \[0.2, 0.3, 0.25\] then, None now"),
    "size": (lambda: {"model": network(size=SIDE)}, r"model\.inputs\.size"),
    "fit": (lambda: {"model": network(fit="crop")}, r"model\.inputs\.fit: 'resize' then, 'crop' now"),
    "crop_fraction": (lambda: {"model": network(crop_fraction=0.5)}, r"model\.inputs\.crop_fraction"),
    "interpolation": (
        lambda: {"model": network(interpolation="nearest")},
        r"model\.inputs\.interpolation: 'bilinear' then, 'nearest' now",
    ),
    "layer": (lambda: {"model": network(layer="features.0")}, r"model\.layer"),
    "output": (lambda: {"model": network(output="probabilities")}, r"model\.output"),
    "class_names": (lambda: {"model": network(class_names=tuple("abcd"))}, r"model\.class_names"),
    "forward": (lambda: {"model": network(forward=lambda net, x: -net(x))}, r"model\.forward\.function"),
    "transform": (lambda: {"data": noise().with_transform(lambda image: image / 2)}, r"data\.transform\.function"),
    "data": (lambda: {"data": noise(5)}, r"data\.samples: 6 then, 5 now"),
    "labels": (lambda: {"data": relabelled()}, r"data\.fingerprint"),
    "contrasts": (lambda: {"contrasts": ["max"]}, "contrasts"),
    "shard_size": (lambda: {"shard_size": 8}, "shard_size: 64 then, 8 now"),
    "limit": (lambda: {"limit": 2}, r"data\.samples: 6 then, 2 now"),
}


@every_experiment
def test_runs_with_other_settings_are_not_mixed(name: str, tmp_path: Path) -> None:
    whole = go(name, tmp_path).to_frame()
    changes = [(change(), named) for change, named in CHANGES.values()]
    changes += [({key: value}, rf"experiment\.{key}") for key, value in case(name).other.items()]
    changes += [({"methods": case(name).others}, r"methods\.")]
    for change, named in changes:
        with pytest.raises(rt.InputError, match=f"holds a run with another .*{named}.*name another folder") as refused:
            go(name, tmp_path, resume=True, **change)
        assert "\n" not in str(refused.value)
    with pytest.raises(rt.InputError, match="holds a run: resume it"):
        go(name, tmp_path)
    same(go(name, tmp_path, resume=True).to_frame(), whole)


@every_experiment
def test_two_samples_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    data = noise(3)
    twins = Dataset(data.name, data.class_names, ("a", "b", "a"), data.labels, data.reader)
    with pytest.raises(rt.InputError, match="noise: two samples bear one name"):
        go(name, tmp_path / "run", data=twins)
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------- left out
class NoAnswer(Net):
    """Gives NaN where the first pixel is white."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill((x[:, :, 0, 0] == 1).all(1, keepdim=True), torch.nan)


@every_experiment
def test_a_sample_without_an_answer_is_refused_or_left_out(name: str, tmp_path: Path) -> None:
    module = NoAnswer().double().eval()
    module.load_state_dict(network().module.state_dict())
    model = rt.Model(module, layer="features")
    data = noise()
    data.reader.values[3, 0, 0] = 255  # type: ignore[attr-defined]
    if name in ("mask", "equal-mask"):  # its second class is not likelier than the threshold
        run = go(name, tmp_path, model, data)
        assert f"5 of {COUNT} samples took part" in run.note()
        others = go(name, tmp_path / "others", model, data.subset([0, 1, 2, 4, 5]))
        same(run.to_frame().drop(columns="position"), others.to_frame().drop(columns="position"), exactly=False)
        return
    with pytest.raises(rt.ModelError, match="NaN or infinite") as refused:
        go(name, tmp_path, model, data)
    assert "\n" not in str(refused.value)
    assert shards(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name in CASES and CASES[name].asks])
def test_a_class_is_not_asked_about_where_it_is_the_fact(name: str, tmp_path: Path) -> None:
    asks, data = str(case(name).asks), noise()
    with torch.no_grad():
        facts = network().logits(torch.stack([data[i][0] for i in range(COUNT)]).double()).argmax(1).tolist()
    asked = max(facts, key=facts.count)
    frame = go(name, tmp_path / "all", **{asks: asked}).to_frame()
    others = [i for i in range(COUNT) if facts[i] != asked]
    assert 0 < len(others) < COUNT
    assert sorted(set(frame["position"])) == others
    alone = go(name, tmp_path / "others", data=data.subset(others), **{asks: asked}).to_frame()
    same(frame.drop(columns="position"), alone.drop(columns="position"), exactly=False)
    nobody = go(name, tmp_path / "none", data=data.subset([facts.index(asked)]), **{asks: asked})
    for reading in (nobody.to_frame, nobody.summary, nobody.to_markdown, nobody.to_latex, nobody.plot):
        with pytest.raises(rt.InputError, match=r"not one sample took part \(of 1\)"):
            reading()


# --------------------------------------------------------------------------------------------- seeds
def scatter(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@every_experiment
def test_numbers_depend_on_the_seed_alone_and_only_where_something_is_drawn(name: str, tmp_path: Path) -> None:
    model = network()
    frames = {}
    for run, (callers, seed) in {"a": (1, 0), "b": (2, 0), "c": (1, 1)}.items():
        scatter(callers)
        frames[run] = go(name, tmp_path / run, model, seed=seed).to_frame()
        after = (random.random(), float(np.random.rand()), float(torch.rand(())))
        scatter(callers)
        assert after == (random.random(), float(np.random.rand()), float(torch.rand(())))
    same(frames["a"], frames["b"])
    assert frames["c"].equals(frames["a"]) != case(name).draws


# --------------------------------------------------------------------------------------------- shown and saved
LABELS = {
    "none": "original", "gradcam": "Grad-CAM", "relative": "relative probability", "logit": "change in y_t",
    "probability": "change in p_t", "accuracy": "change in accuracy", "gradient": "Gradient", "cem": "CEM",
    "cem-maf": "CEM-MAF", "cdeepex": "CDeepEx", "xgem": "xGEM",
}  # fmt: skip


def label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    name, *settings = re.split(r"(?=\()", str(value))
    return LABELS.get(name, name) + "".join(settings)


def long(run: rt.Run) -> pd.DataFrame:
    """One row per sample, method, contrast, setting and measure that is shown."""
    experiment = run.experiment
    shown = list(experiment.shown or experiment.measures)
    keys = ["sample", "method", "contrast", *experiment.keys]
    return run.to_frame().astype(dict.fromkeys(shown, float)).melt(keys, shown, "measure")


def surely(apart: Mapping[tuple[str, str], pd.DataFrame], cell: Mapping[str, Any], contrast: str, sign: int) -> bool:
    """Whether one is better than all others of a cell by an interval of the difference without 0."""
    lows = []
    for (one, _), rows in apart.items():
        if one == contrast:
            row = rows[np.logical_and.reduce([rows[key] == value for key, value in cell.items()])]
            lows.append((sign * row[["low", "high"]]).min(axis=None))
    return bool(lows) and min(lows) > 0


@every_experiment
def test_the_table_holds_the_means_and_praises_the_better_contrast(name: str, tmp_path: Path) -> None:
    run = go(name, tmp_path)
    table = run.table(intervals=False)
    down, across = run.experiment.layout
    places = {}
    for row, texts in zip(table.index, table.to_numpy().tolist(), strict=True):
        for column, text in zip(table.columns, texts, strict=True):
            places[row if isinstance(row, tuple) else (row,), column if isinstance(column, tuple) else (column,)] = text
    alike = [key for key in (*down, *across) if key != "contrast"]
    praised = seen = 0
    contrasts, shown = run.to_frame()["contrast"].unique(), run.experiment.shown or run.experiment.measures
    apart = {(one, other): run.difference(one, other) for one, other in permutations(filter(None, contrasts), 2)}
    only = {"measure": shown[0]} if "measure" not in alike else {}
    for values, group in long(run).groupby(alike, sort=False, dropna=False):
        cell = dict(zip(alike, values, strict=True))
        means = group.groupby("contrast", sort=False)["value"].mean().to_dict()
        texts = {}
        for contrast, mean in means.items():
            place = {**cell, "contrast": contrast}
            texts[contrast] = places[tuple(label(place[k]) for k in down), tuple(label(place[k]) for k in across)]
            number = texts[contrast].strip("*")
            assert number == "undefined" if np.isnan(mean) else float(number) == pytest.approx(mean, abs=6e-4, rel=0.06)
        seen += len(texts)
        sign = case(name).better(cell)
        expected = {c: bool(sign) and surely(apart, {**only, **cell}, c, sign) for c in means}
        assert {c: text.startswith("**") and text.endswith("**") for c, text in texts.items()} == expected, cell
        praised += sum(expected.values())
    assert seen == sum(bool(text) for key, text in places.items() if key[1][0] != run.experiment.lead)
    markdown, latex = run.to_markdown(intervals=False), run.to_latex()
    assert markdown.count("**") == 2 * praised
    assert latex.count(r"\textbf{") == praised
    assert "toprule" in latex
    assert f"{name} on noise: {COUNT} of {COUNT} samples took part" in markdown
    assert f"{name} on noise: {COUNT} of {COUNT} samples took part" in latex
    with_intervals = run.to_markdown()
    assert with_intervals.count(" to ") == seen


@every_experiment
def test_the_plot_has_a_bar_for_every_mean(name: str, tmp_path: Path) -> None:
    run = go(name, tmp_path)
    shown = run.experiment.shown or run.experiment.measures
    means = long(run).groupby(["measure", "method", "contrast", *run.experiment.keys])["value"].mean()
    methods = list(run.to_frame()["method"].unique())
    axes = run.plot().axes
    assert len(axes) == len(shown) * len(methods)
    for panel, (measure, method) in zip(axes, ((s, m) for s in shown for m in methods), strict=True):
        assert panel.get_title() == f"{label(measure)}, {label(method)}"
        heights = sorted(bar.get_height() for bar in panel.patches)
        np.testing.assert_allclose(heights, sorted(means[measure, method]), rtol=1e-9, atol=1e-12, equal_nan=True)


@every_experiment
def test_the_summary_holds_the_means_with_their_intervals(name: str, tmp_path: Path) -> None:
    run = go(name, tmp_path)
    keys = ["method", "contrast", *run.experiment.keys]
    frame, summary = run.to_frame(), run.summary()
    assert list(summary.columns) == [*keys, "measure", "mean", "low", "high", "n"]
    for measure in run.experiment.measures:
        column = frame[measure].astype(float).groupby([frame[key] for key in keys], sort=False)
        rows = summary[summary["measure"] == measure]
        np.testing.assert_allclose(rows["mean"], column.mean(), rtol=1e-9, atol=1e-12, equal_nan=True)
        assert list(rows["n"]) == list(column.count())
        defined = rows[rows["n"] > 0]
        assert ((defined["low"] <= defined["mean"] + 1e-12) & (defined["mean"] <= defined["high"] + 1e-12)).all()
    assert "<table" in run._repr_html_()


@by_turns
def test_opened_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    run = go(name, tmp_path / "run", shard_size=4)
    (tmp_path / "run").rename(tmp_path / "moved")
    again = rt.Run.open(tmp_path / "moved")
    with pytest.raises(rt.InputError, match="holds no run"):
        rt.Run.open(tmp_path / "run")
    fresh = go(name, tmp_path / "fresh", shard_size=4)
    for each in (again, fresh):
        same(each.to_frame(), fresh.to_frame())
        pd.testing.assert_frame_equal(each.table(), fresh.table())
        assert (each.to_markdown(), each.to_latex(), each.note()) == (
            fresh.to_markdown(), fresh.to_latex(), fresh.note(),
        )  # fmt: skip
        assert each.skipped == []
        assert type(each.experiment) is type(run.experiment)


# --------------------------------------------------------------------------------------------- refused
def wrong_settings() -> Iterator[Any]:
    for name in NAMES:
        for key, values in CASES[name].wrong.items() if name in CASES else ():
            for value in values:
                yield pytest.param(name, key, value, id=f"{name}-{key}={value}")


@pytest.mark.parametrize(("name", "key", "value"), list(wrong_settings()))
def test_a_wrong_setting_is_one_line(name: str, key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(rt.InputError) as refused:
        go(name, tmp_path, limit=2, **{key: value})
    assert "\n" not in str(refused.value)


@every_experiment
def test_what_no_experiment_can_do_is_one_line(name: str, tmp_path: Path) -> None:
    value = rt.Model(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 1)), output="value")
    with pytest.raises(rt.UnsupportedError, match=f"{name} compares classes; this model gives a value"):
        go(name, tmp_path, value)
    with pytest.raises(rt.InputError, match=f"unknown setting of {name} 'nonsense'"):
        go(name, tmp_path, nonsense=3)
    with pytest.raises(rt.InputError, match="'nonsense'"):
        go(name, tmp_path, methods=["nonsense"])
    with pytest.raises(rt.InputError, match="given twice"):
        go(name, tmp_path, methods=[*case(name).methods, *case(name).methods])
    for option in ("batch_size", "shard_size", "limit"):
        with pytest.raises(rt.InputError, match="at least 1"):
            go(name, tmp_path, **{option: 0})
    assert shards(tmp_path) == []


if __name__ == "__main__":
    serve()
