"""What a run was made with, for objects of the host: every setting counts, and nothing but settings."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import pytest
import torch

import dev
from streaming_core.identity import differences, sentence, undescribed
from tests.host import identity_variants as variants
from tests.host.identity_variants import ALL, I, Variant, model_of
from tiny_models import native as tiny

import comfy.patcher_extension  # noqa: E402, isort: skip - the host is there once the variants are imported

every_variant = pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant.name)
sampled = pytest.mark.parametrize("variant", [each for each in ALL if each.sampled], ids=lambda each: each.name)


def made(variant: Variant, value):
    try:
        return variant.make(value)
    except variants.NodeMissing as missing:
        pytest.skip(f"this host has no {missing}")


def assert_same(old, new):
    assert not differences(old, new), sentence(differences(old, new), 9)


@pytest.fixture(scope="module")
def of_another_process(tmp_path_factory) -> dict:
    """Identities of all first values, made by a process of its own with other hashes of texts."""
    path = tmp_path_factory.mktemp("identity") / "identities.json"
    code = f"from tests.host.identity_variants import write; write({str(path)!r})"
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=dev.ROOT, check=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": "7"})
    return json.loads(path.read_text("utf-8"))


@every_variant
def test_another_value_gives_another_identity_and_says_so(variant):
    old, new = variant.identity(made(variant, variant.old)), variant.identity(made(variant, variant.new))
    changes = differences(old, new)
    assert changes
    assert variant.says in sentence(changes, 9)


@every_variant
def test_the_same_value_gives_the_same_identity_when_the_node_runs_again(variant):
    first = made(variant, variant.old)
    filler = [object() for _ in range(1000)]
    second = made(variant, variant.old)
    assert_same(variant.identity(first), variant.identity(second))
    del first, filler
    gc.collect()
    assert_same(variant.identity(second), variant.identity(made(variant, variant.old)))


@pytest.mark.slow
@sampled
def test_sampling_changes_no_identity(variant):
    thing, plain = made(variant, variant.old), model_of(variant.kind)
    before, before_plain = variant.identity(thing), I.identity_of(plain)
    variant.sample(thing)
    assert_same(before, variant.identity(thing))
    assert_same(before_plain, I.identity_of(plain))
    variant.sample(thing)
    assert_same(before, variant.identity(thing))
    assert_same(before, variant.identity(made(variant, variant.old)))
    assert differences(before, variant.identity(made(variant, variant.new)))


@pytest.mark.slow
@every_variant
def test_another_process_gives_the_same_identity(variant, of_another_process):
    ours = variant.identity(made(variant, variant.old))
    assert_same(of_another_process[variant.name], json.loads(json.dumps(ours)))


@every_variant
def test_everything_is_described_and_names_no_place(variant):
    identity = variant.identity(made(variant, variant.old))
    text = json.dumps(identity)
    assert not undescribed(identity)
    assert "0x" not in text and str(dev.host_path()) not in text and "/tmp/" not in text


def test_the_plain_model_differs_from_every_patched_one():
    plain = I.model_identity(model_of(tiny.WAN))
    for variant in variants.MODELS:
        if variant.kind is tiny.WAN and variant.what == "model" and not variant.name.startswith("UNet"):
            patched = made(variant, variant.old)
            assert differences(plain, I.model_identity(patched)), variant.name


def test_a_setting_changed_in_place_between_runs_is_seen_and_one_changed_by_sampling_is_not():
    model = variants.with_teacache(0.1)
    patch = model.model_options["model_function_wrapper"]
    before = I.model_identity(model)
    variants.Variant("", lambda _: model, 0, 0, "").sample(model)
    assert patch.step and patch.state["previous"] is not None
    assert_same(before, I.model_identity(model))
    patch.threshold = 0.3
    assert sentence(differences(before, I.model_identity(model))) == "Teacache.threshold changed 0.1 -> 0.3"
    patch.state["mode"] = "fast"
    assert "Teacache.state.mode was added" in sentence(differences(before, I.model_identity(model)))


def test_what_a_pack_writes_into_the_network_itself_counts():
    model = tiny.WAN.make()
    network, before = model.model.diffusion_model, I.model_identity(model)
    network.rel_l1_thresh = 0.3
    assert sentence(differences(before, I.model_identity(model))).endswith("network.rel_l1_thresh was added")
    del network.rel_l1_thresh
    network.blocks[0].forward = lambda *arguments, **others: network.blocks[0].__class__.forward(*arguments, **others)
    assert "written over.diffusion_model.blocks.0.forward" in differences(before, I.model_identity(model))[0].path
    del network.blocks[0].forward
    assert_same(before, I.model_identity(model))


def test_a_cancelled_run_leaves_the_identity_as_it_was():
    model = variants.with_teacache(0.1)
    before = I.model_identity(model)

    class Cancelled(Exception):
        pass

    with pytest.raises(Cancelled), I.watch(model):
        model.model_options["model_function_wrapper"].step = 7
        raise Cancelled
    assert_same(before, I.model_identity(model))


@pytest.mark.parametrize("kind", tiny.ALL, ids=lambda kind: kind.name)
def test_a_lora_in_use_changes_neither_its_identity_nor_that_of_the_plain_model(kind):
    import comfy.model_management as mm
    import comfy.sd

    model = kind.make()
    lora = comfy.sd.load_lora_for_models(model, None, variants.lora_of(model), 0.7, 0)[0]
    plain, patched = I.model_identity(model), I.model_identity(lora)
    mm.load_models_gpu([lora])
    assert lora.backup
    assert_same(plain, I.model_identity(model))
    assert_same(patched, I.model_identity(lora))
    mm.unload_all_models()
    assert_same(plain, I.model_identity(model))
    assert_same(patched, I.model_identity(lora))


def test_a_partly_loaded_model_has_the_same_identity():
    import comfy.model_management as mm

    lora = variants.with_lora(0.5)
    before = I.model_identity(lora)
    lora.patch_model(torch.device("cpu"), lowvram_model_memory=2000)
    assert lora.model.model_lowvram
    assert_same(before, I.model_identity(lora))
    lora.detach()
    mm.unload_all_models()
    assert_same(before, I.model_identity(lora))


def test_dynamic_memory_changes_no_identity(monkeypatch):
    """Hosts with dynamic memory cast weights when they load them, some for good."""
    import comfy.model_patcher
    import comfy.sd

    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this host has no dynamic memory")
    import comfy_aimdo.host_buffer
    from comfy.model_patcher import ModelPatcherDynamic

    # Its native library is for graphics cards.
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", lambda *arguments: None)
    cpu, base = torch.device("cpu"), tiny.WAN.make()
    block = base.model.diffusion_model.blocks[0]
    block.modulation_comfy_model_dtype = torch.bfloat16
    patches = comfy.sd.load_lora_for_models(base, None, variants.wan_lora(), 0.5, 0)[0].patches
    dynamic = object.__new__(ModelPatcherDynamic)
    dynamic.__init__(base.model, cpu, cpu)
    dynamic.patches = patches
    monkeypatch.setattr(ModelPatcherDynamic, "__del__", lambda self: None)
    before = I.model_identity(dynamic)
    dynamic.load(cpu)
    assert dynamic.backup and block.modulation.dtype == torch.bfloat16
    assert_same(before, I.model_identity(dynamic))
    dynamic.restore_loaded_backups()
    assert_same(before, I.model_identity(dynamic))


def test_a_lossless_conversion_of_the_weights_changes_nothing_and_one_weight_does():
    first, second = tiny.WAN.make(), tiny.WAN.make()
    for model in (first, second):
        for weight in model.model.parameters():
            weight.data = weight.data.half()
    for weight in second.model.parameters():
        weight.data = weight.data.float()
    halves, singles = I.model_identity(first), I.model_identity(second)
    assert_same(halves, singles)
    second.model.diffusion_model.blocks[0].self_attn.q.weight.data[3, 5] += 1
    assert "weights has other values" in sentence(differences(halves, I.model_identity(second)))


def test_weights_are_hashed_once_per_process():
    from streaming_core.identity.describe import WEIGHTS

    model = tiny.LTX.make()
    I.model_identity(model)
    hashed = WEIGHTS.hashed
    I.model_identity(model.clone())
    with I.watch(model):
        pass
    assert WEIGHTS.hashed == hashed


def test_vaes_count_with_weights_and_type():
    from tests.host.test_native_inprocess import svd_vae

    vae = svd_vae()
    before = I.identity_of(vae)
    vae.vae_dtype = torch.bfloat16
    assert "vae_dtype changed float32 -> bfloat16" in sentence(differences(before, I.identity_of(vae)))
    vae.vae_dtype = torch.float32
    assert_same(before, I.identity_of(vae))


@pytest.fixture(scope="module")
def streamingsvd_files(tmp_path_factory) -> list[str]:
    """The same weights as a float16 file, under another name in another folder, and converted to float32."""
    from safetensors.torch import load_file, save_file

    from tiny_models.streamingsvd import write_tiny_streamingsvd

    folder = tmp_path_factory.mktemp("files")
    first = write_tiny_streamingsvd(folder / "tiny.safetensors")
    (folder / "video").mkdir()
    os.symlink(first, folder / "video" / "renamed.safetensors")
    save_file({name: weight.float() for name, weight in load_file(first).items()}, folder / "single.safetensors")
    return [str(first), str(folder / "video" / "renamed.safetensors"), str(folder / "single.safetensors")]


def test_the_same_weights_in_another_file_are_the_same(streamingsvd_files):
    from comfyui_streamingt2v.nodes.host.svd.load import open_streamingsvd

    first, *others = [open_streamingsvd(path) for path in streamingsvd_files]
    for other in others:
        for name in first._fields:
            assert_same(I.identity_of(getattr(first, name)), I.identity_of(getattr(other, name)))


def test_cam_on_a_model_counts_by_weights_strength_and_control_frames(streamingsvd_files):
    from comfyui_streamingt2v.nodes.host.svd.cam import with_cam
    from comfyui_streamingt2v.nodes.host.svd.load import open_streamingsvd

    first, second = open_streamingsvd(streamingsvd_files[0]), open_streamingsvd(streamingsvd_files[2])
    frames = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    before = I.identity_of(with_cam(first.model, first.cam, frames, 0.8))
    assert_same(before, I.identity_of(with_cam(second.model, second.cam, frames, 0.8)))
    weaker = I.identity_of(with_cam(first.model, first.cam, frames, 0.7))
    assert "CamGuide.strength changed 0.8 -> 0.7" in sentence(differences(before, weaker))
    assert differences(before, I.identity_of(with_cam(first.model, first.cam, frames + 0.1, 0.8)))
    with torch.no_grad():
        next(iter(first.cam.network.parameters())).add_(1)
    assert "weights has other values" in sentence(
        differences(before, I.identity_of(with_cam(first.model, first.cam, frames, 0.8))), 9
    )


def test_a_text_encoder_counts_with_weights_and_layer():
    import comfy.model_management as mm

    from tiny_models.clip import tiny_clip

    clip = tiny_clip(l=16)
    clip.use_clip_schedule, clip.apply_hooks_to_conds = False, None
    before = I.identity_of(clip)
    mm.load_models_gpu([clip.patcher])
    assert_same(before, I.identity_of(clip))
    assert_same(before, I.identity_of(clip.clone()))
    other = clip.clone()
    other.clip_layer(-2)
    assert "layer_idx" in sentence(differences(before, I.identity_of(other)))


def test_quantized_weights_count_by_their_values_and_scale():
    import comfy.quant_ops as quant

    def quantized(scale: float):
        model = tiny.WAN.make()
        layer = model.model.diffusion_model.blocks[0].self_attn.q
        scaled = torch.tensor(scale)
        try:
            weight = quant.QuantizedTensor.from_float(layer.weight.detach(), "TensorCoreFP8Layout", scale=scaled)
        except (AttributeError, KeyError, RuntimeError) as missing:
            pytest.skip(f"this host cannot quantize here: {missing}")
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return I.model_identity(model)

    assert_same(quantized(0.5), quantized(0.5))
    assert differences(quantized(0.5), quantized(0.25))


def test_a_guider_counts_with_model_conditions_and_scale():
    import comfy.samplers

    def guider(scale: float):
        made = comfy.samplers.CFGGuider(variants.with_wrapper(0.9))
        made.set_conds(tiny.WAN.conditioning(1), tiny.WAN.conditioning(2))
        made.set_cfg(scale)
        return made

    first = guider(2.0)
    before = I.identity_of(first)
    assert_same(before, I.identity_of(guider(2.0)))
    assert "CFGGuider.cfg changed 2.0 -> 3.0" in sentence(differences(before, I.identity_of(guider(3.0))))


def _put(name: str):
    """A plain model with one thing put onto it, through the host's own methods, by a number."""

    def make(number: float):
        model = model_of(tiny.WAN).clone()

        def function(*arguments, **others):
            return number

        weight = "diffusion_model.blocks.0.self_attn.q.weight"
        injection = comfy.patcher_extension.PatcherInjection(inject=function, eject=function)
        puts = {
            "wrapper": lambda: model.add_wrapper("apply_model", function),
            "callback": lambda: model.add_callback("on_load", function),
            "attachment": lambda: model.set_attachments("pack", {"scale": number}),
            "injection": lambda: model.set_injections("pack", [injection]),
            "additional model": lambda: model.set_additional_models("pack", [variants.with_wrapper(number)]),
            "weight function": lambda: model.add_weight_wrapper(weight, function),
            "object patch": lambda: model.add_object_patch("diffusion_model.blocks.0.forward", function),
            "attention patch": lambda: model.set_model_attn2_patch(function),
            "attention replacement": lambda: model.set_model_attn1_replace(function, "input", 1),
            "cfg function": lambda: model.set_model_sampler_cfg_function(lambda args: function(args)),
            "pre cfg function": lambda: model.set_model_sampler_pre_cfg_function(function),
            "context handler": lambda: model.model_options.update(context_handler=variants.Teacache(number)),
            "weights": lambda: model.add_patches({weight: ("diff", (torch.full((24, 24), number),))}),
        }
        puts[name]()
        return model

    return make


