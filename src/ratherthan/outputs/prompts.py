"""Descriptions as classes: a network of two towers says which of several texts fits an image best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, ModelError
from ratherthan.inference import preserve_state
from ratherthan.outputs.classes import OUTPUTS, Output
from ratherthan.outputs.language import tokenizer_of
from ratherthan.settings import NotEmpty, Positive
from ratherthan.words import told_apart

if TYPE_CHECKING:
    from ratherthan.model import Model

_ENCODED: WeakKeyDictionary[nn.Module, dict[Any, Tensor]] = WeakKeyDictionary()  # by texts and state of the weights
_FED = ("input_ids", "attention_mask")


@OUTPUTS.register
@dataclass(frozen=True)
class Prompts(Output):
    """How well texts describe an image: y_k = scale cos(image, text_k) + bias, as CLIP and SigLIP say it.

    A network with `get_image_features` and `get_text_features`, as those of transformers, or `encode_image` and
    `encode_text`, as those of open_clip and OpenAI, encodes the texts by itself, once, and brings its own scale and
    bias. Of any other pair of towers hand in what the text tower makes of the texts; the network is then the image
    tower.

    Attributes:
        texts: A class each, e.g. ("a photo of a wolf", "a photo of a husky").
        tokenizer: Of the texts, for a network that encodes them: that of transformers, or for `encode_text` a function
            of a list of texts that returns token ids (K, T).
        features: (K, D) what another text tower makes of them.
        scale: Of the cosine, for `features`.

    Example:
        >>> model = Model(clip, output=Prompts(("a photo of a wolf", "a photo of a husky"), tokenizer))
    """

    texts: Annotated[tuple[str, ...], NotEmpty()]
    tokenizer: Any = None
    features: Tensor | None = None
    scale: Positive = 100.0

    name = "prompts"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: If the texts cannot be encoded, or not all of them are.
        """
        super().__post_init__()
        if (self.tokenizer is None) == (self.features is None):
            raise InputError("prompts are encoded by the network, with a tokenizer, or handed in as features: give one")
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != len(self.texts)):
            raise InputError(f"features of shape {tuple(self.features.shape)} for {len(self.texts)} texts: give (K, D)")

    def names(self, model: Model) -> tuple[str, ...] | None:
        """The texts."""
        return told_apart(list(self.texts))

    def run(self, run: Callable[[Tensor], Any], seen: Tensor, model: Model) -> Tensor:
        """The scores (N, K).

        Raises:
            ModelError: If the network has no two towers, or its features do not fit those of the texts.
        """
        if self.features is not None:
            return _fit(run(seen), self.features, "images", model, self.scale)
        looks, reads = _towers(model)
        if looks is None or reads is None:
            raise ModelError(f"{model.name} encodes no texts: hand in features=, what its text tower makes of them")
        return _fit(looks(seen), self._encoded(model.module, reads), "images", model)

    def _encoded(self, network: Any, reads: Callable[..., Any]) -> Tensor:
        """What the network makes of the texts, (K, D): the same whatever the image, and made once."""
        known, weights = _ENCODED.setdefault(network, {}), list(network.parameters())
        key = self.texts, str(weights[0].device), weights[0].dtype, sum(each._version for each in weights)
        if key not in known:
            texts: Any = list(self.texts)
            if hasattr(network, "get_text_features"):
                # as both kinds were trained: filled up to the longest that the network takes
                longest = _longest(network)
                padding = "max_length" if longest else True
                fed = self.tokenizer(texts, padding=padding, max_length=longest, truncation=True, return_tensors="pt")
                given = {name: fed[name].to(weights[0].device) for name in _FED if name in fed}
            else:
                given = {"text": self.tokenizer(texts).to(weights[0].device)}
            with torch.no_grad():
                known.clear()
                known[key] = _plain(reads(**given)).detach()
        return known[key]


