"""StreamingSVD on the host's own code in this process: building, CAM under samplers, decoding, videos that resume."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import FrameMismatchError, SettingsError
from streaming_core.models.registry import shapes_of
from streaming_core.models.streamingsvd.detect import UNET_PREFIX, detect_streamingsvd
from streaming_core.models.streamingsvd.file import split_file
from streaming_core.models.streamingsvd.network import CamNetwork
from streaming_core.models.streamingsvd.shapes import OFFICIAL, official_shapes
from tiny_models.streamingsvd import TINY, random_weights

HEIGHT, WIDTH, FRAMES, OVERLAP = 32, 64, 6, 2


@pytest.fixture(scope="module")
def rooms():
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host import cam as shared_cam
    from comfyui_streamingt2v.nodes.host import encoders, vae
    from comfyui_streamingt2v.nodes.host.runs import videos
    from comfyui_streamingt2v.nodes.host.svd import build, cam
    from comfyui_streamingt2v.nodes.host.svd import sampler as svd

    return {
        "build": build,
        "cam": cam,
        "encoders": encoders,
        "videos": videos,
        "shared_cam": shared_cam,
        "svd": svd,
        "vae": vae,
    }


@pytest.fixture(scope="module")
def tiny(rooms):
    """MODEL, STREAMING_CAM, VAE, CLIP_VISION from tiny weights, through detection."""
    build = rooms["build"]
    tensors = random_weights(official_shapes(TINY), dtype=torch.float32)
    config, weights = detect_streamingsvd(shapes_of(tensors)), split_file(tensors, "tiny")
    assert config == TINY
    return {
        "model": build.build_video_unet(weights.unet, config.cam.unet),
        "cam": rooms["shared_cam"].build_cam(CamNetwork, weights.cam, config.cam),
        "vae": build.build_vae(weights.vae, config.image_encoder, config.first_stage),
        "clip_vision": rooms["encoders"].build_clip_vision(weights.clip_vision, config.clip_vision),
    }


def control(seed=0, frames=OVERLAP):
    return torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def sample(model, sampler="euler", scheduler="karras", cfg=2.5, steps=2):
    import comfy.sample

    generator = torch.Generator().manual_seed(1)
    latent = (FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    extra = {"concat_latent_image": torch.randn(1, *latent[1:], generator=generator)}
    positive = [[torch.randn(1, 1, 64, generator=generator), extra]]
    negative = [[torch.zeros(1, 1, 64), {"concat_latent_image": torch.zeros(1, *latent[1:])}]]
    noise = torch.randn(latent, generator=generator)
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            torch.zeros(latent),
            disable_pbar=True,
            seed=0,
        )


def little_memory(device=None, torch_free_too=False):
    """As the host's own function on a machine with a few kilobytes left."""
    return (4096, 4096) if torch_free_too else 4096


