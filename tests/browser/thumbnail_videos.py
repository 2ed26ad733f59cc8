"""Videos for the images of the templates: each template on the real host, with the demo models in place of its own.

`RECIPES` says per template what is exchanged: which widgets come from the demo template of the same pipeline (files,
sizes, sampling), how many frames are made, and what lies in the folder of inputs. Everything else stays as shipped.
Input images and videos are videos of `training/videos.py` that no model was trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dev
from hosting.report import HostError
from hosting.server import HostServer
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import TensorFrames, write_video
from training.demo import to_image
from training.videos import HELD_OUT, make_video

Prompt = dict[str, dict]
FOLDER = dev.ROOT / "workflows"
SIZE, FPS = 96, 6
SVD, TEXT = "demo_image_to_video", "demo_text_to_video"
LOAD_SVD, SVD_CHUNKS = "StreamingT2VLoadStreamingSVD", "StreamingT2VStreamingSVDChunkSampler"
ANY_CHUNKS, VIDEO, EMA_VFI = "StreamingT2VAnyModelChunkSampler", "StreamingT2VStreamSampler", "StreamingT2VLoadEmaVfi"
STREAMING_SVD = (LOAD_SVD, SVD_CHUNKS, VIDEO)
ENHANCE = "StreamingT2VEnhanceVideo"
TEXT_CHUNKS, DDIM = "StreamingT2VModelscopeChunkSampler", "StreamingT2VModelscopeDdim"
LOAD_TEXT = "StreamingT2VLoadStreamingModelscope"
LOAD_UNET, LVDM_CHUNKS = "StreamingT2VLoadModelscope", "StreamingT2VLvdmChunkSampler"
KEYFRAMES = "StreamingT2VKeyframePlan"
DROPLET_CHUNKS, PLAN = "StreamingT2VDropletVideoChunkSampler", "StreamingT2VChunkPlan"
MODELSCOPE = (LOAD_TEXT, LOAD_UNET, TEXT_CHUNKS, VIDEO)


@dataclass(frozen=True)
class Footage:
    """A drawn video for the folder of inputs; a name of an image gets its first frame."""

    name: str
    seed: int
    num_frames: int = 1

    def write(self, folder: Path, size: int) -> None:
        frames = make_video(HELD_OUT + self.seed, size).render(0, self.num_frames).frames
        if self.name.endswith(".png"):
            to_image(frames[0]).save(folder / self.name)
        else:
            write_video(TensorFrames(frames.movedim(1, -1), FPS), folder / self.name)


@dataclass(frozen=True)
class Recipe:
    """What is exchanged in a template, and which frames its image shows.

    demo, borrowed: the demo template whose widget values the nodes of these types take. inputs: values by node type,
    over the borrowed ones. words: prompts, old to new. adapt: further changes. footage: the file that the template
    loads. video_of: the template whose video is that file, named `video.mp4`. consecutive: frames in a row from the
    middle of the video, not from all over it. label: what is written on a frame, by its number. size: pixels of the
    square frames.
    """

    demo: str | None = None
    borrowed: Sequence[str] = ()
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[Prompt, Mapping], None] | None = None
    footage: Footage | None = None
    video_of: str | None = None
    consecutive: bool = False
    label: Callable[[int], str] = str
    size: int = SIZE


def nodes_of(prompt: Prompt, node_type: str) -> list[str]:
    return [name for name, node in prompt.items() if node["class_type"] == node_type]


def replace_node(prompt: Prompt, node_type: str, *sources: Sequence) -> None:
    """Take a node out; what it gave comes from `sources`, one (node, output) for each of its outputs."""
    [gone] = nodes_of(prompt, node_type)
    del prompt[gone]
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == gone:
                node["inputs"][name] = list(sources[value[1]])


def widgets(prompt: Prompt, node_type: str) -> dict[str, Any]:
    """What is set, not connected, on the node of a type."""
    [node] = nodes_of(prompt, node_type)
    return {name: value for name, value in prompt[node]["inputs"].items() if not isinstance(value, list)}


def video_model(prompt: Prompt, demo: Mapping) -> None:
    """The demo's video UNet, without CAM, as the native image-to-video model it also is: like any SVD.

    As the note in the template says: other loaders, SVD's conditioning, and the sampling that this model uses.
    """
    chunks, video = widgets(demo, SVD_CHUNKS), widgets(demo, VIDEO)
    prompt["load"] = {"class_type": LOAD_SVD, "inputs": widgets(demo, LOAD_SVD)}
    prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    prompt["conditioning"] = {
        "class_type": "SVD_img2vid_Conditioning",
        "inputs": {
            "clip_vision": ["load", 1],
            "init_image": ["image", 0],
            "vae": ["load", 2],
            "width": video["width"],
            "height": video["height"],
            "video_frames": FRAMES,
            "motion_bucket_id": chunks["motion_bucket_id"],
            "fps": chunks["model_fps"],
            "augmentation_level": chunks["augmentation_level"],
        },
    }
    replace_node(prompt, "UNETLoader", ("load", 0))
    replace_node(prompt, "VAELoader", ("load", 2))
    replace_node(prompt, "ModelSamplingSD3", ("load", 0))
    for sampler in nodes_of(prompt, "KSampler") + nodes_of(prompt, ANY_CHUNKS):
        prompt[sampler]["inputs"] |= {
            "positive": ["conditioning", 0],
            "negative": ["conditioning", 1],
            "cfg": chunks["cfg"],
        }
        prompt[sampler]["inputs"].pop("clip", None)
    for node in nodes_of(prompt, "CLIPTextEncode") + nodes_of(prompt, "CLIPLoader"):
        del prompt[node]


def native_chunks(prompt: Prompt, demo: Mapping) -> None:
    video_model(prompt, demo)
    steps = widgets(demo, SVD_CHUNKS)["steps"]
    set_inputs(prompt, "KSamplerSelect", sampler_name="euler")
    set_inputs(prompt, "BasicScheduler", scheduler="karras", steps=steps)
    for node_type, name, source in ((ANY_CHUNKS, "clip_vision", ["load", 1]), (VIDEO, "start_image", ["image", 0])):
        [node] = nodes_of(prompt, node_type)
        prompt[node]["inputs"][name] = source


def native_keyframes(prompt: Prompt, demo: Mapping) -> None:
    """Gaps by the demo's EMA-VFI, as the note in the template says: its video UNet takes a first frame only."""
    native_chunks(prompt, demo)
    prompt["vfi"] = {"class_type": EMA_VFI, "inputs": widgets(demo, EMA_VFI)}
    [gaps] = nodes_of(prompt, "StreamingT2VFillBetween")
    del prompt[gaps]["inputs"]["chunk_sampler"]
    prompt[gaps]["inputs"]["interp_model"] = ["vfi", 0]


