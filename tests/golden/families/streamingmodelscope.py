"""Replays of StreamingModelscope's recorded results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hosting.inprocess import import_host, import_pack
from streaming_core.loop.chunk import Chunk
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.sampler import WrappedSampler
from streaming_core.loop.state import ChunkResult
from streaming_core.loop.steps import pick_anchor, state_after_first, video_chunks
from streaming_core.models.attention import attend
from streaming_core.models.cam import CamFeatures, CamMerger
from streaming_core.models.modelscope.apm import ImageProjector, join_context
from streaming_core.models.modelscope.cam import CamEncoder, ModelscopeCam
from streaming_core.models.modelscope.config import MixerConfig, ModelscopeCamConfig
from streaming_core.models.modelscope.detect import (
    APM_PREFIX,
    ARCHITECTURE,
    CAM_PREFIX,
    CLIP_VISION_PREFIX,
    TEXT_PREFIX,
    VAE_PREFIX,
    detect_cam,
    detect_clip_vision,
    detect_image_projector,
    detect_streamingmodelscope,
    detect_text_encoder,
    detect_unet,
)
from streaming_core.models.modelscope.unet import VideoUNet, add_mixer, mix_context
from streaming_core.models.modelscope.vae_names import rename_vae
from streaming_core.models.modelscope.vid2vid import rename
from streaming_core.models.modelscope.weights import READ_PREFIXES, cam_part, unet_part
from streaming_core.models.registry import load_strict, shapes_of, take
from streaming_core.models.streamingsvd.conditioning import clip_pixels
from streaming_core.models.unet3d_attention import ContextAttention
from streaming_core.schedules.modelscope import modelscope_sigmas

from ..cases import Case
from ..manifests import KeyList, manifest
from ..replay import Comparison, replay

FAMILY = "streamingmodelscope"


def heads(config: dict[str, Any]) -> dict[str, int]:
    """Widths of heads, which shapes do not show; the recorded networks have narrow ones."""
    return {"head_width": config["attention_head_dim"], "merger_head_width": config["cam_head_dim"]}


@replay(FAMILY, "apm_mixing", atol=1e-5)
def apm_mixing(case: Case) -> Iterator[Comparison]:
    weights = case.weights()
    config = detect_image_projector(shapes_of(weights))
    projector = ImageProjector(config)
    load_strict(projector, take(weights, APM_PREFIX), "the APM token network")
    text = case.input("text")
    # One embedding per video, and several: image_embed, image_embed_3frames, ...
    for suffix, embeddings in case.group("in.image_embed").items():
        tokens = projector(embeddings.view(text.shape[0], -1, config.width))
        yield Comparison(f"image_tokens{suffix}", tokens, case.output(f"image_tokens{suffix}"))
    tokens = projector(case.input("image_embed").view(text.shape[0], -1, config.width))
    context = join_context(text, tokens)
    yield Comparison("context_93", context, case.output("context_93"))

    attention = take(weights, "attn2.")
    width, context_width = attention["to_k.weight"].shape
    layer = ContextAttention(width, case.config["hd"], context_width)
    add_mixer(layer, MixerConfig(*attention["conv.weight"].shape), context_width, nn)
    load_strict(layer, attention, "the mixed cross-attention")
    mixed = mix_context(layer, context)
    yield Comparison("mixed_context_77", mixed, case.output("mixed_context_77"))
    attended = layer.attend(case.input("hidden"), layer.project(mixed), attend)
    yield Comparison("attn", attended, case.output("attn"))


@replay(FAMILY, "clip_preprocess", atol=1e-5)
def clip_preprocess(case: Case) -> Iterator[Comparison]:
    recorded = case.output("pixels")
    yield Comparison("pixels", clip_pixels(case.input("image"), recorded.shape[-1]), recorded)


@replay(FAMILY, "cam_block", atol=1e-5)
def cam_block(case: Case) -> Iterator[Comparison]:
    sample, cond = (case.input(name) for name in ("sample", "cond"))
    merger = CamMerger(sample.shape[2], case.config["hd"])
    load_strict(merger, case.weights(), "the CAM merger")
    got = merger(sample.flatten(0, 1), cond.flatten(0, 1), sample.shape[1])
    yield Comparison("sample", got.view_as(sample), case.output("sample"))


# Features reach 20, where another number of threads alone moves float32 sums by 1.5e-5.
@replay(FAMILY, "cam_encoder", atol=1e-5, rtol=2e-6)
def cam_encoder(case: Case) -> Iterator[Comparison]:
    weights = case.weights()
    encoder = CamEncoder(detect_cam(shapes_of(weights), **heads(case.config)))
    load_strict(encoder, take(weights, CAM_PREFIX), "the CAM branch")
    latents, images = case.input("latents"), case.input("images")
    batch = latents.shape[0]
    frames = images.shape[0] // batch
    embedding = encoder.controlnet_cond_embedding(images)
    yield Comparison("cond_embedding", embedding, case.output("cond_embedding"))
    text = case.input("context_93")[:, : case.config["apm_text_tokens"]]
    x = latents[:, :, :frames].transpose(1, 2).flatten(0, 1)
    timesteps = case.input("timestep").expand(batch)
    features = encoder(x, timesteps, encoder.project_context(text), embedding)
    recorded = case.group("out.down.")
    yield Comparison("number of features", len(features.skips), len(recorded))
    for index, feature in enumerate(features.skips):
        yield Comparison(f"down.{index}", feature, recorded[str(index)])
    yield Comparison("mid", features.middle, case.output("mid"))


def unet_and_mergers(case: Case) -> tuple[VideoUNet, ModelscopeCam]:
    """The recorded UNet, and its mergers in a CAM network whose branch was not recorded and stays empty."""
    weights = case.weights()
    shapes = shapes_of(weights)
    widths = heads(case.config)
    unet = VideoUNet(detect_unet(shapes, "base_model.", widths["head_width"]))
    load_strict(unet, unet_part(weights), "the UNet")
    cam = ModelscopeCam(ModelscopeCamConfig(unet.config, (32,), widths["merger_head_width"]))
    cam.unet = nn.Identity()
    load_strict(cam, cam_part(weights), "the CAM mergers")
    return unet, cam


@replay(FAMILY, "unet_forward", atol=1e-5)
def unet_forward(case: Case) -> Iterator[Comparison]:
    unet, cam = unet_and_mergers(case)
    latents = case.input("latents")
    batch, _, frames = latents.shape[:3]
    x = latents.transpose(1, 2).flatten(0, 1)
    memory = unet.project_context(case.input("context_93"))
    timesteps = case.input("timestep").expand(batch)

    def predict(merge=None):
        return unet(x, timesteps, memory, merge).unflatten(0, (batch, frames)).transpose(1, 2)

    skips = case.group("in.down.")
    features = CamFeatures([skips[str(index)] for index in range(len(skips))], case.input("mid"))
    with_cam = predict(cam.merging(features, frames))
    yield Comparison("noise_with_cam", with_cam, case.output("noise_with_cam"))
    yield Comparison("features left behind", sum(feature is not None for feature in features.skips), 0)
    yield Comparison("noise_without_cam", predict(), case.output("noise_without_cam"))
    yield from unet_through_host(case, cam)


def noisy_for_host(patcher: Any, latents: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Recorded model input `[b, c, f, h, w]` as what a host sampler holds at that timestep, and its sigma."""
    import comfy.model_management as mm

    mm.load_models_gpu([patcher])
    patcher.pre_run()
    sigma = patcher.model.model_sampling.sigmas[timestep]
    return latents.transpose(1, 2).flatten(0, 1) * (1 + sigma**2).sqrt(), sigma


