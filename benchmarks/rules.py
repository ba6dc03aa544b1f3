"""Which networks LRP and DeepLIFT explain, and how exactly their maps add up: a sweep over three libraries.

    python benchmarks/rules.py                    # all networks, about an hour on one core
    python benchmarks/rules.py --only vit swin    # those whose name holds one of these

Libraries that are not installed are left out. Random weights, batch norm calibrated on one batch, two
images. For LRP the residual is what the maps and the share of constants miss, for DeepLIFT what a map misses, as a
share of the contrast.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter, defaultdict

import torch
from networks import let_torchvision_in, networks, prepare
from torch import nn

import ratherthan as rt
from ratherthan import get_contrast, resolve


def explained(module: nn.Module, x: torch.Tensor, method: str) -> float:
    """What a map (for LRP: and what constants absorb) misses, as a share of what it should add up to."""
    why = rt.explain(module, x, 1, 3, method, "mean")
    if method == "deeplift":
        missed = why.diagnostics["convergence delta"]
        return float((missed / (why.attribution.flatten(1).sum(1) - missed)).abs().max())
    seeds = get_contrast("mean").seed(why.logits, resolve(why.logits, 1, 3))
    constants = rt.LRP().propagate(rt.Model(module), x, seeds)[2]
    return float(((why.diagnostics["absorbed"].sum() - constants) / why.score.sum()).abs())


def main() -> None:
    """Print a line for every network and a table of counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    let_torchvision_in()
    chosen = {name: build for name, build in networks().items() if any(each in name for each in options.only)}
    for name, build in chosen.items():
        began = time.perf_counter()
        try:
            module, x = prepare(build, getattr(torch, options.dtype))
        except Exception as error:
            print(f"{name}: not built: {type(error).__name__} {str(error).splitlines()[0][:150]}", flush=True)
            continue
        said = []
        for method in ("lrp", "deeplift"):
            library = name.split(":")[0]
            try:
                said.append(f"{method} {explained(module, x, method):.0e}")
                counts[library, method]["explained"] += 1
            except rt.UnsupportedError as error:
                counts[library, method]["refused"] += 1
                reasons[f"{method}: {str(error)[:110]}"] += 1
                said.append(f"{method} refused: {error}")
            except Exception as error:
                counts[library, method]["crashed"] += 1
                said.append(f"{method} CRASHED: {type(error).__name__} {str(error).splitlines()[0][:200]}")
        print(f"{name} ({x.shape[-1]} px, {time.perf_counter() - began:.0f} s): " + "; ".join(said), flush=True)
    print("\n| library | method | explained | refused | crashed |\n| --- | --- | --- | --- | --- |")
    for (library, method), number in counts.items():
        print(f"| {library} | {method} | {number['explained']} | {number['refused']} | {number['crashed']} |")
    for reason, times in reasons.most_common():
        print(f"{times:4d}  {reason}")


if __name__ == "__main__":
    main()
