"""From a request to a job: everything that decides a run of the enhancer or the refiner, settled and checked once.

A job is frozen and passed down. Whatever cannot work is refused here, before a frame is read or a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import SettingsError
from ..frames import FrameStream
from ..frames.fitting import FITS as FRAME_FITS
from ..frames.fitting import check_source
from ..schedules.ddim import enhancer_sigmas
from ..schedules.vid2vid import LEVELS, refiner_sigmas
from ..windows.handovers import Handovers, SeededHandovers, official_handovers
from ..windows.plan import Window, Windows, keyframes, plan_official_windows, plan_windows
from .settings import OFFICIAL_HANDOVER_SEED, EnhanceSettings, RefineSettings
from .size import FrameTarget, Size, check_size, fit_size

EnhanceFit = Literal["inside", "crop", "pad", "stretch"]
FITS = ("inside", *FRAME_FITS)


@dataclass(frozen=True)
class WindowedPass:
    """One sampling pass over frames, in windows.

    Attributes:
        windows: which frames are sampled together; one window needs no blending.
        overlap_frames: frames that neighboring windows share at least.
        handovers: where windows take over from each other at each step.
        sigmas: `[steps + 1]` float32, noise per unit of signal, falling to 0.
        sampler: name of one of the host's samplers.
        cfg: guidance scale.
        seed: seed of what the sampler draws itself.
    """

    windows: Windows
    overlap_frames: int
    handovers: Handovers
    sigmas: Tensor
    sampler: str
    cfg: float
    seed: int


@dataclass(frozen=True)
class EnhancePrompts:
    """The texts and the frame rate that both passes of the enhancer are conditioned on."""

    prompt: str
    negative_prompt: str
    fps_condition: int


@dataclass(frozen=True)
class EnhanceRequest:
    """What to enhance, and how.

    Attributes:
        frames: the video.
        width, height: size of the result in pixels; with fit "inside" the box it fits into.
        fit: "inside" keeps the aspect ratio and cuts nothing; the others fill the size.
        settings: the user's choices.
        image: IMAGE of what the video looks like, of which the first counts; None for frame 0 of the video.
        keyframes: IMAGE with one enhanced frame per window; None to make them.
    """

    frames: FrameStream
    width: int
    height: int
    fit: EnhanceFit
    settings: EnhanceSettings
    image: Tensor | None = None
    keyframes: Tensor | None = None


@dataclass(frozen=True)
class EnhanceJob:
    """One run of the enhancer. Made by `plan_enhancement`.

    Attributes:
        frames: the part of the video that is enhanced: all of it, unless the official layout drops its end.
        target: how frames are brought to the size of the result.
        main: the pass over all frames.
        keyframes: the frame that represents each window of `main`.
        keyframe_pass: the pass over these frames.
        makes_keyframes: whether `main` needs the keyframe pass: several windows (or the official behavior, which makes
            a keyframe even for one), and no keyframes given.
        given_keyframes: IMAGE with one enhanced frame per window, or None.
        image: IMAGE that conditions the first pass, of which the first counts, or None for frame 0.
        prompts: further conditions of both passes.
        bar_frames: length of the progress bar: frames that are encoded, decoded, and stepped once per step.
        keyframe_bar_frames: the same for the keyframe pass alone.
    """

    frames: FrameStream
    target: FrameTarget
    main: WindowedPass
    keyframes: tuple[int, ...]
    keyframe_pass: WindowedPass
    makes_keyframes: bool
    given_keyframes: Tensor | None
    image: Tensor | None
    prompts: EnhancePrompts
    bar_frames: int
    keyframe_bar_frames: int


def plan_enhancement(request: EnhanceRequest) -> EnhanceJob:
    """The job of a request (reference: enhancer, sections 1 to 5). Reads no frame.

    No frame is dropped, unless `settings.official` asks for the official layout.

    Raises:
        SettingsError: windows, size, fit, steps or strength that cannot work, keyframes that fit other windows, or
            keyframes together with an image, which would have no effect.
        FrameError: frames too small to be enlarged.
    """
    settings, video = request.settings, request.frames
    layout = plan_official_windows if settings.official else plan_windows
    windows = layout(len(video), settings.window_frames, settings.overlap_frames)
    stop, keys, given = windows[-1].stop, keyframes(windows), request.keyframes
    if given is not None and len(given) != len(windows):
        raise SettingsError(
            f"{len(given)} keyframes were given for {len(windows)} windows; make them with Keyframe Pass and the same "
            "window, overlap and video"
        )
    if given is not None and request.image is not None:
        raise SettingsError("image has no effect when keyframes are connected; disconnect one of them")
    target = _target(request)
    sigmas = enhancer_sigmas(settings.steps, settings.strength)
    steps, makes_keyframes = len(sigmas) - 1, given is None and (len(windows) > 1 or settings.official)
    key_windows: Windows
    if settings.official:
        # One window, however many keyframes there are: memory grows with the video.
        key_windows, key_overlap = (Window(0, len(keys)),), 0
    else:
        key_windows = plan_windows(len(keys), settings.window_frames, settings.overlap_frames)
        key_overlap = settings.overlap_frames
    return EnhanceJob(
        frames=video if stop == len(video) else video.trimmed(0, stop),
        target=target,
        main=_enhancer_pass(windows, settings.overlap_frames, sigmas, settings),
        keyframes=keys,
        keyframe_pass=_enhancer_pass(key_windows, key_overlap, sigmas, settings),
        makes_keyframes=makes_keyframes,
        given_keyframes=given,
        image=request.image,
        prompts=EnhancePrompts(settings.prompt, settings.negative_prompt, settings.fps_condition),
        # Keyframes are encoded with the video.
        bar_frames=stop * (steps + 2) + makes_keyframes * len(keys) * (steps + 1),
        keyframe_bar_frames=len(keys) * (steps + 2),
    )


def _enhancer_pass(windows: Windows, overlap_frames: int, sigmas: Tensor, settings: EnhanceSettings) -> WindowedPass:
    handovers: Handovers = SeededHandovers(settings.seed)
    if settings.official:
        handovers = official_handovers(windows, len(sigmas) - 1, OFFICIAL_HANDOVER_SEED)
    return WindowedPass(windows, overlap_frames, handovers, sigmas, "euler", settings.cfg, settings.seed)


def _target(request: EnhanceRequest) -> FrameTarget:
    """Size of the result, and how frames get there; "inside" keeps the aspect ratio, up to whole latent pixels."""
    source, box = Size(request.frames.height, request.frames.width), Size(request.height, request.width)
    check_size(box)
    check_source(source.height_px, source.width_px)
    if request.fit not in FITS:
        raise SettingsError(f"fit is one of {', '.join(FITS)}, got {request.fit!r}")
    if request.settings.official:
        return FrameTarget(box, "stretch", eight_bit=True)
    if request.fit == "inside":
        return FrameTarget(fit_size(source, box), "crop")
    return FrameTarget(box, request.fit)


@dataclass(frozen=True)
class RefineJob:
    """One run of the refiner. Made by `plan_refinement`.

    Attributes:
        frames: the video.
        target: how frames are brought to the size of the result.
        main: the pass over all frames.
        rescale: how far guidance is brought back to the spread of the positive prediction, 0 (off) to 1.
        bar_frames: length of the progress bar: frames that are encoded, decoded, and stepped once per step.
    """

    frames: FrameStream
    target: FrameTarget
    main: WindowedPass
    rescale: float
    bar_frames: int


def plan_refinement(frames: FrameStream, size: Size, settings: RefineSettings) -> RefineJob:
    """The job of refining `frames` to `size`, which the network must be able to halve and double back. Reads no frame.

    Raises:
        SettingsError: windows, steps or a noise level that cannot work.
        FrameError: frames too small to be enlarged.
    """
    check_source(frames.height, frames.width)
    if not 0 < settings.noise_level < LEVELS - 1:
        raise SettingsError(
            f"the noise level lies between 1 and {LEVELS - 2}, got {settings.noise_level}; 599 is official"
        )
    windows = plan_windows(len(frames), settings.window_frames, settings.overlap_frames)
    sigmas = refiner_sigmas(settings.steps, settings.noise_level)
    main = WindowedPass(
        windows,
        settings.overlap_frames,
        SeededHandovers(settings.seed),
        sigmas,
        "dpmpp_2m_sde",
        settings.cfg,
        settings.seed,
    )
    return RefineJob(frames, FrameTarget(size, "crop"), main, settings.rescale, len(frames) * (len(sigmas) + 1))
