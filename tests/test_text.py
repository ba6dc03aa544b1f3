"""Texts: maps on tokens and words, next tokens and continuations as classes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import ratherthan as rt
from nets import Counter
from ratherthan.app.cli import app
from ratherthan.inputs import Text
from ratherthan.inputs.text import words_of
from ratherthan.outputs import Continuations, NextToken
from ratherthan.render.text import lay_out

transformers = pytest.importorskip("transformers", reason="texts need transformers")

_VOCABULARY = "[PAD] [UNK] [MASK] the dog cat ran sat down ##ning quick ##ly from home now then"
WORDS = _VOCABULARY.split()
SENTENCES = ["the dog sat", "the cat ran quick ##ly home", "quick ##ly down now", "dog ran from home"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return words_tokenizer()


def words_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


class Bag(nn.Module):
    """The logits are linear in the sum of the embeddings: every map has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(len(WORDS), 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).sum(1))


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "attn_implementation": "eager"}
    if kind == "bag":
        module: nn.Module = Bag()
    elif kind == "bert":
        module = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=4, **size, **heads))
    else:
        config = transformers.LlamaConfig(num_key_value_heads=2, pad_token_id=None, **size, **heads)
        module = transformers.LlamaForCausalLM(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else nn.init.uniform_(parameter, 0.5, 1.0)
    return module.double().eval()


def language_model(tokenizer: Any, output: Any = None) -> rt.Model:
    return rt.Model(made("llama"), inputs=Text(tokenizer), output=output or NextToken())


def classifier(tokenizer: Any, kind: str = "bert") -> rt.Model:
    return rt.Model(made(kind), inputs=Text(tokenizer))


def test_tokens_are_read_once_whatever_the_number_of_foils(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, counts, read = language_model(tokenizer), list[int](), list[Any]()
    monkeypatch.setattr(tokenizer, "convert_ids_to_tokens", lambda ids: read.append(ids) or [WORDS[i] for i in ids])
    for budget in (2**30, 2_000):  # all at once, or three at a time
        read.clear()
        why = rt.explain(model, "the dog sat", 3, "each", "occlusion", memory_budget=budget)
        assert why.tokens == (("the", " dog", " sat"),)
        counts.append(len(read))
    assert counts[0] == counts[1]


def test_tokens_that_end_a_word_divide_texts_into_words() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = ["<end>", "a</w>", "snow", "mob", "iling</w>", "wolf</w>", "Ġ"]
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = Text(transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<end>"))
    tokens = text.tokens(torch.tensor([1, 2, 3, 4, 5, 0]))
    assert [token.startswith(" ") for token in tokens] == [False, True, False, False, True, True]
    assert words_of(tokens) == [0, 1, 1, 1, 2, 3]


# --------------------------------------------------------------------------------------------- right
@pytest.mark.parametrize(
    "method",
    [
        "ixg", rt.LRP("z"), "deeplift", rt.IntegratedGradients(n_steps=3), rt.Occlusion(baseline=0.0),
        rt.Lime(samples="all", alpha=0.0, baseline=0.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("foil", [1, [0, 3], {1, 2}])
def test_a_linear_model_of_texts_has_a_closed_form(tokenizer: Any, method: Any, foil: Any) -> None:
    model = classifier(tokenizer, "bag")
    nn.init.zeros_(model.module.head.bias)
    why = rt.explain(model, SENTENCES, 2, foil, method)
    weights = rt.get_contrast("weighted").seed(why.logits, rt.resolve(why.logits, 2, foil)) @ model.module.head.weight
    for i, text in enumerate(SENTENCES):
        embedded = model.module.embed(model.inputs.prepare(text)).detach()
        expected = torch.einsum("te,qe->qt", embedded, weights[i].detach())
        numbers = words_of(why.tokens[i])
        if isinstance(method, (rt.Occlusion, rt.Lime)):  # know words only: the tokens of one share its value
            for number in set(numbers):
                tokens = [t for t, each in enumerate(numbers) if each == number]
                expected[:, tokens] = expected[:, tokens].mean(1, keepdim=True)
        found = why.by_question(why.attribution)[i]
        torch.testing.assert_close(found[:, : len(embedded)], expected, atol=1e-8, rtol=1e-8)
        assert not found[:, len(embedded) :].any()
        summed = [sum(v for v, n in zip(expected[0].tolist(), numbers, strict=True) if n == k) for k in set(numbers)]
        np.testing.assert_allclose([value for _, value in why.words(i)], summed, atol=1e-8)


@pytest.mark.parametrize("method", ["gradient", "ixg", "ig", "smoothgrad", "lrp", "deeplift", "occlusion", "lime"])
def test_texts_of_several_lengths_equal_one_by_one(tokenizer: Any, method: str) -> None:
    model = classifier(tokenizer)
    together = rt.explain(model, SENTENCES, foil="each", method=method, batch_size=2)
    for i, text in enumerate(SENTENCES):
        alone = rt.explain(model, text, foil="each", method=method)
        length = alone.attribution.shape[-1]
        torch.testing.assert_close(
            together.logits[i], model.module(model.inputs.prepare(text)[None]).logits[0].detach()
        )
        torch.testing.assert_close(together.attribution[i, :, :length], alone.attribution[0], atol=1e-8, rtol=1e-6)
        assert together.tokens[i] == alone.tokens[0]
        assert together.names[i] == text


def test_input_times_gradient_equals_autograd_at_the_embedding(tokenizer: Any) -> None:
    model = language_model(tokenizer)
    why = rt.explain(model, SENTENCES, "home", ["cat", "now"], "ixg")
    for i, text in enumerate(SENTENCES):
        embedded = model.module.get_input_embeddings()(model.inputs.prepare(text)[None]).detach().requires_grad_()
        logits = model.module(inputs_embeds=embedded).logits[0, -1]
        for q, foil in enumerate(("cat", "now")):
            gap = logits[WORDS.index("home")] - logits[WORDS.index(foil)]
            (gradient,) = torch.autograd.grad(gap, embedded, retain_graph=True)
            expected = (gradient * embedded).sum(-1)[0].detach()
            torch.testing.assert_close(why.attribution[i, q, : len(expected)], expected, atol=1e-10, rtol=1e-10)
            torch.testing.assert_close(why.score[i, q], gap.detach())


@pytest.mark.parametrize("texts", [("home", "from home now", "down then"), ("now", "then")])
def test_continuations_are_scored_as_one_by_one(tokenizer: Any, texts: tuple[str, ...]) -> None:
    model = language_model(tokenizer, Continuations(texts))
    assert model.class_names == texts
    why = rt.explain(model, SENTENCES, 0, [1], "ixg")
    for i, sentence in enumerate(SENTENCES):
        start = model.inputs.prepare(sentence)
        embedded = model.module.get_input_embeddings()(start).detach().requires_grad_()
        scores = []
        for text in texts:
            ids = model.inputs.prepare(text)
            whole = torch.cat([embedded, model.module.get_input_embeddings()(ids)])[None]
            logs = model.module(inputs_embeds=whole).logits[0].log_softmax(-1)
            scores.append(sum(logs[len(start) - 1 + j, index] for j, index in enumerate(ids.tolist())))
        torch.testing.assert_close(why.logits[i], torch.stack(scores).detach())
        (gradient,) = torch.autograd.grad(scores[0] - scores[1], embedded)
        expected = (gradient * embedded).sum(-1).detach()
        near = 1e-5 * float(expected.abs().max())  # Llama's norm computes in float32 whatever it is given
        torch.testing.assert_close(why.attribution[i, 0, : len(expected)], expected, atol=near, rtol=0)


def test_a_word_is_covered_by_the_blank_token(tokenizer: Any) -> None:
    model = classifier(tokenizer)
    why = rt.explain(model, "the cat ran quick ##ly home", 0, 1, "occlusion")
    ids = model.inputs.prepare("the cat ran quick ##ly home")
    for word, tokens in enumerate(([0], [1], [2], [3, 4], [5])):
        covered = ids.clone()
        covered[tokens] = WORDS.index("[MASK]")
        clean, hidden = model.module(torch.stack([ids, covered])).logits.detach()
        drop = (clean - hidden)[0] - (clean - hidden)[1]
        torch.testing.assert_close(torch.tensor(why.words(0)[word][1]).double(), drop, atol=1e-6, rtol=1e-6)


def test_where_no_token_stands_for_nothing_the_mean_of_the_embeddings_does(tokenizer: Any) -> None:
    unmasked = copy.deepcopy(tokenizer)
    unmasked.mask_token = None
    module = made("llama")
    model = rt.Model(module, inputs=Text(unmasked), output=NextToken())
    why = rt.explain(model, "the cat ran", "home", "now", "occlusion")
    embed, head = module.get_input_embeddings(), [WORDS.index("home"), WORDS.index("now")]
    clean = embed(model.inputs.prepare("the cat ran")[None]).detach()
    for word in range(3):
        covered = clean.clone()
        covered[0, word] = embed.weight.detach().sum(0) / len(WORDS)
        logits = module(inputs_embeds=torch.cat([clean, covered])).logits[:, -1, head].detach()
        drop = (logits[0] - logits[1])[0] - (logits[0] - logits[1])[1]
        torch.testing.assert_close(torch.tensor(why.words(0)[word][1]).double(), drop, atol=1e-6, rtol=1e-5)
    named = rt.explain(
        rt.Model(module, inputs=Text(unmasked, blank="dog"), output=NextToken()), "the cat", "home", "now", "occlusion"
    )
    same = rt.explain(model, "the cat", "home", "now", rt.Occlusion(baseline="dog"))
    torch.testing.assert_close(named.attribution, same.attribution)


def test_a_token_that_reads_as_a_word_of_questions_does_not_hide_it() -> None:
    class Tokens:
        all_special_ids = ()
        texts = ("dog", "each", " each", "any", "all")

        def __len__(self) -> int:
            return len(self.texts)

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return [self.texts[index] for (index,) in rows]

    model = rt.Model(nn.Identity(), inputs=Text(Tokens()), output=NextToken())
    assert model.class_names == ("dog", "each (1)", " each", "any (3)", "all (4)")
    logits = torch.arange(5.0)[None]
    for foil, expected in (("each", [0, 1, 2, 3, 4]), ("any", [-1]), (" each", [2]), ("each (1)", [1])):
        assert rt.resolve(logits, 0, foil, model.class_names).foil.tolist() == [expected]


class Around(nn.Module):
    """A classifier of one's own around networks of transformers."""

    def __init__(self, *encoders: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, ids: Tensor) -> Tensor:
        return sum(each(ids).logits for each in self.encoders)


def test_the_embedding_of_a_network_inside_is_found(tokenizer: Any) -> None:
    inner = made("bert")
    found = rt.explain(rt.Model(Around(inner), inputs=Text(tokenizer)), SENTENCES[1], 0, 1, "ixg")
    torch.testing.assert_close(
        found.attribution, rt.explain(rt.Model(inner, inputs=Text(tokenizer)), SENTENCES[1], 0, 1, "ixg").attribution
    )
    first = "encoders.0.bert.embeddings.word_embeddings"
    with pytest.raises(rt.LayerError, match=f"has 2 embeddings: name one, Text.*{first}"):
        rt.explain(rt.Model(Around(inner, made("bert")), inputs=Text(tokenizer)), SENTENCES[1], 0, 1, "ixg")


# --------------------------------------------------------------------------------------------- few passes
def test_all_foils_cost_the_passes_of_one(tokenizer: Any) -> None:
    model = language_model(tokenizer)
    sentence, length = SENTENCES[1], 6
    rt.explain(model, sentence, method="ixg")  # that the network reads the embedding is looked at once
    with Counter(model) as counted:
        why = rt.explain(model, sentence, "home", "each", "ixg")
    assert counted.passes == 1
    assert why.attribution.shape == (1, len(WORDS), length)
    with Counter(model) as counted:
        rt.explain(model, sentence, "home", "each", rt.Occlusion(batch_size=1))
    assert counted.passes <= length + 1


def test_seeds_pulled_back_at_once_fit_the_budget(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(len(WORDS), 2), nn.Linear(2, 500)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids).cumsum(1))

    module = Wide()
    module.get_output_embeddings = lambda: None
    model = rt.Model(module, [f"w{i}" for i in range(500)], inputs=Text(tokenizer), output=NextToken())
    widest, grad = [0], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd,
        "grad",
        lambda *a, **k: (widest.append(len(a[2]) if k["is_grads_batched"] else 1), grad(*a, **k))[1],
    )
    budget = 2**20
    rt.explain(model, " ".join(["the cat ran"] * 10), 0, list(range(1, 60)), "ixg", memory_budget=budget)
    behind_every_token = 30 * 500 * 4  # float32 logits of thirty tokens, for each seed
    assert 1 < max(widest) <= budget // behind_every_token


# --------------------------------------------------------------------------------------------- tokens and words
def test_tokens_are_grouped_into_words(tokenizer: Any) -> None:
    text = Text(tokenizer)
    assert text.tokens(text.prepare("the quick ##ly ran ##ning")) == ("the", " quick", "ly", " ran", "ning")
    assert words_of(["the", " quick", "ly", " ran", "ning"]) == [0, 1, 1, 2, 2]

    class Pieces:
        all_special_ids = (0,)
        vocabulary = ("<s>", "Ġbark", "ing", "The", "Ġdog", ",")

        def get_vocab(self) -> dict[str, int]:
            return {piece: i for i, piece in enumerate(self.vocabulary)}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [self.vocabulary[i] for i in ids]

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return ["".join(self.convert_ids_to_tokens(row)).replace("Ġ", " ") for row in rows]

    marked = Text(Pieces())
    assert marked.tokens(torch.tensor([0, 3, 4, 5, 1, 2, -1])) == ("<s>", " The", " dog", ",", " bark", "ing")


def test_words_are_drawn_where_they_stand() -> None:
    picture, owner = lay_out(["The", " dog", " bark", "ing"])
    assert picture.shape[:2] == owner.shape
    assert set(np.unique(owner)) == {-1, 0, 1, 2, 3}
    left = [int((owner == number).any(0).argmax()) for number in range(4)]
    assert left == sorted(left)
    for number in range(4):
        assert (picture[owner == number] < 100).any(), "no letter stands there"
    assert (picture[owner == -1] > 100).all()


# --------------------------------------------------------------------------------------------- shown and saved
def test_words_are_told_drawn_and_saved(tokenizer: Any, tmp_path: Path) -> None:
    why = rt.explain(language_model(tokenizer), SENTENCES, "home", ["cat", "now"], "ixg")
    best = max(why.words(0, 0), key=lambda each: each[1])
    assert f"For: {best[0]} {best[1]:+.2f}" in why.text(0, 0)
    saved = why.save(tmp_path / "why.safetensors")
    again = rt.Explanation.load(saved)
    assert again.tokens == why.tokens
    assert again.words(1, 1) == why.words(1, 1)
    assert (why.save(tmp_path / "why.png")).stat().st_size > 10_000
    assert "dog" in why.save(tmp_path / "why.html").read_text()
    panel = why.panels()[0]
    values, owner = np.asarray(panel.maps[0].values), lay_out(why.tokens[0])[1]
    for number, value in enumerate(why.attribution[0, 0, :3].tolist()):
        np.testing.assert_allclose(values[owner == number], value, rtol=1e-5)


def test_words_are_read_under_their_colours_and_long_texts_are_cut_where_answers_are_told(
    tokenizer: Any, tmp_path: Path
) -> None:
    text = " ".join(["the dog sat", *["now then"] * 40])
    why = rt.explain(classifier(tokenizer), text, 0, 1, "occlusion")
    (panel,) = why.panels()
    assert panel.paper  # the map lies behind the ink
    assert len(panel.name) <= 80
    assert str(why).startswith("the dog sat now then")
    assert str(why).index("Why") < 100
    assert why.names == (text,)
    assert len(why.to_frame()["sample"][0]) == len(text)


def test_tokens_are_quoted_where_a_space_would_not_be_seen(tokenizer: Any) -> None:
    names = [f" {word}" for word in WORDS[:-1]] + ["\n"]
    why = rt.explain(language_model(tokenizer).replace(class_names=names), "the dog", " cat", ["\n", {0, 1}], "ixg")
    assert why.question(0, 0) == 'Why " cat", rather than "\\n"?'
    assert why.question(0, 1) == 'Why " cat", rather than " [PAD]" or " [UNK]"?'
    assert "on the text" in why.made_by()


# --------------------------------------------------------------------------------------------- refused
class Ending(nn.Module):
    """Reads its ids beside their embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(len(WORDS), 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.embed(ids) * (ids > 4).unsqueeze(-1)).sum(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["", "dog"]}, "empty text"),
        ({"images": [3]}, "a text is a str, not int"),
        ({"images": []}, "no texts were given"),
        ({"images": torch.tensor([[1, -1, 2]])}, "-1 stands only behind the end"),
        ({"images": torch.tensor([[1, 99]])}, "token id 99 does not exist"),
        ({"images": torch.rand(2, 3)}, "texts are str, or token ids"),
        ({"method": "gradcam"}, "no layer on the image's plane"),
        ({"method": "pda"}, "alters parts of images"),
        ({"method": rt.Occlusion(baseline="dog cat")}, "one token, and 'dog cat' is 2"),
        ({"foil": "doq"}, "unknown class 'doq'; did you mean 'dog'"),
    ],
)
def test_what_is_no_text_or_cannot_be_asked_is_refused(tokenizer: Any, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"images": SENTENCES, "foil": "dog", "method": "ixg"} | change
    with pytest.raises(rt.RatherThanError, match=message):
        rt.explain(language_model(tokenizer), given.pop("images"), **given)


def test_a_network_that_reads_ids_beside_their_embedding_is_refused(tokenizer: Any) -> None:
    with pytest.raises(rt.ModelError, match="in another way than by their embedding"):
        rt.explain(rt.Model(Ending(), inputs=Text(tokenizer)), SENTENCES, method="ixg")


def test_outputs_about_text_need_text() -> None:
    with pytest.raises(rt.InputError, match=r"inputs=Text\(tokenizer\)"):
        rt.Model(made("llama"), output=NextToken())


def test_nothing_is_left_behind(tokenizer: Any) -> None:
    model = language_model(tokenizer)
    before = copy.deepcopy(model.module.state_dict())
    for method in ("ixg", "occlusion", "lrp"):
        rt.explain(model, SENTENCES, method=method)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.module.modules())
    assert all(each.grad is None for each in model.module.parameters())
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key])


# --------------------------------------------------------------------------------------------- the command line
FACTORY = """
import sys
sys.path.insert(0, {tests!r})
import test_text, ratherthan as rt

def language():
    return test_text.language_model(test_text.words_tokenizer())

def classes():
    return test_text.classifier(test_text.words_tokenizer())
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "networks.py"
    path.write_text(FACTORY.format(tests=str(Path(__file__).parent)))
    return path


def ask(*arguments: object, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)], input=stdin)


def test_the_command_line_takes_text(tokenizer: Any, factory: Path, tmp_path: Path) -> None:
    model, spec = language_model(tokenizer), f"{factory}:language"
    asked = ("--model", spec, "--fact", "home", "--foil", "cat,now", "--method", "ixg")
    result = ask(*asked, "--text", SENTENCES[0], "--text", SENTENCES[1])
    assert result.exit_code == 0, result.stderr
    why = rt.explain(model, SENTENCES[:2], "home", ["cat", "now"], "ixg")
    for i in range(2):
        assert f"{SENTENCES[i]}: {why.text(i, 1)}" in result.stdout
    written = rt.Explanation.load(tmp_path / "explained" / "explanation.safetensors")
    torch.testing.assert_close(written.attribution, why.attribution)
    assert written.tokens == why.tokens
    assert (tmp_path / "explained" / "why.html").is_file()
    assert len(list((tmp_path / "explained").glob("*.why.png"))) == 2
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(SENTENCES) + "\n\n")
    from_file = json.loads(ask(*asked, lines, "--json").stdout)
    from_stdin = json.loads(ask(*asked, "--text", "-", "--json", stdin="\n".join(SENTENCES)).stdout)
    assert from_file == from_stdin
    assert [row["sample"] for row in from_file["explanations"]] == [each for each in SENTENCES for _ in range(2)]
    assert from_file["explanations"][0]["score"] == pytest.approx(float(why.score[0, 0]))


def test_the_command_line_takes_continuations(tokenizer: Any, factory: Path) -> None:
    asked = ("--model", f"{factory}:language", "--text", SENTENCES[0], "--method", "ixg", "--json")
    result = ask(*asked, "--continuation", "from home now", "--continuation", "down", "--fact", "down")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["explanations"]
    model = language_model(tokenizer, Continuations(("from home now", "down")))
    assert row["score"] == pytest.approx(float(rt.explain(model, SENTENCES[0], "down", method="ixg").score[0]))
    assert (row["fact"], row["foil"]) == ("down", "from home now")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("photo.png", "--text", "the dog"), "this model takes text: give --text, or files"),
        ((), "this model takes text: give --text, or files"),
        (("nowhere.txt",), "nowhere.txt"),
        (("--text", "the dog", "--method", "gradcam"), "no layer on the image's plane"),
        (("--text", "the dog", "--data", "photos"), "this model takes text"),
    ],
)
def test_the_command_line_says_what_a_model_of_text_does_not_take(factory: Path, given: Any, message: str) -> None:
    result = ask("--model", f"{factory}:classes", *given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")


def test_a_model_of_images_takes_no_text() -> None:
    result = ask("--model", "zoo:mnist", "--text", "the dog")
    assert result.exit_code == 2
    assert "zoo:mnist takes images: leave --text and --continuation out" in result.stderr
