"""A run that is damaged or mixed up, and the images that it feeds; test_every_experiment has what holds for all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import ratherthan as rt
from ratherthan import ArrayReader, Dataset, Run, evaluate
from ratherthan.data.images import CorruptImage
from ratherthan.evaluation.shards import BadShard, Shards


def subject(seed: int = 0) -> rt.Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 4))
    return rt.Model(module, layer="1")


def digits(count: int = 60, reader: Any = None) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    labels = tuple(i % 4 for i in range(count))
    return Dataset("noise", tuple("abcd"), tuple(f"s{i}" for i in range(count)), labels, reader or ArrayReader(pixels))


def go(out: Path, **options: Any) -> Run:
    settings = {"preset": "reference", "threshold": 0.0, "baselines": ("blur",), "shard_size": 4, "seed": 5}
    return evaluate("mask", options.pop("model", None) or subject(), options.pop("data", None) or digits(), out=out,
                    methods=["gradcam"], **{**settings, **options})  # fmt: skip


def same(one: Run, other: Run) -> None:
    pd.testing.assert_frame_equal(one.to_frame(), other.to_frame(), check_exact=True)


def drafts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "manifest.json" and path.name[:6] != "shard-"]


# --------------------------------------------------------------------------------------------- which samples, and how
def test_results_do_not_depend_on_workers(tmp_path: Path) -> None:
    same(go(tmp_path / "whole"), go(tmp_path / "workers", workers=1))


def test_a_limit_is_spread_over_the_set(tmp_path: Path) -> None:
    frame = go(tmp_path / "run", limit=6).to_frame()
    assert sorted(frame["sample"].unique(), key=lambda s: int(s[1:])) == ["s0", "s10", "s20", "s30", "s40", "s50"]


class Seen(rt.Experiment):
    """Keeps the images that it is given."""

    name, measures = "seen", ("brightness",)
    contrasts = ("none",)

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def measure(self, batch: Any) -> Iterator[Any]:
        self.images.append(batch.images)
        yield batch.rows("gradcam", "none", brightness=batch.images.mean((1, 2, 3)))


def seen(model: rt.Model, data: Any, out: Path) -> torch.Tensor:
    experiment = Seen()
    evaluate(experiment, model, data, out=out, batch_size=2)
    return torch.cat(experiment.images)


PREPARED: list[Any] = [
    {},
    {"size": 8},
    {"size": (9, 14), "fit": "crop"},
    {"size": 10, "fit": "crop", "crop_fraction": 0.8},
    {"size": (12, 10), "crop_fraction": 0.6},
    {"size": 10, "interpolation": "nearest"},
    {"size": 10, "interpolation": "bicubic"},
    {"size": 10, "interpolation": "lanczos"},
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", PREPARED, ids=str)
def test_image_files_are_prepared_as_the_model_does_it(settings: dict[str, Any], channels: int, tmp_path: Path) -> None:
    random, paths = np.random.default_rng(1), []
    for i in range(3):
        paths.append(tmp_path / "set" / "ab"[i % 2] / f"{i}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (18, 25, 3), dtype=np.uint8)).save(paths[-1])
    paths.sort()
    module = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = rt.Model(module, ["a", "b", "c"], layer="0", **settings)
    assert torch.equal(seen(model, tmp_path / "set", tmp_path / "run"), model.preprocess(paths))


@pytest.mark.parametrize("kind", ["arrays", "torch"])
def test_sets_of_tensors_are_brought_to_the_size_of_the_model(kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    tensors = torch.from_numpy(pixels).unsqueeze(1).float() / 255
    data = digits(4, ArrayReader(pixels)) if kind == "arrays" else TensorDataset(tensors, torch.arange(4))
    model = rt.Model(subject().module, layer="1", size=12)
    given = seen(model, data, tmp_path)
    assert given.shape == (4, 1, 12, 12)
    torch.testing.assert_close(given, model.preprocess(list(pixels)), atol=1.01 / 255, rtol=0)


# --------------------------------------------------------------------------------------------- damaged
def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(bytes(content))


def not_parquet(path: Path) -> None:
    path.write_text("sample,relative\ns0,1\n")


def of_another_run(path: Path) -> None:
    go(path.parent.parent / "other", seed=6)
    path.write_bytes((path.parent.parent / "other" / path.name).read_bytes())


def of_another_place(path: Path) -> None:
    path.write_bytes(path.with_name("shard-00000.parquet").read_bytes())


def of_somebody_else(path: Path) -> None:
    pd.DataFrame({"position": [8], "relative": [0.5]}).to_parquet(path)


@pytest.mark.parametrize(
    "damage", [truncated, flipped, not_parquet, of_another_run, of_another_place, of_somebody_else]
)
def test_a_damaged_or_foreign_part_is_named_and_made_again(tmp_path: Path, damage: Any) -> None:
    whole = go(tmp_path / "run").to_frame()
    damage(tmp_path / "run" / "shard-00002.parquet")
    with pytest.raises(rt.InputError, match=r"shard-00002\.parquet"):
        Run.open(tmp_path / "run").to_frame()
    with pytest.warns(UserWarning, match=r"shard-00002\.parquet .* computed again") as caught:
        done = go(tmp_path / "run", resume=True)
    assert len(caught) == 1
    pd.testing.assert_frame_equal(done.to_frame(), whole)


def test_a_flipped_byte_anywhere_in_a_part_is_noticed(tmp_path: Path) -> None:
    shards = go(tmp_path, limit=4).shards
    whole = shards.path(0).read_bytes()
    for place in range(len(whole)):
        shards.path(0).write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(BadShard):
            shards.read(0)
    shards.path(0).write_bytes(whole)
    assert len(shards.read(0)[0]) == 32


def rewritten(shards: Shards, change: Any, fewer: int = 0) -> None:
    """The first part with another note, or fewer rows, and a checksum that fits."""
    table, _ = shards.read(0)
    note = json.loads(pq.read_metadata(shards.path(0)).metadata[b"ratherthan"])
    marks = {b"ratherthan": json.dumps(change(note)), b"sha256": b"0" * 64}
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(fewer).replace_schema_metadata(marks), sink)
    content = sink.getvalue().to_pybytes()
    shards.path(0).write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode()))


@pytest.mark.parametrize(
    "change",
    [
        lambda note: [], lambda note: "text", lambda note: 3, lambda note: None, lambda note: {},
        lambda note: {k: v for k, v in note.items() if k != "skipped"}, lambda note: note | {"skipped": [1]},
        lambda note: note | {"skipped": None}, lambda note: note | {"skipped": [["a", 3]]},
        lambda note: note | {"skipped": "ab"}, lambda note: note | {"rows": 9}, lambda note: note | {"rows": "8"},
        lambda note: note | {"run": "another"},
    ],
)  # fmt: skip
def test_a_part_that_says_odd_things_of_itself_is_refused(tmp_path: Path, change: Any) -> None:
    shards = go(tmp_path, limit=4).shards
    rewritten(shards, lambda note: note)
    assert len(shards.read(0)[0]) == 32
    rewritten(shards, change)
    with pytest.raises(BadShard, match=r"shard-00000\.parquet"):
        shards.read(0)


def test_a_part_that_lost_rows_is_refused(tmp_path: Path) -> None:
    shards = go(tmp_path, limit=4).shards
    rewritten(shards, lambda note: note, fewer=1)
    with pytest.raises(BadShard, match="rows is 31, not 32"):
        shards.read(0)


TOLD = {"experiment": {"name": "mask"}, "data": {"name": "a", "samples": 4}, "shard_size": 4, "seed": 0}


@pytest.mark.parametrize(
    "manifest",
    [
        "", "[" * 100_000, "[]", "3", "null", "{}", '{"settings": []}', '{"settings": {}}', b"\xff\xfe",
        *(
            json.dumps({"settings": {**TOLD, **wrong}})
            for wrong in ({"data": {"name": "a", "samples": -1}}, {"shard_size": 0}, {"experiment": "a"}, {"seed": []})
        ),
        None,
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, manifest: Any) -> None:
    go(tmp_path, limit=4)
    (tmp_path / "manifest.json").unlink()
    if manifest is None:
        os.mkfifo(tmp_path / "manifest.json")  # to read it would wait for ever
    else:
        (tmp_path / "manifest.json").write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    for use in (lambda: Run.open(tmp_path), lambda: go(tmp_path, limit=4, resume=True)):
        with pytest.raises(rt.InputError, match="manifest") as refused:
            use()
        assert len(str(refused.value).splitlines()) == 1


def test_a_pipe_in_the_place_of_a_part_is_none(tmp_path: Path) -> None:
    run = go(tmp_path, limit=4)
    whole = run.to_frame()
    run.shards.path(0).unlink()
    os.mkfifo(run.shards.path(0))
    with pytest.warns(UserWarning, match="computed again"):
        pd.testing.assert_frame_equal(go(tmp_path, limit=4, resume=True).to_frame(), whole)


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", 10**30, True])
@pytest.mark.parametrize("name", ["batch_size", "limit", "shard_size", "seed"])
def test_arguments_that_cannot_be_are_refused_before_anything_is_done(tmp_path: Path, name: str, value: Any) -> None:
    if (name, value) == ("seed", 0):
        return
    with pytest.raises(rt.InputError, match=f"{name} is a whole number of at least"):
        go(tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


def test_names_in_tables_are_text(tmp_path: Path) -> None:
    """No cell ends early in Markdown, and nothing is a command in LaTeX."""
    data = dataclasses.replace(digits(8), name="a&b#c$\\input{x}|~^%_\n<b>`")
    run = go(tmp_path, data=data)
    assert r"a\&b\#c\$\textbackslash{}input\{x\}|\textasciitilde{}\textasciicircum{}\%\_ <b>`" in run.to_latex()
    text = run.to_markdown()
    assert r"a&b#c$\\input{x}\|~^%_ \<b>\`" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("| ")}
    assert len(columns) == 1


def test_drafts_of_a_killed_process_are_swept_away(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / ".shard-00003.parquet.x1").write_bytes(b"half")
    (tmp_path / ".manifest.json.x1").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    go(tmp_path, resume=True)
    assert drafts(tmp_path) == ["notes.txt"]


# --------------------------------------------------------------------------------------------- mixed up
def test_what_failed_before_its_first_part_is_no_run_yet(tmp_path: Path) -> None:
    with pytest.raises(rt.UnsupportedError):
        evaluate("sign-perturbation", subject(), digits(), out=tmp_path, methods=["gradcam"])
    go(tmp_path, limit=4)


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    go(tmp_path, limit=4)
    lock = "import sys, pathlib; from ratherthan.files import locked\nwith locked(pathlib.Path(sys.argv[1])):\n"
    command = [sys.executable, "-c", f"{lock}    print(flush=True); input()", str(tmp_path / "manifest.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(rt.InputError, match="another process"):
            go(tmp_path, limit=4, resume=True)
        other.kill()
    go(tmp_path, limit=4, resume=True)


def test_a_method_is_told_apart_by_its_settings(tmp_path: Path) -> None:
    run = evaluate("confidence-drop", subject(), digits(), out=tmp_path, methods=["gradcam", rt.GradCAM(layer="0")])
    assert list(run.to_frame()["method"].unique()) == ["gradcam", "gradcam(layer=0)"]
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["methods"]["gradcam"] == {"layer": None}
    with pytest.raises(rt.InputError, match="given twice"):
        evaluate("confidence-drop", subject(), digits(), out=tmp_path / "x", methods=["gradcam", rt.GradCAM()])


def shifted(by: Any) -> Any:
    return lambda net, images: net(images) + (by[1, 2] if isinstance(by, dict) else by)


def doubled(net: nn.Module, images: torch.Tensor, times: int = 2) -> Any:
    return times * net(images)


def gap(by: Any) -> Any:
    def of(logits: torch.Tensor, fact: torch.Tensor, foils: torch.Tensor) -> Any:
        return logits.gather(1, fact[:, None])[:, 0] * by

    return of


def test_functions_that_the_numbers_hang_on_are_told_apart(tmp_path: Path) -> None:
    """By what they say and by what is bound to them: a run of one is never continued with another."""
    on_one_line = [lambda net, images: net(images), lambda net, images: -net(images)]
    forwards = [
        None, doubled, partial(doubled, times=3), partial(doubled, times=4), shifted(1.0), shifted(2.0), *on_one_line,
        *(lambda net, images, i=i: net(images) * i for i in (2, 3)), shifted(torch.ones(4)), shifted({(1, 2): 3}),
    ]  # fmt: skip
    network = subject().module
    models = [rt.Model(network, layer="1", forward=each) for each in forwards]
    for i, model in enumerate(models):
        go(tmp_path / str(i), model=model, limit=4)
        for other in models[:i]:
            with pytest.raises(rt.InputError, match=r"another model\.forward"):
                go(tmp_path / str(i), model=other, limit=4, resume=True)
        go(tmp_path / str(i), model=rt.Model(network, layer="1", forward=forwards[i]), limit=4, resume=True)
    go(tmp_path / "contrast", contrasts=[gap(1)], limit=4)
    with pytest.raises(rt.InputError, match=r"another contrasts\.of\.does"):
        go(tmp_path / "contrast", contrasts=[gap(2)], limit=4, resume=True)
    go(tmp_path / "contrast", contrasts=[gap(1)], limit=4, resume=True)


def test_tensors_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    go(tmp_path, data=TensorDataset(images, labels))
    go(tmp_path, data=TensorDataset(images.clone(), labels), resume=True)
    with pytest.raises(rt.InputError, match=r"another data\.fingerprint"):
        go(tmp_path, data=TensorDataset(1 - images, labels), resume=True)


@pytest.mark.parametrize(
    "given", [[(torch.rand(1, 8, 8), 0)] * 200, ["a.png"], {"a": 1}, None, 3, torch.rand(2, 1, 8, 8)]
)
def test_what_is_no_data_set_is_told_so(given: Any, tmp_path: Path) -> None:
    with pytest.raises(rt.InputError, match="a data set is text or a Path or a Dataset, not") as refused:
        evaluate("mask", subject(), given, out=tmp_path / "run")
    assert len(str(refused.value)) < 200


def test_a_name_that_no_system_takes_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,label\n" + "a" * 300 + ",b\n")
    run = evaluate("deletion", subject(), tmp_path / "table.csv", out=tmp_path / "run")
    assert "cannot be read" in run.skipped[0][1]


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path) -> None:
    class Holes(ArrayReader):
        def read(self, index: int) -> Image.Image | torch.Tensor:
            if index in (1, 8, 9, 10, 11):  # one of a shard, and a whole shard
                raise CorruptImage(f"s{index}: damaged image")
            return super().read(index)

    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    run = go(tmp_path, data=digits(20, Holes(pixels)))
    assert run.skipped == [(f"s{i}", f"s{i}: damaged image") for i in (1, 8, 9, 10, 11)]
    assert run.to_frame()["sample"].nunique() == 15
    assert "15 of 20 samples took part, 5 unreadable" in run.to_markdown()
