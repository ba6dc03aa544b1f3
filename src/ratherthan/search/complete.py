"""Both halves of a contrastive explanation: "because of ..., and because ... is absent" (CEM-MAF, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.result import save_report
from ratherthan.search.counterfactual import Counterfactual, counterfactual
from ratherthan.search.method import CounterfactualMethod, PertinentPositiveMethod, get_counterfactual_method
from ratherthan.search.pertinent_positive import PertinentPositive, pertinent_positive
from ratherthan.search.solver import Status
from ratherthan.verbs import Samples


@dataclass(frozen=True)
class CompleteExplanation:
    """What is enough, and what must stay absent.

    Attributes:
        positive: What is enough, for N images.
        negative: What would have to be added for another class, for the same images.
    """

    positive: PertinentPositive
    negative: Counterfactual

    def __len__(self) -> int:
        return min(len(self.positive), len(self.negative))

    def text(self, sample: int, q: int = 0) -> str:
        """One sentence: "It is shirt because of 3 of 784 pixels (...), and because ... is absent, else ..."."""
        present, absent = self.positive, self.negative
        said = f"It is {present.class_label(int(present.fact[sample]))} {present.because(sample)}"
        if present.status[sample] not in (Status.FOUND, Status.NOTHING_NEEDED):
            said = present.text(sample).rstrip(".")
        if absent.best(absent.status, sample, q) != Status.FOUND:
            return f"{said}; what must stay absent: {absent.text(sample, q)}"
        missing = absent.added(sample, q) or ["what the other picture adds"]
        verb = "is" if len(missing) == 1 else "are"
        other = absent.class_label(int(absent.best(absent.reached, sample, q)[0]))
        return f"{said}, and because {' and '.join(missing)} {verb} absent, else it would be {other}."

    def __str__(self) -> str:
        return "\n".join(f"{self.positive.names[i]}: {self.text(i)}" for i in range(len(self)))

    def save(self, path: str | Path) -> list[Path]:
        """Write both halves: as one page, or beside each other, "x.png" as "x.positive.png" and "x.negative.png".

        Args:
            path: Ending in .png, .html or .safetensors; see the `save` of either half.

        Returns:
            The paths.
        """
        path, halves = Path(path), {"positive": self.positive, "negative": self.negative}
        if path.suffix == ".html":
            return [save_report(list(halves.values()), path, "What is enough, and what must stay absent?")]
        return [half.save(path.with_suffix(f".{name}{path.suffix}")) for name, half in halves.items()]


def complete(
    model: Model | nn.Module,
    images: Any,
    fact: Any = None,
    foil: Any = None,
    method: str = "cem-maf",
    *,
    positive: PertinentPositiveMethod | None = None,
    negative: CounterfactualMethod | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
) -> CompleteExplanation:
    """Find what is enough for the fact, and what must stay absent.

    Args:
        model: The network.
        images: What `Model.preprocess` takes, or a data set.
        fact: The class to explain; None: the prediction.
        foil: The class it would become; None: the method's default, for "cem-maf" and "cem" any other.
        method: Name of a method that does both: "cem-maf" or "cem".
        positive: The method of the first half, with settings; None: the named one.
        negative: The method of the second half, with settings; None: the named one.
        names: What to call the images; None: their paths, or their names in a data set, or numbers.
        batch_size: Searches at once.

    Returns:
        Both halves.

    Raises:
        InputError: As `pertinent_positive` and `counterfactual`; or if the fact is several classes.

    Example:
        >>> print(complete(load("zoo:fashion_mnist"), images))
    """
    if not isinstance(method, str):
        raise InputError("method is the name of both halves; give objects as positive=... and negative=...")
    model = Model.wrap(model)
    # prepared first: what it lacks shows before anything is sought
    absent = get_counterfactual_method(negative or method).prepared(model)
    both = Samples.of(model, images, names=names)  # read once: a loader may shuffle
    how: dict[str, Any] = {"names": both.names, "batch_size": batch_size}
    enough = pertinent_positive(model, both.images, fact, positive or method, **how)
    return CompleteExplanation(enough, counterfactual(model, both.images, fact, foil, absent, **how))
