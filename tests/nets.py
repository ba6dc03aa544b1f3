"""Small networks of different make, in float64, that the tests explain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratherthan import Inputs, Model, Signals, Table, Text, Volumes


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


# --------------------------------------------------------------------------------------------- other kinds of input
class Letters:
    """The least tokenizer there is: a token is a number, the one for nothing is 0."""

    all_special_ids = (0,)
    mask_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {self.convert_ids_to_tokens([i])[0]: i for i in range(9)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"word{i}" for i in ids]

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [" ".join(self.convert_ids_to_tokens(row)) for row in rows]


class Embedded(nn.Module):
    """Of a text, what its network makes of it behind the embedding."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.embed, self.features = nn.Embedding(9, 6), nn.Linear(6, 8)
        self.tail = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(7 * 8, 16), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tail(self.features(self.embed(ids))))


def convolutional(axes: int, classes: int = 5) -> nn.Module:
    """`Dense` for another number of axes, of sides 8."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[axes]
    net = Dense(classes)
    net.features = nn.Sequential(conv(2, 6, 3), nn.ReLU(inplace=True), conv(6, 8, 3))
    net.tail = nn.Sequential(
        nn.ReLU(inplace=True), pool(2), nn.Flatten(), nn.Linear(8 * 2**axes, 16), nn.ReLU(),
    )  # fmt: skip
    return net


def rows_of_a_table(classes: int = 5) -> nn.Module:
    net = Dense(classes)
    net.features, net.tail = nn.Linear(7, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 16), nn.ReLU())
    return net


def of_kind(kind: str, count: int = 3) -> tuple[Model, Tensor]:
    """A network in float64 that sees this kind of input, and so many inputs."""
    torch.manual_seed(3)
    random = torch.Generator().manual_seed(5)

    def numbers(*shape: int) -> Tensor:
        return 3 * torch.randn(count, *shape, generator=random, dtype=torch.float64) - 1

    if kind == "images":
        return make(Dense, layer="features"), images(count)
    if kind == "volumes":
        inputs: Inputs = Volumes(mean=(0.5, -1.0), std=(2.0, 0.5))
        return Model(convolutional(3).double().eval(), inputs=inputs, layer="features"), numbers(2, 8, 8, 8)
    if kind == "signals":
        inputs = Signals(mean=(0.5, -1.0), std=(2.0, 0.5))
        return Model(convolutional(1).double().eval(), inputs=inputs, layer="features"), numbers(2, 8)
    if kind == "table":
        inputs = Table(mean=range(7), std=2.0)  # type: ignore[arg-type]
        return Model(rows_of_a_table().double().eval(), inputs=inputs), numbers(7)
    ids = torch.randint(1, 9, (count, 7), generator=random)
    return Model(Embedded().double().eval(), inputs=Text(Letters())), ids


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
