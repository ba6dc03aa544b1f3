"""Where does a full-reference quality model find an image better, or worse, than some other score?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan import Explanation, InputError, LayerMethod, Method, Model, ModelError, explain
from ratherthan.attribution.method import get_method
from ratherthan.progress import Progress, reporter
from ratherthan.render.colours import FADED, diverging, sequential, shared_limit
from ratherthan.render.figure import grid
from ratherthan.settings import check_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Border = Literal["inside", "black"]
Side = Literal["signed", "above", "below"]


def compare_quality(
    model: Model | nn.Module, reference: Any, distorted: Any, foil: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    method: str | Method = "gradcam", *,
    patch: int = 32, stride: int = 4, border: Border = "inside", progress: Progress = None,
) -> tuple[Explanation, Explanation]:  # fmt: skip
    """Explain the quality of a distorted image, patch by patch (contrastive-gradcam section 4.2).

    The network scores overlapping patches, each by itself. The contrast of a patch is the squared error of *its* score
    towards Q; a layer method maps it, the map is stretched over the patch, and where patches overlap their maps are
    averaged. All patches of a row are one batch, and one forward and one backward pass serve every Q: a patch's map for
    Q is the map of its score times 2 (score - Q). Activations and gradients are both those of the layer that is named,
    which must lie on the branch of the distorted image (`distorted_conv10` in the zoo's networks).

    Positive values speak for the score that was given: for Q above it they mark what holds the score down, for Q below
    it what holds it up.

    Args:
        model: A network that maps a reference and its distorted version, as six channels, to one value, e.g.
            `load("zoo:iqa")`.
        reference: The undistorted image: (3, H, W) in image space, a path, a PIL image or an array.
        distorted: The distorted image, of the same size.
        foil: The values Q to compare with.
        method: A method that explains a layer, by name or with settings.
        patch: Side of the patches that the network was made for, in pixels.
        stride: From one patch to the next, in pixels.
        border: "inside": patches lie within the image (10,769 of 512 x 384 pixels at stride 4), the last ones flush
            with its edge. "black": as in the authors' code, patches begin at 0, stride, ... as long as more than
            `stride` pixels of the image are left, black beyond the border to the right and below (12,065).
        progress: True draws a bar; a callable gets (rows of patches done, rows in all).

    Returns:
        "Why P?" and "why P, rather than Q?" for every Q, both about the distorted image: attributions (1, H, W) and
        (1, Q, H, W). P, their `logits`, is the network's score of the whole pair.

    Raises:
        InputError: If the images differ in size or are smaller than a patch, or an argument cannot be used.
        ModelError: If the network gives no value.

    Example:
        >>> why, rather = compare_quality(load("zoo:iqa"), "i21.png", "i21_21_5.png")
        >>> quality_figure([(why, rather)]).savefig("quality.png")
    """
    model, layered = Model.wrap(model), get_method(method)
    if model.output.of_classes:
        raise ModelError(f"{model.name} gives {model.output.name}; patch maps need one value: output='value'")
    if not (isinstance(layered, LayerMethod) and layered.linear):
        raise InputError(f"method {layered.name!r}: patch maps need a linear one of a layer, e.g. 'gradcam'")
    if not len(foil):
        raise InputError("an empty list of foils asks nothing; give at least one value")
    pristine, spoilt = _image(reference, model), _image(distorted, model)
    if pristine.shape != spoilt.shape:
        sizes = " and ".join(f"{each.shape[2]} x {each.shape[3]}" for each in (pristine, spoilt))
        raise InputError(f"reference and distorted image are of one size, not {sizes}")
    pair = torch.cat([pristine, spoilt], 1)
    tops, lefts = (places(length, patch, stride, border) for length in pair.shape[2:])
    with reporter(progress, "patches") as report:
        maps = _mean_maps(model, pair, foil, layered, patch, tops, lefts, report)
    told: dict[str, Any] = {
        "images": spoilt, "diagnostics": {"patches": f"{len(tops) * len(lefts):,}"},
        "names": (Path(distorted).name if isinstance(distorted, (str, Path)) else "distorted image",),
        "settings": {**layered.settings(), "patch": patch, "stride": stride, "border": border},
    }  # fmt: skip
    # the questions are those about the whole pair; the maps are those of the patches
    why, rather = explain(model, pair, method=layered), explain(model, pair, foil=list(foil), method=layered)
    return replace(why, attribution=maps[None, 0], **told), replace(rather, attribution=maps[None, 1:], **told)


def _mean_maps(
    model: Model, pair: Tensor, foil: Sequence[float], method: LayerMethod, patch: int,
    tops: list[int], lefts: list[int], report: Callable[[int, int], None],
) -> Tensor:  # fmt: skip
    """Mean maps of the score and of every contrast, (1 + Q, H, W)."""
    height, width = pair.shape[2:]
    canvas = nn.functional.pad(pair[0], (0, max(0, lefts[-1] + patch - width), 0, max(0, tops[-1] + patch - height)))
    sums, counts = canvas.new_zeros(1 + len(foil), *canvas.shape[1:]), canvas.new_zeros(canvas.shape[1:])
    for row, top in enumerate(tops):
        band = slice(top, top + patch)
        cuts = torch.stack([canvas[:, band, left : left + patch] for left in lefts])
        why = explain(model, cuts, method=method, batch_size=len(cuts))
        # layer methods are linear in the seed: the map of (y - Q)^2 is that of y times 2 (y - Q)
        seeds = torch.cat([torch.ones_like(why.logits), 2 * (why.logits - why.logits.new_tensor(foil))], 1)
        maps = seeds[:, :, None, None] * why.attribution[:, None]
        tiles = nn.functional.interpolate(maps, (patch, patch), mode="bilinear", align_corners=False)
        for left, tile in zip(lefts, tiles, strict=True):
            sums[:, band, left : left + patch] += tile
            counts[band, left : left + patch] += 1
        report(row + 1, len(tops))
    return (sums / counts)[:, :height, :width]


def _image(given: Any, model: Model) -> Tensor:
    """(1, 3, H, W) on the model's device."""
    image = Model(nn.Identity(), channels=3, preprocessing="none").preprocess(given).to(model.device, model.dtype)
    if image.shape[:2] != (1, 3):
        raise InputError(f"one image of three channels is needed, not shape {tuple(image.shape)}")
    return image


def places(length: int, patch: int, stride: int, border: Border) -> list[int]:
    """Where patches begin along a side."""
    if not 1 <= stride <= patch:
        raise InputError(f"stride is 1 to {patch}, or pixels between the patches would be left out; not {stride}")
    if length < patch:
        raise InputError(f"images of at least {patch} x {patch} pixels are needed, not {length}")
    last = length - patch
    begin = {"inside": [*range(0, last, stride), last], "black": [*range(0, length - stride, stride)]}
    return begin[check_value("border", Border, border)]


def quality_figure(explained: Sequence[tuple[Explanation, Explanation]]) -> Figure:
    """Draw what `compare_quality` found, a row per image: the image, "why P?", and a map per Q.

    For Q above the score orange marks what holds the score down, for Q below it green what holds it up. The parts of a
    map that speak for Q are not drawn. All Q of an image share one scale.

    Args:
        explained: Pairs as `compare_quality` returns them, with the same number of foils each.

    Returns:
        The figure.
    """
    panels: list[tuple[str, Any]] = []
    for why, rather in explained:
        image = why.images[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        plain, maps = why.attribution[0].cpu().numpy(), rather.attribution[0].cpu().clamp_min(0).numpy()
        shared = shared_limit(maps)
        panels += [(why.names[0], image), (why.question(0), _tinted(image, plain, shared_limit([plain]), "signed"))]
        for q, values in enumerate(maps):
            side: Side = "above" if bool(rather.foil[0, q] > rather.logits[0, 0]) else "below"
            title = rather.question(0, q).partition("?")[0] + "?"
            panels.append((title, _tinted(image, values, shared, side)))
    return grid(panels, 2 + len(explained[0][1].foil[0]), cell=2.3)


def _tinted(image: Any, values: Any, limit: float, side: Side) -> Any:
    """The pale grey image multiplied by the colours of a map."""
    grey = 1 - FADED * (1 - image @ np.array([0.299, 0.587, 0.114]))
    colours = sequential(values, limit) if side == "below" else diverging(values, limit)
    return grey[..., None] * colours / 255
