"""Which small piece of an image decides by itself?

It is cut out where relevance lies, and put onto images of other classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ratherthan.inference import preserve_state
from ratherthan.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 5
"""A piece has a fifth of the rows and of the columns of an image, 4 % of it."""
PLACES = 3
"""Places of a class that are tried, beside each image's own."""
DECIDES = 0.5
"""A piece decides by itself if it turns so large a share of images of other classes, beyond what any piece does."""
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Piece:
    """A place, what lies there in images of one class, and what it does on images of others.

    Attributes:
        said: The name of the class.
        index: Its index.
        boxes: Rows and columns of the piece in each image it was cut from.
        positions: Of those images in the data set.
        one_place: Whether it lies at one place in all of them.
        relevance: The mean share of the relevance for the class that lies in the box.
        turned: The share of images of other classes that are said to be this class with the piece put onto them.
        control: The same with what lies at the place in images of other classes.
        tried: How many images it was put onto.
    """

    said: str
    index: int
    boxes: tuple[Box, ...]
    positions: tuple[int, ...]
    one_place: bool
    relevance: float
    turned: float
    control: float
    tried: int

    @property
    def spurious(self) -> bool:
        """Whether it decides by itself: no such small part of an object turns most images of other classes."""
        return self.turned - self.control >= DECIDES

    @property
    def told(self) -> str:
        """What it does, in words."""
        does = f"put onto images of other classes it turns {self.turned:.0%} of them"
        return f"{self.where}; {does}, what else lies there {self.control:.0%}"

    @property
    def where(self) -> str:
        """Its place in words."""
        if not self.one_place:
            return "each image's own"
        rows, columns = self.boxes[0]
        return f"rows {rows.start} to {rows.stop - 1}, columns {columns.start} to {columns.stop - 1}"


def pieces(
    model: Model, said: tuple[str, int], maps: Tensor, donors: Tensor, positions: tuple[int, ...], hosts: Tensor
) -> list[Piece]:
    """The candidates of one class, what turns most images first.

    Args:
        model: The network.
        said: The class, its name and index.
        maps: (n, cells, cells) relevance of the images that are said to be of the class, positive for it.
        donors: (n, C, H, W) the images.
        positions: Their places in the data set.
        hosts: (m, C, H, W) images that are rightly said to be of other classes.
    """
    share = maps.clamp_min(0) / maps.clamp_min(0).sum((1, 2), keepdim=True).clamp_min(1e-12)
    size = tuple(-(-length // SIDE) for length in donors.shape[-2:])
    inside = _inside(share, donors.shape[-2:], size)
    found = []
    for one_place, tops in _candidates(inside):
        boxes = tuple((slice(top, top + size[0]), slice(left, left + size[1])) for top, left in tops)
        relevance = torch.stack([inside[i, top, left] for i, (top, left) in enumerate(tops)]).mean().item()
        turned, control = _turned(model, said[1], donors, boxes, hosts)
        found.append(Piece(*said, boxes, positions, one_place, relevance, turned, control, len(hosts)))
    return sorted(found, key=lambda piece: piece.control - piece.turned)


def _inside(share: Tensor, plane: torch.Size, size: tuple[int, ...]) -> Tensor:
    """(n, rows, columns) the share of relevance in a box, by its upper left corner."""
    n, (h, w) = len(share), plane
    spread = torch.nn.functional.interpolate(share[:, None], (h, w), mode="nearest-exact")[:, 0]
    spread = spread / spread.sum((1, 2), keepdim=True).clamp_min(1e-12)
    sums = torch.nn.functional.pad(spread.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    a, b = size
    boxes = sums[:, a:, b:] - sums[:, :-a, b:] - sums[:, a:, :-b] + sums[:, :-a, :-b]
    return boxes.reshape(n, h - a + 1, w - b + 1)


def _candidates(inside: Tensor) -> Iterator[tuple[bool, list[tuple[int, int]]]]:
    """Where to cut, a corner for each image: the places that hold most of all, and each image's own."""
    n, _, columns = inside.shape
    left, mean = inside.flatten(1), inside.mean(0)
    for _ in range(PLACES):
        top, corner = divmod(int(mean.argmax()), columns)
        yield True, [(top, corner)] * n
        rows, across = (
            slice(max(0, at - side), at + side + 1)
            for at, side in ((top, _near(inside, 1)), (corner, _near(inside, 2)))
        )
        mean = mean.clone()
        mean[rows, across] = -1
    yield False, [divmod(int(each), columns) for each in left.argmax(1)]


def _near(inside: Tensor, axis: int) -> int:
    """How far two boxes are apart that hardly overlap."""
    return max(1, inside.shape[axis] // (2 * (SIDE - 1)))


def _turned(model: Model, said: int, donors: Tensor, boxes: tuple[Box, ...], hosts: Tensor) -> tuple[float, float]:
    """How many hosts are said to be of the class: with a donor's piece each; and with the next host's instead."""
    with_piece, with_others = hosts.clone(), hosts.clone()
    for i in range(len(hosts)):
        donor = i % len(donors)
        rows, columns = boxes[donor]
        with_piece[i, :, rows, columns] = donors[donor, :, rows, columns]
        with_others[i, :, rows, columns] = hosts[i - 1, :, rows, columns]
    with preserve_state(model.module), torch.no_grad():
        turned, control = (
            (model.logits(each).argmax(1) == said).double().mean().item() for each in (with_piece, with_others)
        )
    return turned, control
