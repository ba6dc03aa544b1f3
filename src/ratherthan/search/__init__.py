"""WHAT would have to change, and what is enough: searches for altered images."""

from ratherthan.search.attributes import Attribute, LatentCoordinate, class_attributes
from ratherthan.search.cdeepex import XGEM, CDeepEx
from ratherthan.search.cem import CEM, CEMPositive
from ratherthan.search.cem_maf import CEMMAF
from ratherthan.search.cem_maf_positive import CEMMAFPositive
from ratherthan.search.complete import CompleteExplanation, complete
from ratherthan.search.constrained import ConstrainedSearch, Point, Space
from ratherthan.search.counterfactual import Counterfactual, counterfactual
from ratherthan.search.manifold import Inversion, Inverted, Manifold, invert
from ratherthan.search.method import (
    CounterfactualMethod,
    PertinentPositiveMethod,
    SearchMethod,
    SearchQuestion,
    SearchResult,
    counterfactual_methods,
    pertinent_positive_methods,
    register_counterfactual_method,
    register_pertinent_positive_method,
)
from ratherthan.search.pertinent_positive import PertinentPositive, pertinent_positive
from ratherthan.search.solver import Schedule, Status, Terms
from ratherthan.superpixels import Superpixels

__all__ = [
    "CEM",
    "CEMMAF",
    "XGEM",
    "Attribute",
    "CDeepEx",
    "CEMMAFPositive",
    "CEMPositive",
    "CompleteExplanation",
    "ConstrainedSearch",
    "Counterfactual",
    "CounterfactualMethod",
    "Inversion",
    "Inverted",
    "LatentCoordinate",
    "Manifold",
    "PertinentPositive",
    "PertinentPositiveMethod",
    "Point",
    "Schedule",
    "SearchMethod",
    "SearchQuestion",
    "SearchResult",
    "Space",
    "Status",
    "Superpixels",
    "Terms",
    "class_attributes",
    "complete",
    "counterfactual",
    "counterfactual_methods",
    "invert",
    "pertinent_positive",
    "pertinent_positive_methods",
    "register_counterfactual_method",
    "register_pertinent_positive_method",
]
