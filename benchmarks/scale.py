"""How much faster are two workers than one, and what bounds a thousand?

    python benchmarks/scale.py [--engine processes] [--images 192] [--rounds 2] [--kills 10]

Workers have one thread each. Measured is the rate between the first shard that is done and the last, so neither the
start of workers nor the end counts; rounds of one and of two alternate, and the best of each is taken, for other work
on the machine disturbs both. The ratio needs two free cores: where there are fewer it says more about those.

With `--kills` so many runs of two workers follow, in each of which one is killed at a random moment (on Linux); each
has to end with the table of one process, bit for bit.

The arithmetic: what the one process that gives shards out and writes them spends on each bounds how many workers it
keeps busy, (seconds of a shard in a worker) / (seconds of a shard here).
"""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe, connection
from pathlib import Path

import numpy as np
import torch

import ratherthan as rt
from ratherthan.evaluation.shards import Shards
from ratherthan.zoo.architectures import SqueezeNet

SHARD, THOUSAND = 8, 1000


def noise(count: int) -> rt.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    names = tuple(map(str, range(count)))
    return rt.Dataset("noise", tuple(map(str, range(102))), names, (0,) * count, rt.ArrayReader(pixels))


def measured(
    model: rt.Model, images: int, workers: int, engine: str, folder: Path, told: Callable[[float, int], object]
) -> rt.Run:
    return rt.evaluate(
        "deletion", model, noise(images), out=folder, methods=["gradcam"], shard_size=SHARD, workers=workers,
        engine=engine, progress=told,
    )  # fmt: skip


def rate(model: rt.Model, images: int, workers: int, engine: str) -> float:
    """Shards a second, between the first and the last."""
    at: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        measured(model, images, workers, engine, Path(folder), lambda *_: at.append(time.perf_counter()))
    at = at[2:]  # the first is before any; with two workers the first two are done at once
    return (len(at) - 1) / (at[-1] - at[0])


def here(rows: int) -> float:
    """Seconds that the giving process spends on a shard: waiting among a thousand, reading the answer, writing it."""
    columns = {"position": list(range(rows)), "value": [0.5] * rows, "sample": ["a name of some length"] * rows}
    answer = pickle.dumps(([columns] * 8, []))
    ends = [Pipe() for _ in range(THOUSAND)]
    ends[-1][1].send(b"")
    with tempfile.TemporaryDirectory() as folder:
        shards = Shards(Path(folder), {"shard_size": rows, "data": {"samples": rows}})
        start, times = time.process_time(), 20
        for number in range(times):
            connection.wait([ours for ours, _ in ends])
            blocks, skipped = pickle.loads(answer)
            shards.write(number, blocks, skipped)
        return (time.process_time() - start) / times


def killed(model: rt.Model, images: int, engine: str, kills: int) -> int:
    """How many runs end with the same table, each of which loses a worker at a random moment."""
    random, same = np.random.default_rng(0), 0
    with tempfile.TemporaryDirectory() as folder:
        alone = measured(model, images, 0, "processes", Path(folder), lambda *_: None).to_frame()
    for _ in range(kills):
        at, gone = int(random.integers(1, images // SHARD - 1)), list[int]()

        def told(done: float, total: int, at: int = at, gone: list[int] = gone) -> None:
            if done >= at * SHARD and not gone:
                time.sleep(random.uniform(0, 0.5))
                gone.append(int(random.choice(workers_of(engine))))
                os.kill(gone[0], signal.SIGKILL)

        with tempfile.TemporaryDirectory() as folder:
            table = measured(model, images, 2, engine, Path(folder), told).to_frame()
        same += bool(gone) and table.equals(alone)
        print(f"worker {gone} killed after shard {at}: {'the same table' if table.equals(alone) else 'ANOTHER TABLE'}")
    return same


def workers_of(engine: str) -> list[int]:
    """Process numbers of what measures."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            said = (each / "cmdline").read_bytes().replace(b"\0", b" ")
            mine = f"PPid:\t{os.getpid()}\n" in (each / "status").read_text()
            if said.startswith(b"ray::Mate") if engine == "ray" else mine and b"spawn_main" in said:
                found.append(int(each.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="processes")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = rt.Model(SqueezeNet(102).eval(), preprocessing="imagenet", size=64, layer="features.12")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):
        for workers, found in rates.items():
            found.append(rate(model, given.images, workers, given.engine))
    one, two = (max(found) for found in rates.values())
    print(
        f"{given.engine}, shards of {SHARD} images: one worker {one:.2f} a second, two {two:.2f}: ratio {two / one:.2f}"
    )
    print(f"  all rounds: {rates}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if given.kills:
        same = killed(model, given.images, given.engine, given.kills)
        print(f"{same} of {given.kills} runs that lost a worker ended with the same table, bit for bit")
    spent = here(64)
    print(f"giving out, reading and writing a shard of 64 images x 8 blocks: {spent * 1e3:.1f} ms of one core")
    for seconds in (1, 10, 60):
        print(f"  a shard of {seconds} s in a worker: {seconds / spent:,.0f} workers are kept busy")


if __name__ == "__main__":
    main()
