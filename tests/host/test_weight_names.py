"""Every loader of the pack with files as training programs, converters and ComfyUI's own savers write them."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import CheckpointError
from streaming_core.metrics.flow import empty_raft
from streaming_core.models.ema_vfi.interpolator import EmaVfiSettings
from streaming_core.models.registry import IncompleteCheckpointError, WrongCheckpointError
from streaming_core.models.wrappers import beside
from tiny_models import ema_vfi, enhancer, lvdm, modelscope, streamingsvd

import_host()
import_pack()

import comfy.ops  # noqa: E402
import folder_paths  # noqa: E402
from comfyui_streamingt2v.nodes.host.enhance.load import load_enhancer  # noqa: E402
from comfyui_streamingt2v.nodes.host.interpolation.load import ensure_folder as interpolation_folder  # noqa: E402
from comfyui_streamingt2v.nodes.host.interpolation.load import load_ema_vfi  # noqa: E402
from comfyui_streamingt2v.nodes.host.lvdm.load import load_lvdm  # noqa: E402
from comfyui_streamingt2v.nodes.host.metrics.load import ensure_folder as flow_folder  # noqa: E402
from comfyui_streamingt2v.nodes.host.metrics.load import load_raft  # noqa: E402
from comfyui_streamingt2v.nodes.host.modelscope.load import load_modelscope_unet, load_streamingmodelscope  # noqa: E402
from comfyui_streamingt2v.nodes.host.svd.load import load_streamingsvd  # noqa: E402

pytestmark = pytest.mark.slow

interpolation_folder()
flow_folder()


@cache
def svd_weights() -> dict[str, Tensor]:
    path = folder("checkpoints") / "made.safetensors"
    streamingsvd.write_tiny_streamingsvd(path)
    return load_file(path)


@cache
def raft_weights() -> dict[str, Tensor]:
    return empty_raft().state_dict()


@cache
def lvdm_weights() -> dict[str, Tensor]:
    """What is read of a checkpoint: the rest, and the second names of convolutions, may be pruned."""
    weights = lvdm.lvdm_weights(average=False)
    read = {key: value for key, value in weights.items() if key.startswith(("first_stage_model.", "model."))}
    return {key: value for key, value in read.items() if f"{key.removesuffix('.weight')}.conv.weight" not in weights}


def interpolation_weights() -> dict[str, Tensor]:
    return ema_vfi.random_network().state_dict()


def folder(kind: str) -> Path:
    path = Path(folder_paths.get_folder_paths(kind)[0])
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Loader:
    """A loader with the weights it reads and the networks it makes of them."""

    kind: str
    weights: Callable[[], dict[str, Tensor]]
    load: Callable[[str], Any]
    networks: Callable[[Any], list[nn.Module]]

    @property
    def plain(self) -> str:
        """Name of a file with these weights and nothing else; `plain_state` writes it."""
        return f"plain-{self.weights.__name__}.safetensors"

    def state(self, tensors: Mapping[str, Tensor], name: str, metadata: dict[str, str] | None = None) -> list[Tensor]:
        """All weights of the networks made of a file with `tensors`."""
        path = folder(self.kind) / name
        if name.endswith(".safetensors"):
            save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata)
        else:
            torch.save(dict(tensors), path)
        return [value.float() for net in self.networks(self.load(name)) for value in net.state_dict().values()]


def one(patcher: Any) -> list[nn.Module]:
    return [patcher.model]


def of_svd(made: Any) -> list[nn.Module]:
    return [made.model.model, made.clip_vision.model, made.vae.first_stage_model, made.cam.network]


def of_modelscope(made: Any) -> list[nn.Module]:
    clip = made.clip.cond_stage_model
    return [made.model.model, clip, made.clip_vision.model, made.vae.first_stage_model, made.cam.network]


LOADERS = {
    "Load StreamingSVD": Loader("checkpoints", svd_weights, load_streamingsvd, of_svd),
    "Load StreamingModelscope": Loader("checkpoints", modelscope.tiny_weights, load_streamingmodelscope, of_modelscope),
    "Load ModelScope T2V": Loader("diffusion_models", modelscope.base_weights, load_modelscope_unet, one),
    "Load Enhancer, MS-Vid2Vid": Loader("diffusion_models", modelscope.vid2vid_weights, load_enhancer, one),
    "Load Enhancer, I2VGen-XL": Loader("diffusion_models", enhancer.tiny_weights, load_enhancer, one),
    "Load LVDM": Loader(
        "checkpoints",
        lvdm_weights,
        lambda name: load_lvdm(name, latents="sky"),
        lambda made: [made.model.model, made.vae.first_stage_model],
    ),
    "Load EMA-VFI": Loader(
        "frame_interpolation",
        interpolation_weights,
        lambda name: load_ema_vfi(name, EmaVfiSettings(), torch.float32),
        one,
    ),
    "Load RAFT": Loader("optical_flow", raft_weights, load_raft, one),
}


@pytest.fixture(params=LOADERS, ids=lambda name: name.replace(" ", "-"))
def loader(request) -> Loader:
    return LOADERS[request.param]


@cache
def plain_state(load: Loader) -> list[Tensor]:
    return load.state(load.weights(), load.plain)


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


WRAPPERS = ["module.", "_orig_mod.", "module._orig_mod.", "state_dict.", "model.", "model.diffusion_model.", "unet."]
WRAPPERS += ["model.module.", "net.unet.", "ema.", "my_network."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_inside_of_wrappers(loader, wrapper):
    tensors = {wrapper + key: value for key, value in loader.weights().items()}
    assert same(loader.state(tensors, "wrapped.safetensors"), plain_state(loader))
    assert same(loader.state({"state_dict": tensors, "epoch": 2}, "wrapped.pth"), plain_state(loader))


@pytest.mark.parametrize("part", ["module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_only_a_part_is_wrapped(loader, part):
    """As programs do that compile or distribute one network of several."""
    first = next(iter(loader.weights())).split(".")[0]
    tensors = {
        key.replace(f"{first}.", f"{first}.{part}", 1) if key.startswith(f"{first}.") else key: value
        for key, value in loader.weights().items()
    }
    assert same(loader.state(tensors, "part.safetensors"), plain_state(loader))


BESIDE = {
    "model_ema.diffusion_modelinput_blocks00weight": torch.rand(2),
    "model_ema.decay": torch.tensor(0.99),
    "model_ema.num_updates": torch.tensor(5),
    "alphas_cumprod": torch.rand(5),
    "sqrt_one_minus_alphas_cumprod": torch.rand(5),
    "betas": torch.rand(5),
    "posterior_mean_coef2": torch.rand(5),
    "denoiser.sigmas": torch.rand(5),
    "logvar": torch.rand(5),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "optimizer.state.0.exp_avg": torch.rand(3),
    "first_stage_model.loss.discriminator.main.0.weight": torch.rand(3),
    "global_step": torch.tensor(3),
}


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_what_lies_beside_the_weights_is_ignored_with_a_line_in_the_log(loader, wrapper, caplog):
    tensors = {wrapper + key: value for key, value in (loader.weights() | BESIDE).items()}
    with caplog.at_level(logging.INFO):
        assert same(loader.state(tensors, "beside.safetensors"), plain_state(loader))
    said = [record.getMessage() for record in caplog.records if "beside.safetensors" in record.getMessage()]
    for reason in ("moving averages", "a training program", "a noise schedule"):
        assert any("keys are not read" in line and reason in line for line in said), (reason, said)


def test_copies_that_are_averages_do_not_take_the_place_of_the_weights(loader):
    copies = {f"ema.{key}": -value for key, value in loader.weights().items()}
    tensors = {**copies, **{f"model.{key}": value for key, value in loader.weights().items()}}
    assert same(loader.state(tensors, "both.safetensors"), plain_state(loader))


def test_no_name_of_a_network_is_taken_for_something_beside_it(loader):
    names = [key for key in loader.weights() if beside(key) and not key.endswith("position_ids")]
    assert not names


# Quantized ------------------------------------------------------------------------------------------------------------


def quantizable(key: str, value: Tensor) -> bool:
    return key.endswith(".weight") and value.ndim == 2 and value.is_floating_point()


def scaled(
    tensors: Mapping[str, Tensor], form: str
) -> tuple[dict[str, Tensor], dict[str, str] | None, dict[str, Tensor]]:
    """`tensors` as a converter writes them in `form`, the file's metadata, and the plain weights this stands for."""
    stored, plain, layers = dict(tensors), dict(tensors), {}
    for key, value in tensors.items():
        if not quantizable(key, value):
            continue
        rows = form == "a scale per row"
        scale = (value.float().abs().amax(1, keepdim=True) if rows else value.float().abs().max()) / 448 + 1e-12
        stored[key] = (value.float() / scale).to(torch.float8_e4m3fn)
        plain[key] = (stored[key].float() * scale).to(torch.float16)
        stem = key.removesuffix(".weight")
        stored[f"{stem}.{'scale_weight' if form == 'scaled_fp8' else 'weight_scale'}"] = scale
        layers[stem] = {"format": "float8_e4m3fn"}
        if form == "scaled_fp8":
            stored[f"{stem}.scale_input"] = torch.tensor(1.0)
        if form == "comfy_quant":
            stored[f"{stem}.comfy_quant"] = torch.tensor(list(json.dumps(layers[stem]).encode()), dtype=torch.uint8)
    if form == "scaled_fp8":
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return stored, metadata if form == "metadata" else None, plain


