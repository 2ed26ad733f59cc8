"""The enhancement stage on the host: encode in slices, sample in windows, decode in slices.

What grows with the video are latents alone; frames come from a stream and go to a run folder or, where the caller has
them in memory anyway, to a tensor (reference: enhancer, sections 1 to 7).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import folder_paths
import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.frames import FrameStream, to_rgb
from ....streaming_core.frames.fitting import fit
from ....streaming_core.runs.content import ChunkContent
from ....streaming_core.runs.folder import RunFolder
from ....streaming_core.windows.blending import Cuts, SeededCuts, Windows, official_cuts
from ....streaming_core.windows.enhancement import (
    OFFICIAL_CUT_SEED,
    EnhancePlan,
    EnhanceSettings,
    Size,
    check_size,
    clip_pixel_values,
    clip_square,
    cover_and_crop,
    fit_size,
    keyframe_settings,
    keyframe_windows,
    plan_enhancement,
    to_image,
    to_pixels,
)
from ..pixels import core_to_images, images_to_core
from ..progress import StepProgress, check_cancel
from ..windows.blending import with_blending
from ..windows.conditions import with_window_conditions
from .i2vgenxl import FPS_CONDITION, IMAGE_EMBEDDING, I2VGenXLModel, enhancer_sigmas, frugal

Conditioning = list
FITS = ("inside", "crop", "pad", "stretch")
SLICE_FRAMES = 8


@dataclass(frozen=True)
class Enhancer:
    """MODEL, CLIP, CLIP_VISION and VAE that work together, and how they are sampled."""

    model: object
    clip: object
    clip_vision: object
    vae: object
    sampler: str = "euler"
    low_memory: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model.model, I2VGenXLModel):
            raise SettingsError(
                f"the enhancer needs the model of Load Enhancer, got {type(self.model.model).__name__}; for other "
                "models use Randomized Blending and a sampler node"
            )


def encode_text(clip, text: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def embed_pixels(clip_vision, pixels: Tensor) -> Tensor:
    """CLIP embedding `[1, 1, width]` of normalized pixels `[1, 3, h, w]`."""
    check_cancel()
    mm.load_models_gpu([clip_vision.patcher])
    with torch.inference_mode():
        embedding = clip_vision.model(pixel_values=pixels.to(clip_vision.load_device), intermediate_output=-2)[2]
    return embedding.to(mm.intermediate_device()).float().unsqueeze(1)


def image_conditions(enhancer: Enhancer, image: Image.Image, size: Size) -> dict:
    """Options of a CONDITIONING that show the model `image`, prepared as the official code does."""
    square = clip_square(image, size, enhancer.clip_vision.image_size)
    wide = to_pixels(cover_and_crop(image, size)).unsqueeze(0)
    return {
        IMAGE_EMBEDDING: embed_pixels(enhancer.clip_vision, clip_pixel_values(square)),
        "concat_latent_image": enhancer.vae.encode(core_to_images(wide)),
    }


def conditioning_pair(
    enhancer: Enhancer, images: Sequence[Image.Image], settings: EnhanceSettings, size: Size
) -> tuple[Conditioning, Conditioning]:
    """Positive and negative CONDITIONING; with several images, one for each window in order.

    The negative one sees the same encoded image and zeros in place of its embedding.
    """
    texts = [encode_text(enhancer.clip, text) for text in (settings.prompt, settings.negative_prompt)]
    shown = [image_conditions(enhancer, image, size) for image in images]
    blind = [{key: value for key, value in options.items() if key != IMAGE_EMBEDDING} for options in shown]
    pair = []
    for text, windows in zip(texts, (shown, blind), strict=True):
        fps = {FPS_CONDITION: settings.fps_condition}
        video = [[tokens, {**options, **windows[0], **fps}] for tokens, options in text]
        if len(windows) > 1:
            video = with_window_conditions(video, [[[None, {**options, **fps}]] for options in windows])
        pair.append(video)
    return pair[0], pair[1]


def encode_video(
    vae, frames: FrameStream, num_frames: int, size: Size, how: str, eight_bit: bool, advance: Callable[[int], None]
) -> Tensor:
    """Latents `[num_frames, C, h, w]` of the video's first frames brought to `size`, slice by slice, on the CPU."""
    latents: Tensor | None = None
    done = 0
    for part in frames.slices(SLICE_FRAMES, 0, num_frames):
        check_cancel()
        pixels = fit(images_to_core(part), size.height_px, size.width_px, how)
        if eight_bit:
            pixels = (pixels * 255).round() / 255
        encoded = vae.encode(core_to_images(pixels)).to("cpu", torch.float32)
        if latents is None:
            latents = torch.empty(num_frames, *encoded.shape[1:])
        latents[done : done + len(encoded)] = encoded
        done += len(encoded)
        advance(len(part))
    return latents