@pytest.mark.parametrize(
    "name",
    ["wrapper", "callback", "attachment", "injection", "additional model", "weight function", "object patch"]
    + ["attention patch", "attention replacement", "cfg function", "pre cfg function", "context handler", "weights"],
)
def test_whatever_is_put_onto_a_model_counts(name):
    make, plain = _put(name), I.model_identity(model_of(tiny.WAN))
    one, two = I.model_identity(make(0.5)), I.model_identity(make(0.25))
    assert differences(plain, one) and differences(one, two)
    assert_same(one, I.model_identity(make(0.5)))
    assert_same(one, I.model_identity(make(0.5).clone()))


def test_a_model_that_cannot_be_described_the_usual_way_is_described_in_full(monkeypatch, caplog):
    model = variants.with_wrapper(0.9)
    monkeypatch.setattr(model, "object_patches", 3)
    assert sentence(differences(I.model_identity(model), I.model_identity(variants.with_wrapper(0.9))))
    assert "weights" in json.dumps(I.model_identity(model)) and "ModelPatcher" in caplog.text


def test_a_patch_that_holds_its_own_model_and_a_chain_of_clones_are_described_once():
    model = model_of(tiny.WAN)
    for number in range(12):
        below, model = model, model.clone()

        def patch(args, below=below, model=model, number=number):
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(patch)
    identity = I.model_identity(model)
    assert len(json.dumps(identity)) < 200_000
    assert_same(identity, I.model_identity(model))


def test_start_flags_that_change_results_count(monkeypatch):
    import comfy.cli_args

    plain = I.start_flags_identity()
    monkeypatch.setattr(comfy.cli_args.args, "bf16_unet", True)
    monkeypatch.setattr(comfy.cli_args.args, "preview_size", 256)
    assert sentence(differences(plain, I.start_flags_identity())) == "bf16_unet was added"