@pytest.mark.parametrize("form", ["scaled_fp8", "comfy_quant", "metadata", "a scale per row"])
def test_scaled_fp8_files_are_read(loader, form):
    stored, metadata, plain = scaled(loader.weights(), form)
    found = loader.state(stored, "scaled.safetensors", metadata)
    assert same(found, loader.state(plain, "unscaled.safetensors"))
    if any(quantizable(key, value) for key, value in loader.weights().items()):
        assert not same(found, plain_state(loader))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"x.weight.absmax": torch.rand(2)}, "quantized by bitsandbytes"),
        ({"x.qweight": torch.zeros(2, dtype=torch.int32)}, "quantized by GPTQ"),
        (
            {
                "x.weight": torch.zeros(2, 2, dtype=torch.uint8),
                "x.weight_scale": torch.rand(1),
                "x.comfy_quant": torch.tensor(list(b'{"format": "unheard_of"}'), dtype=torch.uint8),
            },
            "stored as unheard_of",
        ),
        ({"x.weight_scale": torch.rand(1)}, "x.weight is missing, though its scale is there"),
    ],
)
def test_formats_that_cannot_be_read_are_named(loader, extra, words):
    with pytest.raises(CheckpointError, match=f"strange.safetensors.*{words}"):
        loader.state(loader.weights() | extra, "strange.safetensors")