@OUTPUTS.register
@dataclass(frozen=True)
class Pictures(Output):
    """How well a text describes images, a class each: what `Prompts` says, asked of the words.

    y_k = scale cos(image_k, text) + bias, for a network with two towers, or a text tower by itself. It takes
    `inputs=Text(tokenizer)`. Of a single image the score is that it fits, rather than not; two prompts, as two texts,
    then show which of their words make the difference between them.

    Attributes:
        features: (K, D) what the image tower makes of the images, see `seen_by`.
        scale: Of the cosine, for a text tower by itself.

    Example:
        >>> pictures = Pictures.seen_by(model, [wolf, husky])
        >>> asked = model.replace(inputs=Text(tokenizer), output=pictures, class_names=None)
        >>> explain(asked, "a photo of a wolf", 0, 1, "occlusion")
    """

    features: Tensor
    scale: Positive = 100.0

    name = "pictures"

    @staticmethod
    def seen_by(model: Model, images: Any) -> Pictures:
        """Images as the image tower of a network sees them.

        Args:
            model: A network with two towers that sees images.
            images: What `Model.preprocess` takes.

        Raises:
            ModelError: If it has no such towers.
        """
        looks, _ = _towers(model)
        if looks is None:
            raise ModelError(f"{model.name} has no two towers: Pictures(features), what the image tower makes of them")
        with preserve_state(model.module), torch.no_grad():
            return Pictures(_plain(looks(model.normalise(model.preprocess(images)).to(model.dtype))))

    def names(self, model: Model) -> tuple[str, ...] | None:
        """Their numbers; of a single one, whether it fits."""
        count = len(self.features)
        return tuple(f"picture {k}" for k in range(count)) if count > 1 else ("another picture", "this picture")

    def run(self, run: Callable[[Tensor], Any], seen: Tensor, model: Model) -> Tensor:
        """The scores (N, K) of token ids (N, T) or their embedding (N, T, E).

        Raises:
            ModelError: If the features do not fit.
        """
        _, reads = _towers(model)
        if reads is None:
            return _fit(run(seen), self.features, "texts", model, self.scale)
        network, tokenizer, length = model.module, tokenizer_of(self, model), seen.shape[1]
        filled = max(0, (_longest(network) or length) - length)
        end, pad = (getattr(tokenizer, name, None) or 0 for name in ("eos_token_id", "pad_token_id"))
        whole = seen
        if filled:  # as it was trained
            behind = torch.full((len(seen), filled), pad, device=seen.device)
            behind = model.inputs.leaf(network, behind) if seen.is_floating_point() else behind
            whole = torch.cat([seen, behind.to(seen)], 1)

        def call(ids: Tensor) -> Any:
            if seen.is_floating_point():  # the embedding is handed on, but the network looks where the text ends
                ids[:, length - 1], ids[:, length:] = end, pad
            named = getattr(tokenizer, "model_input_names", ()) if hasattr(network, "get_text_features") else ()
            if "attention_mask" not in named:
                return reads(ids)
            return reads(ids, (torch.arange(ids.shape[1], device=ids.device) < length).long().expand_as(ids))

        return _fit(model.inputs.run(network, call, whole), self.features, "texts", model)


def _towers(model: Model) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """What encodes images and texts in a network of two towers: transformers; open_clip and OpenAI."""
    pairs = [("get_image_features", "get_text_features"), ("encode_image", "encode_text")]
    found = [tuple(getattr(model.module, name, None) for name in pair) for pair in pairs]
    return next(((looks, reads) for looks, reads in found if looks and reads), (None, None))


def _longest(network: Any) -> int | None:
    """How many tokens a text is filled up to, where the network says so."""
    config = getattr(getattr(network, "config", None), "text_config", None)
    return getattr(config, "max_position_embeddings", getattr(network, "context_length", None))


def _fit(found: Any, others: Tensor, what: str, model: Model, scale: float | None = None) -> Tensor:
    """How well features (N, D) fit others (K, D): (N, K), by a scale that is given, or scale and bias of the network.

    Raises:
        ModelError: If there are none, or of another width.
    """
    network: Any = model.module
    found = _plain(found)
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != others.shape[1]:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"{model.name} makes {given} of {what}; (N, {others.shape[1]}) is needed")
    one, other = (nn.functional.normalize(each, dim=1) for each in (found, others.to(found)))
    alike: Tensor = one @ other.T
    if scale is not None:
        return scale * alike
    learnt, bias = network.logit_scale.detach().exp(), getattr(network, "logit_bias", None)
    scores: Tensor = learnt * alike
    return scores if bias is None else scores + bias.detach()


def _plain(features: Any) -> Any:
    """The tensor in what an encoder returns."""
    return getattr(features, "pooler_output", features)
