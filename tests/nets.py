"""Small networks of different make, in float64, that the tests explain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratherthan import Model


class Linear(nn.Module):
    """y = W x + b on flattened images."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Pooled(nn.Module):
    """Convolutions, global average pooling, a linear map: a pointwise head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=2))
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Squeezed(nn.Module):
    """A 1 x 1 convolution, ReLU and pooling after the layer, as in SqueezeNet: pointwise with a mask."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2))
        self.classify = nn.Sequential(nn.Dropout(), nn.Conv2d(8, classes, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x)).mean((2, 3))


class Dense(nn.Module):
    """In-place ReLU, pooling and a fully connected head, as in VGG."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3))
        self.tail = nn.Sequential(
            nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU()
        )
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.features(x)))


class Residual(nn.Module):
    """Batch norm, functional ReLU, a residual and a concatenation above the layer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.features = nn.Conv2d(6, 6, 3, padding=1)
        self.after = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        low = F.relu(self.stem(x))
        high = self.features(low)
        out = F.relu(self.after(F.relu(high)) + low)
        return self.head(torch.cat([out, high.tanh()], 1).mean((2, 3)))


class Tokens(nn.Module):
    """Patches, a class token and attention; the class token alone feeds the head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


CONVOLUTIONAL: dict[str, Callable[[], nn.Module]] = {
    "pooled": Pooled,
    "squeezed": Squeezed,
    "dense": Dense,
    "residual": Residual,
}


def make(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, **settings: object) -> Model:
    """A network with seeded weights and lived-in batch norm statistics."""
    torch.manual_seed(3)
    module = build().to(dtype)
    module(torch.rand(8, 3, 12, 12, dtype=dtype))
    return Model(module.eval(), **settings)  # type: ignore[arg-type]


def images(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded images (count, 3, 12, 12)."""
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


class Counter:
    """Counts the forward passes of a model, and the images in them."""

    def __init__(self, model: Model) -> None:
        self.passes = self.images = 0
        self._hook = model.module.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.passes += 1
        self.images += len(inputs[0])

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
