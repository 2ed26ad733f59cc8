"""One LVDM file taken apart into what each network loads (reference: lvdm, section 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...errors import CheckpointError
from ..registry import IncompleteCheckpointError, Value, take
from ..wrappers import beside
from .config import LatentScale
from .detect import ARCHITECTURE, AUTOENCODER

UNET, AVERAGE, FIRST_STAGE, TEXT = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
TEXT_MODEL = "transformer."
"""What stands before the keys of CLIP below `TEXT`."""
_AUTOENCODER_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_UNET_PARTS = ("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb.")
_SCALES = ("scale_factor", "shift_factor")
_COUNTERS = ("decay", "num_updates")
"""Of a moving average."""


@dataclass(frozen=True)
class LvdmFile:
    """What a file holds, each part keyed as in its network.

    Attributes:
        unet: the weights as trained last; empty in a file of an autoencoder.
        average: their moving average, under the names of the file.
        first_stage: the autoencoder; empty where it is in a file of its own.
        text: CLIP, in the layout of Hugging Face.
        latents: what lies between the two, where the file says it.
        ignored: keys that nothing reads, by reason.
        unknown: keys of which nobody knows what they are.
    """

    unet: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    first_stage: dict[str, Tensor] = field(default_factory=dict)
    text: dict[str, Tensor] = field(default_factory=dict)
    latents: LatentScale | None = None
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unknown: Sequence[str] = ()

    def check_known(self, source: str) -> None:
        """Raise `IncompleteCheckpointError` when the file holds keys of which nobody knows what they are."""
        if self.unknown:
            raise IncompleteCheckpointError(
                f"{source} holds {len(self.unknown)} keys unknown to LVDM (first {', '.join(self.unknown[:3])}); use "
                "the official file"
            )


def parts_of(tensors: Mapping[str, Any]) -> LvdmFile:
    """The parts of a file: a whole checkpoint, or a UNet or an autoencoder alone, with or without its prefix."""
    if all(key.startswith("module.") for key in tensors):
        tensors = take(tensors, "module.")
    average = {key: value for key, value in take(tensors, AVERAGE).items() if key not in _COUNTERS}
    unet, first_stage, text = take(tensors, UNET), take(tensors, FIRST_STAGE), take(tensors, TEXT)
    ignored: dict[str, list[str]] = {}
    unknown = []
    for key in tensors:
        if key.startswith((UNET, AVERAGE, FIRST_STAGE, TEXT)) or key in _SCALES:
            continue
        if not unet and key.startswith(_UNET_PARTS):
            continue
        if not first_stage and key.startswith(_AUTOENCODER_PARTS):
            continue
        reason = beside(key)
        if reason is None:
            unknown.append(key)
        else:
            ignored.setdefault(reason, []).append(key)
    unet = unet or {key: value for key, value in tensors.items() if key.startswith(_UNET_PARTS)}
    first_stage = first_stage or {key: value for key, value in tensors.items() if key.startswith(_AUTOENCODER_PARTS)}
    kept = {key: value for key, value in first_stage.items() if not key.startswith("loss.")}
    if len(kept) < len(first_stage):
        ignored["what a training program keeps"] = [f"{FIRST_STAGE}{key}" for key in first_stage.keys() - kept.keys()]
    text = {key.removeprefix(TEXT_MODEL): value for key, value in text.items() if not key.endswith("position_ids")}
    return LvdmFile(unet, average, without_aliases(kept), text, _latents(tensors), ignored, unknown)


def _latents(tensors: Mapping[str, Tensor]) -> LatentScale | None:
    if "scale_factor" not in tensors:
        return None
    return LatentScale(*(float(tensors[key]) if key in tensors else 0.0 for key in _SCALES))


def without_aliases(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Weights of an autoencoder once each: officially `X.conv.weight` also lies under `X.weight`."""
    named: dict[str, Value] = {}
    for key, value in tensors.items():
        stem, _, last = key.rpartition(".")
        own = f"{stem}.conv.{last}"
        if last == "weight" and f"{stem}.conv.bias" in tensors:
            # A program that saves shared tensors once may have kept either name.
            named.setdefault(own, value)
        else:
            named[key] = value
    return named


def average_name(name: str) -> str:
    """The key below `model_ema.` of the UNet's parameter `name`: without any dot."""
    return ("diffusion_model." + name).replace(".", "")


def averaged(average: Mapping[str, Value], parameters: Iterable[str], source: str) -> dict[str, Value]:
    """A moving average under the names of the UNet's `parameters`, which decide, since dots cannot be put back by rule.

    Raises:
        CheckpointError: the file has no average.
        IncompleteCheckpointError: some are missing, or belong to no parameter.
    """
    if not average:
        raise CheckpointError(f"{source} holds no moving average of its weights; choose the weights as trained last")
    names = {average_name(name): name for name in parameters}
    missing, unexpected = sorted(names.keys() - average.keys()), sorted(average.keys() - names.keys())
    problems = [
        f"{len(keys)} {word} (first {', '.join(keys[:3])})"
        for word, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if problems:
        raise IncompleteCheckpointError(
            f"the moving average in {source} does not fit its UNet: {'; '.join(problems)}; use a complete file, or "
            "choose the weights as trained last"
        )
    return {names[key]: value for key, value in average.items()}


def check_unet(file: LvdmFile, keys: Iterable[str], source: str) -> None:
    """Raise `WrongCheckpointError`, which says what the file is, unless it holds LVDM's UNet."""
    ARCHITECTURE.check(file.unet or _bare(keys), source)


def check_autoencoder(file: LvdmFile, keys: Iterable[str], source: str) -> None:
    """The same for LVDM's 3-D autoencoder."""
    AUTOENCODER.check(file.first_stage or _bare(keys), source)


def _bare(keys: Iterable[str]) -> list[str]:
    """Keys of a file that holds neither, as refusals tell files apart by them."""
    prefix = re.compile(rf"^({re.escape(UNET)}|{re.escape(FIRST_STAGE)}|module\.)")
    return [prefix.sub("", key) for key in keys]
