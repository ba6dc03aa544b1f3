"""Descriptions as classes of networks with two towers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import Model, Prompts

WORDS = ["<pad>", "<unk>", "a", "photo", "of", "wolf", "husky", "snow", "forest", "<end>"]
TEXTS = ("a photo of a wolf", "a photo of a husky", "snow")
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 9)])
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def towers(kind: str) -> nn.Module:
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 8, "eos_token_id": 9, "pad_token_id": 0}
    vision = {**SMALL, "image_size": 16, "patch_size": 4}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        return transformers.CLIPModel(config).eval()
    text |= {"projection_size": 16}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_prompts_are_scored_as_the_network_itself_does(tokenizer: Any, kind: str) -> None:
    net, x = towers(kind), images()
    model = Model(net, output=Prompts(TEXTS, tokenizer))
    assert model.class_names == TEXTS
    fed = tokenizer(list(TEXTS), padding="max_length", max_length=8, return_tensors="pt")
    leaf = x.clone().requires_grad_()
    y = net(input_ids=fed["input_ids"], attention_mask=fed["attention_mask"], pixel_values=leaf).logits_per_image
    why = rt.explain(model, x, TEXTS[0], TEXTS[1], "ixg")
    torch.testing.assert_close(why.logits, y.detach(), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), leaf)
    torch.testing.assert_close(why.attribution, x * gradient, atol=1e-6, rtol=1e-3)
    assert why.question(0) == "Why a photo of a wolf, rather than a photo of a husky?"
    layer = rt.explain(model, x, TEXTS[0], "each")
    assert layer.layer is not None
    assert layer.layer.startswith("vision_model")


def test_a_hundred_prompts_cost_one_pass_of_the_image_tower(tokenizer: Any) -> None:
    net = towers("clip")
    texts = tuple(f"a photo of {' '.join(['wolf'] * (i % 3))} {WORDS[2 + i % 7]} {i}" for i in range(100))
    model = Model(net, output=Prompts(texts, tokenizer))
    passes = {"vision": 0, "text": 0}
    hooks = [
        module.register_forward_hook(lambda *_, key=key: passes.__setitem__(key, passes[key] + 1))  # type: ignore[misc]
        for key, module in (("vision", net.vision_model), ("text", net.text_model))
    ]
    why = rt.explain(model, images(1), 0, "each", "ixg")
    assert why.attribution.shape == (1, 100, 3, 16, 16)
    assert passes == {"vision": 1, "text": 1}
    rt.explain(model, images(1), 0, "each", "ixg")
    assert passes == {"vision": 2, "text": 1}
    with torch.no_grad():
        next(net.text_model.parameters()).add_(1)  # other weights say something else
    before = why.logits
    assert not torch.allclose(rt.explain(model, images(1), 0, "each", "ixg").logits, before)
    assert passes["text"] == 2
    for hook in hooks:
        hook.remove()


def test_any_pair_of_towers() -> None:
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    described, x = torch.randn(3, 5), images()
    model = Model(tower, output=Prompts(TEXTS, features=described, scale=10.0))
    why = rt.explain(model, x, 0, 2, "ixg")
    leaf = x.clone().requires_grad_()
    found = tower(leaf)
    y = 10 * torch.stack([torch.cosine_similarity(found, row[None]) for row in described], 1)
    torch.testing.assert_close(why.logits, y.detach(), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 2]).sum(), leaf)
    torch.testing.assert_close(why.attribution, x * gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prompts(()), "at least one element"),
        (lambda: Prompts(TEXTS), "with a tokenizer, or handed in as features"),
        (lambda: Prompts(TEXTS, features=torch.rand(2, 5)), r"shape \(2, 5\) for 3 texts"),
        (lambda: Prompts(TEXTS, features=torch.rand(3, 7)), r"makes \(1, 5\) of images; \(N, 7\) is needed"),
        (lambda: Prompts(TEXTS, tokenizer=str), "encodes no texts"),
    ],
)
def test_towers_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    tower = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    with pytest.raises(rt.RatherThanError, match=message):
        rt.explain(Model(tower, output=make()), images(1), method="ixg")
