"""Variational autoencoders: generative models of images whose latent space a counterfactual moves in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ratherthan import data
from ratherthan.zoo.recipes import RECIPES, Augmentation, Recipe


class VAE(nn.Module):
    """A variational autoencoder (Kingma and Welling, 2013) with a Gaussian posterior and Bernoulli pixels.

    Args:
        encoder: Images (N, C, H, W) in [0, 1] to (N, 2 latents): mean and log variance of the posterior.
        decoder: Latents (N, latents) to the log-odds of the pixels (N, C, H, W).
        latents: How many there are.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latents: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.latents = encoder, decoder, latents

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the posterior: (N, C, H, W) to (N, latents)."""
        return self._posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """The mean image: (N, latents) to (N, C, H, W) in [0, 1]."""
        return torch.sigmoid(self.decoder(latents))

    def forward(self, images: Tensor) -> Tensor:
        """What training needs, as one tensor: log-odds of the pixels, posterior mean and log variance, (N, ...).

        In training mode the latents are drawn from the posterior, else they are its mean.
        """
        mean, log_variance = self._posterior(images)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        log_odds = self.decoder(mean + noise * (log_variance / 2).exp())
        return torch.cat([log_odds.flatten(1), mean, log_variance], 1)

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, log_variance


def convolutional_vae(
    latents: int = 32,
    widths: Sequence[int] = (),
    hidden: Sequence[int] = (),
    *,
    image_size: tuple[int, int] = (28, 28),
    channels: int = 1,
) -> VAE:
    """An autoencoder of strided convolutions, each of which halves the grid, and of their reverse.

    Args:
        latents: Numbers in a latent.
        widths: Channels of the convolutions; by default 16, 32, 64, 64 ... until the grid is at most 4 cells long.
        hidden: Sizes of fully connected layers between the last grid and the latents.
        image_size: Height and width of the images.
        channels: 1 or 3.
    """
    steps = max(1, math.ceil(math.log2(max(image_size) / 4)))
    widths = [channels, *(widths or [min(16 * 2**step, 64) for step in range(steps)])]
    grids, down, up = [image_size], list[nn.Module](), list[nn.Module]()
    for given, made in pairwise(widths):
        rows, columns = grids[-1]
        kernel = 4 - rows % 2, 4 - columns % 2  # what halves an odd side, rounding up, is three wide
        down += [nn.Conv2d(given, made, kernel, 2, 1), nn.ReLU()]
        up = [nn.ConvTranspose2d(made, given, kernel, 2, 1), nn.ReLU(), *up]
        grids.append(((rows + 1) // 2, (columns + 1) // 2))
    grid = widths[-1], *grids[-1]
    cells = math.prod(grid)
    encoder = [*down, nn.Flatten(), *_dense(cells, *hidden, 2 * latents)]
    decoder = [*_dense(latents, *reversed(hidden), cells), nn.ReLU(), nn.Unflatten(1, grid), *up[:-1]]
    return VAE(nn.Sequential(*encoder), nn.Sequential(*decoder), latents)


def dense_vae(
    encoder: Sequence[int] = (400,), latents: int = 120, decoder: Sequence[int] = (400,), side: int = 28
) -> VAE:
    """An autoencoder of fully connected layers, for grey square images.

    The one of the CDeepEx paper, section 6.1, is `dense_vae((784, 400), 120, (400, 784), 64)`: 4096-784-400-120. The
    paper enlarges the digits to 64 x 64; the default leaves its first layer out, which undoes that: 784-400-120.

    Args:
        encoder: Sizes of the layers between pixels and latents.
        latents: Numbers in a latent.
        decoder: Sizes of the layers between latents and pixels.
        side: Height and width of the images.
    """
    return VAE(
        nn.Sequential(nn.Flatten(), *_dense(side**2, *encoder, 2 * latents)),
        nn.Sequential(*_dense(latents, *decoder, side**2), nn.Unflatten(1, (1, side, side))),
        latents,
    )


def _dense(*sizes: int) -> list[nn.Module]:
    layers = list[nn.Module]()
    for given, made in pairwise(sizes):
        layers += [nn.ReLU(), nn.Linear(given, made)]
    return layers[1:]


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe):
    """Train on the images themselves: the target of an image is the image."""

    def examples(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, training: bool
    ) -> tuple[Tensor, Tensor]:
        """The images, twice."""
        seen = super().examples(images, labels, generator, training)[0]
        return seen, seen

    def about(self, classes: Sequence[str]) -> str:
        """What it generates."""
        return f"a variational autoencoder of images of {len(classes)} classes: {', '.join(classes)}"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The negative evidence lower bound in nats per image."""
        log_odds, mean, log_variance = _parts(logits, labels)
        return self.misfit(log_odds, labels) + divergence(mean, log_variance).mean()

    def misfit(self, log_odds: Tensor, images: Tensor) -> Tensor:
        """The negative log-likelihood of the pixels, as Bernoulli variables, in nats per image."""
        return functional.binary_cross_entropy_with_logits(log_odds, images, reduction="sum") / len(images)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Root mean square error of the pixels of the posterior mean's image, and the divergence in nats."""
        log_odds, mean, log_variance = _parts(logits, labels)
        error = (log_odds.sigmoid() - labels).square().mean().sqrt()
        used = (mean.var(0, correction=0) > 0.05).sum()
        return {
            "pixel_error": error.item(),
            "divergence": divergence(mean, log_variance).mean().item(),
            "latents_used": used.item(),
        }


