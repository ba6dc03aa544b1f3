"""How a network is trained: a `Recipe` says what on, how long and against which loss; a `Learner` takes the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ratherthan import data


@dataclass(frozen=True)
class Augmentation:
    """Random affine changes of training images, drawn per image.

    Attributes:
        crop: The share of each side that is cut out, at a random place and without resizing: the network sees less, and
            trains faster, but things keep their size.
        shift: Largest shift, as a share of the side.
        scale: Largest relative change of size.
        rotation: Largest turn, in degrees.
        flips: Which sides are mirrored at random: "", "h" or "hv".
        brightness: Largest relative change of brightness.
        padding: What lies beyond the border: "zeros" for black grounds, "reflection" for photographs.
    """

    crop: float = 1.0
    shift: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    flips: str = ""
    brightness: float = 0.0
    padding: str = "zeros"

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch (N, C, H, W) in [0, 1] on the CPU; random numbers come from the generator alone."""
        if self == Augmentation():
            return images

        def uniform(limit: float) -> Tensor:
            return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

        def mirrored(side: str) -> Tensor:
            sign = torch.randint(0, 2, (len(images),), generator=generator) * 2.0 - 1
            return sign if side in self.flips else torch.ones(len(images))

        angle, zoom = uniform(self.rotation * math.pi / 180), self.crop * (1 + uniform(self.scale))
        reach = 2 * self.shift + 1 - self.crop  # in the units of affine_grid, where a side is 2 long
        across, down = zoom * mirrored("h"), zoom * mirrored("v")
        matrix = torch.stack([
            across * angle.cos(), -down * angle.sin(), uniform(reach),
            across * angle.sin(), down * angle.cos(), uniform(reach),
        ], 1).view(-1, 2, 3)  # fmt: skip
        height, width = (round(side * self.crop) for side in images.shape[2:])
        grid = nn.functional.affine_grid(matrix, [*images.shape[:2], height, width], align_corners=False)
        moved = nn.functional.grid_sample(images, grid, padding_mode=self.padding, align_corners=False)
        return (moved * (1 + uniform(self.brightness)).view(-1, 1, 1, 1)).clamp_(0, 1)


