"""WHERE: attribution methods and the verb that runs them."""

from ratherthan.attribution.activation import GradCAM, LinearApproximation
from ratherthan.attribution.explain import compare, explain
from ratherthan.attribution.gradient import Gradient, InputXGradient
from ratherthan.attribution.method import Maps, Method, methods, register_method

__all__ = [
    "GradCAM",
    "Gradient",
    "InputXGradient",
    "LinearApproximation",
    "Maps",
    "Method",
    "compare",
    "explain",
    "methods",
    "register_method",
]
