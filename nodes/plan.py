"""Plans: length, chunks, seeds, prompts, strengths and motion of a video, or of its keyframes, in one connection."""

from __future__ import annotations

from fractions import Fraction

from ..streaming_core.frames import as_rate
from ..streaming_core.loop.plan import VideoPlan
from ..streaming_core.loop.script import MAX_SEED, Script, parse_cues, parse_numbers, parse_positive_numbers
from .forms import seed_input
from .host.compat import io, schema
from .host.page import shown_text
from .types import CATEGORY, ChunkPlan

SEED_MODES = ("fixed", "increment", "list")
MAX_STRENGTH = 4.0


def length_inputs() -> list:
    """How long the video is, and at which rate."""
    return [
        io.Int.Input(
            "num_frames",
            default=100,
            min=1,
            max=1_000_000,
            tooltip="Exact length of the video in frames. Ignored when seconds is above 0.",
        ),
        io.Float.Input(
            "seconds",
            default=0.0,
            min=0.0,
            max=86400.0,
            step=0.1,
            tooltip="Length in seconds instead of num_frames, rounded to whole frames at fps. 0: use num_frames.",
        ),
        io.Float.Input(
            "fps",
            default=12.0,
            min=0.1,
            max=240.0,
            step=0.1,
            tooltip="Frames per second of the video. Also used to convert seconds and times in the prompts to frames.",
        ),
    ]


def chunk_inputs() -> list:
    """How the chunk loop makes it, and what changes from chunk to chunk."""
    return [
        io.Int.Input(
            "chunk_frames",
            default=25,
            min=2,
            max=4096,
            tooltip="Frames per model call, including the overlap. Official values: 25 for StreamingSVD, 16 "
            "for StreamingModelscope.",
        ),
        io.Int.Input(
            "overlap_frames",
            default=7,
            min=1,
            max=4095,
            tooltip="Frames at the start of each chunk that repeat the end of the previous one, less than "
            "chunk_frames. Official values: 7 for StreamingSVD, 8 for StreamingModelscope.",
        ),
        io.String.Input(
            "prompts",
            multiline=True,
            default="",
            tooltip="One prompt per line. '0: a dog runs' applies from the first chunk, '4: it jumps' from "
            "chunk 4, '00:05: ...' from second 5. Without numbers each line is one chunk. Empty: the chunk "
            "sampler's own prompt.",
        ),
        io.Combo.Input(
            "seed_mode",
            options=list(SEED_MODES),
            default="fixed",
            tooltip="fixed: one seed, from which every chunk gets its own noise. increment: seed plus chunk "
            "number. list: use seeds.",
        ),
        seed_input(default=33, tooltip="Seed of the video, 0 to 2^64 - 1."),
        io.String.Input(
            "seeds",
            default="",
            tooltip="For list: seeds of chunks 0, 1, ... separated by commas, or numbered: '33, 34, 7: 99'. "
            "The last seed is used for all remaining chunks; chunks before the first number use seed.",
        ),
        io.String.Input(
            "cam_strength",
            default="",
            tooltip="Strength of CAM (continuation of the previous frames) per chunk: '1, 4: 0.8'. 0 (off) to "
            "4, 1 is the official value. Empty: 1.",
        ),
        io.String.Input(
            "anchor_strength",
            default="",
            tooltip="Multiplier for the anchor's weight per chunk: '1, 4: 0.5'. 0 (off) to 4, 1 leaves it "
            "unchanged. Empty: 1.",
        ),
        io.String.Input(
            "motion",
            default="",
            optional=True,
            tooltip="How much moves per chunk, for chunk samplers that can follow it: '16, 4: 8' or '16, "
            "00:05: 8'. Lower values give stronger motion; 1 to 32 is the useful range, any number above 0 is "
            "accepted. Empty, and before the first number: the chunk sampler's own setting.",
        ),
    ]


def plan_outputs() -> list:
    """What the chunk loop takes, and what a person reads."""
    return [
        ChunkPlan.Output(display_name="plan", tooltip="Connect to Stream Sampler, Start Video or Preflight."),
        io.String.Output(display_name="table", tooltip="Frames, times, seed and prompt of every chunk, as text."),
    ]


def length_of(num_frames: int, seconds: float, fps: Fraction) -> int:
    """Frames of a video whose length is given in one of the two ways."""
    return max(1, round(Fraction(seconds) * fps)) if seconds else num_frames


def script_of(
    fps: Fraction,
    prompts: str,
    seed_mode: str,
    seeds: str,
    cam_strength: str,
    anchor_strength: str,
    motion: str = "",
) -> Script:
    """What the texts of the widgets say. `fps`: of the frames that chunks are made of."""
    return Script(
        seeds=parse_numbers(seeds, "a seed", 0, MAX_SEED, int) if seed_mode == "list" else (),
        increment=seed_mode == "increment",
        prompts=parse_cues(prompts),
        cam_strength=parse_numbers(cam_strength, "cam_strength", 0.0, MAX_STRENGTH),
        anchor_strength=parse_numbers(anchor_strength, "anchor_strength", 0.0, MAX_STRENGTH),
        motion=parse_positive_numbers(motion, "motion"),
        fps=fps,
    )


class ChunkPlanNode(io.ComfyNode):
    """Turns widgets and text into a video plan, and shows it as a table."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VChunkPlan",
            display_name="Chunk Plan",
            category=CATEGORY,
            description="Plans a video: its length, its chunks, and what changes from chunk to chunk. Shows the plan "
            "as a table. Connect it to Stream Sampler or Start Video.",
            search_aliases=["prompt schedule", "prompt travel", "long video plan"],
            inputs=[*length_inputs(), *chunk_inputs()],
            outputs=plan_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, num_frames, seconds, fps, chunk_frames, overlap_frames, seed, **cues):
        rate = as_rate(fps)
        length = length_of(num_frames, seconds, rate)
        plan = VideoPlan(length, chunk_frames, overlap_frames, seed, rate, script_of(rate, **cues))
        table = plan.table()
        return io.NodeOutput(plan, table, ui=shown_text(table, cls.hidden.unique_id))


NODES = (ChunkPlanNode,)
