"""The official layout of LVDM files from their configurations, the way back from `detect.py` and `weights.py`."""

from __future__ import annotations

from ...schedules.ddim import TRAIN_TIMESTEPS
from ..modelscope.config import TextEncoderConfig
from ..modelscope.shapes import clip_text_shapes
from ..registry import shapes_of
from ..shapes import KeyShapes, autoencoder_shapes
from ..towers import VaeConfig
from .autoencoder import VideoAutoencoder
from .config import LvdmConfig, VideoAutoencoderConfig
from .unet import LvdmUNet
from .weights import AVERAGE, FIRST_STAGE, TEXT, TEXT_MODEL, UNET, average_name

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
"""What a whole checkpoint also holds, one number per noise level; nothing reads it."""


def unet_shapes(config: LvdmConfig) -> KeyShapes:
    return shapes_of(LvdmUNet(config, device="meta").state_dict())


def video_autoencoder_shapes(config: VideoAutoencoderConfig) -> KeyShapes:
    """Keys of an autoencoder's own file, with the second name that most convolutions have there."""
    shapes = shapes_of(VideoAutoencoder(config, device="meta").state_dict())
    aliases = {
        key.removesuffix(".conv.weight") + ".weight": shape
        for key, shape in shapes.items()
        if key.endswith(".conv.weight")
    }
    return shapes | aliases


def checkpoint_shapes(
    unet: LvdmConfig,
    first_stage: VideoAutoencoderConfig | VaeConfig,
    text: TextEncoderConfig | None = None,
    average: bool = True,
) -> KeyShapes:
    """Every key and shape of a whole checkpoint. `average`: with a moving average, as all but text-to-video are."""
    inner = unet_shapes(unet)
    shapes: KeyShapes = dict.fromkeys(SCHEDULE_BUFFERS, (TRAIN_TIMESTEPS,))
    shapes |= {UNET + key: shape for key, shape in inner.items()}
    if average:
        shapes |= {AVERAGE + average_name(key): shape for key, shape in inner.items()}
        shapes |= {AVERAGE + "decay": (), AVERAGE + "num_updates": ()}
    if isinstance(first_stage, VaeConfig):
        autoencoder = autoencoder_shapes(first_stage)
    else:
        autoencoder = video_autoencoder_shapes(first_stage)
    shapes |= {FIRST_STAGE + key: shape for key, shape in autoencoder.items()}
    if text is not None:
        shapes |= {TEXT + TEXT_MODEL + key: shape for key, shape in clip_text_shapes(text).items()}
    return shapes
