"""Zero-shot: what EfficientNet-Lite0 sees, in the words of MiniLM, described by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import data

TEXTS = (
    "a photo of a wolf",
    "a photo of a husky",
    "a photo of a red fox",
    "a photo of a tabby cat",
    "a photo of a car",
)
SHOWN = {
    269: 0,
    248: 1,
    250: 1,
    277: 2,
    281: 3,
    817: 4,
}  # photographs by their class, and the prompt that describes them


class Described(nn.Module):
    """The mean of the names of the ten likeliest classes, as embedded, weighted by probability."""

    def __init__(self, classifier: nn.Module, names: Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("names", names)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        best = logits.topk(10).indices
        return torch.einsum("nk,nkd->nd", logits.gather(1, best).softmax(1), self.get_buffer("names")[best])


class Sentences(nn.Module):
    """Sentences as MiniLM embeds them: the mean of the tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.encoder = transformers.AutoModel.from_pretrained(folder).eval()

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(ids).last_hidden_state.mean(1)


def embedded(reader: Sentences, texts: Sequence[str]) -> Tensor:
    """(K, D), normalised."""
    found = []
    for start in range(0, len(texts), 64):
        fed = reader.tokenizer(list(texts[start : start + 64]), padding=True, return_tensors="pt")
        with torch.no_grad():
            tokens = reader.encoder(**fed).last_hidden_state
        mask = fed["attention_mask"].unsqueeze(-1)
        found.append(nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found)


def described(data_root: Path, minilm: Path) -> tuple[rt.Model, Sentences, Tensor, list[int]]:
    """What sees in words, what reads, photographs, and which of the texts describes each."""
    base = rt.load("zoo:efficientnet_lite0", class_names=data_root / "imagenet_samples/class_names.json")
    reader = Sentences(minilm).eval()
    assert base.class_names is not None
    tower = Described(base.module, embedded(reader, [name.split(",")[0] for name in base.class_names])).eval()
    prompts = rt.Prompts(TEXTS, features=embedded(reader, TEXTS))
    samples = data.load("imagenet_samples", data_root).with_transform(base.inputs.prepare)
    chosen = [i for i, label in enumerate(samples.labels) if label in SHOWN]
    images = torch.stack([samples[i][0] for i in chosen])
    right = [SHOWN[samples.labels[i]] for i in chosen]
    return rt.Model(tower, output=prompts, inputs=base.inputs), reader, images, right


def test_photographs_are_described(data_root: Path, minilm: Path) -> None:
    model, _, images, right = described(data_root, minilm)
    tower: Any = model.module
    why = rt.explain(model, images, TEXTS[0], TEXTS[1])
    assert why.logits.argmax(1).tolist() == right
    # Grad-CAM of the difference, by autograd at the layer that was found
    assert why.layer == "classifier.activation"
    kept = list[Tensor]()
    activation = tower.classifier.get_submodule("activation")
    hook = activation.register_forward_hook(lambda module, given, made: kept.append(made))
    found = tower(model.normalise(images))
    hook.remove()
    texts = nn.functional.normalize(model.output.features, dim=1)
    y = 100 * nn.functional.normalize(found, dim=1) @ texts.T
    (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), kept[-1])
    expected = torch.einsum("nk,nkhw->nhw", gradient.mean((2, 3)), kept[-1]).detach()
    torch.testing.assert_close(why.attribution, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_the_words_that_fit_one_photograph_rather_than_another(data_root: Path, minilm: Path) -> None:
    model, reader, images, right = described(data_root, minilm)
    with torch.no_grad():
        features = model.module(model.normalise(images))
    asked = rt.Model(reader, inputs=rt.Text(reader.tokenizer), output=rt.Pictures(features))
    torch.testing.assert_close(
        asked.logits(asked.preprocess(list(TEXTS))).mT, model.logits(images), atol=1e-3, rtol=1e-3
    )
    # each prompt names what is seen: that word makes it fit the photograph, rather than one of the cat
    cat = right.index(3)
    for text, named, shown in zip(TEXTS[:3], ("wolf", "husky", "fox"), range(3), strict=True):
        why = rt.explain(asked, text, right.index(shown), cat, "occlusion")
        assert max(why.words(0), key=lambda each: each[1])[0] == named
        # brute force: the embedding of a word becomes that of [MASK]
        ids = reader.tokenizer(text, return_tensors="pt")["input_ids"]
        table = reader.encoder.get_input_embeddings()

        def score(rows: Tensor, own: int = right.index(shown)) -> Tensor:
            made = reader.encoder(inputs_embeds=rows).last_hidden_state.mean(1)
            alike = 100 * torch.cosine_similarity(made, features)
            return alike[own] - alike[cat]

        with torch.no_grad():
            whole = score(table(ids))
            for place in range(len(why.tokens[0])):
                rows = table(ids)
                rows[:, place] = table(torch.tensor(reader.tokenizer.mask_token_id))
                torch.testing.assert_close(why.attribution[0, place], whole - score(rows), atol=2e-3, rtol=1e-3)
