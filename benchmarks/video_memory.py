"""Peak memory of a video by its length: 50 to 400 frames through the very loop of Stream Sampler.

    python -m benchmarks.video_memory [--record]

Reference: the 50-frame video. Each length runs in a process of its own on the tiny checkpoint; peak resident memory is
the kernel's own mark (VmHWM). Kept frames alone would add 0.4 MB each at this size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

LENGTHS = (50, 100, 200, 400)
WIDTH, HEIGHT = 256, 128
# Freed blocks go back to the system at once; otherwise the mark shows what the allocator hoards, which varies by 15 %.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def one_video(num_frames: int) -> dict:
    """Make one video; peak memory in MiB, seconds, and how often the expensive parts ran."""
    import torch

    from hosting.inprocess import import_host, import_pack
    from streaming_core.models.registry import shapes_of
    from streaming_core.models.streamingsvd.detect import detect_streamingsvd
    from streaming_core.models.streamingsvd.file import split_file
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
    network = build.build_cam(weights.cam, config.cam)

    def embed(frame):
        calls["clip_vision"] += 1
        return svd.embed_image(clip_vision, frame)

    def count(*_):
        calls["pixel_encoder"] += 1

    network.model.controlnet.controlnet_cond_embedding.register_forward_hook(count)
    euler = comfy.samplers.sampler_object("euler")
    sampler = svd.SvdChunkSampler(
        model=model,
        cam=shared_cam.StreamingCam(network),
        vae=build.build_vae(weights.vae, config.image_encoder, config.first_stage),
        embed=embed,
        first_model=model,
        sampling=svd.SamplingSettings(euler, torch.tensor([700.0, 0.0]), 3.0, 1.5),
        first_sampling=svd.SamplingSettings(euler, torch.tensor([700.0, 0.0]), 3.0, 1.0),
    )
    request = videos.VideoRequest(
        num_frames, 25, 7, WIDTH, HEIGHT, "crop", 0, 6, start_image=torch.rand(1, HEIGHT, WIDTH, 3)
    )
    began = time.monotonic()
    with torch.inference_mode():
        stream = videos.make_video(sampler, request, "", 12)
    seconds = time.monotonic() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    chunks = request.plan().num_chunks
    return {"frames": len(stream), "chunks": chunks, "mib": int(peak.split()[1]) / 1024, "seconds": seconds, **calls}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the result to docs/benchmarks.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    import dev

    dev.ensure_environment("benchmarks.video_memory")
    if args.one:
        print(json.dumps(one_video(args.one)))
        return 0
    from benchmarks.record import record, table

    results = []
    for length in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.video_memory", "--one", str(length)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **MALLOC})
        results.append(json.loads(run.stdout.splitlines()[-1]))
        print(results[-1], flush=True)
    spread = max(r["mib"] for r in results) / min(r["mib"] for r in results) - 1
    once = all(r["clip_vision"] <= 2 and r["pixel_encoder"] == r["chunks"] - 1 for r in results)
    print(f"peak memory differs by {spread:.1%} between {LENGTHS[0]} and {LENGTHS[-1]} frames")
    if args.record:
        header = ["frames", "chunks", "peak MiB", "ratio", "CLIP vision calls", "pixel encoder calls"]
        first = results[0]["mib"]
        rows = [
            [
                r["frames"],
                r["chunks"],
                f"{r['mib']:.0f}",
                f"{r['mib'] / first:.3f}",
                r["clip_vision"],
                r["pixel_encoder"],
            ]
            for r in results
        ]
        body = (
            f"## Memory of a video by its length\n\nTiny network, {WIDTH}x{HEIGHT}, chunks of 25 with 7 overlapping, "
            f"one step each, one process per length. **Peaks differ by {spread:.1%}** (promise at most 5 %). CLIP "
            "vision runs once for the start image and once for the anchor, the pixel encoder once per chunk.\n\n"
            + table(header, rows)
            + "\n\nWhat limits it: weights and one chunk; finished frames are on disk."
        )
        record("video_memory", "python -m benchmarks.video_memory --record", body)
    return int(spread > 0.05 or not once)


if __name__ == "__main__":
    sys.exit(main())
