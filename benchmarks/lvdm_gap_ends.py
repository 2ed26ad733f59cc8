"""How well LVDM's interpolation model fills a gap between two single frames, on held-out videos.

    python -m benchmarks.lvdm_gap_ends CHECKPOINT [--record] [--videos 16]

Reference: the same model between two latents of a moving video, as it was trained; and a linear blend of the frames. A
single frame is encoded as if it stood still for one latent, which the model never saw in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks.demo_models import FIRST_SEED, moving_error, summary
from benchmarks.record import record, table
from streaming_core.loop.chunk import Chunk
from training.videos import make_video

SIZE, VIDEOS, STEPS = 64, "calm", 20
WAYS = {
    "frames": "between two single frames, as a gap is filled",
    "latents": "between two latents of the moving video",
    "blend": "linear blend of the two frames",
}


def chunk_sampler(path: Path) -> object:
    """What Load LVDM and LVDM Chunk Sampler make of the file, which fills gaps in both roles."""
    import folder_paths
    from comfyui_streamingt2v.nodes.host.lvdm import sampler as lvdm
    from comfyui_streamingt2v.nodes.host.lvdm.load import load_lvdm
    from comfyui_streamingt2v.nodes.lvdm import DDIM, official_sampling

    folder_paths.add_model_folder_path("checkpoints", str(path.parent.resolve()), is_default=True)
    model, vae, _ = load_lvdm(path.name)
    return lvdm.LvdmChunkSampler(model, vae, *official_sampling(model, DDIM, STEPS), interpolation=model)


def filled(sampler: object, seed: int) -> dict[str, float]:
    """Squared error of every way where the true sprite is."""
    unit, count = sampler.layout.frames_per_latent, sampler.config.temporal_length
    truth = make_video(seed, SIZE, VIDEOS).render(0, unit * count)
    inner = slice(unit, unit * (count - 1))
    length = inner.stop - inner.start + 2
    first, last = truth.frames[inner.start - 1 : inner.start], truth.frames[inner.stop : inner.stop + 1]
    chunk = Chunk(0, 0, length, length, 1, seed % 2**32)
    shares = torch.arange(1, length - 1).reshape(-1, 1, 1, 1) / (length - 1)
    made = {
        "frames": sampler.fill(first, last, chunk)[1:-1],
        "latents": between_latents(sampler, truth.frames, chunk)[inner],
        "blend": first + shares * (last - first),
    }
    return {name: moving_error(frames, truth.frames[inner], truth.moving[inner]) for name, frames in made.items()}


def between_latents(sampler: object, frames: Tensor, chunk: Chunk) -> Tensor:
    """The whole video, of whose latents the model is shown the first and the last."""
    latents = sampler._encode(frames)
    ends = latents[:, :, [0, -1]]
    weight = sampler.previous_guidance.amount
    made = sampler._between(ends, latents.shape[2], chunk.generator(), weight)
    return sampler._decode(torch.cat([ends[:, :, :1], made, ends[:, :, 1:]], dim=2), 0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a whole checkpoint of an interpolation model")
    parser.add_argument("--videos", type=int, default=16, help="held-out videos (default 16)")
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    args = parser.parse_args(argv)
    from hosting.inprocess import import_host, import_pack

    import_host()
    import_pack()
    torch.set_num_threads(1)
    sampler = chunk_sampler(args.checkpoint)
    with torch.inference_mode():
        found = [filled(sampler, seed) for seed in range(FIRST_SEED, FIRST_SEED + args.videos)]
    reference = mean(numbers["latents"] for numbers in found)
    rows = []
    for name, words in WAYS.items():
        errors = [numbers[name] for numbers in found]
        rows.append([words, summary(errors, "{:.4f}".format), f"{mean(errors) / reference:.2f}"])
    body = table(["frames between", "squared error where the sprite is", "ratio"], rows)
    print(body)
    if args.record:
        record(
            "lvdm-gap-ends",
            "python -m benchmarks.lvdm_gap_ends CHECKPOINT --record",
            f"## Ends of a gap in LVDM\n\n{args.videos} held-out videos, mean ± standard deviation.\n\n{body}",
        )


if __name__ == "__main__":
    main()
