"""MiniLM with a head for 157 intents: what a sentence of a customer is about, rather than something close to it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan.inputs import Text

transformers = pytest.importorskip("transformers", reason="texts need transformers")
joblib = pytest.importorskip("joblib", reason="needs scikit-learn: make test-real")

LOST = "i lost my credit card and need a new one"
_KNOWN = {
    "sklearn.linear_model._logistic.LogisticRegression", "joblib.numpy_pickle.NumpyArrayWrapper", "numpy.ndarray",
    "numpy.dtype", "numpy.core.multiarray._reconstruct", "_codecs.encode",
}  # fmt: skip


class Restricted(joblib.numpy_pickle.NumpyUnpickler):
    """Reads arrays and the estimator that holds them, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        assert f"{module}.{name}" in _KNOWN, f"{module}.{name} is no array"
        return super().find_class(module, name)


def unpickled(path: Path) -> Any:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another version of scikit-learn: only its arrays are used
        return Restricted(str(path), file, ensure_native_byte_order=True).load()


class Intents(nn.Module):
    """Token ids (N, T) to the logits of intents: encoder, mean over the tokens, length 1, a linear map."""

    def __init__(self, encoder: nn.Module, weight: Any, bias: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(*reversed(weight.shape))
        self.head.weight.data, self.head.bias.data = torch.tensor(weight).float(), torch.tensor(bias).float()

    def forward(self, ids: Tensor) -> Tensor:
        mean = self.encoder(ids).last_hidden_state.mean(1)
        return self.head(nn.functional.normalize(mean, dim=1))


@pytest.fixture(scope="module")
def model(minilm: Path, intents: Path) -> rt.Model:
    steps = [step["type"].split(".")[-1] for step in json.loads((minilm / "modules.json").read_text())]
    assert steps == ["Transformer", "Pooling", "Normalize"]
    assert json.loads((minilm / "1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"]
    head = unpickled(intents / "LogisticRegression.joblib")
    names = unpickled(intents / "label_map.joblib")
    encoder = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager")
    module = Intents(encoder, head.coef_, head.intercept_).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    return rt.Model(module, [names[str(key)] for key in head.classes_], inputs=Text(tokenizer), name="intents")


def test_it_is_the_classifier_of_its_makers(model: rt.Model, minilm: Path, intents: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers", reason="a second way to compute the embeddings")
    texts = [LOST, "what is the weather like in paris", "set a timer for ten minutes"]
    embedded = sentences.SentenceTransformer(str(minilm), device="cpu").encode(texts)
    head = unpickled(intents / "LogisticRegression.joblib")
    scores = embedded @ head.coef_.T + head.intercept_
    for text, expected in zip(texts, scores, strict=True):
        torch.testing.assert_close(
            rt.explain(model, text, method="ixg").logits[0], torch.tensor(expected).float(), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize(
    ("text", "intent"),
    [(LOST, "report_lost_card"), ("what will the weather be tomorrow", "weather"), ("tell me a joke", "tell_joke"),
     ("set a timer for ten minutes", "timer"), ("how do you say hello in french", "translate")],
)  # fmt: skip
def test_it_tells_what_sentences_are_about(model: rt.Model, text: str, intent: str) -> None:
    assert rt.explain(model, text, method="ixg").fact_name(0) == intent


def test_lost_is_why_it_is_a_lost_card_rather_than_a_new_one(model: rt.Model) -> None:
    why = rt.explain(model, LOST, "report_lost_card", "new_card", "occlusion")
    values = dict(why.words(0))
    assert max(values, key=values.__getitem__) == "lost"
    assert min(values, key=values.__getitem__) in ("new", "need")
    tokenizer = model.inputs.tokenizer
    ids = tokenizer(LOST)["input_ids"]
    asked = [model.class_names.index(name) for name in ("report_lost_card", "new_card")]
    with torch.no_grad():
        clean = model.module(torch.tensor([ids]))[0, asked]
        for place, (word, value) in enumerate(why.words(0)):
            masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]  # every word is one token here
            assert tokenizer.convert_ids_to_tokens(ids[place]) == word
            hidden = model.module(torch.tensor([masked]))[0, asked]
            assert value == pytest.approx(float((clean - hidden)[0] - (clean - hidden)[1]), abs=1e-4)


def test_input_times_gradient_equals_autograd(model: rt.Model) -> None:
    why = rt.explain(model, LOST, "report_lost_card", ["new_card", "damaged_card"], "ixg")
    embedding = model.module.encoder.get_input_embeddings()
    ids = torch.tensor([model.inputs.tokenizer(LOST)["input_ids"]])
    embedded = embedding(ids).detach().requires_grad_()
    mean = model.module.encoder(inputs_embeds=embedded).last_hidden_state.mean(1)
    logits = model.module.head(mean / mean.norm(dim=1, keepdim=True))[0]
    fact = model.class_names.index("report_lost_card")
    for q, foil in enumerate(("new_card", "damaged_card")):
        gap = logits[fact] - logits[model.class_names.index(foil)]
        (gradient,) = torch.autograd.grad(gap, embedded, retain_graph=True)
        torch.testing.assert_close(why.attribution[0, q], (gradient * embedded).sum(-1)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("baseline", [0.0, None, "the"])
def test_deeplift_adds_up_to_what_the_contrast_gains(model: rt.Model, baseline: Any) -> None:
    why = rt.explain(model, LOST, "report_lost_card", "new_card", rt.DeepLift(baseline=baseline))
    start = model.inputs.nothing(model.module, baseline, model.leaf(model.preprocess(LOST)))
    asked = [model.class_names.index(name) for name in ("report_lost_card", "new_card")]
    with torch.no_grad():
        before = model.module.head(
            nn.functional.normalize(model.module.encoder(inputs_embeds=start).last_hidden_state.mean(1), dim=1)
        )[0, asked]
    gained = float(why.score) - float(before[0] - before[1])
    assert float(why.attribution.sum()) == pytest.approx(gained, abs=1e-3 * abs(gained) + 1e-3)


def test_lrp_adds_up_with_what_constants_absorb(model: rt.Model) -> None:
    why = rt.explain(model, LOST, "report_lost_card", "new_card", "lrp")
    assert float(why.attribution.sum() + why.diagnostics["absorbed"]) == pytest.approx(float(why.score), abs=1e-3)
    assert float(why.diagnostics["absorbed share"]) < 0.95


def test_integrated_gradients_converge(model: rt.Model) -> None:
    why = rt.explain(model, LOST, "report_lost_card", "new_card", rt.IntegratedGradients(baseline=None))
    assert abs(float(why.diagnostics["convergence delta"])) < 0.05 * abs(float(why.score))


# --------------------------------------------------------------------------------------------- searches on words
REQUESTS = (
    "i lost my credit card and need a new one", "what will the weather be tomorrow", "tell me a joke",
    "set a timer for ten minutes", "how do you say hello in french", "book a flight to rome for next week",
    "what is the balance of my account", "play some music by mozart", "remind me to call my mother",
    "how many calories are in an apple", "find a recipe for pancakes", "where is my package",
    "transfer fifty dollars to my savings account", "when does the bank open", "what time is it in tokyo",
    "how far is it to the airport", "is there a traffic jam on my way to work", "add milk to my shopping list",
    "what does the word serendipity mean", "cancel my reservation for dinner",
)  # fmt: skip
WAYS = ("{}", "please {}", "{} please", "hi, {}", "{}, thanks", "could you help: {}", "quick question, {}",
        "{} if you can", "hello again, {}", "one more thing, {}")  # fmt: skip
SENTENCES = [way.format(request) for request in REQUESTS for way in WAYS]


def ids_without(model: rt.Model, text: str, gone: set[int]) -> Tensor:
    """Token ids with words blanked, from the tokenizer alone."""
    tokenizer = model.inputs.tokenizer
    ids, word, found = tokenizer(text)["input_ids"], -1, []
    for index in ids:
        piece = tokenizer.convert_ids_to_tokens(index)
        special = index in tokenizer.all_special_ids
        word += not special and not piece.startswith("##")
        found.append(tokenizer.mask_token_id if not special and word in gone else index)
    return torch.tensor([found])


def test_the_fewest_words_are_enough_in_200_sentences(model: rt.Model) -> None:
    assert len(set(SENTENCES)) == 200
    enough = rt.pertinent_positive(model, SENTENCES, method=rt.FewestWords(kappa=0.0))
    assert set(enough.status) <= {"found", "nothing needed"}
    for i, text in enumerate(SENTENCES):
        kept = set(enough.order[i][enough.order[i] >= 0].tolist())
        gone = set(range(int(enough.feature_count[i]))) - kept
        tried = [ids_without(model, text, gone), *(ids_without(model, text, gone | {word}) for word in kept)]
        with torch.no_grad():
            alone, *less = model.module(torch.cat(tried)).argmax(1).tolist()
        assert alone == int(enough.fact[i])
        assert all(each != alone for each in less), "a word that is kept could be spared"
    assert enough.features.float().mean() < 0.5 * enough.feature_count.float().mean()


def test_the_fewest_changes_bring_the_runner_up_in_200_sentences(model: rt.Model) -> None:
    how = rt.counterfactual(model, SENTENCES, method="words")
    assert how.found.float().mean() > 0.4  # taking words away does not bring every runner-up
    for i, text in enumerate(SENTENCES):
        changed = {number - 1 for number, _, _ in how.changes[i]}  # the first word is [CLS]
        tried = [ids_without(model, text, changed), *(ids_without(model, text, changed - {word}) for word in changed)]
        with torch.no_grad():
            all_of_them, *fewer = model.module(torch.cat(tried)).argmax(1).tolist()
        assert (all_of_them == int(how.foil[i])) == bool(how.found[i])
        if how.found[i] and len(changed) > 1:
            assert all(each != all_of_them for each in fewer), "a change could be spared"


def test_the_gradient_proposes_words_that_bring_another_intent(model: rt.Model) -> None:
    how = rt.counterfactual(model, LOST, foil="damaged_card", method=rt.FewestChanges(substitutes="gradient", tried=50))
    ((_, word, instead),) = how.changes[0]
    assert (word, instead) == ("lost", "damaged")
    told = model.inputs.tokenizer(LOST.replace("lost", "damaged"), return_tensors="pt")["input_ids"]  # type: ignore[attr-defined]
    assert model.class_names is not None
    assert model.class_names[int(model.module(told).argmax())] == "damaged_card"
    assert torch.equal(how.example[0], told[0])
