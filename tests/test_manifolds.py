"""The generative models of the zoo: architectures of the papers, loss terms in closed form, training, sheets."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from ratherthan import InputError, Manifold, ModelError, ZooEntry, data, train, zoo
from ratherthan.app.cli import app
from ratherthan.replication.cdeepex import AdversarialRecipe, Adversaries, Generator, critic, dense_vae
from ratherthan.replication.cem_maf import DIPRecipe, correlation, separation
from ratherthan.zoo.concepts import effects, garment_of
from ratherthan.zoo.training.harness import write_sheets
from ratherthan.zoo.vae import VAE, convolutional_vae, divergence

MANIFOLDS = {name: zoo.get(name, generative=True) for name in zoo.names(generative=True)}


def linear_shapes(module: nn.Module) -> list[tuple[int, int]]:
    return [(each.in_features, each.out_features) for each in module.modules() if isinstance(each, nn.Linear)]


def test_the_autoencoders_have_the_papers_layers() -> None:
    paper = MANIFOLDS["mnist_vae_64"].build()
    assert linear_shapes(paper.encoder) == [(4096, 784), (784, 400), (400, 240)]  # mean and log variance of 120
    assert linear_shapes(paper.decoder) == [(120, 400), (400, 784), (784, 4096)]
    garments = MANIFOLDS["fashion_mnist_dip"].build()
    assert linear_shapes(garments.encoder) == [(784, 1200), (1200, 1200), (1200, 32)]
    assert linear_shapes(garments.decoder) == [(16, 1200), (1200, 1200), (1200, 1200), (1200, 784)]
    lesions = MANIFOLDS["ham10000_dip"].build()
    convolutions = [each for each in lesions.encoder if isinstance(each, nn.Conv2d)]
    assert [each.out_channels for each in convolutions] == [32, 32, 64, 64]
    assert {(each.kernel_size, each.stride) for each in convolutions} == {((4, 4), (2, 2))}
    assert linear_shapes(lesions.encoder) == [(64 * 8 * 8, 256), (256, 64)]


def test_the_classifiers_are_the_papers() -> None:
    paper = zoo.get("mnist_paper_64").build()
    kinds = [type(each).__name__ for each in [*paper.features, *paper.head]]
    assert kinds == [
        "Conv2d", "MaxPool2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU", "Dropout2d", "Flatten", "Linear", "Linear",
    ]  # fmt: skip
    assert linear_shapes(paper) == [(3380, 50), (50, 10)]
    convolutions = [each for each in paper.modules() if isinstance(each, nn.Conv2d)]
    assert [tuple(each.weight.shape) for each in convolutions] == [(10, 1, 5, 5), (20, 10, 5, 5)]
    assert paper(torch.rand(2, 1, 64, 64)).shape == (2, 10)
    for name, classes in (("fashion_clothes", 6), ("fashion_shoes", 3)):
        garments = zoo.get(name).build()
        assert linear_shapes(garments) == [(1024, 1024), (1024, classes)]
        filters = [tuple(each.weight.shape) for each in garments.modules() if isinstance(each, nn.Conv2d)]
        assert filters == [(32, 1, 5, 5), (64, 32, 5, 5)]


def test_the_generator_is_the_papers() -> None:
    layers = [each for each in MANIFOLDS["fashion_mnist_gan_64"].build().modules() if isinstance(each, nn.Module)]
    up = [each for each in layers if isinstance(each, nn.ConvTranspose2d)]
    assert [(each.in_channels, each.out_channels) for each in up] == [
        (200, 512), (512, 256), (256, 128), (128, 64), (64, 1),
    ]  # fmt: skip
    shape = {(each.kernel_size[0], each.stride[0], each.padding[0], each.bias is None) for each in up}
    assert shape == {(4, 1, 0, True), (4, 2, 1, True)}
    assert [each.num_features for each in layers if isinstance(each, nn.BatchNorm2d)] == [512, 256, 128, 64]
    assert isinstance(layers[-1], nn.Tanh)


@pytest.mark.parametrize("entry", MANIFOLDS.values(), ids=MANIFOLDS)
def test_every_manifold_makes_images_of_its_entry(entry: ZooEntry, tmp_path: Path) -> None:
    network = entry.build().eval()
    low, high = entry.scale
    manifold = Manifold(network, network.latents, scale=entry.scale)
    made = manifold.decode(3 * torch.randn(2, network.latents))
    assert made.shape == (2, entry.channels, *entry.image_size)
    assert 0 <= made.min() < made.max() <= 1
    assert not manifold.can_encode or manifold.encode(made).shape == (2, network.latents)
    assert isinstance(network, VAE) or (low, high) == (-1, 1)


@pytest.mark.parametrize("size", [(28, 28), (9, 14), (45, 60)])
def test_convolutions_fit_any_size(size: tuple[int, int]) -> None:
    network = convolutional_vae(5, image_size=size, channels=3)
    assert network.decode(network.encode(torch.rand(2, 3, *size))).shape == (2, 3, *size)


def test_latents_are_drawn_while_training_and_are_their_mean_else() -> None:
    network, images = convolutional_vae(5).eval(), torch.rand(2, 1, 28, 28)
    log_odds = network(images)[:, :784].view_as(images)
    assert torch.equal(network(images), network(images))
    torch.testing.assert_close(log_odds.sigmoid(), network.decode(network.encode(images)))
    network.train()
    assert not torch.equal(network(images), network(images))


class Grey(nn.Module):
    """Whatever the latents, a picture of one grey, in the middle between a black of -1 and a white of 1."""

    latents = 2

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(latents), 1, 8, 8)


def test_sheets_show_the_greys_of_models_whose_black_is_not_zero(tmp_path: Path) -> None:
    entry = ZooEntry("grey", Grey, image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,), generative=True)
    for path in write_sheets(entry, Grey(), torch.rand(2, 1, 8, 8), tmp_path / "grey.safetensors"):
        shown = np.asarray(Image.open(path).convert("L"))
        inked = shown[shown < 250]  # what is not paper
        assert np.median(inked) == pytest.approx(127.5, abs=2)


def test_samples_of_a_batch_do_not_touch_in_evaluation_mode() -> None:
    generator = Generator(8, 4, 12).eval()
    latents = torch.randn(3, 8)
    assert torch.allclose(generator(latents)[1:2], generator(latents[1:2]), atol=1e-6)


@pytest.mark.parametrize("aggregated", [False, True])
def test_the_decorrelation_of_dip_vae_in_closed_form(aggregated: bool) -> None:
    angle = torch.arange(4) * math.pi / 2
    means = torch.stack([2 * angle.cos(), angle.cos() + angle.sin(), torch.zeros(4)], 1)
    log_variance = torch.tensor([0.5, 0.25, 2.0]).log().expand(4, 3)
    # four points a quarter turn apart: covariances of (2 cos, cos + sin, 0) are [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    diagonal = [2.5, 1.25, 2.0] if aggregated else [2.0, 1.0, 0.0]
    expected = 3 * (2 * 1.0**2) + 7 * sum((value - 1) ** 2 for value in diagonal)
    recipe = DIPRecipe("mnist", 1, 1.0, aggregated=aggregated, off_diagonal=3, diagonal=7, deviation=0.5)
    assert recipe.decorrelation(means, log_variance).item() == pytest.approx(expected, rel=1e-5)
    images = torch.full((4, 1, 2, 2), 0.75)
    output = torch.cat([torch.zeros(4, 4), means, log_variance], 1)  # log-odds 0: every pixel is 0.5, off by 0.25
    bound = 4 * 0.25**2 / (2 * 0.5**2) + divergence(means, log_variance).mean().item()
    assert recipe.loss(output, images).item() == pytest.approx(bound + expected, rel=1e-5)


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(6, 3), torch.randn(6, 3)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(divergence(mean, log_variance), expected, atol=1e-5)


def test_correlation_counts_pairs_of_latents_that_vary() -> None:
    a, b = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    b = b - (a @ b) / (a @ a) * a
    latents = torch.stack([a, b, 0.6 * a + 0.8 * b, 0.01 * b], 1)
    pairs = torch.corrcoef(latents[:, :3].T).abs()
    assert correlation(latents) == pytest.approx((pairs[0, 1] + pairs[0, 2] + pairs[1, 2]).item() / 3, abs=1e-5)
    assert correlation(latents[:, :1]) == 0.0


def test_separation_tells_one_latent_per_property_from_two() -> None:
    numbers = torch.Generator().manual_seed(0)
    sides = torch.randint(1, 15, (400, 2), generator=numbers)
    images = torch.zeros(400, 1, 40, 40)
    for image, (rows, columns) in zip(images, sides.tolist(), strict=True):
        image[0, 20 - rows : 20 + rows, 20 - columns : 20 + columns] = 1
    area = sides.prod(1, keepdim=True)
    own = torch.cat([sides, area], 1).float()
    twice = torch.cat([own, own], 1)
    assert separation(own, images) > 0.3
    assert separation(twice, images) == pytest.approx(0, abs=1e-9)


def test_one_step_of_each_adversary_by_hand() -> None:
    torch.manual_seed(0)
    recipe = AdversarialRecipe("mnist", 1, 0.0, critic_steps=2, penalty=10.0)
    pair = Adversaries(recipe, Generator(4, 2, 8))
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    torch.manual_seed(3)
    distance = pair.step(images, images, 0)
    torch.manual_seed(3)
    made = pair.network(torch.randn(5, 4)).detach()
    assert distance == pytest.approx((pair.critic(images).mean() - pair.critic(made).mean()).item(), abs=1e-6)
    share = torch.rand(5, 1, 1, 1)
    between = (share * images + (1 - share) * made).requires_grad_()
    slopes = [torch.autograd.grad(pair.critic(one[None]).sum(), between, create_graph=True)[0] for one in between]
    norms = torch.stack([slope.norm() for slope in slopes])
    loss = 10 * (norms - 1).square().mean() - pair.critic(images).mean() + pair.critic(made).mean()
    wanted = torch.autograd.grad(loss, pair.critic[0].weight)[0]
    assert torch.allclose(pair.critic[0].weight.grad, wanted, atol=1e-5)
    assert all(parameter.grad is None for parameter in pair.network.parameters())  # its turn is every second batch
    pair.step(images, images, 1)
    assert all(parameter.grad is not None for parameter in pair.network.parameters())


def test_the_critic_mirrors_the_generator() -> None:
    generator = Generator(200, 32, 28)
    assert critic(generator)(generator(torch.randn(3, 200))).shape == (3, 1)


def drawn_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = np.zeros((20, 24, 3), np.uint8)
        top, left = random.integers(0, 12, 2)
        pixels[top : top + 8, left : left + 8] = random.integers(100, 255, 3)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def test_a_folder_of_images_becomes_a_manifold(tmp_path: Path) -> None:
    folder, out = drawn_images(tmp_path / "squares", 60), tmp_path / "own.safetensors"
    command = ["train", "zoo:vae", "--data", str(folder), "--out", str(out), "--epochs", "3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    manifold = Manifold.load("zoo:vae", weights=out)
    assert manifold.decode(torch.zeros(1, 32)).shape == (1, 3, 20, 24)
    card = json.loads(out.with_suffix(".json").read_text())
    assert (card["training_images"], card["metrics"]["test"]["images"]) == (54, 6)
    assert card["command"].endswith("--epochs 3 --size 20x24")
    for sheet in ("samples", "traversal"):
        assert np.asarray(Image.open(out.with_suffix(f".{sheet}.png")).convert("L")).std() > 5
    small = train("zoo:vae", folder, tmp_path / "small", epochs=1, image_size=(16, 12))
    assert Manifold.load("zoo:vae", weights=small).decode(torch.zeros(1, 32)).shape == (1, 3, 16, 12)


def test_what_own_images_need(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name the folder"):
        train("zoo:vae", None, tmp_path)
    with pytest.raises(InputError, match="holds 1 images"):
        train("zoo:vae", drawn_images(tmp_path / "one", 1), tmp_path)
    with pytest.raises(InputError, match="only zoo:vae takes one"):
        train("zoo:mnist_vae", tmp_path, tmp_path, image_size=(64, 64))
    train("zoo:vae", drawn_images(tmp_path / "two", 11), tmp_path / "w.safetensors", epochs=1)
    torch.save(load_file(tmp_path / "w.safetensors"), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="does not tell its image size"):
        Manifold.load("zoo:vae", weights=tmp_path / "w.pt")


def test_a_stopped_adversarial_training_ends_at_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_train import write_mnist

    root = write_mnist(tmp_path)
    recipe = AdversarialRecipe("mnist", 3, 1e-3, 100, critic_steps=2)
    small = replace(MANIFOLDS["mnist_gan"], build=partial(Generator, 6, 2, 28), recipe=recipe)
    monkeypatch.setitem(zoo.ZOO, "mnist_gan", small)
    whole = load_file(train("mnist_gan", root, tmp_path / "whole"))

    def stop(done: int, total: int) -> None:
        if done == 2 * total // 3 + 2:  # the second batch of the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("mnist_gan", root, tmp_path / "stopped", progress=stop)
    resumed = load_file(train("mnist_gan", root, tmp_path / "stopped"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_dense_layers_stand_between_pixels_and_latents() -> None:
    assert linear_shapes(dense_vae()) == [(784, 400), (400, 240), (120, 400), (400, 784)]


@pytest.mark.parametrize("name", [entry.name for entry in MANIFOLDS.values() if entry.weights])
def test_shipped_manifolds_rebuild_held_out_images(data_root: Path, name: str) -> None:
    manifold = Manifold.load(f"zoo:{name}")
    test = data.load(name.removesuffix("_vae"), data_root, "test")
    images = torch.stack([test[index][0] for index in range(0, len(test), 100)])
    with torch.no_grad():
        error = (manifold.decode(manifold.encode(images)) - images).square().mean().sqrt()
    assert error < 0.13  # the mean of these images is off by twice as much


def test_training_measures_what_the_latents_do(data_root: Path, tmp_path: Path) -> None:
    out = train("zoo:fashion_mnist_vae", data_root, tmp_path, epochs=1, limit=8)
    card = json.loads(out.with_suffix(".json").read_text())
    found = Manifold.load("fashion_mnist_vae", out).effects
    assert list(found) == list(card["effects"]) == ["sides", "waist", "length", "heel", "mass"]
    torch.testing.assert_close(found["mass"].strength, torch.tensor(card["effects"]["mass"][1], dtype=torch.float64))
    test = data.load("fashion_mnist", data_root, "test").subset(range(8))
    manifold = Manifold.load("fashion_mnist_vae", out)
    images = torch.stack([image for image, _ in test])
    again = effects(manifold, manifold.encode(images).detach(), garment_of)
    torch.testing.assert_close(again["mass"].correlation.nan_to_num(0), found["mass"].correlation, atol=2e-3, rtol=0)
    assert "What its latents move" in out.with_suffix(".md").read_text()
