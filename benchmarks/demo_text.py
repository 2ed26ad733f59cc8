"""The trained demo StreamingModelscope: videos from words, as the template demo_text_to_video makes them.

    python -m benchmarks.demo_text [--record] [--sheet FILE.jpg] [--model FILE --base-model FILE]

Twelve prompts, two for each color, on a real host. Reference: the same video without CAM, whose chunks only share the
prompt and the anchor.
"""

from __future__ import annotations

import argparse
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

import dev
from benchmarks.demo_models import hue_distance, hues, summary
from benchmarks.record import record, table
from hosting.server import HostServer
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import TensorFrames, VideoFrames
from streaming_core.loop.chunk_layout import lay_out
from streaming_core.metrics.measure import measure
from training.demo import furnish, to_image
from training.videos import COLORS, HEADINGS

MODELS = Path("models")
WHOLE = MODELS / "checkpoints" / "demo_streamingmodelscope.safetensors"
BASE = MODELS / "diffusion_models" / "demo_modelscope_t2v.safetensors"
WORDS = "a red ball moving right"
"""The template's own prompt."""
FRAMES, CHUNK_FRAMES, OVERLAP_FRAMES = 24, 8, 4
NEAR_DEGREES = 30.0
"""Half the distance between two of the named hues."""


@dataclass(frozen=True)
class Words:
    """What a video is to show; `number` seeds it."""

    color: str
    heading: str
    number: int

    def __str__(self) -> str:
        return f"a {self.color} ball moving {self.heading}"

    @property
    def angle(self) -> float:
        """Radians, clockwise from "right"."""
        return HEADINGS.index(self.heading) * math.pi / 4


def all_words() -> list[Words]:
    """Two videos per color, in opposite directions."""
    videos = []
    for index, color in enumerate(COLORS):
        for turn in range(2):
            heading = HEADINGS[(index + 4 * turn) % len(HEADINGS)]
            videos.append(Words(color, heading, 2 * index + turn))
    return videos


def balls(frames: Tensor) -> list[tuple[float, tuple[float, float] | None]]:
    """Of each frame of `[F, 3, H, W]`: the share of bright pixels outside of the largest spot, and the place of this
    spot as `(x, y)` in pixels, None where there is nothing bright.
    """
    found = []
    for bright in (frames.amax(dim=1) > 0.6).numpy():
        spots, count = ndimage.label(bright)
        if not count:
            found.append((1.0, None))
            continue
        sizes = ndimage.sum_labels(bright, spots, range(1, count + 1))
        largest = int(sizes.argmax()) + 1
        y, x = ndimage.center_of_mass(spots == largest)
        found.append((1 - float(sizes.max() / sizes.sum()), (float(x), float(y))))
    return found


def off_course(places: list[tuple[float, float] | None], angle: float) -> float:
    """Degrees between the way from the first place to the last and `angle`, 0 to 180; 90 where there is none."""
    known = [place for place in places if place is not None]
    if len(known) < 2:
        return 90.0
    (x0, y0), (x1, y1) = known[0], known[-1]
    way = math.degrees(math.atan2(y1 - y0, x1 - x0) - angle)
    return abs((way + 180) % 360 - 180)


def judged(frames: Tensor, words: Words) -> dict[str, float]:
    """Every number of one video `[F, 3, H, W]` in 0..1."""
    found, hue = balls(frames), 360 * COLORS[words.color]
    layout = lay_out(len(frames), (CHUNK_FRAMES, CHUNK_FRAMES - OVERLAP_FRAMES))
    report = measure(TensorFrames(frames.movedim(1, -1), fps=6), layout)
    return {
        "color": mean(hue_distance(each, hue) <= NEAR_DEGREES for each in hues(frames)),
        "stray": mean(stray for stray, _ in found),
        "stray_end": mean(stray for stray, _ in found[-CHUNK_FRAMES:]),
        "off_course": off_course([place for _, place in found[:CHUNK_FRAMES]], words.angle),
        "seam": mean(join.score for join in report.seams.joins),
        "kept": report.stagnation.kept or 0.0,
    }


