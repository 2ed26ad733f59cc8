"""The enhancement stage on the host: keyframes first, then all frames in windows that start from them.

Reference: enhancer, sections 1 to 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from PIL import Image
from torch import Tensor

from ....streaming_core.enhance.images import clip_pixel_values, clip_square, cover_and_crop, to_image, to_pixels
from ....streaming_core.enhance.job import EnhanceJob, EnhancePrompts, WindowedPass
from ....streaming_core.enhance.size import Size
from ....streaming_core.errors import SettingsError
from ....streaming_core.frames import to_rgb
from ..encoders import ConditioningPair, embed_pixels, encode_prompt
from ..patchers import check_model
from ..pixels import core_to_images, images_to_core
from ..progress import StepProgress
from ..windows.conditions import with_window_conditions
from .i2vgenxl import FPS_CONDITION, IMAGE_EMBEDDING, I2VGenXLModel, frugal
from .stage import (
    StageVideo,
    check_vae,
    decode_video,
    encode_video,
    sample_video,
    video_noise,
)

NODE = "Enhance Video"
"""The node, in messages and for what it hands out."""


@dataclass(frozen=True)
class Enhancer:
    """MODEL, CLIP, CLIP_VISION and VAE that work together.

    Attributes:
        low_memory: run guidance rows one after the other and keep skips in system memory.

    Raises:
        SettingsError: another model, one with patches it cannot run, or a VAE for other latents.
    """

    model: ModelPatcher
    clip: CLIP
    clip_vision: ClipVisionModel
    vae: VAE
    low_memory: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model.model, I2VGenXLModel):
            raise SettingsError(
                f"the enhancer needs the model of Load Enhancer, got {type(self.model.model).__name__}; for other "
                "models use Randomized Blending and a sampler node"
            )
        check_model(self.model)
        check_vae(self.vae, self.model)

    @property
    def sampling_model(self) -> ModelPatcher:
        return frugal(self.model) if self.low_memory else self.model


def image_conditions(enhancer: Enhancer, image: Image.Image, size: Size) -> dict[str, Any]:
    """Options of a CONDITIONING that show the model `image`, prepared as the official code does."""
    square = clip_square(image, size, enhancer.clip_vision.image_size)
    wide = to_pixels(cover_and_crop(image, size)).unsqueeze(0)
    embedding = embed_pixels(enhancer.clip_vision, clip_pixel_values(square)).unsqueeze(1)
    enhancer.model.model.check_embedding(embedding)
    return {IMAGE_EMBEDDING: embedding, "concat_latent_image": enhancer.vae.encode(core_to_images(wide))}


def conditioning_pair(
    enhancer: Enhancer, images: Sequence[Image.Image], prompts: EnhancePrompts, size: Size
) -> ConditioningPair:
    """Positive and negative CONDITIONING; with several images, one for each window in order.

    The negative one sees the same encoded image, and zeros in place of its embedding.

    Raises:
        SettingsError: encoders of other widths than the model's.
    """
    texts = [encode_prompt(enhancer.clip, text) for text in (prompts.prompt, prompts.negative_prompt)]
    for tokens, _ in (*texts[0], *texts[1]):
        enhancer.model.model.check_text(tokens)
    shown = [image_conditions(enhancer, image, size) for image in images]
    blind = [{key: value for key, value in options.items() if key != IMAGE_EMBEDDING} for options in shown]
    pair = []
    for text, windows in zip(texts, (shown, blind), strict=True):
        fps = {FPS_CONDITION: prompts.fps_condition}
        video = [[tokens, {**options, **windows[0], **fps}] for tokens, options in text]
        if len(windows) > 1:
            video = with_window_conditions(video, [[[None, {**options, **fps}]] for options in windows])
        pair.append(video)
    return pair[0], pair[1]


def condition_image(job: EnhanceJob) -> Image.Image:
    """The image that conditions a pass without keyframes; reads frame 0 where none was given."""
    shown = job.frames.read(0, 1) if job.image is None else to_rgb(job.image[:1])
    return to_image(images_to_core(shown)[0])


def make_keyframes(enhancer: Enhancer, job: EnhanceJob) -> Tensor:
    """IMAGE of the enhanced keyframes of a video; only these frames are read, and one for the condition image."""
    progress = StepProgress(job.keyframe_bar_frames)
    pair = conditioning_pair(enhancer, [condition_image(job)], job.prompts, job.target.size)
    # One by one: they lie apart in the video, and its other frames are not needed.
    single = [job.frames.trimmed(frame, frame + 1) for frame in job.keyframes]
    latents = torch.cat([encode_video(enhancer.vae, frame, job.target, progress.advance) for frame in single])
    noise = video_noise((len(job.frames), *latents.shape[1:]), job.main.seed)[list(job.keyframes)]
    return torch.cat(list(_keyframe_slices(enhancer, job.keyframe_pass, latents, noise, pair, progress)))


def _keyframe_slices(
    enhancer: Enhancer,
    keyframe_pass: WindowedPass,
    latents: Tensor,
    noise: Tensor,
    pair: ConditioningPair,
    progress: StepProgress,
) -> Iterator[Tensor]:
    """IMAGE slices of the enhanced keyframes; `latents` and `noise` are those of the keyframes."""
    enhanced = sample_video(enhancer.sampling_model, keyframe_pass, latents, noise, pair, progress)
    return decode_video(enhancer.vae, enhanced, progress.advance)


def enhance(enhancer: Enhancer, job: EnhanceJob) -> StageVideo:
    """The enhanced video, ready to be made: as many frames as the job has."""
    form = len(job.frames), job.target.size, job.frames.fps
    return StageVideo(NODE, "enhanced", *form, partial(enhanced_slices, enhancer, job))


def enhanced_slices(enhancer: Enhancer, job: EnhanceJob) -> Iterator[Tensor]:
    """IMAGE slices of the enhanced video."""
    progress = StepProgress(job.bar_frames)
    # Before the video is encoded, so that encoders of the wrong width are refused within seconds.
    if job.given_keyframes is None:
        images = [condition_image(job)]
    else:
        images = [to_image(frame) for frame in images_to_core(to_rgb(job.given_keyframes))]
    pair = conditioning_pair(enhancer, images, job.prompts, job.target.size)
    latents = encode_video(enhancer.vae, job.frames, job.target, progress.advance)
    noise = video_noise(latents.shape, job.main.seed)
    if job.makes_keyframes:
        keys = list(job.keyframes)
        slices = _keyframe_slices(enhancer, job.keyframe_pass, latents[keys], noise[keys], pair, progress)
        images = [to_image(frame) for part in slices for frame in images_to_core(part)]
        pair = conditioning_pair(enhancer, images, job.prompts, job.target.size)
    enhanced = sample_video(enhancer.sampling_model, job.main, latents, noise, pair, progress)
    del latents, noise, pair
    yield from decode_video(enhancer.vae, enhanced, progress.advance)