def unet_through_host(case: Case, cam: ModelscopeCam) -> Iterator[Comparison]:
    """The same call through the host's MODEL: its conditions, its noise scaling, its epsilon prediction."""
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.modelscope import model as host

    weights, tokens = case.weights(), case.config["apm_text_tokens"]
    config = detect_unet(shapes_of(weights), "base_model.", case.config["attention_head_dim"])
    patcher = host.build_modelscope(unet_part(weights), config, "the UNet")
    latents = case.input("latents")
    x, sigma = noisy_for_host(patcher, latents, case.input("timestep"))
    batch, _, frames = latents.shape[:3]
    rows = [
        patcher.model.extra_conds(cross_attn=row[:, :tokens], device=x.device, **{host.APM_TOKENS: row[:, tokens:]})
        for row in case.input("context_93").split(1)
    ]
    memory = rows[0]["memory"].concat([row["memory"] for row in rows[1:]])

    def predict(options):
        sigmas = sigma.expand(batch * frames)
        denoised = patcher.model.apply_model(x, sigmas, memory=memory, transformer_options=options)
        return ((x - denoised) / sigma).unflatten(0, (batch, frames)).transpose(1, 2)

    skips = case.group("in.down.")
    features = CamFeatures([skips[str(index)] for index in range(len(skips))], case.input("mid"))
    # Getting epsilon back out of the denoised latent costs some digits where sigma is small.
    allowed = max(1e-5, 2e-6 / float(sigma))
    with_cam = predict({host.MERGE_KEY: cam.merging(features, frames)})
    yield Comparison("noise_with_cam through the host", with_cam, case.output("noise_with_cam"), atol=allowed)
    yield Comparison("noise_without_cam through the host", predict({}), case.output("noise_without_cam"), atol=allowed)


