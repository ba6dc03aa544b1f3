"""WHERE: attribution methods and the verb that runs them."""

from ratherthan.attribution.activation import GradCAM, LinearApproximation
from ratherthan.attribution.deeplift_rules import register_deeplift_rule
from ratherthan.attribution.explain import compare, explain
from ratherthan.attribution.gradient import Gradient, InputXGradient, IntegratedGradients, SmoothGrad
from ratherthan.attribution.lrp_rules import register_lrp_rule
from ratherthan.attribution.method import Attribution, Method, methods, register_method
from ratherthan.attribution.perturbation import Lime, Occlusion, PatchGaussian, PredictionDifference
from ratherthan.attribution.quality import compare_quality, quality_figure
from ratherthan.attribution.rules import LRP, DeepLift

__all__ = [
    "LRP",
    "Attribution",
    "DeepLift",
    "GradCAM",
    "Gradient",
    "InputXGradient",
    "IntegratedGradients",
    "Lime",
    "LinearApproximation",
    "Method",
    "Occlusion",
    "PatchGaussian",
    "PredictionDifference",
    "SmoothGrad",
    "compare",
    "compare_quality",
    "explain",
    "methods",
    "quality_figure",
    "register_deeplift_rule",
    "register_lrp_rule",
    "register_method",
]
