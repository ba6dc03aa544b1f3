"""Image quality: the architecture and its patches against plain loops, the distortions, the recipe, the maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import ratherthan as rt
from ratherthan import InputError, ModelError, zoo
from ratherthan.replication.distortions import LEVELS, distort, kinds, similarity_map, structural_similarity
from ratherthan.replication.iqa import DIQaM, QualityRecipe
from ratherthan.replication.quality import compare_quality, quality_figure

Q = (0.25, 0.5, 0.75, 1.0)
RECIPE = zoo.get("iqa").recipe
assert isinstance(RECIPE, QualityRecipe)


def network(weighted: bool = False) -> DIQaM:
    torch.manual_seed(4)
    return DIQaM(2, weighted=weighted).double().eval()


def model(weighted: bool = False) -> rt.Model:
    return rt.Model(
        network(weighted), mean=(0.5,) * 6, std=(0.25,) * 6, channels=6, layer="distorted_conv10", output="value"
    )


def pair(height: int, width: int) -> Tensor:
    return torch.rand(1, 6, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


def photograph(name: str = "astronaut", side: int = 128) -> Tensor:
    from skimage import data

    image = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1).float() / 255
    return image[:, 40 : 40 + side, 140 : 140 + side]


def branch(net: DIQaM, patch: Tensor) -> Tensor:
    """conv10 of one patch (1, 3, 32, 32), by hand: ten convolutions, a pooling after every second."""
    convolutions = [each for each in net.features if isinstance(each, nn.Conv2d)]
    for index, each in enumerate(convolutions):
        patch = functional.conv2d(patch, each.weight, each.bias, padding=1)
        if index < 9:
            patch = patch.clamp_min(0)
            patch = functional.max_pool2d(patch, 2) if index % 2 else patch
    return patch


def head(net: DIQaM, reference: Tensor, distorted: Tensor) -> tuple[Tensor, Tensor]:
    """Score and weight of one patch from the two conv10."""
    r, d = (grid.clamp_min(0).amax((2, 3)) for grid in (reference, distorted))
    fused = torch.cat([r, d, r - d], 1)

    def regressed(layers: nn.Sequential) -> Tensor:
        hidden = functional.linear(fused, layers[0].weight, layers[0].bias).clamp_min(0)
        return functional.linear(hidden, layers[3].weight, layers[3].bias)[0, 0]

    weight = torch.ones(()) if net.weight is None else regressed(net.weight).clamp_min(0) + 1e-6
    return regressed(net.score), weight


# ----------------------------------------------------------------------------------------- the architecture
@pytest.mark.parametrize("weighted", [False, True])
def test_an_image_is_the_mean_of_patches_that_do_not_see_each_other(weighted: bool) -> None:
    net, images = network(weighted), pair(70, 97)
    assert sum(isinstance(each, nn.Conv2d) for each in net.features) == 10
    scores, weights = [], []
    for top in (0, 32):
        for left in (0, 32, 64):
            patch = images[:, :, top : top + 32, left : left + 32]
            score, weight = head(net, branch(net, patch[:, :3]), branch(net, patch[:, 3:]))
            scores.append(score)
            weights.append(weight)
    s, w = torch.stack(scores), torch.stack(weights)
    assert s.std() > 1e-3
    torch.testing.assert_close(net(images)[0, 0], (s * w).sum() / w.sum(), atol=1e-12, rtol=1e-10)


def test_the_layer_explained_is_laid_out_as_the_image_and_of_the_distorted_branch() -> None:
    net, images = network(), pair(64, 96)
    why = rt.explain(model(), images, foil=0.5)
    assert why.attribution.shape == (1, 4, 6)
    grids: list[Tensor] = []
    hook = net.distorted_conv10.register_forward_hook(lambda module, given, grid: grids.append(grid))
    net(images)
    hook.remove()
    for row, column in ((0, 0), (1, 2)):
        patch = images[:, 3:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        cell = grids[0][:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(cell, branch(net, patch), atol=1e-12, rtol=1e-10)


def test_the_papers_width_has_the_papers_layers() -> None:
    with torch.device("meta"):
        net = DIQaM(weighted=True)
    assert [each.out_channels for each in net.features if isinstance(each, nn.Conv2d)] == [
        *(32, 32, 64, 64, 128, 128, 256, 256, 512, 512)
    ]
    assert net.score[0].weight.shape == (512, 3 * 512)
    assert net.score[2].p == 0.5


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 32 x 32"):
        rt.explain(model(), pair(31, 64), foil=0.5)


# ----------------------------------------------------------------------------------------- the distortions
@pytest.mark.parametrize("kind", kinds())
def test_every_level_is_worse_than_the_one_before_and_what_a_file_would_hold(kind: str) -> None:
    image = photograph()
    made = [distort(image, kind, level, torch.Generator().manual_seed(level)) for level in range(1, LEVELS + 1)]
    scores = [structural_similarity(image, each) for each in made]
    assert all(better > worse for better, worse in zip([1.0, *scores], scores, strict=False))
    assert scores[0] > 0.85
    assert scores[-1] < 0.75
    for each in made:
        assert each.shape == image.shape
        torch.testing.assert_close(each * 255, (each * 255).round(), atol=1e-4, rtol=0)
        assert 0 <= each.min() <= each.max() <= 1


def test_noise_and_contrast_are_what_they_say() -> None:
    grey = torch.full((3, 200, 200), 0.5)
    spread = distort(grey, "noise", 3, torch.Generator().manual_seed(1)).std().item()
    assert spread == pytest.approx(0.05, rel=0.02)
    again = [distort(grey, "noise", 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    image = photograph()
    mean = image.mean((1, 2), keepdim=True)
    torch.testing.assert_close(distort(image, "contrast", 2), mean + (image - mean) / 2, atol=0.5 / 255 + 1e-6, rtol=0)


def test_codecs_are_pillows(tmp_path: Path) -> None:
    image = photograph()
    Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "a.jpg", quality=12)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "a.jpg"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(distort(image, "jpeg", 3), expected)


def test_similarity_is_one_for_the_same_image_and_clipped_at_zero() -> None:
    image = photograph()
    assert structural_similarity(image, image) == pytest.approx(1)
    assert structural_similarity(image, 1 - image) == 0
    assert structural_similarity(image[:1], image[:1]) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "level"), [("jpg", 1), ("jpeg", 0), ("jpeg", 6)])
def test_what_is_no_distortion(kind: str, level: int) -> None:
    with pytest.raises(InputError, match=r"did you mean 'jpeg'|levels 1 to 5"):
        distort(photograph(), kind, level)


# ----------------------------------------------------------------------------------------- the recipe
def test_examples_are_pairs_with_the_score_of_what_is_shown() -> None:
    how = RECIPE
    images = torch.stack([photograph(side=160), photograph("chelsea", side=160)])
    labels = torch.tensor([4, 5 * len(kinds())])  # the worst JPEG, and undistorted
    pairs, scores = how.examples(images, labels, torch.Generator().manual_seed(0), training=False)
    assert torch.equal(pairs[0, 3:], distort(images[0], "jpeg", 5))
    assert torch.equal(pairs[1, 3:], images[1])
    assert scores[0].item() == pytest.approx(structural_similarity(images[0], pairs[0, 3:]))
    assert scores[1] == 1
    pairs, scores = how.examples(images, labels, torch.Generator().manual_seed(0), training=True)
    assert pairs.shape == (2 * how.patches, 6, 32, 32)
    assert torch.equal(pairs[how.patches :, :3], pairs[how.patches :, 3:])
    torch.testing.assert_close(scores[how.patches :], torch.ones(how.patches))
    assert all(any(torch.equal(patch, window) for window in windows(images[0])) for patch in pairs[:2, :3])
    assert 0 < scores[: how.patches].min() < scores[: how.patches].max() < 1


def windows(image: Tensor) -> Tensor:
    """All 32 x 32 cuts of an image, (M, 3, 32, 32)."""
    return image.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)


def test_similarity_of_a_patch_is_the_mean_of_the_map_over_it() -> None:
    image = photograph()
    spoilt = distort(image, "blur", 3)
    found = similarity_map(image, spoilt)
    assert found.shape == (128, 128)
    assert found[5:-5, 5:-5].mean().item() == pytest.approx(structural_similarity(image, spoilt), abs=1e-5)
    half = torch.cat([image[:, :64], spoilt[:, 64:]], 1)
    torch.testing.assert_close(similarity_map(image, half)[:58], torch.ones(58, 128))


def test_no_photograph_is_both_trained_on_and_held_out(data_root: Path) -> None:
    how = RECIPE
    parts = {split: how.open(data_root, split) for split in ("train", "test")}
    shown = {split: {identity.split(", ")[0] for identity in part.ids} for split, part in parts.items()}
    assert not shown["train"] & shown["test"]
    assert len(parts["test"]) == len(shown["test"]) * 25
    assert parts["test"][30][0].shape == (3, 224, 224)


def test_metrics_are_rank_and_linear_correlation() -> None:
    from scipy.stats import pearsonr, spearmanr

    given, wanted = torch.rand(50, 1) ** 3, torch.rand(50)
    found = RECIPE.metrics(given, wanted)
    assert found["rank_correlation"] == pytest.approx(spearmanr(given[:, 0], wanted).statistic)
    assert found["linear_correlation"] == pytest.approx(pearsonr(given[:, 0], wanted).statistic, abs=1e-5)
    assert found["mean_absolute_error"] == pytest.approx(float((given[:, 0] - wanted).abs().mean()))


def test_tied_scores_share_their_rank() -> None:
    given, wanted = torch.tensor([[0.1], [0.2], [0.2], [0.4]]), torch.tensor([0.0, 0.5, 1.0, 1.0])
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3.5, 3.5: deviations (-1.5, 0, 0, 1.5) and (-1.5, -0.5, 1, 1)
    expected = (1.5 * 1.5 + 1.5 * 1) / (4.5 * 4.5) ** 0.5
    assert RECIPE.metrics(given, wanted)["rank_correlation"] == pytest.approx(expected)


def test_the_shipped_network_ranks_photographs_it_has_never_seen() -> None:
    scorer, (given, wanted) = rt.load("zoo:iqa"), ([], [])
    for name in ("astronaut", "chelsea", "coffee"):
        image = photograph(name)
        for kind in kinds():
            for level in range(1, LEVELS + 1):
                spoilt = distort(image, kind, level, torch.Generator().manual_seed(level))
                given.append(scorer.logits(torch.cat([image, spoilt])[None]).detach())
                wanted.append(structural_similarity(image, spoilt))
    assert RECIPE.metrics(torch.cat(given), torch.tensor(wanted))["rank_correlation"] >= 0.9


# ----------------------------------------------------------------------------------------- the patch maps
def maps_by_hand(net: DIQaM, images: Tensor, places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Plain and contrastive maps of `compare_quality`, a patch and a Q at a time, by the gradient of the loss."""
    height, width = images.shape[2:]
    canvas = functional.pad(images, (0, 64, 0, 64))
    sums, counts = torch.zeros(1 + len(Q), height + 64, width + 64), torch.zeros(height + 64, width + 64)
    for top, left in places:
        patch = (canvas[:, :, top : top + 32, left : left + 32] - 0.5) / 0.25
        reference, distorted = branch(net, patch[:, :3]).detach(), branch(net, patch[:, 3:]).detach().requires_grad_()
        score, _ = head(net, reference, distorted)
        for index, target in enumerate([score, *((score - q) ** 2 for q in Q)]):
            (gradient,) = torch.autograd.grad(target, distorted, retain_graph=True)
            cam = (gradient.mean((2, 3), keepdim=True) * distorted.detach()).sum(1, keepdim=True)
            tile = functional.interpolate(cam, (32, 32), mode="bilinear", align_corners=False)[0, 0]
            sums[index, top : top + 32, left : left + 32] += tile
        counts[top : top + 32, left : left + 32] += 1
    means = (sums / counts.clamp_min(1))[:, :height, :width]
    return means[0], means[1:]