def test_the_full_size_configuration_equals_the_one_the_host_detects(rooms):
    from comfy.model_detection import detect_unet_config

    shapes = official_shapes(OFFICIAL)
    assert detect_streamingsvd(shapes) == OFFICIAL
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert detect_unet_config(tensors, UNET_PREFIX) == rooms["build"].host_unet_config(OFFICIAL.cam.unet)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "lcm", "ddim"])
@pytest.mark.parametrize("scheduler", ["karras", "simple"])
def test_cam_works_under_every_sampler(rooms, tiny, sampler, scheduler):
    guided = rooms["cam"].with_cam(tiny["model"], tiny["cam"], control())
    latent = sample(guided, sampler, scheduler)
    assert latent.shape == (FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    assert latent.isfinite().all()


def test_cam_follows_its_control_frames_and_leaves_the_model_alone(rooms, tiny):
    before = sample(tiny["model"])
    first = sample(rooms["cam"].with_cam(tiny["model"], tiny["cam"], control(0)))
    second = sample(rooms["cam"].with_cam(tiny["model"], tiny["cam"], control(1)))
    assert torch.equal(before, sample(tiny["model"]))
    assert not torch.allclose(before, first, atol=1e-2)
    assert not torch.allclose(first, second, atol=1e-3)


def test_cam_has_a_strength(rooms, tiny):
    def made(strength):
        return sample(rooms["cam"].with_cam(tiny["model"], tiny["cam"], control(), strength))

    whole = sample(rooms["cam"].with_cam(tiny["model"], tiny["cam"], control()))
    assert torch.equal(made(1.0), whole)
    assert torch.equal(made(0.0), sample(tiny["model"])), "without CAM it is the model's own"
    half = made(0.5)
    assert not torch.allclose(half, whole, atol=1e-3) and not torch.allclose(half, made(0.0), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_the_model_may_compute_in_another_type_than_cam(rooms, tiny, dtype):
    """What ModelComputeDtype of the host does to a model."""
    typed = tiny["model"].clone()
    typed.set_model_compute_dtype(dtype)
    made = sample(rooms["cam"].with_cam(typed, tiny["cam"], control()))
    whole = sample(rooms["cam"].with_cam(tiny["model"], tiny["cam"], control()))
    plain = sample(typed)
    assert made.isfinite().all()
    assert (made - whole).norm() < 0.2 * (made - plain).norm()


def test_halves_together_and_one_by_one_agree(rooms, tiny, monkeypatch):
    import comfy.model_management as mm

    guided = rooms["cam"].with_cam(tiny["model"], tiny["cam"], control())
    together = sample(guided)
    # With no free memory the host runs the halves one after the other, and CAM splits its feed-forwards.
    monkeypatch.setattr(mm, "get_free_memory", little_memory)
    calls = []
    unet = tiny["model"].model.diffusion_model
    hook = unet.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[0]))
    try:
        apart = sample(guided)
    finally:
        hook.remove()
    assert set(calls) == {FRAMES}
    assert torch.allclose(together, apart, atol=1e-2)


def test_clones_share_the_guide_and_bring_the_network(rooms, tiny):
    guided = rooms["cam"].with_cam(tiny["model"], tiny["cam"], control())
    again = guided.clone().clone()
    networks = [patcher.model for patcher in again.get_additional_models()]
    assert networks == [tiny["cam"].network]
    assert torch.equal(sample(guided), sample(again))


def test_features_are_freed_as_they_are_merged(rooms, tiny):
    guided = rooms["cam"].with_cam(tiny["model"], tiny["cam"], control())
    calls = []
    merge = rooms["cam"].CamGuide.merge

    def watched(self, h, skip, options):
        result = merge(self, h, skip, options)
        calls.append(sum(feature is not None for feature in options[rooms["cam"].KEY].features.skips))
        return result

    guided.model_options["transformer_options"]["patches"]["output_block_patch"] = [
        watched.__get__(patch.__self__)
        for patch in guided.model_options["transformer_options"]["patches"]["output_block_patch"]
    ]
    sample(guided, steps=1)
    skips = len(tiny["cam"].network.cross_attention_merger_input_blocks)
    assert calls[:skips] == list(range(skips))[::-1]


def guidances():
    """Nodes and other packs' functions that change how a model is guided."""
    from comfy_extras.nodes_model_advanced import RescaleCFG
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    def with_function(add):
        def make(model):
            clone = model.clone()
            add(clone)
            return clone

        return make

    def node(kind, model, **inputs):
        execute = kind.execute if hasattr(kind, "execute") else getattr(kind(), kind.FUNCTION)  # older hosts
        return execute(model, **inputs)[0]

    return {
        "PerturbedAttentionGuidance": partial(node, PerturbedAttentionGuidance, scale=3.0),
        "RescaleCFG": partial(node, RescaleCFG, multiplier=0.7),
        "after": with_function(lambda m: m.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.9)),
        "before": with_function(
            lambda m: m.set_model_sampler_pre_cfg_function(lambda a: [a["conds_out"][0] * 0.9, *a["conds_out"][1:]])
        ),
    }


