"""CAM where a sampling run cuts the video into windows or areas: the control frames belong to the video's beginning."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.loop.plan import VideoPlan
from tiny_models.modelscope import write_tiny_modelscope
from tiny_models.streamingsvd import write_tiny_streamingsvd

HEIGHT, WIDTH, FRAMES = 32, 64, 16


@pytest.fixture(scope="module")
def host():
    import_host()
    import_pack()
    import comfy.sample
    import folder_paths
    from comfyui_streamingt2v.nodes.host.modelscope import cam as modelscope_cam
    from comfyui_streamingt2v.nodes.host.modelscope import load as modelscope_load
    from comfyui_streamingt2v.nodes.host.modelscope import sampler as modelscope
    from comfyui_streamingt2v.nodes.host.svd import cam as svd_cam
    from comfyui_streamingt2v.nodes.host.svd import load as svd_load
    from comfyui_streamingt2v.nodes.host.svd import sampler as svd
    from comfyui_streamingt2v.nodes.host.windows import blending

    folder = Path(folder_paths.get_folder_paths("checkpoints")[0])
    write_tiny_streamingsvd(folder / "svd_pieces.safetensors")
    write_tiny_modelscope(folder / "modelscope_pieces.safetensors")
    loaded = {
        "StreamingSVD": svd_load.load_streamingsvd("svd_pieces.safetensors"),
        "StreamingModelscope": modelscope_load.load_streamingmodelscope("modelscope_pieces.safetensors"),
    }
    attach = {"StreamingSVD": svd_cam.with_cam, "StreamingModelscope": modelscope_cam.with_modelscope_cam}
    return SimpleNamespace(comfy=comfy, blending=blending, svd=svd, modelscope=modelscope, loaded=loaded, attach=attach)


both = pytest.mark.parametrize("family", ["StreamingSVD", "StreamingModelscope"])


def conditioning(seed: int, **options):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=generator)
    shown = {"concat_latent_image": image, "fps": 6, "motion_bucket_id": 127, "augmentation_level": 0.0}
    return lambda tokens: [[torch.randn(1, tokens, 64, generator=generator), {**shown, **options}]]


def sample(host, family: str, model, steps: int = 1, frames: int = FRAMES, **options):
    tokens = 1 if family == "StreamingSVD" else 77
    pair = conditioning(3, **options)(tokens), conditioning(4)(tokens)
    noise = torch.randn(frames, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return host.comfy.sample.sample(
            model, noise, steps, 2.5, "euler", "normal", *pair, torch.zeros_like(noise), disable_pbar=True, seed=0
        )


def continued(host, family: str, model=None, seed: int = 1, frames: int = 2):
    control = torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))
    model = host.loaded[family].model if model is None else model
    return host.attach[family](model, host.loaded[family].cam, control)


def blended(host, model, window: int = 6, overlap: int = 2):
    return host.blending.with_randomized_blending(model, window, overlap, 0)


def windowed(model, length: int = 6, **options):
    kind = importlib.import_module("comfy_extras.nodes_context_windows").ContextWindowsManualNode
    known = {socket.id: getattr(socket, "default", None) for socket in kind.define_schema().inputs}
    chosen = {"context_length": length, "context_overlap": 2, "dim": 0, "context_schedule": "standard_static"}
    known = {name: value for name, value in known.items() if name != "model"}
    return kind.execute(model=model, **{**known, "fuse_method": "pyramid", **chosen, **options}).result[0]


@both
def test_only_the_window_that_begins_the_video_repeats_the_control_frames(host, family):
    for order in ("CAM first", "windows first"):
        videos = []
        for seed in (1, 2):
            if order == "CAM first":
                model = blended(host, continued(host, family, seed=seed))
            else:
                model = continued(host, family, blended(host, host.loaded[family].model), seed)
            videos.append(sample(host, family, model))
        far = (videos[0] - videos[1]).abs().amax(dim=(1, 2, 3))
        assert (far[:4] > 0).all() and (far[6:] == 0).all(), order
        plain = sample(host, family, blended(host, host.loaded[family].model))
        assert torch.equal(videos[0][6:], plain[6:]), "the other windows are those of the model without CAM"


@both
def test_a_video_of_one_window_is_as_without_windows(host, family):
    alone = continued(host, family)
    expected = sample(host, family, alone)
    assert torch.equal(sample(host, family, blended(host, alone, window=16)), expected)
    assert torch.equal(sample(host, family, windowed(alone, length=16)), expected)


@both
def test_windows_that_share_the_control_frames_are_refused_before_anything_runs(host, family, monkeypatch):
    monkeypatch.setattr(
        type(host.loaded[family].model.model), "apply_model", lambda *_args, **_options: pytest.fail("it was computed")
    )
    with pytest.raises(SettingsError, match="second window of Randomized Blending begins at frame 4, within the 5"):
        sample(host, family, blended(host, continued(host, family, frames=5)))
    with pytest.raises(SettingsError, match="begins at frame 1, within the 2"):
        sample(host, family, blended(host, continued(host, family)), frames=7)
    for model in (windowed(continued(host, family)), continued(host, family, windowed(host.loaded[family].model))):
        with pytest.raises(SettingsError, match="Context Windows .*connect Randomized Blending in its place"):
            sample(host, family, model)


def chunk_sampler(host, family: str, model):
    loaded = host.loaded[family]
    if family == "StreamingSVD":
        return host.svd.SvdChunkSampler(model, loaded.cam, loaded.vae, loaded.clip_vision, first_model=loaded.model)
    text = conditioning(3)(77)
    return host.modelscope.ModelscopeChunkSampler(
        model, loaded.cam, loaded.vae, (text,), text, first_model=loaded.model
    )


@both
def test_chunk_samplers_refuse_such_windows_before_the_first_chunk(host, family):
    from streaming_core.loop.plan import Beginning

    start = Beginning(frames=torch.rand(8, 3, HEIGHT, WIDTH))
    plan = VideoPlan(20, 8, 3, 0, 8, height=HEIGHT, width=WIDTH, beginning=start)
    model = host.loaded[family].model
    for cut in (windowed(model), blended(host, model, window=4)):
        with pytest.raises(SettingsError, match="Context Windows|second window"):
            chunk_sampler(host, family, cut).accept(plan)
    for whole in (model, windowed(model, length=8), blended(host, model, window=8)):
        assert chunk_sampler(host, family, whole).accept(plan).num_chunks > 1


@both
def test_chunk_samplers_refuse_networks_of_the_other_family_before_the_first_chunk(host, family):
    from streaming_core.loop.plan import Beginning

    start = Beginning(frames=torch.rand(8, 3, HEIGHT, WIDTH))
    plan = VideoPlan(20, 8, 3, 0, 8, height=HEIGHT, width=WIDTH, beginning=start)
    (other,) = set(host.loaded) - {family}
    sampler = chunk_sampler(host, family, host.loaded[family].model)
    with pytest.raises(SettingsError, match=f"this CAM belongs to {other}, but the model is {family}"):
        dataclasses.replace(sampler, cam=host.loaded[other].cam).accept(plan)
    with pytest.raises(SettingsError, match=f"connect the (model|MODEL) of Load {family}"):
        dataclasses.replace(sampler, model=host.loaded[other].model).accept(plan)


@both
def test_areas_are_refused_in_words_that_help_and_masks_work(host, family):
    model, half = continued(host, family), WIDTH // 16
    for area in ((HEIGHT // 8, half, 0, 0), ("percentage", 1.0, 0.5, 0, 0.5)):
        with pytest.raises(SettingsError, match=r"area of 32x32 of the 64x32 pixels, but CAM continues whole frames"):
            sample(host, family, model, area=area, strength=1.0)
    bounds = torch.zeros(1, HEIGHT // 8, WIDTH // 8)
    bounds[..., :half] = 1
    masked = sample(host, family, model, mask=bounds, mask_strength=1.0, set_area_to_bounds=False)
    assert masked.isfinite().all()
    whole = sample(host, family, model, area=("percentage", 1.0, 1.0, 0, 0), strength=1.0)
    assert torch.allclose(whole, sample(host, family, model), atol=1e-4, rtol=1e-3)
