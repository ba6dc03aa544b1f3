"""WHERE: attribution methods and the verb that runs them; each module of methods registers its own."""

from ratherthan.attribution import activation, gradient, perturbation, prediction_difference, rules, scan  # noqa: F401
