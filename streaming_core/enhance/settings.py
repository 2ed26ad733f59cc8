"""What the user chooses for an enhancement or a refinement. Defaults are the official ones.

Both share the names of what they share; `enhance.job` checks the values when it makes a job of them.
"""

from __future__ import annotations

from dataclasses import dataclass

PROMPT = "High Quality, HQ, detailed."
NEGATIVE_PROMPT = (
    "Distorted, blurry, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
OFFICIAL_ENHANCE_SEED, OFFICIAL_HANDOVER_SEED = 8888, 33


@dataclass(frozen=True)
class EnhanceSettings:
    """Settings of the I2VGen-XL enhancer (reference: enhancer, section 2).

    Attributes:
        steps: scheduler steps, of which `strength` keeps the last ones.
        strength: share of the steps that are run, above 0 and up to 1.
        cfg: guidance scale.
        window_frames, overlap_frames: frames per window, and frames that neighboring windows share.
        seed: seed of the noise and of the handovers between windows.
        fps_condition: frame rate that the model is conditioned on, whatever the real one is.
        prompt, negative_prompt: texts for the model's own text encoder.
        official: behave as the release does: only whole strides (the end of the video is dropped), stretched frames,
            its draws of handovers, and all keyframes in one window.
    """

    steps: int = 30
    strength: float = 0.97
    cfg: float = 9.0
    window_frames: int = 38
    overlap_frames: int = 12
    seed: int = OFFICIAL_ENHANCE_SEED
    fps_condition: int = 38
    prompt: str = PROMPT
    negative_prompt: str = NEGATIVE_PROMPT
    official: bool = False


@dataclass(frozen=True)
class RefineSettings:
    """Settings of the MS-Vid2Vid refiner (reference: streamingmodelscope, section 6).

    Attributes:
        steps: denoising steps.
        noise_level: level to start from, 1 to 998 of the network's 1000 levels.
        cfg: guidance scale.
        rescale: how far guidance is brought back to the spread of the positive prediction, 0 (off) to 1.
        window_frames, overlap_frames: frames per window, and frames that neighboring windows share.
        seed: seed of the noise and of the handovers between windows.
    """

    steps: int = 30
    noise_level: int = 599
    cfg: float = 7.5
    rescale: float = 0.2
    window_frames: int = 24
    overlap_frames: int = 8
    seed: int = 33
