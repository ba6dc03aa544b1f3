"""WHAT would have to change, and what is enough: searches for altered images."""

from ratherthan.search import cdeepex, cem, cem_maf, words  # noqa: F401 (each registers what it holds)
