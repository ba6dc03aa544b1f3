"""Full-reference image quality: DIQaM-FR and WaDIQaM-FR (Bosse et al. 2018), and how ours are trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ratherthan import Recipe, ZooEntry, data, register_zoo_model
from ratherthan.replication.distortions import LEVELS, distort, kinds, similarity_map, structural_similarity
from ratherthan.zoo.training.recipes import Examples

PATCH = 32
"""Side of the patches that the networks look at, in pixels."""


class DIQaM(nn.Module):
    """DIQaM-FR, or WaDIQaM-FR: a reference and its distorted version to a quality, patch by patch.

    "Deep neural networks for no-reference and full-reference image quality assessment" (2018), section III: both
    images are cut into patches of 32 x 32 that do not overlap and do not see each other; ten convolutions with shared
    weights give each patch a feature vector; the two vectors and their difference are fused by concatenation and
    regressed to a score. The image's score is the mean of its patches', or with `weighted` their mean weighted by what
    a second regression finds important.

    The tenth convolution of the distorted branch passes through `distorted_conv10`, before its ReLU: the layer to
    explain. It holds 2 x 2 cells per patch, laid out as the image is: (N, 16 * width, H / 16, W / 16).

    Args:
        width: Channels of the first two convolutions; the paper's is 32, the later ones have 2, 4, 8, 16 times as many.
        weighted: WaDIQaM-FR instead of DIQaM-FR.
        dropout: Before the last linear map, while training.
    """

    def __init__(self, width: int = 32, weighted: bool = False, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [3, *(width * 2 ** (index // 2) for index in range(10))]
        layers: list[nn.Module] = []
        for index, (given, made) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if index % 2 else []
        self.features = nn.Sequential(*layers[:-2])  # the last ReLU and pooling follow in `forward`
        self.distorted_conv10 = nn.Identity()
        self.score = _regression(3 * widths[-1], widths[-1], dropout)
        self.weight = _regression(3 * widths[-1], widths[-1], dropout) if weighted else None
        linear = [each for each in self.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
        with torch.no_grad():
            for each in linear:
                nn.init.kaiming_normal_(each.weight, nonlinearity="relu")
                nn.init.constant_(each.bias, 0)  # type: ignore[arg-type] # all of them have one
                if len(each.weight) == 1:
                    each.weight.mul_(0.1)  # scores begin near zero
            # brightness aside and contrasts enlarged, or what JPEG takes from weak textures is learned late, if at all
            linear[0].weight.copy_(4 * (linear[0].weight - linear[0].weight.mean((2, 3), keepdim=True)))

    def forward(self, pair: Tensor) -> Tensor:
        """Score pairs.

        Args:
            pair: (N, 6, H, W), the reference's channels before the distorted image's; at least 32 pixels a side. What
                exceeds a multiple of 32 to the right and below is not looked at.

        Returns:
            (N, 1) qualities, about 1 for an undistorted image.
        """
        reference, distorted = (self._grid(image) for image in pair.chunk(2, dim=1))
        distorted = self.distorted_conv10(distorted)
        r, d = (nn.functional.max_pool2d(grid.relu(), 2) for grid in (reference, distorted))
        fused = torch.cat([r, d, r - d], 1).movedim(1, -1)
        scores: Tensor = self.score(fused).flatten(1)
        weights = torch.ones_like(scores) if self.weight is None else self.weight(fused).flatten(1).relu() + 1e-6
        return (weights * scores).sum(1, keepdim=True) / weights.sum(1, keepdim=True)

    def _grid(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to the tenth convolution of its patches, (N, ch, 2 rows, 2 columns)."""
        samples, _, height, width = image.shape
        if min(height, width) < PATCH:
            raise ValueError(f"images of at least {PATCH} x {PATCH} pixels are needed")
        rows, columns = height // PATCH, width // PATCH
        cut = image[..., : rows * PATCH, : columns * PATCH].reshape(samples, -1, rows, PATCH, columns, PATCH)
        grids = self.features(cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        laid_out: Tensor = grids.reshape(samples, rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return laid_out.reshape(samples, -1, 2 * rows, 2 * columns)


def _regression(given: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(given, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1))


@dataclass(frozen=True)
class QualityRecipe(Recipe):
    """Train on photographs that are spoilt on the fly, against their structural similarity.

    Photographs of flowers102 and imagenet_samples; the label of an item is the distortion it will get (5 times kind,
    plus level, or the last one: none). Every training photograph meets one level of each kind, every held-out one all
    of them. The target is structural similarity in [0, 1]: of each patch while training, where Bosse et al. (section
    III-C) knew only that of the whole image, of whole images when measuring. The loss is the mean squared error, theirs
    the mean absolute one: large errors, those of JPEG, are learned away faster.

    Attributes:
        patches: Patches trained on per photograph, cut from a random square of 96 x 96 pixels.
    """

    patches: int = 8

    def open(self, root: str | Path | None, split: str) -> data.Dataset:
        """The photographs of a split, each several times, as 224 x 224 pixels cut from their centre."""
        training = split == "train"
        sets = [data.load("flowers102", root, split), data.load("imagenet_samples", root)]
        flowers, scenes = (list(zip(each.ids, each.reader.files, strict=True)) for each in sets)  # type: ignore[attr-defined]
        chosen = flowers[:: 4 if training else 32]
        chosen += [scene for index, scene in enumerate(scenes) if (index % 20 == 0) != training]
        names = [f"{kind} {level}" for kind in kinds() for level in range(1, LEVELS + 1)] + ["undistorted"]
        rows = [
            (f"{name}, {names[label]}", label, file)
            for place, (name, file) in enumerate(chosen)
            for label in (range(place % LEVELS, len(names), LEVELS) if training else range(len(names) - 1))
        ]
        ids, labels, files = zip(*rows, strict=True)
        centred = partial(data.fit_image, size=(224, 224), fit="crop", crop_fraction=1.0, channels=3)
        return data.Dataset(self.dataset, tuple(names), ids, labels, data.FileReader(files), centred)

    about = (
        "the quality of an image beside its reference: 1 undistorted, 0 nothing left; as structural similarity "
        f"(SSIM of the luma, scikit-image, clipped to [0, 1]) would judge {', '.join(kinds())}, five levels each. The "
        "architecture is that of Bosse et al. (2018) in a compact width; the score is that of a formula, not of people"
    )

    def examples(self, images: Tensor, labels: Tensor, generator: torch.Generator, training: bool) -> Examples:
        """Spoil photographs as their labels say: (N, 3, H, W) to pairs (M, 6, h, w) and their qualities (M,)."""
        made: list[tuple[Tensor, Tensor]] = []
        for image, label in zip(images, labels.tolist(), strict=True):
            reference = _cut(image, 3 * PATCH, generator) if training else image
            distorted = _spoilt(reference, label, generator)
            pair = torch.cat([reference, distorted])
            if training:
                scored = torch.cat([pair, similarity_map(reference, distorted)[None]])
                patches = [_cut(scored, PATCH, generator) for _ in range(self.patches)]
                made += [(patch[:6], patch[6].mean().clamp(0, 1)) for patch in patches]
            else:
                made.append((pair, torch.tensor(structural_similarity(reference, distorted))))
        pairs, scores = zip(*made, strict=True)
        return torch.stack(pairs), torch.stack(scores)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean squared error."""
        return nn.functional.mse_loss(logits.squeeze(1), labels)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Rank correlation (Spearman, ties share ranks), linear correlation (Pearson), mean absolute error."""
        from scipy import stats

        scores, wanted = logits.squeeze(1).double().numpy(), labels.double().numpy()
        return {
            "rank_correlation": float(stats.spearmanr(scores, wanted).statistic),
            "linear_correlation": float(stats.pearsonr(scores, wanted).statistic),
            "mean_absolute_error": float(abs(scores - wanted).mean()),
        }


def _cut(image: Tensor, side: int, generator: torch.Generator) -> Tensor:
    top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def _spoilt(image: Tensor, label: int, generator: torch.Generator) -> Tensor:
    kind, level = divmod(label, LEVELS)
    return distort(image, kinds()[kind], level + 1, generator) if kind < len(kinds()) else image


_recipe = QualityRecipe("flowers102+imagenet_samples", 4, 2e-3, 16, 0.01, warmup=0.05)
_entry = partial(ZooEntry, channels=6, mean=(0.5,) * 6, std=(0.25,) * 6, recipe=_recipe, output="value")
_plain, _weighted = (partial(DIQaM, 6, weighted, dropout=0.0) for weighted in (False, True))

register_zoo_model(
    _entry("iqa", _plain, "distorted_conv10", shipped=Path(__file__).parent / "weights"),
    _entry("iqa_weighted", _weighted, "distorted_conv10"),
)
