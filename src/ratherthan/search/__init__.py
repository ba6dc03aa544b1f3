"""WHAT would have to change, and what is enough: searches for altered images."""

from ratherthan.search.cdeepex import XGEM, CDeepEx
from ratherthan.search.core import Schedule, Status
from ratherthan.search.counterfactual import Counterfactual, counterfactual
from ratherthan.search.manifold import Inversion, Inverted, Manifold, invert

__all__ = [
    "XGEM",
    "CDeepEx",
    "Counterfactual",
    "Inversion",
    "Inverted",
    "Manifold",
    "Schedule",
    "Status",
    "counterfactual",
    "invert",
]
