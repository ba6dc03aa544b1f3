"""What a generative model makes, on two sheets: samples with reconstructions, and a walk along each latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ratherthan.zoo.registry import ZooDecoder, ZooEntry

_STEPS = 11  # from -3 to 3
_ROWS = 32  # latents drawn: of more, those that change the image most


@torch.no_grad()
def write_sheets(entry: ZooEntry, network: nn.Module, images: Tensor, out: str | Path) -> tuple[Path, Path]:
    """Draw the sheets of a generative model of the zoo.

    Args:
        entry: What it is.
        network: With its weights, in evaluation mode.
        images: (N, C, H, W) in [0, 1], not trained on: what is reconstructed, where there is an encoder, and the walk
            along the latents starts at the first; without encoder it starts at a sample.
        out: The weights, beside which the sheets will lie.

    Returns:
        The paths of `NAME.samples.png` (draws from the prior; images beside their reconstructions) and of
        `NAME.traversal.png` (each latent from -3 to 3, the others fixed; Fig. 5 and 6 of the CEM-MAF paper).
    """
    from ratherthan.files import write_atomically
    from ratherthan.render.figure import figure_png, grid

    (low, high), decoder = entry.scale, ZooDecoder(network, entry.scale)

    def decode(latents: Tensor) -> Tensor:
        return decoder.decode(latents.to(images)).cpu()

    drawn = torch.randn(64, network.latents, generator=torch.Generator().manual_seed(0))  # type: ignore[call-overload]
    sheets, start = [("samples of the prior", _mosaic(decode(drawn), 8))], drawn[:1]
    if hasattr(network, "encode"):
        codes = network.encode(images * (high - low) + low)  # type: ignore[operator]
        pairs = torch.stack([images.cpu(), decode(codes)], 1).flatten(0, 1)
        sheets.append(("images, each beside its reconstruction", _mosaic(pairs[:64], 8)))
        start = codes[:1].cpu()
    places = torch.linspace(-3, 3, _STEPS)
    walks = start.repeat(start.shape[1], _STEPS, 1)
    walks.diagonal(dim1=0, dim2=2).copy_(places[:, None].expand(-1, start.shape[1]))
    rows = torch.stack([decode(walk) for walk in walks])
    effect = (rows[:, 0] - rows[:, -1]).abs().flatten(1).mean(1)
    shown = effect.topk(min(_ROWS, len(rows))).indices.sort().values.tolist()
    strips = [(f"z{index} from -3 to 3", _mosaic(rows[index], _STEPS)) for index in shown]
    name, which = f"zoo:{entry.name}", f" ({_ROWS} of {len(rows)} latents)" if len(rows) > len(shown) else ""
    paths = Path(out).with_suffix(".samples.png"), Path(out).with_suffix(".traversal.png")
    write_atomically(paths[0], [figure_png(grid(sheets, len(sheets), title=name, cell=5.0))])
    write_atomically(paths[1], [figure_png(grid(strips, 2, title=name + which, cell=5.0))])
    return paths


def _mosaic(images: Tensor, columns: int) -> Any:
    """Images side by side with a white line between, as an array (H, W, C)."""
    framed = nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    rows = [torch.cat(list(row), 2) for row in torch.split(framed, columns)]
    rows = [nn.functional.pad(row, (0, rows[0].shape[2] - row.shape[2]), value=1.0) for row in rows]
    return torch.cat(rows, 1).permute(1, 2, 0).squeeze(2).numpy()
