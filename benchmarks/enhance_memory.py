"""Peak memory of Enhance Video by the length of the video, and of the full-size network by what it keeps at once.

    python -m benchmarks.enhance_memory [--record]

Reference: the 100-frame video, and the network run whole. Each length runs in a process of its own on tiny networks,
from frames on disk to frames on disk; peak resident memory is the kernel's own mark (VmHWM), set back before the stage
begins. The full-size network runs on torch's meta device, where tensors have sizes and no contents.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time

from benchmarks.memory import MOST_SPREAD, arguments, forget_peak, peak_bytes, run_apart, spread_of

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

    from hosting.inprocess import import_host, import_pack
    from streaming_core.enhance.job import EnhanceRequest, plan_enhancement
    from streaming_core.enhance.settings import EnhanceSettings
    from streaming_core.models.modelscope.detect import CLIP_VISION_PREFIX, TEXT_PREFIX, VAE_PREFIX
    from streaming_core.models.registry import take
    from streaming_core.runs.content import ChunkContent
    from streaming_core.runs.folder import RunFolder
    from tiny_models import enhancer as tiny_enhancer
    from tiny_models import modelscope as tiny_modelscope

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
                run.write_chunk(index, ChunkContent(frames), settings_hash="benchmark")
            stream = run.frames_stream()
        first, whole = (
            enhancer.enhance(models, plan_enhancement(EnhanceRequest(frames, SIDE, SIDE, "inside", settings)))
            for frames in (stream.trimmed(0, 13), stream)
        )
        # A first video of one window: what is loaded once is loaded before the mark is set back.
        first.stream()
        forget_peak()
        began = time.monotonic()
        result = whole.stream()
        seconds = time.monotonic() - began
    return {"frames": len(result), "bytes": peak_bytes(), "seconds": seconds}


def network_peaks(frames: int = 38, height: int = 90, width: int = 160) -> dict[str, int]:
    """Bytes that one guidance row of the full-size network keeps at once in float16, weights left out."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from streaming_core.models import unet3d_attention as parts
    from streaming_core.models.i2vgenxl import network as core
    from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig
    from streaming_core.models.unet3d_layers import Skips

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

    peaks, limit = {}, parts.MAX_VALUES
    parts.MAX_VALUES = 2**62
    peaks["layers run whole"] = peak()
    parts.MAX_VALUES = limit
    peaks["layers in parts (always)"] = peak()
    # A skip in system memory is a size and nothing more here.
    peaks["and skips in system memory (memory: low)"] = peak(
        lambda _: Skips(lambda skip: row(1).expand(skip.shape), lambda _, skip: skip.contiguous())
    )
    return peaks


def main(argv: list[str] | None = None) -> int:
    args = arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]), "enhance_memory", argv)
    if args.one:
        print(json.dumps(one_video(args.one)))
        return 0
    from benchmarks.record import record, table

    results = []
    for length in LENGTHS:
        results.append(run_apart("enhance_memory", "--one", length))
        print(results[-1], flush=True)
    stated = WHOLE_CLIP_LATENTS * LATENT_BYTES
    rest = [result["bytes"] - result["frames"] * stated for result in results]
    spread = spread_of(rest)
    first, last = results[0], results[-1]
    slope = (last["bytes"] - first["bytes"]) / (last["frames"] - first["frames"])
    full_size = slope / LATENT_BYTES * FULL_SIZE_LATENT_BYTES
    peaks = network_peaks()
    rows = [
        [r["frames"], f"{r['bytes'] / 2**20:.0f}", f"{r['frames'] * stated / 2**20:.0f}", f"{other / 2**20:.0f}"]
        for r, other in zip(results, rest, strict=True)
    ]
    head = ["frames", "peak MiB", f"of which {WHOLE_CLIP_LATENTS} latents of the whole video", "the rest"]
    whole = next(iter(peaks.values()))
    body = (
        f"## Memory of Enhance Video\n\nTiny networks, {SIDE}x{SIDE}, windows of 12 with 4 shared, frames on disk "
        f"before and after, one process per length. **Without latents, peaks differ by {spread:.1%}** (promise at most "
        "5 %). "
        f"Slope: **{slope:,.0f} bytes per frame**, {slope / LATENT_BYTES:.1f} latents of {LATENT_BYTES:,} bytes; at "
        f"1280x720 that is {full_size / 1e6:.2f} MB per frame (promise at most 2 MB).\n\n" + table(head, rows) + "\n\n"
        "Peak activations of one guidance row of the full-size I2VGen-XL, 38 frames of 1280x720 in float16, without "
        "weights:\n\n"
        + table(["", "GiB", "ratio"], [[n, f"{b / 2**30:.2f}", f"{b / whole:.2f}"] for n, b in peaks.items()])
    )
    print(body)
    if args.record:
        record("enhance_memory", "python -m benchmarks.enhance_memory --record", body)
    return int(spread > MOST_SPREAD or full_size > 2e6)


if __name__ == "__main__":
    sys.exit(main())
