"""What a network sees: one object knows how raw things become tensors and what may be taken for one."""

from ratherthan.inputs.arrays import Arrays, Signals, Table, Volumes
from ratherthan.inputs.images import PREPROCESSING, Images
from ratherthan.inputs.method import Inputs
from ratherthan.inputs.text import Text

__all__ = ["PREPROCESSING", "Arrays", "Images", "Inputs", "Signals", "Table", "Text", "Volumes"]
