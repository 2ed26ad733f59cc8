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

import torch
from torch import Tensor

FRAMES, CONTROL_FRAMES, SIDE = 16, 8, 32
ROWS = 2


class PerStepAttention:
    """Attention processor that mixes and projects the context of every frame again, as the official one does."""

    def __init__(self):
        self.context: Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, compute=None, memory=None):
        from streaming_core.models.modelscope.unet import mix_context

        tokens = mix_context(attn, self.context) if hasattr(attn, "conv") else self.context
        q, k, v = attn.to_q(hidden_states), attn.to_k(tokens), attn.to_v(tokens)
        return attn.to_out[0](compute.attention(q, k, v, attn.heads))


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
    from streaming_core.models.modelscope.unet import ContextAttention, context_attentions

    unet, cam = networks((128, 256, 512, 512))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS * FRAMES, 4, SIDE, SIDE, generator=generator)
    head = x.unflatten(0, (ROWS, FRAMES))[:, :CONTROL_FRAMES].flatten(0, 1)
    pixels = torch.rand(CONTROL_FRAMES, 3, 8 * SIDE, 8 * SIDE, generator=generator) * 2 - 1
    context = torch.randn(ROWS, 93, 1024, generator=generator)
    timesteps = torch.full((ROWS,), 500.0)

    def prepare():
        return unet.project_context(context), cam.unet.project_context(context[:, :77]), cam.encode_pixels(pixels)

    def use(make_processor) -> list:
        processors = []
        for network in (unet, cam.unet):
            for index, (_, attn) in enumerate(context_attentions(network)):
                processors.append(make_processor(index))
                attn.set_processor(processors[-1])
        return processors

    def call(prepared) -> Tensor:
        memory, cam_memory, embedding = prepared
        features = cam.unet(head, timesteps, cam_memory, embedding)
        return unet(x, timesteps, memory, cam.merging(features, FRAMES))

    def once_per_chunk(prepared) -> Tensor:
        use(ContextAttention)
        return call(prepared)

    def every_step(prepared) -> Tensor:
        processors = use(lambda _: PerStepAttention())
        layers = len(list(context_attentions(unet)))
        for index, processor in enumerate(processors):
            rows, count = (context, FRAMES) if index < layers else (context[:, :77], CONTROL_FRAMES)
            processor.context = rows.repeat_interleave(count, dim=0)
        embedding = cam.encode_pixels(pixels.repeat(ROWS, 1, 1, 1))
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
            kinds = [("every step", every_step), ("once per chunk", once_per_chunk)][:: 1 if repeat % 2 == 0 else -1]
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
                    ["guided step, all of them made once per chunk", f"{after:.1f} s", f"{after / before:.3f}"],
                    ["making them once", f"{once:.1f} s", f"{once / before:.3f}"],
                ],
            )
            + "\n\nThe saved work does not grow with the UNet's width as the rest does: by multiplications it is 3 % "
            "of a step at full width."
        )
        record("modelscope_once_per_chunk", "python -m benchmarks.modelscope_once_per_chunk --record", body)
    return int(saved < 0.1)


if __name__ == "__main__":
    sys.exit(main())
