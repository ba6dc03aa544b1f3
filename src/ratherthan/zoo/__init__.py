"""The small trained networks that come with the package; architecture, entry and recipe of each stand in one file."""

from ratherthan.zoo import digit_network, plainnet, resnet9, squeezenet, vae  # noqa: F401 - each registers its own
from ratherthan.zoo.registry import ZOO, ZooEntry, class_names, entry_of, get, load_weights, names, register_zoo_model

__all__ = ["ZOO", "ZooEntry", "class_names", "entry_of", "get", "load_weights", "names", "register_zoo_model"]
