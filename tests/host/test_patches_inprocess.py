"""What other nodes attach to a MODEL, on our UNets: it acts as on the host's own, or is refused in one sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from tiny_models.enhancer import tiny_weights
from tiny_models.modelscope import base_weights, vid2vid_weights, write_tiny_modelscope

FRAMES, SIDE = 4, 8
"""Latent pixels per side."""


@pytest.fixture(scope="module")
def host():
    import_host()
    import_pack()
    import comfy.ldm.modules.diffusionmodules.openaimodel
    import comfy.sample
    from comfyui_streamingt2v.nodes.host import patchers, unet_patches
    from comfyui_streamingt2v.nodes.host.enhance import i2vgenxl
    from comfyui_streamingt2v.nodes.host.modelscope import model, vid2vid

    return SimpleNamespace(
        comfy=comfy, i2vgenxl=i2vgenxl, model=model, vid2vid=vid2vid, patches=unet_patches, patchers=patchers
    )


@pytest.fixture(scope="module")
def models(host):
    from streaming_core.models.modelscope.detect import detect_unet
    from streaming_core.models.registry import shapes_of

    base = base_weights()
    return {
        "ModelScope": host.model.build_modelscope(base, detect_unet(shapes_of(base)), "the UNet"),
        "MS-Vid2Vid": host.vid2vid.build_vid2vid(vid2vid_weights()),
        "I2VGen-XL": host.i2vgenxl.build_i2vgenxl(tiny_weights(), "the file"),
    }


every_model = pytest.mark.parametrize("name", ["ModelScope", "MS-Vid2Vid", "I2VGen-XL"])


def conditioning(seed: int):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 4, SIDE, SIDE, generator=generator)
    return [[torch.randn(1, 77, 64, generator=generator), {"concat_latent_image": image}]]


def sample(host, model, steps: int = 2, cfg: float = 2.5):
    noise = torch.randn(FRAMES, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    pair = conditioning(3), conditioning(4)
    with torch.inference_mode():
        return host.comfy.sample.sample(
            model,
            *(noise, steps, cfg, "euler", "normal", *pair, torch.zeros_like(noise)),
            disable_pbar=True,
            seed=0,
        )


def node(module: str, name: str, **inputs):
    import importlib

    kind = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    return kind.execute(**inputs)[0] if hasattr(kind, "execute") else getattr(kind(), kind.FUNCTION)(**inputs)[0]


DOWNSCALE = {
    **{"block_number": 1, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0},
    **{"downscale_method": "bicubic", "upscale_method": "bicubic"},
}
NODES = {
    "HyperTile": lambda m: node(
        "nodes_hypertile", "HyperTile", model=m, tile_size=32, swap_size=2, max_depth=0, scale_depth=False
    ),
    "Tome": lambda m: node("nodes_tomesd", "TomePatchModel", model=m, ratio=0.5),
    "Deep Shrink": lambda m: node(
        "nodes_model_downscale", "PatchModelAddDownscale", model=m, downscale_after_skip=True, **DOWNSCALE
    ),
    "Deep Shrink before the skip": lambda m: node(
        "nodes_model_downscale", "PatchModelAddDownscale", model=m, downscale_after_skip=False, **DOWNSCALE
    ),
    "PAG": lambda m: node("nodes_pag", "PerturbedAttentionGuidance", model=m, scale=3.0),
}


@every_model
@pytest.mark.parametrize("attach", NODES.values(), ids=NODES)
def test_nodes_of_the_host_have_their_effect_and_leave_the_model_as_it_was(host, models, name, attach):
    model = models[name]
    plain = sample(host, model)
    torch.manual_seed(0)  # Tome draws from the global generator
    patched = sample(host, attach(model))
    assert patched.isfinite().all() and not torch.equal(patched, plain)
    assert torch.equal(sample(host, model), plain)


@every_model
def test_free_u_acts_on_the_widths_it_names(host, models, name):
    """It scales features four times and twice as wide as the first block; tiny networks have only some of them."""
    model = models[name]
    widths = {width // model.model.diffusion_model.sizes.channels[0] for width in seen_by_outputs(host, model)}
    for free_u in ("FreeU", "FreeU_V2"):
        patched = sample(host, node("nodes_freelunch", free_u, model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2))
        assert patched.isfinite().all()
        assert torch.equal(patched, sample(host, model)) == (not widths & {2, 4})


def test_free_u_works_on_a_network_with_all_widths(host):
    from dataclasses import replace

    from tiny_models.enhancer import TINY

    config = replace(TINY, block_out_channels=(32, 64, 128), attention_levels=(True, True, False))
    model = host.i2vgenxl.build_i2vgenxl(tiny_weights(config=config), "the file")
    patched = sample(host, node("nodes_freelunch", "FreeU", model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2))
    assert patched.isfinite().all() and not torch.equal(patched, sample(host, model))


def seen_by_outputs(host, model) -> list[int]:
    widths: list[int] = []
    model = model.clone()
    model.set_model_output_block_patch(lambda h, skip, options: (widths.append(h.shape[1]), (h, skip))[1])
    sample(host, model, steps=1)
    return widths


def test_self_attention_guidance_finds_its_scores(host, models):
    """Its blur needs frames of more than four latent pixels; the scores come from the middle block."""
    model = models["ModelScope"]
    guided = sample(host, node("nodes_sag", "SelfAttentionGuidance", model=model, scale=1.5, blur_sigma=2.0))
    assert guided.isfinite().all() and not torch.equal(guided, sample(host, model))


RECORDED = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")


def recorder(calls: list):
    """Patches of every kind that say where they were called."""

    def place(options):
        return options["block"], options.get("transformer_index"), options["original_shape"]

    def features(kind):
        def patch(h, *rest):
            calls.append((kind, *place(rest[-1]), h.shape[2:]))
            return (h, *rest[:-1]) if len(rest) > 1 else h

        return patch

    def attention(kind):
        def patch(n, *rest):
            calls.append((kind, *place(rest[-1]), rest[-1]["activations_shape"][2:], rest[-1]["block_index"]))
            return (n, *rest[:-1]) if len(rest) > 1 else n

        return patch

    kinds = {kind: [features(kind)] for kind in RECORDED}
    kinds |= {kind: [attention(kind)] for kind in ("attn1_patch", "attn1_output_patch", "middle_patch")}
    return {**kinds, "attn2_output_patch": [attention("attn2_output_patch")]}


@pytest.mark.parametrize("layers", [1, 2])
def test_patches_are_called_where_the_host_s_own_unet_calls_them(host, layers):
    """Block for block, with the same numbers, sizes and order: our UNet and the host's with the same levels."""
    from streaming_core.models.modelscope.config import UNet3DConfig

    channels, attention = (32, 64, 64), (True, True, False)
    config = UNet3DConfig(4, 4, channels, attention, layers, 48, 64, head_width=32)
    ours = host.model.HostVideoUNet(config, operations=torch.nn)
    depth = [int(has) for has in attention for _ in range(layers)]
    theirs = host.comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        image_size=8,
        in_channels=4,
        model_channels=32,
        out_channels=4,
        num_res_blocks=[layers] * 3,
        channel_mult=(1, 2, 2),
        num_head_channels=32,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        transformer_depth=depth,
        transformer_depth_output=[int(has) for has in attention for _ in range(layers + 1)],
        transformer_depth_middle=1,
        context_dim=48,
        operations=host.comfy.ops.disable_weight_init,
    )
    x, levels, text = torch.randn(2, 4, 8, 16), torch.tensor([500.0, 500.0]), torch.randn(1, 7, 48)
    calls: dict[str, list] = {"ours": [], "theirs": []}
    with torch.inference_mode():
        memory = ours.project_context(text)
        ours(x, levels, transformer_options={"patches": recorder(calls["ours"])}, memory=memory)
        options = {"patches": recorder(calls["theirs"])}
        theirs(x, levels, text.expand(2, -1, -1), transformer_options=options)
    assert calls["ours"] == calls["theirs"]
    transformers = {call[1] for call in calls["theirs"] if call[0] == "attn1_patch"}
    assert ours.transformers == transformers


