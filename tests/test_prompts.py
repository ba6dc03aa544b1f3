"""Descriptions as classes of networks with two towers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import Model, Pictures, Prompts, Text

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
    made = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()
    nn.init.constant_(made.logit_bias, -0.7)
    nn.init.constant_(made.logit_scale, 1.5)
    return made


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


# --------------------------------------------------------------------------------------------- the words
ASKED = [TEXTS[0], TEXTS[1], "a wolf of forest snow"]  # of several lengths


def fits(net: Any, tokenizer: Any, x: Tensor, text: str, embedded: Tensor | None = None) -> Tensor:
    """How well a text fits images by the network itself, (K,), with other numbers for what its table makes of it."""
    fed = tokenizer([text], padding="max_length", max_length=8, return_tensors="pt")

    def hand_on(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output if embedded is None else torch.cat([embedded[None], output[:, len(embedded) :]], 1)

    hook = net.text_model.embeddings.token_embedding.register_forward_hook(hand_on)
    try:
        given = {"input_ids": fed["input_ids"], "attention_mask": fed["attention_mask"]}
        return net(**given, pixel_values=x).logits_per_text[0]
    finally:
        hook.remove()


def expected_maps(net: Any, tokenizer: Any, x: Tensor, text: str, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Input x gradient by autograd and occlusion by a loop, of seed @ scores; each word of these texts is a token."""
    table = net.text_model.embeddings.token_embedding
    leaf = table(torch.tensor(tokenizer(text)["input_ids"])).detach().requires_grad_()
    score = seed @ fits(net, tokenizer, x, text, leaf)
    (gradient,) = torch.autograd.grad(score, leaf)
    drops = []
    for place in range(len(leaf)):
        covered = leaf.detach().clone()
        covered[place] = table.weight.detach().mean(0)  # the tokenizer has no mask
        drops.append((score - seed @ fits(net, tokenizer, x, text, covered)).detach())
    return (leaf * gradient).sum(1).detach(), torch.stack(drops)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_words_that_fit_one_picture_rather_than_another(tokenizer: Any, kind: str) -> None:
    net, x = towers(kind), images(3)
    model = Model(net, output=Prompts(TEXTS, tokenizer), mean=0.5, std=0.25)
    asked = model.replace(inputs=Text(tokenizer), output=Pictures.seen_by(model, x), class_names=None)
    assert asked.class_names == ("picture 0", "picture 1", "picture 2")
    seen, seed = (x - 0.5) / 0.25, torch.tensor([1.0, 0.0, -1.0])
    by_gradient, by_cover = (rt.explain(asked, ASKED, 0, 2, method) for method in ("ixg", "occlusion"))
    for i, text in enumerate(ASKED):
        y = fits(net, tokenizer, seen, text).detach()
        torch.testing.assert_close(by_gradient.logits[i], y, atol=1e-5, rtol=1e-5)
        length = len(by_gradient.tokens[i])
        for why, wanted in zip((by_gradient, by_cover), expected_maps(net, tokenizer, seen, text, seed), strict=True):
            assert wanted.abs().max() > 1e-3
            torch.testing.assert_close(why.attribution[i, :length], wanted, atol=2e-6, rtol=1e-3)
    assert by_gradient.question(0) == "Why picture 0, rather than picture 2?"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_words_of_two_prompts_that_make_the_difference_on_one_picture(tokenizer: Any, kind: str) -> None:
    net, x = towers(kind), images(1)
    model = Model(net, output=Prompts(TEXTS[:2], tokenizer))
    asked = model.replace(inputs=Text(tokenizer), output=Pictures.seen_by(model, x), class_names=None)
    why = rt.explain(asked, TEXTS[:2], fact="this picture", method="occlusion")
    image_side = rt.explain(model, x, 0, 1, "ixg")
    torch.testing.assert_close(why.score[0] - why.score[1], image_side.score[0], atol=1e-5, rtol=1e-4)
    for i, text in enumerate(TEXTS[:2]):
        (_, wanted), length = expected_maps(net, tokenizer, x, text, torch.ones(1)), len(why.tokens[i])
        torch.testing.assert_close(why.attribution[i, :length], wanted, atol=2e-6, rtol=1e-3)


