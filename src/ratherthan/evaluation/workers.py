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
from multiprocessing import connection, get_context
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
                asked = wait([each.asked for each in at_work])
                for worker in [each for each in at_work if each.asked in asked]:
                    number = at_work[worker]
                    try:
                        answer = worker.answer()
                    except _Lost as error:
                        lost[number] += 1
                        if lost[number] == _TRIES:
                            raise RatherThanError(_given_up(number, error)) from error
                        left.extendleft([number] * (number != _READY))
                        at_work[start()] = _READY
                        del at_work[worker]
                        worker.stop()
                        continue
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
                    else:
                        del at_work[worker]
                        worker.stop()
        finally:
            for worker in at_work:
                worker.stop()


_READY = -1  # what a worker is at that gets ready


class _Lost(Exception):
    """A worker ended without an answer."""


def _given_up(number: int, lost: _Lost) -> str:
    where = "as they began" if number == _READY else f"at shard {number}"
    said = f" ({first_line(lost)})" if str(lost) else ""
    hint = "out of memory? give fewer of them, or a smaller batch_size"
    if number == _READY:
        hint = "a script has to call evaluate under if __name__ == '__main__':"
    return f"{_TRIES} workers ended without an answer {where}{said}; {hint}; what is done is kept: give resume=True"


# --------------------------------------------------------------------------------------------- what a worker does
class Mate:
    """The job in a worker. What it raises is an answer, too, and is raised where the run is."""

    def __init__(self, packed: Any, device: str | None) -> None:
        self.packed, self.device = packed, device

    def ready(self) -> Any:
        """Unpack the job; use one thread, for there may be a worker for each core."""
        torch.set_num_threads(1)
        return _answered(self._unpack)

    def measure(self, positions: Sequence[int]) -> Any:
        """Do it."""
        return _answered(lambda: self.job(positions))

    def _unpack(self) -> None:
        source = io.BytesIO(self.packed) if isinstance(self.packed, bytes) else self.packed
        with told_as(UnsupportedError, _SENT, AttributeError, ImportError, pickle.UnpicklingError, then=_THEN):
            sent = torch.load(source, map_location=self._moved, weights_only=False)
        if sent["versions"] != versions():
            raise UnsupportedError(f"a worker has {versions()}, this process {sent['versions']}: install the same")
        torch.set_default_dtype(sent["dtype"])
        torch.set_float32_matmul_precision(sent["precision"])
        self.job: Job = sent["job"]

    def _moved(self, storage: Any, location: str) -> Any:
        return storage.cuda(self.device) if location.startswith("cuda") else storage


def _answered(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
        return error


def _pack(job: Job, place: Any, pickler: Any) -> None:
    """Write the job, and the settings of torch that its numbers depend on."""
    sent = {"job": job, "versions": versions(), "dtype": torch.get_default_dtype()}
    sent["precision"] = torch.get_float32_matmul_precision()
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
        # Ctrl-C is for this process, which ends the others; what is blocked here is blocked in what begins
        before = (
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
        )
        try:
            self.process.start()
        finally:
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, positions: Sequence[int]) -> None:
        with suppress(OSError):  # that it has ended is seen when it is waited for
            self.asked.send(positions)

    def answer(self) -> Any:
        try:
            return self.asked.recv()
        except (EOFError, OSError) as error:
            raise _Lost from error

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.asked.close()


def _work(line: Any, packed: Path, device: str | None, parent: int) -> None:
    ending_with(parent)
    mate = Mate(packed, device)
    with suppress(EOFError, OSError):  # nobody asks any more
        line.send(mate.ready())
        while True:
            line.send(mate.measure(line.recv()))


# --------------------------------------------------------------------------------------------- Ray
@contextmanager
def _ray(job: Job, device: torch.device, workers: int, address: str | None) -> Iterator[Crew]:
    """In Ray as it was initialised; else in the cluster at the address; else in one that is begun and ended here."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'ratherthan[ray]'") from error
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
        self.ray, self.actor, self.asked = ray, actor, actor.ready.remote()

    def give(self, positions: Sequence[int]) -> None:
        self.asked = self.actor.measure.remote(positions)

    def answer(self) -> Any:
        try:
            return self.ray.get(self.asked)
        except self.ray.exceptions.RayError as error:  # the actor, its node, or what it answered is gone
            raise _Lost(first_line(error)) from error

    def stop(self) -> None:
        self.ray.kill(self.actor)
