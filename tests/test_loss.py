"""The loss contrast for classes: against the authors' procedure written out, for P = Q, and over all foils at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ratherthan as rt
from ratherthan import Explanation, InputError

CLASSES = 5


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 3 * 3, CLASSES)).double().eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def as_published(net: nn.Module, layer: str, image: Tensor, q: int) -> Tensor:
    """contrastive-gradcam, recognition, as its code does it: one image (1, C, H, W), one Q, to (H, W)."""
    kept: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.enable_grad():
        logits = net(image.clone().requires_grad_())
    hook.remove()
    loss = functional.cross_entropy(logits, torch.tensor([q]))
    (gradient,) = torch.autograd.grad(loss, kept[0])
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    cam = functional.interpolate(cam, image.shape[2:], mode="bilinear", align_corners=False).detach()
    return ((cam - cam.min()) / (cam.max() - cam.min()))[0, 0]


@pytest.mark.parametrize("layer", ["1", "3", "4"])
def test_preset_is_the_published_procedure_for_every_foil_fact_included(layer: str) -> None:
    net, batch = network(), images()
    why = rt.explain(net, batch, foil="each", method=rt.GradCAM(layer=layer), contrast="loss")
    drawn = why.heatmap(preset="prabhushankar2020")
    for i in range(len(batch)):
        for q in range(CLASSES):
            expected = as_published(net, layer, batch[i : i + 1], q)
            torch.testing.assert_close(drawn[i, q], expected.nan_to_num(0), atol=1e-10, rtol=1e-10)
    assert (drawn.amax((2, 3)) == 1).any()


def test_preset_on_squeezenet_at_the_authors_layer(data_root: Path) -> None:
    model = rt.load("zoo:squeezenet1_0", weights=data_root / "squeezenet/squeezenet1_0_caffe.safetensors")
    batch = model.preprocess(data_root / "contrastive_examples/cat_dog.png")
    layer = "features.12.expand3x3_activation"
    why = rt.explain(model, batch, foil=[243, 242, 852], method=rt.GradCAM(layer=layer), contrast="loss")
    assert model.inputs.mean is not None
    assert model.inputs.std is not None
    normalised = (batch - torch.tensor(model.inputs.mean).view(-1, 1, 1)) / torch.tensor(model.inputs.std).view(
        -1, 1, 1
    )
    for q, foil in enumerate((243, 242, 852)):
        expected = as_published(model.module, layer, normalised, foil)
        torch.testing.assert_close(why.heatmap("prabhushankar2020")[0, q], expected, atol=2e-3, rtol=0)


def test_asked_with_the_fact_it_shows_what_keeps_it_from_being_surer() -> None:
    net, batch = network(), images()
    fact = net(batch).argmax(1)
    loss = rt.explain(net, batch, foil=fact, contrast="loss", method="gradient")
    weighted = rt.explain(net, batch, fact=fact, contrast="weighted", method="gradient")
    doubt = 1 - loss.probabilities().gather(1, fact[:, None]).view(-1, 1, 1, 1)
    torch.testing.assert_close(loss.attribution, -doubt * weighted.attribution, atol=1e-12, rtol=1e-10)
    assert loss.attribution.abs().max() > 0
    assert "What keeps it from being surer" in str(loss)
    named = rt.explain(net, batch, foil=[int(fact[0])], contrast="loss", method="gradient")
    torch.testing.assert_close(named.attribution[0, 0], loss.attribution[0], atol=1e-12, rtol=1e-10)


def test_loss_is_the_weighted_contrast_for_the_foil_and_does_not_know_the_fact() -> None:
    net, batch = network(), images()
    for q in range(CLASSES):
        loss = rt.explain(net, batch, foil=q, contrast="loss")
        other_fact = rt.explain(net, batch, fact=(q + 1) % CLASSES, foil=q, contrast="loss")
        weighted = rt.explain(net, batch, fact=q, contrast="weighted")
        doubt = 1 - loss.probabilities()[:, q].view(-1, 1, 1)
        torch.testing.assert_close(loss.attribution, -doubt * weighted.attribution, atol=1e-12, rtol=1e-10)
        assert torch.equal(loss.attribution, other_fact.attribution)


@pytest.mark.parametrize("preset", [None, "prabhushankar2020"])
@pytest.mark.parametrize("method", ["gradcam", "ixg"])
def test_mean_and_variance_leave_the_fact_out(preset: str | None, method: str) -> None:
    net, batch = network(), images()
    facts = net(batch).argmax(1).tolist()
    why = rt.explain(net, batch, foil="each", method=method, contrast="loss")
    mean, variance = why.over_foils(preset)  # type: ignore[arg-type]
    assert mean.shape == variance.shape == (3, 10, 10)
    for i, fact in enumerate(facts):
        singles = [
            rt.explain(net, batch[i : i + 1], foil=q, method=method, contrast="loss").heatmap(preset)[0]  # type: ignore[arg-type]
            for q in range(CLASSES)
            if q != fact
        ]
        expected = sum(singles) / len(singles)
        spread = sum((single - expected) ** 2 for single in singles) / len(singles)
        torch.testing.assert_close(mean[i], expected, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(variance[i], spread, atol=1e-12, rtol=1e-9)


def test_mean_and_variance_need_foils_to_be_taken_over() -> None:
    net, batch = network(), images()
    with pytest.raises(InputError, match="axis of foils"):
        rt.explain(net, batch, contrast="loss").over_foils()
    with pytest.raises(InputError, match="axis of foils"):
        rt.explain(net, batch, fact="each", contrast="none").over_foils()
    fact = int(net(batch[:1]).argmax())
    with pytest.raises(InputError, match="no foil but its fact"):
        rt.explain(net, batch[:1], foil=[fact], contrast="loss").over_foils()


def preset_of(attribution: Tensor) -> Tensor:
    why = rt.explain(network(), images(len(attribution)), contrast="none")
    return Explanation(**{**vars(why), "attribution": attribution}).heatmap(preset="prabhushankar2020")


def test_preset_of_maps_without_a_positive_part_is_zero_and_of_a_batch_that_of_each() -> None:
    zero, negative, mixed = torch.zeros(3, 4), -torch.rand(3, 4), torch.randn(3, 4)
    drawn = preset_of(torch.stack([zero, negative, mixed]))
    assert drawn[:2].abs().max() == 0
    assert drawn[2].min() == 0
    assert drawn[2].max() == 1
    torch.testing.assert_close(preset_of(mixed[None])[0], drawn[2])


def test_default_stays_signed_and_unknown_presets_are_refused() -> None:
    why = rt.explain(network(), images(), foil="each", contrast="loss")
    assert why.heatmap().min() < 0 < why.heatmap().max()
    with pytest.raises(InputError, match="did you mean 'prabhushankar2020'"):
        why.heatmap(preset="prabhushankar")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'prabhushankar2020'"):
        why.over_foils(preset="prabhushankar")  # type: ignore[arg-type]
