"""What a network says about a part of an image: segmentation in a mask, a box or at a point; one detection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError, ModelError
from ratherthan.outputs.classes import NONE, OUTPUTS, Labels, Output, tensor_in
from ratherthan.settings import Interval

if TYPE_CHECKING:
    from ratherthan.model import Model


@OUTPUTS.register
@dataclass(frozen=True)
class Region(Output):
    """What a segmentation network says within a region: its scores (N, K, h, w), averaged there.

    With w(i, j) the share of the region in a cell of the scores, y_k = sum_ij w(i, j) s_k(i, j) / sum_ij w(i, j).

    Explain regions by `la`, or by a method that explains the image: `gradcam` averages the gradient over all places, so
    that under a head of 1 x 1 convolutions every region has the same map.

    Attributes:
        where: A point (x, y), a box (left, top, right, bottom), both in pixels of what the network sees, or a mask of
            its rows and columns (H, W), True inside. A list of N of them: one for each image that is asked about.

    Example:
        >>> explain(Model(network, names, output=Region((120, 200))), image, "road", "pavement")
    """

    where: Any

    name = "region"

    def __post_init__(self) -> None:
        """Check the regions.

        Raises:
            InputError: If one is none of these.
        """
        super().__post_init__()
        for each in self.where if self.one_by_one else [self.where]:
            shape = np.shape(each)
            if shape not in ((2,), (4,)) and len(shape) != 2:
                given = f"shape {shape}" if shape else repr(each)
                raise InputError(f"a region is a point (x, y), a box (left, top, right, bottom) or a mask, not {given}")

    @property
    def one_by_one(self) -> bool:
        """Whether each sample has its own."""
        return isinstance(self.where, list) or np.ndim(self.where) == 3

    def of(self, samples: Sequence[int]) -> Region:
        """That of some samples, which must be one where each has its own.

        Raises:
            InputError: If there is none for it.
        """
        if not self.one_by_one:
            return self
        (sample,) = samples
        if sample >= len(self.where):
            raise InputError(f"{len(self.where)} regions for more images: give one, or one per image")
        return Region(self.where[sample])

    def run(self, run: Callable[[Tensor], Any], seen: Tensor, model: Model) -> Tensor:
        """The scores in the region, (N, K)."""
        returned = run(seen)
        named = returned.get("out", returned) if isinstance(returned, dict) else returned  # torchvision; transformers
        wanted = "a region is about scores (N, K, h, w): pick them by forward="
        scores = tensor_in(named, 4, len(seen), model.name, wanted)
        return self._within(scores, self._mask(seen.shape[-2], seen.shape[-1]))

    def pools(self, maps: Tensor, plane: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Their mean in the region, (N, K)."""
        return (self._within(maps, self._mask(plane[0], plane[1])),)

    @staticmethod
    def _within(scores: Tensor, mask: Tensor) -> Tensor:
        height, width = scores.shape[-2:]
        weights = torch.nn.functional.adaptive_avg_pool2d(mask[None].to(scores), (height, width))[0]
        return torch.einsum("nkhw,hw->nk", scores, weights) / weights.sum()

    def _mask(self, height: int, width: int) -> Tensor:
        given = torch.as_tensor(np.asarray(self.where) if not isinstance(self.where, Tensor) else self.where)
        if given.ndim == 2:
            if tuple(given.shape) != (height, width):
                raise InputError(
                    f"a mask of {tuple(given.shape)} for images of {height} x {width}: give one of their size"
                )
            mask = given.bool()
        else:
            left, top, right, bottom = given.tolist() if len(given) == 4 else [*given.tolist(), *(given + 1).tolist()]
            across, down = torch.arange(width) + 0.5, torch.arange(height) + 0.5
            mask = ((top <= down) & (down < bottom)).unsqueeze(1) & (left <= across) & (across < right)
        if not mask.any():
            raise InputError(f"the region {self.where} holds no pixel of images of {height} x {width}")
        return mask


