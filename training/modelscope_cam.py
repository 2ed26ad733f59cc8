"""Stage ms_cam: the memories of StreamingModelscope on the trained base UNet, which stays as it is.

CAM continues control frames, APM keeps the looks of the anchor, frame 0 of the video. Both are trained together, as
in inference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streaming_core.models.attention import Compute
from streaming_core.models.modelscope.apm import ImageProjector, join_context
from streaming_core.models.modelscope.cam import ModelscopeCam
from streaming_core.models.modelscope.config import StreamingModelscopeConfig
from streaming_core.models.modelscope.detect import APM_PREFIX, UNET_PREFIX
from streaming_core.models.modelscope.unet import Merge, VideoUNet, context_attentions
from streaming_core.models.registry import load_strict

from .configs import DEMO_MODELSCOPE
from .control_frames import MOST_SPECKS, with_pixel_noise, with_specks
from .diffusion import Encoder
from .first_weights import PIXEL_SIZE, enter_in_pairs, relay_pairs
from .footage import clip_of
from .layout import CPU, Base, Weights, initialize, silence
from .modelscope_towers import TEXT_SIZE, Prompts, color_tower
from .modelscope_unet import (
    UNPROMPTED_SHARE,
    Predict,
    TrainingOperations,
    clip_batch,
    draw_captioned,
    moving_noise_errors,
    noise_loss,
    run_base,
)
from .task import Clips, check_overlap

ANCHOR_ALONE_SHARE = 0.4
"""Share of clips with an anchor and no prompt: what the words say of the looks, APM has to say there."""
SPECKLED_SHARE = 0.3
"""Of clips whose control frames have colored specks: what a small model leaves over and would otherwise copy."""
FIRST_ALPHA = 0.5
MEASURED_VIDEOS = 4
MEASURED_SIGMAS = (3.0, 14.0)


class CamAndApm(nn.Module):
    """All that is trained: CAM, APM's token network, and the mixers, which lie inside the frozen UNet."""

    def __init__(self, unet: VideoUNet, cam: ModelscopeCam, projector: ImageProjector):
        super().__init__()
        layers = [attn for _, attn in context_attentions(unet)]
        self.cam, self.projector = cam, projector
        self.convs = nn.ModuleList(attn.conv for attn in layers)
        self.norms = nn.ModuleList(attn.conv_ln for attn in layers)
        self.alphas = nn.ParameterList(attn.alpha for attn in layers)


def new_cam_and_apm(
    config: StreamingModelscopeConfig, base: Weights, generator: torch.Generator
) -> tuple[VideoUNet, CamAndApm]:
    """The UNet, frozen but for its mixers, and the memories, of which CAM changes nothing yet.

    CAM's encoder starts as a copy of the UNet's, to which the pixel encoder shows the control frames as latents (three
    of four are roughly the small image). Mixers start a little open and see the image tokens alone.
    """
    unet = initialize(VideoUNet(config.unet, operations=TrainingOperations), generator)
    mixers = {key: tensor for key, tensor in unet.state_dict().items() if key not in base}
    load_strict(unet, {**mixers, **base}, "the video UNet")
    unet.requires_grad_(False)
    cam = initialize(ModelscopeCam(config.cam, operations=TrainingOperations), generator)
    own = cam.unet.state_dict()
    cam.unet.load_state_dict({**own, **{key: base[key] for key in own.keys() & base.keys()}})
    silence(cam, ".temporal_transformer.proj_out")
    show_pixels_as_latents(cam.unet)
    with torch.no_grad():
        for _, attn in context_attentions(unet):
            attn.alpha.fill_(FIRST_ALPHA)
            attn.conv_ln.weight.fill_(TEXT_SIZE)
            attn.conv.weight[:, : config.unet.mixers.text_tokens] = 0.0
    projector = initialize(ImageProjector(config.image_projector), generator)
    memories = CamAndApm(unet, cam, projector).requires_grad_(True)
    return unet, memories


