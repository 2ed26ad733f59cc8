"""Videos by a trained file, made as the pack's nodes make them, with CAM and without, with the anchor and without.

parts = open_parts(Path("demo_models/demo_streamingsvd.safetensors"))
with_cam(parts, first_frames, num_frames=48, seed=0)     # [48, 3, H, W] in 0..1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.script import Cue, Script
from streaming_core.loop.state import Anchor, ChunkResult
from streaming_core.loop.steps import continue_video, pick_anchor, state_after_first, video_chunks
from streaming_core.schedules.svd import align_your_steps_sigmas, karras_sigmas

from .layout import host

CHUNK_FRAMES, OVERLAP_FRAMES, ANCHOR_FRAME = 8, 3, 2
"""As the demo models were trained."""
STEPS = 10
GUIDANCE = 1.0


@dataclass(frozen=True)
class Parts:
    """What a video is made with: the host's MODEL and VAE, and the pack's chunk sampler around them."""

    sampler: object
    model: object
    vae: object
    clip_vision: object


def open_parts(path: Path, steps: int = STEPS, guidance: float = GUIDANCE) -> Parts:
    """A file of the StreamingSVD layout through the pack's own loader."""
    svd = host().svd
    from comfyui_streamingt2v.nodes.host.svd.load import open_streamingsvd

    loaded = open_streamingsvd(str(path))
    euler = svd.default_sampling().sampler
    sampler = svd.SvdChunkSampler(
        model=loaded.model,
        cam=loaded.cam,
        vae=loaded.vae,
        clip_vision=loaded.clip_vision,
        first_model=loaded.model,
        motion=svd.MotionSettings(fps=6),
        sampling=svd.SamplingSettings(euler, align_your_steps_sigmas(steps).float(), guidance, guidance),
        first_sampling=svd.SamplingSettings(euler, karras_sigmas(steps), guidance, guidance),
    )
    return Parts(sampler, loaded.model, loaded.vae, loaded.clip_vision)


def at_speed(parts: Parts, motion_bucket_id: int) -> Parts:
    """The same parts with another motion bucket: 127 is `videos.NARROW_SPEED`."""
    motion = replace(parts.sampler.motion, motion_bucket_id=motion_bucket_id)
    return replace(parts, sampler=replace(parts.sampler, motion=motion))


def plan(num_frames: int, first_frames: int, seed: int, cam_strength: float = 1.0) -> VideoPlan:
    script = Script(cam_strength=(Cue(cam_strength, 0),))
    return VideoPlan(num_frames, CHUNK_FRAMES, OVERLAP_FRAMES, seed, script=script, given_frames=first_frames)


def first_chunk(parts: Parts, image: Tensor, seed: int) -> Tensor:
    """`[8, 3, H, W]` from a start image `[1, 3, H, W]`."""
    chunk = plan(CHUNK_FRAMES, CHUNK_FRAMES, seed).chunk(0)
    return parts.sampler.first_chunk(chunk, tuple(image.shape[-2:]), image).frames


def with_cam(parts: Parts, first: Tensor, num_frames: int, seed: int, strength: float = 1.0) -> Tensor:
    """The video that Stream Sampler makes of first frames `[F, 3, H, W]`: `[num_frames, 3, H, W]`."""
    chunks = plan(num_frames, len(first), seed, strength)
    state = state_after_first(chunks, ChunkResult(first), pick_anchor(first, ANCHOR_FRAME), parts.sampler)
    return torch.cat([first, *(frames for _, frames in video_chunks(state, parts.sampler))])[:num_frames]


def without_anchor(parts: Parts, first: Tensor, num_frames: int, seed: int) -> Tensor:
    """The same video where each chunk is shown the last frame before it in place of the anchor."""
    sampler, made = parts.sampler, [first]
    state = state_after_first(plan(num_frames, len(first), seed), ChunkResult(first), first[-1:], sampler)
    while not state.is_complete:
        newest = made[-1][-1:]
        state = replace(state, anchor=Anchor(newest, sampler.embed_anchor(newest)))
        state, frames = continue_video(state, sampler)
        made.append(frames)
    return torch.cat(made)[:num_frames]


def without_cam(parts: Parts, first: Tensor, num_frames: int, seed: int) -> Tensor:
    """What one does without StreamingSVD: every new chunk starts from the last frame of the one before."""
    return torch.cat([first, *_chained(parts, first, plan(num_frames, len(first), seed))])[:num_frames]


def _chained(parts: Parts, frames: Tensor, chunks: VideoPlan) -> Iterator[Tensor]:
    size = (int(frames.shape[-2]), int(frames.shape[-1]))
    for chunk in chunks.chunks[1:]:
        frames = parts.sampler.first_chunk(chunk, size, frames[-1:]).frames
        yield (frames := frames[1 : 1 + CHUNK_FRAMES - OVERLAP_FRAMES])
