"""Replays of the recorded results of the enhancement stage, and of the blending of the Modelscope refiner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from streaming_core.errors import StreamingError
from streaming_core.models.i2vgenxl.detect import detect
from streaming_core.models.i2vgenxl.network import build
from streaming_core.models.registry import load_strict, shapes_of
from streaming_core.schedules.ddim import (
    add_noise,
    cosine_betas,
    ddim_step,
    enhancer_alphas_cumprod,
    kept_timesteps,
    leading_timesteps,
    zero_terminal_snr,
)
from streaming_core.schedules.vid2vid import refiner_noise, refiner_sigmas, rescaled_guidance, signal_of
from streaming_core.windows.blending import RecordedCuts, blend, official_cuts, plan_official_windows
from streaming_core.windows.enhancement import (
    EnhanceSettings,
    Size,
    clip_pixel_values,
    clip_square,
    cover_and_crop,
    keyframe_settings,
    keyframe_windows,
    plan_enhancement,
    to_pixels,
)

from ...host.enhancer_replay import closed_form, enhance_on_host, host_model
from ..cases import Case
from ..manifests import KeyList, manifest
from ..oracles import dpmpp_2m_sde_step, level_of
from ..replay import Comparison, replay

FAMILY = "enhancer"


@replay(FAMILY, "schedule", atol=1e-5)
def schedule(case: Case) -> Iterator[Comparison]:
    yield Comparison("betas", zero_terminal_snr(cosine_betas()), case.output("betas"), atol=1e-6)
    # The recorded levels bear the rounding of the machine that wrote them (up to seven units in the last place), which
    # 1 - alpha magnifies at the first levels: the steps are taken from the recorded levels themselves.
    alphas = case.output("alphas_cumprod")
    yield Comparison("alphas_cumprod", enhancer_alphas_cumprod(), alphas, atol=1e-6)
    one = torch.ones(())
    for name, want in case.group("out.").items():
        match name.split("_"):
            case ["timesteps", steps]:
                yield Comparison(name, leading_timesteps(int(steps)), want, atol=0)
            case ["timesteps", steps, "strength", percent]:
                yield Comparison(name, kept_timesteps(int(steps), int(percent) / 100), want, atol=0)
            case [spacing, level] if spacing.startswith("step"):
                level, stride = int(level[1:]), 1000 // int(spacing.removeprefix("step"))
                after = alphas[level - stride] if level >= stride else one
                yield Comparison(name, ddim_step(case.input("x"), case.input("v"), alphas[level], after), want)
            case ["add", "noise", level]:
                yield Comparison(name, add_noise(case.input("x"), case.input("noise"), alphas[int(level[1:])]), want)


@replay(FAMILY, "image_prep", atol=1e-5)
def image_prep(case: Case) -> Iterator[Comparison]:
    size = Size(case.meta["target_height"], case.meta["target_width"])
    for name, pixels in case.group("in.image_").items():
        image = Image.fromarray(pixels.numpy())
        wide = cover_and_crop(image, size)
        square = cover_and_crop(image, Size(size.width_px, size.width_px))
        small = clip_square(image, size, case.meta["clip_size"])
        for part, got in (("clip_square", square), ("clip_resized", small), ("wide", wide)):
            yield Comparison(part + "_" + name, 255 * to_pixels(got).movedim(0, -1), case.output(f"{part}_{name}"))
        yield Comparison(f"vae_{name}", 2 * to_pixels(wide)[None] - 1, case.output(f"vae_input_{name}"))
        yield Comparison(f"clip_{name}", clip_pixel_values(small), case.output(f"clip_pixel_values_{name}"))


@replay(FAMILY, "chunk_layout", atol=0)
def chunk_layout(case: Case) -> Iterator[Comparison]:
    for group in case.meta["cases"]:
        settings = EnhanceSettings(
            window_frames=group["chunk_size"], overlap_frames=group["overlap_size"], official=True
        )
        for row in group["rows"]:
            name = f"{row['frames']} frames, {group['chunk_size']}/{group['overlap_size']}"
            if "error" in row:
                try:
                    plan_enhancement(row["frames"], settings)
                    refused = 0
                except StreamingError:
                    refused = 1
                yield Comparison(f"{name}: refused", refused, 1)
                # The length that the official layout refuses is one window otherwise, with no frame lost.
                kept = plan_enhancement(row["frames"], replace(settings, official=False))
                yield Comparison(f"{name}: kept", kept.num_frames, row["frames"])
                continue
            plan = plan_enhancement(row["frames"], settings)
            key = keyframe_settings(len(plan.keyframes), settings)
            facts = {
                "keyframes": plan.keyframes,
                "key_chunk_size": key.window_frames,
                "key_overlap": key.overlap_frames,
                "key_num_frames": keyframe_windows(len(plan.keyframes), settings)[-1].stop,
                "enhanced_frames": plan.num_frames,
                "condition_images": len(plan.windows),
                "chunk_size": settings.window_frames,
                "overlap": settings.overlap_frames,
                "starts": [window.start for window in plan.windows],
            }
            for fact, want in row.items():
                if fact != "frames":
                    yield Comparison(f"{name}: {fact}", facts[fact], want)


def load_unet(case: Case) -> nn.Module:
    weights = case.weights()
    network = build(detect(shapes_of(weights), norm_groups=case.meta["unet_config"]["norm_num_groups"]))
    load_strict(network, weights, "the I2VGen-XL network")
    return network


@replay(FAMILY, "unet", rtol=1e-4)
def unet(case: Case) -> Iterator[Comparison]:
    network = load_unet(case)
    names = {
        "down": "down_blocks.",
        "up": "up_blocks.",
        "mid": "mid_block",
    }
    seen: dict[str, Tensor] = {}

    def record(name: str):
        def hook(_module, _inputs, output):
            seen[name] = (output if torch.is_tensor(output) else output[0]).clone()

        return hook

    for name in case.group("out.act."):
        kind, _, number = name.partition("_")
        path = names[kind] + number if kind in names else name
        network.get_submodule(path).register_forward_hook(record(name))
    inputs = {
        "sample": case.input("sample"),
        "timestep": case.input("timestep").expand(len(case.input("sample"))),
        "context": case.input("encoder_hidden_states"),
        "image_latents": case.input("image_latents"),
        "image_embeddings": case.input("image_embeddings"),
        "fps": case.input("fps"),
    }
    plain = network.denoise(**inputs)
    yield Comparison("sample", plain, case.output("sample"))
    for name, want in case.group("out.act.").items():
        yield Comparison(name, seen[name], want)
    yield Comparison("row by row", network.denoise(**inputs, frugal=True), case.output("sample"))


def enhance(case: Case, denoise) -> Iterator[Comparison]:
    """The enhancement loop around `denoise(x, t, k)`, which gets the doubled window and its number."""
    meta, alphas = case.meta, enhancer_alphas_cumprod()
    windows = plan_official_windows(meta["frames"], meta["chunk_size"], meta["overlap_size"])
    timesteps = kept_timesteps(meta["num_inference_steps"], meta["strength"])
    yield Comparison("timesteps", timesteps, case.input("timesteps"), atol=0)
    drawn = official_cuts(windows, len(timesteps), meta["python_random_seed"])
    recorded = RecordedCuts(tuple(tuple(row) for row in case.input("offsets").tolist()))
    yield Comparison("cuts", drawn.table, recorded.table, atol=0)
    generator = torch.Generator("cpu").manual_seed(meta["torch_cpu_generator_seed_for_noise"])
    batch, channels, *rest = case.input("noise").shape
    noise = torch.randn((batch * rest[0], channels, *rest[1:]), generator=generator)
    noise = rearrange(noise, "(b f) c h w -> b c f h w", b=batch)
    yield Comparison("noise", noise, case.input("noise"), atol=0)

    z = add_noise(case.input("video_latents"), case.input("noise"), alphas[timesteps[0]])
    yield Comparison("noised", z, case.output("noised"))
    stride = 1000 // meta["num_inference_steps"]
    for step, level in enumerate(timesteps.tolist()):
        yield Comparison(f"before step {step}", z, case.output(f"latents_before_step_{step}"))
        after = alphas[level - stride] if level >= stride else torch.ones(())
        parts = []
        for k, window in enumerate(windows):
            x = z[:, :, window.start : window.stop]
            v = denoise(torch.cat([x, x]), level, k)
            uncond, cond = v.chunk(2)
            v = uncond + meta["guidance_scale"] * (cond - uncond)
            parts.append(ddim_step(x, v, alphas[level], after))
        z = blend(parts, windows, recorded.offsets(windows, step), dim=2)
    yield Comparison("latents", z, case.output("latents"))


def through_the_host(case: Case, **tolerance: float) -> Iterator[Comparison]:
    """The same loop run by the host's own sampler and guidance on our MODEL and context handler."""
    model = host_model(case)
    for sampler in ("euler", "ddim"):
        got = enhance_on_host(case, sampler, model)
        yield Comparison(f"latents through the host, {sampler}", got, case.output("latents"), **tolerance)


