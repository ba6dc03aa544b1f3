"""Text: a tokenizer makes token ids of it; maps live on the tokens, and gradients are taken at their embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, LayerError, ModelError
from ratherthan.inputs.method import Inputs

END = -1
"""Stands behind the tokens of a text that is shorter than others of its batch; the network never sees it."""


@dataclass(frozen=True)
class Text(Inputs):
    """Texts as token ids (N, T), int64; the shorter are filled up with -1.

    Texts of one length share a forward pass, so that no padding and no attention mask is needed, and a batch equals its
    texts one by one. Methods that need numbers to change work on what the embedding makes of the ids, (N, T, E); the
    value of a token is the sum over E, that of a word the sum over its tokens.

    Attributes:
        tokenizer: Of transformers, or what has its `__call__`, `batch_decode`, `convert_ids_to_tokens`, `get_vocab` and
            `all_special_ids`.
        embedding: Dotted name of the module that embeds token ids; None: the one that transformers names, or the only
            `nn.Embedding` there is.
        blank: The token that stands for nothing, by which a word is hidden; None: the tokenizer's mask token. Where it
            has none, as those of causal language models, the mean of all embeddings: their tokens for padding and the
            unknown say that a text ends.
        special: Whether the tokenizer adds its own tokens, such as [CLS].
    """

    tokenizer: Any
    embedding: str | None = None
    blank: str | None = None
    special: bool = True

    name: ClassVar[str] = "text"
    one: ClassVar[str] = "text"

    # ----------------------------------------------------------------------------------------- in
    def prepare(self, raw: Any) -> Tensor:
        """Token ids (T,) of one text.

        Raises:
            InputError: If it is no text, or an empty one.
        """
        if not isinstance(raw, str):
            raise InputError(f"a text is a str, not {type(raw).__name__}")
        ids = self.tokenizer(raw, add_special_tokens=self.special)["input_ids"]
        if not ids:
            raise InputError("an empty text asks nothing: give at least one word")
        return torch.tensor(ids)

    def check(self, batch: Tensor) -> Tensor:
        """Token ids (N, T) or (T,) as a batch.

        Raises:
            InputError: If they are none.
        """
        ids = batch.detach().unsqueeze(0) if batch.ndim == 1 else batch.detach()
        if ids.ndim != 2 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
            raise InputError(f"texts are str, or token ids (N, T), whole numbers, not {ids.dtype} {tuple(batch.shape)}")
        filled = ids < 0
        if (ids < END).any() or (filled[:, :-1] & ~filled[:, 1:]).any() or filled[:, 0].any():
            raise InputError("token ids are not negative; -1 stands only behind the end of a text")
        return ids.long()

    def batch(self, raw: Any) -> Tensor:
        """A text, token ids, or a list of either, as one batch (N, T).

        Raises:
            InputError: If nothing is given, or something that is neither.
        """
        if isinstance(raw, Tensor):
            return self.check(raw)
        given = raw if isinstance(raw, (list, tuple)) else [raw]
        if not given:
            raise InputError("no texts were given")
        rows = [self.check(each if isinstance(each, Tensor) else self.prepare(each)) for each in given]
        return join([row for each in rows for row in each])

    def normalise(self, batch: Tensor) -> Tensor:
        """As it is."""
        return batch

    def describe(self) -> str:
        """Which tokenizer."""
        return f"tokens of {type(self.tokenizer).__name__}"

    # ----------------------------------------------------------------------------------------- the network
    def leaf(self, module: nn.Module, batch: Tensor) -> Tensor:
        """Token ids (N, T) of one length to what the network's embedding makes of them, (N, T, E).

        Raises:
            InputError: If an id has no embedding, or the texts are of different lengths.
        """
        if batch.is_floating_point():
            return batch
        embedding = self._embedding(module)
        count = getattr(embedding, "num_embeddings", None)
        if batch.min() < 0:
            raise InputError("texts of different lengths share no forward pass: give batch_size=1")
        if count is not None and batch.max() >= count:
            raise InputError(f"token id {int(batch.max())} does not exist: the network embeds {count}")
        with torch.no_grad():
            embedded: Tensor = embedding(batch)
        return embedded.detach()

    def run(self, module: nn.Module, call: Callable[[Tensor], Any], seen: Tensor) -> Any:
        """Run the network on token ids, or on what stands for their embedding (N, T, E).

        Raises:
            ModelError: If it does not call its embedding.
        """
        if not seen.is_floating_point():
            return call(seen)
        handed = list[Tensor]()

        def hand_on(embedding: nn.Module, inputs: object, output: Tensor) -> Tensor:
            handed.append(output)
            return seen if output.shape == seen.shape else output

        hook = self._embedding(module).register_forward_hook(hand_on)
        try:
            ids = torch.full(seen.shape[:2], self._plain_id, device=seen.device)
            returned = call(ids)
        finally:
            hook.remove()
        if [each.shape for each in handed] != [seen.shape]:
            raise ModelError(f"the embedding runs {len(handed)} times in a forward pass, not once: name the right one")
        return returned

    def size(self, module: nn.Module) -> int:
        """How many tokens there are that the network embeds, as far as the tokenizer knows them."""
        return min(len(self.tokenizer.get_vocab()), getattr(self._embedding(module), "num_embeddings", 2**31))

    def _embedding(self, module: nn.Module) -> nn.Module:
        if self.embedding is not None:
            try:
                return module.get_submodule(self.embedding)
            except AttributeError:
                raise LayerError(f"there is no embedding {self.embedding!r} in {type(module).__name__}") from None
        told, every = set[Any](), list[Any](module.modules())
        for each in every:  # the outermost first; one of two towers does not tell, and that of images has no table
            with suppress(AttributeError, NotImplementedError):
                told.add(each.get_input_embeddings())
                if each is module:
                    break
        named = {each: name for name, each in module.named_modules() if isinstance(each, nn.Embedding)}
        known: list[nn.Module] = [each for each in told if isinstance(each, nn.Embedding)] or list(told or named)
        if len(known) != 1:
            which = f"name one, Text(..., embedding={next(iter(named.values()), '...')!r})"
            raise LayerError(f"{type(module).__name__} has {len(known)} embeddings: {which}")
        return known[0]

    @cached_property
    def _plain_id(self) -> int:
        """A token that no network takes for padding or for an end."""
        special = set(self.tokenizer.all_special_ids)
        return next(i for i in range(len(special) + 1) if i not in special)

    # ----------------------------------------------------------------------------------------- tokens and words
    def tokens(self, ids: Tensor) -> tuple[str, ...]:
        """What the tokens of one text (T,) read; those that begin a word, but the first, begin with a space."""
        kept = ids[ids >= 0].tolist()
        pieces = self.tokenizer.convert_ids_to_tokens(kept)
        special = set(self.tokenizer.all_special_ids)
        read = list[str]()
        for i, (index, piece, text) in enumerate(zip(kept, pieces, self.reads(kept), strict=True)):
            first = i > 0 and (kept[i - 1] in special or pieces[i - 1].endswith(_ENDS))
            begins = index in special or first or self._begins(piece)
            text = piece if index in special else text.removeprefix("##")
            read.append(f" {text.lstrip(' ')}" if begins and i else text)
        return tuple(read)

    def read(self, batch: Tensor) -> tuple[tuple[str, ...], ...]:
        """The tokens of each text."""
        return tuple(self.tokens(row) for row in batch)

    def reads(self, ids: Sequence[int]) -> list[str]:
        """Each of these tokens by itself."""
        return [str(text) for text in self.tokenizer.batch_decode([[index] for index in ids])]

    def _begins(self, piece: str) -> bool:
        return piece.startswith(_SPACES) if self._spaced else not piece.startswith("##")

    @cached_property
    def _spaced(self) -> bool:
        """Whether the tokenizer marks where a word begins or ends, not what goes on with one."""
        return any(piece.startswith(_SPACES) or piece.endswith(_ENDS) for piece in self.tokenizer.get_vocab())

    def parts(self, batch: Tensor) -> Tensor | None:
        """The word that each token belongs to, (N, T), from 0; none of embeddings."""
        if batch.is_floating_point():
            return None
        rows = [words_of(self.tokens(row)) for row in batch]
        return join([torch.tensor(row) for row in rows]).to(batch.device)

    def map_of(self, values: Tensor) -> Tensor:
        """Summed over the embedding: (N, Q, T, E) to (N, Q, T)."""
        return values.sum(-1) if values.ndim == 4 else values

    def nothing(self, module: nn.Module, baseline: Any, leaf: Tensor) -> Tensor:
        """What stands for nothing: a token by its text, None for that of the settings, a number for all of E.

        Raises:
            InputError: If it is none of these.
        """
        if isinstance(baseline, (int, float)):
            return torch.full_like(leaf, float(baseline))
        if baseline is not None and not isinstance(baseline, str):
            raise InputError(f"a baseline of texts is a token, a number or None, not {baseline!r}")
        index = self.blank_id if baseline is None else self._id_of(baseline)
        if index is not None:
            return self.leaf(module, torch.tensor([[index]], device=leaf.device)).to(leaf).expand_as(leaf)
        every = getattr(self._embedding(module), "weight", None)
        if every is None:
            raise InputError("nothing is known to stand for nothing: name a token, Text(tokenizer, blank='...')")
        mean: Tensor = every.detach().mean(0)
        return mean.to(leaf).expand_as(leaf)

    @cached_property
    def blank_id(self) -> int | None:
        """The token that stands for nothing: that of the settings, else the mask token; None: there is none."""
        known = getattr(self.tokenizer, "mask_token_id", None)
        return self._id_of(self.blank) if self.blank is not None else None if known is None else int(known)

    def _id_of(self, text: str) -> int:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"a baseline is one token, and {text!r} is {len(ids)}")
        return int(ids[0])


_SPACES = ("Ġ", "▁", " ")
_ENDS = "</w>"
"""Stands behind the last token of a word where a tokenizer, as CLIP's, marks the end."""


def words_of(tokens: Sequence[str]) -> list[int]:
    """The word that each token belongs to, from 0."""
    numbers, number = list[int](), -1
    for i, token in enumerate(tokens):
        number += i == 0 or token[:1].isspace()
        numbers.append(number)
    return numbers


def join(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as one tensor, filled up."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=END)
