"""Replays of StreamingSVD's recorded results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.state import ChunkResult
from streaming_core.loop.steps import continue_video, pick_anchor, state_after_first
from streaming_core.models.attention import Compute
from streaming_core.models.cam import CamFeatures, CamMerger
from streaming_core.models.layers import PixelEncoder
from streaming_core.models.registry import load_strict, shapes_of, take
from streaming_core.models.streamingsvd.conditioning import clip_pixels, guide, linear_guidance
from streaming_core.models.streamingsvd.config import CamConfig
from streaming_core.models.streamingsvd.detect import (
    ARCHITECTURE,
    CAM_PREFIX,
    FIRST_STAGE_PREFIX,
    IMAGE_ENCODER_PREFIX,
    UNET_PREFIX,
    detect_cam,
    detect_streamingsvd,
    detect_video_unet,
)
from streaming_core.models.streamingsvd.file import cam_weights, split_file, split_vae_weights, unet_weights
from streaming_core.models.streamingsvd.network import CamEncoder, CamNetwork
from streaming_core.models.towers import detect_pixel_channels, detect_vae
from streaming_core.schedules.svd import (
    align_your_steps_sigmas,
    karras_sigmas,
    v_prediction_scalings,
)

from ..cases import Case
from ..manifests import KeyList, manifest
from ..replay import Comparison, companion, replay
from ..solvers import initial_noise_scale

FAMILY = "streamingsvd"
companion(FAMILY, "autoregressive_vae")


@replay(FAMILY, "cam_merger", atol=1e-5)
def cam_merger(case: Case) -> Iterator[Comparison]:
    merger = CamMerger(case.config["channels"], case.config["head_dim"])
    load_strict(merger, case.weights(), "the CAM merger")
    sample = merger(case.input("sample"), case.input("conditioning"), case.config["num_frames"])
    yield Comparison("sample", sample, case.output("sample"))


@replay(FAMILY, "cam_cond_embedding", atol=1e-5)
def cam_cond_embedding(case: Case) -> Iterator[Comparison]:
    weights = case.weights()
    encoder = PixelEncoder(detect_pixel_channels(shapes_of(weights), ""), len(weights["conv_out.weight"]), normed=True)
    load_strict(encoder, weights, "the pixel encoder")
    yield Comparison("embedding", encoder(case.input("frames")), case.output("embedding"))


@replay(FAMILY, "cam_encoder", atol=2e-4)
def cam_encoder(case: Case) -> Iterator[Comparison]:
    weights = case.weights()
    shapes = shapes_of(weights)
    config = CamConfig(
        unet=detect_video_unet(shapes, "", case.config["unet"]["num_head_channels"]),
        pixel_channels=detect_pixel_channels(shapes, "controlnet_cond_embedding."),
        merger_head_width=case.config["cam_head_dim"],
    )
    encoder = CamEncoder(config)
    load_strict(encoder, weights, "the CAM encoder")
    embedding = encoder.controlnet_cond_embedding(case.input("controlnet_cond"))
    yield Comparison("cond_embedding", embedding, case.output("cond_embedding"))
    inputs = [case.input(name) for name in ("x", "timesteps", "context", "y")]
    for slices in (1, 2):
        compute = Compute(feed_forward_slices=slices)
        features = encoder(*inputs, embedding, case.config["num_conditional_frames"], compute)
        recorded = case.group("out.hs.")
        yield Comparison("number of features", len(features.skips), len(recorded))
        for index, feature in enumerate(features.skips):
            yield Comparison(f"hs.{index}", feature, recorded[str(index)])
        yield Comparison("mid", features.middle, case.output("mid"))


@replay(FAMILY, "clip_preprocess", atol=2e-3)
def clip_preprocess(case: Case) -> Iterator[Comparison]:
    config = case.config
    images = case.input("image_uint8").float() / 127.5 - 1
    size = case.output("pixel_values").shape[-1]
    pixels = clip_pixels(images, size, config["mean"], config["std"])
    yield Comparison("pixel_values", pixels, case.output("pixel_values"))


@replay(FAMILY, "preconditioning", atol=1e-5)
def preconditioning(case: Case) -> Iterator[Comparison]:
    for steps in case.config["sigma_lists"]:
        # The table spans 0.002 to 700: an absolute bound alone would say nothing about its low end.
        yield Comparison(f"sigmas.{steps}", align_your_steps_sigmas(steps), case.output(f"sigmas.{steps}"), rtol=1e-7)
    for name, value in v_prediction_scalings(case.input("sigma"))._asdict().items():
        yield Comparison(name, value, case.output(name))

    guider = case.config["guider"]
    scale = linear_guidance(guider["min_scale"], guider["max_scale"], guider["num_frames"])
    yield Comparison("guidance_scale", scale[None], case.output("guidance_scale"))
    yield Comparison("guider", guide(*case.input("guider_x").chunk(2), scale), case.output("guider"))

    def denoised(network, x, sigma):
        c = [value.view(-1, *[1] * (x.ndim - 1)) for value in v_prediction_scalings(sigma)]
        return c[1] * network(c[2] * x, c[3]) + c[0] * x

    got = denoised(lambda a, t: a.tanh() + 0.1 * t, case.input("denoiser_x"), case.input("denoiser_sigma"))
    yield Comparison("denoiser", got, case.output("denoiser"))

    sampler = case.config["sampler"]
    scale = linear_guidance(sampler["min_scale"], sampler["max_scale"], sampler["num_frames"])
    bias = case.input("sampler_cond").mean(dim=(1, 2)).view(-1, 1, 1, 1)

    def guided(x, sigma):
        halves = [denoised(lambda a, t, b=b: 0.9 * a.tanh() + 0.05 * t + b, x, sigma) for b in (0 * bias, bias)]
        return guide(*halves, scale)

    sigmas = align_your_steps_sigmas(sampler["steps"]).float()
    start = case.input("sampler_noise") * initial_noise_scale(float(sigmas[0]))
    import_host()
    from comfy.k_diffusion.sampling import sample_euler

    yield Comparison("sampler", sample_euler(guided, start, sigmas, disable=True), case.output("sampler"), atol=1e-3)

    first = karras_sigmas(len(case.output("first_chunk_timesteps")))
    yield Comparison("first_chunk_sigmas", first, case.output("first_chunk_sigmas"), rtol=1e-6)
    yield Comparison(
        "first_chunk_timesteps", v_prediction_scalings(first[:-1]).c_noise, case.output("first_chunk_timesteps")
    )
    scale = initial_noise_scale(float(first[0]))
    yield Comparison("first_chunk_init_noise_sigma", scale, case.output("first_chunk_init_noise_sigma"), rtol=1e-6)
    recorded = case.output("first_chunk_guidance")
    yield Comparison("first_chunk_guidance", linear_guidance(1.0, 3.0, len(recorded)), recorded)


def host_rooms():
    """The pack's host rooms (build, cam), on a host in this process."""
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.svd import build, cam

    return build, cam