@pytest.mark.parametrize("name", ["PerturbedAttentionGuidance", "RescaleCFG", "after", "before"])
def test_guidance_that_other_nodes_put_on_a_model_is_kept(rooms, tiny, name):
    """The guidance that rises over the frames once replaced theirs, and nobody could see that."""
    with_linear_guidance, patched = rooms["svd"].with_linear_guidance, guidances()[name](tiny["model"])
    plain = sample(with_linear_guidance(tiny["model"], 1.0))
    assert not torch.allclose(plain, sample(with_linear_guidance(patched, 1.0)), atol=1e-3)
    # One cfg for all frames is what the host does itself.
    assert torch.allclose(sample(patched), sample(with_linear_guidance(patched, 2.5)), atol=1e-2)


def test_a_guidance_function_is_asked_for_every_frame_with_its_cfg(rooms, tiny):
    seen = []

    def classic(args):
        seen.append((args["cond_scale"], args["cond"].shape[0], args["sigma"].shape[0]))
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    model = tiny["model"].clone()
    model.set_model_sampler_cfg_function(classic)
    guided = sample(rooms["svd"].with_linear_guidance(model, 1.0), steps=1)
    assert [scale for scale, *_ in seen] == pytest.approx([1.0, 1.3, 1.6, 1.9, 2.2, 2.5])
    assert all(each[1:] == (1, 1) for each in seen)
    assert torch.allclose(guided, sample(rooms["svd"].with_linear_guidance(tiny["model"], 1.0), steps=1), atol=0.1)


def test_wrong_control_frames_say_why(rooms, tiny):
    with_cam = rooms["cam"].with_cam
    with pytest.raises(FrameMismatchError, match="multiples of 16"):
        with_cam(tiny["model"], tiny["cam"], torch.rand(2, 40, 64, 3))
    with pytest.raises(FrameMismatchError, match="128x64, but the model was called with a latent for 64x32"):
        sample(with_cam(tiny["model"], tiny["cam"], torch.rand(2, 64, 128, 3)))
    with pytest.raises(SettingsError, match="6 control frames leave nothing new"):
        sample(with_cam(tiny["model"], tiny["cam"], control(frames=FRAMES)))
    with pytest.raises(SettingsError, match="already attached"):
        with_cam(with_cam(tiny["model"], tiny["cam"], control()), tiny["cam"], control())


def test_decoding_does_not_depend_on_free_memory(rooms, tiny, monkeypatch):
    import comfy.model_management as mm

    latents = torch.randn(9, 4, 4, 8, generator=torch.Generator().manual_seed(0))

    def decode():
        return rooms["svd"].decode_all(
            latents, 0, "overlapping", lambda group: rooms["vae"].decode_clip(tiny["vae"], group)
        )

    plenty = decode()
    monkeypatch.setattr(mm, "get_free_memory", little_memory)
    # The host's attention slices by free memory, which rounds differently; a regrouped clip would differ by far more.
    assert torch.allclose(plenty, decode(), atol=1e-5)
    alone = torch.cat([rooms["vae"].decode_clip(tiny["vae"], latent[None]) for latent in latents])
    assert not torch.allclose(plenty, alone, atol=1e-2)


@pytest.fixture
def video(rooms, tiny):
    """A chunk sampler and a request for four chunks."""
    import comfy.samplers

    svd = rooms["svd"]
    euler = comfy.samplers.sampler_object("euler")
    quick = svd.SamplingSettings(euler, torch.tensor([700.0, 1.0, 0.0]), 3.0, 1.5)
    sampler = svd.SvdChunkSampler(
        model=tiny["model"],
        cam=tiny["cam"],
        vae=tiny["vae"],
        clip_vision=tiny["clip_vision"],
        first_model=tiny["model"],
        sampling=quick,
        first_sampling=quick,
    )
    image = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(3))
    sizes = (16, FRAMES, OVERLAP, WIDTH, HEIGHT, "crop")
    return sampler, partial(rooms["videos"].plan_video, *sizes, seed=7, anchor_frame=1, start_image=image)


