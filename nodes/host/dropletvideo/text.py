"""DropletVideo's prompts: 400 tokens of T5 XXL, padding included, no weights (reference: dropletvideo, section 3)."""

from __future__ import annotations

from typing import Any

from comfy.sd import CLIP

from ....streaming_core.errors import SettingsError
from ..encoders import Conditioning

TOKENS = 400
QUALITY = "High quality, very clear view, masterpiece, best quality, highres, ultra-detailed."
NEGATIVE = "low quality, low resolution, blurred, distorted"
_T5 = "t5xxl"
_PADDING, _END = 0, 1


def encode_text(clip: CLIP, text: str) -> Conditioning:
    """CONDITIONING of 400 tokens of one text.

    Raises:
        SettingsError: no T5 XXL, or one that leaves padding out.
    """
    tower = getattr(clip.cond_stage_model, _T5, None)
    if tower is None:
        raise SettingsError(
            "DropletVideo takes its prompt from a T5 XXL text encoder; load one with Load CLIP, type sd3"
        )
    if getattr(tower, "enable_attention_masks", False):
        raise SettingsError(
            "this text encoder leaves padding out, which DropletVideo was trained to see; load T5 XXL with Load CLIP, "
            "type sd3"
        )
    tokens = clip.tokenize(text)
    others = set(tokens) - {_T5}
    if _T5 not in tokens or others not in (set(), {"g", "l"}):
        raise SettingsError("DropletVideo takes its prompt from T5 XXL alone; load it with Load CLIP, type sd3")
    return clip.encode_from_tokens_scheduled({**{name: [] for name in others}, _T5: [_exactly(tokens[_T5])]})


def _exactly(sections: list[list[tuple[Any, ...]]]) -> list[tuple[Any, float]]:
    """One section of `TOKENS` tokens of weight 1: cut off before its end token, or padded."""
    words = [token[0] for section in sections for token in section if not _is_special(token[0])]
    kept = [*words[: TOKENS - 1], _END]
    return [(token, 1.0) for token in [*kept, *[_PADDING] * (TOKENS - len(kept))]]


def _is_special(token: Any) -> bool:
    return isinstance(token, int) and token in (_PADDING, _END)
