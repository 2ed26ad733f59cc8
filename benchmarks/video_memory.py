"""Peak memory of a video by its length: 50 to 400 frames through the very loop of Stream Sampler.

    python -m benchmarks.video_memory [--record]

Reference: the 50-frame video. Each length runs in a process of its own on the tiny checkpoint; peak resident memory is
the kernel's own mark (VmHWM). Kept frames alone would add 0.4 MB each at this size.
"""

from __future__ import annotations

import sys

from benchmarks.memory import MemoryByLength, make_video

LENGTHS = (50, 100, 200, 400)
WIDTH, HEIGHT = 256, 128


def one_video(num_frames: int) -> dict[str, float]:
    """Make one video; peak memory in MiB, seconds, and how often the expensive parts ran."""
    import torch

    from hosting.inprocess import import_host, import_pack
    from streaming_core.models.registry import shapes_of
    from streaming_core.models.streamingsvd.detect import detect_streamingsvd
    from streaming_core.models.streamingsvd.file import split_file
    from streaming_core.models.streamingsvd.network import CamNetwork
    from streaming_core.models.streamingsvd.shapes import official_shapes
    from tiny_models.streamingsvd import TINY, random_weights

    import_host()
    import_pack()
    import comfy.samplers
    from comfyui_streamingt2v.nodes.host import cam as shared_cam
    from comfyui_streamingt2v.nodes.host import encoders
    from comfyui_streamingt2v.nodes.host.runs import videos
    from comfyui_streamingt2v.nodes.host.svd import build
    from comfyui_streamingt2v.nodes.host.svd import sampler as svd

    tensors = random_weights(official_shapes(TINY), dtype=torch.float32)
    config, weights = detect_streamingsvd(shapes_of(tensors)), split_file(tensors, "tiny")
    del tensors
    calls = {"clip_vision": 0, "pixel_encoder": 0}
    clip_vision = encoders.build_clip_vision(weights.clip_vision, config.clip_vision)
    model = build.build_video_unet(weights.unet, config.cam.unet)
    streaming_cam = shared_cam.build_cam(CamNetwork, weights.cam, config.cam)

    def counting(name):
        def count(*_):
            calls[name] += 1

        return count

    clip_vision.model.register_forward_hook(counting("clip_vision"))
    streaming_cam.network.controlnet.controlnet_cond_embedding.register_forward_hook(counting("pixel_encoder"))
    euler = comfy.samplers.sampler_object("euler")
    sampler = svd.SvdChunkSampler(
        model=model,
        cam=streaming_cam,
        vae=build.build_vae(weights.vae, config.image_encoder, config.first_stage),
        clip_vision=clip_vision,
        first_model=model,
        sampling=svd.SamplingSettings(euler, torch.tensor([700.0, 0.0]), 3.0, 1.5),
        first_sampling=svd.SamplingSettings(euler, torch.tensor([700.0, 0.0]), 3.0, 1.0),
    )
    plan = videos.plan_video(
        num_frames, 25, 7, WIDTH, HEIGHT, "crop", 0, 6, start_image=torch.rand(1, HEIGHT, WIDTH, 3)
    )
    return {**make_video(sampler, plan), **calls}


BENCHMARK = MemoryByLength(
    "video_memory",
    LENGTHS,
    one_video,
    promise=lambda found: found["clip_vision"] <= 2 and found["pixel_encoder"] == found["chunks"] - 1,
    columns={
        "frames": "frames",
        "chunks": "chunks",
        "peak MiB": "mib",
        "ratio": "ratio",
        "CLIP vision calls": "clip_vision",
        "pixel encoder calls": "pixel_encoder",
    },
    text=f"## Memory of a video by its length\n\nTiny network, {WIDTH}x{HEIGHT}, chunks of 25 with 7 overlapping, "
    "one step each, one process per length. **Peaks differ by {spread}** (promise at most 5 %). CLIP "
    "vision runs once for the start image and once for the anchor, the pixel encoder once per chunk.\n\n{table}\n\n"
    "What limits it: weights and one chunk; finished frames are on disk.",
)


if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__.splitlines()[0]))
