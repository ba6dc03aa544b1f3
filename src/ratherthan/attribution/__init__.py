"""WHERE: attribution methods and the verb that runs them."""

from ratherthan.attribution.activation import GradCAM, LayerMethod, LinearApproximation
from ratherthan.attribution.deeplift_rules import register_deeplift_rule
from ratherthan.attribution.explain import compare, explain
from ratherthan.attribution.explanation import Explanation, save_report
from ratherthan.attribution.forward import ForwardPass, Graph
from ratherthan.attribution.gradient import Gradient, InputXGradient, IntegratedGradients, SmoothGrad
from ratherthan.attribution.lime import Lime
from ratherthan.attribution.lrp_rules import register_lrp_rule
from ratherthan.attribution.method import Attribution, Method, methods, register_method
from ratherthan.attribution.occlusion import Occlusion
from ratherthan.attribution.prediction_difference import PatchGaussian, PredictionDifference
from ratherthan.attribution.rules import LRP, DeepLift
from ratherthan.attribution.scan import Scan

__all__ = [
    "LRP",
    "Attribution",
    "DeepLift",
    "Explanation",
    "ForwardPass",
    "GradCAM",
    "Gradient",
    "Graph",
    "InputXGradient",
    "IntegratedGradients",
    "LayerMethod",
    "Lime",
    "LinearApproximation",
    "Method",
    "Occlusion",
    "PatchGaussian",
    "PredictionDifference",
    "Scan",
    "SmoothGrad",
    "compare",
    "explain",
    "methods",
    "register_deeplift_rule",
    "register_lrp_rule",
    "register_method",
    "save_report",
]
