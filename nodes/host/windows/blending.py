"""Randomized blending as a context handler of the host: any native video model, any sampler.

The host calls the handler at every model call. The handler shows the model one window at a time and builds the video's
prediction from the windows, each frame from the window that owns it at this step. All windows see the same latent, and
samplers keep one history and one noise for the whole video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.context_windows as host_windows
import comfy.latent_formats
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.windows.blending import write_window
from ....streaming_core.windows.handovers import Handovers, Offsets, SeededHandovers, first_owned
from ....streaming_core.windows.plan import Window, Windows, check_window, keyframes, plan_windows
from ..compat import classes, supported
from .conditions import WindowCutter, conditions_for_window

KEY = "streamingt2v_blending"

Entries = list[dict] | None
"""The host's conditioning while it samples: one dict per entry, or None for a branch that is not run."""
Conds = list[Entries]

# Frames per latent frame, for hosts whose latent formats do not say it (docs/hosts.md).
UNSTATED_COMPRESSION = {
    4: classes(comfy.latent_formats, "HunyuanVideo", "HunyuanVideo15", "Wan21"),
    6: classes(comfy.latent_formats, "Mochi"),
    8: classes(comfy.latent_formats, "LTXV", "Cosmos1CV8x8x8"),
}


def frames_per_latent(latent_format: LatentFormat) -> int:
    """Frames of the video that one latent frame of this model holds; the first latent frame holds a single one."""
    stated = getattr(latent_format, "temporal_downscale_ratio", None)
    if stated is not None:
        return stated
    return next((frames for frames, formats in UNSTATED_COMPRESSION.items() if isinstance(latent_format, formats)), 1)


def latent_lengths(window: int, overlap: int, compression: int) -> tuple[int, int]:
    """Window and overlap in latent frames, rounded up; an overlap below the window stays below it.

    The first latent frame of a video holds one frame, every other `compression` frames.

    Raises:
        SettingsError: lengths that `check_window` refuses.
    """
    check_window(window, overlap)
    return math.ceil((window - 1) / compression) + 1, math.ceil(overlap / compression)


def frame_axis(shape: Sequence[int]) -> int:
    """The axis of a latent that counts frames. Raises `SettingsError` for latents that are not video."""
    axes = {4: 0, 5: 2}
    if len(shape) not in axes:
        raise SettingsError(
            "Randomized Blending needs a video latent, [frames, C, h, w] or [batch, C, frames, h, w], "
            f"but this model's latent has rank {len(shape)}: {list(shape)}"
        )
    return axes[len(shape)]


@dataclass(frozen=True)
class RandomizedBlending(host_windows.ContextHandlerABC):
    """The handler on a MODEL: settings only, in latent frames. Hosts share it between clones, or copy it."""

    window_frames: int
    overlap_frames: int
    handovers: Handovers

    # Names that the host's own wrappers read from any handler.
    freenoise = False

    @property
    def context_length(self) -> int:
        return self.window_frames

    def _run(self, conds: Conds, x: Tensor) -> _Run:
        return _Run(self, frame_axis(_video_shape(conds, x)))

    def should_use_context(
        self, model: BaseModel, conds: Conds, x_in: Tensor, timestep: Tensor, model_options: dict
    ) -> bool:
        return self._run(conds, x_in).should_use_context(model, conds, x_in, timestep, model_options)

    def get_resized_cond(
        self, cond_in: Entries, x_in: Tensor, window: _Window, device: torch.device | None = None
    ) -> Entries:
        run = _Run(self, window.dim)
        run.windows = self.windows(x_in.shape[window.dim])
        return run.get_resized_cond(cond_in, x_in, window, device)

    def windows(self, num_frames: int) -> Windows:
        return plan_windows(num_frames, self.window_frames, self.overlap_frames)

    def execute(
        self,
        calc_cond_batch: Callable,
        model: BaseModel,
        conds: Conds,
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict,
    ) -> list[Tensor]:
        return self._run(conds, x_in).execute(calc_cond_batch, model, conds, x_in, timestep, model_options)


def _video_shape(conds: Conds, x: Tensor) -> torch.Size:
    """Shape of the video latent: `x`, or the first of several latents that the host packed into it."""
    get_shapes = getattr(host_windows.IndexListContextHandler, "_get_latent_shapes", lambda _conds: None)
    packed = get_shapes(conds)
    return packed[0] if packed is not None and len(packed) > 1 else x.shape


class _Window(host_windows.IndexListContextWindow):
    """A window of neighboring frames that knows its place in the video on every host."""

    def __init__(self, window: Window, dim: int, total_frames: int, overlap: int) -> None:
        options = supported(
            host_windows.IndexListContextWindow.__init__, total_frames=total_frames, context_overlap=overlap
        )
        super().__init__(list(range(window.start, window.stop)), dim=dim, **options)
        self.total_frames = total_frames
        self.center_ratio = (window.start + window.stop - 1) / (2 * total_frames)

    def get_tensor(
        self, full: Tensor, device: torch.device | None = None, dim: int | None = None, **others: Any
    ) -> Tensor:
        dim = self.dim if dim is None else dim
        if any(others.values()):
            return super().get_tensor(full, device, dim=dim, **others)
        # A timestep counts frames only where frames are the batch; elsewhere it counts videos, and is for all windows.
        if dim == 0 and (self.dim != 0 or full.shape[0] == 1):
            return full.to(device)
        return full.narrow(dim, self.index_list[0], len(self.index_list)).to(device)


