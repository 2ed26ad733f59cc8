"""Settings that must change an identity, each with two values; `write` is for comparing with another process."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hosting.inprocess import import_host, import_pack

import_host()
import_pack()

import comfy.controlnet  # noqa: E402
import comfy.hooks  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models as supported  # noqa: E402
import torch  # noqa: E402
from comfy_api.torch_helpers import set_torch_compile_wrapper  # noqa: E402
from comfyui_streamingt2v.nodes.host import encoders  # noqa: E402
from comfyui_streamingt2v.nodes.host import identity as I  # noqa: E402, N812
from comfyui_streamingt2v.nodes.host.windows import blending  # noqa: E402

from tiny_models import native as tiny  # noqa: E402


@cache
def model_of(kind: tiny.Tiny):
    return kind.make()


class NodeMissing(Exception):
    """This host has no such node."""


def node(module: str, name: str, **inputs):
    """First output of one of the host's nodes."""
    try:
        kind = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise NodeMissing(name) from error
    outputs = kind.execute(**inputs) if hasattr(kind, "execute") else getattr(kind(), kind.FUNCTION)(**inputs)
    return outputs[0]


def patched(kind: tiny.Tiny, module: str, name: str, widget: str | None, **others) -> Callable[[Any], Any]:
    """Makes the model with a node behind it; without a `widget` the value says whether the node is there."""

    def make(value):
        if widget is None:
            return node(module, name, model=model_of(kind), **others) if value else model_of(kind)
        return node(module, name, model=model_of(kind), **others, **{widget: value})

    return make


def lora_of(model, rank: int = 2, seed: int = 4) -> dict[str, torch.Tensor]:
    """A LoRA for all larger matrices of a model, in the host's own names."""
    generator, table = torch.Generator().manual_seed(seed), {}
    for key, weight in model.model_state_dict().items():
        if (
            key.startswith("diffusion_model.")
            and weight.ndim == 2
            and key.endswith(".weight")
            and min(weight.shape) > 4
        ):
            stem = key.removesuffix(".weight")
            table[f"{stem}.lora_up.weight"] = torch.randn(weight.shape[0], rank, generator=generator)
            table[f"{stem}.lora_down.weight"] = torch.randn(rank, weight.shape[1], generator=generator)
    return table


@cache
def wan_lora() -> dict[str, torch.Tensor]:
    return lora_of(model_of(tiny.WAN))


def with_lora(strength: float):
    return comfy.sd.load_lora_for_models(model_of(tiny.WAN), None, wan_lora(), strength, 0)[0]


def with_wrapper(scale: float):
    model = model_of(tiny.WAN).clone()

    def scaled(apply_model, call):
        return apply_model(call["input"], call["timestep"], **call["c"]) * scale

    model.set_model_unet_function_wrapper(scaled)
    return model


class Teacache:
    """As other packs write them: settings, counters and tensors of the last step in one object."""

    def __init__(self, threshold: float):
        self.threshold, self.step, self.state = threshold, 0, {"previous": None, "skipped": []}

    def __call__(self, apply_model, call):
        self.step += 1
        self.state["skipped"].append(self.step)
        self.state["previous"] = apply_model(call["input"], call["timestep"], **call["c"])
        return self.state["previous"]


def with_teacache(threshold: float):
    model = model_of(tiny.WAN).clone()
    model.set_model_unet_function_wrapper(Teacache(threshold))
    return model


def with_counting_closure(scale: float):
    model, seen, state = model_of(tiny.WAN).clone(), [], {"previous": None}
    running = 0.0

    def count(args):
        nonlocal running
        running = running + args["denoised"].mean() * scale
        seen.append(float(running))
        state["previous"] = args["denoised"]
        state[f"step {len(seen)}"] = running
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(count)
    return model


def with_eager_compile(dynamic: bool):
    model = model_of(tiny.WAN).clone()
    set_torch_compile_wrapper(model, backend="eager", dynamic=dynamic)
    return model


