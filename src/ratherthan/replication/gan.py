"""Wasserstein generative adversarial networks, shaped like DCGAN, as in section 6.1 of the CDeepEx paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ratherthan.zoo.registry import ZooEntry, register_zoo_model
from ratherthan.zoo.training.recipes import Learner, Recipe


class Generator(nn.Module):
    """Latents (N, latents), standard normal, to images (N, channels, side, side) in [-1, 1].

    The defaults are the paper's: transposed convolutions of 512, 256, 128, 64 channels, each followed by BatchNorm and
    ReLU, and one that ends in tanh. The first makes a grid as long as `side` halved while it is even and at least 4
    remain: 4 for 64, 7 for 28; the others double it. Use it in evaluation mode: BatchNorm in training mode would mix
    the samples of a batch.

    Args:
        latents: Numbers in a latent.
        width: Channels before the last layer; twice as many on each coarser grid.
        side: Height and width of the images, even.
        channels: 1 or 3.
    """

    def __init__(self, latents: int = 200, width: int = 64, side: int = 64, channels: int = 1) -> None:
        super().__init__()
        self.latents = latents
        self.grid, self.widths = side, [channels]
        while self.grid % 2 == 0 and self.grid >= 8:
            self.grid //= 2
            self.widths.insert(0, width * 2 ** (len(self.widths) - 1))
        layers: list[nn.Module] = [nn.Unflatten(1, (latents, 1, 1))]
        layers += [nn.ConvTranspose2d(latents, self.widths[0], self.grid, bias=False)]
        for given, made in pairwise(self.widths):
            layers += [nn.BatchNorm2d(given), nn.ReLU(), nn.ConvTranspose2d(given, made, 4, 2, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        """Draw the images."""
        images: Tensor = self.layers(latents)
        return images


def critic(generator: Generator) -> nn.Sequential:
    """The adversary of a generator, its mirror image without BatchNorm: images in [-1, 1] to scores (N, 1)."""
    layers: list[nn.Module] = []
    for given, made in pairwise(reversed(generator.widths)):
        layers += [nn.Conv2d(given, made, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(generator.widths[0], 1, generator.grid), nn.Flatten())


@dataclass(frozen=True)
class AdversarialRecipe(Recipe):
    """Train a Wasserstein GAN (Arjovsky et al., 2017) with gradient penalty (Gulrajani et al., 2017), by Adam.

    The critic D maximises E[D(x)] - E[D(G(z))] - penalty * E[(|dD/dy| - 1)^2], y at random places between x and G(z);
    the generator G maximises E[D(G(z))].

    Attributes:
        critic_steps: Steps of the critic per step of the generator.
        penalty: Weight of the gradient penalty.
    """

    critic_steps: int = 5
    penalty: float = 10.0

    def learner(self, network: nn.Module) -> Adversaries:
        """The generator and a critic for it."""
        assert isinstance(network, Generator)
        return Adversaries(self, network)

    def about(self, classes: Sequence[str]) -> str:
        """What it generates."""
        return f"a Wasserstein generative adversarial network of images of {len(classes)} classes: {', '.join(classes)}"

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """The critic's estimate of the Wasserstein distance between images and samples, E[D(x)] - E[D(G(z))]."""
        return {"wasserstein_distance": (logits[:, 0] - logits[:, 1]).mean().item()}


class Adversaries(Learner):
    """A generator, its critic, and an optimiser for each."""

    def __init__(self, recipe: AdversarialRecipe, network: Generator) -> None:
        super().__init__(recipe, network)
        self.generator, self.how = network, recipe
        self.critic = critic(network).to(next(network.parameters()).device)
        self.parts["critic"] = self.critic
        for name, module in (("optimiser", network), ("critic_optimiser", self.critic)):
            self.parts[name] = torch.optim.Adam(module.parameters(), lr=recipe.rate, betas=(0.5, 0.9))

    def step(self, images: Tensor, targets: Tensor, batch: int) -> float:
        """One step of the critic, and every so often one of the generator; returns the estimated distance."""
        with torch.no_grad():
            made = self._draw(images)
        real, fake = self.critic(images), self.critic(made)
        distance: Tensor = real.mean() - fake.mean()
        self._descend(self.how.penalty * self._steepness(images, made) - distance, "critic_optimiser")
        if batch % self.how.critic_steps == self.how.critic_steps - 1:
            self._descend(-self.critic(self._draw(images)).mean(), "optimiser")
        return distance.item()

    def outputs(self, images: Tensor) -> Tensor:
        """The scores of images and of as many samples, (N, 2)."""
        return torch.cat([self.critic(images), self.critic(self._draw(images))], 1)

    def _draw(self, like: Tensor) -> Tensor:
        return self.generator.forward(torch.randn(len(like), self.generator.latents, device=like.device))

    def _steepness(self, images: Tensor, made: Tensor) -> Tensor:
        share = torch.rand(len(images), 1, 1, 1, device=images.device)
        between = (share * images + (1 - share) * made).requires_grad_()
        slope: Tensor = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)[0]
        length: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
        return (length - 1).square().mean()


_small = partial(Generator, 200, 32, 28)
_recipe = partial(AdversarialRecipe, epochs=8, rate=4e-4, batch_size=64, warmup=0.0)
_entry = partial(ZooEntry, channels=1, mean=(0.5,), std=(0.5,), generative=True)

register_zoo_model(
    _entry("mnist_gan", _small, image_size=(28, 28), recipe=_recipe("mnist")),
    _entry("fashion_mnist_gan", _small, image_size=(28, 28), recipe=_recipe("fashion_mnist")),
    _entry("fashion_mnist_gan_64", Generator, image_size=(64, 64), recipe=_recipe("fashion_mnist")),
)