@pytest.mark.skipif(
    "int8_tensorwise" not in getattr(comfy.ops, "QUANT_ALGOS", {}), reason="this host has no 8-bit integer weights"
)
def test_other_formats_are_read_by_the_host():
    loader = LOADERS["Load ModelScope T2V"]
    stored, plain = dict(loader.weights()), dict(loader.weights())
    for key, value in loader.weights().items():
        if quantizable(key, value):
            scale = value.float().abs().amax() / 127
            stored[key] = (value.float() / scale).round().to(torch.int8)
            plain[key] = (stored[key].float() * scale).to(torch.float16)
            stem = key.removesuffix("weight")
            stored[f"{stem}weight_scale"] = scale
            stored[f"{stem}comfy_quant"] = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    for found, wanted in zip(
        loader.state(stored, "int8.safetensors"), loader.state(plain, "p.safetensors"), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-6)


# Complete, pruned, other --------------------------------------------------------------------------------------------


def test_streamingsvd_pruned_of_what_nothing_reads():
    loader = LOADERS["Load StreamingSVD"]
    unread = ("first_stage_model.encoder.", "first_stage_model.quant_conv.", "first_stage_model.post_quant_conv.")
    unread += ("conditioner.embedders.3.encoder.decoder.", "conditioner.embedders.3.encoder.post_quant_conv.")
    read = {
        key: value
        for key, value in loader.weights().items()
        if not key.startswith(unread) and (".open_clip.model." not in key or ".visual." in key)
    }
    assert len(read) < len(loader.weights())
    assert same(loader.state(read, "pruned.safetensors"), plain_state(loader))


def test_every_refusal_names_the_file(loader):
    weights = loader.weights()
    last = list(weights)[-1]
    for name, tensors in {
        "short.safetensors": {key: value for key, value in weights.items() if key != last},
        "long.safetensors": {**weights, f"{last}.surprise": torch.rand(2)},
        "other.safetensors": {"some.weight": torch.rand(2, 2)},
        "reshaped.safetensors": {**weights, last: torch.rand(7, 3)},
    }.items():
        with pytest.raises((IncompleteCheckpointError, WrongCheckpointError, CheckpointError), match=name) as caught:
            loader.state(tensors, name)
        assert "\\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["Load ModelScope T2V", "Load Enhancer, MS-Vid2Vid", "Load Enhancer, I2VGen-XL"])
