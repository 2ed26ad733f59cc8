"""Measures with what the host has: its videos, OPTICAL_FLOW, CLIP and CLIP_VISION, its progress bar and Cancel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from PIL import PngImagePlugin
from torch import Tensor, nn

from ....streaming_core.atomic import atomic_write
from ....streaming_core.errors import SettingsError
from ....streaming_core.frames import FrameStream, to_rgb
from ....streaming_core.loop.chunk_layout import ChunkLayout
from ....streaming_core.metrics.chart import draw_report
from ....streaming_core.metrics.clip_scores import ClipTools
from ....streaming_core.metrics.flow import RAFT_LARGE, FlowEstimator, raft_estimator
from ....streaming_core.metrics.mawe import Mawe
from ....streaming_core.metrics.measure import Measures, measure, measure_mawe
from ....streaming_core.metrics.report import as_csv, as_json, as_text
from ..progress import check_cancel, frames_bar
from ..video.files import output_file, workflow_metadata

# All-pairs correlations of one pair at 720x720, their pyramid and the recurrent unit's activations, float32.
RAFT_BYTES = 1_500_000_000


def work_device() -> torch.device:
    """Where pixels are worked on: CUDA devices know every operation that is needed, others may not."""
    device = mm.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")


def estimator(optical_flow: Any) -> FlowEstimator:
    """RAFT from an OPTICAL_FLOW of ours or of the host's own loader.

    Raises:
        SettingsError: the value is something else.
        WrongCheckpointError: the network is not RAFT-large.
    """
    network = getattr(optical_flow, "model", None)
    if not isinstance(network, nn.Module):
        raise SettingsError("optical_flow is not an optical flow model; connect Load RAFT")
    RAFT_LARGE.check(network.state_dict(), "the connected optical_flow")

    def flow(left: Tensor, right: Tensor) -> Tensor:
        # Asked for every time: another model may have taken the memory since.
        mm.load_models_gpu([optical_flow], memory_required=RAFT_BYTES)
        device = optical_flow.load_device
        return network(left.to(device), right.to(device))[-1].to(left)

    return raft_estimator(flow)


def text_embedding(clip: CLIP, text: str, width: int) -> Tensor:
    """Projected embedding `[width]` of a text, in the space of a CLIP vision model of that width.

    Raises:
        SettingsError: no part of the CLIP has that width, or its projection is not in the file it came from.
    """
    parts = {
        name.removeprefix("clip_"): part
        for name, part in clip.cond_stage_model.named_children()
        if hasattr(getattr(part, "transformer", None), "text_projection")
    }
    widths = {name: part.transformer.text_projection.weight.shape[0] for name, part in parts.items()}
    name = next((name for name, found in widths.items() if found == width), None)
    if name is None:
        found = ", ".join(f"{name}: {size}" for name, size in widths.items()) or "no CLIP text model"
        raise SettingsError(
            f"clip_vision gives embeddings of width {width}, clip has {found}; load the text encoder of the same CLIP"
        )
    part = parts[name]
    check_projection(part.transformer.text_projection.weight)
    tokens = clip.tokenize(text)[name]
    clip.load_model()
    try:
        part.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
        return part.encode_token_weights(tokens)[1][0].float().cpu()
    finally:
        part.reset_clip_options()


def check_projection(weight: Tensor) -> None:
    """Raise `SettingsError` for a projection that was never loaded: CLIPs of image checkpoints come without one."""
    weight = weight.detach().float()
    is_number = bool(weight.isfinite().all())
    spread = float(weight.std()) if is_number else 0.0
    identity = torch.eye(*weight.shape, device=weight.device)
    if not 1e-4 < spread < 1 or torch.equal(weight, identity):
        raise SettingsError(
            "the connected clip comes from a file without text_projection, so its texts cannot be compared with "
            "images; load a complete CLIP file such as that of openai/clip-vit-large-patch14"
        )


def clip_tools(
    clip_vision: ClipVisionModel, clip: CLIP | None = None, text: str = "", anchor: Tensor | None = None
) -> ClipTools:
    """CLIP scores from the host's models; the text score needs `clip` and a text."""

    def embed(frames: Tensor) -> Tensor:
        return clip_vision.encode_image(frames)["image_embeds"]

    anchor = None if anchor is None else to_rgb(anchor[:1])
    embedded = None
    if clip is not None and text.strip():
        width = embed(torch.zeros(1, 32, 32, 3)).shape[-1]
        embedded = text_embedding(clip, text.strip(), width)
    return ClipTools(embed, text=embedded, anchor=anchor, name="CLIP vision")


def host_mawe(stream: FrameStream, optical_flow: ModelPatcher) -> Mawe:
    """MAWE with the host's progress bar and Cancel."""
    return measure_mawe(stream, estimator(optical_flow), work_device(), frames_bar(stream), check_cancel)


def host_measures(
    stream: FrameStream, layout: ChunkLayout | None, optical_flow: ModelPatcher | None, clip: ClipTools | None
) -> Measures:
    """Every measure with the host's progress bar and Cancel."""
    return measure(
        stream,
        layout,
        flow=None if optical_flow is None else estimator(optical_flow),
        clip=clip,
        device=work_device(),
        progress=frames_bar(stream),
        check_cancel=check_cancel,
    )


@dataclass(frozen=True)
class SavedReport:
    """A report on disk: name and subfolder of its PNG, and its contents; `image` is `[1, H, W, 3]`."""

    name: str
    subfolder: str
    text: str
    json: str
    image: Tensor


def save_report(
    measures: Measures, prefix: str, prompt: Mapping[str, Any] | None, extra_pnginfo: Mapping[str, Any] | None
) -> SavedReport:
    """Write image, text, JSON and CSV below the output folder, under one name."""
    chart, texts = draw_report(measures), {".txt": as_text(measures), ".json": as_json(measures)}
    path, subfolder = output_file(prefix, ".png", *chart.size)
    metadata = PngImagePlugin.PngInfo()
    for key, value in workflow_metadata(prompt, extra_pnginfo).items():
        metadata.add_text(key, value if isinstance(value, str) else json.dumps(value))
    with atomic_write(path) as temporary:
        chart.save(temporary, format="PNG", pnginfo=metadata)
    for suffix, content in {**texts, ".csv": as_csv(measures)}.items():
        with atomic_write(path.with_suffix(suffix)) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n")
    pixels = torch.frombuffer(bytearray(chart.tobytes()), dtype=torch.uint8)
    image = pixels.view(1, chart.height, chart.width, 3).float() / 255
    return SavedReport(path.name, subfolder, texts[".txt"], texts[".json"], image)
