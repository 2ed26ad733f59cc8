"""Replays of EMA-VFI's recorded results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from streaming_core.frames import TensorFrames
from streaming_core.interpolation.stream import InterpolationModel, official_interpolation
from streaming_core.models.ema_vfi.config import standard_config
from streaming_core.models.ema_vfi.detect import detect, official_tensors
from streaming_core.models.ema_vfi.interpolator import EmaVfiInterpolator, EmaVfiSettings, padding
from streaming_core.models.ema_vfi.network import EmaVfi
from streaming_core.models.ema_vfi.warp import warp
from streaming_core.models.registry import load_strict, shapes_of

from ..cases import Case
from ..manifests import KeyList, manifest
from ..replay import Comparison, replay

FAMILY = "ema_vfi"
FEATURES, FLOWS, IMAGES = 5e-6, 2e-5, 1e-5


def network(case: Case) -> EmaVfi:
    weights = official_tensors(case.weights())
    config = detect(shapes_of(weights), num_heads=tuple(case.config["num_heads"]), window=case.config["window"])
    built = EmaVfi(config)
    load_strict(built, weights, "EMA-VFI")
    return built.eval()


def between(net: EmaVfi, first: Tensor, second: Tensor, times: list[float], **settings: Any) -> Tensor:
    """Frames as the cases hold them, in the network's own channel order."""
    model = EmaVfiInterpolator(net, EmaVfiSettings(any_time=True, **settings))
    return model.forward_multi_timestep(first.flip(1), second.flip(1), times).flip(1)


@replay(FAMILY, "warp", atol=1e-6)
def warp_case(case: Case) -> Iterator[Comparison]:
    yield Comparison("warped", warp(case.input("x"), case.input("flow")), case.output("warped"))


@replay(FAMILY, "forward", atol=IMAGES)
def forward(case: Case) -> Iterator[Comparison]:
    net = network(case)
    pair = net.pair(net.frame(case.input("img0")), net.frame(case.input("img1")))
    for stage, maps in enumerate(pair.appearance):
        name = f"appearance_{stage}"
        yield Comparison(name, torch.cat(maps), case.output(name), atol=FEATURES)
    for stage, maps in enumerate(pair.motion, start=3):
        yield Comparison(f"motion_{stage}", torch.cat(maps), case.output(f"motion_{stage}"), atol=FEATURES)
    for time in case.meta["timesteps"]:
        out = case.group(f"out.t{round(100 * time):03d}.")
        flows = net.flows(pair, torch.tensor([time]))
        for step, flow in enumerate(flows):
            yield Comparison(f"flow_{step}", flow.flow, out[f"flow_{step}"], atol=FLOWS)
            yield Comparison(f"mask_sigmoid_{step}", flow.mask_logit.sigmoid(), out[f"mask_sigmoid_{step}"])
            yield Comparison(f"merged_{step}", flow.merged(), out[f"merged_{step}"])
        yield Comparison("mask_logit", flows[-1].mask_logit, out["mask_logit"], atol=FLOWS)
        yield Comparison("refine_unet", net.unet(pair, flows[-1]), out["refine_unet"])
        yield Comparison("pred", net.image(pair, flows[-1]), out["pred"])


@replay(FAMILY, "tta", atol=IMAGES)
def tta(case: Case) -> Iterator[Comparison]:
    net, frames = network(case), (case.input("img0"), case.input("img1"))
    for name, mode in (("no_tta", "off"), ("tta", "full"), ("fast_tta", "fast")):
        yield Comparison(name, between(net, *frames, [0.5], tta=mode), case.output(name))
    for prefix, mode in (("multi_fast_tta_", "fast"), ("multi_", "off")):
        times = case.meta["time_list"]
        for time, image in zip(times, between(net, *frames, times, tta=mode), strict=True):
            name = f"{prefix}t{round(100 * time):03d}"
            yield Comparison(name, image, case.output(name))


@replay(FAMILY, "sizes", atol=IMAGES)
def sizes(case: Case) -> Iterator[Comparison]:
    net, odd = network(case), (case.input("odd0"), case.input("odd1"))
    pads = case.meta["pad"]
    for multiple in (32, 16):
        found, recorded = padding(*pads["odd_size"], multiple), pads[f"padder{multiple}_left_right_top_bottom"]
        yield Comparison(f"padding to {multiple}", found, recorded, atol=0)
    yield Comparison("odd_pred", between(net, *odd, [0.5], pad_multiple=32), case.output("odd_pred"))
    both = between(net, *odd, [0.5], pad_multiple=32, tta="fast")
    yield Comparison("odd_pred_fast_tta", both, case.output("odd_pred_fast_tta"))
    yield Comparison("odd_pred_div16", between(net, *odd, [0.5], pad_multiple=16), case.output("odd_pred_div16"))
    plain = between(net, case.input("m16_0"), case.input("m16_1"), [0.5])
    yield Comparison("m16_pred", plain, case.output("m16_pred"))
    half = between(net, case.input("hr0"), case.input("hr1"), [0.5], flow_scale=0.5)
    yield Comparison("hr_down_half", half, case.output("hr_down_half"))


@replay(FAMILY, "sequence", atol=1)
def sequence(case: Case) -> Iterator[Comparison]:
    frames = case.tensors["in.frames"]
    model = EmaVfiInterpolator(network(case), EmaVfiSettings(tta="fast"))
    for length in case.meta["video_lens"]:
        video = official_interpolation(TensorFrames(frames, 24), length, InterpolationModel(model))
        got, want = (video.read(0, len(video)) * 255).round().to(torch.uint8), case.output(f"video_len_{length}")
        yield Comparison(f"{length} frames", got, want)
        # Bytes are cut off, not rounded: rounding would stay within 1, but in half of all bytes.
        share = (got != want).float().mean() if got.shape == want.shape else 1.0
        yield Comparison(f"{length} frames, share of other bytes", share, 0.0, atol=1e-3)


@manifest("ema_vfi")
def key_lists(content: Any) -> Iterator[KeyList]:
    for name, variant in content["variants"].items():
        official = {key: tuple(shape) for key, shape in variant["state_dict"].items()}
        for how, config in (
            ("from its sizes", standard_config(variant["F"], tuple(variant["depths"]))),
            ("as detected", detect(official)),
        ):
            yield KeyList(f"{name} {how}", shapes_of(EmaVfi(config, device="meta").state_dict()), official)
