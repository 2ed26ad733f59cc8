"""Nodes of randomized blending: any native video model on videos of any length."""

from __future__ import annotations

from .host.compat import io, schema
from .host.windows.blending import with_randomized_blending
from .host.windows.conditions import with_window_conditions
from .types import CATEGORY


class RandomizedBlending(io.ComfyNode):
    """A model that samples long videos in windows without seams."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VRandomizedBlending",
            display_name="Randomized Blending",
            category=CATEGORY,
            description="Samples a long video in overlapping windows, with any video model and sampler. At every step "
            "each overlap is cut at a new random frame, so no seam stays and nothing is averaged.",
            search_aliases=["streamingt2v", "context windows", "long video", "seamless"],
            inputs=[
                io.Model.Input("model", tooltip="Any native video model: SVD, Wan, LTX, Hunyuan, Cosmos, ..."),
                io.Int.Input(
                    "window",
                    default=81,
                    min=1,
                    max=10_000,
                    tooltip="Frames the model sees at once, best what it was trained on: 81 for Wan, 25 for SVD. "
                    "Shorter videos pass through unchanged. Time and memory of a model call go with it.",
                ),
                io.Int.Input(
                    "overlap",
                    default=24,
                    min=0,
                    max=9_999,
                    tooltip="Frames that neighboring windows share, 0 to below window. More blends better and takes "
                    "longer; a third of the window is usual.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the cuts, 0 to 2^64 - 1, apart from the sampler's. The same seed cuts the same "
                    "way.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler node.")],
        )

    @classmethod
    def execute(cls, model, window, overlap, seed):
        return io.NodeOutput(with_randomized_blending(model, window, overlap, seed))


class WindowConditioning(io.ComfyNode):
    """Prompts and images of their own for the windows of a video."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VWindowConditioning",
            display_name="Window Conditioning",
            category=CATEGORY,
            description="Gives each window of Randomized Blending a prompt or start image of its own. Connect a list, "
            "for example the list of keyframes through a node that makes conditioning.",
            search_aliases=["prompt travel", "prompt schedule", "per window"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="Conditioning of the whole video: areas, masks, time ranges and controls come from here.",
                ),
                io.Conditioning.Input(
                    "windows",
                    tooltip="List of conditionings, first window first. Fewer than there are windows: each serves "
                    "several in a row. An image condition stands at the first frame of its window.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For the sampler.")],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, conditioning, windows):
        return io.NodeOutput(with_window_conditions(conditioning[0], windows))


NODES = (RandomizedBlending, WindowConditioning)
