"""The fewest words that are enough, and the fewest that would have to change, against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import ratherthan as rt
import test_text
from ratherthan import FewestChanges, FewestWords, Model, Text
from ratherthan.inputs.text import words_of

SENTENCES = [*test_text.SENTENCES, "now then the cat sat down", "the quick ##ly ran ##ning dog sat home now"]
CLASSES = 4


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return test_text.words_tokenizer()


class Weighed(nn.Module):
    """Each token votes for the classes; votes are squashed, so that no answer can be read off a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.votes = nn.Embedding(len(test_text.WORDS), CLASSES)
        nn.init.normal_(self.votes.weight)
        with torch.no_grad():
            self.votes.weight[:3] *= 0.1  # what is blank hardly votes

    def forward(self, ids: Tensor) -> Tensor:
        votes = self.votes(ids)
        return 2 * votes.sum(1).tanh() + votes.amax(1)


def model_of(tokenizer: Any) -> Model:
    return Model(Weighed().double(), inputs=Text(tokenizer))


def altered(model: Model, text: str, without: str, changes: dict[int, str | None]) -> Tensor:
    """Token ids with words changed, made from the text itself."""
    pieces = text.split()
    words = words_of([piece if i == 0 or piece.startswith("##") else f" {piece}" for i, piece in enumerate(pieces)])
    kept, done = [], set[int]()
    for piece, word in zip(pieces, words, strict=True):
        if word not in changes:
            kept.append(piece)
        elif changes[word] is None and without == "blank":
            kept.append("[MASK]")
        elif changes[word] is not None and word not in done:
            kept.append(str(changes[word]))
        done.add(word)
    return torch.tensor([[test_text.WORDS.index(piece) for piece in kept]])


def word_count(text: str) -> int:
    return sum(not piece.startswith("##") for piece in text.split())


def top(model: Model, ids: Tensor) -> int:
    return int(model.module(ids).argmax()) if ids.numel() else -1


@pytest.mark.parametrize(("without", "kappa"), [("blank", 0.0), ("blank", None), ("nothing", 0.0), ("nothing", 1.0)])
def test_the_words_that_are_kept_are_enough_and_none_of_them_is_spared(
    tokenizer: Any, without: Any, kappa: float | None, tmp_path: Path
) -> None:
    model = model_of(tokenizer)
    enough = rt.pertinent_positive(model, SENTENCES, method=FewestWords(without=without, kappa=kappa), batch_size=2)
    fewer, empty = 0, 0

    def leads(ids: Tensor, fact: int) -> float:
        y = model.module(ids)[0].detach() if ids.numel() else torch.full((2,), -torch.inf)
        return float(y[fact] - torch.cat([y[:fact], y[fact + 1 :]]).max())

    for i, text in enumerate(SENTENCES):
        fact, kept = int(enough.fact[i]), enough.order[i][enough.order[i] >= 0].tolist()
        gone = [word for word in range(word_count(text)) if word not in kept]
        assert int(enough.feature_count[i]) == word_count(text)
        assert int(enough.features[i]) == len(kept)
        ids = altered(model, text, without, dict.fromkeys(gone))
        example = enough.examples[i, 0]
        assert torch.equal(example[example >= 0], ids[0])
        torch.testing.assert_close(enough.example_logits[i, 0], model.module(ids)[0].detach())
        whole = leads(altered(model, text, without, {}), fact)
        wanted = min(5.0 if kappa is None else kappa, whole)
        assert leads(ids, fact) > max(0.0, wanted - 1.1e-3)
        for word in kept:
            assert not leads(altered(model, text, without, dict.fromkeys([*gone, word])), fact) >= wanted + 1e-3
        assert enough.status[i] == ("found" if kept else "nothing needed")
        assert ("but the whole leads by" in enough.reason[i]) == (bool(kept) and wanted == whole)
        empty += not kept
        fewer += len(kept) < word_count(text)
        words = words_of(enough.tokens[i])
        assert enough.mask[i].tolist()[: len(words)] == [word in kept for word in words]
        assert not enough.mask[i, len(words) :].any()
    assert fewer >= (3 if kappa is None else 4), "hardly a word was left out: nothing is shown"
    assert (empty > 0) == (without == "blank")
    saved = rt.PertinentPositive.load(enough.save(tmp_path / "enough.safetensors"))
    assert saved.text(1) == enough.text(1)
    one = enough.status.index("found")
    read = enough.text(one).partition("because of ")[2]
    assert read.startswith(f"{int(enough.features[one])} of {word_count(SENTENCES[one])} words: '")
    for i in range(len(enough)):
        alone = "the text without its words is already" in enough.text(i)
        assert alone == (enough.status[i] == "nothing needed")
    assert enough.save(tmp_path / "enough.png").stat().st_size > 5_000
    assert "enough" in enough.save(tmp_path / "enough.html").read_text()


