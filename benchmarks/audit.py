"""What does an audit cost, against bare forward passes of the same images?

    python benchmarks/audit.py [--images 10000] [--threads 1] [--model zoo:fashion_mnist]

The images are noise of the size that the network takes, in memory; bare forward passes read and normalise them in
batches as large as the audit's. Also measured: the pieces, whose cost depends on the classes and not on the images, and
by how much the process grew.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import numpy as np
import torch

import ratherthan as rt
from ratherthan.evaluation.run import fitting


def noise(model: rt.Model, count: int) -> rt.Dataset:
    channels, (height, width) = model.inputs.channels, model.inputs.size
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)
    names = model.class_names or tuple(map(str, range(10)))
    return rt.Dataset(
        "noise",
        names,
        tuple(map(str, range(count))),
        tuple(i % len(names) for i in range(count)),
        rt.ArrayReader(pixels),
    )


def bare(model: rt.Model, data: rt.Dataset, size: int) -> None:
    with torch.no_grad():
        for _, images, _ in rt.data.batches(data, size):
            model.logits(model.preprocess(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="zoo:fashion_mnist")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = rt.load(asked.model)
    data = noise(model, asked.images)
    size = fitting(data[0][0], model)
    bare(model, data.spread(2 * size), size)
    rt.audit(model, data.spread(64), out=tempfile.mkdtemp())
    before, seconds, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, dict[str, float](), list[rt.Audit]()
    work = {
        "bare": lambda: bare(model, data, size),
        "audit": lambda: found.append(rt.audit(model, data, out=tempfile.mkdtemp())),
        "pieces": lambda: found[0].pieces(),
    }
    for name, go in work.items():
        start = time.process_time()
        go()
        seconds[name] = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{asked.images} images, {asked.model}, {asked.threads} threads, batches of {size}")
    for name, spent in seconds.items():
        print(f"{name:7} {spent:7.1f} CPU s  {spent / seconds['bare']:5.2f} of bare forward passes")
    both = (seconds["audit"] + seconds["pieces"]) / seconds["bare"]
    print(f"audit and pieces {both:.2f}; grew by {grown / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
