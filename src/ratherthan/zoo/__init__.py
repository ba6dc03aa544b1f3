"""The small trained networks that come with the package: their architectures, entries and recipes."""

from ratherthan.zoo import architectures, efficientnet, kinds, vae  # noqa: F401 - each registers its own
from ratherthan.zoo.registry import ZOO, ZooEntry, class_names, entry_of, get, load_weights, names, register_zoo_model

__all__ = ["ZOO", "ZooEntry", "class_names", "entry_of", "get", "load_weights", "names", "register_zoo_model"]
