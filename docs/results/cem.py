"""Make cem.md: negatives of CEM, as published and as we search, on the first digits of the MNIST test set.

    python docs/results/cem.py [--images 100] [--kappa 0.5 5 10]

$RATHERTHAN_DATA holds mnist/. The published schedule takes a quarter of an hour of one core for each kappa and 100
digits. Elastic net is |d|_2^2 + 0.1 |d|_1 of what is added, whatever beta the search used.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import ratherthan as rt

HEADS = "| kappa | search | found | elastic net | of the reference's (95 %) | better | pixels | evaluations | CPU s |"
SEARCHES = {"reference": ("reference", 0.1), "sound, beta 0.1": ("sound", 0.1), "sound, beta 1": ("sound", 1.0)}


def share(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """The mean of ours as a share of the mean of theirs, with an interval by a bootstrap over the digits."""
    drawn = torch.randint(len(ours), (1000, len(ours)), generator=torch.Generator().manual_seed(0))
    low, high = (ours[drawn].mean(1) / theirs[drawn].mean(1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{ours.mean() / theirs.mean():.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print the rows, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--kappa", type=float, nargs="+", default=[0.5, 5.0, 10.0])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, data = rt.load("zoo:mnist"), rt.data.load("mnist")
    images = torch.stack([data[i][0] for i in range(asked.images)])
    lines = [HEADS, "| ---: | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"]
    for kappa in asked.kappa:
        nets: dict[str, torch.Tensor] = {}
        for name, (preset, beta) in SEARCHES.items():
            started, how = time.process_time(), rt.CEM(kappa=kappa, beta=beta, preset=preset)  # type: ignore[arg-type]
            found = rt.counterfactual(model, images, method=how, batch_size=len(images))
            spent, added = time.process_time() - started, (found.example - found.images).flatten(1)
            nets[name] = added.square().sum(1) + 0.1 * added.abs().sum(1)
            theirs, pixels = nets["reference"], (added.abs() > 1e-3).sum(1).float().mean()
            row = [
                f"{kappa:g}", name, f"{int(found.found.sum())}", f"{nets[name].mean():.3f}", share(nets[name], theirs),
                f"{int((nets[name] < theirs).sum())}", f"{pixels:.1f}", f"{found.evaluations / len(images):,.0f}",
                f"{spent / len(images):.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    title = f"# CEM: negatives of the first {asked.images} digits of the MNIST test set, any other class\n"
    about = f"`python docs/results/cem.py`. {' '.join((__doc__ or '').split('mnist/.')[1].split())}"
    Path(__file__).with_suffix(".md").write_text("\n".join([title, about, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