@every_model
@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_a_replaced_attention_that_does_the_same_changes_nothing(host, models, name, kind):
    from comfy.ldm.modules.attention import optimized_attention

    shapes = []

    def same(q, k, v, extra):
        shapes.append((q.shape, k.shape, v.shape))
        return optimized_attention(q, k, v, extra["n_heads"])

    model = models[name].clone()
    for place in models[name].model.diffusion_model.transformers:
        model.set_model_patch_replace(same, kind, *place)
    assert torch.allclose(sample(host, model), sample(host, models[name]), atol=1e-4, rtol=1e-3)
    assert shapes and all(q[0] == k[0] == v[0] for q, k, v in shapes), "every frame is a row"


@every_model
@pytest.mark.parametrize(
    "kind", ["attn1_patch", "attn1_output_patch", "middle_patch", "attn2_output_patch", "emb_patch"]
)
def test_each_kind_reaches_the_result(host, models, name, kind):
    model = models[name].clone()

    def patch(first, *rest):
        return (first * 1.5, *rest[:-1]) if kind == "attn1_patch" else first * 1.5

    model.set_model_patch(patch, kind)
    assert not torch.equal(sample(host, model, steps=1), sample(host, models[name], steps=1))


def test_what_the_middle_made_may_be_changed_and_is_described(host, models):
    seen = []

    def patch(given):
        seen.append(sorted(given))
        return {**given, "h": given["h"] * 1.5}

    model = models["ModelScope"].clone()
    model.set_model_patch(patch, "middle_block_after_patch")
    assert not torch.equal(sample(host, model, steps=1), sample(host, models["ModelScope"], steps=1))
    assert seen[0] == ["context", "emb", "h", "timesteps", "transformer_options", "x", "y"]