@replay(FAMILY, "blend_stub", atol=1e-4)
def blend_stub(case: Case) -> Iterator[Comparison]:
    def denoise(x: Tensor, level: int, k: int) -> Tensor:
        image = case.input(f"image_latents_{k}"), case.input(f"image_embeddings_{k}")
        return closed_form(x, torch.full((2,), level), case.input("prompt_embeds"), *image)

    yield from enhance(case, denoise)
    yield from through_the_host(case, atol=1e-4)


@replay(FAMILY, "blend_unet", rtol=1e-4)
def blend_unet(case: Case) -> Iterator[Comparison]:
    network = load_unet(case)

    def denoise(x: Tensor, level: int, k: int) -> Tensor:
        return network.denoise(
            x,
            torch.full((2,), level),
            case.input("prompt_embeds"),
            case.input(f"image_latents_{k}"),
            case.input(f"image_embeddings_{k}"),
            case.input("fps"),
        )

    yield from enhance(case, denoise)
    yield from through_the_host(case, rtol=1e-4)


@replay("streamingmodelscope", "randomized_blending", atol=1e-5)
def randomized_blending(case: Case) -> Iterator[Comparison]:
    """The refiner's sampler: randomized blending of denoised estimates inside DPM-Solver++(2M) SDE."""
    config, noise = case.config, refiner_noise()
    yield Comparison("schedule_sigmas_1000", noise, case.output("schedule_sigmas_1000"))
    sigmas = refiner_sigmas(config["steps"], config["t_max"], noise)
    yield Comparison("sampler_sigmas", sigmas, case.output("sampler_sigmas"))
    start, signal = noise[config["t_max"]], signal_of(noise[config["t_max"]])
    noised = signal * case.input("latents_clean") + start * case.input("noise")
    yield Comparison("noised", noised, case.output("noised"))

    windows = plan_official_windows(config["frames"], config["chunk"], config["overlap"])
    cuts = RecordedCuts(tuple(tuple(row) for row in case.input("cuts").tolist()))
    conv = case.weights("conv.")

    def velocity(x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        mixed = nn.functional.conv3d(x, conv["weight"], conv["bias"], padding=1) + text.mean() * torch.sin(level / 50)
        return torch.tanh(mixed) + 0.1 * x.mean(2, keepdim=True)

    x, before = noised * sigmas[0], None
    for step in range(len(sigmas) - 1):
        scaled = x / (1 + sigmas[step] ** 2).sqrt()
        level = level_of(sigmas[step], noise)
        if step == 1:
            yield Comparison("model_in_step1", scaled, case.output("model_in_step1"))
        parts = []
        for window in windows:
            part = scaled[:, :, window.start : window.stop]
            cond, uncond = (velocity(part, level, case.input(name)) for name in ("y", "negative_y"))
            guided = rescaled_guidance(cond, uncond, config["guide_scale"], config["guide_rescale"])
            parts.append(signal_of(noise[level]) * part - noise[level] * guided)
        clean = blend(parts, windows, cuts.offsets(windows, step), dim=2)
        if step < 2:
            yield Comparison(f"x0_step{step}", clean, case.output(f"x0_step{step}"))
        last = sigmas[step + 1] == 0
        x = dpmpp_2m_sde_step(x, clean, before, sigmas, step, None if last else case.input("step_noise")[step])
        before = clean
    yield Comparison("latents", x, case.output("latents"))


@manifest("i2vgenxl_unet")
def i2vgenxl_unet(content: dict) -> Iterator[KeyList]:
    official = {key: tuple(shape) for key, shape in content["state_dict"].items()}
    yield KeyList("network", shapes_of(build(detect(official), device="meta").state_dict()), official)
