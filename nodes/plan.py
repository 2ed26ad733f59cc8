"""Chunk Plan: length, chunks, seeds, prompts and strengths of a video in one wire."""

from __future__ import annotations

from fractions import Fraction

from ..streaming_core.loop.plan import VideoPlan
from ..streaming_core.loop.script import MAX_SEED, Script, parse_cues, parse_numbers
from .host.compat import io, schema
from .host.page import shown_text
from .types import CATEGORY, ChunkPlan

SEED_MODES = ("fixed", "increment", "list")
MAX_STRENGTH = 4.0


class ChunkPlanNode(io.ComfyNode):
    """Widgets and texts to a video plan, and the plan as a table."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VChunkPlan",
            display_name="Chunk Plan",
            category=CATEGORY,
            description="Plans a video: its length, its chunks, and what differs from chunk to chunk. Shows it as "
            "a table. Connect it to Stream Sampler or Start Video.",
            search_aliases=["prompt schedule", "prompt travel", "long video plan"],
            inputs=[
                io.Int.Input(
                    "num_frames",
                    default=100,
                    min=1,
                    max=1_000_000,
                    tooltip="Length of the video in frames; met exactly. Unused when seconds is above 0.",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.1,
                    tooltip="Length in seconds at fps instead, rounded to whole frames. 0: num_frames counts.",
                ),
                io.Float.Input(
                    "fps",
                    default=12.0,
                    min=0.1,
                    max=240.0,
                    step=0.1,
                    tooltip="Frames per second of the video; seconds and times in the prompts are counted in it.",
                ),
                io.Int.Input(
                    "chunk_frames",
                    default=25,
                    min=2,
                    max=4096,
                    tooltip="Frames per model call, overlap included. Official: 25 for StreamingSVD, 16 for "
                    "StreamingModelscope.",
                ),
                io.Int.Input(
                    "overlap_frames",
                    default=7,
                    min=1,
                    max=4095,
                    tooltip="Frames of the video that each chunk re-creates and continues, below chunk_frames. "
                    "Official: 7 for StreamingSVD, 8 for StreamingModelscope.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One prompt per line: '0: a dog runs' holds from the first clip on, '4: it jumps' from "
                    "chunk 4 on, '00:05: ...' from second 5 on. Lines without a number: one chunk each. Empty: the "
                    "chunk sampler's own prompt.",
                ),
                io.Combo.Input(
                    "seed_mode",
                    options=list(SEED_MODES),
                    default="fixed",
                    tooltip="fixed: one seed, from which every chunk draws its own noise. increment: seed + chunk "
                    "number. list: seeds.",
                ),
                io.Int.Input(
                    "seed",
                    default=33,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the video, 0 to 2^64 - 1.",
                ),
                io.String.Input(
                    "seeds",
                    default="",
                    tooltip="For list: seeds of chunk 0, 1, ... with commas between, or numbered: '33, 34, 7: 99'. The "
                    "last goes on; before a numbered first one, seed counts.",
                ),
                io.String.Input(
                    "cam_strength",
                    default="",
                    tooltip="Strength of CAM, the short-term memory, per chunk: '1, 4: 0.8'. 0 to 4 without unit, 1 is "
                    "official, 0 off. Empty: 1.",
                ),
                io.String.Input(
                    "anchor_strength",
                    default="",
                    tooltip="Factor on the anchor's weight, the long-term memory, per chunk: '1, 4: 0.5'. 0 to 4 "
                    "without unit, 1 unchanged. Empty: 1.",
                ),
            ],
            outputs=[
                ChunkPlan.Output(display_name="plan", tooltip="For Stream Sampler, Start Video and Preflight."),
                io.String.Output(display_name="table", tooltip="Every chunk with its frames, times, seed and prompt."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        num_frames,
        seconds,
        fps,
        chunk_frames,
        overlap_frames,
        prompts,
        seed_mode,
        seed,
        seeds,
        cam_strength,
        anchor_strength,
    ):
        fps = Fraction(fps).limit_denominator(1001)
        script = Script(
            seeds=parse_numbers(seeds, "a seed", 0, MAX_SEED, int) if seed_mode == "list" else (),
            increment=seed_mode == "increment",
            prompts=parse_cues(prompts),
            cam_strength=parse_numbers(cam_strength, "cam_strength", 0.0, MAX_STRENGTH),
            anchor_strength=parse_numbers(anchor_strength, "anchor_strength", 0.0, MAX_STRENGTH),
            fps=fps,
        )
        length = max(1, round(Fraction(seconds) * fps)) if seconds else num_frames
        plan = VideoPlan(length, chunk_frames, overlap_frames, seed, fps, script)
        table = plan.table()
        return io.NodeOutput(plan, table, ui=shown_text(table, cls.hidden.unique_id))


NODES = (ChunkPlanNode,)
