"""Replays of DropletVideo's recorded results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from streaming_core.models.dropletvideo.conditioning import (
    inpaint_channels,
    mask_channel,
    painted,
    place_frames,
    with_reference_noise,
)
from streaming_core.models.dropletvideo.config import latent_count
from streaming_core.models.dropletvideo.detect import detect, detect_vae
from streaming_core.models.dropletvideo.network import DropletVideo
from streaming_core.models.dropletvideo.rotary import rotary_table
from streaming_core.models.dropletvideo.vae import CausalVae
from streaming_core.models.layers import sinusoid
from streaming_core.models.registry import load_strict, shapes_of
from streaming_core.schedules.ddim import add_noise, ddim_step
from streaming_core.schedules.dropletvideo import official_steps, schedule_from

from ..cases import Case
from ..manifests import KeyList, manifest
from ..replay import Comparison, replay

FAMILY = "dropletvideo"
CLOSE = 2e-5


def transformer(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> DropletVideo:
    built = DropletVideo(detect(shapes_of(weights), "the recorded transformer", settings))
    load_strict(built, weights, "the recorded transformer")
    return built.eval()


def vae(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> CausalVae:
    built = CausalVae(detect_vae(shapes_of(weights), "the recorded VAE", settings))
    load_strict(built, weights, "the recorded VAE")
    return built.eval()


@replay(FAMILY, "transformer", atol=CLOSE)
def transformer_case(case: Case) -> Iterator[Comparison]:
    net, timesteps = transformer(case.weights(), case.config), case.input("timestep")
    width = net.config.width
    times = net.time_embedding(sinusoid(timesteps, width))
    yield Comparison("time_emb", times, case.output("time_emb"))
    yield Comparison("fps_emb", net.fps_embedding(sinusoid(case.input("fps"), width)), case.output("fps_emb"))
    latents = case.input("hidden_states")
    table = rotary_table(latents.shape[1], latents.shape[3] // 2, latents.shape[4] // 2, net.config.head_width)
    for name, got in zip(("cos", "sin"), table, strict=True):
        yield Comparison(f"rope_{name}", got, case.input(f"rope_{name}"), atol=0)
    for fps, out in (("fps", "out"), ("fps_alt", "out_fps_alt")):
        got = net(latents, case.input("inpaint_latents"), timesteps, case.input("text"), case.input(fps))
        yield Comparison(out, got, case.output(out))


@replay(FAMILY, "rope", atol=0)
def rope(case: Case) -> Iterator[Comparison]:
    cell = case.config["vae_spatial"] * case.config["patch_size"]
    for index in (0, 1):
        height, width, frames = case.input(f"hwf_{index}").tolist()
        table = rotary_table(frames, height // cell, width // cell, case.config["attention_head_dim"])
        yield Comparison(f"count_{index}", [len(table[0])], case.output(f"count_{index}"))
        rows = case.input(f"rows_{index}")
        for name, got in zip(("cos", "sin"), table, strict=True):
            yield Comparison(f"{name}_{index}", got[rows], case.output(f"{name}_{index}"))


@replay(FAMILY, "vae", atol=CLOSE)
def vae_case(case: Case) -> Iterator[Comparison]:
    net = vae(case.weights(), case.config)
    mean, log_variance = net.moments(case.input("video"))
    yield Comparison("mean", mean, case.output("mean"))
    yield Comparison("logvar", log_variance, case.output("logvar"))
    yield Comparison("image_mode", net.encode(case.input("image")), case.output("image_mode"))
    # An image leaves nothing that the next video would see.
    yield Comparison("mean after an image", net.encode(case.input("video")), case.output("mean"))
    latents = case.input("latents")
    yield Comparison("decoded", net.decode(latents), case.output("decoded"))
    yield Comparison("decoded_first4", net.decode(latents[:, :, :4]), case.output("decoded_first4"))
    yield Comparison("decoded_first1", net.decode(latents[:, :, :1]), case.output("decoded_first1"))
    tiled = net.decode(case.input("latents_tiled"), tile=(48, 40))
    yield Comparison("decoded_tiled", tiled, case.output("decoded_tiled"))


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """`[H, W, 3]` bytes to `[1, 3, height, width]` in [0, 1] as officially: by Pillow's default filter."""
    import numpy
    from PIL import Image

    small = Image.fromarray(image.to(torch.uint8).numpy()).resize((width, height))
    return torch.from_numpy(numpy.array(small)).movedim(2, 0)[None].float() / 255


