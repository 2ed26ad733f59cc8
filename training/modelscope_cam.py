"""Stage ms_cam: the memories of StreamingModelscope on the trained base UNet, which stays as it is.

CAM goes on from control frames, APM keeps the looks of the anchor, frame 0 of the video. Both are trained together, as
in inference. Run as a module, this joins everything to the two files that the pack loads:

python -m training.modelscope_cam --out DIR [--into FOLDER] [--base FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streaming_core.errors import SettingsError, StreamingError
from streaming_core.models.attention import Compute
from streaming_core.models.modelscope.apm import ImageProjector, join_context
from streaming_core.models.modelscope.cam import ModelscopeCam
from streaming_core.models.modelscope.config import StreamingModelscopeConfig
from streaming_core.models.modelscope.detect import APM_PREFIX, UNET_PREFIX, detect_streamingmodelscope
from streaming_core.models.modelscope.unet import Merge, VideoUNet, context_attentions
from streaming_core.models.modelscope.weights import refuse_unread
from streaming_core.models.registry import load_strict, shapes_of

from .configs import DEMO_MODELSCOPE
from .diffusion import Encoder, randn
from .first_weights import PIXEL_SIZE, enter_in_pairs, relay_pairs
from .footage import VideoPool, VideoSource, clip_of
from .layout import CPU, Base, Weights, host, initialize, read_base, read_stage, silence, write_weights
from .modelscope import (
    TEXT_SIZE,
    Prompts,
    TrainingOperations,
    color_tower,
    draw_told,
    frozen_parts,
    moving_noise_errors,
    noise_loss,
    run_base,
    shown,
    without_dropout,
)
from .videos import HELD_OUT, Variety, make_video

UNTOLD_SHARE = 0.1
"""Share of clips without prompt and anchor, the unconditional half of guidance."""
ANCHOR_ALONE_SHARE = 0.4
"""Share of clips with an anchor and no prompt: what the words say of the looks, APM has to say there."""
WORST_PIXEL_NOISE = 0.06
"""Control frames get noise of up to this standard deviation on the scale of [-1, 1]: what earlier rounds got wrong."""
SPECKLED_SHARE = 0.3
"""Of clips whose control frames have colored specks: what a small model leaves behind and would otherwise copy."""
MOST_SPECKS, SPECK_PX, SPECK_SIZE = 0.08, 8, 0.6
"""Share of the places that have one, their distance in pixels, and the standard deviation of a color in 0..1."""
FIRST_ALPHA = 0.5
MEASURED_VIDEOS = 4
MEASURED_SIGMAS = (3.0, 14.0)
FILE, BASE_FILE = "demo_streamingmodelscope.safetensors", "demo_modelscope_t2v.safetensors"


class Memories(nn.Module):
    """All that is trained: CAM, APM's token network, and the mixers, which lie inside the frozen UNet."""

    def __init__(self, unet: VideoUNet, cam: ModelscopeCam, projector: ImageProjector):
        super().__init__()
        layers = [attn for _, attn in context_attentions(unet)]
        self.cam, self.projector = cam, projector
        self.convs = nn.ModuleList(attn.conv for attn in layers)
        self.norms = nn.ModuleList(attn.conv_ln for attn in layers)
        self.alphas = nn.ParameterList(attn.alpha for attn in layers)


def new_memories(
    config: StreamingModelscopeConfig, base: Weights, generator: torch.Generator
) -> tuple[VideoUNet, Memories]:
    """The UNet, frozen but for its mixers, and the memories, of which CAM changes nothing yet.

    CAM's encoder starts as a copy of the UNet's, to which the pixel encoder shows the control frames as latents (three
    of four are roughly the small image). Mixers start a little open and see the image tokens alone.
    """
    unet = without_dropout(initialize(VideoUNet(config.unet, operations=TrainingOperations), generator))
    mixers = {key: tensor for key, tensor in unet.state_dict().items() if key not in base}
    load_strict(unet, {**mixers, **base}, "the video UNet")
    unet.requires_grad_(False)
    cam = without_dropout(initialize(ModelscopeCam(config.cam, operations=TrainingOperations), generator))
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
    memories = Memories(unet, cam, projector).requires_grad_(True)
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