def _parts(output: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pixels = images[0].numel()
    mean, log_variance = output[:, pixels:].chunk(2, 1)
    return output[:, :pixels].reshape(images.shape), mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of posteriors (N, latents) from the standard normal distribution, (N,) nats (Kingma and Welling, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


@dataclass(frozen=True)
class DIPRecipe(AutoencoderRecipe):
    """Train a DIP-VAE (Kumar, Sattigeri and Balakrishnan, 2018, section 3): a VAE with uncorrelated latents.

    The negative evidence lower bound, with Gaussian pixels ("mse loss", Table 4 of CEM-MAF), plus
    off_diagonal * sum_{i != j} C_ij^2 + diagonal * sum_i (C_ii - 1)^2, where C (estimated on each batch) is the
    covariance of the posterior means for DIP-VAE-I, and of the aggregated posterior, which adds the mean of the
    posterior variances to its diagonal, for DIP-VAE-II.

    Attributes:
        aggregated: DIP-VAE-II instead of I.
        off_diagonal: Weight of the squared covariances.
        diagonal: Weight of the squared distance of the variances from 1; Kumar et al. take ten times `off_diagonal` for
            DIP-VAE-I, and the same for II.
        deviation: Standard deviation of the pixels around the decoded image: what weighs pixels against latents.
    """

    aggregated: bool = False
    off_diagonal: float = 10.0
    diagonal: float = 100.0
    deviation: float = 0.1

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The bound and the two terms on the covariance."""
        _, mean, log_variance = _parts(logits, labels)
        return super().loss(logits, labels) + self.decorrelation(mean, log_variance)

    def misfit(self, log_odds: Tensor, images: Tensor) -> Tensor:
        """The negative log-likelihood of the pixels, as Gaussian variables, up to a constant; nats per image."""
        return (log_odds.sigmoid() - images).square().sum() / (2 * self.deviation**2 * len(images))

    def decorrelation(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The two terms, from posteriors (N, latents)."""
        covariance = mean.T.cov(correction=0)
        if self.aggregated:
            covariance = covariance + log_variance.exp().mean(0).diag()
        variances = covariance.diagonal()
        mixed = covariance.square().sum() - variances.square().sum()
        return self.off_diagonal * mixed + self.diagonal * (variances - 1).square().sum()

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Those of every autoencoder, and two of disentanglement: `correlation` and `separation`."""
        _, mean, _ = _parts(logits, labels)
        found = {"correlation": correlation(mean), "separation": separation(mean, labels)}
        return super().metrics(logits, labels) | found


def correlation(latents: Tensor) -> float:
    """How entangled latents are: the mean of abs(corr(z_i, z_j)) over all i != j.

    It needs no labels, and is 0 where the posterior means are uncorrelated, as DIP-VAE wants them. Latents that hardly
    vary (variance up to 0.05) are not counted.

    Args:
        latents: (N, latents) posterior means.
    """
    used = latents[:, latents.var(0, correction=0) > 0.05].double()
    count = used.shape[1]
    return ((used.T.corrcoef().abs().sum() - count) / (count * (count - 1))).item() if count > 1 else 0.0


def separation(latents: Tensor, images: Tensor) -> float:
    """Whether single latents hold single properties: the SAP score of Kumar et al. (2018, section 4), without labels.

    The mean over properties y of R^2_first - R^2_second, the two largest squared correlations of a latent with y. The
    properties are measured on the images: brightness, amount of what differs from the ground (the median of the
    border), and its spread across and down.

    Args:
        latents: (N, latents) posterior means.
        images: (N, C, H, W) what they were encoded from.

    Returns:
        1 where each property is one latent's alone, about 0 where two tell as much of it.
    """
    z, y = (values.double() - values.double().mean(0) for values in (latents, _properties(images)))
    scale = z.square().sum(0)[:, None] * y.square().sum(0)
    best = ((z.T @ y).square() / scale.clamp_min(1e-12)).topk(2, dim=0).values
    return (best[0] - best[1]).mean().item()


def _properties(images: Tensor) -> Tensor:
    grey = images.mean(1)
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1)
    matter = (grey - border.median(1).values[:, None, None]).abs()
    amount = matter.sum((1, 2))
    spreads = []
    for profile in (matter.sum(1), matter.sum(2)):
        place = torch.arange(profile.shape[1], device=images.device).float()
        share = profile / amount.clamp_min(1e-6)[:, None]
        centre = (share * place).sum(1, keepdim=True)
        spreads.append((share * (place - centre).square()).sum(1).sqrt())
    return torch.stack([grey.mean((1, 2)), amount, *spreads], 1)


@dataclass(frozen=True)
class OwnImages(AutoencoderRecipe):
    """Train on a folder of images; every tenth is held out.

    Attributes:
        image_size: Height and width that they are brought to; None: those of the first image.
        channels: 1 or 3; None: as the first image.
    """

    image_size: tuple[int, int] | None = None
    channels: int | None = None

    def open(self, root: str | Path | None, split: str) -> data.Dataset:
        """All images below the folder `root`, without those held out, or only those."""
        whole = data.images(root)
        return whole.subset([index for index in range(len(whole)) if (index % 10 == 1) == (split == "test")])

    def about(self, classes: Sequence[str]) -> str:
        """What it generates."""
        return f"a variational autoencoder of the images in {classes[0]}"


RECIPES["mnist_vae"] = AutoencoderRecipe("mnist", 12, 3e-3, 128, 0.0, warmup=0.1)
RECIPES["mnist_biased_vae"] = AutoencoderRecipe("mnist_biased", 6, 3e-3, 128, 0.0, warmup=0.1)
RECIPES["mnist_squares_vae"] = AutoencoderRecipe(
    "mnist_biased", 3, 3e-3, 128, 0.0, warmup=0.1, train="train_plain+train_marked", tests=("plain", "marked")
)
RECIPES["fashion_mnist_vae"] = AutoencoderRecipe("fashion_mnist", 8, 3e-3, 128, 0.0, warmup=0.1)
RECIPES["fashion_mnist_dip"] = _DIP = DIPRecipe("fashion_mnist", 6, 1e-3, 256, 0.0, warmup=0.1)
RECIPES["fashion_mnist_dip2"] = replace(_DIP, aggregated=True, diagonal=10.0)
RECIPES["ham10000_dip"] = DIPRecipe(
    "ham10000", 20, 1e-3, 64, 0.0, warmup=0.1, augmentation=Augmentation(flips="hv"), off_diagonal=100.0, deviation=0.3
)
RECIPES["vae"] = OwnImages("images", 60, 2e-3, 64, 0.0, warmup=0.1)
