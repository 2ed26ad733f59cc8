"""What it saves to make APM's keys and values and the control embedding once per chunk instead of in every step.

    python -m benchmarks.modelscope_once_per_chunk [--repeats N] [--record]

Reference: the same networks with the official order of work, in the same process and in turns: in every step the mixers
and the key and value projections run for each of the identical frame copies of the context, and the pixel encoder runs
for both guidance rows (reference: streamingmodelscope, sections 9 and 12). Official frames, size, context and pixel
encoder, a UNet of 0.4 times the official width. Processor time on one thread, which other work on the machine disturbs
least; random float32 weights on the CPU. Both orders of work are checked to give the same result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor, nn

FRAMES, CONTROL_FRAMES, SIDE = 16, 8, 32
ROWS = 2


def attend_per_step(attn: nn.Module, context: Tensor) -> Callable[..., Tensor]:
    """What the official attention does: it mixes and projects the `context` of every frame again.

    Takes the place of `attn.attend`.
    """
    from streaming_core.models.modelscope.unet import mix_context

    def attend(x: Tensor, memory: object, attention: Callable[..., Tensor]) -> Tensor:
        tokens = mix_context(attn, context) if hasattr(attn, "conv") else context
        return attn.to_out(attention(attn.to_q(x), attn.to_k(tokens), attn.to_v(tokens), attn.heads))

    return attend


def networks(channels: tuple[int, ...]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """UNet and CAM of the official shape at other widths, with random weights."""
    from benchmarks.cam_overhead import fill
    from streaming_core.models.modelscope.cam import ModelscopeCam
    from streaming_core.models.modelscope.config import MixerConfig, ModelscopeCamConfig, UNet3DConfig
    from streaming_core.models.modelscope.unet import VideoUNet
    from streaming_core.models.streamingsvd.shapes import OFFICIAL

    base = UNet3DConfig(4, 4, channels, (True, True, True, False), 2, 1024, 512)
    unet = VideoUNet(UNet3DConfig(**{**vars(base), "mixers": MixerConfig(77, 93, 3)}))
    cam = ModelscopeCam(ModelscopeCamConfig(base, OFFICIAL.cam.pixel_channels))
    for seed, network in enumerate((unet, cam)):
        fill(network, seed)
    return unet, cam


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="guided steps of each kind (default 3)")
    parser.add_argument("--record", action="store_true", help="write the result to docs/benchmarks.md")
    args = parser.parse_args(argv)

    import dev

    dev.ensure_environment("benchmarks.modelscope_once_per_chunk")
    torch.set_num_threads(1)
    from benchmarks.record import record, table
    from streaming_core.models.unet3d import context_attentions

    unet, cam = networks((128, 256, 512, 512))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS * FRAMES, 4, SIDE, SIDE, generator=generator)
    head = x.unflatten(0, (ROWS, FRAMES))[:, :CONTROL_FRAMES].flatten(0, 1)
    pixels = torch.rand(CONTROL_FRAMES, 3, 8 * SIDE, 8 * SIDE, generator=generator) * 2 - 1
    context = torch.randn(ROWS, 93, 1024, generator=generator)
    timesteps = torch.full((ROWS,), 500.0)

    def prepare():
        return unet.project_context(context), cam.unet.project_context(context[:, :77]), cam.encode_pixels(pixels)

    def call(prepared) -> Tensor:
        memory, cam_memory, embedding = prepared
        features = cam.unet(head, timesteps, cam_memory, embedding)
        return unet(x, timesteps, memory, cam.merging(features, FRAMES))

    layers = [(attn, context, FRAMES) for _, attn in context_attentions(unet)]
    layers += [(attn, context[:, :77], CONTROL_FRAMES) for _, attn in context_attentions(cam.unet)]

    def every_step(prepared) -> Tensor:
        embedding = cam.encode_pixels(pixels.repeat(ROWS, 1, 1, 1))
        with ExitStack() as patches:
            for attn, rows, count in layers:
                attend = attend_per_step(attn, rows.repeat_interleave(count, dim=0))
                patches.enter_context(mock.patch.object(attn, "attend", attend))
            return call((*prepared[:2], embedding))

    times: dict[str, list[float]] = {"every step": [], "once per chunk": [], "preparation": []}

    def timed(name, function, *arguments):
        began = time.process_time()
        result = function(*arguments)
        times[name].append(time.process_time() - began)
        print(f"{name}: {times[name][-1]:.2f} s", flush=True)
        return result

    with torch.inference_mode():
        prepared = timed("preparation", prepare)
        for repeat in range(args.repeats):
            kinds = [("every step", every_step), ("once per chunk", call)][:: 1 if repeat % 2 == 0 else -1]
            results = [timed(name, function, prepared) for name, function in kinds]
            worst = float((results[0] - results[1]).abs().max() / results[0].abs().max())
            assert worst < 1e-4, f"the two orders of work differ by {worst:.1e}"
    before, after, once = (statistics.median(times[name]) for name in ("every step", "once per chunk", "preparation"))
    saved = 1 - after / before
    print(f"saved {saved:.1%} of a guided step; results differ by {worst:.1e} of the largest value")
    if args.record:
        body = (
            "## Work done once per chunk instead of in every step (StreamingModelscope)\n\n"
            "16 frames of 256x256, 8 control frames, two guidance rows, context 93x1024, official pixel encoder, UNet "
            "128 to 512 wide (0.4 of the official width), random float32 weights; processor seconds on one thread, "
            f"median of {args.repeats} in turns. **Saved: {saved:.1%} of a guided step** (promise: at least 10 %).\n\n"
            + table(
                ["", "time", "ratio"],
                [
                    ["guided step, mixers, keys, values and pixel encoder in every step", f"{before:.1f} s", "1"],
                    ["guided step, all of them computed once per chunk", f"{after:.1f} s", f"{after / before:.3f}"],
                    ["computing them once", f"{once:.1f} s", f"{once / before:.3f}"],
                ],
            )
            + "\n\nUnlike the rest, the saved work does not grow with the UNet's width: at full width it is 3 % of the "
            "multiplications of a step."
        )
        record("modelscope_once_per_chunk", "python -m benchmarks.modelscope_once_per_chunk --record", body)
    return int(saved < 0.1)


if __name__ == "__main__":
    sys.exit(main())
