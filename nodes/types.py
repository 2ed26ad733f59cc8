"""Link types of the pack (docs/design.md, section 3)."""

from __future__ import annotations

from .host.compat import io

StreamingCam = io.Custom("STREAMING_CAM")
StreamingApm = io.Custom("STREAMING_APM")
ChunkSampler = io.Custom("CHUNK_SAMPLER")
ChunkPlan = io.Custom("CHUNK_PLAN")
ChunkPrompts = io.Custom("CHUNK_PROMPTS")
VideoState = io.Custom("VIDEO_STATE")
FrameStream = io.Custom("FRAME_STREAM")
InterpModel = io.Custom("INTERP_MODEL")
CATEGORY = "video/StreamingT2V"
