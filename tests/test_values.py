"""Regression networks: why 0.58, rather than 0.75?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import InputError, ModelError

LINEAR = ["gradient", "ixg", "gradcam", "la"]
Q = [0.25, 0.5, 0.75, 1.0]


def regressor() -> rt.Model:
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return rt.Model(nn.Sequential(*layers, nn.Linear(24, 1)).double(), output="value")


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


@pytest.mark.parametrize("method", LINEAR)
def test_the_map_is_the_plain_one_times_twice_the_distance(method: str) -> None:
    model = regressor()
    plain = rt.explain(model, images(), method=method, contrast="none")
    why = rt.explain(model, images(), foil=Q, method=method)
    assert why.contrast == "loss"
    assert why.attribution.shape == (3, 4, *plain.attribution.shape[1:])
    distance = 2 * (why.logits - torch.tensor(Q, dtype=torch.float64))
    expected = column(distance, why.attribution) * plain.attribution.unsqueeze(1)
    torch.testing.assert_close(why.attribution, expected, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(why.score, (why.logits - torch.tensor(Q, dtype=torch.float64)) ** 2)
    assert plain.attribution.abs().max() > 0


@pytest.mark.parametrize("method", LINEAR)
def test_zero_at_the_value_itself_sign_flips_there_one_map_on_each_side(method: str) -> None:
    model = regressor()
    y = rt.explain(model, images(), contrast="none").logits[:, 0]
    at = rt.explain(model, images(), foil=y, method=method)
    assert at.attribution.abs().max() == 0
    assert at.heatmap().abs().max() == 0
    above, far, below = (rt.explain(model, images(), foil=y + d, method=method).attribution for d in (0.1, 0.3, -0.1))
    torch.testing.assert_close(above, -below, atol=1e-13, rtol=1e-9)
    torch.testing.assert_close(far, 3 * above, atol=1e-13, rtol=1e-9)


def test_a_linear_regressor_in_closed_form() -> None:
    linear = nn.Linear(3 * 9 * 11, 1).double()
    model = rt.Model(nn.Sequential(nn.Flatten(), linear), output="value", channels=3)
    why = rt.explain(model, images(), foil=0.75, method="ixg")
    x = images()
    y = x.flatten(1) @ linear.weight[0] + linear.bias
    expected = 2 * (y - 0.75).view(-1, 1, 1, 1) * linear.weight.view(1, 3, 9, 11) * x
    torch.testing.assert_close(why.attribution, expected.detach(), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("method", LINEAR)
def test_an_axis_of_values_is_as_many_calls_and_a_batch_as_many_images(method: str) -> None:
    model = regressor()
    together = rt.explain(model, images(), foil=Q, method=method)
    for q, value in enumerate(Q):
        alone = rt.explain(model, images(), foil=value, method=method)
        torch.testing.assert_close(together.attribution[:, q], alone.attribution, atol=1e-13, rtol=1e-9)
    each = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    per_sample = rt.explain(model, images(), foil=each, method=method, batch_size=2)
    for i in range(3):
        one = rt.explain(model, images()[i : i + 1], foil=float(each[i]), method=method)
        torch.testing.assert_close(per_sample.attribution[i], one.attribution[0], atol=1e-13, rtol=1e-9)


def test_a_network_that_returns_a_vector_is_a_regressor_too() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))

    why = rt.explain(rt.Model(Flat(), output="value", channels=3), images(), foil=1.0, method="gradient")
    expected = 2 * (images().mean((1, 2, 3)) - 1) / 297
    torch.testing.assert_close(why.attribution[:, 0, 0, 0].double(), expected, atol=1e-8, rtol=1e-5)


def test_mean_and_variance_over_values_count_every_value() -> None:
    why = rt.explain(regressor(), images(), foil=[0.0, 1.0])  # 0 is a value here, not the index of the fact
    mean, variance = why.over_foils()
    maps = why.heatmap()
    torch.testing.assert_close(mean, (maps[:, 0] + maps[:, 1]) / 2)
    torch.testing.assert_close(variance, ((maps[:, 0] - maps[:, 1]) / 2) ** 2)


def test_the_question_in_words() -> None:
    model = rt.Model(nn.Sequential(nn.Flatten(), nn.Linear(297, 1)).double(), output="value", channels=3)
    nn.init.zeros_(model.module[1].weight)
    nn.init.constant_(model.module[1].bias, 0.58)
    assert rt.explain(model, images(1), foil=0.75, method="ixg").question(0).startswith("Why 0.58, rather than 0.75?")
    assert rt.explain(model, images(1), method="ixg").question(0) == "Why 0.58?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foil": "cat"}, "ask with a number"),
        ({"foil": 0.5, "fact": 0}, "only a foil can be chosen"),
        ({"foil": 0.5, "contrast": "weighted"}, "compares classes"),
        ({"contrast": "loss"}, "give one, e.g. foil=0.75"),
        ({"foil": torch.tensor([0.1, 0.2])}, "2 foils for 3 samples"),
    ],
)
def test_what_cannot_be_asked_of_a_value(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rt.explain(regressor(), images(), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_value_has_no_probabilities_and_is_one_number() -> None:
    with pytest.raises(InputError, match="not class probabilities"):
        rt.explain(regressor(), images()).probabilities()
    two = rt.Model(nn.Sequential(nn.Flatten(), nn.Linear(297, 2)).double(), output="value", channels=3)
    with pytest.raises(ModelError, match=r"\(3, 1\) is needed"):
        rt.explain(two, images(), foil=0.5, method="gradient")


@pytest.mark.parametrize("weights", ["frozen", "live"])
def test_values_per_sample_stay_with_their_samples(weights: str) -> None:
    """Where a method cuts the batch into pieces of its own, too."""
    model, foil = regressor(), torch.tensor([0.2, 0.9, -0.4], dtype=torch.float64)
    method = rt.IntegratedGradients(5, foil_weights=weights, internal_batch_size=2)  # type: ignore[arg-type]
    together = rt.explain(model, images(), foil=foil, method=method).attribution
    alone = [rt.explain(model, images()[i][None], foil=float(foil[i]), method=method).attribution for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-10, rtol=1e-8)
    other = rt.explain(model, images(), foil=foil.flip(0), method=method).attribution
    assert (together - other).abs().max() > 1e-4
