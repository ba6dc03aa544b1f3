"""Make agreement.md: is the head noun what makes a language model say " are", rather than " is"?

    python docs/results/agreement.py gguf:SmolLM2-135M-Instruct.Q4_1.gguf

"The keys to the cabinet" goes on with " are" because of "keys", whatever stands between. For each sentence that the
model goes on with rightly, each method says how much each word speaks for the right verb: by itself (contrast `none`),
and rather than the wrong one. A hit is a map whose largest value among all words, the last one included, is that of
the head noun.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

import ratherthan as rt

HERE = Path(__file__).parent
ORDINARY = " something"
METHODS: dict[str, Any] = {
    "input x gradient": "ixg",
    "LRP": "lrp",
    "occlusion by the mean of all embeddings": "occlusion",
    f"occlusion by the token {ORDINARY!r}": rt.Occlusion(baseline=ORDINARY),
    "occlusion by the token for padding, '<|im_end|>'": rt.Occlusion(baseline="<|im_end|>"),
    f"DeepLIFT, from the token {ORDINARY!r}": rt.DeepLift(baseline=ORDINARY),
}

# the head noun in stars; then the right verb, and the wrong one
IS, ARE, WAS, WERE = (" is", " are"), (" are", " is"), (" was", " were"), (" were", " was")
HAS, HAVE = (" has", " have"), (" have", " has")
SENTENCES: dict[tuple[str, str], str] = {
    ARE: """
        The *keys* to the cabinet
        The *books* on the shelf
        The *pictures* of the president
        The *doors* to the garden
        The *letters* from the lawyer
        The *roads* to the village
        The *players* on the team
        The *windows* of the house
        The *wheels* of the old car
        The *students* in the first row of the classroom
        The *flowers* in the vase
        The *branches* of the tree
        The *buttons* on the jacket
        The *lights* in the hallway
        The *chairs* around the table
        The *answers* to the last question
        The *workers* at the new factory
        """,
    IS: """
        The *key* to the cabinets
        The *book* about the planets
        The *picture* of the mountains
        The *door* to the bedrooms
        The *letter* from my parents
        The *road* through the mountains
        The *captain* of the players
        The *window* behind the curtains
        The *owner* of the restaurants
        The *teacher* of the younger students
        The *smell* of the flowers
        The *colour* of the leaves
        The *price* of the tickets
        The *sound* of the bells
        The *list* of the winners
        The *reason* for the delays
        The *manager* of the two stores
        """,
    WERE: """
        The *soldiers* from the camp
        The *boats* in the harbour
        The *paintings* by the artist
        The *houses* near the river
        The *children* of the farmer
        The *dogs* behind the fence
        The *reports* about the accident
        The *bottles* in the fridge
        The *visitors* to the museum
        The *stones* in the garden
        The *songs* on the album
        The *trees* along the street
        """,
    WAS: """
        The *soldier* with the medals
        The *boat* with the red sails
        The *painting* of the horses
        The *house* between the trees
        The *child* of the neighbours
        The *dog* of the farmers
        The *report* about the accidents
        The *bottle* on the shelves
        The *guide* for the visitors
        The *bridge* over the rivers
        The *song* about the birds
        The *leader* of the rebels
        """,
    HAVE: """
        The *scientists* in the laboratory
        The *engines* of the plane
        The *leaders* of the party
        The *rooms* in the hotel
        The *members* of the committee
        The *stars* in the sky
        The *countries* in the region
        The *pages* of the book
        The *birds* in the cage
        The *companies* in the city
        """,
    HAS: """
        The *scientist* with the assistants
        The *engine* of the trucks
        The *leader* of the parties
        The *hotel* with the large rooms
        The *president* of the committees
        The *city* with the tall towers
        The *company* behind the products
        The *author* of the books
        The *king* of the islands
        The *director* of the films
        """,
}


@dataclass(frozen=True)
class Pair:
    """A sentence without its verb.

    Attributes:
        text: It.
        head: Number of the head noun among its words.
        verbs: The right one, and the wrong one.
    """

    text: str
    head: int
    verbs: tuple[str, str]


def pairs() -> Iterator[Pair]:
    """All of them."""
    for verbs, lines in SENTENCES.items():
        for line in lines.strip().splitlines():
            words = line.split()
            yield Pair(line.strip().replace("*", ""), next(i for i, w in enumerate(words) if w[0] == "*"), verbs)


def classes(model: rt.Model, given: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """The right and the wrong verb of each."""
    names = model.class_names
    assert names is not None
    right, wrong = (torch.tensor([names.index(each.verbs[i]) for each in given]) for i in (0, 1))
    return right, wrong


def known_to(model: rt.Model, given: Sequence[Pair]) -> list[Pair]:
    """Those whose right verb the model finds likelier than the wrong one."""
    asked = rt.explain(model, [each.text for each in given], *classes(model, given), "ixg")
    return [each for each, score in zip(given, asked.score, strict=True) if score > 0]


def hits(why: rt.Explanation, given: Sequence[Pair]) -> list[bool]:
    """Whether the word with the largest value is the head noun."""
    values = [[value for _, value in why.words(i)] for i in range(len(given))]
    return [row.index(max(row)) == each.head for row, each in zip(values, given, strict=True)]


def shown(found: Sequence[bool]) -> str:
    """A share, with its interval (Wilson, 95 %)."""
    low, high = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    return f"{sum(found)} ({sum(found) / len(found):.0%}; {low:.0%} to {high:.0%})"


def write(model: str, everything: Sequence[Pair], known: Sequence[Pair], lines: Sequence[str]) -> None:
    """Write the page, with the command that makes it."""
    chance = sum(1 / len(each.text.split()) for each in known) / len(known)
    about = inspect.cleandoc(__doc__ or "").split("\n\n")[-1].replace("\n", " ")
    page = [
        "# Subject and verb: does the map point at the head noun?",
        f"`python docs/results/agreement.py gguf:{Path(model).name}`",
        about,
        f"Of {len(everything)} sentences, all with a noun between head and verb and most with one of the other number, "
        f"the model goes on rightly with {len(known)}; only these count. By chance a word is the head noun in "
        f"{chance:.0%}. In brackets the share and its 95 % interval (Wilson). Integrated gradients are left out: in 50 "
        "steps their sums miss the contrast of this network by as much as the contrast itself.",
        "| method | plain: why the right verb? | contrast: rather than the wrong one |\n"
        "| --- | --- | --- |\n" + "\n".join(lines),
    ]
    (HERE / "agreement.md").write_text("\n\n".join(page) + "\n")


def main() -> None:
    """Parse, ask, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    given = parser.parse_args()
    model = rt.load(given.model)
    everything = list(pairs())
    known, lines = known_to(model, everything), list[str]()
    texts = [each.text for each in known]
    for name, method in METHODS.items():
        plain, against = rt.compare(model, texts, *classes(model, known), [method], ["none", "weighted"])
        lines.append(f"| {name} | {shown(hits(plain, known))} | {shown(hits(against, known))} |")
        print(lines[-1], flush=True)
        write(given.model, everything, known, lines)


if __name__ == "__main__":
    main()