def decode_video(vae, latents: Tensor, advance: Callable[[int], None]) -> Iterator[Tensor]:
    """IMAGE slices of all `latents`, in order."""
    for part in latents.split(SLICE_FRAMES):
        check_cancel()
        yield to_rgb(vae.decode(part))
        advance(len(part))


def video_noise(shape: Sequence[int], seed: int) -> Tensor:
    """One noise for the whole video, from a CPU generator of its own: windows share it where they overlap."""
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))


def cuts_of(windows: Windows, settings: EnhanceSettings) -> Cuts:
    if not settings.official:
        return SeededCuts(settings.seed)
    return official_cuts(windows, len(enhancer_sigmas(settings)) - 1, OFFICIAL_CUT_SEED)


def step_callback(model, frames: int, progress: StepProgress) -> Callable:
    """A sampler callback with a preview of the latent that counts each step of a clip once per frame."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(step, denoised, x, total_steps):
        preview = previewer.decode_latent_to_preview_image("JPEG", denoised) if previewer else None
        progress.advance(frames, preview)

    return callback


def sample_video(
    enhancer: Enhancer,
    latents: Tensor,
    noise: Tensor,
    pair: tuple[Conditioning, Conditioning],
    windows: Windows,
    settings: EnhanceSettings,
    progress: StepProgress,
) -> Tensor:
    """Enhanced latents: `latents` noised to the level of the strength and denoised in windows."""
    model = frugal(enhancer.model) if enhancer.low_memory else enhancer.model
    if len(windows) > 1:
        model = with_blending(model, len(windows[0]), settings.overlap_frames, cuts_of(windows, settings))
    return comfy.sample.sample_custom(
        model,
        noise,
        settings.guidance,
        comfy.samplers.sampler_object(enhancer.sampler),
        enhancer_sigmas(settings),
        *pair,
        latents,
        callback=step_callback(model, len(latents), progress),
        disable_pbar=True,
        seed=settings.seed,
    )


@dataclass(frozen=True)
class EnhanceRequest:
    """What shall be enhanced, to which size. `image` is the look; frame 0 of the video when None.

    `keyframes`: IMAGE with one enhanced frame per window, in place of a keyframe pass.
    """

    frames: FrameStream
    width: int
    height: int
    how: str
    settings: EnhanceSettings
    image: Tensor | None = None
    keyframes: Tensor | None = None

    def plan(self) -> EnhancePlan:
        plan = plan_enhancement(len(self.frames), self.settings)
        if self.keyframes is not None and len(self.keyframes) != len(plan.windows):
            raise SettingsError(
                f"{len(self.keyframes)} keyframes were given for {len(plan.windows)} windows; make them with "
                "Keyframe Pass and the same window, overlap and video"
            )
        return plan

    @property
    def size(self) -> Size:
        """Size of the result. "inside" keeps the aspect of the video and fits it into width and height."""
        box = Size(self.height, self.width)
        check_size(box)
        if self.how not in FITS:
            raise SettingsError(f"fit is one of {', '.join(FITS)}, got {self.how!r}")
        if self.how != "inside" or self.settings.official:
            return box
        return fit_size(Size(self.frames.height, self.frames.width), box)

    @property
    def fit(self) -> str:
        if self.settings.official:
            return "stretch"
        return "crop" if self.how == "inside" else self.how

    def look(self) -> Image.Image:
        """The image that conditions the first pass."""
        shown = self.frames.read(0, 1) if self.image is None else to_rgb(self.image[:1])
        return to_image(images_to_core(shown)[0])

    def needs_keyframes(self, plan: EnhancePlan) -> bool:
        """A video of one window is conditioned on the image itself; the official code makes a keyframe even then."""
        return self.keyframes is None and (len(plan.windows) > 1 or self.settings.official)

    def total_steps(self, plan: EnhancePlan, main_pass: bool = True) -> int:
        """Length of the bar in frames: encoded, stepped and decoded ones."""
        steps = len(enhancer_sigmas(self.settings)) - 1
        keys = len(plan.keyframes) * (steps + 1) if self.needs_keyframes(plan) or not main_pass else 0
        return keys + (plan.num_frames * (steps + 2) if main_pass else len(plan.keyframes))


def keyframe_pass(
    enhancer: Enhancer, request: EnhanceRequest, latents: Tensor, noise: Tensor, progress: StepProgress
) -> Iterator[Tensor]:
    """IMAGE slices of the enhanced keyframes; `latents` and `noise` are those of the keyframes."""
    settings = keyframe_settings(len(latents), request.settings)
    windows = keyframe_windows(len(latents), request.settings)
    pair = conditioning_pair(enhancer, [request.look()], settings, request.size)
    enhanced = sample_video(enhancer, latents, noise, pair, windows, settings, progress)
    return decode_video(enhancer.vae, enhanced, progress.advance)


def make_keyframes(enhancer: Enhancer, request: EnhanceRequest) -> Tensor:
    """IMAGE of the enhanced keyframes of a video; only these frames are read."""
    plan, size = request.plan(), request.size
    enhancer_sigmas(request.settings)
    progress = StepProgress(request.total_steps(plan, main_pass=False))
    encoded = []
    for frame in plan.keyframes:
        one = request.frames.trimmed(frame, frame + 1)
        official = request.settings.official
        encoded.append(encode_video(enhancer.vae, one, 1, size, request.fit, official, progress.advance))
    latents = torch.cat(encoded)
    noise = video_noise((plan.num_frames, *latents.shape[1:]), request.settings.seed)[list(plan.keyframes)]
    return torch.cat(list(keyframe_pass(enhancer, request, latents, noise, progress)))


def enhance_video(enhancer: Enhancer, request: EnhanceRequest) -> Iterator[Tensor]:
    """IMAGE slices of the enhanced video: as many frames as it has (fewer where `settings.official` drops some)."""
    plan, size, settings = request.plan(), request.size, request.settings
    progress = StepProgress(request.total_steps(plan))
    latents = encode_video(
        enhancer.vae, request.frames, plan.num_frames, size, request.fit, settings.official, progress.advance
    )
    noise = video_noise(latents.shape, settings.seed)
    if request.keyframes is not None:
        images = [to_image(frame) for frame in images_to_core(to_rgb(request.keyframes))]
    elif request.needs_keyframes(plan):
        keys = list(plan.keyframes)
        slices = keyframe_pass(enhancer, request, latents[keys], noise[keys], progress)
        images = [to_image(frame) for part in slices for frame in images_to_core(part)]
    else:
        images = [request.look()]
    pair = conditioning_pair(enhancer, images, settings, size)
    enhanced = sample_video(enhancer, latents, noise, pair, plan.windows, settings, progress)
    del latents, noise
    yield from decode_video(enhancer.vae, enhanced, progress.advance)


def enhance_images(enhancer: Enhancer, request: EnhanceRequest) -> Tensor:
    """The enhanced video as one IMAGE."""
    plan, size = request.plan(), request.size
    images = torch.empty(plan.num_frames, size.height_px, size.width_px, 3)
    done = 0
    for part in enhance_video(enhancer, request):
        images[done : done + len(part)] = part
        done += len(part)
    return images


def enhance_stream(enhancer: Enhancer, request: EnhanceRequest) -> FrameStream:
    """The enhanced video as frames on disk, in the host's temporary folder; nothing is left when it fails."""
    plan, size = request.plan(), request.size
    root, name = Path(folder_paths.get_temp_directory()), f"enhanced_{time.time_ns():x}"
    run = RunFolder.create(
        root,
        name,
        kind="enhanced",
        height=size.height_px,
        width=size.width_px,
        fps=request.frames.fps,
        num_frames=plan.num_frames,
        owner="Enhance Video",
    )
    try:
        with run:
            for index, part in enumerate(enhance_video(enhancer, request)):
                run.write_chunk(index, ChunkContent(part), settings_hash=name, own={"seed": request.settings.seed})
            return run.frames_stream()
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