@dataclass(frozen=True)
class PatchDeletion(Augmentation):
    """Also deletes patches of training images, so that a network knows what an image with parts deleted looks like.

    `single-deletion` and `f-fidelity` ask for such a network; a short fine-tuning makes one of any other.

    Attributes:
        deleted: Largest probability of a patch to be deleted: each image has its own, from 0 up to this one.
        grids: Patches along a side; one of these is drawn for each batch.
        ground: The colour of what is deleted, per channel: the mean that the network subtracts, for the baseline
            "model-mean".
    """

    deleted: float = 0.25
    grids: tuple[int, ...] = (4, 8)
    ground: tuple[float, ...] = (0.0,)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch (N, C, H, W) in [0, 1] on the CPU, then delete patches."""
        images = super().__call__(images, generator)
        side = self.grids[int(torch.randint(len(self.grids), (), generator=generator))]
        share = torch.rand(len(images), 1, 1, 1, generator=generator) * self.deleted
        gone = (torch.rand(len(images), 1, side, side, generator=generator) < share).float()
        gone = nn.functional.interpolate(gone, images.shape[2:]) > 0  # the nearest: patches as of "grid" superpixels
        return torch.where(gone, images.new_tensor(self.ground).view(-1, 1, 1), images)


Examples = tuple[Tensor, Tensor]
"""What a network sees, and what it should say."""


@dataclass(frozen=True)
class Recipe:
    """A supervised training: AdamW, learning rate up over the first part, then down along a cosine.

    A network with another target overrides the methods.

    Attributes:
        dataset: Name of the data set in `ratherthan.data`.
        epochs: Passes over the training part.
        rate: Highest learning rate.
        batch_size: Images per step.
        weight_decay: Decoupled decay of AdamW.
        warmup: Share of all steps over which the learning rate rises.
        augmentation: Changes of the training images.
        uncropped: The last so many epochs see whole images: what a network learns from cut-outs it must still fit to
            the size it is used at (Touvron et al., Fixing the train-test resolution discrepancy, 2019).
        train: Split to train on.
        tests: Splits to report on.
        balance: Images are drawn with probability proportional to (images of their class) ** -balance, with
            replacement; 0 visits each once.
        frozen: Modules that keep their weights, by dotted name; nothing is differentiated below them.
        start: Weights to start from, inside the data root; tensors of another shape (the head) start afresh.
        workers: Processes that decode images.
        about: What the network answers, for its card, where {count} and {names} are those of the classes.
    """

    dataset: str
    epochs: int
    rate: float
    batch_size: int = 128
    weight_decay: float = 0.01
    warmup: float = 0.25
    augmentation: Augmentation = Augmentation()
    uncropped: int = 0
    train: str = "train"
    tests: tuple[str, ...] = ("test",)
    balance: float = 0.0
    frozen: tuple[str, ...] = ()
    start: str | None = None
    workers: int = 0
    about: ClassVar[str] = "{count} classes: {names}"

    def rate_at(self, progress: float) -> float:
        """The learning rate when a share `progress` in [0, 1) of all steps is done."""
        if progress < self.warmup:
            return self.rate * (0.04 + 0.96 * progress / self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))

    def at(self, epoch: int, epochs: int) -> Recipe:
        """The recipe as it stands in epoch `epoch`, from 0, of `epochs`."""
        if epoch < epochs - self.uncropped:
            return self
        return replace(self, augmentation=replace(self.augmentation, crop=1.0))

    def order(self, labels: Sequence[int], generator: torch.Generator) -> list[int]:
        """The images of one epoch, in order."""
        if not self.balance:
            return torch.randperm(len(labels), generator=generator).tolist()
        classes = torch.tensor(labels)
        chance = classes.bincount().double()[classes] ** -self.balance
        return torch.multinomial(chance, len(labels), replacement=True, generator=generator).tolist()

    def open(self, root: str | Path | None, split: str) -> data.Dataset:
        """The images of a split; without a transform they are brought to the size the network is fed."""
        return data.load(self.dataset, root, split)

    def examples(self, images: Tensor, labels: Tensor, generator: torch.Generator, training: bool) -> Examples:
        """What the network sees and should say, from a batch of images and labels on the CPU."""
        return (self.augmentation(images, generator) if training else images), labels

    def learner(self, network: nn.Module) -> Learner:
        """What takes the steps."""
        return Learner(self, network)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is minimised: the mean cross-entropy."""
        return nn.functional.cross_entropy(logits, labels)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """What is reported: accuracy, and balanced accuracy (the mean over classes of their recall)."""
        right = (logits.argmax(1) == labels).double()
        recalls = [right[labels == label].mean() for label in torch.unique(labels)]
        return {"accuracy": right.mean().item(), "balanced_accuracy": torch.stack(recalls).mean().item()}


class Learner:
    """A network and what moves it; a recipe that trains more than one network brings its own.

    Attributes:
        parts: What a checkpoint holds, by name: networks and optimisers.
    """

    def __init__(self, recipe: Recipe, network: nn.Module) -> None:
        self.recipe, self.network = recipe, network
        optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
        self.parts: dict[str, Any] = {"network": network, "optimiser": optimiser}

    def set_rate(self, rate: float) -> None:
        """Give all optimisers a learning rate."""
        for part in self.parts.values():
            for group in part.param_groups if isinstance(part, torch.optim.Optimizer) else ():
                group["lr"] = rate

    def step(self, images: Tensor, targets: Tensor, batch: int) -> float:
        """Learn from a batch of normalised images and their targets; returns the loss."""
        loss = self.recipe.loss(self.network(images), targets)
        self._descend(loss, "optimiser")
        return loss.item()

    def outputs(self, images: Tensor) -> Tensor:
        """What the recipe's metrics judge, for normalised images."""
        return self.network(images)  # type: ignore[no-any-return]

    def _descend(self, loss: Tensor, optimiser: str) -> None:
        self.parts[optimiser].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.parts[optimiser].step()
