"""Is the default Grad-CAM right on networks of every kind? Three libraries, no layer named, an independent reference.

    python benchmarks/sweep.py                                  # all networks of the table, minutes on two cores
    python benchmarks/sweep.py --only vit swin                  # those whose name holds one of these
    python benchmarks/sweep.py --write docs/networks.md         # and write the table

For each network: the map equals activation times mean gradient, by plain autograd at the layer that the result names;
its cells lie where the image's pixels move them; many foils equal single calls, a batch its images one by one; and
nothing is left behind in a network that was training. Random weights, batch norm calibrated, two small images. Nothing
of what finds layers or folds them is used to judge it.
"""

from __future__ import annotations

import argparse
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from networks import CLASSES, SPECIAL, SWEPT, let_torchvision_in, networks, prepare
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

import ratherthan as rt

FACT, FOIL = 1, 3
ELSEWHERE = "its cells lie elsewhere on the image"
_ADDRESS = re.compile(r"(?P<path>.*?)(?:(?:^|\.)(?P<function>\w+)\(\))?(?:#(?P<call>\d+))?")
_CLEAR = 1.2  # by which factor one answer must be better than another
_MOST_EXTRA = 100  # tokens that are no place
_COARSE = 4  # rows and columns of the blocks of pixels that are changed


@dataclass(frozen=True)
class Verdict:
    """What was found about one network.

    Attributes:
        network: Its name.
        layer: The layer that the result names; empty where there is no result.
        grid: Rows and columns of the map.
        outcome: "right", "refused", "WRONG" or "CRASH".
        undecided: Whether the pixels do not tell where the cells lie: the network mixes them too well.
        note: The refusal, or what is wrong.
    """

    network: str
    layer: str = ""
    grid: tuple[int, ...] = ()
    outcome: str = "right"
    undecided: bool = False
    note: str = ""


# ------------------------------------------------------------------------------------------ a layer by its address
class _Watched(TorchFunctionMode):
    """Hands the result of the n-th call of a function made directly in one module to `tap`."""

    def __init__(self, running: list[str], path: str, function: str, tap: Callable[[Any], Any]) -> None:
        self.running, self.path, self.function, self.tap = running, path, function, tap
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        here = self.running[-1:] == [self.path]
        return self.tap(result) if here and getattr(func, "__name__", "").strip("_") == self.function else result


def record(module: nn.Module, x: Tensor, address: str) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Run a network and note a layer.

    Args:
        module: The network.
        x: Images.
        address: "stages.3": what this module returns; "act#17": what it returns when it is called for the 17th time;
            "stages.3.relu()", "relu()#2": what the function called directly in a module, or in the network, returns.

    Returns:
        The layer's tensors, each with a zero that was added to it, and the logits.
    """
    match = _ADDRESS.fullmatch(address)
    assert match is not None
    path, function, number = match["path"], match["function"], int(match["call"] or 1)
    calls, running = 0, list[str]()
    noted: list[tuple[Tensor, Tensor]] = []

    def tap(output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != number:
            return output
        leaves, form = tree_flatten(output)
        for index, each in enumerate(leaves):
            if isinstance(each, Tensor) and each.is_floating_point():
                zero = torch.zeros_like(each, requires_grad=torch.is_grad_enabled())
                noted.append((each.detach().clone(), zero))
                leaves[index] = each + zero
        return tree_unflatten(leaves, form)

    hooks = []
    try:
        if function is None:
            hooks.append(module.get_submodule(path).register_forward_hook(lambda module, given, output: tap(output)))
            logits = logits_of(module(x))
        else:
            for name, each in module.named_modules():
                enter, leave = partial(_enter, running, name), partial(_leave, running)
                hooks += [each.register_forward_pre_hook(enter), each.register_forward_hook(leave)]
            with _Watched(running, path, function, tap):
                logits = logits_of(module(x))
    finally:
        for hook in hooks:
            hook.remove()
    return noted, logits


def _enter(running: list[str], name: str, module: nn.Module, given: Any) -> None:
    running.append(name)


def _leave(running: list[str], module: nn.Module, given: Any, output: Any) -> None:
    running.pop()


def logits_of(output: Any) -> Tensor:
    """The logits that a network returns, alone or in an object."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


# ------------------------------------------------------------------------------------------ where its values lie
Fold = Callable[[Tensor], Tensor]


