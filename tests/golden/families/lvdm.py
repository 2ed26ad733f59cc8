"""Replays of LVDM's recorded results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from streaming_core.models.lvdm.autoencoder import VideoAutoencoder
from streaming_core.models.lvdm.conditioning import known_places, mask_channel, perturbed
from streaming_core.models.lvdm.config import LatentScale, VideoAutoencoderConfig
from streaming_core.models.lvdm.detect import detect, detect_autoencoder
from streaming_core.models.lvdm.layout import checkpoint_shapes, video_autoencoder_shapes
from streaming_core.models.lvdm.unet import LvdmUNet
from streaming_core.models.lvdm.weights import averaged, parts_of
from streaming_core.models.modelscope.detect import detect_text_encoder
from streaming_core.models.registry import load_strict, shapes_of
from streaming_core.models.towers import VaeConfig, detect_vae
from streaming_core.schedules.ddim import add_noise
from streaming_core.schedules.lvdm import LvdmSchedule, ddim_sigmas, ddim_timesteps, ddpm_sigmas
from streaming_core.schedules.modelscope import ddim_eta_step, signal_scale
from tests.lvdm_oracle import guided, overwritten

from ..cases import Case
from ..manifests import KeyList, manifest
from ..replay import Comparison, replay

FAMILY = "lvdm"
CLOSE = 2e-5


def unet(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> LvdmUNet:
    """The UNet of a recorded file; its recorded configuration only holds the detected one against it."""
    tensors = parts_of(weights).unet
    found = detect(shapes_of(tensors), "the recorded UNet", config["num_heads"])
    factors = [2**level for level in range(len(config["channel_mult"]))]
    want = {
        "width": config["model_channels"],
        "multipliers": tuple(config["channel_mult"]),
        "blocks_per_level": config["num_res_blocks"],
        "attention": tuple(factor in config["attention_resolutions"] for factor in factors),
        "heads": config["num_heads"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "temporal_length": config["temporal_length"] if config.get("use_relative_position") else None,
        "scale_shift": config.get("use_scale_shift_norm", False),
        "context_width": config.get("context_dim"),
        "depth": config.get("transformer_depth", 1),
        "labels": config.get("num_classes"),
    }
    got = {name: getattr(found, name) for name in want}
    if got != want:
        raise ValueError(f"detected {got}, recorded {want}")
    built = LvdmUNet(found)
    load_strict(built, tensors, "the recorded UNet")
    return built.eval()


def autoencoder(weights: Mapping[str, Tensor], config: Mapping[str, Any], *parts: str) -> VideoAutoencoder:
    """The recorded `parts` of an autoencoder (prefixes of keys), in one whose other parts are never called."""
    recorded = parts_of(weights).first_stage
    params = config["ddconfig"]["encoder"]["params"]
    want = VideoAutoencoderConfig(
        base_channels=params["n_hiddens"],
        hidden_channels=params["z_channels"],
        latent_channels=config["embed_dim"],
        scales=tuple(params["downsample"]),
    )
    others = {key: value for key, value in VideoAutoencoder(want).state_dict().items() if not key.startswith(parts)}
    whole = recorded | others
    found = detect_autoencoder(shapes_of(whole), "the recorded autoencoder", want.scales)
    if found != want:
        raise ValueError(f"detected {found}, recorded {want}")
    built = VideoAutoencoder(found)
    load_strict(built, whole, "the recorded autoencoder")
    return built.eval()


def latent_scale(case: Case) -> LatentScale:
    meta = case.config if "scale_factor" in case.config else case.meta
    return LatentScale(meta["scale_factor"], meta["shift_factor"])


@replay(FAMILY, "unet_uncond", atol=CLOSE)
def unet_uncond(case: Case) -> Iterator[Comparison]:
    net = unet(case.weights(), case.config)
    for end in ("", "_long"):
        got = net(case.input(f"x{end}"), case.input(f"timesteps{end}"))
        yield Comparison(f"eps{end}", got, case.output(f"eps{end}"))


@replay(FAMILY, "unet_t2v", atol=CLOSE)
def unet_t2v(case: Case) -> Iterator[Comparison]:
    net, x, context = unet(case.weights(), case.config), case.input("x"), case.input("context")
    for count, name in ((x.shape[2], "eps"), (2, "eps_two_frames")):
        yield Comparison(name, net(x[:, :, :count], case.input("timesteps"), context), case.output(name))


@replay(FAMILY, "unet_mask_cond", atol=CLOSE)
def unet_mask_cond(case: Case) -> Iterator[Comparison]:
    net, x, mask = unet(case.weights(), case.config), case.input("x"), case.input("mask")
    timesteps = case.input("timesteps")
    told = net(torch.cat([x, mask], dim=1), timesteps, labels=case.input("noise_level").long())
    yield Comparison("eps_cond", told, case.output("eps_cond"))
    untold = net(torch.cat([x, torch.zeros_like(mask)], dim=1), timesteps)
    yield Comparison("eps_uncond", untold, case.output("eps_uncond"))


@replay(FAMILY, "ae_encode", atol=CLOSE)
def ae_encode(case: Case) -> Iterator[Comparison]:
    net = autoencoder(case.weights(), case.config, "encoder.", "quant_conv.")
    video = case.input("x")
    yield Comparison("encoder_hidden", net.encoder(video), case.output("encoder_hidden"))
    mean, log_variance = net.moments(video)
    yield Comparison("mean", mean, case.output("mean"))
    yield Comparison("logvar", log_variance, case.output("logvar"))
    sample = mean + (log_variance / 2).exp() * case.input("noise")
    yield Comparison("sample", sample, case.output("sample"))
    yield Comparison("scaled_latent", latent_scale(case).to_model(sample), case.output("scaled_latent"))


@replay(FAMILY, "ae_decode", atol=CLOSE)
def ae_decode(case: Case) -> Iterator[Comparison]:
    net = autoencoder(case.weights(), case.config, "decoder.", "post_quant_conv.")
    latents = latent_scale(case).to_autoencoder(case.input("scaled_latent"))
    yield Comparison("unscaled_latent", latents, case.output("unscaled_latent"))
    yield Comparison("video", net.decode(latents), case.output("video"))


def schedule_of(case: Case) -> LvdmSchedule:
    return LvdmSchedule(case.config["linear_start"], case.config["linear_end"])


@replay(FAMILY, "schedule", atol=1e-6)
def schedule(case: Case) -> Iterator[Comparison]:
    levels, steps, eta = schedule_of(case), case.config["ddim_steps"], case.config["eta"]
    alphas = levels.alphas_cumprod()
    yield Comparison("betas", levels.betas(), case.output("betas"))
    yield Comparison("alphas_cumprod", alphas, case.output("alphas_cumprod"))
    timesteps = ddim_timesteps(steps)
    yield Comparison("ddim_timesteps", timesteps, case.output("ddim_timesteps"), atol=0)
    yield Comparison("ddim_alphas", alphas[timesteps], case.output("ddim_alphas"))
    # What samplers get are levels: the table is told by them, rising there and falling here.
    signal = (1 / (1 + ddim_sigmas(steps, levels).double() ** 2)).flip(0)
    yield Comparison("ddim_alphas of the levels", signal[1:], case.output("ddim_alphas"))
    yield Comparison("ddim_alphas_prev", signal[:-1], case.output("ddim_alphas_prev"))
    yield Comparison("ddim_sigmas", fresh_noise(ddim_sigmas(steps, levels), eta).flip(0), case.output("ddim_sigmas"))
    ddpm = fresh_noise(ddpm_sigmas(levels), 1.0).flip(0)
    # Officially the last step, which adds no noise, has that of the one before it in place of a logarithm of 0.
    variance = case.output("posterior_log_variance_clipped")[1:]
    yield Comparison("posterior_log_variance", 2 * ddpm[1:].log(), variance, atol=2e-3)
    yield Comparison("noise of the last DDPM step", ddpm[:1], torch.zeros(1), atol=0)
    alpha = alphas[case.input("t").long()].float().reshape(-1, 1, 1, 1, 1)
    yield Comparison("q_sample", add_noise(case.input("x0"), case.input("noise"), alpha), case.output("q_sample"))


def fresh_noise(sigmas: Tensor, eta: float) -> Tensor:
    """What the update adds of unit noise at every step from level to level, at unit variance: read off the update."""
    steps = []
    for sigma, sigma_next in pairwise(sigmas.double()):
        one, nothing = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        steps.append(ddim_eta_step(nothing, nothing, sigma, sigma_next, eta, one) * signal_scale(sigma_next))
    return torch.stack(steps)


@dataclass
class Draws:
    """The recorded random draws of a case, in order."""

    case: Case
    taken: int = 0

    def __call__(self) -> Tensor:
        self.taken += 1
        return self.case.input(f"noise_{self.taken - 1:03d}")

    @property
    def left(self) -> int:
        return len(self.case.group("in.noise_")) - self.taken


def denoised(
    net: LvdmUNet, x: Tensor, sigma: Tensor, timestep: int, known: Known | None, case: Case
) -> tuple[Tensor, Tensor, Tensor]:
    """(x after the overwriting, the guided clean latents, the noise with condition) at unit signal."""
    level, weight, kind = case.config["noise_level"], case.config["guidance"], case.config["uc_type"]
    blank = torch.zeros_like(x[:, :1])
    unit = x * signal_scale(sigma)
    mask, labels = blank, None
    if known is not None:
        unit = overwritten(unit, known.latents, known.places)
        mask = mask_channel(known.masked, unit)
        labels = None if level is None else torch.full((len(x),), level)
    times = torch.full((len(x),), timestep)
    told = net(torch.cat([unit, mask], dim=1), times, labels=labels)
    noise = told
    if weight != 1:  # officially no guidance, in both forms
        untold = net(torch.cat([unit, blank], dim=1), times)
        noise = guided(told, untold, weight if kind == "cfg_original" else weight - 1)
    x = unit / signal_scale(sigma)
    return x, x - sigma * noise, told


@dataclass(frozen=True)
class Known:
    """Perturbed latents, where they are written, and where the mask says they are."""

    latents: Tensor
    places: Tensor
    masked: Tensor


def clip(net: LvdmUNet, case: Case, draws: Draws, known: Known | None) -> Tensor:
    """Latents of one call of the official sampler."""
    levels, steps = schedule_of(case), case.config["ddim_steps"]
    sigmas = ddim_sigmas(steps, levels)
    x = draws() / signal_scale(sigmas[0])
    for timestep, (sigma, sigma_next) in zip(ddim_timesteps(steps).flip(0).tolist(), pairwise(sigmas), strict=True):
        x, clean, _ = denoised(net, x, sigma, timestep, known, case)
        x = ddim_eta_step(x, clean, sigma, sigma_next, case.config["eta"], draws())
    return x * signal_scale(sigmas[-1])


@replay(FAMILY, "pred_step", atol=CLOSE)
def pred_step(case: Case) -> Iterator[Comparison]:
    net, config, levels = unet(case.weights(), case.config["unet"]), case.config, schedule_of(case)
    noisy = perturbed(case.input("cond_clean"), case.input("cond_noise"), config["noise_level"], levels)
    yield Comparison("noisy_cond", noisy, case.output("noisy_cond"))
    x = case.input("x")
    places = known_places(x.shape[2], config["T_cond_pred"])
    yield Comparison("mask", mask_channel(places, x), case.output("mask"), atol=0)
    steps, index = ddim_timesteps(config["ddim_steps"]), config["index"]
    if int(steps[index]) != config["timestep"]:
        raise ValueError(f"step {index} is at timestep {int(steps[index])}, recorded {config['timestep']}")
    sigmas = ddim_sigmas(config["ddim_steps"], levels).flip(0)
    sigma, sigma_next = sigmas[index + 1], sigmas[index]
    x, clean, told = denoised(
        net, x / signal_scale(sigma), sigma, config["timestep"], Known(noisy, places, places), case
    )
    yield Comparison("eps_cond", told, case.output("eps_cond"))
    yield Comparison("x_after_inplace_write", x * signal_scale(sigma), case.output("x_after_inplace_write"))
    yield Comparison("pred_x0", clean, case.output("pred_x0"), rtol=2e-5)
    x = ddim_eta_step(x, clean, sigma, sigma_next, config["eta"], case.input("step_noise"))
    yield Comparison("x_prev", x * signal_scale(sigma_next), case.output("x_prev"))


def noised(known: Tensor, draws: Draws, case: Case) -> Tensor:
    """Known latents as the network sees them; without a level nothing is drawn for them."""
    level = case.config["noise_level"]
    return known if level is None else perturbed(known, draws(), level, schedule_of(case))


def predicted(case: Case, weights: Mapping[str, Tensor], all_ones: bool) -> Iterator[Comparison]:
    config, draws = case.config, Draws(case)
    net = unet(weights, config["unet"])
    length, overlap = net.config.temporal_length, config["T_cond"]
    video = clip(net, case, draws, None)
    for _ in range(config["n_pred_steps"]):
        tail = video[:, :, -overlap:]
        places = known_places(length, overlap)
        noisy = noised(tail, draws, case)
        known = Known(noisy, places, torch.ones_like(places) if all_ones else places)
        video = torch.cat([video, clip(net, case, draws, known)[:, :, overlap:]], dim=2)
    yield Comparison("draws left", draws.left, 0, atol=0)
    yield Comparison("latents", video, case.output("latents"), atol=2e-4, rtol=2e-5)


@replay(FAMILY, "long_pred", atol=CLOSE)
def long_pred(case: Case) -> Iterator[Comparison]:
    yield from predicted(case, case.weights(), all_ones=True)


@replay(FAMILY, "long_pred_fixed_mask", atol=CLOSE)
def long_pred_fixed_mask(case: Case) -> Iterator[Comparison]:
    weights = case.weights() or case.companion("long_pred").weights()
    yield from predicted(case, weights, all_ones=False)


@replay(FAMILY, "long_interp", atol=CLOSE)
def long_interp(case: Case) -> Iterator[Comparison]:
    config, draws, weights = case.config, Draws(case), case.weights()
    net = unet(weights, config["unet"])
    base, length = case.input("base_latents"), net.config.temporal_length
    places, parts = known_places(length, 1, 1), []
    # As released, fewer pairs than there are; the last latent is that of the last pair.
    pairs = len(range(0, base.shape[2] - 3, 3))
    for first in range(pairs):
        ends = base[:, :, first : first + 2]
        filled = clip(net, case, draws, Known(noised(ends, draws, case), places, places))
        parts += [ends[:, :, :1], filled[:, :, 1:-1]]
    latents = torch.cat([*parts, base[:, :, pairs : pairs + 1]], dim=2)
    yield Comparison("draws left", draws.left, 0, atol=0)
    yield Comparison("latents", latents, case.output("latents"), atol=2e-4, rtol=2e-5)
    decoder = autoencoder(weights, config["first_stage"], "decoder.", "post_quant_conv.")
    video = decoder.decode(latent_scale(case).to_autoencoder(latents))
    yield Comparison("video", video, case.output("video"), atol=2e-4, rtol=5e-5)


def official_shapes(content: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor["shape"]) for key, tensor in content["tensors"].items()}


def whole(content: Any) -> Iterator[KeyList]:
    """All keys of a checkpoint, made from what is detected in them."""
    official = official_shapes(content)
    file = parts_of(official)
    file.check_known("the official file")
    config = detect(shapes := file.unet)
    if config.kind == "text":
        stage: VideoAutoencoderConfig | VaeConfig = detect_vae(file.first_stage, "")
    else:
        stage = detect_autoencoder(file.first_stage)
    text = detect_text_encoder(file.text, "") if file.text else None
    if file.average:
        named = averaged(file.average, shapes, "the official file")
        yield KeyList("moving average", named, shapes)
    built = checkpoint_shapes(config, stage, text, average=bool(file.average))
    yield KeyList(f"{config.kind} checkpoint", built, official)


for name in ("short_sky", "long_sky_pred", "long_sky_interp", "text2video"):
    manifest(f"lvdm_{name}")(whole)


@manifest("lvdm_videoae")
def autoencoder_keys(content: Any) -> Iterator[KeyList]:
    official = official_shapes(content)
    file = parts_of(official)
    file.check_known("the official file")
    yield KeyList("autoencoder", video_autoencoder_shapes(detect_autoencoder(file.first_stage)), official)