class Reader(nn.Module):
    """A text tower that looks for the token of the highest number, where a text ends, as that of OpenAI does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.steps, self.head = nn.Embedding(10, 6), nn.GRU(6, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.steps(self.table(ids))[0][torch.arange(len(ids)), ids.argmax(1)])


class Pair(nn.Module):
    """Of the shape of OpenAI's CLIP."""

    context_length = 8

    def __init__(self) -> None:
        super().__init__()
        tower = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
        self.visual, self.reader, self.logit_scale = tower, Reader(), nn.Parameter(torch.tensor(2.0))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        assert text.shape[1] == self.context_length
        return self.reader(text)

    def scores(self, image: Tensor, text: Tensor) -> Tensor:
        one, other = self.encode_image(image), self.encode_text(text)
        return self.logit_scale.exp() * torch.cosine_similarity(one[:, None], other[None], -1)


def test_a_module_that_encodes_images_and_texts(tokenizer: Any) -> None:
    torch.manual_seed(0)
    net, x = Pair().eval(), images()

    def fed(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding="max_length", max_length=8, return_tensors="pt")["input_ids"]

    model = Model(net, output=Prompts(TEXTS, fed))
    why = rt.explain(model, x, 0, 1, "ixg")
    leaf = x.clone().requires_grad_()
    y = net.scores(leaf, fed(list(TEXTS)))
    torch.testing.assert_close(why.logits, y.detach(), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), leaf)
    torch.testing.assert_close(why.attribution, x * gradient, atol=1e-6, rtol=1e-3)

    asked = model.replace(inputs=Text(tokenizer), output=Pictures.seen_by(model, x), class_names=None)
    words = rt.explain(asked, ASKED, 0, 1, "occlusion")
    for i, text in enumerate(ASKED):
        ids, mean = fed([text]), net.reader.table.weight.mean(0)
        for place in range(len(words.tokens[i])):
            rows = net.reader.table(ids)
            rows[:, place] = mean
            found = net.reader.head(net.reader.steps(rows)[0][:, ids[0].argmax()])
            covered = net.logit_scale.exp() * torch.cosine_similarity(net.visual(x), found, -1)
            whole = net.scores(x, ids)[:, 0]
            drop = (whole[0] - whole[1]) - (covered[0] - covered[1])
            torch.testing.assert_close(words.attribution[i, place], drop.detach(), atol=1e-5, rtol=1e-3)
    # the text tower by itself, and what an image tower makes of the images
    alone = Model(net.reader, inputs=Text(tokenizer), output=Pictures(net.visual(x).detach(), scale=float(torch.e**2)))
    torch.testing.assert_close(alone.logits(alone.preprocess(ASKED)), words.logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prompts(()), "at least one element"),
        (lambda: Prompts(TEXTS), "with a tokenizer, or handed in as features"),
        (lambda: Prompts(TEXTS, features=torch.rand(2, 5)), r"shape \(2, 5\) for 3 texts"),
        (lambda: Prompts(TEXTS, features=torch.rand(3, 7)), r"makes \(1, 5\) of images; \(N, 7\) is needed"),
        (lambda: Prompts(TEXTS, tokenizer=str), "encodes no texts"),
        (lambda: Pictures(torch.rand(3, 7)), r"makes \(1, 5\) of texts; \(N, 7\) is needed"),
    ],
)
def test_towers_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    tower = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    with pytest.raises(rt.RatherThanError, match=message):
        rt.explain(Model(tower, output=make()), images(1), method="ixg")


def test_pictures_need_two_towers_and_a_tokenizer(tokenizer: Any) -> None:
    with pytest.raises(rt.ModelError, match="has no two towers"):
        Pictures.seen_by(Model(Reader()), images())
    with pytest.raises(rt.InputError, match="is about text: give inputs=Text"):
        rt.explain(Model(towers("clip"), output=Pictures(torch.rand(2, 12))), images(), method="ixg")
