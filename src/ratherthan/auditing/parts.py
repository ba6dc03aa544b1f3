"""Which small piece of an image decides by itself?

It is cut out where relevance lies, and put onto images of other classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ratherthan.contrast import odds
from ratherthan.inference import preserve_state
from ratherthan.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 5
"""A piece has a fifth of the rows and of the columns of an image, 4 % of it."""
PLACES = 3
"""Places of a class that are tried, beside each image's own."""
DECIDES = 0.25
"""A piece decides by itself if it closes so much of the gap between images of other classes and those of its own."""
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
        closes: By which share it closes the gap between images of other classes and those of this one, in mean
            log-odds of the class over all others, beyond what lies at the place in images of other classes.
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
    closes: float
    turned: float
    control: float
    tried: int

    @property
    def spurious(self) -> bool:
        """Whether it decides by itself: no so small part of an object does."""
        return self.closes >= DECIDES

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Its order: what decides first, of that what lies at one place, then what closes most of the gap."""
        return not self.spurious, self.spurious and not self.one_place, -self.closes

    @property
    def told(self) -> str:
        """What it does, in words."""
        does = f"put onto images of other classes it closes {self.closes:.0%} of the gap to this one"
        return f"{self.where}; {does} and turns {self.turned:.0%} of them, what else lies there {self.control:.0%}"

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
    """The candidates of one class.

    The best place is moved by a third of its size in each direction, for maps are coarse.

    Args:
        model: The network.
        said: The class, its name and index.
        maps: (n, cells, cells) relevance of the images that are said to be of the class, positive for it.
        donors: (n, C, H, W) the images.
        positions: Their places in the data set.
        hosts: (m, C, H, W) images that are rightly said to be of other classes.
    """
    share = maps.clamp_min(0) / maps.clamp_min(0).sum((1, 2), keepdim=True).clamp_min(1e-12)
    height, width = (-(-length // SIDE) for length in donors.shape[-2:])
    inside = _inside(share, donors.shape[-2:], (height, width))

    gap = _said(model, said[1], donors)[0] - _said(model, said[1], hosts)[0]

    def cut(one_place: bool, corners: list[tuple[int, int]]) -> Piece:
        boxes = tuple((slice(top, top + height), slice(left, left + width)) for top, left in corners)
        relevance = torch.stack([inside[i, top, left] for i, (top, left) in enumerate(corners)]).mean().item()
        gain, turned, control = _turned(model, said[1], donors, boxes, hosts)
        return Piece(
            *said, boxes, positions, one_place, relevance, gain / gap if gap else 0.0, turned, control, len(hosts)
        )

    *places, own = sorted(starmap(cut, _candidates(inside)), key=lambda piece: (not piece.one_place, -piece.closes))
    (top, left), (rows, columns) = [side.start for side in places[0].boxes[0]], inside.shape[1:]
    moved = [
        cut(True, [(down, across)] * len(donors))
        for down in {min(max(0, top + step), rows - 1) for step in (-(height // 3), 0, height // 3)}
        for across in {min(max(0, left + step), columns - 1) for step in (-(width // 3), 0, width // 3)}
        if (down, across) != (top, left)
    ]
    best = max([places[0], *moved], key=lambda piece: piece.closes)
    return [best, *places[1:], own]


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
    mean = inside.mean(0)
    for _ in range(PLACES):
        top, corner = divmod(int(mean.argmax()), columns)
        yield True, [(top, corner)] * n
        rows, across = (
            slice(max(0, at - side), at + side + 1)
            for at, side in ((top, _near(inside, 1)), (corner, _near(inside, 2)))
        )
        mean = mean.clone()
        mean[rows, across] = -1
    yield False, [divmod(int(each), columns) for each in inside.flatten(1).argmax(1)]


def _near(inside: Tensor, axis: int) -> int:
    """How far two boxes are apart that hardly overlap."""
    return max(1, inside.shape[axis] // (2 * (SIDE - 1)))


def _turned(
    model: Model, said: int, donors: Tensor, boxes: tuple[Box, ...], hosts: Tensor
) -> tuple[float, float, float]:
    """What becomes of hosts with a donor's piece each, beside the next host's: gain in log-odds, and shares said."""
    with_piece, with_others = hosts.clone(), hosts.clone()
    for i in range(len(hosts)):
        donor = i % len(donors)
        rows, columns = boxes[donor]
        with_piece[i, :, rows, columns] = donors[donor, :, rows, columns]
        with_others[i, :, rows, columns] = hosts[i - 1, :, rows, columns]
    (piece, turned), (others, control) = (_said(model, said, each) for each in (with_piece, with_others))
    return piece - others, turned, control


def _said(model: Model, said: int, images: Tensor) -> tuple[float, float]:
    """The mean log-odds of a class over all others, and the share of images that are said to be of it."""
    with preserve_state(model.module), torch.no_grad():
        logits = model.logits(images).double()
    answers = logits.argmax(1)
    return odds(logits, torch.full_like(answers, said)).mean().item(), (answers == said).double().mean().item()
