"""Variational autoencoders: generative models of images whose latent space a counterfactual moves in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ratherthan import data
from ratherthan.zoo.concepts import garment_of
from ratherthan.zoo.registry import SHIPPED, grey_entry, register_zoo_model
from ratherthan.zoo.training.recipes import Examples, Recipe


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
        return self.encoder(images).chunk(2, 1)[0]  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """The mean image: (N, latents) to (N, C, H, W) in [0, 1]."""
        return torch.sigmoid(self.decoder(latents))

    def forward(self, images: Tensor) -> Tensor:
        """What training needs, as one tensor: log-odds of the pixels, posterior mean and log variance, (N, ...).

        In training mode the latents are drawn from the posterior, else they are its mean.
        """
        mean, log_variance = self.encoder(images).chunk(2, 1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        log_odds = self.decoder(mean + noise * (log_variance / 2).exp())
        return torch.cat([log_odds.flatten(1), mean, log_variance], 1)


def convolutional_vae(
    latents: int = 32, widths: Sequence[int] = (), hidden: Sequence[int] = (), *,
    image_size: tuple[int, int] = (28, 28), channels: int = 1,
) -> VAE:  # fmt: skip
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
    (rows, columns), down, up = image_size, list[nn.Module](), list[nn.Module]()
    for given, made in pairwise(widths):
        kernel = 4 - rows % 2, 4 - columns % 2  # what halves an odd side, rounding up, is three wide
        down += [nn.Conv2d(given, made, kernel, 2, 1), nn.ReLU()]
        up = [nn.ConvTranspose2d(made, given, kernel, 2, 1), nn.ReLU(), *up]
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    grid = widths[-1], rows, columns
    encoder = [*down, nn.Flatten(), *dense_layers(math.prod(grid), *hidden, 2 * latents)]
    into_grid = [*dense_layers(latents, *reversed(hidden), math.prod(grid)), nn.ReLU(), nn.Unflatten(1, grid)]
    return VAE(nn.Sequential(*encoder), nn.Sequential(*into_grid, *up[:-1]), latents)


def dense_layers(*sizes: int) -> Sequence[nn.Module]:
    """Linear maps of these sizes, with a ReLU between each two."""
    return [layer for given, made in pairwise(sizes) for layer in (nn.ReLU(), nn.Linear(given, made))][1:]


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe):
    """Train on the images themselves: the target of an image is the image."""

    about = "a variational autoencoder of images of {count} classes: {names}"

    def examples(self, images: Tensor, labels: Tensor, generator: torch.Generator, training: bool) -> Examples:
        """The images, twice."""
        seen = super().examples(images, labels, generator, training)[0]
        return seen, seen

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The negative evidence lower bound in nats per image."""
        log_odds, mean, log_variance = split_output(logits, labels)
        return self.misfit(log_odds, labels) + divergence(mean, log_variance).mean()

    def misfit(self, log_odds: Tensor, images: Tensor) -> Tensor:
        """The negative log-likelihood of the pixels, as Bernoulli variables, in nats per image."""
        return nn.functional.binary_cross_entropy_with_logits(log_odds, images, reduction="sum") / len(images)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Root mean square error of the pixels of the posterior mean's image, and the divergence in nats."""
        log_odds, mean, log_variance = split_output(logits, labels)
        error = (log_odds.sigmoid() - labels).square().mean().sqrt()
        used = (mean.var(0, correction=0) > 0.05).sum()
        found = {"pixel_error": error, "divergence": divergence(mean, log_variance).mean(), "latents_used": used}
        return {name: value.item() for name, value in found.items()}


def split_output(output: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `VAE.forward` gives, in its three pieces: log-odds shaped as the images, posterior mean and log variance."""
    pixels = images[0].numel()
    mean, log_variance = output[:, pixels:].chunk(2, 1)
    return output[:, :pixels].reshape(images.shape), mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of posteriors (N, latents) from the standard normal distribution, (N,) nats (Kingma and Welling, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


@dataclass(frozen=True)
class OwnImages(AutoencoderRecipe):
    """Train on a folder of images; every tenth is held out."""

    about = "a variational autoencoder of the images in {names}"

    def open(self, root: str | Path | None, split: str) -> data.Dataset:
        """All images below the folder `root`, without those held out, or only those."""
        whole = data.images(root)
        return whole.subset([index for index in range(len(whole)) if (index % 10 == 1) == (split == "test")])


_recipe = partial(AutoencoderRecipe, rate=3e-3, weight_decay=0.0, warmup=0.1)
_entry = partial(grey_entry, build=convolutional_vae, generative=True)

register_zoo_model(
    _entry("mnist_vae", shipped=SHIPPED, recipe=_recipe("mnist", 12)),
    _entry("fashion_mnist_vae", shipped=SHIPPED, recipe=_recipe("fashion_mnist", 8), measure=garment_of),
    _entry("vae", recipe=OwnImages("images", 60, 2e-3, 64, 0.0, warmup=0.1), any_size=True),
)
