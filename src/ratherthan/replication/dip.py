"""DIP-VAEs, the disentangled autoencoders of CEM-MAF (Tables 3 and 4), and two measures of disentanglement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ratherthan.replication.cdeepex import dense_vae
from ratherthan.zoo.concepts import garment_of, shape_of
from ratherthan.zoo.registry import ZooEntry, grey_entry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation
from ratherthan.zoo.vae import AutoencoderRecipe, convolutional_vae, split_output


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
        _, mean, log_variance = split_output(logits, labels)
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
        _, mean, _ = split_output(logits, labels)
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


_garments = DIPRecipe("fashion_mnist", 6, 1e-3, 256, 0.0, warmup=0.1)
_flipped = Augmentation(flips="hv")
_lesions = DIPRecipe("ham10000", 20, 1e-3, 64, 0.0, 0.1, _flipped, off_diagonal=100.0, deviation=0.3)
_grey = partial(grey_entry, generative=True, measure=garment_of)
_colour = partial(ZooEntry, mean=(0.0,) * 3, std=(1.0,) * 3, generative=True, measure=shape_of)
_table_4 = partial(dense_vae, (1200, 1200), 16, (1200, 1200, 1200))
# Table 3 gives one channel, but the lesions and their classifier are in colour
_table_3 = partial(convolutional_vae, 32, (32, 32, 64, 64), (256,), image_size=(128, 128), channels=3)

register_zoo_model(
    _grey("fashion_mnist_dip", _table_4, recipe=_garments),
    _grey("fashion_mnist_dip2", _table_4, recipe=replace(_garments, aggregated=True, diagonal=10.0)),
    _colour("ham10000_dip", _table_3, image_size=(128, 128), recipe=_lesions),
)
