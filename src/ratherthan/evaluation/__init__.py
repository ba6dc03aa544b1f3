"""HOW FAITHFUL: experiments on explanations, and the verb that runs them."""

from ratherthan.evaluation.counterfactuals import Counterfactuals
from ratherthan.evaluation.deletion import ConfidenceDrop, Deletion, Insertion
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, experiments, register_experiment
from ratherthan.evaluation.localisation import Localisation
from ratherthan.evaluation.masking import EqualMask, Mask
from ratherthan.evaluation.pertinent import Pertinent
from ratherthan.evaluation.run import evaluate
from ratherthan.evaluation.sanity import Sanity
from ratherthan.evaluation.sign_perturbation import SignPerturbation
from ratherthan.evaluation.tables import Run

__all__ = [
    "Batch", "ConfidenceDrop", "Counterfactuals", "Deletion", "EqualMask", "Experiment", "Insertion", "Localisation",
    "Mask", "Pertinent", "Rows", "Run", "Sanity", "SignPerturbation", "evaluate", "experiments", "register_experiment",
]  # fmt: skip