def host_model(weights, head_width):
    """The host's MODEL from weights with official prefixes, and its configuration."""
    build, _ = host_rooms()
    config = detect_video_unet(shapes_of(weights), UNET_PREFIX, head_width)
    return build.build_video_unet(unet_weights(weights), config), config


def host_cam(weights, case: Case):
    """STREAMING_CAM from weights with official prefixes."""
    host_rooms()
    from comfyui_streamingt2v.nodes.host.cam import build_cam

    head_width, merger_head_width = case.config["unet"]["num_head_channels"], case.config["cam_head_dim"]
    config = detect_cam(shapes_of(weights), CAM_PREFIX, head_width, merger_head_width)
    return build_cam(CamNetwork, cam_weights(weights), config)


@replay(FAMILY, "video_unet", atol=5e-5)
def video_unet(case: Case) -> Iterator[Comparison]:
    _, cam = host_rooms()
    from comfyui_streamingt2v.nodes.host.cam import StreamingCam

    weights = {UNET_PREFIX + key: tensor for key, tensor in case.weights().items()}
    model, config = host_model(weights, case.config["unet"]["num_head_channels"])
    pixel_channels = tuple(case.config["cond_embedding_channels"])
    network = CamNetwork(CamConfig(config, pixel_channels, case.config["cam_head_dim"]))
    for name in ("cross_attention_merger_input_blocks", "cross_attention_merger_mid_block"):
        load_strict(getattr(network, name), take(case.weights(), name + "."), name)

    frames = case.config["num_frames"]
    unet = model.model.diffusion_model
    inputs = [case.input(name) for name in ("x", "timesteps", "context", "y")]
    plain = unet(*inputs, transformer_options={}, num_video_frames=frames)
    yield Comparison("sample_without_cam", plain, case.output("sample_without_cam"))

    recorded = case.group("in.hs_control_input.")
    features = CamFeatures([recorded[str(index)] for index in range(len(recorded))], case.input("hs_control_mid"))
    guide = cam.CamGuide(StreamingCam(_Patched(network)), features.middle)
    options = {"patches": {"output_block_patch": [guide.merge]}, cam.KEY: cam.CamCall(features, frames, Compute())}
    merged = unet(*inputs, transformer_options=options, num_video_frames=frames)
    yield Comparison("sample", merged, case.output("sample"))
    yield Comparison("features left unmerged", sum(f is not None for f in [*features.skips, features.middle]), 0)


