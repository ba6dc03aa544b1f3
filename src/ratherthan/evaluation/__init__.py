"""HOW FAITHFUL: experiments on explanations, and `evaluate` to run them. Importing it registers the experiments."""

from . import (  # noqa: F401
    bench,
    counterfactuals,
    deleted,
    localisation,
    masking,
    pertinent,
    properties,
    sanity,
    sign_perturbation,
    similarity,
)