class TinyControl(torch.nn.Module):
    """What the host asks of a ControlNet's network."""

    dtype = torch.float32

    def __init__(self, seed: int):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        tiny.randomize(self, seed)

    def forward(self, x, hint, timesteps, context, **others):
        return {"input": [], "middle": [], "output": []}


@cache
def control_net(seed: int = 1):
    return comfy.controlnet.ControlNet(TinyControl(seed), load_device=torch.device("cpu"))


def conditioning(**options):
    return tiny.SVD.conditioning(1, concat_latent_image=torch.zeros(1, 4, 8, 8), **options)


def with_control(strength: float = 0.7, image: float = 0.5, percent: tuple[float, float] = (0.0, 1.0), seed: int = 1):
    control = control_net(seed).copy().set_cond_hint(torch.full((1, 3, 64, 64), image), strength, percent)
    further = control_net().copy().set_cond_hint(torch.zeros(1, 3, 64, 64), 0.2)
    return conditioning(control=control.set_previous_controlnet(further), control_apply_to_uncond=True)


def with_hook_lora(strength: float, keyframe: float = 1.0):
    group = comfy.hooks.create_hook_lora(wan_lora(), strength, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(keyframe, 0.0))
    group.set_keyframes_on_hooks(keyframes)
    return tiny.WAN.conditioning(1, hooks=group)


def clip_vision(seed: int):
    from streaming_core.models.registry import shapes_of
    from streaming_core.models.streamingsvd.detect import detect_streamingsvd
    from streaming_core.models.streamingsvd.file import split_file
    from tiny_models.streamingsvd import TINY, official_shapes, random_weights

    tensors = random_weights(official_shapes(TINY), dtype=torch.float32)
    config = detect_streamingsvd(shapes_of(tensors))
    vision = encoders.build_clip_vision(split_file(tensors, "tiny").clip_vision, config.clip_vision)
    tiny.randomize(vision.model, seed)
    return vision


def typed_model(dtype: torch.dtype):
    """The tiny Wan model as a start flag or a loader's option makes it: the same weights, computed in `dtype`."""
    config = supported.WAN21_T2V({**tiny._WAN, "model_type": "t2v", "in_dim": 16})
    config.set_inference_dtype(torch.float32, None if dtype == torch.float32 else dtype)
    return tiny.patcher_of(config.get_model({}, ""))


def theirs(model, x, sigmas, extra_args=None, callback=None, disable=None, strength=1.0, **others):
    """A sampler of another pack."""
    for _ in range(len(sigmas) - 1):
        x = model(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args) * strength
    return x


class TheirSampler(comfy.samplers.Sampler):
    """A SAMPLER class of another pack."""

    def __init__(self, strength: float):
        self.strength = strength


def sampler_of(function=theirs, options=None, **others):
    return comfy.samplers.KSAMPLER(function, options or {}, **others)


def sa_solver(eta: float):
    options = {"sde_start_percent": 0.2, "sde_end_percent": 0.8, "s_noise": 1.0, "predictor_order": 3}
    options |= {"corrector_order": 4, "use_pece": False, "simple_order_2": False}
    return node("nodes_custom_sampler", "SamplerSASolver", model=model_of(tiny.SVD), eta=eta, **options)


def named_sampler(name: str):
    return comfy.samplers.sampler_object(name)


@dataclass(frozen=True)
class Variant:
    """`make` gives what a node gives for a value; `says` stands in the sentence about the change."""

    name: str
    make: Callable[[Any], Any]
    old: Any
    new: Any
    says: str
    what: str = "model"
    sampled: bool = True
    kind: tiny.Tiny = field(default=tiny.WAN)

    def identity(self, made: Any):
        return I.conditioning_identity(made) if self.what == "conditioning" else I.identity_of(made)

    def sample(self, made: Any) -> torch.Tensor:
        """What a run does with it, watched."""
        options = {} if self.kind.frame_batch is False else {"concat_latent_image": torch.zeros(1, 4, 8, 8)}
        positive, negative = self.kind.conditioning(1, **options), self.kind.conditioning(2, **options)
        model = made if self.what == "model" else model_of(self.kind)
        positive = made if self.what == "conditioning" else positive
        with torch.inference_mode(), I.watch(model, positive, made):
            return tiny.sample(model, self.kind.latent(3), positive, negative, steps=2)


