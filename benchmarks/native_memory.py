"""Peak memory of a video by any of the host's models by its length: 5 to 40 chunks through the loop of Stream Sampler.

    python -m benchmarks.native_memory [--record]

Reference: a video of 5 chunks. A tiny Wan with a VAE of plain arithmetic in its place; each length in a process of its
own; peak resident memory is the kernel's own mark (VmHWM). Kept frames alone would add 6 MB per chunk at this size: 210
MB from 5 to 40 chunks.
"""

from __future__ import annotations

import sys

from benchmarks.memory import MemoryByLength, make_video

CHUNKS = (5, 20, 40)
SIDE, CHUNK_FRAMES, OVERLAP_FRAMES = 256, 17, 9


def one_video(num_chunks: int) -> dict[str, float]:
    """Make one video; peak memory in MiB, seconds, and how often images were encoded."""
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
    plan = videos.plan_video(num_frames, CHUNK_FRAMES, OVERLAP_FRAMES, SIDE, SIDE, "crop", 0, 0)
    return {**make_video(sampler, plan), "encoded": sum(vae.encoded)}


BENCHMARK = MemoryByLength(
    "native_memory",
    CHUNKS,
    one_video,
    promise=lambda found: found["encoded"] == 0,
    columns={"chunks": "chunks", "frames": "frames", "peak MiB": "mib", "ratio": "ratio", "frames encoded": "encoded"},
    text="## Memory of a video by any of the host's models by its length\n\nTiny Wan, a VAE of plain "
    f"arithmetic, {SIDE}x{SIDE}, chunks of {CHUNK_FRAMES} frames with {OVERLAP_FRAMES} overlapping, "
    "one step each, one process per length. **Peaks differ by {spread}** (promise at most 5 %). No "
    "frame is ever encoded: the hand-off is latents.\n\n{table}\n\n"
    "What limits it: weights, one chunk, and eight latents before it that the decoder sees again.",
    unit="chunks",
)


if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__.splitlines()[0]))