def layouts(shape: torch.Size, samples: int, grid: tuple[int, int]) -> Iterator[Fold]:
    """The ways in which a tensor of this shape may lie on a grid: each folds it to (N, channels, rows, columns)."""
    cells = grid[0] * grid[1]
    for batch in [axis for axis, size in enumerate(shape) if size == samples][:2]:
        others = [axis for axis in range(len(shape)) if axis != batch]
        planes = [pair for pair in permutations(others, 2) if (shape[pair[0]], shape[pair[1]]) == grid]
        for rows, columns in planes if len(shape) > 3 else ():
            yield partial(_plane, batch=batch, rows=rows, columns=columns)
        if (
            len(shape) == 4 and shape[2] * shape[3] == cells and not planes
        ):  # blocks of pixels, as MobileViT unfolds them
            yield partial(_blocks, grid=grid)
        for tokens in others if len(shape) > 2 and not (planes and len(shape) > 3) else ():
            more = shape[tokens] - cells
            for before in range(more + 1 if more <= _MOST_EXTRA else 0):
                for by_columns in (False, True):
                    yield partial(_tokens, batch=batch, tokens=tokens, before=before, grid=grid, by_columns=by_columns)


def _blocks(values: Tensor, grid: tuple[int, int]) -> Tensor:
    side = math.isqrt(values.shape[2])
    parts = values.reshape(*values.shape[:2], side, side, grid[0] // side, grid[1] // side)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(*values.shape[:2], *grid)


def _plane(values: Tensor, batch: int, rows: int, columns: int) -> Tensor:
    moved = values.movedim((batch, rows, columns), (0, -2, -1))
    return moved.reshape(len(moved), -1, *moved.shape[-2:])


def _tokens(values: Tensor, batch: int, tokens: int, before: int, grid: tuple[int, int], by_columns: bool) -> Tensor:
    moved = values.movedim((batch, tokens), (0, -1)).narrow(-1, before, grid[0] * grid[1])
    moved = moved.reshape(len(moved), -1, moved.shape[-1])
    if by_columns:
        return moved.reshape(*moved.shape[:2], grid[1], grid[0]).transpose(-1, -2)
    return moved.reshape(*moved.shape[:2], *grid)


def changed_blocks(x: Tensor, draws: int, corners: bool) -> tuple[Tensor, list[tuple[float, float]]]:
    """An image, and copies of which one block of pixels each is drawn anew.

    Args:
        x: Images of the shape wanted.
        draws: How many times with another image.
        corners: Only the blocks in the corners.

    Returns:
        (draws * (1 + blocks), C, H, W), the unchanged image first in each draw, and the middle of each block as shares
        of height and width.
    """
    height, width = x.shape[-2:]
    copies, middles = [], []
    for draw in range(draws):
        image = torch.rand_like(x[0])
        copies.append(image)
        for row in range(_COARSE):
            for column in range(_COARSE):
                if corners and not {row, column} <= {0, _COARSE - 1}:
                    continue
                top, left = row * height // _COARSE, column * width // _COARSE
                copy = image.clone()
                block = copy[:, top : (row + 1) * height // _COARSE, left : (column + 1) * width // _COARSE]
                block.copy_(torch.rand_like(block))
                copies.append(copy)
                if not draw:
                    middles.append(((row + 0.5) / _COARSE, (column + 0.5) / _COARSE))
    return torch.stack(copies), middles


def locality(change: Tensor, middles: list[tuple[float, float]]) -> tuple[float, bool]:
    """How well cells lie where the blocks that move them do.

    Args:
        change: (blocks, h, w) how much each cell moves.
        middles: Of the blocks.

    Returns:
        How much more than another cell a block moves the one it lies in, on average; and whether the cells that the
        corner blocks move most lie in the same corners.
    """
    rows, columns = change.shape[1:]
    share = change
    for _ in range(20):  # some positions move whatever changes, some blocks move all positions: what is left says where
        share = share / share.mean(0, keepdim=True).clamp_min(1e-30)
        share = share / share.mean((1, 2), keepdim=True).clamp_min(1e-30)
    own, corners = [], True
    for block, (down, across) in enumerate(middles):
        row, column = min(int(down * rows), rows - 1), min(int(across * columns), columns - 1)
        own.append(share[block, row, column])
        if abs(down - 0.5) > 0.25 and abs(across - 0.5) > 0.25:  # a corner
            peak = divmod(int(share[block].argmax()), columns)
            at = ((peak[0] + 0.5) / rows, (peak[1] + 0.5) / columns)
            corners &= all((one - 0.5) * (other - 0.5) > 0 for one, other in zip((down, across), at, strict=True))
    return float(torch.stack(own).mean()), corners


# ------------------------------------------------------------------------------------------ the questions
def close(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> bool:
    """Whether two maps agree to their precision; `scale` is what they are sums of, which may cancel."""
    tolerance = 1e-9 if found.dtype == torch.float64 else 1e-4
    largest = float((expected if scale is None else scale).abs().max())
    return found.shape == expected.shape and float((found - expected).abs().max()) <= tolerance * largest


def reference(module: nn.Module, x: Tensor, why: Any, la: Any) -> tuple[int, list[tuple[int, Fold]]]:
    """The tensors of the named layer and their layouts that give the maps by plain autograd.

    Returns:
        How many tensors the layer has, and (tensor, layout) of all that fit: for a small network more than one may.
    """
    noted, logits = record(module, x, why.layer)
    zeros = [zero for _, zero in noted]
    gradients = torch.autograd.grad((logits[:, FACT] - logits[:, FOIL]).sum(), zeros, allow_unused=True)
    fitting = []
    for index, ((activation, _), gradient) in enumerate(zip(noted, gradients, strict=True)):
        if gradient is None:
            continue
        for fold in layouts(activation.shape, len(x), tuple(why.attribution.shape[-2:])):
            a, g = fold(activation), fold(gradient)
            cam, product = (g.mean((2, 3), keepdim=True) * a).sum(1), (g * a).sum(1)
            if close(why.attribution, cam) and close(la.attribution, product, (g * a).abs().sum(1)):
                fitting.append((index, fold))
    return len(noted), fitting


def where_cells_lie(module: nn.Module, x: Tensor, why: Any, fitting: list[tuple[int, Fold]], draws: int) -> bool | None:
    """Whether the map's layout is the one that moving pixels tells; None: they do not tell."""
    grid = tuple(why.attribution.shape[-2:])
    # tokens that may begin at several places are told apart by all blocks, a plane by its corners
    shifted = any("before" in fold.keywords for _, fold in fitting)  # type: ignore[attr-defined]
    images, middles = changed_blocks(x, draws, corners=not shifted)
    with torch.no_grad():
        noted = record(module, images, why.layer)[0]
    scores = []
    for index, (values, _) in enumerate(noted):
        for fold in layouts(values.shape, len(images), grid):
            folded = fold(values)
            folded = folded.reshape(draws, -1, *folded.shape[1:])
            change = (folded[:, 1:] - folded[:, :1]).abs().sum(2).mean(0)
            score, corners = locality(change, middles)
            scores.append((score, corners, any(index == other and _same(fold, its) for other, its in fitting)))
    best = max(scores, key=lambda each: each[0])
    if best[0] <= _CLEAR or not best[1]:
        return None
    ours = max((score for score, _, fits in scores if fits), default=0.0)
    return True if best[2] else None if best[0] < _CLEAR * ours else False


def _same(one: Fold, other: Fold) -> bool:
    return one.func is other.func and one.keywords == other.keywords  # type: ignore[attr-defined]


def state_of(module: nn.Module) -> dict[str, Any]:
    """All that explaining must leave as it was."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        "training": [each.training for each in module.modules()],
        "requires_grad": [each.requires_grad for each in module.parameters()],
        "grad": [each.grad is None for each in module.parameters()],
        "hooks": [len(getattr(each, name)) for each in module.modules() for name in hooks],
        "attributes": [
            (name, key, len(value) if isinstance(value, (dict, list, set)) else type(value).__name__)
            for name, each in module.named_modules()
            for key, value in sorted(vars(each).items())
            if not key.endswith("_hooks")
        ],
        "random numbers": torch.get_rng_state(),
    }


def left_behind(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs."""
    changed = [key for key in before if key not in ("tensors", "random numbers") and before[key] != after[key]]
    if not torch.equal(before["random numbers"], after["random numbers"]):
        changed.append("random numbers")
    tensors = after["tensors"]
    same = list(before["tensors"]) == list(tensors)
    if not same or not all(torch.equal(tensor, tensors[key]) for key, tensor in before["tensors"].items()):
        changed.append("weights")
    return changed


def judge(name: str, module: nn.Module, x: Tensor, draws: int = 1) -> Verdict:
    """Ask a network everything.

    Args:
        name: What to call it.
        module: The network, in evaluation mode.
        x: Two images.
        draws: Of the images whose blocks are changed.
    """
    module.train()
    next(iter(module.children())).eval()  # not all of it need be in one mode
    before = state_of(module)
    try:
        why = rt.explain(module, x, FACT, FOIL)
        la = rt.explain(module, x, FACT, FOIL, "la")
        each = rt.explain(module, x, FACT, "each")
        alone = [rt.explain(module, x, FACT, foil) for foil in range(CLASSES) if foil not in (FACT, FOIL)]
        first = rt.explain(module, x[:1], FACT, FOIL)
    except rt.RatherThanError as error:
        wrong = left_behind(before, state_of(module))
        return Verdict(
            name,
            outcome="WRONG" if wrong else "refused",
            note=f"{error}" + "; left behind: " * bool(wrong) + ", ".join(wrong),
        )
    found = Verdict(name, str(why.layer), tuple(why.attribution.shape[-2:]))
    wrong = [f"left behind: {kind}" for kind in left_behind(before, state_of(module))]
    module.eval()
    alone.insert(FOIL - 1, why)
    others = [foil for foil in range(CLASSES) if foil != FACT]
    if not close(each.attribution[:, others], torch.stack([one.attribution for one in alone], 1)):
        wrong.append("many foils are not single calls")
    if not close(why.attribution[:1], first.attribution):
        wrong.append("a batch is not its images one by one")
    tensors, fitting = reference(module, x, why, la)
    if not tensors:
        wrong.append("the layer it names does not run")
    elif not fitting:
        wrong.append("the map is not that of autograd at the layer it names")
    lies = where_cells_lie(module, x, why, fitting, draws) if fitting else None
    if lies is False:
        wrong.append(ELSEWHERE)
    return replace(found, outcome="WRONG" if wrong else "right", undecided=lies is None, note="; ".join(wrong))


def sweep(name: str) -> Verdict:
    """Build a network of the table and judge it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dtype = torch.float32 if name.split(":")[0] in ("torchvision", "timm") else torch.float64
    build = SPECIAL[name] if name in SPECIAL else networks(SWEPT[name])[name]
    tries: list[Verdict] = []
    for seed, draws in enumerate((1, 4, 8)):  # random weights that mix everything tell little about places
        tries.append(judge(name, *prepare(build, dtype, seed), draws))
        if dtype == torch.float32 and tries[-1].outcome == "WRONG" and tries[-1].note != ELSEWHERE:
            dtype = torch.float64  # is it rounding?
            tries[-1] = judge(name, *prepare(build, dtype, seed), draws)
        if not tries[-1].undecided and tries[-1].note != ELSEWHERE:
            return tries[-1]
    last = tries[-1]
    if name in SPECIAL:  # each has a plane; where pixels tell nothing, something else was taken
        return replace(last, outcome="WRONG", note=last.note or "its cells lie nowhere on the image")
    if any(each.undecided for each in tries) and last.note in ("", ELSEWHERE):
        return replace(last, outcome="right", undecided=True, note="")
    return last


def _timed(name: str) -> tuple[Verdict, float]:
    began = time.process_time()
    try:
        return sweep(name), time.process_time() - began
    except Exception as error:  # a crash of one is a finding, no end
        note = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        return Verdict(name, outcome="CRASH", note=note), time.process_time() - began


# ------------------------------------------------------------------------------------------ the table
_HEAD = """# Networks

Written by `python benchmarks/sweep.py --write docs/networks.md`: architectures of transformers, torchvision and timm
with random weights and small images, asked without naming a layer.

"right" means:

- the map equals Grad-CAM by plain autograd at the layer that the result names, and LA's map likewise;
- its cells lie where moving the image's pixels moves the layer's values;
- five foils at once equal five single calls, a batch its images one by one (float64: 1e-9; float32: 1e-4, relative);
- a network in training mode is left exactly as it was.

"right, place undecided": with random weights its layers mix the whole image, so that pixels tell nothing about places;
all else holds. A layer is a module (`stages.3`), the n-th call of one (`act#17`), or a function called in one
(`stages.3.relu()`).
"""


def table(found: list[Verdict]) -> str:
    """The page."""
    counts = Counter(_outcome(each) for each in found)
    summary = ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())
    lines = [
        _HEAD,
        f"{len(found)} networks: {summary}.",
        "",
        "| library | network | layer | grid | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in found:
        library, _, name = each.network.partition(":")
        note = f": {each.note}".replace("|", "\\|") if each.note else ""
        layer = f"`{each.layer}`" if each.layer else ""
        lines.append(f"| {library} | {name} | {layer} | {'x'.join(map(str, each.grid))} | {_outcome(each)}{note} |")
    return "\n".join(lines) + "\n"


def _outcome(found: Verdict) -> str:
    return "right, place undecided" if found.outcome == "right" and found.undecided else found.outcome


def main() -> None:
    """Judge all networks and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--write", type=Path, help="where to write the table")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    names = [name for name in (*SWEPT, *SPECIAL) if any(part in name for part in options.only)]
    found = []
    with ProcessPoolExecutor(options.workers, get_context("spawn"), let_torchvision_in) as pool:
        for verdict, seconds in pool.map(_timed, names):
            found.append(verdict)
            grid = "x".join(map(str, verdict.grid))
            print(
                f"{verdict.network} ({seconds:.1f} s): {_outcome(verdict)} {verdict.layer} {grid} {verdict.note}",
                flush=True,
            )
    if options.write:
        options.write.write_text(table(found), encoding="utf-8")
    print(Counter(_outcome(each) for each in found))


if __name__ == "__main__":
    main()
