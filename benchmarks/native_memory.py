"""Peak memory of a video by any of the host's models by its length: 5 to 40 chunks through the loop of Stream Sampler.

    python -m benchmarks.native_memory [--record]

Reference: a video of 5 chunks. A tiny Wan with a VAE of plain arithmetic in its place; each length in a process of its
own; peak resident memory is the kernel's own mark (VmHWM). Kept frames alone would add 6 MB per chunk at this size: 210
MB from 5 to 40 chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CHUNKS = (5, 20, 40)
SIDE, CHUNK_FRAMES, OVERLAP_FRAMES = 256, 17, 9


def one_video(num_chunks: int) -> dict:
    """Make one video; peak memory in MiB, seconds, and how often images were encoded."""
    import torch

    from hosting.inprocess import import_host, import_pack

    import_host()
    import_pack()
    import comfy.samplers
    from comfyui_streamingt2v.nodes.host.native import sampler as native
    from comfyui_streamingt2v.nodes.host.runs import videos

    from tiny_models import native as tiny
    from tiny_models import native_vae

    kind = tiny.WAN
    vae = native_vae.plain_vae(kind)
    model = kind.make()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
    euler = comfy.samplers.sampler_object("euler")
    sampler = native.AnyModelChunkSampler(model, vae, kind.conditioning(1), kind.conditioning(2), euler, sigmas, 2.0)
    num_frames = CHUNK_FRAMES + (num_chunks - 1) * (CHUNK_FRAMES - OVERLAP_FRAMES)
    request = videos.VideoRequest(num_frames, CHUNK_FRAMES, OVERLAP_FRAMES, SIDE, SIDE, "crop", 0, 0)
    began = time.monotonic()
    with torch.inference_mode():
        stream = videos.make_video(sampler, request, "", 16)
    seconds = time.monotonic() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    chunks = request.plan().num_chunks
    mib = int(peak.split()[1]) / 1024
    return {"frames": len(stream), "chunks": chunks, "mib": mib, "seconds": seconds, "encoded": sum(vae.encoded)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the result to docs/benchmarks.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    import dev

    dev.ensure_environment("benchmarks.native_memory")
    if args.one:
        print(json.dumps(one_video(args.one)))
        return 0
    from benchmarks.record import record, table
    from benchmarks.video_memory import MALLOC

    results = []
    for chunks in CHUNKS:
        command = [sys.executable, "-m", "benchmarks.native_memory", "--one", str(chunks)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **MALLOC})
        results.append(json.loads(run.stdout.splitlines()[-1]))
        print(results[-1], flush=True)
    spread = max(r["mib"] for r in results) / min(r["mib"] for r in results) - 1
    never = all(r["encoded"] == 0 for r in results)
    print(f"peak memory differs by {spread:.1%} between {CHUNKS[0]} and {CHUNKS[-1]} chunks")
    if args.record:
        first = results[0]["mib"]
        rows = [[r["chunks"], r["frames"], f"{r['mib']:.0f}", f"{r['mib'] / first:.3f}", r["encoded"]] for r in results]
        body = (
            "## Memory of a video by any of the host's models by its length\n\nTiny Wan, a VAE of plain "
            f"arithmetic, {SIDE}x{SIDE}, chunks of {CHUNK_FRAMES} frames with {OVERLAP_FRAMES} overlapping, "
            f"one step each, one process per length. **Peaks differ by {spread:.1%}** (promise at most 5 %). No "
            "frame is ever encoded: the hand-off is latents.\n\n"
            + table(["chunks", "frames", "peak MiB", "ratio", "frames encoded"], rows)
            + "\n\nWhat limits it: weights, one chunk, and eight latents before it that the decoder sees again."
        )
        record("native_memory", "python -m benchmarks.native_memory --record", body)
    return int(spread > 0.05 or not never)


if __name__ == "__main__":
    sys.exit(main())
