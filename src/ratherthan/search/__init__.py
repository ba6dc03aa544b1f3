"""WHAT would have to change, and what is enough: searches for altered images."""

from ratherthan.search.answers import (
    Answers,
    CounterfactualMethod,
    counterfactual_methods,
    register_counterfactual_method,
)
from ratherthan.search.cdeepex import XGEM, CDeepEx
from ratherthan.search.core import Schedule, Status
from ratherthan.search.counterfactual import Counterfactual, counterfactual
from ratherthan.search.manifold import Inversion, Inverted, Manifold, invert

__all__ = [
    "XGEM",
    "Answers",
    "CDeepEx",
    "Counterfactual",
    "CounterfactualMethod",
    "Inversion",
    "Inverted",
    "Manifold",
    "Schedule",
    "Status",
    "counterfactual",
    "counterfactual_methods",
    "invert",
    "register_counterfactual_method",
]
