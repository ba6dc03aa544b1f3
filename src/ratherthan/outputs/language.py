"""What a causal language model says: which token comes next, or which of several texts goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from ratherthan.contrast import WORDS
from ratherthan.errors import InputError
from ratherthan.outputs.classes import OUTPUTS, Output, tensor_in
from ratherthan.settings import NotEmpty
from ratherthan.words import told_apart

if TYPE_CHECKING:
    from ratherthan.model import Model

_WANTED = "a causal language model gives logits (N, T, vocabulary)"


@OUTPUTS.register
class NextToken(Output):
    """What a causal language model says comes next: a class is a token of its vocabulary, e.g. " barking"."""

    name = "next-token"

    def scores(self, returned: Any, samples: int, who: str) -> Tensor:
        """The logits behind the last token, (N, vocabulary).

        Raises:
            ModelError: If there are none.
        """
        return tensor_in(returned, 3, samples, who, _WANTED)[:, -1]

    def names(self, model: Model) -> tuple[str, ...] | None:
        """What the tokens read, with their index where several read alike, or as a word of questions such as "each"."""
        head = getattr(model.module, "get_output_embeddings", lambda: None)()
        tokenizer = tokenizer_of(self, model)
        count = len(tokenizer) if head is None else len(head.weight)
        texts = [str(text) for text in tokenizer.batch_decode([[index] for index in range(count)])]
        # in a vocabulary there is a token "each", and nobody who asks for "each" means it
        return told_apart([f"{text} ({i})" if text in WORDS else text for i, text in enumerate(texts)])


@OUTPUTS.register
@dataclass(frozen=True)
class Continuations(Output):
    """How likely a causal language model finds texts that may go on from what it sees, one class each.

    The score of a continuation c is log p(c | text) = sum_i log p(c_i | text, c_1 .. c_{i-1}). All are computed in one
    teacher-forced pass; they may be of different lengths. A softmax over the classes shares out among them.

    Attributes:
        texts: As they go on, mostly with a space in front: (" barking", " crying all night").
    """

    texts: Annotated[tuple[str, ...], NotEmpty()]

    name = "continuations"

    def run(self, run: Callable[[Tensor], Any], seen: Tensor, model: Model) -> Any:
        """The scores, (N, K), of token ids (N, T) or their embedding (N, T, E)."""
        tokenizer, samples, length = tokenizer_of(self, model), len(seen), seen.shape[1]
        rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in self.texts]
        longest = max(map(len, rows))
        ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=-1) for row in rows])
        ids = ids.to(seen.device)
        goes_on = model.inputs.leaf(model.module, ids.clamp_min(0)) if seen.is_floating_point() else ids.clamp_min(0)
        # what is filled up stands behind all that is read: a causal network does not look there
        whole = torch.cat([seen.repeat_interleave(len(rows), 0), goes_on.repeat(samples, *[1] * (seen.ndim - 1))], 1)
        logits = tensor_in(run(whole), 3, len(whole), model.name, _WANTED)[:, length - 1 : -1].log_softmax(-1)
        wanted = ids.repeat(samples, 1)
        found = logits.gather(-1, wanted.clamp_min(0).unsqueeze(-1)).squeeze(-1).masked_fill(wanted < 0, 0.0)
        return found.sum(1).view(samples, -1)

    def names(self, model: Model) -> tuple[str, ...] | None:
        """The texts."""
        return told_apart(list(self.texts))


def tokenizer_of(output: Output, model: Model) -> Any:
    """The tokenizer of what a model sees.

    Raises:
        InputError: If it sees no texts.
    """
    tokenizer = getattr(model.inputs, "tokenizer", None)
    if tokenizer is None:
        raise InputError(f"output {output.name!r} is about text: give inputs=Text(tokenizer)")
    return tokenizer
