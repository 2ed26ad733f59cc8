"""Nodes against drift: colors kept at the anchor chunk's, and a perturbed tail."""

from __future__ import annotations

from ..streaming_core.color.anchor import COLOR_SPACES, ColorAnchor
from ..streaming_core.color.anchored import AnchoredFrames
from ..streaming_core.loop.layout import lay_out, parse_chunks
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
            tooltip="How much of the measured drift is taken back, 0 (nothing) to 1 (all).",
        ),
        io.Float.Input(
            "cut_threshold",
            default=0.6,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Change between two frames that counts as a scene cut, 0 to 1: from there on colors stay as they "
            "are. Motion is below 0.5, cuts are about 1. 0: do not look for cuts.",
        ),
    ]


class ColorAnchorNode(io.ComfyNode):
    """Color anchoring inside the loop, for any family."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VColorAnchor",
            display_name="Color Anchor",
            category=CATEGORY,
            description="Keeps colors, brightness and contrast of every chunk at those of the video's first clip while "
            "the video is made. Moving things and scene cuts are left alone.",
            search_aliases=["color drift", "color drift", "color match", "brightness drift", "saturation"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="How a chunk is made, by any family."),
                io.Combo.Input(
                    "space",
                    options=list(COLOR_SPACES),
                    default="lab",
                    tooltip="lab: the frames, which is exact; models that continue frames (StreamingSVD, "
                    "StreamingModelscope) go on from the corrected ones. latent: the latents, so that models that "
                    "continue latents do too; chunks that need it are decoded twice.",
                ),
                *anchor_inputs(),
            ],
            outputs=[ChunkSampler.Output(display_name="chunk_sampler", tooltip="For Stream Sampler or Stream Chunk.")],
        )

    @classmethod
    def execute(cls, chunk_sampler, **options):
        return io.NodeOutput(ColorAnchor(chunk_sampler, **options))


class ColorAnchorStream(io.ComfyNode):
    """Color anchoring of a video that exists."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VColorAnchorStream",
            display_name="Color Anchor (Stream)",
            category=CATEGORY,
            description="Brings colors, brightness and contrast of a finished video back to those of its first chunk, "
            "chunk by chunk, while it is read.",
            search_aliases=["color drift", "color drift", "color match"],
            inputs=[
                io.MultiType.Input(
                    "frames",
                    types=[FrameStream, io.Video, io.Image],
                    tooltip="The video. Streams and video files are read in slices.",
                ),
                io.String.Input(
                    "chunks",
                    default="25,18",
                    tooltip="Frames per chunk, the last number repeated: 25,18 is StreamingSVD's, 16,8 "
                    "StreamingModelscope's. Use a second's worth where the video has no chunks.",
                ),
                *anchor_inputs(),
            ],
            outputs=[FrameStream.Output(display_name="frames", tooltip="The corrected video, of the same length.")],
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
    """Noise on what a chunk continues, LVDM's remedy against drift."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VPerturbTail",
            display_name="Perturb Tail",
            category=CATEGORY,
            description="Shows each chunk the end of the one before with noise on it, so that small faults are not "
            "copied on and on (conditional perturbation, LVDM). The video keeps the clean frames.",
            search_aliases=["drift", "noise augmentation", "lvdm", "error accumulation"],
            inputs=[
                ChunkSampler.Input("chunk_sampler", tooltip="How a chunk is made, by any family."),
                io.Float.Input(
                    "level",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise on frames of 0 to 1 as a standard deviation; for Any Model Chunk Sampler its "
                    "held_noise. 0: off. The networks were not trained with it: 0.01 to 0.05 is plenty.",
                ),
            ],
            outputs=[ChunkSampler.Output(display_name="chunk_sampler", tooltip="For Stream Sampler or Stream Chunk.")],
        )

    @classmethod
    def execute(cls, chunk_sampler, level):
        return io.NodeOutput(chunk_sampler.with_perturbed_tail(level) if level else chunk_sampler)


NODES = (ColorAnchorNode, ColorAnchorStream, PerturbTail)
