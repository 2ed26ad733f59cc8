"""Progress, latent previews and Cancel, as one bar over everything a node does."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import comfy.model_management as mm
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

SamplerCallback = Callable[[int, Tensor, Tensor, int], None]
"""What the host's samplers call after each step: step, denoised, x, number of steps."""

check_cancel = mm.throw_exception_if_processing_interrupted
"""Raises the host's own exception when the user pressed Cancel."""


def frames_bar(frames: Sized) -> Callable[[int, int | None], None]:
    """A progress function `(frames done, frames in all)` that moves the node's bar."""
    bar = comfy.utils.ProgressBar(len(frames))
    return lambda done, total: bar.update_absolute(done, total)


def image_preview(frame: Tensor) -> tuple[str, Image.Image, int]:
    """A frame `[3, H, W]` in 0..1 as the host's bar shows it."""
    pixels = (frame.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).movedim(0, -1)
    return "JPEG", Image.fromarray(pixels.numpy()), latent_preview.MAX_PREVIEW_RESOLUTION


class StepProgress:
    """One bar of `total` steps for a node that samples several times."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._bar = comfy.utils.ProgressBar(total)

    def advance(self, steps: int = 1, preview: Any = None) -> None:
        """Move the bar by `steps`, and show `preview`, an image in the host's form; raises on Cancel."""
        check_cancel()
        self.done += steps
        self._bar.update_absolute(self.done, self.total, preview)

    def sampler_callback(self, model: ModelPatcher, advance: int = 1) -> SamplerCallback:
        """A callback for the host's samplers that moves the bar by `advance` per step, with a preview of the latent."""
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

        def callback(step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
            preview = previewer.decode_latent_to_preview_image("JPEG", denoised) if previewer else None
            self.advance(advance, preview)

        return callback
