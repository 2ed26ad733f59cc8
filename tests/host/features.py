"""What the imported host can do, asked of the host itself: one short word per row of the tables in docs/hosts.md.

`python -m tests.host.features` prints the column of the host that COMFYUI_PATH names.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import torch

PROBES: dict[str, Callable[[], object]] = {}


def probe(row: str):
    """Registers the function that finds the answer for one row."""

    def register(function: Callable[[], object]) -> Callable[[], object]:
        assert row not in PROBES, row
        PROBES[row] = function
        return function

    return register


def find(path: str):
    """The object at "module:attribute.attribute", or None."""
    module, _, attributes = path.partition(":")
    try:
        found = importlib.import_module(module)
        for name in filter(None, attributes.split(".")):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return None
    return found


def has(row: str, path: str) -> None:
    PROBES[row] = lambda: find(path) is not None


def takes(row: str, path: str, *arguments: str) -> None:
    """The callable at `path` accepts every one of these arguments by name."""
    PROBES[row] = lambda: set(arguments) <= set(inspect.signature(find(path)).parameters)


HANDLER = "comfy.context_windows:IndexListContextHandler"
WINDOW = "comfy.context_windows:IndexListContextWindow"
INPUTS = "comfy_api.latest:io."

has("callback `RESIZE_COND_ITEM`", "comfy.context_windows:IndexListCallbacks.RESIZE_COND_ITEM")
takes("handler argument `cond_retain_index_list`", HANDLER, "cond_retain_index_list")
takes("handler argument `split_conds_to_windows`", HANDLER, "split_conds_to_windows")
takes("handler argument `freenoise`", HANDLER, "freenoise")
takes("handler argument `causal_window_fix`", HANDLER, "causal_window_fix")
takes("handler argument `latent_retain_index_list`", HANDLER, "latent_retain_index_list")
takes("window argument `total_frames`", WINDOW, "total_frames")
takes("window argument `context_overlap`", WINDOW, "context_overlap")
has("`create_prepare_sampling_wrapper`", "comfy.context_windows:create_prepare_sampling_wrapper")
has("`slice_cond`", "comfy.context_windows:slice_cond")
has("`BaseModel.resize_cond_for_context_window`", "comfy.model_base:BaseModel.resize_cond_for_context_window")

takes("input argument `extra_dict` on widgets", INPUTS + "Int.Input", "extra_dict")
takes("input argument `raw_link`", INPUTS + "Int.Input", "raw_link")
takes("input argument `advanced`", INPUTS + "Int.Input", "advanced")
takes("`Combo.Input(control_after_generate=)`", INPUTS + "Combo.Input", "control_after_generate")
has("`io.ControlAfterGenerate`", INPUTS + "ControlAfterGenerate")
takes("`NodeOutput(ui=, expand=, block_execution=)`", INPUTS + "NodeOutput", "ui", "expand", "block_execution")
takes("`Output(is_output_list=)`", INPUTS + "Image.Output", "is_output_list")
for kind in ("MatchType", "MultiType", "DynamicCombo", "Autogrow", "NodeReplace"):
    has(f"`io.{kind}`", INPUTS + kind)
has("`ComfyAPI().node_replacement`", "comfy_api.latest:ComfyAPI_latest.NodeReplacement")

has("`VideoInput.as_trimmed`", "comfy_api.latest:Input.Video.as_trimmed")
has("`VideoInput.get_frame_count`", "comfy_api.latest:Input.Video.get_frame_count")
takes(
    "`save_to(bit_depth=, crf=, color_space=)`",
    "comfy_api.latest:InputImpl.VideoFromComponents.save_to",
    "bit_depth",
    "crf",
    "color_space",
)
has("`InputImpl.VideoFromFile`", "comfy_api.latest:InputImpl.VideoFromFile")
takes("`VideoFromFile(start_time=, duration=)`", "comfy_api.latest:InputImpl.VideoFromFile", "start_time", "duration")
takes("`VideoFromComponents(bit_depth=)`", "comfy_api.latest:InputImpl.VideoFromComponents", "bit_depth")
takes("`VideoComponents(alpha=)`", "comfy_api.latest:Types.VideoComponents", "alpha")
has("`InputImpl.VideoFromList`", "comfy_api.latest:InputImpl.VideoFromList")
has("`ui.PreviewVideo`", "comfy_api.latest:UI.PreviewVideo")

has("`ModelPatcher.is_dynamic`", "comfy.model_patcher:ModelPatcher.is_dynamic")
has("`CoreModelPatcher`", "comfy.model_patcher:CoreModelPatcher")
has("`ModelPatcher.set_additional_models`", "comfy.model_patcher:ModelPatcher.set_additional_models")
has("`ModelPatcher.set_attachments`", "comfy.model_patcher:ModelPatcher.set_attachments")
takes(
    "`load_models_gpu(memory_required=, minimum_memory_required=)`",
    "comfy.model_management:load_models_gpu",
    "memory_required",
    "minimum_memory_required",
)
has("`intermediate_dtype()`", "comfy.model_management:intermediate_dtype")
has("`clip_vision.clip_preprocess`", "comfy.clip_vision:clip_preprocess")
has("`clip_model.clip_preprocess`", "comfy.clip_model:clip_preprocess")
takes("`ops.pick_operations(scaled_fp8=)`", "comfy.ops:pick_operations", "scaled_fp8")
has("`ops.cast_to_input`", "comfy.ops:cast_to_input")
takes("`VAE(sd=, config=, dtype=)`", "comfy.sd:VAE", "sd", "config", "dtype")
takes("`CFGGuider.inner_set_conds(conds)`", "comfy.samplers:CFGGuider.inner_set_conds", "conds")
takes(
    "`calc_cond_batch(model, conds, x_in, timestep, model_options)`",
    "comfy.samplers:calc_cond_batch",
    "model",
    "conds",
    "x_in",
    "timestep",
    "model_options",
)
takes("`prepare_callback(model, steps)`", "latent_preview:prepare_callback", "model", "steps")
takes("`ProgressBar(node_id=)`", "comfy.utils:ProgressBar", "node_id")
takes("`load_torch_file(return_metadata=)`", "comfy.utils:load_torch_file", "return_metadata")
has("`GraphBuilder`", "comfy_execution.graph_utils:GraphBuilder")
has("nodes for `INTERP_MODEL`", "comfy_extras.nodes_frame_interpolation:FrameInterpolate")
has("nodes for `OPTICAL_FLOW`", "comfy_extras.nodes_void:OpticalFlowLoader")
has(
    "`ModelPatcher.set_model_middle_block_after_patch`",
    "comfy.model_patcher:ModelPatcher.set_model_middle_block_after_patch",
)


def handler(**settings):
    windows = find("comfy.context_windows")
    schedule = windows.get_matching_context_schedule("standard_static")
    method = windows.get_matching_fuse_method("flat")
    known = inspect.signature(windows.IndexListContextHandler).parameters
    return windows.IndexListContextHandler(schedule, method, **{k: v for k, v in settings.items() if k in known})


def window(*frames: int, total: int):
    kind = find(WINDOW)
    known = inspect.signature(kind).parameters
    return kind(list(frames), **{k: v for k, v in {"dim": 0, "total_frames": total}.items() if k in known})


@probe("frame-wise `model_conds` are sliced for `dim=0`")
def slices_framewise_conds():
    conds = [{"model_conds": {"c_concat": find("comfy.conds:CONDRegular")(torch.arange(8.0).reshape(8, 1, 1, 1))}}]
    settings = {"context_length": 4, "context_overlap": 0, "dim": 0, "causal_window_fix": False}
    used = handler(**settings)
    used._model = type("NoSlicingOfItsOwn", (), {"resize_cond_for_context_window": lambda self, *a, **k: None})()
    found = used.get_resized_cond(conds, torch.zeros(8, 4, 1, 1), window(4, 5, 6, 7, total=8))
    return len(found[0]["model_conds"]["c_concat"].cond) == 4


def step_after(timestep: torch.Tensor) -> object:
    used = handler(context_length=4, context_overlap=0, dim=0)
    used._step = 7
    try:
        used.set_step(timestep, {"transformer_options": {"sample_sigmas": torch.tensor([3.0, 2.0, 1.0, 0.0])}})
    except Exception:
        return "raises"
    return {1: "step found", 7: "last step kept"}[used._step]


@probe("stock `set_step`, five frames in the batch")
def set_step_on_a_batch():
    return step_after(torch.full((5,), 2.0))


@probe("stock `set_step` between two sigmas")
def set_step_between_sigmas():
    return step_after(torch.full((1,), 1.5))


@probe("`num_video_frames` for a window of four frames, `dim=0`")
def frames_of_a_window():
    conds = [{"model_conds": {"num_video_frames": find("comfy.conds:CONDConstant")(8)}}]
    used = handler(context_length=4, context_overlap=0, dim=0, causal_window_fix=False)
    used._model = type("NoSlicingOfItsOwn", (), {"resize_cond_for_context_window": lambda self, *a, **k: None})()
    found = used.get_resized_cond(conds, torch.zeros(8, 4, 1, 1), window(4, 5, 6, 7, total=8))
    return found[0]["model_conds"]["num_video_frames"].cond


@probe("`optimized_attention(transformer_options=)`")
def attention_takes_options():
    tokens = torch.zeros(1, 2, 4)
    try:
        find("comfy.ldm.modules.attention:optimized_attention")(tokens, tokens, tokens, 1, transformer_options={})
    except TypeError:
        return False
    return True


@probe("keywords of a fuse function")
def fuse_keywords():
    given: dict = {}
    used = handler(context_length=4, context_overlap=0, dim=0)
    used.fuse_method = dataclasses.replace(used.fuse_method, func=lambda length, **keywords: given.update(keywords))
    find("comfy.context_windows").get_context_weights(4, 8, [0, 1, 2, 3], used)
    return ", ".join(f"`{name}`" for name in given)


@probe("fields of `io.Schema` beyond those of 0.3.75")
def schema_fields():
    known = (
        "node_id display_name category inputs outputs hidden description is_input_list is_output_node is_deprecated "
        "is_experimental is_api_node not_idempotent enable_expand"
    ).split()
    fields = [field.name for field in dataclasses.fields(find("comfy_api.latest:io.Schema"))]
    assert set(known) <= set(fields), fields
    return ", ".join(f"`{name}`" for name in fields if name not in known)


@probe("`Schema(inputs=)` left out")
def schema_inputs():
    return repr(find("comfy_api.latest:io.Schema")(node_id="x").inputs)


@probe("containers and codecs of `save_to`")
def containers():
    types = find("comfy_api.latest:Types")
    members = [*types.VideoContainer, *types.VideoCodec]
    return ", ".join(member.value for member in members if member.value != "auto")


@probe("a `VideoInput` subclass without `as_trimmed`")
def own_video():
    kind = type("Own", (find("comfy_api.latest:Input.Video"),), {"get_components": None, "save_to": None})
    try:
        kind()
    except TypeError:
        return "cannot be instantiated"
    return "works"


@probe("base class of the Cancel exception")
def cancel_base():
    return f"`{find('comfy.model_management:InterruptProcessingException').__base__.__name__}`"


@probe("`clone()` of an object in `model_options`")
def clone_shares():
    import comfy.model_patcher

    patcher = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), torch.device("cpu"), torch.device("cpu"))
    patcher.model_options["context_handler"] = held = handler(context_length=4, context_overlap=0, dim=0)
    return "same object" if patcher.clone().model_options["context_handler"] is held else "deep copy"


@probe("wrapper kinds")
def wrapper_kinds():
    kinds = {name for name in vars(find("comfy.patcher_extension:WrappersMP")) if name.isupper()}
    wanted = "OUTER_SAMPLE PREPARE_SAMPLING SAMPLER_SAMPLE PREDICT_NOISE CALC_COND_BATCH APPLY_MODEL DIFFUSION_MODEL"
    return f"{len(kinds)}" if kinds == set(wanted.split()) else sorted(kinds)


def tiny_unet_says(patches: dict) -> str:
    """`works` or `raises`: one call of a small UNet with these patches."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    net = UNetModel(
        image_size=8,
        in_channels=4,
        model_channels=32,
        out_channels=4,
        num_res_blocks=[1],
        dropout=0,
        channel_mult=(1,),
        num_heads=1,
        transformer_depth=[0],
        transformer_depth_output=[0, 0],
        context_dim=8,
        transformer_depth_middle=0,
        use_spatial_transformer=True,
        dtype=torch.float32,
    )
    try:
        net(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 1, 8), transformer_options={"patches": patches})
    except TypeError:
        return "raises"
    return "works"


