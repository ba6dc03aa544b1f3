"""Variational autoencoders: generative models of images whose latent space a counterfactual moves in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ratherthan.zoo.recipes import RECIPES, Recipe


class VAE(nn.Module):
    """A variational autoencoder (Kingma and Welling, 2013) with a Gaussian posterior and Bernoulli pixels.

    Args:
        encoder: Images (N, C, H, W) in [0, 1] to (N, 2 latents): mean and log variance of the posterior.
        decoder: Latents (N, latents) to the log-odds of the pixels (N, C, H, W).
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

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


def convolutional_vae(latents: int = 32, width: int = 16) -> VAE:
    """A compact autoencoder of 28 x 28 grey images: three strided convolutions each way."""
    encoder = nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 2 * latents),
    )
    decoder = nn.Sequential(
        nn.Linear(latents, 64 * width),
        nn.ReLU(),
        nn.Unflatten(1, (4 * width, 4, 4)),
        nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, 2, 1),
    )
    return VAE(encoder, decoder)


def dense_vae() -> VAE:
    """The MNIST autoencoder of the CDeepEx paper, section 6.1 (4096-784-400-120), at the 28 x 28 pixels of the digits.

    The paper enlarges the digits to 64 x 64; here its first layer, which undoes that, is left out: 784-400-120.
    """
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 240))
    decoder = nn.Sequential(nn.Linear(120, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28)))
    return VAE(encoder, decoder)


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
        misfit = functional.binary_cross_entropy_with_logits(log_odds, labels, reduction="sum") / len(labels)
        return misfit + _divergence(mean, log_variance)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Root mean square error of the pixels of the posterior mean's image, and the divergence in nats."""
        log_odds, mean, log_variance = _parts(logits, labels)
        error = (log_odds.sigmoid() - labels).square().mean().sqrt()
        used = (mean.var(0) > 0.05).sum()
        return {
            "pixel_error": error.item(),
            "divergence": _divergence(mean, log_variance).item(),
            "latents_used": used.item(),
        }


def _parts(output: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pixels = images[0].numel()
    mean, log_variance = output[:, pixels:].chunk(2, 1)
    return output[:, :pixels].reshape(images.shape), mean, log_variance


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of the posteriors from the standard normal distribution, in nats per image (Kingma and Welling, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


RECIPES["mnist_vae"] = AutoencoderRecipe("mnist", 12, 3e-3, 128, 0.0, warmup=0.1)