@pytest.mark.parametrize(
    ("without", "substitutes"), [("blank", ()), ("nothing", ()), ("blank", ("dog", "home", "cat", "down"))]
)
def test_the_words_that_change_bring_the_foil_and_none_of_them_is_spared(
    tokenizer: Any, without: Any, substitutes: tuple[str, ...], tmp_path: Path
) -> None:
    model = model_of(tokenizer)
    method = FewestChanges(without=without, substitutes=substitutes)
    how = rt.counterfactual(model, SENTENCES, foil="top3", method=method, batch_size=2)
    assert how.found.float().mean() > 0.3
    for i, text in enumerate(SENTENCES):
        for q, foil in enumerate(how.foil[i].tolist()):
            changes = {number: instead for number, _, instead in how.changes[i][q]}
            ids = altered(model, text, without, changes)
            example = how.examples[i, q, 0]
            assert torch.equal(example[example >= 0], ids[0])
            torch.testing.assert_close(how.example_logits[i, q, 0], model.module(ids)[0].detach())
            if not how.found[i, q]:
                assert top(model, ids) != foil
                assert "no change of up to" in how.reason[i][q]
                continue
            assert top(model, ids) == foil
            assert how.distance[i, q, 0] == len(changes)
            for size in range(len(changes)):
                for some in combinations(changes.items(), size):
                    if size == len(changes) - 1:  # none of them is spared
                        assert top(model, altered(model, text, without, dict(some))) != foil
    first = next((i, q) for i in range(len(how)) for q in range(3) if how.found[i, q])
    (_, word, instead), *_ = how.changes[first[0]][first[1]]
    assert (f"'{instead}' for '{word}'" if instead else f"ithout '{word}'").lower() in how.text(*first).lower()
    saved = rt.Counterfactual.load(how.save(tmp_path / "how.safetensors"))
    assert saved.changes == how.changes
    assert how.save(tmp_path / "how.png").stat().st_size > 5_000
    assert "would have to change" in how.save(tmp_path / "how.html").read_text().lower()


def best_single(model: Model, text: str, foil: int) -> list[int]:
    """Words whose blanking alone brings the foil, by trying each."""
    return [w for w in range(word_count(text)) if top(model, altered(model, text, "blank", {w: None})) == foil]


def test_a_single_word_is_found_where_one_is_enough(tokenizer: Any) -> None:
    model = model_of(tokenizer)
    how = rt.counterfactual(model, SENTENCES, foil="top3", method="words")
    tried = 0
    for i, text in enumerate(SENTENCES):
        for q, foil in enumerate(how.foil[i].tolist()):
            if alone := best_single(model, text, foil):
                assert next(number for number, _, _ in how.changes[i][q]) in alone
                assert len(how.changes[i][q]) == 1
                tried += 1
    assert tried


def test_special_tokens_stay(tokenizer: Any) -> None:
    model = model_of(tokenizer)
    enough = rt.pertinent_positive(model, "[UNK] the dog sat [UNK]", method="words")
    assert int(enough.feature_count[0]) == 3
    assert enough.examples[0, 0][[0, 4]].tolist() == [1, 1]


def test_a_batch_equals_one_by_one(tokenizer: Any) -> None:
    model = model_of(tokenizer)
    together = rt.counterfactual(model, SENTENCES, foil="runner-up", method="words")
    for i, text in enumerate(SENTENCES):
        alone = rt.counterfactual(model, text, foil="runner-up", method="words")
        assert alone.changes[0] == together.changes[i]
        assert alone.statuses[0] == together.statuses[i]


# --------------------------------------------------------------------------------------------- substitutes
EVERY_WORD = tuple(word for word in test_text.WORDS if word[0] not in "[#")


def greedy(model: Model, text: str, foil: int, propose: Any) -> dict[int, str | None] | None:
    """The change that brings the foil furthest, until it leads; then those are taken back that are not needed."""
    words, changes = text.replace(" ##", "##").split(), dict[int, str | None]()

    def ahead(given: dict[int, str | None]) -> float:
        y = model.module(altered(model, text, "blank", given))[0].detach()
        return float(y[foil] - torch.cat([y[:foil], y[foil + 1 :]]).max())

    while ahead(changes) <= 0 and len(changes) < len(words):
        left = [word for word in range(len(words)) if word not in changes]
        options = [(w, s) for w in left for s in (None, *propose(changes, w)) if s != words[w]]
        word, instead = max(options, key=lambda each: ahead({**changes, each[0]: each[1]}))
        changes[word] = instead
    if ahead(changes) <= 0:
        return None
    while len(changes) > 1:
        fewer = [{k: v for k, v in changes.items() if k != word} for word in changes]
        best = max(fewer, key=ahead)
        if ahead(best) <= 0:
            break
        changes = best
    return changes


