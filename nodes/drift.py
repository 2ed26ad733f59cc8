"""Nodes against drift: colors matched to the first chunk, and noise on the tail."""

from __future__ import annotations

from ..streaming_core.color.anchor import COLOR_SPACES, ColorAnchor
from ..streaming_core.color.anchored import AnchoredFrames
from ..streaming_core.loop.chunk_layout import lay_out, parse_chunks
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
            outputs=[
                ChunkSampler.Output(
                    display_name="chunk_sampler", tooltip="Connect to Stream Sampler, Start Video or Stream Chunk."
                )
            ],
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
                    "sets held_noise. Replaces the level of a Perturb Tail in front; 0: off. The models were not "
                    "trained with it: 0.01 to 0.05 is plenty.",
                ),
            ],
            outputs=[
                ChunkSampler.Output(
                    display_name="chunk_sampler", tooltip="Connect to Stream Sampler, Start Video or Stream Chunk."
                )
            ],
        )

    @classmethod
    def execute(cls, chunk_sampler, level):
        return io.NodeOutput(chunk_sampler.with_perturbed_tail(level))


NODES = (ColorAnchorNode, ColorAnchorStream, PerturbTail)