def a_patch_of_another_pack(*_args):
    raise AssertionError("must not be called")


def attached(model, kind):
    model = model.clone()
    model.set_model_patch(a_patch_of_another_pack, kind)
    return model


class Skipper:
    """A patch that is an object."""

    __call__ = a_patch_of_another_pack


def replaced(model, kind, *place):
    model = model.clone()
    model.set_model_patch_replace(Skipper(), kind, *place)
    return model


def rotated(model):
    model = model.clone()
    model.set_model_rope_options(1.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    return model


REFUSED = {
    "text before it is projected": (lambda m: attached(m, "attn2_patch"), "a_patch_of_another_pack.*attn2_patch"),
    "layers by class": (
        lambda m: attached(m, "forward_timestep_embed_patch"),
        "a_patch_of_another_pack.*forward_timestep_embed_patch",
    ),
    "blocks of other networks": (lambda m: attached(m, "double_block"), "a_patch_of_another_pack.*double_block"),
    "replaced blocks of other networks": (
        lambda m: replaced(m, "dit", "double_block", 3),
        "Skipper.*dit.*double_block 3",
    ),
    "blocks that are not there": (lambda m: replaced(m, "attn1", "input", 40), "Skipper.*attn1.*input 40"),
    "rotary positions": (rotated, "rope_options"),
}


@every_model
@pytest.mark.parametrize(("attach", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_place_is_refused_by_name_before_the_first_step(host, models, name, attach, words, monkeypatch):
    monkeypatch.setattr(
        type(models[name].model.diffusion_model), "denoise", lambda *_args, **_options: pytest.fail("it was computed")
    )
    with pytest.raises(SettingsError, match=words) as error:
        sample(host, attach(models[name]))
    assert "connect the model from before that node" in str(error.value)
    with pytest.raises(SettingsError, match=words):
        host.patchers.check_model(attach(models[name]))


def test_features_that_a_patch_leaves_in_another_size_are_refused_in_words(host, models):
    model = models["ModelScope"].clone()
    model.set_model_patch(lambda h, options: h[..., :-1], "input_block_patch_after_skip")
    with pytest.raises(SettingsError, match="changed its features to"):
        sample(host, model)


def test_saving_memory_calls_patches_once_per_branch_of_guidance(host, models):
    branches = []

    def patch(h, skip, options):
        branches.append((options["cond_or_uncond"], len(h)))
        return h, skip

    model = models["I2VGen-XL"].clone()
    model.set_model_output_block_patch(patch)
    once = sample(host, model, steps=1)
    assert {(tuple(branch), rows) for branch, rows in branches} == {((1, 0), 2 * FRAMES)}
    branches.clear()
    one_by_one = sample(host, host.i2vgenxl.frugal(model), steps=1)
    assert {(tuple(branch), rows) for branch, rows in branches} == {((0,), FRAMES), ((1,), FRAMES)}
    assert torch.allclose(one_by_one, once, rtol=1e-4, atol=1e-4 * float(once.abs().max()))


def test_cam_and_patches_of_the_unet_work_together(host):
    """The branch of CAM has features of its own, which the user's patches do not see."""
    from pathlib import Path

    import folder_paths
    from comfyui_streamingt2v.nodes.host.modelscope import cam, load

    write_tiny_modelscope(Path(folder_paths.get_folder_paths("checkpoints")[0]) / "modelscope_patches.safetensors")
    loaded = load.load_streamingmodelscope("modelscope_patches.safetensors")
    control = torch.rand(2, 8 * SIDE, 8 * SIDE, 3, generator=torch.Generator().manual_seed(1))
    continued = cam.with_modelscope_cam(loaded.model, loaded.cam, control)
    plain = sample(host, continued)
    for attach in (NODES["Deep Shrink"], NODES["HyperTile"], NODES["PAG"]):
        patched = sample(host, attach(continued))
        assert patched.isfinite().all() and not torch.equal(patched, plain)
