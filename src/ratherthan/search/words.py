"""Searches on texts: the fewest words that are enough, and the fewest that would have to change."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, ModelError
from ratherthan.inputs.text import Text, join, words_of
from ratherthan.outputs.classes import tensor_in
from ratherthan.search.counterfactual import Counterfactual
from ratherthan.search.method import (
    CounterfactualMethod,
    SearchMethod,
    SearchQuestion,
    lead,
    register_counterfactual_method,
    register_pertinent_positive_method,
)
from ratherthan.search.pertinent_positive import SLACK, KeepsMargin, Margin, PertinentPositive, nothing_needed
from ratherthan.search.solver import End, Status
from ratherthan.settings import AtLeastOne, NotNegative

_FILLS = "a masked language model gives logits (N, T, vocabulary)"
_EMPTY = "the text without its words"
_Change = tuple[int, str | None]  # a word by its number, and what stands there instead; None: it is taken away


@dataclass(frozen=True)
class _OnWords(SearchMethod):
    """What both have in common.

    Attributes:
        without: What is left of a word that is taken away: "blank", its tokens become the blank one of `Text`, or
            "nothing", they are deleted.
    """

    takes: ClassVar[str] = "text"
    without: Literal["blank", "nothing"] = "blank"

    def each(self, question: SearchQuestion) -> list[list[Any]]:
        """What is found for each question, as columns."""
        found, count = list[tuple[Any, ...]](), len(question.facts)
        for row in range(count):
            found.append(self.least(_Words(self, question, row)))
            question.report((row + 1) / count)
        return [list(column) for column in zip(*found, strict=True)]

    @abstractmethod
    def least(self, words: _Words) -> tuple[Any, ...]:
        """The answer to one question."""

    @abstractmethod
    def ahead(self, question: SearchQuestion, row: int, logits: Tensor) -> Tensor:
        """By how many logits (M, classes) altered texts have more than is asked for, (M,); 0 is enough."""


class _Words:
    """The words of one text, and what becomes of it when some are changed.

    Args:
        how: The method.
        question: All questions.
        row: The number of this one.
    """

    def __init__(self, how: _OnWords, question: SearchQuestion, row: int) -> None:
        assert isinstance(question.model.inputs, Text)
        self.how, self.question, self.row, self.text = how, question, row, question.model.inputs
        asked = question.asked[row]
        self.ids = asked[asked >= 0]
        self.tokens = self.text.tokens(self.ids)
        if how.without == "blank" and self.text.blank_id is None:
            raise InputError("the tokenizer has no blank token: say without='nothing', or Text(tokenizer, blank='...')")
        self.special = set(self.text.tokenizer.all_special_ids)
        words = words_of(self.tokens)
        fixed = {word for word, index in zip(words, self.ids.tolist(), strict=True) if index in self.special}
        self.numbers = [word for word in dict.fromkeys(words) if word not in fixed]
        self.words = [self.numbers.index(word) if word in self.numbers else -1 for word in words]

    def __len__(self) -> int:
        return len(self.numbers)

    def reads(self, word: int) -> str:
        """One of the words."""
        return "".join(token for token, its in zip(self.tokens, self.words, strict=True) if its == word).strip()

    def changed(self, changes: Sequence[_Change]) -> Tensor:
        """(T',) token ids with some words changed; none where all are deleted."""
        return torch.tensor([index for index, _ in self._altered(changes)]).long().to(self.ids.device)

    def _altered(self, changes: Sequence[_Change]) -> list[tuple[int, int]]:
        """Its token ids, each with the word that it belongs to."""
        found, instead = list[tuple[int, int]](), dict(changes)
        for i, (index, word) in enumerate(zip(self.ids.tolist(), self.words, strict=True)):
            other = instead.get(word)
            if word not in instead:
                found.append((index, word))
            elif other is None and self.how.without == "blank":
                found.append((int(self.text.blank_id or 0), word))
            elif other is not None and self.words.index(word) == i:
                found += [(each, word) for each in self._ids_of(other, word)]
        return found

    def _ids_of(self, word: str, place: int) -> list[int]:
        """A word as it stands at the place of another."""
        spaced = f" {word}" if self.tokens[self.words.index(place)].startswith(" ") else word
        ids: list[int] = self.text.tokenizer(spaced, add_special_tokens=False)["input_ids"]
        return ids

    def proposed(self, changes: Sequence[_Change], places: Sequence[int]) -> list[Sequence[str]]:
        """What may stand instead of each of some words, when others are changed already."""
        assert isinstance(self.how, FewestChanges)
        by = self.how.substitutes
        if isinstance(by, tuple):
            return [by] * len(places)
        scores = self._rise(changes, places) if by == "gradient" else self._fitting(changes, places)
        return [self._best(row, place) for row, place in zip(scores, places, strict=True)]

    def _best(self, scores: Tensor, place: int) -> list[str]:
        """The words, each a single token of the vocabulary, that score best, (vocabulary,)."""
        found, most = list[str](), getattr(self.how, "tried", 0)
        for index in scores.argsort(descending=True, stable=True).tolist():
            word = "" if index in self.special else self.text.reads([index])[0].strip()
            if any(map(str.isalnum, word)) and not word.startswith("##") and self._ids_of(word, place) == [index]:
                found.append(word)
            if len(found) == most:
                break
        return found

    def _rise(self, changes: Sequence[_Change], places: Sequence[int]) -> Tensor:
        """To first order, what each token of the vocabulary in a place adds to the lead, but for a constant of it."""
        altered, model, row = self._altered(changes), self.question.model, self.row
        at = [[word for _, word in altered].index(place) for place in places]
        leaf = model.leaf(torch.tensor([[index for index, _ in altered]], device=self.ids.device)).requires_grad_()
        with torch.enable_grad():
            ahead = lead(self.question.look(leaf), self.question.facts[[row]], self.question.target[[row]])
            (slope,) = torch.autograd.grad(ahead.sum(), leaf)
        every = torch.arange(self.text.size(model.module), device=leaf.device)
        return slope[0, at] @ self.text.leaf(model.module, every.unsqueeze(0))[0].T

    @torch.no_grad()
    def _fitting(self, changes: Sequence[_Change], places: Sequence[int]) -> Tensor:
        """How well a masked language model finds that each token of the vocabulary fits in a place."""
        filler: Any = getattr(self.how, "substitutes", None)
        mask, found = self.text.tokenizer.mask_token, list[Tensor]()
        for place in places:
            ids = self._altered([*changes, (place, mask)])
            given = torch.tensor([[index for index, _ in ids]], device=self.ids.device)
            found.append(tensor_in(filler(given), 3, 1, "substitutes", _FILLS)[0, [w for _, w in ids].index(place)])
        size = self.text.size(self.question.model.module)
        if (scored := found[0].shape[-1]) < size:
            raise ModelError(f"substitutes scores {scored} tokens of {size}: one with this tokenizer is needed")
        return torch.stack(found)[:, :size]

    @torch.no_grad()
    def leads(self, changes: Sequence[Sequence[_Change]]) -> Tensor:
        """(M,) by how many logits more than asked for are there, under each of several sets of changes."""
        altered = [self.changed(each) for each in changes]
        empty = torch.tensor([not len(each) for each in altered], device=self.ids.device)
        logits = self.question.look(join([each if len(each) else self.ids for each in altered]))
        return self.how.ahead(self.question, self.row, logits).masked_fill(empty, -torch.inf)


@register_pertinent_positive_method
@dataclass(frozen=True)
class FewestWords(KeepsMargin, _OnWords):
    """The fewest words that keep the fact: words are left out one by one, each time the one that is missed least.

    It ends where no word that is left can go: what is found is minimal, though there may be another part of fewer
    words. About P^2 / 2 evaluations for P words. How much of the fact is kept: see `KeepsMargin`.
    """

    name: ClassVar[str] = "words"

    def search(self, question: SearchQuestion) -> PertinentPositive:
        """See `SearchMethod.search`."""
        masks, orders, labels, examples, ends = self.each(question)
        kept, check = Margin(self, question), lambda logits: kept.holds(logits, question.rows)
        more: dict[str, Any] = {
            "superpixels": torch.stack(labels),
            "order": join(orders),
            "grounds": [[_EMPTY]] * len(ends),
        }
        return PertinentPositive.of(self, question, join(examples), ends, torch.stack(masks), check=check, **more)

    def ahead(self, question: SearchQuestion, row: int, logits: Tensor) -> Tensor:
        """See `_OnWords.ahead`."""
        return Margin(self, question).ahead(logits, question.rows[[row]])

    def least(self, words: _Words) -> tuple[Tensor, Tensor, Tensor, Tensor, End]:
        """Mask, order, the word of each token, what is left of the text, and how it ended."""
        question, row, left = words.question, words.row, list(range(len(words)))
        gone, dropped, whole = list[_Change](), torch.zeros(0), words.leads([[]])
        if not whole[0] >= -SLACK:
            end = Status.NOT_FOUND, "the whole text itself is something else"
        elif left and words.leads([[(word, None) for word in left]])[0] >= 0:
            gone, left = [(word, None) for word in left], []
            end = nothing_needed(question, row, [_EMPTY])
        else:
            while left:
                dropped = words.leads([[*gone, (word, None)] for word in left])
                best = int(dropped.argmax())
                if not dropped[best] >= 0:
                    break
                gone.append((left.pop(best), None))
            text = words.changed(gone).unsqueeze(0)
            ahead = lead(question.fresh(text), question.facts[[row]], question.facts[[row]])
            end = Status.FOUND, f"no other word can be left out; {Margin(self, question).said(row, float(ahead))}"
        # the word that is missed most is the most important
        order = torch.tensor(left, device=words.ids.device).long()
        order = order[dropped.argsort(stable=True)] if left and len(dropped) else order
        label = torch.tensor(words.words, device=order.device)
        mask = ~torch.isin(label, label.new_tensor([each for each, _ in gone]))
        return mask, order, label, words.changed(gone), end


@register_counterfactual_method
@dataclass(frozen=True)
class FewestChanges(_OnWords, CounterfactualMethod):
    """The fewest words that would have to change: the change that brings the foil furthest, until it leads.

    Then each change that is not needed is taken back. What is found is minimal, though there may be another of fewer
    words. The distance is the number of words changed.

    Attributes:
        substitutes: Words that may stand for another; none: words are only taken away. "gradient": those of the
            vocabulary whose embedding raises the lead of the foil most, to first order (as HotFlip). A masked language
            model of transformers with the tokenizer of `Text`: those that fit best into the text.
        tried: How many of those are tried for each word, by passes of their own.
        most: How many may change.
        kappa: By how many logits the foil is to lead.
    """

    name: ClassVar[str] = "words"
    any_foil: ClassVar[bool] = True
    substitutes: tuple[str, ...] | Literal["gradient"] | nn.Module = ()
    tried: AtLeastOne = 10
    most: AtLeastOne = 10
    kappa: NotNegative = 0.0

    def search(self, question: SearchQuestion) -> Counterfactual:
        """See `SearchMethod.search`."""
        examples, changes, ends = self.each(question)
        start, made = join([*question.asked, *examples]).unsqueeze(1).chunk(2)  # of one length
        logits = question.fresh(made)
        violation, holds = question.reached(logits, kappa=self.kappa)
        seen = torch.cat([question.logits[question.image].unsqueeze(1), logits], 1)
        count = torch.tensor([[float(len(each))] for each in changes], device=violation.device)
        answers = {
            "examples": made, "example_logits": logits, "distance": count, "violation": violation,
            "path": torch.cat([start, made], 1), "path_logits": seen,
        }  # fmt: skip
        more: dict[str, Any] = {key: question.by_question(each) for key, each in answers.items()}
        said = changes if question.axis is None else _grouped(changes, question.questions)
        return Counterfactual.answering(self, question, [[end] for end in ends], holds, changes=said, **more)

    def ahead(self, question: SearchQuestion, row: int, logits: Tensor) -> Tensor:
        """See `_OnWords.ahead`; what is level is short of enough."""
        fact, target = (each[row].expand(len(logits)) for each in (question.facts, question.target))
        led = lead(logits, fact, target)
        return (led - self.kappa).masked_fill(led == 0, -torch.finfo(led.dtype).eps)

    def least(self, words: _Words) -> tuple[Tensor, list[list[Any]], tuple[Status, str]]:
        """The altered text, the changes in words, and how it ended."""
        row, changes = words.row, list[_Change]()
        if row in words.question.same:
            return words.ids, [], words.question.same[row]
        ahead = words.leads([[]])[0]
        while ahead < 0 and len(changes) < min(self.most, len(words)):
            left = [word for word in range(len(words)) if word not in dict(changes)]
            proposed = zip(left, words.proposed(changes, left), strict=True)
            options = [(w, s) for w, some in proposed for s in (None, *some) if s != words.reads(w)]
            leads = words.leads([[*changes, each] for each in options])
            best = int(leads.argmax())
            if not leads[best] > -torch.inf:
                break
            changes.append(options[best])
            ahead = leads[best]
        if ahead >= 0:
            while len(changes) > 1:
                fewer = [[other for other in changes if other != each] for each in changes]
                leads = words.leads(fewer)
                best = int(leads.argmax())
                if leads[best] < 0:
                    break
                changes = fewer[best]
            end = Status.FOUND, f"{len(changes)} of {len(words)} words changed"
        else:
            end = Status.NOT_FOUND, f"no change of up to {min(self.most, len(words))} words that was tried is enough"
        ordered = sorted(changes, key=lambda each: each[0])
        said = [[words.numbers[word], words.reads(word), instead] for word, instead in ordered]
        return words.changed(changes), said, end

    def check(self, model: Any, images: Tensor) -> None:
        """Refuse substitutes that are none.

        Raises:
            InputError: If one is empty, or the text has no mask for a language model to fill.
        """
        if isinstance(self.substitutes, tuple) and not all(each.strip() for each in self.substitutes):
            raise InputError("a substitute is a word, not an empty text")
        if isinstance(self.substitutes, nn.Module) and getattr(model.inputs.tokenizer, "mask_token_id", None) is None:
            raise InputError("the tokenizer has no mask token for a language model to fill: say substitutes='gradient'")


def _grouped(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