@pytest.mark.parametrize("border", ["inside", "black"])
def test_patch_maps_are_those_of_a_plain_loop(border: str) -> None:
    images = pair(45, 53).float()
    tops, lefts = ([0, 12, 13], [0, 12, 21]) if border == "inside" else ([0, 12, 24], [0, 12, 24, 36])
    plain, maps = maps_by_hand(network().float(), images, [(top, left) for top in tops for left in lefts])
    scorer = model()
    scorer.module.float()
    why, rather = compare_quality(scorer, images[0, :3], images[0, 3:], Q, stride=12, border=border)  # type: ignore[arg-type]
    assert why.diagnostics["patches"] == str(len(tops) * len(lefts))
    scale = plain.abs().max().item()
    torch.testing.assert_close(why.attribution[0], plain, atol=1e-4 * scale, rtol=0)
    torch.testing.assert_close(rather.attribution[0], maps, atol=1e-4 * maps.abs().max().item(), rtol=0)
    torch.testing.assert_close(rather.logits, scorer.logits(images).detach())
    assert torch.equal(rather.images, images[:, 3:])


def test_the_counts_of_the_paper() -> None:
    from ratherthan.replication.quality import places

    counts = {
        border: len(places(384, 32, 4, border)) * len(places(512, 32, 4, border))  # type: ignore[arg-type]
        for border in ("inside", "black")
    }
    assert counts == {"inside": 10_769, "black": 12_065}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distorted": torch.rand(3, 48, 40)}, "of one size, not 40 x 40 and 48 x 40"),
        ({"reference": torch.rand(3, 30, 30), "distorted": torch.rand(3, 30, 30)}, "at least 32 x 32"),
        ({"reference": torch.rand(2, 3, 40, 40)}, "one image of three channels"),
        ({"stride": 0}, "stride is 1 to 32"),
        ({"border": "mirror"}, "unknown border"),
        ({"method": "ixg"}, "one of a layer"),
        ({"foil": []}, "at least one value"),
    ],
)
def test_what_cannot_be_mapped(change: dict[str, object], message: str) -> None:
    given = {"reference": torch.rand(3, 40, 40), "distorted": torch.rand(3, 40, 40), **change}
    with pytest.raises(InputError, match=message) as caught:
        compare_quality(model(), **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_classifier_has_no_patch_maps_and_nothing_is_left_behind() -> None:
    classifier = rt.Model(nn.Sequential(nn.Conv2d(6, 2, 3), nn.Flatten()))
    with pytest.raises(ModelError, match="need one value"):
        compare_quality(classifier, torch.rand(3, 40, 40), torch.rand(3, 40, 40))
    scorer = model()
    scorer.module.train()
    compare_quality(scorer, torch.rand(3, 40, 40), torch.rand(3, 40, 40), stride=8)
    assert all(each.training and not each._forward_hooks for each in scorer.module.modules())
    assert all(parameter.grad is None for parameter in scorer.module.parameters())


def test_two_colours_tell_what_holds_the_score_up_and_down() -> None:
    from dataclasses import replace

    why, rather = compare_quality(model(), torch.rand(3, 40, 40), torch.rand(3, 40, 40), (0.0, 1.0), stride=8)
    ramp = torch.linspace(-1, 1, 40).expand(1, 2, 40, 40)
    rather = replace(rather, attribution=ramp, images=torch.full((1, 3, 40, 40), 0.5), logits=torch.tensor([[0.5]]))
    sheet = quality_figure([(why, rather)])
    pictures = [np.asarray(axes.images[0].get_array()) for axes in sheet.axes if axes.images]
    below, above = pictures[-2] / pictures[-2].max(), pictures[-1] / pictures[-1].max()
    for drawn in (below, above):
        assert np.ptp(drawn[:, :20], axis=2).max() < 0.02  # what speaks for Q is not coloured
    assert above[0, -1].argmax() == 0  # orange
    assert below[0, -1].argmin() == 0  # green
    assert "rather than 1?" in sheet.axes[-1].get_title()


@pytest.mark.parametrize("name", ["iqa", "iqa_weighted"])
def test_zoo_entries_are_regressors_of_pairs(name: str) -> None:
    entry = zoo.get(name)
    assert (entry.channels, entry.output, entry.recipe) == (6, "value", RECIPE)
    assert (entry.build().weight is not None) == (name == "iqa_weighted")
