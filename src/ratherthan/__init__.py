"""Why P, rather than Q? Contrastive explanations for neural networks in PyTorch."""

import lazy_loader

__version__ = "0.1.0"  # the one place: the package reads it here

# the public names and where they live are listed in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