@torch.no_grad()
def show_pixels_as_latents(encoder: nn.Module) -> None:
    """The pixel encoder starts as what the first convolution makes of the control frames, eight times smaller."""
    pixels, still = encoder.controlnet_cond_embedding, torch.zeros(3, 3)
    still[1, 1] = 1.0
    row = torch.tensor([0.25, 0.5, 0.25])
    enter_in_pairs(pixels.conv_in, 3)
    for index, conv in enumerate(pixels.blocks):
        relay_pairs(conv, 3, torch.outer(row, row) if index % 2 else still)
    nn.init.zeros_(pixels.conv_out.weight)
    for channel in range(3):
        pixels.conv_out.weight[:, 2 * channel] = encoder.conv_in.weight[:, channel] / PIXEL_SIZE
        pixels.conv_out.weight[:, 2 * channel + 1] = -encoder.conv_in.weight[:, channel] / PIXEL_SIZE


def run_with_cam_and_apm(
    unet: VideoUNet, cam: ModelscopeCam, context: Tensor, text: Tensor, control: Tensor, x: Tensor, timesteps: Tensor
) -> Tensor:
    """Predicted noise for `x` `[B, T, 4, h, w]`: `context` `[B, 93, C]` is text with image tokens, `control`
    `[B * K, 3, H, W]` the control frames in [-1, 1].
    """
    batch, frames = x.shape[:2]
    kept, compute = len(control) // batch, Compute()
    memory = cam.unet.project_context(text)
    clips = rearrange(x[:, :kept], "b k ... -> (b k) ...")
    merging = cam.merging(cam.unet(clips, timesteps.float(), memory, cam.encode_pixels(control), compute), frames)
    # Made contiguous: see the trap of channels-last group norms in docs/training.md.
    merge = Merge(lambda i, h: merging.skip(i, h.contiguous()), lambda h: merging.middle(h.contiguous()))
    return run_base(unet, unet.project_context(context), x, timesteps, merge)


