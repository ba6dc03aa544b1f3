"""Why P, rather than Q? Contrastive explanations for PyTorch image networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratherthan import data
    from ratherthan.attribution import (  # type: ignore[no-redef]  # a function has the name of its module
        LRP,
        DeepLift,
        GradCAM,
        Gradient,
        InputXGradient,
        IntegratedGradients,
        Lime,
        LinearApproximation,
        Method,
        Occlusion,
        PatchGaussian,
        PredictionDifference,
        SmoothGrad,
        compare,
        compare_quality,
        explain,
        methods,
        quality_figure,
        register_method,
    )
    from ratherthan.attribution.explanation import Explanation, save_report
    from ratherthan.contrast import Contrast, Question, contrasts, margin, register_contrast
    from ratherthan.errors import InputError, LayerError, ModelError, RatherThanError, UnsupportedError
    from ratherthan.evaluation import Experiment, Run, evaluate, experiments, register_experiment
    from ratherthan.loading import load, read_class_names
    from ratherthan.model import Model
    from ratherthan.search import (  # type: ignore[no-redef]  # two functions have the names of their modules
        CEM,
        CEMMAF,
        XGEM,
        Attribute,
        CDeepEx,
        CEMMAFPositive,
        CEMPositive,
        CompleteExplanation,
        ConstrainedSearch,
        Counterfactual,
        CounterfactualMethod,
        Inversion,
        LatentCoordinate,
        Manifold,
        PertinentPositive,
        PertinentPositiveMethod,
        Point,
        Schedule,
        SearchMethod,
        SearchQuestion,
        SearchResult,
        Space,
        Status,
        Superpixels,
        Terms,
        class_attributes,
        complete,
        counterfactual,
        counterfactual_methods,
        invert,
        pertinent_positive,
        pertinent_positive_methods,
        register_counterfactual_method,
        register_pertinent_positive_method,
    )

__version__ = "0.1.0"

__all__ = [
    "CEM",
    "CEMMAF",
    "LRP",
    "XGEM",
    "Attribute",
    "CDeepEx",
    "CEMMAFPositive",
    "CEMPositive",
    "CompleteExplanation",
    "ConstrainedSearch",
    "Contrast",
    "Counterfactual",
    "CounterfactualMethod",
    "DeepLift",
    "Experiment",
    "Explanation",
    "GradCAM",
    "Gradient",
    "InputError",
    "InputXGradient",
    "IntegratedGradients",
    "Inversion",
    "LatentCoordinate",
    "LayerError",
    "Lime",
    "LinearApproximation",
    "Manifold",
    "Method",
    "Model",
    "ModelError",
    "Occlusion",
    "PatchGaussian",
    "PertinentPositive",
    "PertinentPositiveMethod",
    "Point",
    "PredictionDifference",
    "Question",
    "RatherThanError",
    "Run",
    "Schedule",
    "SearchMethod",
    "SearchQuestion",
    "SearchResult",
    "SmoothGrad",
    "Space",
    "Status",
    "Superpixels",
    "Terms",
    "UnsupportedError",
    "class_attributes",
    "compare",
    "compare_quality",
    "complete",
    "contrasts",
    "counterfactual",
    "counterfactual_methods",
    "data",
    "evaluate",
    "experiments",
    "explain",
    "invert",
    "load",
    "margin",
    "methods",
    "pertinent_positive",
    "pertinent_positive_methods",
    "quality_figure",
    "read_class_names",
    "register_contrast",
    "register_counterfactual_method",
    "register_experiment",
    "register_method",
    "register_pertinent_positive_method",
    "save_report",
]

_ROOMS = ("errors", "contrast", "model", "loading", "attribution.explanation", "attribution", "search", "evaluation")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `ratherthan --help` need not wait for torch."""
    if name == "data":
        return import_module("ratherthan.data")
    if name in __all__:
        for room in _ROOMS:
            module = import_module(f"ratherthan.{room}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'ratherthan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
