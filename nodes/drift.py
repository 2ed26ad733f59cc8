"""Nodes against drift: colors matched to the first chunk, noise on the tail, guidance against the previous chunk."""

from __future__ import annotations

from ..streaming_core.color.anchor import COLOR_SPACES, ColorAnchor
from ..streaming_core.color.anchored import AnchoredFrames
from ..streaming_core.loop.chunk_layout import lay_out, parse_chunks
from ..streaming_core.loop.remedies import Perturbation, PreviousGuidance
from .host.compat import io, schema
from .host.video.streams import as_stream
from .types import CATEGORY as PACK_CATEGORY
from .types import ChunkSampler, FrameStream

CATEGORY = f"{PACK_CATEGORY}/drift"


def anchor_inputs() -> list:
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How much of the measured drift is removed, 0 (nothing) to 1 (all).",
        ),
        io.Float.Input(
            "cut_threshold",
            default=0.6,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Change between two frames that counts as a scene cut, 0 to 1. After a cut colors are left "
            "unchanged. Motion stays below 0.5, cuts are close to 1. 0 turns cut detection off.",
        ),
    ]


def schedule_inputs(amount: str, growth_step: float, at_start: str) -> list:
    """How an amount grows from chunk to chunk, and in which part of sampling it acts."""
    return [
        io.Float.Input(
            "growth",
            default=0.0,
            min=0.0,
            max=1.0,
            step=growth_step,
            optional=True,
            tooltip=f"What every chunk after the second adds to {amount}: chunk k has {amount} + growth x (k - 1), the "
            "first chunk being 0. It ends at 1. 0: the same in all chunks.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            optional=True,
            tooltip="Where in the sampling of a chunk it begins, 0 to 1, measured as in Apply ControlNet. 0: at the "
            "first step.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            optional=True,
            tooltip=f"Where in the sampling of a chunk it ends, 0 to 1. 1: at the last step. {at_start}",
        ),
    ]


def chunk_sampler_output() -> ChunkSampler.Output:
    return ChunkSampler.Output(
        display_name="chunk_sampler", tooltip="Connect to Stream Sampler, Start Video or Stream Chunk."
    )


class ColorAnchorNode(io.ComfyNode):
    """Color correction inside the loop, for any family."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VColorAnchor",
            display_name="Color Anchor",
            category=CATEGORY,
            description="Matches colors, brightness and contrast of every chunk to the first chunk while the video is "
            "made. Moving objects and scene cuts are left alone.",
            search_aliases=["color drift", "colour drift", "color match", "brightness drift", "saturation"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="Chunk sampler of any model family."),
                io.Combo.Input(
                    "space",
                    options=list(COLOR_SPACES),
                    default="lab",
                    tooltip="lab: correct the frames. Models that continue frames (StreamingSVD, StreamingModelscope) "
                    "continue the corrected ones. latent: correct the latents, so that models that continue latents "
                    "do too; corrected chunks are decoded twice.",
                ),
                *anchor_inputs(),
            ],
            outputs=[chunk_sampler_output()],
        )

    @classmethod
    def execute(cls, chunk_sampler, **options):
        return io.NodeOutput(ColorAnchor(chunk_sampler, **options))


class ColorAnchorStream(io.ComfyNode):
    """Color correction of a finished video."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VColorAnchorStream",
            display_name="Color Anchor (Stream)",
            category=CATEGORY,
            description="Matches colors, brightness and contrast of a finished video to its first chunk, chunk by "
            "chunk, while it is read.",
            search_aliases=["color drift", "colour drift", "color match"],
            inputs=[
                io.MultiType.Input(
                    "frames",
                    types=[FrameStream, io.Video, io.Image],
                    tooltip="Video to correct. Streams and video files are read in slices.",
                ),
                io.String.Input(
                    "chunks",
                    default="25,18",
                    tooltip="Frames per chunk, the last number repeated: 25,18 for StreamingSVD, 16,8 for "
                    "StreamingModelscope. Use about one second for a video without chunks.",
                ),
                *anchor_inputs(),
            ],
            outputs=[
                FrameStream.Output(
                    display_name="frames", tooltip="The corrected video, with the same number of frames."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, chunks=None):
        try:
            parse_chunks(chunks or "1")  # a linked text comes later
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, frames, chunks, strength, cut_threshold):
        stream = as_stream(frames, 24.0)
        return io.NodeOutput(
            AnchoredFrames(stream, lay_out(len(stream), parse_chunks(chunks)), strength, cut_threshold)
        )


class PerturbTail(io.ComfyNode):
    """Noise on the frames that a chunk continues, against drift (LVDM)."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VPerturbTail",
            display_name="Perturb Tail",
            category=CATEGORY,
            description="Adds noise to the frames that each chunk continues, so that small flaws are not copied from "
            "chunk to chunk (conditional perturbation, LVDM). The video keeps the clean frames.",
            search_aliases=["drift", "noise augmentation", "lvdm", "error accumulation"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="Chunk sampler of any model family."),
                io.Float.Input(
                    "level",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Standard deviation of the noise, for frames from 0 to 1. With Any Model Chunk Sampler it "
                    "sets held_noise, with LVDM Chunk Sampler noise_level (0.455 is level 100). Replaces the level of "
                    "a Perturb Tail in front; 0: off. Other models were not trained with it: 0.01 to 0.05 is plenty.",
                ),
                *schedule_inputs("level", 0.001, "0.4: later steps see the clean frames."),
            ],
            outputs=[chunk_sampler_output()],
        )

    @classmethod
    def execute(cls, chunk_sampler, level, growth=0.0, start_percent=0.0, end_percent=1.0):
        return io.NodeOutput(chunk_sampler.with_perturbed_tail(Perturbation(level, growth, start_percent, end_percent)))


class PreviousChunkGuidance(io.ComfyNode):
    """Guidance against what the model makes without the previous chunk (LVDM)."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VPreviousChunkGuidance",
            display_name="Previous Chunk Guidance",
            category=CATEGORY,
            description="Makes each chunk follow the previous one more closely: guidance towards what the model makes "
            "with the end of the previous chunk, away from what it makes without (unconditional guidance, LVDM). "
            "Works together with CFG, and costs one more model call per step.",
            search_aliases=["drift", "guidance", "lvdm", "continuity", "cfg"],
            inputs=[
                ChunkSampler.Input(
                    "chunk_sampler",
                    tooltip="Chunk sampler of StreamingSVD, StreamingModelscope, DropletVideo, LVDM or Any Model.",
                ),
                io.Float.Input(
                    "weight",
                    default=0.0,
                    min=0.0,
                    max=5.0,
                    step=0.01,
                    tooltip="Weight of the guidance, 0 to 5: this share of what the previous chunk makes different "
                    "is added once more. 0: off; 0.05 to 0.2 is usual. With Any Model and LVDM Chunk Sampler it "
                    "sets previous_guidance. Replaces the weight of a Previous Chunk Guidance in front.",
                ),
                *schedule_inputs("weight", 0.005, "0.4: later steps need no further model call."),
            ],
            outputs=[chunk_sampler_output()],
        )

    @classmethod
    def execute(cls, chunk_sampler, weight, growth=0.0, start_percent=0.0, end_percent=1.0):
        return io.NodeOutput(
            chunk_sampler.with_previous_guidance(PreviousGuidance(weight, growth, start_percent, end_percent))
        )


NODES = (ColorAnchorNode, ColorAnchorStream, PerturbTail, PreviousChunkGuidance)