class _Patched:
    """As much of a patcher as holds a network."""

    def __init__(self, model):
        self.model = model


@replay(FAMILY, "streaming_wrapper", atol=1e-4)
def streaming_wrapper(case: Case) -> Iterator[Comparison]:
    """One guided call through the host's UNet under its patcher, halves together in both orders and one by one."""
    _, cam = host_rooms()
    from comfy.model_management import load_models_gpu

    weights = case.weights()
    model, _ = host_model(weights, case.config["unet"]["num_head_channels"])
    frames = case.config["num_frames"]
    control_frames = case.input("ctrl_frames")[0].movedim(1, -1) / 2 + 0.5
    model = cam.with_cam(model, host_cam(weights, case), control_frames)
    load_models_gpu([model, *model.get_additional_models()])
    clips = case.input("x").shape[0] // frames
    orders = {"batched": list(range(clips)), "reversed": list(range(clips))[::-1]}
    orders.update({f"half {half} alone": [half] for half in range(clips)})
    for name, order in orders.items():
        rows = torch.cat([torch.arange(half * frames, (half + 1) * frames) for half in order])
        x, t, concat, crossattn, vector = (case.input(key)[rows] for key in ("x", "t", "concat", "crossattn", "vector"))
        options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
        sample = model.model.diffusion_model(
            torch.cat([x, concat], dim=1), t, crossattn, vector, transformer_options=options, num_video_frames=frames
        )
        yield Comparison(f"sample, {name}", sample, case.output("sample")[rows])


def tiny_embedder(weights):
    """The recorder's stand-in for CLIP: average pool to 4x4, flatten, one linear layer; frames in [0, 1]."""

    def embed(frame):
        pooled = torch.nn.functional.adaptive_avg_pool2d(frame * 2 - 1, 4).flatten(1)
        return torch.nn.functional.linear(pooled, weights["weight"], weights["bias"])[:, None]

    return embed


