"""Descriptions as classes: a network of two towers says which of several texts fits an image best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, ModelError
from ratherthan.outputs.classes import OUTPUTS, Output
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

    A network of transformers with `get_image_features` and `get_text_features` encodes the texts by itself, once, and
    brings its own scale and bias. Of any other pair of towers hand in what the text tower makes of the texts; the
    network is then the image tower.

    Attributes:
        texts: A class each, e.g. ("a photo of a wolf", "a photo of a husky").
        tokenizer: Of the texts, for a network that encodes them.
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
        network: Any = model.module
        scale: Any = self.scale
        bias: Any = None
        if self.features is not None:
            found, texts = _plain(run(seen)), self.features
        elif hasattr(network, "get_image_features") and hasattr(network, "get_text_features"):
            found, texts = _plain(network.get_image_features(pixel_values=seen)), self._encoded(network)
            scale, bias = network.logit_scale.detach().exp(), getattr(network, "logit_bias", None)
        else:
            raise ModelError(f"{model.name} encodes no texts: hand in features=, what its text tower makes of them")
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != texts.shape[1]:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(f"{model.name} makes {given} of images; (N, {texts.shape[1]}) is needed")
        images, described = (nn.functional.normalize(each, dim=1) for each in (found, texts.to(found)))
        scores: Tensor = scale * images @ described.T
        return scores if bias is None else scores + bias.detach()

    def _encoded(self, network: Any) -> Tensor:
        """What the network makes of the texts, (K, D): the same whatever the image, and made once."""
        known, weights = _ENCODED.setdefault(network, {}), list(network.parameters())
        key = self.texts, str(weights[0].device), weights[0].dtype, sum(each._version for each in weights)
        if key not in known:
            # as both kinds were trained: filled up to the longest that the network takes
            longest = getattr(getattr(network.config, "text_config", None), "max_position_embeddings", None)
            given = self.tokenizer(
                list(self.texts), padding="max_length" if longest else True, max_length=longest, truncation=True,
                return_tensors="pt",
            )  # fmt: skip
            kept = {name: given[name].to(weights[0].device) for name in _FED if name in given}
            with torch.no_grad():
                known.clear()
                known[key] = _plain(network.get_text_features(**kept)).detach()
        return known[key]


def _plain(features: Any) -> Any:
    """The tensor in what an encoder returns."""
    return getattr(features, "pooler_output", features)
