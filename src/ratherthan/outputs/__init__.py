"""What a network says: one object turns what the module returns into scores (N, K) and knows what they mean."""

from ratherthan.outputs.classes import (
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
from ratherthan.outputs.prompts import Prompts
from ratherthan.outputs.regions import Detection, Region

__all__ = [
    "OUTPUTS", "Continuations", "Detection", "Ending", "Labels", "Logits", "NextToken", "Output", "Probabilities",
    "Prompts", "Region", "Value", "output_of", "plain_ending",
]  # fmt: skip