@probe("output-block patch that returns `None` as skip")
def none_skip():
    # The next layer expects the skip's channels: the patch joins them itself.
    return tiny_unet_says({"output_block_patch": [lambda h, skip, options: (torch.cat([h, skip], 1), None)]})


@probe('output-block patch finds its position in `transformer_options["block"]`')
def block_position():
    seen = []

    def patch(h, skip, options):
        seen.append(options["block"])
        return h, skip

    assert tiny_unet_says({"output_block_patch": [patch]}) == "works"
    return seen == [("output", 0), ("output", 1)]


@probe("patch kind `middle_block_after_patch`")
def middle_after():
    seen = []

    def patch(state):
        seen.append(state)
        return state

    assert tiny_unet_says({"middle_block_after_patch": [patch]}) == "works"
    return bool(seen)


def answer(row: str) -> str:
    found = PROBES[row]()
    return {True: "yes", False: "no", "": "none"}.get(found, str(found))


def table_rows(document: Path) -> dict[str, dict[str, str]]:
    """Row name -> {host version: cell} of every table in the document that has columns named by version."""
    rows: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in document.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif not set(cells[0]) <= set("-: "):
            versions = {c: cell for c, cell in zip(columns, cells, strict=True) if re.fullmatch(r"\d+\.\d+\.\d+", c)}
            if versions:
                rows[cells[0]] = versions
    return rows


def main() -> None:
    from hosting.inprocess import import_host

    import_host()
    for row in PROBES:
        print(f"{row}\t{answer(row)}")


if __name__ == "__main__":
    main()
