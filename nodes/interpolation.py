"""Nodes of frame interpolation: EMA-VFI, and videos with more frames by any interpolation model."""

from __future__ import annotations

import os

from ..streaming_core.errors import SettingsError
from ..streaming_core.interpolation import timeline
from ..streaming_core.interpolation.stream import CUT_THRESHOLD, InterpolatedFrames, official_interpolation
from ..streaming_core.models.ema_vfi.interpolator import EmaVfiSettings
from .host.compat import io, schema
from .host.files import file_stamp
from .host.interpolation.load import (
    DTYPES,
    INTERPOLATION_FOLDER,
    ensure_folder,
    interpolation_names,
    load_ema_vfi,
    to_core,
)
from .types import CATEGORY as PACK_CATEGORY
from .types import FrameStream, InterpModel

CATEGORY = f"{PACK_CATEGORY}/frames"
ANY_TIME = "any time"
HALVING = "halving"
TIMES = ("auto", ANY_TIME, HALVING)
FLOW_SCALES = {"1": 1.0, "1/2": 0.5, "1/4": 0.25}
MULTIPLIER, FRAME_COUNT, FRAME_RATE, OFFICIAL = "multiplier", "frame count", "frame rate", "official doubling"
OFFICIAL_FPS = 24

ensure_folder()


def knows_any_time(model_name: str, times: str) -> bool:
    """Both kinds of weights have the same keys and shapes; the authors mark the one for any time by its name."""
    if times == "auto":
        return os.path.splitext(model_name)[0].endswith("_t")
    return times == ANY_TIME


class LoadEmaVfi(io.ComfyNode):
    """An EMA-VFI file as the host's INTERP_MODEL."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VLoadEmaVfi",
            display_name="Load EMA-VFI",
            category=CATEGORY,
            description="Loads EMA-VFI frame interpolation weights (ours, ours_t, ours_small, ours_small_t) from "
            "models/frame_interpolation, for Interpolate Stream and ComfyUI's own frame interpolation node.",
            search_aliases=["frame interpolation", "vfi", "slow motion", "streamingsvd"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=interpolation_names(),
                    tooltip="Weights file in models/frame_interpolation: .pkl as published, or .safetensors. "
                    "StreamingSVD uses ours; ours_small is over three times faster; ours_t and ours_small_t are "
                    "trained for any time.",
                ),
                io.Combo.Input(
                    "times",
                    options=list(TIMES),
                    default="auto",
                    tooltip="any time: weights trained for any time between two frames. halving: weights trained for "
                    "the middle only; other times are reached by repeated halving. auto: any time for file names "
                    "ending in _t.",
                ),
                io.Combo.Input(
                    "augmentation",
                    options=["off", "fast", "full"],
                    default="off",
                    tooltip="Also interpolate the frames rotated by 180 degrees and average both results: slightly "
                    "better, twice the time. fast processes both at once on a GPU, full one after the other in less "
                    "memory. StreamingSVD uses fast.",
                ),
                io.Combo.Input(
                    "flow_scale",
                    options=list(FLOW_SCALES),
                    default="1",
                    tooltip="Resolution at which motion is estimated, relative to the frame. Use 1/2 for 2K and 1/4 "
                    "for 4K, where it handles large motion better.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Data type of weights and features; motion is always float32. auto: float16 on devices "
                    "that support it well. float32 gives the official results.",
                ),
            ],
            outputs=[InterpModel.Output(display_name="interp_model", tooltip="Connect to Interpolate Stream.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, **_):
        return file_stamp(INTERPOLATION_FOLDER, model_name)

    @classmethod
    def execute(cls, model_name, times, augmentation, flow_scale, dtype):
        settings = EmaVfiSettings(knows_any_time(model_name, times), augmentation, FLOW_SCALES[flow_scale])
        return io.NodeOutput(load_ema_vfi(model_name, settings, DTYPES[dtype]))


class InterpolateStream(io.ComfyNode):
    """More (or fewer) frames between the same two ends."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VInterpolateStream",
            display_name="Interpolate Stream",
            category=CATEGORY,
            description="Brings a video to an exact length or frame rate. Frames are computed pair by pair while "
            "another node reads them (Save Stream shows the progress), so a video of any length fits in memory.",
            search_aliases=["frame interpolation", "fps", "slow motion", "rife", "video", "ema-vfi"],
            inputs=[
                FrameStream.Input("frames", tooltip="The video."),
                InterpModel.Input(
                    "interp_model", tooltip="Model from Load EMA-VFI or ComfyUI's own Load Frame Interpolation Model."
                ),
                io.Combo.Input(
                    "target",
                    options=[MULTIPLIER, FRAME_COUNT, FRAME_RATE, OFFICIAL],
                    default=MULTIPLIER,
                    tooltip="Which value is exact. The first and last frame are always kept. official doubling "
                    "follows StreamingSVD's own rule for num_frames: twice the frames, with the last one repeated for "
                    "even lengths.",
                ),
                io.Int.Input(
                    "multiplier",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="For target multiplier: n frames become (n - 1) * multiplier + 1. Ignored by other "
                    "targets.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=200,
                    min=1,
                    max=1_000_000,
                    tooltip="For target frame count and official doubling: number of frames of the result. Ignored by "
                    "other targets.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    tooltip="Frames per second of the result. For target frame rate it sets the number of frames; for "
                    "other targets only the playback speed. 0 keeps the speed of the video (official doubling: 24).",
                ),
                io.Float.Input(
                    "scene_cut_threshold",
                    default=CUT_THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of a frame that must be new to count as a scene cut, 0 to 1. Cuts are held instead "
                    "of smeared. 0.5 is usual, higher values find fewer cuts, 0 turns this off. Ignored by official "
                    "doubling.",
                ),
            ],
            outputs=[
                FrameStream.Output(display_name="frames", tooltip="The interpolated video, computed when it is read.")
            ],
        )

    @classmethod
    def execute(cls, frames, interp_model, target, multiplier, num_frames, fps, scene_cut_threshold):
        model = to_core(interp_model)
        if target == OFFICIAL:
            return io.NodeOutput(official_interpolation(frames, num_frames, model, fps or OFFICIAL_FPS))
        if target == MULTIPLIER:
            line = timeline.multiplied(len(frames), frames.fps, multiplier, fps)
        elif target == FRAME_COUNT:
            line = timeline.with_count(len(frames), frames.fps, num_frames, fps)
        elif not fps:
            raise SettingsError("target frame rate needs fps; set it above 0, to the frames per second of the result")
        else:
            line = timeline.at_rate(len(frames), frames.fps, fps)
        return io.NodeOutput(InterpolatedFrames(frames, line, model, cut_threshold=scene_cut_threshold))


NODES = (LoadEmaVfi, InterpolateStream)
