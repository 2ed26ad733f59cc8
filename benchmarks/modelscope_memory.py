"""Peak memory of a StreamingModelscope video by its length: 40 to 160 frames through the very loop of Stream Sampler.

    python -m benchmarks.modelscope_memory [--record]

Reference: the 40-frame video. Each length runs in a process of its own on the tiny checkpoint; peak resident memory is
the kernel's own mark (VmHWM). Kept frames alone would add 0.2 MB each at this size.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.memory import MemoryByLength, make_video

LENGTHS = (40, 80, 160)
SIDE = 128


def one_video(num_frames: int) -> dict[str, float]:
    """Make one video; peak memory in MiB, seconds, and how often the expensive parts ran."""

    from hosting.inprocess import import_host, import_pack
    from tiny_models.modelscope import write_tiny_modelscope

    import_host()
    import_pack()
    import folder_paths
    from comfyui_streamingt2v.nodes.host.modelscope import apm as modelscope_apm
    from comfyui_streamingt2v.nodes.host.modelscope import load as load_modelscope
    from comfyui_streamingt2v.nodes.host.modelscope import sampler as modelscope
    from comfyui_streamingt2v.nodes.host.runs import videos

    name = "memory.safetensors"
    write_tiny_modelscope(Path(folder_paths.get_folder_paths("checkpoints")[0]) / name)
    loaded = load_modelscope.load_streamingmodelscope(name)
    texts = [loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text)) for text in ("a cat", "")]
    calls = {"clip_vision": 0, "pixel_encoder": 0}

    def tokens(frame):
        calls["clip_vision"] += 1
        return modelscope_apm.anchor_tokens(loaded.clip_vision, loaded.apm, frame)

    def count(*_):
        calls["pixel_encoder"] += 1

    loaded.cam.network.unet.controlnet_cond_embedding.register_forward_hook(count)
    sampler = modelscope.ModelscopeChunkSampler(
        model=loaded.model,
        cam=loaded.cam,
        vae=loaded.vae,
        prompts=(texts[0],),
        negative=texts[1],
        tokens=tokens,
        first_model=loaded.model,
        sampling=modelscope.official_sampling(1),
        first_sampling=modelscope.first_clip_sampling(1),
    )
    plan = videos.plan_video(num_frames, 16, 8, SIDE, SIDE, "crop", 0, 0)
    return {**make_video(sampler, plan), **calls}


BENCHMARK = MemoryByLength(
    "modelscope_memory",
    LENGTHS,
    one_video,
    promise=lambda found: found["clip_vision"] == 1 and found["pixel_encoder"] == found["chunks"] - 1,
    columns={
        "frames": "frames",
        "chunks": "chunks",
        "peak MiB": "mib",
        "ratio": "ratio",
        "anchors encoded": "clip_vision",
        "pixel encoder calls": "pixel_encoder",
    },
    text=f"## Memory of a StreamingModelscope video by its length\n\nTiny network, {SIDE}x{SIDE}, chunks of 16 with "
    "8 overlapping, one step each, one process per length. **Peaks differ by {spread}** (promise at most "
    "5 %). The anchor is encoded once per video, control frames once per chunk.\n\n{table}\n\n"
    "What limits it: weights and one chunk; finished frames are on disk.",
)


if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__.splitlines()[0]))
