"""What a network says: one object turns what the module returns into scores (N, K) and knows what they mean."""

from ratherthan.outputs.classes import (
    NONE,
    OUTPUTS,
    Ending,
    Labels,
    Logits,
    Output,
    Probabilities,
    Value,
    output_of,
    plain_ending,
)
from ratherthan.outputs.language import Continuations, NextToken
from ratherthan.outputs.prompts import Pictures, Prompts
from ratherthan.outputs.regions import DetectedLabels, Detection, Region

__all__ = [
    "NONE", "OUTPUTS", "Continuations", "DetectedLabels", "Detection", "Ending", "Labels", "Logits", "NextToken",
    "Output", "Pictures", "Probabilities", "Prompts", "Region", "Value", "output_of", "plain_ending",
]  # fmt: skip
