"""What a run was made with, readable and by content, and what changed since.

`describe` tells any Python value by content, `differences` compares two descriptions, `RunTimeState` keeps what changes
while sampling out of them. What is special about a host's objects comes from outside, as rules.
"""

from __future__ import annotations

from .compare import MISSING, Change, differences, sentence, undescribed
from .describe import Describer, Rule, describe
from .leaves import NOT_MINE, NotMine
from .plain import Plain, digest, to_json
from .slots import RunTimeState
from .tensors import describe_tensor, digest_of_weights, tensor_digest

__all__ = [
    "MISSING",
    "NOT_MINE",
    "Change",
    "Describer",
    "NotMine",
    "Plain",
    "Rule",
    "RunTimeState",
    "describe",
    "describe_tensor",
    "differences",
    "digest",
    "digest_of_weights",
    "sentence",
    "tensor_digest",
    "to_json",
    "undescribed",
]
