"""Nodes of randomized blending: any native video model on videos of any length."""

from __future__ import annotations

from typing import Any

from .forms import seed_input
from .host.compat import io, schema
from .host.windows.blending import with_randomized_blending
from .host.windows.conditions import with_window_conditions
from .types import CATEGORY


class RandomizedBlending(io.ComfyNode):
    """A model that samples long videos in windows without seams."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VRandomizedBlending",
            display_name="Randomized Blending",
            category=CATEGORY,
            description="Samples a long video in overlapping windows, with any video model and sampler. At every step "
            "the next window takes over at another random frame of each overlap, so no seam remains and nothing is "
            "averaged.",
            search_aliases=["streamingt2v", "context windows", "long video", "seamless"],
            inputs=[
                io.Model.Input("model", tooltip="Any native video model: SVD, Wan, LTX, Hunyuan, Cosmos and others."),
                io.Int.Input(
                    "window",
                    default=81,
                    min=1,
                    max=10_000,
                    tooltip="Frames per window. Use the length the model was trained on: 81 for Wan, 25 for SVD. Time "
                    "and VRAM per model call scale with it. Shorter videos pass through unchanged.",
                ),
                io.Int.Input(
                    "overlap",
                    default=24,
                    min=0,
                    max=9_999,
                    tooltip="Frames that neighboring windows share, less than window; a third of the window is usual. "
                    "Higher values blend better and take longer.",
                ),
                seed_input(
                    "the handovers between windows",
                    tooltip="Seed for the handovers between windows, 0 to 2^64 - 1, independent of the sampler's seed.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with windows, for any sampler node.")],
        )

    @classmethod
    def execute(cls, model: Any, window: int, overlap: int, seed: int) -> io.NodeOutput:
        return io.NodeOutput(with_randomized_blending(model, window, overlap, seed))


class WindowConditioning(io.ComfyNode):
    """A prompt or image for each window of a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StreamingT2VWindowConditioning",
            display_name="Window Conditioning",
            category=CATEGORY,
            description="Gives each window of Randomized Blending its own prompt or start image. Connect a list, for "
            "example the list of keyframes through a node that makes conditioning.",
            search_aliases=["prompt travel", "prompt schedule", "per window"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="Conditioning of the whole video. Areas, masks, time ranges and ControlNets are taken from "
                    "it.",
                ),
                io.Conditioning.Input(
                    "windows",
                    tooltip="List of conditionings in the order of the windows. If the list is shorter, each entry is "
                    "used for several windows in a row. An image applies to the first frame of its window.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="Conditioning per window, for the sampler.")
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, conditioning: list, windows: list) -> io.NodeOutput:
        return io.NodeOutput(with_window_conditions(conditioning[0], windows))


NODES = (RandomizedBlending, WindowConditioning)
