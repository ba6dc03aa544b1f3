"""Who measures the shards of a run: this process, others on this machine, or actors of Ray on one or many."""

from __future__ import annotations

import io
import os
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing import connection, get_context, resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from ratherthan.data.dataset import ending_with
from ratherthan.errors import InputError, RatherThanError, UnsupportedError, first_line, told_as
from ratherthan.result import versions

Engine = Literal["processes", "ray"]
"""What workers are: processes of this machine, or actors of Ray."""
Job = Callable[[Sequence[int]], Any]
"""What is done with samples; of a shard it says the same whoever does it."""
Crew = tuple[Callable[[], Any], Callable[[list[Any]], Sequence[Any]], int]
"""How to start a worker; how to wait for some of what was asked of workers; and how many there are to be.

A worker has `asked`, what is waited for, first that it is ready; `answer()`; `give(positions)` and `stop()`.
"""
MOST = 100_000
"""So many workers may be asked for; no more begin than there are shards."""
_TRIES = 3  # times that a shard may be given to a worker that ends over it
_READY = -1  # the number of no shard: what a worker is at that gets ready
_LOST = f"{_TRIES} workers ended without an answer {{}} ({{}}): " \
    "out of memory? give fewer, or a smaller batch_size; a script has to call this under if __name__ == '__main__': " \
    "(what is done is kept: resume=True)"  # fmt: skip
_SENT = "the model, the data or a method cannot be sent to workers"
_THEN = "; define functions and classes in a module that is imported, or do without workers"


def spread(
    job: Job,
    shards: Mapping[int, Sequence[int]],
    device: torch.device,
    workers: int,
    engine: Engine,
    address: str | None,
) -> Generator[tuple[int, Any]]:
    """Do a job on every shard.

    Args:
        job: What is done.
        shards: Positions by the number of the shard.
        device: Where the job's networks are.
        workers: How many do it; 0: this process, or as many as the cluster has room for.
        engine: What they are.
        address: Of a cluster.

    Yields:
        The number of a shard and what the job says, as they are done.

    Raises:
        UnsupportedError: If the job cannot be sent.
        RatherThanError: If a shard was lost several times.
    """
    if not shards or (engine == "processes" and not workers):
        for number, positions in shards.items():
            yield number, job(positions)
        return
    crew = _processes(job, device, workers) if engine == "processes" else _ray(job, device, workers, address)
    left, lost, missing, at_work = deque(shards), Counter[int](), len(shards), dict[Any, int]()
    with crew as (start, wait, workers):
        try:
            at_work |= {start(): _READY for _ in range(min(workers, missing))}
            while missing:
                asked = set(wait([each.asked for each in at_work]))
                for worker in [each for each in at_work if each.asked in asked]:
                    number = at_work[worker]
                    try:
                        answer = worker.answer()
                    except _Lost as error:
                        lost[number] += 1
                        if lost[number] == _TRIES:
                            which = "as they began" if number == _READY else f"at shard {number}"
                            raise RatherThanError(_LOST.format(which, error)) from error
                        left.extendleft([number] * (number != _READY))
                        at_work[start()] = _READY
                    else:
                        if isinstance(answer, Exception):
                            raise answer
                        if number == _READY:
                            lost[_READY] = 0
                        else:
                            missing -= 1
                            yield number, answer
                        if left:
                            at_work[worker] = left.popleft()
                            worker.give(shards[at_work[worker]])
                            continue
                    del at_work[worker]
                    worker.stop()
        finally:
            for worker in at_work:
                worker.stop()


class _Lost(Exception):
    """A worker ended without an answer."""


# --------------------------------------------------------------------------------------------- what a worker does
class Mate:
    """The job in a worker. What it raises is an answer, too, and is raised where the run is."""

    def __init__(self, packed: Any, device: str | None) -> None:
        self.packed, self.device = packed, device

    def packed_answer(self, positions: Sequence[int] | None = None) -> bytes:
        """What `do` says, by value: of what torch shares between processes each tensor takes a file descriptor."""
        content = io.BytesIO()
        torch.save(self.do(positions), content)
        return content.getvalue()

    def do(self, positions: Sequence[int] | None = None) -> Any:
        """What the job says of positions; before the first, with none, it is unpacked."""
        try:
            return self._unpack() if positions is None else self.job(positions)
        except Exception as error:
            error.add_note(f"in a worker:\n{traceback.format_exc()}")
            with suppress(Exception):  # of one that cannot travel the text does
                return pickle.loads(pickle.dumps(error))
            return RuntimeError(f"{type(error).__name__}: {first_line(error)}")

    def _unpack(self) -> None:
        torch.set_num_threads(1)  # there may be a worker for each core
        source = io.BytesIO(self.packed) if isinstance(self.packed, bytes) else self.packed
        with told_as(UnsupportedError, _SENT, AttributeError, ImportError, pickle.UnpicklingError, then=_THEN):
            self.job, theirs, dtype, precision = torch.load(source, map_location=self._moved, weights_only=False)
        if theirs != versions():
            raise UnsupportedError(f"a worker has {versions()}, this process {theirs}: install the same")
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)

    def _moved(self, storage: Any, location: str) -> Any:
        return storage.cuda(self.device) if location.startswith("cuda") else storage


