"""What figures and pages are made of: panels, each an image with the maps that answer questions about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ratherthan.errors import InputError
from ratherthan.render.colours import shared_limit


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One map of a panel.

    Attributes:
        foil: The foil's name; empty where there is none ("why P?").
        contrast: The contrast's name.
        values: The signed map, (h, w): positive speaks for the fact.
        text: One line that says what the map says.
    """

    foil: str
    contrast: str
    values: ArrayLike
    text: str = ""

    def __post_init__(self) -> None:
        if np.ndim(self.values) != 2 or not np.isfinite(self.values).all():
            raise InputError(f"a map must be finite numbers (h, w); got shape {np.shape(self.values)}")


@dataclass(frozen=True, eq=False)
class Panel:
    """One image, what the network made of it, and the maps that explain it.

    Attributes:
        name: What to call the image, e.g. its file name.
        image: (H, W), (H, W, 1) or (H, W, 3); floats in [0, 1] or uint8.
        fact: The name of the class (or the value) that is explained.
        probabilities: Class names with their probabilities, any order, as many as are worth showing; may be empty.
        maps: The maps; the first is the one shown first.
        sides: What blue and what red-orange mean; a figure and a page take the words of their first panel.
        of_text: Whether the image shows words, which must stay readable under their colours.
    """

    name: str
    image: ArrayLike
    fact: str
    probabilities: tuple[tuple[str, float], ...]
    maps: tuple[Heatmap, ...]
    sides: tuple[str, str] = ("against the fact, for the foil", "for the fact")
    of_text: bool = False

    @property
    def foils(self) -> tuple[str, ...]:
        """The names of the foils, each once, in order."""
        return tuple(dict.fromkeys(view.foil for view in self.maps))

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The names of the contrasts, each once, in order."""
        return tuple(dict.fromkeys(view.contrast for view in self.maps))

    def question(self, foil: str = "") -> str:
        """Put the question into words."""
        return f"Why {self.fact}, rather than {foil}?" if foil else f"Why {self.fact}?"

    def limits(self) -> dict[str, float]:
        """Return a colour scale for each contrast, shared by its foils.

        Foils are there to be compared; contrasts have units of their own (a probability beside log-odds). Words get no
        more than half the strength of colour, or they could not be read.
        """
        views = {contrast: [view for view in self.maps if view.contrast == contrast] for contrast in self.contrasts}
        limits = {contrast: shared_limit(view.values for view in shown) for contrast, shown in views.items()}
        return {contrast: limit * (2 if self.of_text else 1) for contrast, limit in limits.items()}

    def bars(self, count: int, foils: tuple[str, ...] = ()) -> list[tuple[str, float]]:
        """Pick the `count` classes to show, most probable first, the fact and these foils among them."""
        ranked = sorted(self.probabilities, key=lambda pair: -pair[1])
        first = sorted(ranked, key=lambda pair: (pair[0] != self.fact, pair[0] not in foils))[:count]
        return sorted(first, key=ranked.index)
