"""Refinement with MS-Vid2Vid on the host: noised to the official level, denoised in windows, no frame lost.

Reference: streamingmodelscope, section 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ....streaming_core.enhance.job import RefineJob
from ....streaming_core.enhance.size import Size
from ....streaming_core.errors import SettingsError
from ....streaming_core.models.modelscope.vid2vid import fit_refiner_size
from ..encoders import Conditioning
from ..modelscope.vid2vid import Vid2VidModel, with_rescaled_guidance
from ..patchers import check_model
from ..progress import StepProgress
from .stage import StageVideo, check_vae, decode_video, encode_video, sample_video, video_noise

NODE = "Refine Video"
"""The node, in messages and for what it hands out."""


@dataclass(frozen=True)
class Refiner:
    """MODEL, VAE and CONDITIONING that work together.

    `positive` and `negative` come from the refiner's own text encoder.

    Raises:
        SettingsError: another model, one with patches it cannot run, a VAE for other latents, or conditioning of
            another text encoder.
    """

    model: ModelPatcher
    vae: VAE
    positive: Conditioning
    negative: Conditioning

    def __post_init__(self) -> None:
        model = self.model.model
        if not isinstance(model, Vid2VidModel):
            raise SettingsError(
                f"refining needs MS-Vid2Vid from Load Enhancer, got {type(model).__name__}; for I2VGen-XL "
                "use Enhance Video"
            )
        check_model(self.model)
        check_vae(self.vae, self.model)
        for text, _ in (*self.positive, *self.negative):
            if text.shape[-1] != model.config.context_width:
                raise SettingsError(
                    f"MS-Vid2Vid takes text of width {model.config.context_width}, got {text.shape[-1]}; encode "
                    "prompts with the text encoder of Stable Diffusion 2.1"
                )

    def size(self, source: Size, box: Size) -> Size:
        """The largest size in `box` that the network can halve and double back, with about the aspect of `source`.

        Raises:
            SettingsError: the box is too small for any.
        """
        sides = source.height_px, source.width_px, box.height_px, box.width_px
        return Size(*fit_refiner_size(*sides, self.model.model.config.factor))


def refine(refiner: Refiner, job: RefineJob) -> StageVideo:
    """The refined video, ready to be made: as many frames as the job has."""
    form = len(job.frames), job.target.size, job.frames.fps
    return StageVideo(NODE, "refined", *form, partial(refined_slices, refiner, job))


def refined_slices(refiner: Refiner, job: RefineJob) -> Iterator[Tensor]:
    """IMAGE slices of the refined video."""
    progress = StepProgress(job.bar_frames)
    latents = encode_video(refiner.vae, job.frames, job.target, progress.advance)
    model = with_rescaled_guidance(refiner.model, job.rescale)
    noise, pair = video_noise(latents.shape, job.main.seed), (refiner.positive, refiner.negative)
    refined = sample_video(model, job.main, latents, noise, pair, progress)
    del latents, noise
    yield from decode_video(refiner.vae, refined, progress.advance)