def _answered(content: bytes) -> Any:
    """What a mate has packed; the devices it was made on may not be here."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _pack(job: Job, place: Any, pickler: Any) -> None:
    """Write the job, and the settings of torch that its numbers depend on."""
    sent = (job, versions(), torch.get_default_dtype(), torch.get_float32_matmul_precision())
    with told_as(UnsupportedError, _SENT, Exception, then=_THEN):
        torch.save(sent, place, pickler, pickle.HIGHEST_PROTOCOL)


# --------------------------------------------------------------------------------------------- processes
@contextmanager
def _processes(job: Job, device: torch.device, workers: int) -> Iterator[Crew]:
    with TemporaryDirectory(prefix="ratherthan-") as folder:
        packed, numbers = Path(folder) / "job", count(device.index or 0)
        _pack(job, packed, pickle)

        def start() -> _Process:
            gpu = f"cuda:{next(numbers) % torch.cuda.device_count()}" if device.type == "cuda" else None
            return _Process(packed, gpu)

        yield start, connection.wait, workers


class _Process:
    def __init__(self, packed: Path, device: str | None) -> None:
        context = get_context("spawn")  # a fork would inherit locks and what CUDA holds
        self.asked, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, packed, device, os.getpid()), daemon=True)
        with _deaf():
            self.process.start()
        theirs.close()

    def give(self, positions: Sequence[int]) -> None:
        with suppress(OSError):  # that it has ended is seen when it is waited for
            self.asked.send(positions)

    def answer(self) -> Any:
        try:
            return _answered(self.asked.recv_bytes())
        except (EOFError, OSError) as error:
            raise _Lost("killed?") from error

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.asked.close()


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C is for this process, which ends the others: what is blocked here stays so in those that begin."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it unblocks when it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(line: Any, packed: Path, device: str | None, parent: int) -> None:
    ending_with(parent)
    mate = Mate(packed, device)
    with suppress(EOFError, OSError):  # nobody asks any more
        line.send_bytes(mate.packed_answer())
        while True:
            line.send_bytes(mate.packed_answer(line.recv()))


# --------------------------------------------------------------------------------------------- Ray
@contextmanager
def _ray(job: Job, device: torch.device, workers: int, address: str | None) -> Iterator[Crew]:
    """In Ray as it was initialised; else in the cluster at the address; else in one that is begun and ended here."""
    with told_as(InputError, "Ray cannot be used", ImportError, then=": pip install 'ratherthan[ray]'"):
        import ray
    found, ours = address or os.environ.get("RAY_ADDRESS"), not ray.is_initialized()
    own = {} if found else {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
    if ours:
        with told_as(InputError, f"Ray cannot be reached at {found}" if found else "Ray cannot begin", Exception):
            ray.init(found or "local", log_to_driver=False, logging_level="ERROR", **own)
    try:
        gpu = device.type == "cuda"
        room = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
        if not room:
            raise InputError(f"the model is on {device}, and the Ray cluster has none: move it to cpu")
        content = io.BytesIO()
        _pack(job, content, ray.cloudpickle)
        packed, kind = ray.put(content.getvalue()), ray.remote(num_cpus=1, num_gpus=int(gpu), max_restarts=0)(Mate)

        def start() -> _Actor:
            return _Actor(ray, kind.remote(packed, "cuda:0" if gpu else None))

        yield start, lambda asked: ray.wait(asked)[0], workers or room
    finally:
        if ours:
            ray.shutdown()


class _Actor:
    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray, self.actor, self.asked = ray, actor, actor.packed_answer.remote()

    def give(self, positions: Sequence[int]) -> None:
        self.asked = self.actor.packed_answer.remote(positions)

    def answer(self) -> Any:
        try:
            return _answered(self.ray.get(self.asked))
        except self.ray.exceptions.RayError as error:  # the actor, its node, or what it answered is gone
            raise _Lost(first_line(error)) from error

    def stop(self) -> None:
        self.ray.kill(self.actor)
