"""Shards that others measure: the same table, whoever dies; with real processes once, and with made-up ones often."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import ratherthan as rt
from deadly import go, network, noise
from ratherthan.errors import RatherThanError, UnsupportedError
from ratherthan.evaluation import workers

CPU = torch.device("cpu")


def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    (tmp_path / "deadly").mkdir()
    told: list[tuple[float, int]] = []
    run = go(tmp_path / "two", noise(tmp_path / "deadly" / "once"), workers=2, progress=lambda *at: told.append(at))
    assert len(list((tmp_path / "deadly").iterdir())) >= 3, "it has died, and there was another"
    alone = go(tmp_path / "one", noise())
    pd.testing.assert_frame_equal(run.to_frame(), alone.to_frame(), check_exact=True)
    assert run.skipped == alone.skipped == [("s4", "s4: damaged image")]
    assert told == [(done, 16) for done in range(0, 17, 2)]
    settings = [{**each.shards.settings["data"], "fingerprint": ""} for each in (run, alone)]
    assert settings[0] == settings[1]


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is begun in the background ignores it
sys.path.insert(0, {tests!r})
from pathlib import Path
from deadly import go, noise

def told(done, total):
    print(done, flush=True)

if __name__ == "__main__":
    try:
        go(Path(sys.argv[1]), noise(count=800), workers=1, progress=told)
    except KeyboardInterrupt as stop:
        print(stop)
"""


def children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return list(map(int, listed.stdout.split()))


def gone(pid: int) -> bool:
    """Whether a process ends in ten seconds; one that nobody has taken leave of has ended, too."""
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True).stdout
        if state.strip() in ("", "Z"):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs groups of processes")
def test_ctrl_c_reaches_all_and_keeps_what_is_done(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(STOPPED.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(script), str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if int(line) >= 4:
                break
        started = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        rest, errors = process.stdout.read(), process.stderr.read()
    assert "samples done, kept in" in rest.splitlines()[-1]
    assert "resume=True" in rest
    assert errors == ""
    assert started
    assert all(map(gone, started))
    kept = sorted(path.name for path in (tmp_path / "run").glob("shard-*"))
    assert 2 <= len(kept) < 400
    assert not list((tmp_path / "run").glob(".shard-*"))
    times = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept}
    done = rt.Run.open(tmp_path / "run")
    assert len(done.shards.missing()) == 400 - len(kept)
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept} == times


# --------------------------------------------------------------------------------------------- made-up workers
class Actor:
    """A worker in this process that dies, or answers, as its crew's dice say."""

    def __init__(self, crew: Actors) -> None:
        self.crew, self.asked, self.question, self.stopped = crew, object(), None, False

    def give(self, positions: Any) -> None:
        assert not self.stopped
        self.asked, self.question = object(), positions

    def answer(self) -> Any:
        assert not self.stopped
        if self.crew.dies(self.question):
            raise workers._Lost("killed")
        if self.question is None:
            return self.crew.at_once
        try:
            return self.crew.job(self.question)
        except ValueError as error:
            return error

    def stop(self) -> None:
        self.stopped = True


class Actors:
    def __init__(self, job: Any, dies: Any, seed: int = 0, at_once: Any = None) -> None:
        self.job, self.dies, self.at_once, self.random = job, dies, at_once, random.Random(seed)
        self.all: list[Actor] = []

    def start(self) -> Actor:
        self.all.append(Actor(self))
        return self.all[-1]

    def wait(self, asked: list[Any]) -> list[Any]:
        return self.random.sample(asked, self.random.randint(1, len(asked)))

    def spread(self, shards: dict[int, Any], count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Any]]:
        @contextmanager
        def crew(job: Any, device: Any, wanted: int) -> Iterator[Any]:
            yield self.start, self.wait, wanted

        monkeypatch.setattr(workers, "_processes", crew)
        return workers.spread(self.job, shards, CPU, count, "processes", None)


SHARDS = {number: [10 * number, 10 * number + 1] for number in (0, 2, 3, 7, 8, 9)}


@pytest.mark.parametrize("seed", range(60))
def test_whoever_dies_when_each_shard_is_answered_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dice, deaths = random.Random(seed), Counter[Any]()

    def dies(question: Any) -> bool:
        key = str(question)
        if dice.random() < 0.4 and deaths[key] < 2:  # a shard has three tries
            deaths[key] += 1
            return True
        return False

    actors = Actors(sum, dies, seed)
    answers = list(actors.spread(SHARDS, 1 + seed % 9, monkeypatch))
    assert sorted(answers) == [(number, sum(positions)) for number, positions in SHARDS.items()]
    assert all(each.stopped for each in actors.all)
    assert len(actors.all) == min(1 + seed % 9, len(SHARDS)) + sum(deaths.values())


