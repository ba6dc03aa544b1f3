"""Counterfactuals of MNIST digits: one call against one by one, rows that leave against rows that stay, and quality.

    python benchmarks/search.py [IMAGES] [ONE_BY_ONE]

IMAGES (default 256) are searched for in one call, 64 at once, ONE_BY_ONE of them (default 8) singly. "Staying" feeds
every row to the network at every step, finished or not. Times are CPU seconds, so that whatever else runs beside this
counts little. Answers are compared in float32, where a sum over another batch size is rounded otherwise and an answer
may move along its boundary. Digits come from the folder that RATHERTHAN_DATA names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

import ratherthan as rt
from ratherthan import data
from ratherthan.search import constrained, solver

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float, float]:
    """What a call gives, its CPU seconds and those of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    found = call()
    return found, time.process_time() - cpu, time.perf_counter() - clock


def staying(problem: solver.Problem, start: Tensor, *rest: object) -> solver.Outcome:
    """`search`, but with every row in the batch to the end."""

    def padded(z: Tensor, rows: Tensor) -> solver.Terms:
        whole = start.index_put((rows,), z)
        terms = problem(whole, torch.arange(len(start), device=start.device))
        return solver.Terms(terms.objective[rows], terms.zero[rows], terms.below[rows])

    return solver.search(padded, start, *rest)  # type: ignore[arg-type]


def compared(ones: rt.Counterfactual, others: rt.Counterfactual) -> str:
    """How far answers are from each other."""
    pixels = (ones.example - others.example).abs().flatten(1).amax(1)
    farther = (ones.distance.mean() / others.distance.mean() - 1).item()
    return (
        f"{int((ones.found == others.found).sum())} of {len(ones)} end alike; pixels differ by {pixels.median():.4f}"
        f" (median) to {pixels.max():.4f}; mean distance {farther:+.2%}"
    )


def main(count: int = 256, single: int = 8) -> None:
    """Measure and print."""
    digits = data.load("mnist", None, "test")
    images = torch.stack([digits[i][0] for i in range(count)])
    model, method = rt.load("zoo:mnist"), rt.CDeepEx(rt.Manifold.load("mnist_vae"))
    once = replace(method, retries=0)
    shift = torch.randint(1, 10, (count,), generator=torch.Generator().manual_seed(0))
    rt.counterfactual(model, images[:2], method=once)  # warm up

    print(f"{count} digits, {torch.get_num_threads()} threads", flush=True)
    together, cpu, clock = timed(lambda: rt.counterfactual(model, images, method=once))
    passes = together.evaluations // count
    print(f"one call      {cpu / count:.3f} CPU s an image, {clock / count:.3f} s of the clock, {passes} passes each")
    alone, slow, _ = timed(lambda: rt.counterfactual(model, images[:single], method=once, batch_size=1))
    few = rt.counterfactual(model, images[:single], method=once)
    print(f"one by one    {slow / single:.3f} CPU s an image, {slow / single / (cpu / count):.1f} times as long")
    print(f"              {compared(alone, few)}", flush=True)
    constrained.search = staying
    stayed, longer, _ = timed(lambda: rt.counterfactual(model, images, method=once))
    constrained.search = solver.search
    print(
        f"rows staying  {longer / cpu:.1f} times as long as leaving\n              {compared(stayed, together)}",
        flush=True,
    )
    for name, foil in (("runner-up", "runner-up"), ("random foil", (together.fact + shift) % 10)):
        cpu = time.process_time()
        found = int(rt.counterfactual(model, images, foil=foil, method=method).found.sum())
        cpu = time.process_time() - cpu
        print(f"{name:13} {found} of {count} found, {cpu / count:.3f} CPU s an image with retries", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
