"""A run that is killed, interrupted, damaged or mixed up."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401 (now, not in every fork)
import pytest
import torch
from PIL import Image
from torch import nn

import ratherthan as rt
from ratherthan.data import Dataset
from ratherthan.data.dataset import ArrayReader
from ratherthan.data.images import CorruptImage
from ratherthan.evaluation import Run, evaluate

KILLS = 20


def subject(seed: int = 0) -> rt.Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 4))
    return rt.Model(module, layer="1")


def digits(count: int = 60, reader: Any = None) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    labels = tuple(i % 4 for i in range(count))
    return Dataset("noise", tuple("abcd"), tuple(f"s{i}" for i in range(count)), labels, reader or ArrayReader(pixels))


def go(out: Path, **options: Any) -> Run:
    settings = {"preset": "official-code", "threshold": 0.0, "fills": ("blur",), "part_size": 4, "seed": 5}
    return evaluate("mask", options.pop("model", None) or subject(), options.pop("data", None) or digits(), out=out,
                    methods=["gradcam"], **{**settings, **options})  # fmt: skip


def same(one: Run, other: Run, exactly: bool = True) -> None:
    pd.testing.assert_frame_equal(one.frame(), other.frame(), check_exact=exactly, rtol=1e-4, atol=1e-5)


def drafts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "manifest.json" and path.name[:5] != "part-"]


# --------------------------------------------------------------------------------------------- killed
def serve() -> None:
    """For each line, a folder and seconds, fork a run, kill it then and print how it ended; torch is imported once."""
    torch.set_num_threads(1)
    model, data = subject(), digits()
    print("ready", flush=True)
    for line in sys.stdin:
        folder, seconds = line.split()
        child = os.fork()
        if not child:
            go(Path(folder), model=model, data=data, resume=True)
            os._exit(0)
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)  # nothing to a child that is done but not waited for
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


@contextmanager
def server() -> Iterator[Callable[[Path, float], int]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, __file__], env=environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        source, sink = process.stdout, process.stdin

        def killed_after(folder: Path, seconds: float) -> int:
            print(folder, seconds, file=sink, flush=True)
            return int(source.readline())

        try:
            assert source.readline() == "ready\n"
            yield killed_after
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_run_survives_twenty_kills(tmp_path: Path) -> None:
    start = time.monotonic()
    uninterrupted = go(tmp_path / "whole")
    lasts = time.monotonic() - start
    chance, kills, folders = random.Random(1), 0, [tmp_path / "run0"]
    with server() as killed_after:
        while kills < KILLS:
            if killed_after(folders[-1], chance.uniform(0, lasts / 2)):
                kills += 1
            else:  # it was done before: begin another
                folders.append(tmp_path / f"run{len(folders)}")
    go(folders[-1], resume=True)
    for folder in folders:
        same(Run.open(folder), uninterrupted)
        assert drafts(folder) == []


# --------------------------------------------------------------------------------------------- interrupted
def test_an_interrupt_says_how_to_go_on_and_loses_nothing_finished(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"20 of 60 samples done.*--resume"):
        go(tmp_path / "run", progress=stop)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("part-*")}
    assert len(stamps) == 5
    with pytest.raises(rt.InputError, match="unfinished: part-00005"):
        Run.open(tmp_path / "run").frame()
    seen: list[tuple[int, int]] = []
    done = go(tmp_path / "run", resume=True, progress=lambda *at: seen.append(at))
    assert seen[0] == (20, 60)
    assert seen[-1] == (60, 60)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    same(done, go(tmp_path / "whole"))


def test_results_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")
    same(whole, go(tmp_path / "one", batch_size=1), exactly=False)
    same(whole, go(tmp_path / "parts", part_size=7, batch_size=5), exactly=False)
    same(whole, go(tmp_path / "workers", workers=1))


def test_a_limit_is_spread_over_the_set(tmp_path: Path) -> None:
    frame = go(tmp_path / "run", limit=6).frame()
    assert sorted(frame["sample"].unique(), key=lambda s: int(s[1:])) == ["s0", "s10", "s20", "s30", "s40", "s50"]


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
    path.write_bytes(path.with_name("part-00000.parquet").read_bytes())


def of_somebody_else(path: Path) -> None:
    pd.DataFrame({"position": [8], "relative": [0.5]}).to_parquet(path)


@pytest.mark.parametrize(
    "damage", [truncated, flipped, not_parquet, of_another_run, of_another_place, of_somebody_else]
)
def test_a_damaged_or_foreign_part_is_named_and_made_again(tmp_path: Path, damage: Any) -> None:
    whole = go(tmp_path / "run").frame()
    damage(tmp_path / "run" / "part-00002.parquet")
    with pytest.raises(rt.InputError, match=r"part-00002\.parquet"):
        Run.open(tmp_path / "run").frame()
    with pytest.warns(UserWarning, match=r"part-00002\.parquet .* computed again") as caught:
        done = go(tmp_path / "run", resume=True)
    assert len(caught) == 1
    pd.testing.assert_frame_equal(done.frame(), whole)


def test_drafts_of_a_killed_process_are_swept_away(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / ".part-00003.parquet.x1").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    go(tmp_path, resume=True)
    assert drafts(tmp_path) == ["notes.txt"]


# --------------------------------------------------------------------------------------------- mixed up
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sigma": 12.0}, "experiment.sigma: None then, 12.0 now"),
        ({"preset": "strict"}, "experiment.preset"),
        ({"seed": 6}, "seed: 5 then, 6 now"),
        ({"contrasts": ["none", "max"]}, "contrasts"),
        ({"model": subject(seed=1)}, "model.weights"),
        ({"data": digits(59)}, "data.samples: 60 then, 59 now"),
        ({"part_size": 8}, "part_size"),
    ],
)
def test_runs_with_other_settings_are_not_mixed(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    go(tmp_path)
    with pytest.raises(rt.InputError, match=named):
        go(tmp_path, resume=True, **change)


def test_a_run_is_not_continued_unasked(tmp_path: Path) -> None:
    go(tmp_path)
    with pytest.raises(rt.InputError, match="--resume"):
        go(tmp_path)


def test_what_failed_before_its_first_part_is_no_run_yet(tmp_path: Path) -> None:
    with pytest.raises(rt.UnsupportedError):
        evaluate("sign-perturbation", subject(), digits(), out=tmp_path, methods=["gradcam"])
    go(tmp_path, limit=4)


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    go(tmp_path, limit=4)
    lock = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", lock, str(tmp_path / "manifest.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(rt.InputError, match="another process"):
            go(tmp_path, limit=4, resume=True)
        other.kill()
    go(tmp_path, limit=4, resume=True)


def test_a_method_is_told_apart_by_its_settings(tmp_path: Path) -> None:
    run = evaluate("confidence-drop", subject(), digits(), out=tmp_path, methods=["gradcam", rt.GradCAM(layer="0")])
    assert list(run.frame()["method"].unique()) == ["gradcam", "gradcam(layer=0)"]
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["methods"]["gradcam"] == {"layer": None}
    with pytest.raises(rt.InputError, match="given twice"):
        evaluate("confidence-drop", subject(), digits(), out=tmp_path / "x", methods=["gradcam", rt.GradCAM()])


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path) -> None:
    class Holes(ArrayReader):
        def read(self, index: int) -> Image.Image | torch.Tensor:
            if index in (1, 8, 9, 10, 11):  # one of a part, and a whole part
                raise CorruptImage(f"s{index}: damaged image")
            return super().read(index)

    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    run = go(tmp_path, data=digits(20, Holes(pixels)))
    assert run.skipped == [(f"s{i}", f"s{i}: damaged image") for i in (1, 8, 9, 10, 11)]
    assert run.frame()["sample"].nunique() == 15
    assert "15 of 20 samples took part, 5 unreadable" in run.to_markdown()


if __name__ == "__main__":
    serve()
