"""What continues a video belongs to its first frames, also where a sampling run cuts the video into pieces.

A CAM sees the control frames and as many frames of the video's beginning. A window that begins the video gets it, the
other windows follow by their overlaps. Pieces that CAM has no share in, or only a part of, are refused before anything
is loaded or computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.plan import VideoPlan
from .blending import RandomizedBlending


@dataclass(frozen=True)
class VideoBeginning:
    """The first `frames` frames of a video whose frames are the batch of the latent."""

    frames: int

    def is_in(self, transformer_options: Mapping[str, Any]) -> bool:
        """Whether this call of the model begins with them: it is the whole video, or the window that begins it."""
        window = transformer_options.get("context_window")
        return window is None or list(window.index_list[: self.frames]) == list(range(self.frames))

    def watch(self, model: ModelPatcher, key: str) -> None:
        """Let every sampling run of `model` ask whether its pieces leave the beginning whole."""
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, self.around_sample)
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, self.around_conditions)

    def around_sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: refuses windows that share the beginning."""
        self.check_windows(executor.class_obj.model_options, noise.shape)
        return executor(noise, *args, **kwargs)

    def check_windows(self, model_options: Mapping[str, Any], shape: Sequence[int]) -> None:
        """Raise `SettingsError` unless one window alone makes the beginning of a video with latents of `shape`."""
        handler = model_options.get("context_handler")
        if handler is None:
            return
        if not isinstance(handler, RandomizedBlending):
            dim = getattr(handler, "dim", 0)
            if dim < len(shape) and shape[dim] <= getattr(handler, "context_length", 0):
                return  # the host cuts nothing
            raise SettingsError(
                "CAM continues the first frames of a video, but Context Windows would let every window begin with "
                "them; connect Randomized Blending in its place, or remove one of the two"
            )
        second = next((window for window in handler.windows(shape[0]) if window.start), None)
        if second is not None and second.start < self.frames:
            raise SettingsError(
                f"the second window of Randomized Blending begins at frame {second.start}, within the {self.frames} "
                "control frames, which one window alone must make; use a smaller overlap, a longer window or a longer "
                "video"
            )

    def around_conditions(
        self,
        executor: Callable,
        model: Any,
        conds: Iterable[Iterable[Mapping[str, Any]] | None],
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """CALC_COND_BATCH wrapper: refuses conditionings that show the model a part of each frame only."""
        height, width = x.shape[-2:]
        for entry in (entry for entries in conds for entry in entries or ()):
            area = entry.get("area")
            if area is None:
                continue
            area_height, area_width = area[: len(area) // 2][-2:]
            if area_height < height or area_width < width:
                raise SettingsError(
                    f"a conditioning is set to an area of {8 * area_width}x{8 * area_height} of the "
                    f"{8 * width}x{8 * height} pixels, but CAM continues whole frames; use Conditioning (Set Mask) "
                    "with 'default' bounds instead of an area"
                )
        return executor(model, conds, x, *args, **kwargs)


def check_chunks(model: ModelPatcher, plan: VideoPlan) -> None:
    """Raise `SettingsError` where windows of `model` would cut the overlap, which CAM makes, out of a plan's chunks."""
    if plan.num_chunks > 1:
        VideoBeginning(plan.overlap_frames).check_windows(
            model.model_options, (plan.chunk_frames, 4, plan.height // 8, plan.width // 8)
        )
