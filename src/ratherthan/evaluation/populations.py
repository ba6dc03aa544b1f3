"""What is true of many altered images together: distances of distributions, correlations of changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ratherthan.attribution.forward import ForwardPass
from ratherthan.errors import InputError
from ratherthan.inference import preserve_state
from ratherthan.model import Model

_AT_ONCE = 256


def frechet_distance(made: Tensor, real: Tensor, network: Model | nn.Module, layer: str) -> float:
    """The Frechet distance of two sets of images, in the features of a network that is named.

    With mean m and covariance C of the features, each set taken for a normal distribution:

        |m_made - m_real|^2 + trace(C_made + C_real - 2 (C_made C_real)^(1/2))

    It is a figure of a table, not of a sample, and means something only beside others of the same network, layer and
    number of images: it is biased upwards, the more the fewer there are (real images against real ones are not at 0).
    What is called FID is the same in one layer of one Inception network, of 50,000 images.

    Args:
        made: (N, C, H, W) in image space, e.g. `how.example[how.found]`.
        real: (M, C, H, W), e.g. images of the foils.
        network: Whose features; best one that has no part in what is judged.
        layer: The dotted name of the layer that gives them; of maps the mean over their places is taken.

    Returns:
        The distance, 0 or more.

    Raises:
        InputError: If there are fewer than two images in a set, or the layer gives neither features nor maps.
        LayerError: If there is no such layer.

    Example:
        >>> frechet_distance(how.example[how.found], real, load("zoo:mnist_paper"), "head.2")
    """
    if min(len(made), len(real)) < 2:
        raise InputError(f"{len(made)} and {len(real)} images: a distribution takes two or more")
    (mean, spread), (other, other_spread) = (_moments(_features(Model.wrap(network), layer, x)) for x in (made, real))
    values, vectors = torch.linalg.eigh(spread)
    half = vectors * values.clamp_min(0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(half @ other_spread @ half).clamp_min(0).sqrt().sum()
    distance = (mean - other).square().sum() + spread.trace() + other_spread.trace() - 2 * common
    return float(distance.clamp_min(0))  # which leaves NaN


def _features(model: Model, layer: str, images: Tensor) -> Tensor:
    """(N, D) in float64."""
    with preserve_state(model.module):
        parts = torch.split(images.to(model.device, model.dtype), _AT_ONCE)
        leaves = torch.cat([ForwardPass(model, part).graph(layer).leaf.detach() for part in parts])
    if leaves.ndim not in (2, 4):
        raise InputError(f"{layer} gives {tuple(leaves.shape[1:])} of an image: name a layer of features, or of maps")
    return (leaves if leaves.ndim == 2 else leaves.mean((2, 3))).double().cpu()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


def correlation_difference(before: Any, after: Any, labels: Any, query: int) -> float:
    """How far what changes together in altered images is from what goes together in data (Jeanneret et al., 2022).

    With d the change of the attributes from the images to the answers, and r Pearson's correlation over them:

        sum over attributes i of |r(d_i, d_query) - r(labels_i, labels_query)|

    A correlation that is undefined, as of an attribute that never changes, counts as 0. Low is good only as far as the
    correlations of the data are the ones that are wanted. The attributes of the answers should be told by a network
    that had no part in the search: of a search that is led by attribute functions their own values (`attributes_before`
    and `attributes` of the result) say how well it was led.

    Args:
        before: (N, A) attributes of the images, as numbers or as 0 and 1.
        after: (N, A) those of their answers.
        labels: (M, A) those of a data set.
        query: Which of them the search was to change.

    Returns:
        The difference, from 0 to 2 A.

    Raises:
        InputError: If the shapes do not fit.
    """
    old, new, known = (torch.as_tensor(each).double().cpu() for each in (before, after, labels))
    if not (
        min(len(old), len(known)) > 1
        and known.ndim == 2
        and old.shape == new.shape == (len(old), known.shape[1])
        and 0 <= query < known.shape[1]
    ):
        shapes = ", ".join(str(tuple(each.shape)) for each in (old, new, known))
        raise InputError(
            f"before and after are (N, A) and labels (M, A), N and M above 1, query one of A; not {shapes}, {query}"
        )
    made, real = (torch.corrcoef(each.T).reshape(-1, known.shape[1])[query].nan_to_num() for each in (new - old, known))
    return float((made - real).abs().sum())