def make(rooms, video, name, **changes):
    sampler, plan = video
    with torch.inference_mode():
        stream = rooms["videos"].make_video(sampler, plan(**changes), name)
        return stream.read(0, len(stream))


class Stopped(Exception):
    """Stands for a crash."""


def test_a_stopped_video_goes_on_bit_for_bit(rooms, video, monkeypatch):
    whole = make(rooms, video, "whole")
    svd = rooms["svd"]
    original, made = svd.SvdChunkSampler.sample_chunk, []

    def stops_at_two(self, chunk, *args):
        if chunk.index == 2 and 2 not in made:
            made.append(2)
            raise Stopped
        made.append(chunk.index)
        return original(self, chunk, *args)

    monkeypatch.setattr(svd.SvdChunkSampler, "sample_chunk", stops_at_two)
    with pytest.raises(Stopped):
        make(rooms, video, "stopped")
    made.clear()
    made.append(2)
    resumed = make(rooms, video, "stopped")
    assert made == [2, 2, 3], "chunk 0 and 1 must not be made again"
    assert torch.equal(whole, resumed)


def test_what_a_video_costs(rooms, video, tiny, monkeypatch):
    calls = {"clip": 0, "pixels": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    hooks = [
        tiny["clip_vision"].model.register_forward_hook(count("clip")),
        tiny["cam"].network.controlnet.controlnet_cond_embedding.register_forward_hook(count("pixels")),
    ]
    try:
        make(rooms, video, "counted", seed=8)
    finally:
        for hook in hooks:
            hook.remove()
    # Once for the start image, once for the anchor; the pixel encoder once per continuing chunk.
    assert calls == {"clip": 2, "pixels": 3}


def test_a_changed_setting_or_model_makes_the_video_again_and_going_back_finds_it(rooms, video, monkeypatch):
    first = make(rooms, video, "changed")
    sampler, plan = video
    other = sampler.model.clone()
    key = next(iter(other.model.state_dict()))
    other.add_patches({key: (torch.ones_like(other.model.state_dict()[key]),)}, 0.5)
    assert not torch.equal(first, make(rooms, (replace(sampler, model=other), plan), "changed"))
    monkeypatch.setattr(rooms["svd"].SvdChunkSampler, "sample_chunk", None)
    monkeypatch.setattr(rooms["svd"].SvdChunkSampler, "first_chunk", None)
    assert torch.equal(first, make(rooms, video, "changed")), "the takes of the first model stand again"


def test_a_sampler_that_writes_into_its_sigmas_leaves_those_of_the_video_alone(rooms, video):
    import comfy.samplers

    sampler, request = video
    theirs = replace(sampler.sampling, sampler=comfy.samplers.sampler_object("uni_pc"))
    sampler = replace(sampler, sampling=theirs, first_sampling=theirs)
    before = sampler.identity()
    rooms["videos"].make_video(sampler, request(), "uni_pc")
    assert theirs.sigmas[-1] == 0 and sampler.identity() == before


def test_a_failed_first_clip_leaves_nothing(rooms, video, monkeypatch):
    def fail(*_):
        raise Stopped

    monkeypatch.setattr(rooms["svd"].SvdChunkSampler, "first_chunk", fail)
    with pytest.raises(Stopped):
        make(rooms, video, "nothing")
    assert not (rooms["videos"].runs_root() / "nothing").exists()


def test_your_own_clip_is_continued_at_the_videos_size(rooms, video):
    clip = torch.rand(4, 50, 60, 3, generator=torch.Generator().manual_seed(4))
    frames = make(rooms, video, "own", start_image=None, start_frames=clip)[:9]
    assert frames.shape == (9, HEIGHT, WIDTH, 3)
    fitted = video[1](start_image=None, start_frames=clip).beginning.frames.movedim(1, -1)
    assert torch.allclose(frames[:4], fitted, atol=1 / 255)
