"""Networks of open_clip, with random weights, against their own scores and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import ratherthan as rt
from ratherthan import Model, Pictures, Prompts, Text

open_clip = pytest.importorskip("open_clip")

TEXTS = ("a photo of a wolf", "a photo of a snowmobiling husky")
VISION = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 16}
WORDS = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def network(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    made = getattr(open_clip, kind)(embed_dim=12, vision_cfg=VISION, text_cfg=WORDS, **more).eval()
    for name, parameter in made.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter, std=0.5)  # else the words hardly count
    return made


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def simple() -> Any:
    return open_clip.tokenizer.SimpleTokenizer(context_length=WORDS["context_length"])


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize(
    "more", [{}, {"init_logit_bias": -3.0, "init_logit_scale": 1.5, "nonscalar_logit_scale": True}]
)
def test_prompts_are_scored_as_the_network_itself_does(simple: Any, kind: str, more: dict[str, Any]) -> None:
    net, x = network(kind, **more), images()
    why = rt.explain(Model(net, output=Prompts(TEXTS, simple)), x, 0, 1, "ixg")
    leaf = x.clone().requires_grad_()
    y, _ = net.get_logits(leaf, simple(list(TEXTS)))
    torch.testing.assert_close(why.logits, y.detach(), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), leaf)
    torch.testing.assert_close(why.attribution, x * gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
def test_the_words_that_fit_one_picture_rather_than_another(simple: Any, kind: str) -> None:
    net, x = network(kind), images()
    # the same vocabulary, as `Text` asks it
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(word, word): index for word, index in simple.encoder.items()}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks))
    model = Model(net, output=Prompts(TEXTS, simple))
    asked = model.replace(inputs=Text(tokenizer), output=Pictures.seen_by(model, x), class_names=None)
    why = rt.explain(asked, list(TEXTS), 0, 1, "occlusion")
    table = net.get_submodule("token_embedding" if kind == "CLIP" else "text.token_embedding")
    words = [[[0], [1], [2], [3], [4], [5], [6]], [[0], [1], [2], [3], [4], [5, 6, 7], [8], [9]]]
    for i, text in enumerate(TEXTS):
        ids = simple([text])
        _, y = net.get_logits(x, ids)
        torch.testing.assert_close(why.logits[i], y[0].detach(), atol=1e-5, rtol=1e-5)
        assert "".join(why.tokens[i][place] for place in words[i][5]) == (" wolf", " snowmobiling")[i]
        begins = [places[0] for places in words[i][1:]]
        assert [place for place, token in enumerate(why.tokens[i]) if token.startswith(" ")] == begins
        for places in words[i]:

            def cover(module: Any, given: object, made: Tensor, places: list[int] = places) -> Tensor:
                made = made.clone()
                made[:, places] = module.weight.mean(0)
                return made

            hook = table.register_forward_hook(cover)
            _, covered = net.get_logits(x, ids)
            hook.remove()
            drop = ((y[0, 0] - y[0, 1]) - (covered[0, 0] - covered[0, 1])).detach()
            torch.testing.assert_close(why.attribution[i, places].sum(), drop, atol=1e-5, rtol=1e-3)