def test_shapes_that_contradict_each_other_are_refused(label):
    loader = LOADERS[label]
    name = "input_blocks.1.0.out_layers.3.weight" if "Vid2Vid" in label else "down_blocks.0.resnets.0.conv2.weight"
    tensors = loader.weights() | {name: torch.rand(65, 65, 3, 3)}
    with pytest.raises(CheckpointError, match="odd.safetensors"):
        loader.state(tensors, "odd.safetensors")


# What ComfyUI saves, and ModelScope's own layout ----------------------------------------------------------------------


def saved(model: Any, name: str) -> Path:
    """The file that the host's ModelSave writes."""
    node = importlib.import_module("comfy_extras.nodes_model_merging").ModelSave
    if hasattr(node, "execute"):
        node.execute(model=model, filename_prefix=name)
    else:
        node().save(model=model, filename_prefix=name)
    return next(Path(folder_paths.get_output_directory()).glob(f"{name}_*.safetensors"))


@pytest.mark.parametrize("label", ["Load ModelScope T2V", "Load Enhancer, MS-Vid2Vid", "Load Enhancer, I2VGen-XL"])
def test_what_the_host_saves_is_loaded_again(label):
    loader = LOADERS[label]
    plain_state(loader)
    model = loader.load(loader.plain)
    again = load_file(saved(model, label.replace(" ", "_").replace(",", "")))
    assert same(loader.state(again, "again.safetensors"), plain_state(loader))
    made = loader.load("again.safetensors")
    assert type(made.model) is type(model.model) and made.model.model_type == model.model.model_type
    if "MS-Vid2Vid" in label:
        with pytest.raises(WrongCheckpointError, match=r"again.safetensors is an MS-Vid2Vid UNet .* Load Enhancer"):
            LOADERS["Load ModelScope T2V"].load("again.safetensors")


def test_the_unet_of_streamingmodelscope_is_loaded_again_after_saving():
    plain_state(LOADERS["Load StreamingModelscope"])
    model = load_streamingmodelscope(LOADERS["Load StreamingModelscope"].plain).model
    target = folder("diffusion_models") / "merged.safetensors"
    target.write_bytes(saved(model, "merged").read_bytes())
    again = load_modelscope_unet("merged.safetensors")
    assert again.model.config == model.model.config
    assert same(list(again.model.state_dict().values()), list(model.model.state_dict().values()))


def test_the_saved_unet_of_streamingsvd_is_named():
    plain_state(LOADERS["Load StreamingSVD"])
    model = load_streamingsvd(LOADERS["Load StreamingSVD"].plain).model
    (folder("checkpoints") / "unet.safetensors").write_bytes(saved(model, "svd").read_bytes())
    with pytest.raises(WrongCheckpointError, match=r"video model of SVD alone, which ComfyUI's Load Diffusion Model"):
        load_streamingsvd("unet.safetensors")


def test_modelscopes_own_layout_is_read_by_both_and_told_apart_by_name(caplog):
    base, refiner = LOADERS["Load ModelScope T2V"], LOADERS["Load Enhancer, MS-Vid2Vid"]
    weights = modelscope.vid2vid_weights(seed=1)  # the weights of `base_weights` in that layout
    assert same(base.state(weights, "text2video_pytorch_model.pth"), plain_state(base))
    with pytest.raises(WrongCheckpointError, match=r"text2video_pytorch_model.pth is by its name .*Load ModelScope"):
        load_enhancer("text2video_pytorch_model.pth")
    refiner.state(weights, "non_ema_0035000.pth")
    with pytest.raises(WrongCheckpointError, match=r"non_ema_0035000.pth is by its name .*Load Enhancer"):
        load_modelscope_unet("non_ema_0035000.pth")
    for loader, words in ((base, "as a ModelScope text-to-video"), (refiner, "as an MS-Vid2Vid")):
        caplog.clear()
        loader.state(weights, "renamed.safetensors")
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert any("renamed.safetensors is read " + words in line for line in said), said


def test_i2vgen_xl_is_no_text_to_video_model():
    loader = LOADERS["Load Enhancer, I2VGen-XL"]
    plain_state(loader)
    with pytest.raises(WrongCheckpointError, match=f"{loader.plain} is an I2VGen-XL UNet, which Load Enhancer"):
        load_modelscope_unet(loader.plain)
