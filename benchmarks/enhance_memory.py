"""Peak memory of Enhance Video by the length of the video, and of the full-size network by what it keeps at once.

    python -m benchmarks.enhance_memory [--record]

Reference: the 100-frame video, and the network run whole. Each length runs in a process of its own on tiny networks,
from frames on disk to frames on disk; peak resident memory is the kernel's own mark (VmHWM), set back before the stage
begins. The full-size network runs on torch's meta device, where tensors have sizes and no contents.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.video_memory import MALLOC

LENGTHS = (100, 400, 1600)
SIDE = 96
LATENT_BYTES = 4 * (SIDE // 8) ** 2 * 4
WHOLE_CLIP_LATENTS = 9
"""Latents of the whole video that exist at once: clip, its scaled copy, noise, state, two predictions, and what
guidance and the sampler make of them."""
FULL_SIZE_LATENT_BYTES = 4 * 90 * 160 * 4


def one_video(num_frames: int) -> dict:
    """Enhance one video; peak memory in bytes, seconds."""
    import torch

    from streaming_core.models.modelscope.detect import CLIP_VISION_PREFIX, TEXT_PREFIX, VAE_PREFIX
    from streaming_core.models.registry import take
    from streaming_core.runs.folder import RunFolder
    from streaming_core.windows.enhancement import EnhanceSettings
    from tests import tiny_enhancer, tiny_modelscope
    from tests.host.inprocess import import_host, import_pack

    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host import encoders
    from comfyui_streamingt2v.nodes.host.enhance import enhancer, i2vgenxl
    from comfyui_streamingt2v.nodes.host.modelscope import towers as modelscope_file

    weights, config = tiny_modelscope.tiny_weights(dtype=torch.float32), tiny_modelscope.TINY
    models = enhancer.Enhancer(
        model=i2vgenxl.build_i2vgenxl(tiny_enhancer.tiny_weights(dtype=torch.float32), "tiny"),
        clip=modelscope_file.build_text_encoder(take(weights, TEXT_PREFIX), config.text_encoder),
        clip_vision=encoders.build_clip_vision(take(weights, CLIP_VISION_PREFIX), config.clip_vision),
        vae=modelscope_file.build_kl_vae(take(weights, VAE_PREFIX), config.vae),
    )
    del weights
    settings = EnhanceSettings(strength=1.0, steps=1, window_frames=12, overlap_frames=4)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        with RunFolder.create(folder, "video", kind="benchmark", height=SIDE, width=SIDE, fps=24) as run:
            for index, start in enumerate(range(0, num_frames, 10)):
                frames = torch.rand(min(10, num_frames - start), SIDE, SIDE, 3, generator=generator)
                run.write_chunk(index, settings_hash="", seed=0, frames=frames)
            stream = run.frames_stream()
        request = enhancer.EnhanceRequest(stream, SIDE, SIDE, "inside", settings)
        # A first video of one window: what is loaded once is loaded before the mark is set back.
        enhancer.enhance_stream(models, enhancer.EnhanceRequest(stream.trimmed(0, 13), SIDE, SIDE, "inside", settings))
        Path("/proc/self/clear_refs").write_text("5")
        began = time.monotonic()
        result = enhancer.enhance_stream(models, request)
        seconds = time.monotonic() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"frames": len(result), "bytes": int(peak.split()[1]) * 1024, "seconds": seconds}


def network_peaks(frames: int = 38, height: int = 90, width: int = 160) -> dict[str, int]:
    """Bytes that one guidance row of the full-size network keeps at once in float16, weights left out."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from streaming_core.models import unet3d_layers as layers
    from streaming_core.models.i2vgenxl import network as core
    from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig

    network = core.build(I2VGenXLConfig(), dtype=torch.float16, device="meta")
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    class Living(TorchDispatchMode):
        """Adds up the storages that exist."""

        def __init__(self):
            super().__init__()
            self.now = self.peak = 0
            self.known: dict[int, int] = {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if not isinstance(tensor, torch.Tensor):
                    continue
                storage = tensor.untyped_storage()
                if storage._cdata in weights or storage._cdata in self.known:
                    continue
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, storage._cdata)
            return out

        def forget(self, key):
            self.now -= self.known.pop(key, 0)

    def row(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.float16, device="meta")

    def peak(skips_of: core.SkipsOf | None = None) -> int:
        with Living() as living:
            network.denoise(
                row(1, 4, frames, height, width),
                torch.empty(1, device="meta"),
                row(1, 77, 1024),
                row(1, 4, frames, height, width),
                row(1, 1, 1024),
                torch.empty(1, device="meta"),
                # A fused kernel keeps nothing but its result.
                attention=lambda q, k, v, heads: torch.empty_like(q),
                skips_of=skips_of,
            )
        return living.peak

    peaks, limit = {}, layers.MAX_VALUES
    layers.MAX_VALUES = 2**62
    peaks["layers run whole"] = peak()
    layers.MAX_VALUES = limit
    peaks["layers in parts (always)"] = peak()
    # A skip in system memory is a size and nothing more here.
    peaks["and skips in system memory (memory: low)"] = peak(
        lambda _: layers.Skips(lambda skip: row(1).expand(skip.shape), lambda _, skip: skip.contiguous())
    )
    return peaks


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the result to docs/benchmarks.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    import dev

    dev.ensure_environment("benchmarks.enhance_memory")
    if args.one:
        print(json.dumps(one_video(args.one)))
        return 0
    from benchmarks.record import record, table

    results = []
    for length in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.enhance_memory", "--one", str(length)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **MALLOC})
        results.append(json.loads(run.stdout.splitlines()[-1]))
        print(results[-1], flush=True)
    stated = WHOLE_CLIP_LATENTS * LATENT_BYTES
    rest = [result["bytes"] - result["frames"] * stated for result in results]
    spread = max(rest) / min(rest) - 1
    first, last = results[0], results[-1]
    slope = (last["bytes"] - first["bytes"]) / (last["frames"] - first["frames"])
    full_size = slope / LATENT_BYTES * FULL_SIZE_LATENT_BYTES
    peaks = network_peaks()
    rows = [
        [r["frames"], f"{r['bytes'] / 2**20:.0f}", f"{r['frames'] * stated / 2**20:.0f}", f"{other / 2**20:.0f}"]
        for r, other in zip(results, rest, strict=True)
    ]
    head = ["frames", "peak MiB", f"of it {WHOLE_CLIP_LATENTS} latents of the whole video", "the rest"]
    whole = next(iter(peaks.values()))
    body = (
        f"## Memory of Enhance Video\n\nTiny networks, {SIDE}x{SIDE}, windows of 12 with 4 shared, frames on disk "
        f"before and after, one process per length. **Without latents, peaks differ by {spread:.1%}** (promise at most "
        "5 %). "
        f"Slope: **{slope:,.0f} bytes per frame**, {slope / LATENT_BYTES:.1f} latents of {LATENT_BYTES:,} bytes; at "
        f"1280x720 that is {full_size / 1e6:.2f} MB per frame (promise at most 2 MB).\n\n" + table(head, rows) + "\n\n"
        "What one guidance row of the full-size I2VGen-XL keeps at once, 38 frames of 1280x720 in float16, weights "
        "left out:\n\n"
        + table(["", "GiB", "ratio"], [[n, f"{b / 2**30:.2f}", f"{b / whole:.2f}"] for n, b in peaks.items()])
    )
    print(body)
    if args.record:
        record("enhance_memory", "python -m benchmarks.enhance_memory --record", body)
    return int(spread > 0.05 or full_size > 2e6)


if __name__ == "__main__":
    sys.exit(main())
