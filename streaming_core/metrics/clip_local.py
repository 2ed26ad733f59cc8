"""CLIP from a local folder, for the command line; in the host, nodes use its own CLIP and CLIP_VISION instead."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError, StreamingError
from .clip_scores import ClipTools

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(frames: Tensor, size_px: int) -> Tensor:
    """Frames `[F, H, W, 3]` in 0..1 as CLIP takes them: short side `size_px`, center, normalized; `[F, 3, S, S]`."""
    images = frames.movedim(-1, 1).float()
    height, width = images.shape[-2:]
    scale = size_px / min(height, width)
    resized = max(size_px, round(height * scale)), max(size_px, round(width * scale))
    images = F.interpolate(images, resized, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = (resized[0] - size_px) // 2, (resized[1] - size_px) // 2
    images = images[..., top : top + size_px, left : left + size_px]
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def features(found) -> Tensor:
    """The projected embedding; newer transformers versions wrap it."""
    return found if isinstance(found, Tensor) else found.pooler_output


def load_clip(
    folder: str | os.PathLike[str],
    text: str | None = None,
    anchor: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> ClipTools:
    """CLIP tools from a folder in the layout of Hugging Face (config.json, model.safetensors, tokenizer files).

    Args:
        text: what frames are compared with; cut at the model's 77 tokens. None for no text score.
        anchor: as in `ClipTools`.

    Raises:
        StreamingError: transformers is not installed.
        CheckpointError: the folder holds no CLIP model, or not all of it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; give the folder of a downloaded CLIP model")
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise StreamingError(f"CLIP scores need the package transformers ({error}); install it") from error
    try:
        model, loading = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if text is not None else None
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read as a CLIP model ({error}); download it again") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} keys of CLIP (first {missing[0]}); download it again")
    model = model.eval().requires_grad_(False).to(device)
    size_px = model.config.vision_config.image_size
    embedded = None
    if tokenizer is not None:
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer([text], truncation=True, max_length=limit, return_tensors="pt").to(device)
        wanted = {key: tokens[key] for key in ("input_ids", "attention_mask")}
        embedded = features(model.get_text_features(**wanted))[0].cpu()

    def embed(frames: Tensor) -> Tensor:
        return features(model.get_image_features(pixel_values=clip_pixels(frames.to(device), size_px)))

    return ClipTools(embed, text=embedded, anchor=anchor, name=folder.name)
