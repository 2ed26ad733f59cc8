"""LVDM's hierarchy against a plain chunk loop, with small trained models on held-out videos.

    python -m benchmarks.lvdm_hierarchy --models out/lvdm [--plain FILE] [--record] [--videos 16]

Reference: a prediction model in the plain loop, which continues its own last latent. By default it is that of the
hierarchy, whose videos then are four times as fast; a fair one for the error is trained as long on neighboring latents
(`python -m training --stage lvdm_pred --stride 1`). In the hierarchy the prediction model makes every fourth latent and
the interpolation model those between. Both begin with the same frames of the true video. The repository holds no such
models; docs/training_lvdm.md says how to train them.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from functools import cache
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks.demo_models import FIRST_SEED, background, hue_distance, hues, mean_hue, moving_error, summary
from benchmarks.record import record, table
from streaming_core.loop.plan import Beginning, VideoPlan
from streaming_core.loop.steps import start_video, video_chunks
from training.videos import make_video

PREDICTION, INTERPOLATION = "demo_lvdm_prediction.safetensors", "demo_lvdm_interpolation.safetensors"
SIZE, VIDEOS = 64, "calm"
NUM_FRAMES, GIVEN_FRAMES, OVERLAP_FRAMES = 208, 8, 2
CHUNK_FRAMES = {"hierarchy": 26, "plain": 8}
"""Four latents of the prediction model: 13 latents of the video with those between, or 4."""
TENTH = NUM_FRAMES // 10
STEPS = 20


@cache
def chunk_sampler(prediction: Path, interpolation: Path | None) -> object:
    """What Load LVDM and LVDM Chunk Sampler make of these files."""
    import folder_paths
    from comfyui_streamingt2v.nodes.host.lvdm import sampler as lvdm
    from comfyui_streamingt2v.nodes.host.lvdm.load import load_lvdm
    from comfyui_streamingt2v.nodes.lvdm import DDIM, official_sampling

    def loaded(path: Path):
        folder_paths.add_model_folder_path("checkpoints", str(path.parent.resolve()), is_default=True)
        return load_lvdm(path.name)

    model, vae, _ = loaded(prediction)
    sampler, sigmas = official_sampling(model, DDIM, STEPS)
    between = None if interpolation is None else loaded(interpolation).model
    return lvdm.LvdmChunkSampler(model, vae, sampler, sigmas, interpolation=between)


def made(sampler: object, begun: Tensor, chunk_frames: int, seed: int) -> Tensor:
    """A video of `NUM_FRAMES` frames `[F, 3, H, W]` that continues `begun`."""
    plan = VideoPlan(
        NUM_FRAMES, chunk_frames, OVERLAP_FRAMES, seed, Fraction(8), height=SIZE, width=SIZE,
        beginning=Beginning(frames=begun),
    )  # fmt: skip
    state, first = start_video(sampler.accept(plan), sampler)
    frames = [first, *(chunk for _, chunk in video_chunks(state, sampler))]
    return torch.cat(frames)[:NUM_FRAMES]


def judged(samplers: dict[str, object], seed: int) -> dict[str, float]:
    """Every number of one video."""
    truth = make_video(seed, SIZE, VIDEOS).render(0, NUM_FRAMES)
    begun = truth.frames[:GIVEN_FRAMES]
    reference = mean_hue(begun)
    assert reference is not None, seed
    found = {}
    for name, sampler in samplers.items():
        frames = made(sampler, begun, CHUNK_FRAMES[name], seed % 2**32)
        end = frames[-TENTH:]
        colors = hues(end)
        found[f"hue_{name}"] = mean(hue_distance(hue, reference) for hue in colors)
        found[f"lost_{name}"] = mean(hue is None for hue in colors)
        found[f"background_{name}"] = float((background(end) - background(truth.frames[-TENTH:])).norm())
        found[f"error_{name}"] = moving_error(frames[GIVEN_FRAMES:], truth.frames[GIVEN_FRAMES:], truth.moving[8:])
        found[f"near_{name}"] = moving_error(frames[8:56], truth.frames[8:56], truth.moving[8:56])
        keep_for_sheet(name, seed, frames)
    return found


def keep_for_sheet(name: str, seed: int, frames: Tensor) -> None:
    """Keep every 13th frame of a video for looking at."""
    SHEETS.setdefault(seed, {})[name] = frames[::13]


SHEETS: dict[int, dict[str, Tensor]] = {}
MEASURES = (
    ("hue", "hue of the sprite in the last tenth, distance to the given frames'", "{:.1f}°"),
    ("lost", "frames of the last tenth without a colored sprite", "{:.0%}"),
    ("background", "color of the background in the last tenth, distance to the true one (of 1)", "{:.4f}"),
    ("near", "squared error where the true sprite is, frames 8 to 55", "{:.4f}"),
    ("error", "squared error where the true sprite is, whole video", "{:.4f}"),
)


def rows(found: list[dict[str, float]]) -> list[list[object]]:
    lines = []
    for key, words, form in MEASURES:
        ours, plain = ([numbers[f"{key}_{name}"] for numbers in found] for name in ("hierarchy", "plain"))
        change = f"{mean(ours) / mean(plain) - 1:+.0%}" if mean(plain) else "-"
        lines.append([words, summary(ours, form.format), summary(plain, form.format), change])
    return lines


def write_sheet(path: Path) -> None:
    """One row of frames per video and way, every 13th frame."""
    import av
    from einops import rearrange

    ways = [frames for sheet in SHEETS.values() for frames in sheet.values()]
    image = rearrange(torch.stack(ways).clamp(0, 1), "r n c h w -> (r h) (n w) c")
    frame = av.VideoFrame.from_ndarray((image * 255).round().byte().numpy(), format="rgb24")
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "rgb24"
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the models of the hierarchy")
    parser.add_argument("--plain", type=Path, help="a prediction model of neighboring latents")
    parser.add_argument("--videos", type=int, default=16, help="held-out videos (default 16)")
    parser.add_argument("--sheet", type=Path, help="write an image of every video here")
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    args = parser.parse_args(argv)
    from hosting.inprocess import import_host, import_pack

    import_host()
    import_pack()
    torch.set_num_threads(1)
    samplers = {
        "hierarchy": chunk_sampler(args.models / PREDICTION, args.models / INTERPOLATION),
        "plain": chunk_sampler(args.plain or args.models / PREDICTION, None),
    }
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + args.videos):
        found.append(judged(samplers, seed))
        print(len(found), {name: round(value, 4) for name, value in found[-1].items()}, flush=True)
    body = table(["measure", "hierarchy", "plain loop", "change"], rows(found))
    print(body)
    if args.sheet:
        write_sheet(args.sheet)
    if args.record:
        record(
            "lvdm-hierarchy",
            "python -m benchmarks.lvdm_hierarchy --models DIR --record",
            f"## LVDM's hierarchy\n\n{args.videos} held-out videos of {NUM_FRAMES} frames, mean ± standard deviation. "
            f"docs/training_lvdm.md says how the models were trained and what limits them.\n\n{body}",
        )


if __name__ == "__main__":
    main()