@replay(FAMILY, "latent_prep", atol=CLOSE)
def latent_prep(case: Case) -> Iterator[Comparison]:
    meta = case.config
    height, width, frames = meta["height"], meta["width"], meta["num_frames"]
    images = [resized(case.input(f"image_{index}"), height, width) for index in range(len(case.group("in.image_")))]
    last = images.pop() if meta["mode"].endswith("_end") else None
    known = place_frames(frames, height, width, torch.cat(images), last)
    yield Comparison("mask255", known.missing * 255, case.output("mask255"), atol=0)
    want = case.output("video01") * (known.missing < 0.5)
    yield Comparison("video01 where known", known.video * (known.missing < 0.5), want, atol=1e-6)
    net = vae(case.weights(), meta["vae"])
    got = inpaint_channels(known, net.encode, net.config.scaling_factor)
    official = case.output("inpaint_latents")
    mask = mask_channel(known.missing, latent_count(frames), height // 8, width // 8)
    yield Comparison("mask", net.config.scaling_factor * mask.transpose(1, 2), official[:1, :, :1], atol=1e-6)
    yield Comparison("inpaint_latents", got.expand(2, -1, -1, -1, -1), official)
    # Zero terminal SNR: at the first level the model sees the noise itself, whatever the video.
    step = official_steps(50)[0]
    first = add_noise(official[:1, :, 1:], case.input("latents"), step.alpha).expand(2, -1, -1, -1, -1)
    yield Comparison("first_model_input", first, case.output("first_model_input"), atol=0)
    yield Comparison("timestep", [step.timestep] * 2, case.output("timestep"), atol=0)
    yield Comparison("painted", painted(known)[known.missing.expand_as(known.video) >= 0.5].unique(), [-1.0], atol=0)


@replay(FAMILY, "denoise", atol=1e-4)
def denoise(case: Case) -> Iterator[Comparison]:
    meta = case.config
    net, decoder = (
        transformer(case.weights("transformer."), meta["transformer"]),
        vae(case.weights("vae."), meta["vae"]),
    )
    steps = official_steps(meta["steps"], schedule_from(meta["scheduler"]))
    yield Comparison("timesteps", [step.timestep for step in steps], case.input("timesteps"), atol=0)
    x, inpaint = case.input("latents"), case.input("inpaint_latents")
    text = torch.cat([case.input("negative_prompt_embeds"), case.input("prompt_embeds")])
    fps = torch.tensor([float(meta["fps"])])
    for step in steps:
        both = x.expand(2, -1, -1, -1, -1)
        timesteps = torch.full((2,), step.timestep)
        negative, positive = net(both, inpaint, timesteps, text, fps).float().chunk(2)
        guided = negative + meta["guidance"] * (positive - negative)
        x = ddim_step(x, guided, step.alpha, step.alpha_next)
    yield Comparison("model_input_last", both, case.output("model_input_last"))
    yield Comparison("latents", x, case.output("latents"))
    frames = decoder.decode(x.transpose(1, 2) / decoder.config.scaling_factor)
    yield Comparison("video", (frames / 2 + 0.5).clamp(0, 1), case.output("video"))


@replay(FAMILY, "noise_aug", atol=1e-7)
def noise_aug(case: Case) -> Iterator[Comparison]:
    got = with_reference_noise(case.input("image"), case.input("noise"), case.config["ratio"])
    yield Comparison("noisy", got, case.output("noisy"))


def official_shapes(content: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor["shape"]) for key, tensor in content["tensors"].items()}


@manifest("dropletvideo_transformer")
def transformer_keys(content: Any) -> Iterator[KeyList]:
    official = official_shapes(content)
    yield KeyList("transformer", shapes_of(DropletVideo(detect(official), device="meta").state_dict()), official)


@manifest("dropletvideo_vae")
def vae_keys(content: Any) -> Iterator[KeyList]:
    official = official_shapes(content)
    yield KeyList("VAE", shapes_of(CausalVae(detect_vae(official), device="meta").state_dict()), official)