def place_of(model: Model, text: str, changes: dict[int, str | None], word: int) -> int:
    """The first token of a word in the changed text."""
    before = " ".join(text.replace(" ##", "##").split()[:word]).replace("##", " ##")
    return altered(model, before, "blank", changes).shape[1] if before else 0


def best_words(scores: Tensor, count: int) -> list[str]:
    read = [test_text.WORDS[i] for i in scores.argsort(descending=True).tolist()]
    return [word for word in read if word in EVERY_WORD][:count]


@pytest.mark.parametrize("by", ["gradient", "masked"])
@pytest.mark.parametrize("tried", [2, 100])
def test_substitutes_are_those_that_score_best_and_are_tried(tokenizer: Any, by: str, tried: int) -> None:
    model, found = model_of(tokenizer), 0
    size = {"vocab_size": len(test_text.WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    filler = transformers.BertForMaskedLM(transformers.BertConfig(num_attention_heads=2, **size)).double()
    for table in (filler.bert.embeddings.word_embeddings, filler.bert.embeddings.position_embeddings):
        nn.init.normal_(table.weight)  # so that each place asks for other words
    method = FewestChanges(substitutes="gradient" if by == "gradient" else filler.train(), tried=tried)
    how = rt.counterfactual(model, SENTENCES, foil="top3", method=method)
    assert filler.training, "its mode is put back"
    filler.eval()
    for i, text in enumerate(SENTENCES):
        for q, foil in enumerate(how.foil[i].tolist()):

            def propose(changes: dict[int, str | None], word: int, text: str = text, foil: int = foil) -> list[str]:
                place = place_of(model, text, changes, word)
                if by == "masked":
                    ids = altered(model, text, "blank", {**changes, word: "[MASK]"})
                    return best_words(filler(ids).logits[0, place].detach(), tried)
                leaf = model.module.votes(altered(model, text, "blank", changes)).detach().requires_grad_()
                y = (2 * leaf.sum(1).tanh() + leaf.amax(1))[0]
                others = torch.cat([y[:foil], y[foil + 1 :]])
                (slope,) = torch.autograd.grad(y[foil] - others.max(), leaf)
                return best_words(model.module.votes.weight.detach() @ slope[0, place], tried)

            wanted = greedy(model, text, foil, propose)
            assert bool(how.found[i, q]) == (wanted is not None)
            if wanted is not None:
                assert {number: instead for number, _, instead in how.changes[i][q]} == wanted
                assert top(model, altered(model, text, "blank", wanted)) == foil
                found += any(wanted.values())
    assert found >= 3, "hardly a word was put in: nothing is shown"
    if tried == 100:  # then it is as if all words were listed
        listed = rt.counterfactual(model, SENTENCES, foil="top3", method=FewestChanges(substitutes=EVERY_WORD))
        assert listed.changes == how.changes


def test_a_search_on_words_says_how_far_it_is(tokenizer: Any) -> None:
    texts = ["the dog sat", "the cat ran", "dog ran home"]  # of one length: one batch
    for verb in (rt.pertinent_positive, rt.counterfactual):
        told = list[tuple[int, int]]()
        verb(model_of(tokenizer), texts, method="words", progress=lambda *given: told.append(given))  # noqa: B023
        assert told == [(1, 3), (2, 3), (3, 3)]


def on_digits(**given: Any) -> Any:
    return rt.pertinent_positive(rt.load("zoo:mnist"), torch.rand(1, 1, 28, 28), **given)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (rt.pertinent_positive, "is about images; Weighed takes text: use method='words'"),
        (lambda *given: rt.counterfactual(*given, method="cem"), "takes text: use method='words'"),
        (lambda *given: on_digits(method="words"), "words is about text"),
        (lambda *given: rt.counterfactual(*given, method=FewestChanges(substitutes=(" ",))), "not an empty text"),
        (lambda *given: FewestWords(without="gone"), "without of words"),
        (lambda *given: FewestChanges(substitutes="best"), "unknown substitutes of words 'best'; known: gradient"),
        (
            lambda *given: rt.counterfactual(*given, method=FewestChanges(substitutes=nn.Embedding(16, 4))),
            "substitutes scores 4 tokens of 16: one with this tokenizer",
        ),
        (lambda model, texts: rt.evaluate("mask", model, "mnist", out="nowhere"), "mask is about images"),
    ],
)
def test_what_cannot_be_searched_is_refused(tokenizer: Any, ask: Any, message: str) -> None:
    with pytest.raises(rt.RatherThanError, match=message):
        ask(model_of(tokenizer), SENTENCES)


def test_a_fact_that_the_text_is_not_is_told(tokenizer: Any) -> None:
    model = model_of(tokenizer)
    fact = (int(model.logits(model.preprocess(SENTENCES[0])).argmax()) + 1) % CLASSES
    found: Sequence[str] = rt.pertinent_positive(model, SENTENCES[0], fact, method="words").reason
    assert found == ["the whole text itself is something else"]
