"""What searches find, a row of pictures and curves each.

A trajectory is the path from an image to its counterfactual, with what it adds and removes and the odds along the path;
an excerpt the part of an image that is enough by itself, with the confidence that grows as its features are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ratherthan.render.colours import AGAINST, FACT, FOIL, FOR, OTHERS, as_rgb, overlay, shared_limit
from ratherthan.render.figure import CAPTION, FAINT, Picture, Row, draw_curves, draw_rows
from ratherthan.words import percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One question and the path to its answer; images are (H, W, 1 or 3) in [0, 1].

    Attributes:
        name: What to call the image.
        question: E.g. "Why 4, rather than 9?"
        text: What the answer says.
        status: How the search ended.
        image: The image asked about.
        reconstruction: What a manifold makes of it, or None.
        path: T images, from the first to the answer.
        answer: The altered image, or the nearest miss.
        fact: Its name and its T probabilities along the path.
        foil: Likewise.
        others: T probabilities of whatever third class is then the likeliest.
        sides: What blue and what red-orange mean.
    """

    name: str
    question: str
    text: str
    status: str
    image: ArrayLike
    reconstruction: ArrayLike | None
    path: Sequence[ArrayLike]
    answer: ArrayLike
    fact: tuple[str, Sequence[float]]
    foil: tuple[str, Sequence[float]]
    others: Sequence[float]

    sides: ClassVar[tuple[str, str]] = ("remove", "add")

    @property
    def change(self) -> np.ndarray[Any, Any]:
        """(H, W): what the answer adds (positive) and removes, summed over the channels."""
        added: np.ndarray[Any, Any] = (np.asarray(self.answer, float) - np.asarray(self.image, float)).sum(-1)
        return added

    def stops(self, count: int) -> list[int]:
        """Evenly spread places on the path, without its two ends."""
        places = np.linspace(0, len(self.path) - 1, count + 2).round().astype(int)[1:-1]
        return sorted(set(places.tolist()))


def draw_trajectories(trajectories: Sequence[Trajectory], frames: int = 4) -> Figure:
    """Draw a row for each: image, reconstruction, pictures of the path, the answer, its change, and the curves.

    Args:
        trajectories: What to draw, at least one.
        frames: How many pictures of the path.

    Returns:
        The figure, in no window.

    Raises:
        InputError: There is no trajectory, or an image cannot be drawn.
    """
    return draw_rows([_row(each, frames) for each in trajectories], cell=1.15, chart=2.6)


def draw_probabilities(trajectory: Trajectory) -> Figure:
    """Draw the probabilities of fact, foil and the likeliest other along the path (CDeepEx, Fig. 5b)."""
    return draw_rows([Row((), trajectory.question, chart=_curves(trajectory), below=CAPTION)], chart=4.0)


def _row(trajectory: Trajectory, frames: int) -> Row:
    """The pictures, most with the odds of fact and foil below them, and the curves."""
    both = zip(trajectory.fact[1], trajectory.foil[1], strict=True)
    odds = [((percent(p), FACT), (percent(q), FOIL)) for p, q in both]
    pictures = [Picture("image", as_rgb(trajectory.image), odds[0])]
    if trajectory.reconstruction is not None:
        pictures.append(Picture("reconstruction", as_rgb(trajectory.reconstruction)))
    for number, stop in enumerate(trajectory.stops(frames)):
        pictures.append(Picture("" if number else "the path", as_rgb(trajectory.path[stop]), odds[stop]))
    ending = "answer" if trajectory.status == "found" else trajectory.status
    pictures.append(Picture(ending, as_rgb(trajectory.answer), odds[-1]))
    change = overlay(trajectory.image, trajectory.change, shared_limit([trajectory.change]))
    pictures.append(Picture("change", change, (("add", FOR), ("remove", AGAINST))))
    heading = f"{shorten(trajectory.name, 26)}: {trajectory.question}"
    return Row(pictures, heading, trajectory.text, _curves(trajectory), CAPTION)


def _curves(trajectory: Trajectory) -> Callable[[Axes], None]:
    (fact, of_fact), (foil, of_foil) = trajectory.fact, trajectory.foil
    lines = (("other", trajectory.others, OTHERS, "--"), (fact, of_fact, FACT, "-"), (foil, of_foil, FOIL, "-"))
    return partial(draw_curves, lines, "from the image to the answer")


# ------------------------------------------------------------------------------------------ what is enough
def excerpt_row(
    name: str, fact: str, text: str, status: str, image: ArrayLike, part: ArrayLike, dimmed: ArrayLike,
    ranks: ArrayLike, whole: float, curve: Sequence[float] = (),
) -> Row:  # fmt: skip
    """The image, the part that keeps the fact by itself, where it lies, its features in order, the confidence.

    Args:
        name: What to call the image.
        fact: The name of the class that is kept.
        text: What the part says.
        status: How the search ended.
        image: The image asked about, like the others (H, W, 1 or 3) in [0, 1].
        part: The part by itself.
        dimmed: The image, what is left out dimmed.
        ranks: (H, W): 1 at the most important feature, less at the others, 0 where nothing is kept.
        whole: The probability of the fact in the whole image.
        curve: Its probabilities with the first k = 0, 1, ... features present; empty if the features have no order.
    """
    pictures = (
        Picture(name, as_rgb(image), colour=FAINT),
        Picture("enough" if status == "found" else status, as_rgb(part)),
        Picture("the rest dimmed", as_rgb(dimmed)),
        Picture("the first strongest", overlay(image, ranks, 1.0)),
    )
    curves = (("whole image", [whole] * len(curve), OTHERS, "--"), ("the part", curve, FACT, "-"))
    chart = partial(draw_curves, curves, f"with the first 0 to {len(curve) - 1} features") if curve else None
    return Row(pictures, f"What is enough for {fact}?", text, chart, CAPTION)


def draw_excerpts(excerpts: Sequence[Row]) -> Figure:
    """Draw them below each other.

    Args:
        excerpts: What to draw, at least one.

    Returns:
        The figure, in no window.

    Raises:
        InputError: There is no excerpt.
    """
    return draw_rows(excerpts, chart=2.2 if any(each.chart for each in excerpts) else 0.0)