@OUTPUTS.register
@dataclass(frozen=True)
class Detection(Output):
    """What a detector says about one of the things it may find: the scores of a query, an anchor or a box, (N, K).

    Networks that return `logits` (N, Q, K), as those of transformers do (DETR, YOLOS; their last class is "nothing"),
    are asked about one of the Q; so are others if `Model(forward=...)` picks such scores, e.g. of torchvision's SSD
    `forward=lambda net, x: net.head(list(net.backbone(x).values()))["cls_logits"]`. Networks of torchvision with two
    stages (Faster R-CNN, Mask R-CNN; their first class is "nothing") are asked what is in a box.

    Attributes:
        index: Which of the Q; see `overlapping`.
        box: (left, top, right, bottom) in pixels of the images.
    """

    index: Annotated[int, Interval(0)] | None = None
    box: tuple[float, float, float, float] | None = None

    name = "detection"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: If not one of the two is given.
        """
        super().__post_init__()
        if (self.index is None) == (self.box is None):
            raise InputError("a detection is one of those that the network returns, by its index, or a box: give one")

    @staticmethod
    def overlapping(model: Model, image: Tensor, box: Sequence[float]) -> Detection | DetectedLabels:
        """The detection of an image whose box fits one that is given best.

        Args:
            model: Its network returns `pred_boxes`, as (centre x, centre y, width, height), shares of the image's, or
                boxes and labels, see `DetectedLabels`.
            image: (C, H, W) or (1, C, H, W), in image space.
            box: (left, top, right, bottom) in pixels.

        Raises:
            ModelError: If the network returns no boxes.
            InputError: If no detection overlaps it.
        """
        batch = model.preprocess(image)
        with torch.no_grad():
            returned = model.module(model.normalise(batch))
        boxes = getattr(returned, "pred_boxes", None)
        kind: type[Detection | DetectedLabels] = DetectedLabels if boxes is None else Detection
        if boxes is None:
            boxes = _labelled_boxes(returned, len(batch), model)[:, :4].mT
        else:
            boxes = boxes * boxes.new_tensor([batch.shape[-1], batch.shape[-2]] * 2)
        middle, size = boxes[0].split(2, -1)
        found = torch.cat([middle - size / 2, middle + size / 2], -1)
        wanted = found.new_tensor(list(box))
        shared = (torch.minimum(found, wanted)[:, 2:] - torch.maximum(found, wanted)[:, :2]).clamp_min(0).prod(-1)
        areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (found, wanted)]
        overlap = shared / (areas[0] + areas[1] - shared)
        if not overlap.max() > 0:
            raise InputError(f"no detection overlaps the box {tuple(box)}")
        return kind(int(overlap.argmax()))

    def run(self, run: Callable[[Tensor], Any], seen: Tensor, model: Model) -> Any:
        """What the network returns; of a box, the scores (N, K) that its second stage gives it.

        Raises:
            ModelError: If it has none.
        """
        if self.box is None:
            return run(seen)
        network: Any = model.module
        heads = getattr(network, "roi_heads", None)
        if heads is None:
            raise ModelError(f"{model.name} has no second stage to look into a box: give the index of a detection")
        images, _ = network.transform(list(seen))
        features = network.backbone(images.tensors)
        features = {"0": features} if isinstance(features, Tensor) else features
        (height, width), scaled = seen.shape[-2:], images.image_sizes
        boxes = [seen.new_tensor([self.box]) * seen.new_tensor([w / width, h / height] * 2) for h, w in scaled]
        found: Tensor = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, scaled)))[0]
        return found

    def scores(self, returned: Any, samples: int, who: str) -> Tensor:
        """(N, K).

        Raises:
            ModelError: If there are no such scores.
        """
        if self.index is None:
            return super().scores(returned, samples, who)
        labels = f"of boxes and labels (N, 4 + K, A) say DetectedLabels({self.index})"
        wanted = f"scores (N, detections, classes) are needed: pick them by Model(..., forward=...); {labels}"
        found = tensor_in(returned, 3, samples, who, wanted)
        if ((found[:, 4:] >= 0) & (found[:, 4:] <= 1)).all() and found.shape[1] > 4:
            raise ModelError(f"{who} gives probabilities, not logits: {labels}")
        return _one_of(found, self.index, who)


@OUTPUTS.register
@dataclass(frozen=True)
class DetectedLabels(Output):
    """What a detector with independent labels says about one of the things it may find; the score is its log-odds.

    For networks that return boxes (centre x, centre y, width, height; pixels) and probabilities of K labels for each of
    A detections as one tensor (N, 4 + K, A), by itself or first in a tuple: YOLOv8, YOLO11 and what is like them. The
    questions are those of `Labels`.

    Attributes:
        index: Which of the A; see `Detection.overlapping`.
    """

    index: Annotated[int, Interval(0)]

    name = "detected-labels"
    exclusive = False

    def run(self, run: Callable[[Tensor], Any], seen: Tensor, model: Model) -> Tensor:
        """The probabilities of its labels, (N, K)."""
        return _one_of(_labelled_boxes(run(seen), len(seen), model)[:, 4:].mT, self.index, model.name)

    def logits(self, scores: Tensor, who: str) -> Tensor:
        """(N, K) log-odds, and 0 behind them."""
        return Labels("probabilities").logits(scores, who)

    @classmethod
    def probabilities(cls, logits: Tensor) -> Tensor:
        """Sigmoids; 0 for what is none."""
        return Labels.probabilities(logits)


def _one_of(scores: Tensor, index: int, who: str) -> Tensor:
    """(N, detections, K) to (N, K)."""
    if index >= scores.shape[1]:
        raise ModelError(f"{who} gives {scores.shape[1]} detections; there is no {index}")
    return scores[:, index]


def _labelled_boxes(returned: Any, samples: int, model: Model) -> Tensor:
    """(N, 4 + K, A): which axis is which is told by the names of the classes, else there are more detections."""
    wanted = "a box and probabilities of K labels for each of A detections, (N, 4 + K, A), are needed"
    found = tensor_in(returned[0] if isinstance(returned, tuple) else returned, 3, samples, model.name, wanted)
    rows, labels = found.shape[1], [name for name in model.class_names or () if name != NONE]
    if rows != 4 + len(labels) if labels else not 4 < rows < found.shape[2]:
        raise ModelError(f"{model.name} returns shape {tuple(found.shape)} for {len(labels) or 'K'} labels; {wanted}")
    return found
