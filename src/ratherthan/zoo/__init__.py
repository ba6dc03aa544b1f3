"""The small trained networks that come with the package, their architectures and their recipes."""

from ratherthan.zoo.registry import ENTRIES, ZooModel, class_names, get, load_weights, names, read_weights

__all__ = ["ENTRIES", "ZooModel", "class_names", "get", "load_weights", "names", "read_weights"]