class _Run(host_windows.IndexListContextHandler):
    """One model call: the host's own loop over windows, with our windows, our conditions and our way to join."""

    def __init__(self, settings: RandomizedBlending, dim: int) -> None:
        never = host_windows.ContextFuseMethod("randomized", None)
        schedule = host_windows.get_matching_context_schedule(host_windows.ContextSchedules.STATIC_STANDARD)
        # The fix puts one more frame in front of each window, which models with frames in the batch cannot take.
        options = supported(host_windows.IndexListContextHandler.__init__, causal_window_fix=False)
        super().__init__(
            schedule,
            never,
            context_length=settings.window_frames,
            context_overlap=settings.overlap_frames,
            dim=dim,
            **options,
        )
        self.settings = settings
        self.windows: Windows = ()
        self.offsets: Offsets = ()
        self.model: BaseModel | None = None

    def set_step(self, timestep: Tensor, model_options: dict) -> None:
        # The nearest, not an equal one: several samplers also evaluate between the scheduled levels.
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        self._step = int((sigmas - timestep.flatten()[0].to(sigmas)).abs().argmin())

    def get_context_windows(self, model: BaseModel, x_in: Tensor, model_options: dict) -> list[_Window]:
        self.model = model
        num_frames = x_in.shape[self.dim]
        self.windows = self.settings.windows(num_frames)
        self.offsets = first_owned(self.settings.handovers, self.windows, self._step)
        return [_Window(window, self.dim, num_frames, self.context_overlap) for window in self.windows]

    def get_resized_cond(
        self, cond_in: Entries, x_in: Tensor, window: _Window, device: torch.device | None = None
    ) -> Entries:
        cutter = WindowCutter(window, x_in.shape[self.dim], self.dim, x_in.ndim)
        number = keyframes(self.windows).index(window.index_list[0])
        return conditions_for_window(cond_in, cutter, number, len(self.windows), self.model, x_in)

    def combine_context_window_results(
        self,
        x_in: Tensor,
        sub_conds_out: list[Tensor],
        sub_conds: Any,
        window: _Window,
        window_idx: int,
        total_windows: int,
        timestep: Tensor,
        conds_final: list[Tensor],
        counts_final: list[Tensor],
        biases_final: list,
    ) -> None:
        """Write the window from its handover on over what is there. The host calls this in the order of windows.

        `counts` says which frames were written; the host divides by it, so it is 1 there.
        """
        offset = self._offset(window, window_idx, counts_final[0])
        written = torch.tensor(window.index_list[offset:], dtype=torch.long, device=x_in.device)
        for video, counts, part in zip(conds_final, counts_final, sub_conds_out, strict=True):
            write_window(video, part, window.index_list, offset, self.dim)
            counts.index_fill_(self.dim, written, 1)

    def _offset(self, window: _Window, number: int, counts: Tensor) -> int:
        offset, length = self.offsets[number], len(window.index_list)
        if length == self.settings.window_frames:
            return offset
        # Audio next to a video has windows of another length: the handover is at the same share, in what is there.
        there = int(counts.index_select(self.dim, torch.tensor(window.index_list, device=counts.device)).sum())
        return min(round(offset * length / self.settings.window_frames), there)


def _plan_memory_for_one_window(
    executor: Callable, model: ModelPatcher, noise_shape: Sequence[int], *args: Any, **kwargs: Any
) -> Any:
    """The host reserves memory for a latent of `noise_shape`: that of one window, not of the whole video."""
    handler = kwargs.get("model_options", {}).get("context_handler")
    if isinstance(handler, RandomizedBlending) and len(noise_shape) in (4, 5):
        noise_shape = list(noise_shape)
        axis = frame_axis(noise_shape)
        noise_shape[axis] = min(noise_shape[axis], handler.window_frames)
    return executor(model, noise_shape, *args, **kwargs)


def with_blending(model: ModelPatcher, window_frames: int, overlap_frames: int, handovers: Handovers) -> ModelPatcher:
    """A clone of MODEL `model` that samples in windows; lengths in latent frames.

    Raises:
        SettingsError: lengths that `check_window` refuses.
    """
    check_window(window_frames, overlap_frames)
    model = model.clone()
    # The host's own window nodes leave wrappers that expect the host's own handler.
    for wrapper_type, key in (
        (WrappersMP.PREPARE_SAMPLING, "ContextWindows_prepare_sampling"),
        (WrappersMP.SAMPLER_SAMPLE, "ContextWindows_sampler_sample"),
        (WrappersMP.PREPARE_SAMPLING, KEY),
    ):
        model.remove_wrappers_with_key(wrapper_type, key)
    model.model_options["context_handler"] = RandomizedBlending(window_frames, overlap_frames, handovers)
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _plan_memory_for_one_window)
    return model


def with_randomized_blending(model: ModelPatcher, window: int, overlap: int, seed: int) -> ModelPatcher:
    """`with_blending` with lengths in frames of the video, converted by the model's temporal compression."""
    lengths = latent_lengths(window, overlap, frames_per_latent(model.model.latent_format))
    return with_blending(model, *lengths, SeededHandovers(seed))