def native_windows(prompt: Prompt, demo: Mapping) -> None:
    video_model(prompt, demo)
    replace_node(prompt, "EmptyHunyuanLatentVideo", ("conditioning", 2))
    chunks, video = widgets(demo, SVD_CHUNKS), widgets(demo, VIDEO)
    set_inputs(prompt, "KSampler", sampler_name="euler", scheduler="karras", steps=chunks["steps"])
    window = video["chunk_frames"]
    set_inputs(prompt, "StreamingT2VRandomizedBlending", window=window, overlap=window // 2)
    set_inputs(prompt, "CreateVideo", fps=video["fps"])


def sampled_start_frames(prompt: Prompt, demo: Mapping) -> None:
    """The first clip with DDIM of eta 1 as in the demo's template: so small a model needs fresh noise in every step."""
    for node_type in (DDIM, "EmptyLatentImage", "SamplerCustom", "VAEDecode"):
        prompt[node_type] = {"class_type": node_type, "inputs": widgets(demo, node_type)}
    [chunks], [video] = nodes_of(prompt, TEXT_CHUNKS), nodes_of(prompt, VIDEO)
    given = prompt[chunks]["inputs"]
    prompt["SamplerCustom"]["inputs"] |= {
        "model": given["first_model"],
        "positive": given["positive"],
        "negative": given["negative"],
        "sampler": [DDIM, 0],
        "sigmas": [DDIM, 1],
        "latent_image": ["EmptyLatentImage", 0],
    }
    prompt["VAEDecode"]["inputs"] |= {"samples": ["SamplerCustom", 0], "vae": given["vae"]}
    given["sampler"] = [DDIM, 0]
    prompt[video]["inputs"]["start_frames"] = ["VAEDecode", 0]


def text_model_held_by_a_mask(prompt: Prompt, demo: Mapping) -> None:
    """The demo's text-to-video UNet in place of LVDM's: short, too, and continued by a mask in the same way."""
    prompt["load"] = {"class_type": LOAD_TEXT, "inputs": widgets(demo, LOAD_TEXT)}
    prompt["model"] = {"class_type": LOAD_UNET, "inputs": widgets(demo, LOAD_UNET)}
    prompt["ddim"] = {"class_type": DDIM, "inputs": widgets(demo, DDIM)}
    replace_node(prompt, "StreamingT2VLoadLvdm", ("model", 0), ("load", 3), ("load", 1))
    [chunks] = nodes_of(prompt, LVDM_CHUNKS)
    given = {name: prompt[chunks]["inputs"][name] for name in ("model", "vae", "positive", "negative")}
    prompt[chunks] = {
        "class_type": ANY_CHUNKS,
        "inputs": {
            **given,
            "sampler": ["ddim", 0],
            "sigmas": ["ddim", 1],
            "cfg": widgets(demo, TEXT_CHUNKS)["first_cfg"],
            "held_noise": 0.0,
            "image_condition": "anchor",
            "previous_guidance": 0.0,
        },
    }


def towers_of_text_model(prompt: Prompt, demo: Mapping) -> None:
    """Text tower, image tower and VAE of the demo StreamingModelscope, which the demo enhancer was trained with."""
    prompt["towers"] = {"class_type": LOAD_TEXT, "inputs": widgets(demo, LOAD_TEXT)}
    for output, node_type in enumerate(("CLIPLoader", "CLIPVisionLoader", "VAELoader"), start=1):
        replace_node(prompt, node_type, ("towers", output))


def text_of_text_model(prompt: Prompt, demo: Mapping) -> None:
    """Prompts by the text tower of the demo StreamingModelscope, which the demo DropletVideo was trained with.

    The host has T5 XXL in full size only.
    """
    prompt["towers"] = {"class_type": LOAD_TEXT, "inputs": widgets(demo, LOAD_TEXT)}
    for name, text in (("positive", make_video(HELD_OUT + DROPLET_VIDEO).caption(0)), ("negative", "")):
        prompt[name] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["towers", 1], "text": text}}
    replace_node(prompt, "StreamingT2VDropletVideoText", ("positive", 0), ("negative", 0))
    [loader] = nodes_of(prompt, "CLIPLoader")
    del prompt[loader]