def test_a_shard_that_kills_is_given_to_three(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = Actors(sum, lambda question: question == SHARDS[3])
    seen = list[int]()
    told = (seen.append(number) for number, _ in actors.spread(SHARDS, 2, monkeypatch))
    with pytest.raises(RatherThanError, match=r"3 workers ended .* at shard 3 \(killed\): out of memory.*resume=True"):
        list(told)
    assert 3 not in seen
    assert len(seen) == len(set(seen))
    assert all(each.stopped for each in actors.all)
    assert len(actors.all) == 2 + 2


def test_workers_that_never_begin_are_three(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = Actors(sum, lambda question: question is None)
    with pytest.raises(RatherThanError, match=r"3 workers ended .* as they began .*__main__"):
        list(actors.spread(SHARDS, 1, monkeypatch))
    assert len(actors.all) == 3
    assert all(each.stopped for each in actors.all)


@pytest.mark.parametrize("kind", ["a shard", "the job", "interrupted"])
def test_what_goes_wrong_in_a_worker_is_raised_and_all_are_stopped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(positions: Any) -> int:
        if kind == "a shard" and positions == SHARDS[7]:
            raise ValueError("no")
        return 0

    actors = Actors(job, lambda question: False, at_once=UnsupportedError("no") if kind == "the job" else None)
    answers = actors.spread(SHARDS, 3, monkeypatch)
    if kind == "interrupted":
        next(answers)
        answers.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(ValueError if kind == "a shard" else UnsupportedError, match="no"):
            list(answers)
    assert actors.all
    assert all(each.stopped for each in actors.all)


# --------------------------------------------------------------------------------------------- what travels
def travelled(job: Any, tmp_path: Path) -> workers.Mate:
    import pickle

    workers._pack(job, tmp_path / "job", pickle)
    return workers.Mate(tmp_path / "job", None)


class TwoLines(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}\n{second}")


def fails(positions: Any) -> None:
    if positions == [0]:
        raise rt.InputError("too small")
    raise TwoLines("one", "two")  # made of two arguments, it cannot be read from what is sent


def test_errors_travel(tmp_path: Path) -> None:
    mate = travelled(fails, tmp_path)
    assert mate.do() is None
    error = mate.do([0])
    assert (type(error), str(error)) == (rt.InputError, "too small")
    assert "in fails" in error.__notes__[0]
    assert (type(mate.do([1])), str(mate.do([1]))) == (RuntimeError, "TwoLines: one")


def test_settings_of_torch_travel(tmp_path: Path) -> None:
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("high")
        mate = travelled(fails, tmp_path)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        mate.do()
        assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == (torch.float64, "high")
    finally:
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])


def test_a_worker_with_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mate = travelled(fails, tmp_path)
    monkeypatch.setattr(workers, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(UnsupportedError, match=r"a worker has \{'torch': '1.0'\}"):
        raise mate.do()


def test_what_cannot_travel_is_refused_in_one_line(tmp_path: Path) -> None:
    model = rt.Model(network().module, layer="1", preprocessing="none", forward=lambda net, x: net(x))
    with pytest.raises(UnsupportedError, match=r"cannot be sent to workers: .*lambda.*; define functions") as refused:
        rt.evaluate("deletion", model, noise(), out=tmp_path / "run", workers=2)
    assert "\n" not in str(refused.value)
    gone = travelled(fails, tmp_path)
    content = (tmp_path / "job").read_bytes()
    (tmp_path / "job").write_bytes(content.replace(b"test_workers", b"test_wurkers"))
    assert "cannot be sent to workers: No module named" in str(gone.do())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": -1}, "workers is a whole number of at least 0"),
        ({"workers": 10**30}, "workers is a whole number of at least 0"),
        ({"engine": "dask"}, "unknown engine 'dask'; known: processes, ray"),
        ({"address": 3}, "address is text or None"),
        ({"address": "auto"}, "address is of a Ray cluster: give engine='ray', too"),
    ],
)
def test_what_is_asked_wrongly_is_said_before_anything_begins(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(rt.InputError, match=message):
        go(tmp_path / "run", noise(), **wrong)
    assert not (tmp_path / "run").exists()


def test_nothing_is_sent_that_pickle_has_to_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `torch.memory_format` names no module: with Ray it was taken for one of the script that had started it."""
    sent = list[bytes]()

    def kept(job: Any, *rest: Any) -> Iterator[Any]:
        sent.append(pickle.dumps(job))
        assert job.blank.channels_last, "as is faster on a processor"
        yield from spread(job, *rest)

    spread = workers.spread
    monkeypatch.setattr("ratherthan.evaluation.run.spread", kept)
    go(tmp_path, noise())
    assert b"torch.c" not in sent[0]  # torch.channels_last, torch.contiguous_format