def recorded_text(case: Case, host_file: Any) -> list[Tensor]:
    """Prompt and negative prompt encoded by the host's text tower, `[1, tokens, width]` each."""
    weights = take(case.weights(), TEXT_PREFIX)
    table = weights["text_model.embeddings.token_embedding.weight"]
    # The host's tower always has CLIP's whole vocabulary; the recorded one is cut to what the prompts use.
    weights["text_model.embeddings.token_embedding.weight"] = nn.functional.pad(table, (0, 0, 0, 49408 - len(table)))
    config = replace(
        detect_text_encoder(shapes_of(weights), ""), heads=case.config["text_encoder"]["num_attention_heads"]
    )
    clip = host_file.build_text_encoder(weights, config)
    ids = [case.input(name)[0].tolist() for name in ("prompt_ids", "negative_ids")]
    return [clip.encode_from_tokens({"h": [[(token, 1.0) for token in row]]}).float() for row in ids]


def recorded_decoder(case: Case) -> Any:
    """The recorded VAE, whose norms of four groups only diffusers' public class can have."""
    from diffusers import AutoencoderKL

    config = case.config["vae"]
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(
        **{key: value for key, value in config.items() if key != "scaling_factor"},
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()
    load_strict(vae, take(case.weights(), VAE_PREFIX), "the recorded VAE")
    vae.latent_channels, vae.downscale_ratio = config["latent_channels"], 2 ** (levels - 1)
    return vae


def decode_recorded(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the host's sampler returns them, already divided by the scaling factor, to frames in [0, 1]."""
    frames = torch.cat([vae.decode(latent).sample for latent in latents.split(1)])
    return (frames * 0.5 + 0.5).clamp(0, 1)


@replay(FAMILY, "streaming_loop", atol=1e-4)
def streaming_loop(case: Case) -> Iterator[Comparison]:
    """The video through the chunk loop and the host's MODEL, CLIP, CLIP_VISION and sampler; only the VAE is not its."""
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.cam import build_cam
    from comfyui_streamingt2v.nodes.host.modelscope import (
        apm,
        ddim,
    )
    from comfyui_streamingt2v.nodes.host.modelscope import model as modelscope_model
    from comfyui_streamingt2v.nodes.host.modelscope import sampler as modelscope
    from comfyui_streamingt2v.nodes.host.modelscope import towers as modelscope_file

    config, weights = case.config, case.weights()
    shapes, widths = shapes_of(weights), heads(config["unet"])
    unet_config = detect_unet(shapes, "base_model.", widths["head_width"])
    model = modelscope_model.build_modelscope(unet_part(weights), unet_config, "the UNet")
    cam = build_cam(ModelscopeCam, cam_part(weights), detect_cam(shapes, CAM_PREFIX, **widths))
    projector = apm.build_apm(take(weights, APM_PREFIX), detect_image_projector(shapes))
    vision_config = detect_clip_vision(shapes, CLIP_VISION_PREFIX)
    vision_config = replace(vision_config, heads=config["image_encoder"]["heads"])
    from comfyui_streamingt2v.nodes.host import encoders

    vision = encoders.build_clip_vision(take(weights, CLIP_VISION_PREFIX), vision_config)
    positive, negative = recorded_text(case, modelscope_file)
    vae = recorded_decoder(case)

    first = case.input("first_chunk")
    control_frames = first.shape[0] // 2
    plan = VideoPlan(
        num_frames=first.shape[0] + (config["n_chunks_total_including_first"] - 1) * (first.shape[0] - control_frames),
        chunk_frames=first.shape[0],
        overlap_frames=control_frames,
    )
    anchor = pick_anchor(first, 0)
    tokens = apm.anchor_tokens(vision, projector, anchor)
    text = [torch.cat(pair, dim=1) for pair in ((negative, tokens.negative), (positive, tokens.positive))]
    yield Comparison("context", torch.cat(text), case.output("context"))

    steps = config["num_inference_steps"]
    sigmas = modelscope_sigmas(steps)
    timesteps = [model.model.model_sampling.timestep(sigma) for sigma in sigmas[:-1]]
    yield Comparison("timesteps", torch.stack(timesteps), case.input("timesteps"), atol=0)

    def noise(chunk: Chunk, shape: tuple[int, ...]) -> Any:
        latent = case.input(f"noise.chunk{chunk.index}.init")[0].transpose(0, 1)
        assert latent.shape == shape, f"recorded noise {list(latent.shape)}, the sampler wants {shape}"
        return modelscope.ClipNoise(latent.contiguous(), 0)

    scale = config["vae"]["scaling_factor"]
    made: dict[int, Tensor] = {}
    sampler = modelscope.ModelscopeChunkSampler(
        model=model,
        cam=cam,
        vae=vae,
        prompts=([[positive, {}]],),
        negative=[[negative, {}]],
        tokens=partial(apm.anchor_tokens, vision, projector),
        first_model=None,
        noise=noise,
        decode_frames=decode_recorded,
    )

    class Recorded(WrappedSampler):
        """The sampler with each chunk's recorded step noise; keeps all that it made."""

        def next_chunk(self, chunk, state):
            latents = self.sample_chunk(chunk, state.tail, state.anchor)
            return ChunkResult(self.decode(latents, chunk, state.tail), latents)

        def sample_chunk(self, chunk: Chunk, control: Tensor, anchor: Any) -> Tensor:
            steps_noise = [case.input(f"noise.chunk{chunk.index}.step{step}") for step in range(steps)]
            settings = modelscope.ModelscopeSampling(
                ddim.Ddim(config["eta"], steps_noise), sigmas, config["guidance_scale"]
            )
            made[chunk.index] = replace(sampler, sampling=settings).sample_chunk(chunk, control, anchor)
            return made[chunk.index]

    recorder = Recorded(sampler)
    state = state_after_first(plan, ChunkResult(first), anchor, recorder)
    video = [first, *(new for _, new in video_chunks(state, recorder))]
    for index, latents in made.items():
        recorded = case.output(f"chunk{index}.latents")
        yield Comparison(f"chunk{index}.latents", latents.transpose(0, 1)[None] * scale, recorded, atol=1e-3)
        yield Comparison(f"chunk{index}.frames", decode_recorded(vae, latents), case.output(f"chunk{index}.frames"))
    yield Comparison("video", torch.cat(video), case.output("video"))


@replay(FAMILY, "v2v_unet", atol=1e-5)
def v2v_unet(case: Case) -> Iterator[Comparison]:
    weights = rename(case.weights())
    unet = VideoUNet(detect_unet(shapes_of(weights), "", case.config["hd"], padded_rows=True))
    load_strict(unet, weights, "the MS-Vid2Vid UNet")
    latents = case.input("latents")
    batch, _, frames = latents.shape[:3]
    memory = unet.project_context(case.input("context"))
    got = unet(latents.transpose(1, 2).flatten(0, 1), case.input("timestep").expand(batch), memory)
    yield Comparison("v", got.unflatten(0, (batch, frames)).transpose(1, 2), case.output("v"))

    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.modelscope import vid2vid as host

    model = host.build_vid2vid(case.weights(), head_width=case.config["hd"])
    x, sigma = noisy_for_host(model, latents, case.input("timestep").reshape(-1)[0])
    conds = [
        model.model.extra_conds(cross_attn=row, device=x.device)["memory"] for row in case.input("context").split(1)
    ]
    denoised = model.model.apply_model(x, sigma.expand(len(x)), memory=conds[0].concat(conds[1:]))
    v = (x / (1 + sigma**2) - denoised) * (1 + sigma**2).sqrt() / sigma
    yield Comparison("v through the host", v.unflatten(0, (batch, frames)).transpose(1, 2), case.output("v"))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return shapes_of(module.state_dict())


def host_networks(official: dict[str, tuple[int, ...]], config: Any) -> Iterator[KeyList]:
    """What the host's own classes run: text tower, image tower, VAE, built at full size on the meta device."""
    import_host()
    import_pack()
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfyui_streamingt2v.nodes.host import encoders
    from comfyui_streamingt2v.nodes.host import vae as host_vae
    from comfyui_streamingt2v.nodes.host.modelscope import towers as modelscope_file

    tensors = {key: torch.empty(shape, device="meta") for key, shape in official.items()}
    text = modelscope_file.text_tower_class(config.text_encoder)(device="meta", dtype=torch.float16)
    own = {k: s for k, s in _shapes(text.clip_h.transformer).items() if not k.startswith("text_projection.")}
    yield KeyList("text encoder", own, take(official, TEXT_PREFIX))
    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=host_vae.autoencoder_params(config.vae), embed_dim=config.vae.latent_channels)
    renamed = rename_vae(take(tensors, VAE_PREFIX), len(config.vae.channel_multipliers))
    yield KeyList("VAE", _shapes(vae), shapes_of(renamed))
    tower = encoders.clip_vision_shapes(encoders.empty_clip_vision(config.clip_vision))
    yield KeyList("CLIP image tower", tower, shapes_of(encoders.convert_clip_vision(take(tensors, CLIP_VISION_PREFIX))))
    used = (unet_part(official), cam_part(official), *(take(official, p) for p in READ_PREFIXES[2:]))
    unused = sum(ARCHITECTURE.unused_reason(key) is not None for key in official)
    yield KeyList("every key is used or known", {"keys": (sum(map(len, used)) + unused,)}, {"keys": (len(official),)})


@manifest("streamingmodelscope")
def full_size(content: dict) -> Iterator[KeyList]:
    components = content["components"]
    parts = [part for name, part in components.items() if name.startswith("streaming_t2v.")]
    official = {part["prefix_in_file"] + key: tuple(shape) for part in parts for key, shape in part["keys"].items()}
    config = detect_streamingmodelscope(official)
    unet = VideoUNet(config.unet, device="meta")
    cam = ModelscopeCam(config.cam, device="meta")
    projector = ImageProjector(config.image_projector, device="meta")
    yield KeyList("StreamingModelscope UNet", _shapes(unet), unet_part(official))
    yield from host_networks(official, config)
    yield KeyList("StreamingModelscope CAM", _shapes(cam), cam_part(official))
    yield KeyList("StreamingModelscope APM", _shapes(projector), take(official, APM_PREFIX))

    base = {key: tuple(shape) for key, shape in components["damo_text_to_video_ms_1_7b.unet"]["keys"].items()}
    yield KeyList("ModelScope UNet", _shapes(VideoUNet(detect_unet(base), device="meta")), base)
    refiner = components["video_to_video.unet"]["keys"]
    renamed = shapes_of(rename({key: torch.empty(shape, device="meta") for key, shape in refiner.items()}))
    network = VideoUNet(detect_unet(renamed, padded_rows=True), device="meta")
    yield KeyList("MS-Vid2Vid UNet", _shapes(network), renamed)
