"""What only replicates the experiments of papers: their data sets, networks, recipes and image-quality maps.

A plug-in of `ratherthan` like any other: it registers its names by the public `register_*`, and nothing imports it.
They are found by the package's entry point in `ratherthan.plugins`, or after `import ratherthan.replication`.
"""

from ratherthan.replication import cdeepex, cem_maf, iqa  # noqa: F401 - each registers its own
