"""HOW FAITHFUL: experiments on explanations, and `evaluate` to run them. Importing it registers the experiments."""

from . import counterfactuals, localisation, masking, pertinent, sanity, sign_perturbation  # noqa: F401