def _svd(name: str, *arguments, says: str, old: Any, new: Any, **others) -> Variant:
    return Variant(name, patched(tiny.SVD, *arguments, **others), old, new, says, kind=tiny.SVD)


_PERCENT = {"start_percent": 0.0, "end_percent": 1.0}
_LAYERS = {"double_layers": "0", "single_layers": ""}
_TILES = {"swap_size": 2, "max_depth": 0, "scale_depth": False}
MODELS = (
    Variant("LoRA strength", with_lora, 0.8, 0.4, "strength changed 0.8 -> 0.4"),
    _svd(
        *("RescaleCFG", "nodes_model_advanced", "RescaleCFG", "multiplier"),
        says="RescaleCFG.multiplier changed 0.7 -> 0.5",
        old=0.7,
        new=0.5,
    ),
    Variant(
        "ModelSamplingSD3",
        patched(tiny.WAN, "nodes_model_advanced", "ModelSamplingSD3", "shift"),
        *(3.0, 5.0, "shift changed 3.0 -> 5.0"),
    ),
    Variant("CFGZeroStar", patched(tiny.WAN, "nodes_cfg", "CFGZeroStar", None), True, False, "CFGZeroStar was removed"),
    _svd("FreeU_V2", "nodes_freelunch", "FreeU_V2", "b1", b2=1.4, s1=0.9, s2=0.2, old=1.3, new=1.1, says="FreeU_V2"),
    Variant(
        "SkipLayerGuidance",
        patched(
            tiny.WAN, "nodes_slg", "SkipLayerGuidanceDiT", "scale", double_layers="0", single_layers="", **_PERCENT
        ),
        *(3.0, 2.0, "scale changed 3.0 -> 2.0"),
    ),
    _svd("PerturbedAttention", "nodes_pag", "PerturbedAttentionGuidance", "scale", old=3.0, new=2.0, says="scale"),
    _svd("HyperTile", "nodes_hypertile", "HyperTile", "tile_size", **_TILES, old=256, new=512, says="HyperTile"),
    Variant(
        "EasyCache",
        patched(tiny.WAN, "nodes_easycache", "EasyCacheNode", "reuse_threshold", verbose=False, **_PERCENT),
        *(0.2, 0.3, "EasyCacheHolder.reuse_threshold changed 0.2 -> 0.3"),
    ),
    _svd("APG", "nodes_apg", "APG", "momentum", eta=1.0, norm_threshold=5.0, old=0.5, new=0.6, says="APG.momentum"),
    Variant(
        "torch.compile",
        patched(tiny.WAN, "nodes_torch_compile", "TorchCompileModel", "backend"),
        *("inductor", "cudagraphs", "backend changed inductor -> cudagraphs"),
        sampled=False,
    ),
    Variant("eager torch.compile", with_eager_compile, False, True, "dynamic changed false -> true"),
    Variant("wrapper of a pack", with_wrapper, 0.9, 0.8, "with_wrapper.scale changed 0.9 -> 0.8"),
    Variant("TeaCache-like patch", with_teacache, 0.1, 0.2, "Teacache.threshold changed 0.1 -> 0.2"),
    Variant("closure that counts", with_counting_closure, 0.1, 0.2, "with_counting_closure.scale changed 0.1 -> 0.2"),
    Variant(
        "Randomized Blending",
        lambda seed: blending.with_randomized_blending(model_of(tiny.WAN), 9, 4, seed),
        *(1, 2, "seed changed 1 -> 2"),
    ),
    Variant("UNet dtype", typed_model, torch.float32, torch.bfloat16, "compute dtype changed float32 -> bfloat16"),
    Variant(
        "ModelComputeDtype",
        patched(tiny.WAN, "nodes_model_advanced", "ModelComputeDtype", "dtype"),
        *("bf16", "fp32", "bfloat16"),
    ),
    Variant("CLIP vision", clip_vision, 1, 2, "weights has other values", "object", sampled=False),
)
CONDITIONINGS = tuple(
    Variant(name, make, old, new, says, "conditioning", kind=kind)
    for name, make, old, new, says, kind in (
        ("hook LoRA strength", with_hook_lora, 0.5, 0.9, "strength_model changed 0.5 -> 0.9", tiny.WAN),
        ("hook keyframe", functools.partial(with_hook_lora, 0.5), 1.0, 0.5, "strength changed 1.0 -> 0.5", tiny.WAN),
        ("ControlNet strength", with_control, 0.7, 0.5, "ControlNet.strength changed 0.7 -> 0.5", tiny.SVD),
        ("ControlNet image", lambda value: with_control(image=value), 0.5, 0.4, "cond_hint_original", tiny.SVD),
        ("ControlNet range", lambda end: with_control(percent=(0.0, end)), 1.0, 0.5, "percent_range.1", tiny.SVD),
        ("ControlNet weights", lambda seed: with_control(seed=seed), 1, 2, "weights has other values", tiny.SVD),
        ("strength", lambda value: conditioning(strength=value), 1.0, 0.5, "strength changed 1.0 -> 0.5", tiny.SVD),
        ("area", lambda value: conditioning(area=(value, 8, 0, 0)), 8, 4, "area.0 changed 8 -> 4", tiny.SVD),
        ("mask", lambda value: conditioning(mask=torch.full((1, 8, 8), value)), 1.0, 0.5, "mask has", tiny.SVD),
        ("time range", lambda value: conditioning(start_percent=value), 0.0, 0.5, "start_percent", tiny.SVD),
    )
)
SAMPLERS = tuple(
    Variant(name, make, old, new, says, "sampler", sampled=False)
    for name, make, old, new, says in (
        ("euler is not ddim", named_sampler, "euler", "ddim", "inpaint_options.random"),
        ("euler is not heun", named_sampler, "euler", "heun", "sample_heun"),
        ("an option", lambda eta: sampler_of(options={"eta": eta}), 1.0, 0.5, "extra_options.eta changed 1.0 -> 0.5"),
        ("a partial", lambda s: sampler_of(functools.partial(theirs, strength=s)), 1, 2, "strength changed 1 -> 2"),
        ("a class of a pack", TheirSampler, 1, 2, "TheirSampler.strength changed 1 -> 2"),
        ("SA-Solver", sa_solver, 1.0, 0.5, "eta"),
        (
            "ER-SDE",
            lambda s: node("nodes_custom_sampler", "SamplerER_SDE", solver_type=s, max_stage=3, eta=1.0, s_noise=1.0),
            "ER-SDE",
            "ODE",
            "",
        ),  # noqa: E501
        (
            "middle of a long tensor",
            lambda n: sampler_of(options={"noise": torch.arange(5000).where(torch.arange(5000) != n, 0)}),
            2500,
            2501,
            "noise has other values",
        ),  # noqa: E501
    )
)
ALL = (*MODELS, *CONDITIONINGS, *SAMPLERS)


def write(path: str) -> None:
    """Writes identities of all first values, by name; those that this host has no node for are left out."""
    found = {}
    for variant in ALL:
        with contextlib.suppress(NodeMissing):
            found[variant.name] = variant.identity(variant.make(variant.old))
    with open(path, "w", encoding="utf-8") as handle:
        json.dump(found, handle)
