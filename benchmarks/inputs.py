"""The tour of docs/inputs.md: networks of signals and video from the zoo, and one of a table, are asked, and drawn.

    python benchmarks/inputs.py [--out docs/gallery] [signal] [video] [table]

Heart beats are made up; the digits that drift are of $RATHERTHAN_DATA/mnist, the flowers Fisher's, as mlxtend
ships them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import Explanation

FLOWERS = ("setosa", "versicolor", "virginica")


def signal() -> Explanation:
    """Heart beats in two leads, 2 seconds at 150 Hz, in millivolts."""
    return rt.explain(rt.load("zoo:beats"), samples("beats", 3), foil="each")


def video() -> Explanation:
    """Digits that drift: nothing in a single frame tells which way."""
    return rt.explain(rt.load("zoo:drifts"), samples("drifts", 2), foil=["right", "up"])


def samples(name: str, count: int) -> Tensor:
    """The first of the test part."""
    made = rt.data.load(name, split="test")
    return torch.stack([made[index][0] for index in range(count)])


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