class ModelscopeCamTask:
    """Clips from anywhere in a video, their first `overlap` frames as control frames; prompt and anchor are of frame 0.
    `base_unet`: what stage ms_unet wrote. `start`: what another run of this stage wrote, or a whole file.
    """

    stage = "ms_cam"

    def __init__(
        self,
        base: Base,
        base_unet: Weights,
        clips: Clips,
        overlap: int = 4,
        config: StreamingModelscopeConfig = DEMO_MODELSCOPE,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        check_overlap(overlap, clips.frames)
        self.clips, self.source, self.overlap = clips, clips.source, overlap
        length = clips.pool.num_frames if clips.pool else 4 * clips.frames
        self.starts = range(clips.frames - overlap, length - clips.frames + 1)
        self.unet, self.network = new_cam_and_apm(config, base_unet, torch.Generator().manual_seed(seed))
        if start is not None:
            self._begin_with(start)
        self.unet.to(device)
        self.network.to(device)
        self.encoder = Encoder(base.vae(device), color_tower(config.clip_vision), 0, device)
        self.prompts = Prompts(config.text_encoder, device)
        self.gray = self.encoder.embed(torch.full((1, 3, clips.size, clips.size), 0.5))
        self.measured = None

    def settings(self) -> dict[str, Any]:
        return {**self.clips.settings(), "overlap": self.overlap}

    def loss(self, generator: torch.Generator) -> Tensor:
        frames, count = self.clips.frames, self.clips.batch
        drawn = [draw_captioned(self.source, generator, frames, self.starts, 0) for _ in range(count)]
        shares = torch.rand(count, generator=generator).tolist()
        prompted = [share >= UNPROMPTED_SHARE + ANCHOR_ALONE_SHARE for share in shares]
        captions = [each.caption if has else "" for each, has in zip(drawn, prompted, strict=True)]
        text = torch.cat([self.prompts(caption) for caption in captions])
        anchors = [
            self.encoder.embed(each.clip.anchor) if share >= UNPROMPTED_SHARE else self.gray
            for each, share in zip(drawn, shares, strict=True)
        ]
        control = torch.cat([self._worn(each.clip.footage.frames, generator) for each in drawn])
        batch = clip_batch(self.encoder, [each.clip for each in drawn])
        return noise_loss(self._predict(text, torch.cat(anchors), control), batch, generator)

    def _predict(self, text: Tensor, embeddings: Tensor, control: Tensor) -> Predict:
        context = join_context(text, self.network.projector(embeddings))

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            return run_with_cam_and_apm(self.unet, self.network.cam, context, text, control, x, timesteps)

        return predict

    def _worn(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Control frames as a later round finds them: often blurred, as decoded ones are, noisy and with specks.

        In [-1, 1].
        """
        blurred, noisy, speckled = (float(torch.rand((), generator=generator)) for _ in range(3))
        control = frames[: self.overlap].to(self.encoder.device)
        if blurred < 0.6:
            small = F.interpolate(control, scale_factor=0.25, mode="bilinear", antialias=True)
            control = F.interpolate(small, size=control.shape[-2:], mode="bilinear")
        if speckled < SPECKLED_SHARE:
            control = with_specks(control, MOST_SPECKS * speckled / SPECKLED_SHARE, generator)
        return with_pixel_noise(control, noisy, generator)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of held-out videos without a prompt: control frames (`overlap`), new ones (`new`), those with a gray anchor
        (`new_gray`), and without CAM and anchor (`new_without`).
        """
        if self.measured is None:
            videos = enumerate(self.clips.held_out(MEASURED_VIDEOS))
            clips = [clip_of(video, self.clips.frames, self.starts[i], 0) for i, video in videos]
            control = torch.cat([clip.footage.frames[: self.overlap] for clip in clips]).to(self.encoder.device)
            anchors = torch.cat([self.encoder.embed(clip.anchor) for clip in clips])
            self.measured = clip_batch(self.encoder, clips), anchors, control * 2 - 1
        (batch, anchors, control), errors = self.measured, {}
        text = self.prompts("").expand(len(anchors), -1, -1)
        gray = self.gray.expand_as(anchors)
        old, new = slice(0, self.overlap), slice(self.overlap, None)
        closed = torch.cat([text, text.new_zeros(len(text), 16, text.shape[-1])], dim=1)
        plain = self.unet.project_context(closed, 0.0)
        for sigma in MEASURED_SIGMAS:
            anchored = self._predict(text, anchors, control)
            errors.update(moving_noise_errors(anchored, batch, sigma, {"overlap": old, "new": new}))
            errors.update(moving_noise_errors(self._predict(text, gray, control), batch, sigma, {"new_gray": new}))
            without = lambda x, timesteps: run_base(self.unet, plain, x, timesteps)  # noqa: E731
            errors.update(moving_noise_errors(without, batch, sigma, {"new_without": new}))
        return errors

    def weights(self) -> Weights:
        return {key: tensor.detach().clone() for key, tensor in self._official().items()}

    @torch.no_grad()
    def _begin_with(self, weights: Weights) -> None:
        for key, tensor in self._official().items():
            tensor.copy_(weights[key])

    def _official(self) -> Weights:
        """By the official key: mixers and mergers below the UNet's prefix, CAM's encoder, the token network."""
        weights = {}
        for name, attn in context_attentions(self.unet):
            own = {"conv.weight": attn.conv.weight, "conv.bias": attn.conv.bias, "alpha": attn.alpha}
            own |= {"conv_ln.weight": attn.conv_ln.weight, "conv_ln.bias": attn.conv_ln.bias}
            weights |= {f"{UNET_PREFIX}{name}.{key}": tensor for key, tensor in own.items()}
        for key, tensor in self.network.cam.state_dict().items():
            weights[key if key.startswith("unet.") else UNET_PREFIX + key] = tensor
        for key, tensor in self.network.projector.state_dict().items():
            weights[APM_PREFIX + key] = tensor
        return weights
