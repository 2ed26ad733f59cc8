"""Videos by a trained file, made as the pack's nodes make them, with CAM and without, with the anchor and without.

parts = open_parts(Path("demo_models/demo_streamingsvd.safetensors"))
with_cam(parts, first_clip, num_frames=48, seed=0)     # [48, 3, H, W] in 0..1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from streaming_core.loop.chunk import ChunkPlan
from streaming_core.loop.script import Cue, Script
from streaming_core.loop.state import Anchor, continue_video, pick_anchor, start_video, video_chunks
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
        embed=partial(svd.embed_image, loaded.clip_vision),
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


def plan(num_frames: int, first_frames: int, seed: int, cam_strength: float = 1.0) -> ChunkPlan:
    script = Script(cam_strength=(Cue(cam_strength, 0),))
    return ChunkPlan(num_frames, CHUNK_FRAMES, OVERLAP_FRAMES, first_frames, seed, script)


def first_clip(parts: Parts, image: Tensor, seed: int) -> Tensor:
    """`[8, 3, H, W]` from a start image `[1, 3, H, W]`."""
    return parts.sampler.sample_first_clip(plan(CHUNK_FRAMES, CHUNK_FRAMES, seed).chunk(0), image)


def with_cam(parts: Parts, clip: Tensor, num_frames: int, seed: int, strength: float = 1.0) -> Tensor:
    """The video that Stream Sampler makes of a first clip `[F, 3, H, W]`: `[num_frames, 3, H, W]`."""
    chunks = plan(num_frames, len(clip), seed, strength)
    state = start_video(chunks, clip, pick_anchor(clip, ANCHOR_FRAME), parts.sampler)
    return torch.cat([clip, *(frames for _, frames in video_chunks(state, parts.sampler))])[:num_frames]


def without_anchor(parts: Parts, clip: Tensor, num_frames: int, seed: int) -> Tensor:
    """The same video where each chunk is shown the last frame before it in place of the anchor."""
    sampler, made = parts.sampler, [clip]
    state = start_video(plan(num_frames, len(clip), seed), clip, clip[-1:], sampler)
    while not state.is_complete:
        newest = made[-1][-1:]
        state = replace(state, anchor=Anchor(newest, sampler.embed_anchor(newest)))
        state, frames = continue_video(state, sampler)
        made.append(frames)
    return torch.cat(made)[:num_frames]


def without_cam(parts: Parts, clip: Tensor, num_frames: int, seed: int) -> Tensor:
    """What one does without StreamingSVD: every new clip starts from the last frame of the one before."""
    return torch.cat([clip, *_chained(parts, clip, plan(num_frames, len(clip), seed))])[:num_frames]


def _chained(parts: Parts, clip: Tensor, chunks: ChunkPlan) -> Iterator[Tensor]:
    for chunk in chunks.chunks[1:]:
        clip = parts.sampler.sample_first_clip(chunk, clip[-1:])
        yield (clip := clip[1 : 1 + CHUNK_FRAMES - OVERLAP_FRAMES])