DROPLET_VIDEO, DROPLET_SIZE, DROPLET_CHUNK, DROPLET_OVERLAP = 8, 64, 17, 4
"""The video whose first frame DropletVideo begins with, and frames of its chunks."""
DROPLET_FRAMES = DROPLET_CHUNK + 2 * (DROPLET_CHUNK - DROPLET_OVERLAP)


def droplet_label(frame: int) -> str:
    """With the template's motion setting of its chunk."""
    return f"{frame}: {(16, 4, 32)[max(0, frame - DROPLET_OVERLAP) // (DROPLET_CHUNK - DROPLET_OVERLAP)]}"


CHUNK, OVERLAP = 8, 3
"""Frames of a chunk of the demo's StreamingSVD."""
FRAMES = CHUNK + 6 * (CHUNK - OVERLAP)
OWN_FRAMES = 14
RECIPES: dict[str, Recipe] = {
    "demo_image_to_video": Recipe(inputs={VIDEO: {"num_frames": FRAMES}}),
    "demo_text_to_video": Recipe(),
    "demo_hierarchical_video": Recipe(),
    "streamingsvd_image_to_video": Recipe(
        SVD, STREAMING_SVD, {VIDEO: {"num_frames": FRAMES}}, footage=Footage("example.png", 2)
    ),
    "resume_and_reroll": Recipe(
        SVD,
        STREAMING_SVD,
        {
            VIDEO: {"run_name": "my_video"},
            PLAN: {
                "num_frames": FRAMES,
                "fps": FPS,
                "chunk_frames": CHUNK,
                "overlap_frames": OVERLAP,
            },
            "StreamingT2VPreflight": {"width": SIZE, "height": SIZE},
        },
        footage=Footage("example.png", 3),
    ),
    "extend_my_video": Recipe(
        SVD,
        STREAMING_SVD,
        {
            "StreamingT2VExtendVideo": {
                "new_frames": 25,
                "tail_frames": CHUNK,
                "fps": FPS,
                "width": SIZE,
                "height": SIZE,
            },
        },
        footage=Footage("my_video.mp4", 4, OWN_FRAMES),
        label=lambda frame: f"{frame} {'own' if frame < OWN_FRAMES else 'new'}",
    ),
    "long_video_any_model": Recipe(
        SVD,
        (VIDEO,),
        {VIDEO: {"num_frames": FRAMES, "anchor_frame": 0}},
        adapt=native_chunks,
        footage=Footage("example.png", 5),
    ),
    "hierarchical_video_any_model": Recipe(
        SVD,
        (VIDEO,),
        {KEYFRAMES: {"num_frames": 69, "stride": 4, "chunk_frames": CHUNK, "overlap_frames": OVERLAP}}
        | {VIDEO: {"anchor_frame": 0}},
        adapt=native_keyframes,
        footage=Footage("example.png", 5),
    ),
    "randomized_blending_any_model": Recipe(SVD, adapt=native_windows, footage=Footage("example.png", 6)),
    "streamingmodelscope_text_to_video": Recipe(
        TEXT,
        MODELSCOPE,
        {VIDEO: {"num_frames": 32}},
        words={"A cat running on the street": "a blue ball moving left"},
        adapt=sampled_start_frames,
    ),
    "lvdm_text_to_video": Recipe(
        TEXT,
        (VIDEO,),
        {VIDEO: {"num_frames": 24}},
        words={"A waterfall in a forest, sunny day": "a blue ball moving left"},
        adapt=text_model_held_by_a_mask,
    ),
    "interpolate_video": Recipe(
        SVD,
        (EMA_VFI,),
        footage=Footage("video.mp4", 7, 12),
        consecutive=True,
        label=lambda frame: f"{frame / 2:g}{' made' if frame % 2 else ''}",
    ),
    "enhance_video": Recipe(
        TEXT,
        inputs={
            "LoadVideo": {"file": "demo_worn.mp4"},
            "StreamingT2VLoadEnhancer": {"unet_name": "demo_i2vgenxl.safetensors"},
            ENHANCE: {"width": SIZE, "height": SIZE, "strength": 0.2, "steps": 16, "cfg": 1.0}
            | {"window": CHUNK, "overlap": OVERLAP},
        },
        adapt=towers_of_text_model,
    ),
    "dropletvideo_image_to_video": Recipe(
        TEXT,
        inputs={
            "StreamingT2VLoadDropletVideo": {
                "model_name": "demo_dropletvideo.safetensors",
                "vae_name": str(Path("demo_dropletvideo", "demo_dropletvideo_vae.safetensors")),
            },
            DROPLET_CHUNKS: {"steps": 20, "cfg": 1.0, "quality": ""},
            PLAN: {"num_frames": DROPLET_FRAMES, "chunk_frames": DROPLET_CHUNK},
            VIDEO: {"width": DROPLET_SIZE, "height": DROPLET_SIZE},
        },
        adapt=text_of_text_model,
        footage=Footage("example.png", DROPLET_VIDEO),
        label=droplet_label,
        size=DROPLET_SIZE,
    ),
    "measure_video": Recipe(
        inputs={"StreamingT2VVideoReport": {"chunks": f"{CHUNK},{CHUNK - OVERLAP}"}},
        video_of="streamingsvd_image_to_video",
    ),
}