def make_video(server: HostServer, words: Words, cam_strength: float) -> Tensor:
    """`[F, 3, H, W]` in 0..1."""
    prompt = to_prompt(load_workflow(dev.ROOT / "workflows" / "demo_text_to_video.json"), server.object_info())
    [text] = [node for node in prompt.values() if node["inputs"].get("text") == WORDS]
    text["inputs"]["text"] = str(words)
    set_inputs(prompt, "SamplerCustom", noise_seed=words.number)
    set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=FRAMES)
    [video] = [node for node in prompt.values() if node["class_type"] == "StreamingT2VStreamSampler"]
    lengths = {"chunk_frames": CHUNK_FRAMES, "overlap_frames": OVERLAP_FRAMES, "num_frames": FRAMES, "fps": 6.0}
    values = {"prompts": "", "seed_mode": "fixed", "seed": 100 + words.number, "seeds": "", "seconds": 0.0}
    strengths = {"cam_strength": str(cam_strength), "anchor_strength": ""}
    prompt["plan"] = {"class_type": "StreamingT2VChunkPlan", "inputs": lengths | values | strengths}
    video["inputs"]["plan"] = ["plan", 0]
    videos = [
        output.path for output in server.run(prompt, timeout=1800).check().outputs if output.path.suffix == ".mp4"
    ]
    made = VideoFrames.open(videos[0])
    return made.read(0, len(made)).movedim(-1, 1)


def rows(found: dict[float, list[dict[str, float]]]) -> list[list[str]]:
    percent, ratio, degrees = "{:.0%}".format, "{:.2f}".format, "{:.0f}°".format
    kinds = {
        "frames whose ball has the color in the prompt": ("color", percent),
        "bright pixels that are not the ball": ("stray", percent),
        f"the same in the last {CHUNK_FRAMES} frames": ("stray_end", percent),
        "first chunk: direction of the ball against the prompt (90° by chance)": ("off_course", degrees),
        "seam score at chunk boundaries": ("seam", ratio),
        "mean flow at the end / of the first chunk": ("kept", ratio),
    }
    return [
        [label, *(summary([numbers[name] for numbers in found[strength]], form) for strength in found)]
        for label, (name, form) in kinds.items()
    ]


def sheet(videos: list[Tensor], path: Path) -> None:
    """One row per video, every frame of it."""
    strips = [to_image(torch.cat(list(frames), dim=-1)) for frames in videos]
    whole = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)))
    for index, strip in enumerate(strips):
        whole.paste(strip, (0, index * strip.height))
    whole.resize((whole.width * 2 // 3, whole.height * 2 // 3), Image.Resampling.LANCZOS).save(path, quality=85)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--sheet", type=Path, help="image of all videos with CAM")
    parser.add_argument("--model", type=Path, help="another StreamingModelscope file")
    parser.add_argument("--base-model", type=Path, help="another file for the first clip")
    args = parser.parse_args(argv)
    found, shown = {1.0: [], 0.0: []}, []
    with HostServer(pack=dev.ROOT) as server:
        furnish(server.base)
        for file, place in ((args.model, WHOLE), (args.base_model, BASE)):
            if file is not None:
                shutil.copy(file, server.base / place)
        for words in all_words():
            for strength, column in found.items():
                frames = make_video(server, words, strength)
                column.append(judged(frames, words))
                if strength:
                    shown.append(frames)
                print(words, strength, {name: round(value, 3) for name, value in column[-1].items()}, flush=True)
    if args.sheet is not None:
        sheet(shown, args.sheet)
    body = table(
        [f"{FRAMES} frames in chunks of {CHUNK_FRAMES}, of {len(shown)} prompts", "with CAM", "without"], rows(found)
    )
    print(body)
    if args.record:
        record(
            "demo-text",
            "python -m benchmarks.demo_text --record",
            "## Demo StreamingModelscope\n\nVideos of the template demo_text_to_video, mean ± standard deviation. "
            f"docs/training_modelscope.md explains what limits them.\n\n{body}",
        )


if __name__ == "__main__":
    main()