@replay(FAMILY, "autoregressive", atol=2e-3)
def autoregressive(case: Case) -> Iterator[Comparison]:
    """Every round through the loop's own step, with recorded noise, from the recorded control frames.

    Each round's tail is compared with the recorded control frames and then replaced by them: these random networks
    answer a change of 1e-5 in the control frames with 1e-2 in the latents, so rounding of one round would drown the
    next.
    """
    build, cam = host_rooms()
    import comfy.samplers
    from comfyui_streamingt2v.nodes.host.svd import sampler as svd

    config, weights = case.config, case.weights()
    others = case.companion("autoregressive_vae").weights()
    shapes = shapes_of(others)
    encoder, first_stage = (detect_vae(shapes, prefix) for prefix in (IMAGE_ENCODER_PREFIX, FIRST_STAGE_PREFIX))
    vae = build.build_vae(split_vae_weights(others), encoder, first_stage)
    model, _ = host_model(weights, config["unet"]["num_head_channels"])

    rounds, given, latents = config["n_autoregressive"], [], []

    def recorded_noise(chunk, image_shape, latent_shape, kind):
        noise = [case.input(f"{name}.{chunk.index - 1}") for name in ("cond_aug_noise", "latent_noise")]
        if tuple(noise[0].shape) != image_shape or tuple(noise[1].shape) != latent_shape:
            raise ValueError(f"the loop asked for noise {image_shape}, {latent_shape}")
        return svd.ChunkNoise(*noise, sampler_seed=0)

    class Recorded(svd.SvdChunkSampler):
        """Notes what passes between the loop and the sampler."""

        def sample_chunk(self, chunk, control_frames, anchor):
            given.append(self._condition(chunk, anchor)[0])
            latents.append(super().sample_chunk(chunk, control_frames, anchor))
            return latents[-1]

    sampler = Recorded(
        model=model,
        cam=host_cam(weights, case),
        vae=vae,
        clip_vision=None,
        embed=tiny_embedder(take(others, "conditioner.embedders.0.open_clip.lin.")),
        first_model=model,
        motion=svd.MotionSettings(config["fps_id"] + 1, config["motion_bucket_id"], config["cond_aug"], "uniform"),
        sampling=svd.SamplingSettings(
            comfy.samplers.sampler_object("euler"),
            align_your_steps_sigmas(config["steps"]).float(),
            config["max_scale"],
            config["min_scale"],
        ),
        grouping="official",
        noise=recorded_noise,
    )
    first_clip = case.input("initial_chunk") / 2 + 0.5
    frames, overlap = config["num_frames"], config["num_conditional_frames"]
    total = first_clip.shape[0] + rounds * (frames - overlap)
    plan = VideoPlan(total, frames, overlap, given_frames=first_clip.shape[0])
    anchor = pick_anchor(first_clip, config["anchor_index"])
    state = state_after_first(plan, ChunkResult(first_clip), anchor, sampler)
    video = [first_clip]
    for index in range(rounds):
        recorded = case.output(f"ctrl_frames.{index}")[0]
        yield Comparison(f"ctrl_frames.{index}", state.tail * 2 - 1, recorded)
        state, new = continue_video(replace(state, tail=recorded / 2 + 0.5), sampler)
        video.append(new)
    yield Comparison("video is complete", state.is_complete, True)

    for index, (positive, _) in enumerate(given):
        context, extra = positive[0]
        vector = model.model.encode_adm(
            **{key: extra[key] for key in ("fps", "motion_bucket_id", "augmentation_level")}
        )
        recorded = case.group("out.cond.")
        yield Comparison(f"crossattn.{index}", context, recorded[f"crossattn.{index}"], atol=1e-4)
        concat = extra["concat_latent_image"]
        yield Comparison(f"concat.{index}", concat, recorded[f"concat.{index}"], atol=1e-4)
        yield Comparison(f"vector.{index}", vector, recorded[f"vector.{index}"], atol=1e-5)
        yield Comparison(f"latent.{index}", latents[index] * config["latent_scale"], case.output(f"latent.{index}"))
    yield Comparison("video_0_255", torch.cat(video) * 255, case.output("video_0_255"), atol=0.05)


@manifest(FAMILY)
def key_list(content) -> Iterator[KeyList]:
    """The official file against the networks its own shapes describe, built at full size without memory."""
    build, _ = host_rooms()
    from comfy.model_detection import detect_unet_config

    official = {key: tuple(shape) for key, shape in content.items()}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in official.items()}
    config = detect_streamingsvd(official)
    weights = split_file(tensors, "the official file")

    unet = build.empty_video_unet(config.cam.unet, torch.float16, 1, device="meta").diffusion_model
    yield KeyList("video UNet", shapes_of(unet.state_dict()), shapes_of(weights.unet))
    host = {key: _plain(value) for key, value in detect_unet_config(dict(tensors), UNET_PREFIX).items()}
    own = {key: _plain(value) for key, value in build.host_unet_config(config.cam.unet).items()}
    yield KeyList("configuration the host detects", own, host)
    cam = CamNetwork(config.cam, device="meta")
    yield KeyList("CAM", shapes_of(cam.state_dict()), shapes_of(weights.cam))
    with torch.device("meta"):
        vae = build.SplitAutoencoder(config.image_encoder, config.first_stage)
    yield KeyList("VAE", shapes_of(vae.state_dict()), shapes_of(weights.vae))
    from comfyui_streamingt2v.nodes.host import encoders

    tower = encoders.convert_clip_vision(weights.clip_vision)
    expected = encoders.clip_vision_shapes(encoders.empty_clip_vision(config.clip_vision))
    yield KeyList("CLIP image tower", expected, shapes_of(tower))
    rest = {key: shape for key, shape in official.items() if ARCHITECTURE.unused_reason(key)}
    yield KeyList("known unused", {key: official[key] for key in weights.unused}, rest)


def _plain(value):
    """A configuration value as a tuple of numbers, so that it can stand where a shape does."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
