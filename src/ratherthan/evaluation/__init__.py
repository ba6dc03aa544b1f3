"""HOW FAITHFUL: experiments on explanations, and the verb that runs them. Importing it registers the experiments."""

from . import counterfactuals, localisation, masking, pertinent, sanity, sign_perturbation  # noqa: F401