def make_prompt(name: str, object_info: Mapping) -> Prompt:
    """The template's prompt after its recipe."""
    recipe = RECIPES[name]
    prompt = to_prompt(load_workflow(FOLDER / f"{name}.json"), object_info)
    demo = to_prompt(load_workflow(FOLDER / f"{recipe.demo}.json"), object_info) if recipe.demo else {}
    if recipe.adapt is not None:
        recipe.adapt(prompt, demo)
    for node_type in recipe.borrowed:
        free = widgets(prompt, node_type)
        values = {name: value for name, value in widgets(demo, node_type).items() if name in free}
        set_inputs(prompt, node_type, **values)
    for node_type, values in recipe.inputs.items():
        set_inputs(prompt, node_type, **values)
    for old, new in recipe.words.items():
        found = [node for node in prompt.values() if node["inputs"].get("text") == old]
        if not found:
            raise ValueError(f"no node of {name} has the text {old!r}")
        for node in found:
            node["inputs"]["text"] = new
    return prompt


def make_output(server: HostServer, name: str) -> Path:
    """Runs a template after its recipe on a server that has the demo models; its video, or a report's image."""
    recipe, inputs = RECIPES[name], server.base / "input"
    if recipe.footage is not None:
        recipe.footage.write(inputs, recipe.size)
    if recipe.video_of is not None:
        shutil.copy(make_output(server, recipe.video_of), inputs / "video.mp4")
    report = server.run(make_prompt(name, server.object_info()), timeout=1800).check()
    videos = [output.path for output in report.outputs if output.path.suffix == ".mp4"]
    images = [output.path for output in report.outputs if output.path.suffix == ".png"]
    if not videos + images:
        raise HostError(f"{name} wrote neither a video nor an image")
    return (videos or images)[0]
