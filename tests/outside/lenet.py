"""A network, its data set and its recipe: LeNet (LeCun et al. 1998), with ReLU, on lying and standing bars."""

from pathlib import Path

import torch
from torch import Tensor, nn

import ratherthan as rt


class LeNet(nn.Sequential):
    """(N, 1, 12, 12) to two logits."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2),
        )  # fmt: skip


class Bars(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Lying and standing bars, 60 to train with and 20 others to test on."""

    classes = ("lying", "standing")

    def __init__(self, root: str | Path | None, split: str | None) -> None:
        self.first, self.count = (0, 60) if split == "train" else (60, 20)
        self.targets = [index % 2 for index in range(self.count)]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        numbers = torch.Generator().manual_seed(self.first + index)
        image = 0.2 * torch.rand(1, 12, 12, generator=numbers)
        place = int(torch.randint(0, 10, (), generator=numbers))
        image[:, place : place + 2] += 0.8
        return (image.mT if self.targets[index] else image), self.targets[index]


rt.register_dataset("bars", Bars)
rt.register_zoo_model(
    rt.ZooEntry(
        "lenet",
        LeNet,
        layer="1",
        image_size=(12, 12),
        channels=1,
        mean=(0.2,),
        std=(0.3,),
        recipe=rt.Recipe("bars", 8, 0.02, 10),
    )
)
