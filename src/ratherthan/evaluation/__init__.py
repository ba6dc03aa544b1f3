"""HOW FAITHFUL: experiments on explanations, and the verb that runs them."""

from ratherthan.evaluation.confidence_drop import ConfidenceDrop
from ratherthan.evaluation.counterfactuals import Counterfactuals
from ratherthan.evaluation.deletion import Deletion
from ratherthan.evaluation.equal_mask import EqualMask
from ratherthan.evaluation.experiment import Batch, Experiment, experiments, register_experiment
from ratherthan.evaluation.insertion import Insertion
from ratherthan.evaluation.localisation import Localisation
from ratherthan.evaluation.mask import Mask
from ratherthan.evaluation.pertinent import Pertinent
from ratherthan.evaluation.run import evaluate
from ratherthan.evaluation.sanity import Sanity
from ratherthan.evaluation.sign_perturbation import SignPerturbation
from ratherthan.evaluation.tables import Run

__all__ = [
    "Batch",
    "ConfidenceDrop",
    "Counterfactuals",
    "Deletion",
    "EqualMask",
    "Experiment",
    "Insertion",
    "Localisation",
    "Mask",
    "Pertinent",
    "Run",
    "Sanity",
    "SignPerturbation",
    "evaluate",
    "experiments",
    "register_experiment",
]
