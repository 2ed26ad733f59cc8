"""Replays of StreamingModelscope's recorded results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from streaming_core.conditioning import clip_pixels
from streaming_core.models.modelscope.apm import ImageProjector, join_context
from streaming_core.models.modelscope.cam import CamEncoder, ModelscopeCam
from streaming_core.models.modelscope.config import MixerConfig, ModelscopeCamConfig
from streaming_core.models.modelscope.detect import (
    APM_PREFIX,
    CAM_PREFIX,
    detect_cam,
    detect_image_projector,
    detect_streamingmodelscope,
    detect_unet,
)
from streaming_core.models.modelscope.unet import ContextAttention, VideoUNet, add_mixer, mix_context
from streaming_core.models.modelscope.vid2vid import rename
from streaming_core.models.modelscope.weights import cam_part, unet_part
from streaming_core.models.registry import load_strict, shapes_of, take
from streaming_core.models.streamingsvd.blocks import Compute, MultiHeadAttention
from streaming_core.models.streamingsvd.network import CamFeatures, CamMerger

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
    tokens = projector(case.input("image_embed").view(text.shape[0], -1, config.width))
    yield Comparison("image_tokens", tokens, case.output("image_tokens"))
    several = projector(case.input("image_embed_3frames").view(text.shape[0], -1, config.width))
    yield Comparison("image_tokens_3frames", several, case.output("image_tokens_3frames"))
    context = join_context(text, tokens)
    yield Comparison("context_93", context, case.output("context_93"))

    attention = take(weights, "attn2.")
    width, context_width = attention["to_k.weight"].shape
    layer = MultiHeadAttention(width, case.config["hd"], context_width)
    add_mixer(layer, MixerConfig(*attention["conv.weight"].shape), context_width, nn)
    load_strict(layer, attention, "the mixed cross-attention")
    mixed = mix_context(layer, context)
    yield Comparison("mixed_context_77", mixed, case.output("mixed_context_77"))
    memory = [(layer.to_k(mixed), layer.to_v(mixed))]
    attended = ContextAttention(0)(layer, case.input("hidden"), memory=memory, compute=Compute())
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


@replay(FAMILY, "cam_encoder", atol=1e-5)
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


@replay(FAMILY, "v2v_unet", atol=1e-5)
def v2v_unet(case: Case) -> Iterator[Comparison]:
    weights = rename(case.weights())
    unet = VideoUNet(detect_unet(shapes_of(weights), "", case.config["hd"], vid2vid=True))
    load_strict(unet, weights, "the MS-Vid2Vid UNet")
    latents = case.input("latents")
    batch, _, frames = latents.shape[:3]
    memory = unet.project_context(case.input("context"))
    got = unet(latents.transpose(1, 2).flatten(0, 1), case.input("timestep").expand(batch), memory)
    yield Comparison("v", got.unflatten(0, (batch, frames)).transpose(1, 2), case.output("v"))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return shapes_of(module.state_dict())


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
    yield KeyList("StreamingModelscope CAM", _shapes(cam), cam_part(official))
    yield KeyList("StreamingModelscope APM", _shapes(projector), take(official, APM_PREFIX))

    base = {key: tuple(shape) for key, shape in components["damo_text_to_video_ms_1_7b.unet"]["keys"].items()}
    yield KeyList("ModelScope UNet", _shapes(VideoUNet(detect_unet(base), device="meta")), base)
