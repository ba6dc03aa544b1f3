"""SmolLM2: next tokens, all foils at once, equal to inseq, rules that add up."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
import torch

import ratherthan as rt
from nets import Counter
from ratherthan.outputs import Continuations

DOG = "Can you stop the dog from"
PROMPTS = [
    (DOG, " barking", " crying"),
    ("The keys to the cabinet", " are", " is"),
    ("The capital of France is", " Paris", " London"),
    ("She poured herself a cup of", " tea", " sand"),
    ("The opposite of hot is", " cold", " warm"),
    ("My brother forgot his", " keys", " wings"),
    ("In winter it often", " rains", " happens"),
    ("The doctor told the patient that", " he", " she"),
    ("Two plus two is", " four", " five"),
    ("The sun rises in the", " east", " west"),
    ("He opened the door and", " walked", " slept"),
    ("Water freezes at zero", " degrees", " metres"),
    ("I have never been so", " happy", " sad"),
    ("The cat chased the", " mouse", " dog"),
    ("We went to the beach and", " swam", " ate"),
    ("The book on the shelves", " is", " are"),
    ("Bread is made of", " flour", " stone"),
    ("The pilot landed the", " plane", " boat"),
    ("At night you can see the", " stars", " sun"),
    ("Please turn off the", " lights", " music"),
]


def words(why: rt.Explanation, q: int = 0) -> dict[str, float]:
    return dict(why.words(0, q))


def first_tokens(model: rt.Model, *texts: str) -> list[int]:
    return [int(model.inputs.tokenizer(text, add_special_tokens=False)["input_ids"][0]) for text in texts]


@pytest.mark.parametrize("method", ["ixg", "occlusion"])
def test_the_dog_is_why_it_says_barking_rather_than_crying(smollm2: rt.Model, method: str) -> None:
    why = rt.explain(smollm2, DOG, " barking", " crying", method)
    ranked = sorted(words(why), key=words(why).__getitem__)
    assert ranked[-1] == "dog"
    assert float(why.score) > 3
    assert 'Why " barking", rather than " crying"?' in str(why)


def test_covering_a_word_is_putting_the_mean_of_the_embeddings_there(smollm2: rt.Model) -> None:
    why = rt.explain(smollm2, DOG, " barking", " crying", "occlusion")
    embed, asked = smollm2.module.get_input_embeddings(), first_tokens(smollm2, " barking", " crying")
    clean = embed(smollm2.inputs.prepare(DOG)).detach()
    with torch.no_grad():
        for place, (_, value) in enumerate(why.words(0)):
            covered = clean.clone()
            covered[place] = embed.weight.mean(0)
            seen, hidden = (smollm2.module(inputs_embeds=each[None]).logits[0, -1, asked] for each in (clean, covered))
            drop = (seen[0] - seen[1]) - (hidden[0] - hidden[1])
            assert value == pytest.approx(float(drop), abs=1e-3)


# --------------------------------------------------------------------------------------------- many foils
def test_the_whole_vocabulary_as_foils_takes_a_pass_for_each_token(smollm2: rt.Model) -> None:
    length = len(smollm2.inputs.prepare(DOG))
    gc.collect()
    began = time.perf_counter()
    with Counter(smollm2) as counted:
        why = rt.explain(smollm2, DOG, " barking", "each", rt.Occlusion(batch_size=1))
    assert counted.passes <= length + 1
    assert why.attribution.shape == (1, 49_152, length)
    asked = time.perf_counter() - began
    (crying,) = first_tokens(smollm2, " crying")
    alone = rt.explain(smollm2, DOG, " barking", crying, "occlusion")
    torch.testing.assert_close(why.attribution[:, crying], alone.attribution, atol=1e-4, rtol=1e-4)
    began = time.perf_counter()
    frame = why.to_frame()
    assert len(frame) == 49_152
    assert frame.foil[crying] == '" crying"'
    assert frame.relevance_for[crying] == pytest.approx(alone.to_frame().relevance_for[0], rel=1e-3)
    assert len(str(why)) < 5000
    told = time.perf_counter() - began
    assert (asked, told) < (60, 60), "all foils take minutes"


def test_a_hundred_foils_take_one_pass_and_one_pull_back(smollm2: rt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled, grad = [], torch.autograd.grad

    def counted_grad(*args: Any, **kwargs: Any) -> Any:
        pulled.append(kwargs.get("is_grads_batched", False))
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted_grad)
    foils = list(range(1000, 1100))
    with Counter(smollm2) as counted:
        why = rt.explain(smollm2, DOG, " barking", foils, "ixg")
    assert counted.passes == 1
    assert pulled == [True]
    for q in (0, 57, 99):
        alone = rt.explain(smollm2, DOG, " barking", foils[q], "ixg")
        torch.testing.assert_close(why.attribution[:, q], alone.attribution, atol=1e-4, rtol=1e-3)


# --------------------------------------------------------------------------------------------- peers
def test_input_times_gradient_equals_inseq(smollm2: rt.Model) -> None:
    inseq = pytest.importorskip("inseq", reason="needs inseq: make test-real")
    theirs = inseq.load_model(smollm2.module, "input_x_gradient", tokenizer=smollm2.inputs.tokenizer)
    for prompt, fact, foil in PROMPTS:
        out = theirs.attribute(
            prompt, prompt + fact, attributed_fn="contrast_logits_diff", contrast_targets=prompt + foil,
            step_scores=["contrast_logits_diff"], show_progress=False,
        )  # fmt: skip
        found = out.sequence_attributions[0]
        assert found.target_attributions.shape[1] == 1, "each is one token"
        expected = found.target_attributions[:, -1].sum(-1)
        why = rt.explain(smollm2, prompt, *first_tokens(smollm2, fact, foil), "ixg")
        length = why.attribution.shape[-1]
        torch.testing.assert_close(why.attribution[0], expected[:length], atol=1e-4, rtol=1e-4)
        assert float(why.score) == pytest.approx(float(found.step_scores["contrast_logits_diff"]), abs=1e-4)


def test_continuations_are_scored_as_transformers_scores_them(smollm2: rt.Model) -> None:
    texts = (" barking all night", " crying")
    model = smollm2.replace(output=Continuations(texts), class_names=None)
    why = rt.explain(model, DOG, 0, 1, "ixg")
    for k, text in enumerate(texts):
        start = smollm2.inputs.prepare(DOG)
        whole = torch.tensor(smollm2.inputs.tokenizer(DOG + text)["input_ids"])[None]
        labels = whole.clone()
        labels[:, : len(start)] = -100
        with torch.no_grad():
            loss = smollm2.module(whole, labels=labels).loss  # the mean over the tokens that go on
        assert float(why.logits[0, k]) == pytest.approx(-float(loss) * (whole.shape[1] - len(start)), abs=1e-3)


# --------------------------------------------------------------------------------------------- rules
@pytest.mark.parametrize("method", ["lrp", rt.DeepLift(baseline=" something")])
def test_what_rules_hand_down_adds_up(smollm2: rt.Model, method: Any) -> None:
    why = rt.explain(smollm2, DOG, " barking", " crying", method)
    score, delta = float(why.score), float(why.diagnostics["convergence delta"])
    if method == "lrp":  # what constants absorb belongs to the sum
        assert float(why.attribution.sum() + why.diagnostics["absorbed"]) == pytest.approx(score, abs=1e-3)
        return
    asked = first_tokens(smollm2, " barking", " crying")
    ids = torch.full_like(smollm2.inputs.prepare(DOG), first_tokens(smollm2, " something")[0])
    with torch.no_grad():
        start = smollm2.module(ids[None]).logits[0, -1, asked]
    assert float(why.attribution.sum()) == pytest.approx(score - float(start[0] - start[1]), abs=1e-2)
    assert abs(delta) < 1e-2
