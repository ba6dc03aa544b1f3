"""Why P, rather than Q? Contrastive explanations for PyTorch image networks."""

from ratherthan.attribution import (
    GradCAM,
    Gradient,
    InputXGradient,
    LinearApproximation,
    Method,
    compare,
    explain,
    methods,
    register_method,
)
from ratherthan.contrast import Contrast, Question, contrasts, register_contrast
from ratherthan.errors import InputError, LayerError, ModelError, RatherThanError, UnsupportedError
from ratherthan.explanation import Explanation, save_report
from ratherthan.model import Model, load, read_class_names

__version__ = "0.1.0"

__all__ = [
    "Contrast",
    "Explanation",
    "GradCAM",
    "Gradient",
    "InputError",
    "InputXGradient",
    "LayerError",
    "LinearApproximation",
    "Method",
    "Model",
    "ModelError",
    "Question",
    "RatherThanError",
    "UnsupportedError",
    "compare",
    "contrasts",
    "explain",
    "load",
    "methods",
    "read_class_names",
    "register_contrast",
    "register_method",
    "save_report",
]