def run_with_memories(
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
    # Laid out anew: see the trap of channels-last group norms in docs/training.md.
    merge = Merge(lambda i, h: merging.skip(i, h.contiguous()), lambda h: merging.middle(h.contiguous()))
    return run_base(unet, unet.project_context(context), x, timesteps, merge)


def with_specks(frames: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Frames `[F, 3, H, W]` in 0..1 with round specks of any color, other ones in each, on a share of the places."""
    places = (len(frames), 1, frames.shape[2] // SPECK_PX, frames.shape[3] // SPECK_PX)
    there = torch.rand(places, generator=generator).to(frames) < density
    colors = SPECK_SIZE * randn((places[0], 3, *places[2:]), generator, frames)
    return (frames + F.interpolate(there * colors, size=frames.shape[-2:], mode="bilinear")).clamp(0, 1)


class ModelscopeCamTask:
    """Clips of `frames` frames from anywhere in a video, the first `overlap` as control frames; prompt and anchor are
    of frame 0. `base_unet`: what stage ms_unet wrote. `start`: what another run of this stage wrote, or a whole file.
    """

    stage = "ms_cam"

    def __init__(
        self,
        base: Base,
        base_unet: Weights,
        size: int = 96,
        variety: Variety = "narrow",
        pool: VideoPool | None = None,
        batch: int = 3,
        frames: int = 8,
        overlap: int = 4,
        config: StreamingModelscopeConfig = DEMO_MODELSCOPE,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        if not 0 < overlap < frames:
            raise SettingsError(f"{overlap} control frames leave nothing new in clips of {frames}; use fewer")
        self.source, self.batch, self.frames, self.overlap = VideoSource(size, variety, pool), batch, frames, overlap
        self.starts = range(frames - overlap, (pool.num_frames if pool else 4 * frames) - frames + 1)
        self.unet, self.network = new_memories(config, base_unet, torch.Generator().manual_seed(seed))
        if start is not None:
            self._begin_with(start)
        self.unet.to(device)
        self.network.to(device)
        self.encoder = Encoder(base.vae(device), color_tower(config.clip_vision), 0, device)
        self.prompts = Prompts(config.text_encoder, device)
        self.gray = self.encoder.embed(torch.full((1, 3, size, size), 0.5))
        self.measured = None

    def settings(self) -> dict:
        return {
            "size": self.source.size, "videos": self.source.variety, "batch": self.batch, "frames": self.frames,
            "overlap": self.overlap, "pool": self.source.pool.num_videos if self.source.pool else 0,
        }  # fmt: skip

    def loss(self, generator: torch.Generator) -> Tensor:
        drawn = [draw_told(self.source, generator, self.frames, self.starts, 0) for _ in range(self.batch)]
        shares = torch.rand(self.batch, generator=generator).tolist()
        told = [share >= UNTOLD_SHARE + ANCHOR_ALONE_SHARE for share in shares]
        text = torch.cat([self.prompts(each.words if say else "") for each, say in zip(drawn, told, strict=True)])
        seen = [
            self.encoder.embed(each.clip.anchor) if share >= UNTOLD_SHARE else self.gray
            for each, share in zip(drawn, shares, strict=True)
        ]
        control = torch.cat([self._worn(each.clip.footage.frames, generator) for each in drawn])
        batch = shown(self.encoder, [each.clip for each in drawn])
        return noise_loss(self._predict(text, torch.cat(seen), control), batch, generator)

    def _predict(self, text: Tensor, embeddings: Tensor, control: Tensor):
        context = join_context(text, self.network.projector(embeddings))

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            return run_with_memories(self.unet, self.network.cam, context, text, control, x, timesteps)

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
        level = WORST_PIXEL_NOISE * max(0.0, 2 * noisy - 1)
        return control * 2 - 1 + level * randn(control.shape, generator, control)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of held-out videos without a prompt: control frames (`overlap`), new ones (`new`), those with a gray anchor
        (`new_gray`), and without CAM and anchor (`new_without`).
        """
        if self.measured is None:
            videos = [make_video(HELD_OUT + i, self.source.size, self.source.variety) for i in range(MEASURED_VIDEOS)]
            clips = [clip_of(video, self.frames, self.starts[i], 0) for i, video in enumerate(videos)]
            control = torch.cat([clip.footage.frames[: self.overlap] for clip in clips]).to(self.encoder.device)
            anchors = torch.cat([self.encoder.embed(clip.anchor) for clip in clips])
            self.measured = shown(self.encoder, clips), anchors, control * 2 - 1
        (batch, anchors, control), errors = self.measured, {}
        text = self.prompts("").expand(len(anchors), -1, -1)
        gray = self.gray.expand_as(anchors)
        old, new = slice(0, self.overlap), slice(self.overlap, None)
        closed = torch.cat([text, text.new_zeros(len(text), 16, text.shape[-1])], dim=1)
        plain = self.unet.project_context(closed, 0.0)
        for sigma in MEASURED_SIGMAS:
            told = self._predict(text, anchors, control)
            errors.update(moving_noise_errors(told, batch, sigma, {"overlap": old, "new": new}))
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


def joined(base: Base, unet: Weights, memories: Weights) -> Weights:
    """A whole StreamingModelscope file, fp16. Raises `CheckpointError` where the loader would."""
    host()  # for its torchvision, which diffusers' classes import
    tensors = {**frozen_parts(base), **{UNET_PREFIX + key: tensor for key, tensor in unet.items()}, **memories}
    detect_streamingmodelscope(shapes_of(tensors), "the joined file")
    refuse_unread(tensors, "the joined file")
    return {key: tensor.half() for key, tensor in tensors.items()}


def export_modelscope(folder: Path, into: Path, base: Path | None = None) -> dict[Path, int]:
    """Write both files of a training folder; path -> bytes. `base`: the file with the VAE, if not the folder's own."""
    unet = read_stage(folder, "ms_unet")
    whole, alone = into / FILE, into / BASE_FILE
    into.mkdir(parents=True, exist_ok=True)
    write_weights(whole, joined(read_base(folder, base), unet, read_stage(folder, "ms_cam")))
    write_weights(alone, {key: tensor.half() for key, tensor in unet.items()})
    return {path: path.stat().st_size for path in (whole, alone)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.modelscope_cam", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder that was trained in")
    parser.add_argument("--into", type=Path, help="where the files go (default: the same folder)")
    parser.add_argument("--base", type=Path, help="the file with the VAE, if the folder has none of its own")
    args = parser.parse_args(argv)
    try:
        for path, size in export_modelscope(args.out, args.into or args.out, args.base).items():
            print(f"{path}: {size / 1e6:.1f} MB")
    except StreamingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
