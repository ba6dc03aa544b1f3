"""Searches on texts: the fewest words that are enough, and the fewest that would have to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ratherthan.errors import InputError
from ratherthan.inputs.text import Text, join, words_of
from ratherthan.search.counterfactual import Counterfactual
from ratherthan.search.method import (
    CounterfactualMethod,
    PertinentPositiveMethod,
    SearchMethod,
    SearchQuestion,
    lead,
    register_counterfactual_method,
    register_pertinent_positive_method,
)
from ratherthan.search.pertinent_positive import PertinentPositive
from ratherthan.search.solver import Status
from ratherthan.settings import AtLeastOne, NotNegative

_Change = tuple[int, str | None]  # a word by its number, and what stands there instead; None: it is taken away


@dataclass(frozen=True)
class _OnWords(SearchMethod):
    """What both have in common.

    Attributes:
        without: What is left of a word that is taken away: "blank", its tokens become the blank one of `Text`, or
            "nothing", they are deleted.
        kappa: By how many logits the fact, or the foil, is to lead.
    """

    takes: ClassVar[str] = "text"
    without: Literal["blank", "nothing"] = "blank"
    kappa: NotNegative = 0.0

    def enough(self, ahead: Tensor) -> bool:
        """Whether what is asked for leads by as much as is wanted, and is not level."""
        return bool(ahead > 0) and bool(ahead >= self.kappa)


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
        special = set(self.text.tokenizer.all_special_ids)
        words = words_of(self.tokens)
        fixed = {word for word, index in zip(words, self.ids.tolist(), strict=True) if index in special}
        self.numbers = [word for word in dict.fromkeys(words) if word not in fixed]
        self.label = torch.tensor([self.numbers.index(word) if word in self.numbers else -1 for word in words])

    def __len__(self) -> int:
        return len(self.numbers)

    def reads(self, word: int) -> str:
        """One of the words."""
        return "".join(self.tokens[i] for i in (self.label == word).nonzero().flatten().tolist()).strip()

    def changed(self, changes: Sequence[_Change]) -> Tensor:
        """(T',) token ids with some words changed; none where all are deleted."""
        parts, instead = list[Tensor](), dict(changes)
        for i, (index, word) in enumerate(zip(self.ids.tolist(), self.label.tolist(), strict=True)):
            if word not in instead:
                parts.append(torch.tensor([index]))
            elif instead[word] is None and self.how.without == "blank":
                parts.append(torch.tensor([self.text.blank_id]))
            elif instead[word] is not None and (i == 0 or self.label[i - 1] != word):
                spaced = f" {instead[word]}" if self.tokens[i].startswith(" ") else instead[word]
                parts.append(torch.tensor(self.text.tokenizer(spaced, add_special_tokens=False)["input_ids"]))
        return torch.cat([*parts, torch.zeros(0)]).long().to(self.ids.device)

    @torch.no_grad()
    def leads(self, changes: Sequence[Sequence[_Change]]) -> Tensor:
        """(M,) by how many logits what is asked for leads, under each of several sets of changes."""
        altered = [self.changed(each) for each in changes]
        empty = torch.tensor([not len(each) for each in altered], device=self.ids.device)
        logits = self.question.look(join([each if len(each) else self.ids for each in altered]))
        fact, target = (each[self.row].expand(len(logits)) for each in (self.question.facts, self.question.target))
        return lead(logits, fact, target).masked_fill(empty, -torch.inf)


@register_pertinent_positive_method
@dataclass(frozen=True)
class FewestWords(_OnWords, PertinentPositiveMethod):
    """The fewest words that keep the fact: words are left out one by one, each time the one that is missed least.

    It ends where no word that is left can go: what is found is minimal, though there may be another part of fewer
    words. About P^2 / 2 evaluations for P words.
    """

    name: ClassVar[str] = "words"

    def search(self, question: SearchQuestion) -> PertinentPositive:
        """See `SearchMethod.search`."""
        found = [self._least(_Words(self, question, row)) for row in range(len(question.facts))]
        masks, orders, labels, examples, ends = (list(column) for column in zip(*found, strict=True))
        logits, order = question.fresh(join(examples)), join(orders)
        more = {
            "mask": torch.stack(masks), "order": order, "superpixels": torch.stack(labels),
            "features": (order >= 0).sum(1), "feature_count": torch.stack(labels).amax(1) + 1,
            "examples": join(examples).unsqueeze(1), "example_logits": logits.unsqueeze(1),
        }  # fmt: skip
        holds = question.reached(logits, kappa=self.kappa)[1]
        return PertinentPositive.answering(self, question, [[end] for end in ends], holds.unsqueeze(1), **more)

    def _least(self, words: _Words) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Status, str]]:
        left, leads = list(range(len(words))), words.leads([[]])
        gone, dropped = list[_Change](), torch.zeros(0)
        if not self.enough(leads[0]):
            end = Status.NOT_FOUND, "the whole text itself is something else"
        else:
            end = Status.FOUND, "no other word can be left out"
            while left:
                dropped = words.leads([[*gone, (word, None)] for word in left])
                best = int(dropped.argmax())
                if not self.enough(dropped[best]):
                    break
                gone.append((left.pop(best), None))
                words.question.report(0.0)
        # the word that is missed most is the most important
        order = torch.tensor(left)[dropped.argsort(stable=True).cpu()] if left and len(dropped) else torch.tensor(left)
        taken = torch.tensor([each for each, _ in gone])
        mask = ~torch.isin(words.label, taken)
        return mask, order.long(), words.label, words.changed(gone), end


@register_counterfactual_method
@dataclass(frozen=True)
class FewestChanges(_OnWords, CounterfactualMethod):
    """The fewest words that would have to change: the change that brings the foil furthest, until it leads.

    Then each change that is not needed is taken back. What is found is minimal, though there may be another of fewer
    words. The distance is the number of words changed.

    Attributes:
        substitutes: Words that may stand for another; none: words are only taken away.
        most: How many may change.
    """

    name: ClassVar[str] = "words"
    any_foil: ClassVar[bool] = True
    substitutes: tuple[str, ...] = ()
    most: AtLeastOne = 10

    def search(self, question: SearchQuestion) -> Counterfactual:
        """See `SearchMethod.search`."""
        found = [self._least(_Words(self, question, row)) for row in range(len(question.facts))]
        examples, changes, ends = (list(column) for column in zip(*found, strict=True))
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

    def _least(self, words: _Words) -> tuple[Tensor, list[list[Any]], tuple[Status, str]]:
        row, changes = words.row, list[_Change]()
        if row in words.question.same:
            return words.ids, [], words.question.same[row]
        ahead = words.leads([[]])[0]
        while not self.enough(ahead) and len(changes) < min(self.most, len(words)):
            taken = {word for word, _ in changes}
            options = [(w, s) for w in range(len(words)) if w not in taken for s in (None, *self.substitutes)]
            options = [each for each in options if each[1] != words.reads(each[0])]
            leads = words.leads([[*changes, each] for each in options])
            best = int(leads.argmax())
            if not leads[best] > -torch.inf:
                break
            changes.append(options[best])
            ahead = leads[best]
        if self.enough(ahead):
            while len(changes) > 1:
                fewer = [[other for other in changes if other != each] for each in changes]
                leads = words.leads(fewer)
                best = int(leads.argmax())
                if not self.enough(leads[best]):
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
            InputError: If one is empty.
        """
        if not all(each.strip() for each in self.substitutes):
            raise InputError("a substitute is a word, not an empty text")


def _grouped(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
