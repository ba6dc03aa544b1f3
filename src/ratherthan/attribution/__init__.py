"""WHERE: attribution methods and `explain`, which runs them; each module of methods registers its own."""

from ratherthan.attribution import activation, gradient, perturbation, rules  # noqa: F401
