"""The report as text, JSON, CSV and image, and the command that makes it from a video file."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import dev
from benchmarks.metrics_videos import pan, stream
from streaming_core.errors import CheckpointError
from streaming_core.frames import write_video
from streaming_core.loop.chunk_layout import lay_out
from streaming_core.metrics import chart
from streaming_core.metrics.__main__ import main
from streaming_core.metrics.chart import draw_report, frame_x, nice_step, panels, scale_of
from streaming_core.metrics.clip_local import clip_pixels, load_clip
from streaming_core.metrics.clip_scores import ClipTools
from streaming_core.metrics.flow import RAFT_FILE, raft_estimator
from streaming_core.metrics.measure import Measures, measure
from streaming_core.metrics.report import as_csv, as_json, as_text, chunk_rows, curves, headlines, summary

LAYOUT = lay_out(61, (25, 18))


@pytest.fixture(scope="module")
def shown_frames() -> torch.Tensor:
    frames = torch.cat((pan(50), pan(11, seed=3)))
    frames[43:] += 0.03
    return frames.clamp(0, 1)


@pytest.fixture(scope="module")
def measures(shown_frames) -> Measures:
    tools = ClipTools(lambda frames: frames.mean((1, 2)), text=torch.ones(3), name="colors")
    return measure(stream(shown_frames), LAYOUT, clip=tools)


@pytest.fixture(scope="module")
def with_mawe(shown_frames) -> Measures:
    network = raft_estimator(lambda left, right: torch.full((len(left), 2, 720, 720), 2.0))
    return measure(stream(torch.cat((shown_frames[:4], shown_frames[3:4]))), lay_out(5, (3,)), flow=network)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_json_is_strict_and_complete(measures):
    found = json.loads(as_json(measures), parse_constant=pytest.fail)
    assert found["video"] == {"frames": 61, "width": 160, "height": 96, "fps": 24.0, "seconds": pytest.approx(61 / 24)}
    assert found["mawe"] is None and list(found["left_out"]) == ["mawe"]
    assert found["cuts"]["count"] == 1 and found["cuts"]["frames"] == [50]
    assert found["boundaries"] == [25, 43] and found["chunks_known"]
    assert [join["frame"] for join in found["seams"]["joins"]] == [25, 43]
    assert found["seams"]["largest"] == found["seams"]["joins"][1]["score"] > 5
    assert found["anchor_similarity"]["model"] == "colors"
    assert {len(curve) for curve in found["curves"].values()} == {61}
    assert [(row["start"], row["stop"]) for row in found["chunks"]] == [(0, 25), (25, 43), (43, 61)]
    assert [row["cuts"] for row in found["chunks"]] == [0, 0, 1]


def test_csv_has_a_line_for_every_frame(measures):
    rows = list(csv.DictReader(io.StringIO(as_csv(measures))))
    assert [int(row["frame"]) for row in rows] == list(range(61))
    assert [int(row["frame"]) for row in rows if row["starts_chunk"] == "1"] == [25, 43]
    assert [int(row["frame"]) for row in rows if row["cut"] == "1"] == [50]
    assert [int(row["chunk"]) for row in rows] == [0] * 25 + [1] * 18 + [2] * 18
    # Values of a pair stand at its later frame.
    assert rows[0]["motion_percent"] == "" and float(rows[43]["jump_ratio"]) > 5
    assert max(rows, key=lambda row: float(row["jump_ratio"] or 0))["frame"] == "50"


def test_text_names_every_measure(measures):
    text = as_text(measures)
    for words in (
        "61 frames, 160x96, 24 fps",
        "Scene cuts",
        "at 50",
        "Seams",
        "at frame 43",
        "Text score",
        "not measured: mawe",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) < 120
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[-3:]] == [["0-24", "0"], ["25-42", "1"], ["43-60", "2"]]


def test_mawe_is_reported_with_its_still_pairs(with_mawe):
    found = summary(with_mawe)["mawe"]
    assert (found["pairs"], found["still_pairs"], found["still"]) == (4, 1, False)
    assert found["value"] > 0 and "mawe" not in with_mawe.left_out
    assert curves(with_mawe)["mawe"][0] is None and curves(with_mawe)["mawe"][4] is None
    assert "1 still and left out" in as_text(with_mawe)
    rows = chunk_rows(with_mawe)
    assert rows[0]["mawe"] == pytest.approx(sum(curves(with_mawe)["mawe"][1:3]) / 2)
    assert panels(with_mawe)[0].title.startswith("MAWE")


def test_still_video_is_called_still(shown_frames):
    network = raft_estimator(lambda left, right: torch.zeros(len(left), 2, 720, 720))
    found = measure(stream(shown_frames[:1].expand(4, -1, -1, -1)), flow=network)
    values = {name: value for name, value, _ in headlines(found)}
    assert values["MAWE"] == values["Motion kept"] == "still"
    assert json.loads(as_json(found), parse_constant=pytest.fail)["mawe"]["value"] is None
    assert draw_report(found).size[0] == 1024


# -- the image -------------------------------------------------------------------------------------------------------


def columns_of(image: Image.Image, color: str, rows: slice) -> set[int]:
    """Columns that have (nearly) the given color in every one of the rows."""
    pixels = np.asarray(image)[rows].astype(int)
    near = np.abs(pixels - ImageColor.getrgb(color)).sum(-1) < 90
    return {int(column) for column in np.flatnonzero(near.mean(0) > 0.8)}


def panel_rows(image: Image.Image, number: int, of: int) -> slice:
    """Rows in the upper part of panel `number`."""
    bottom = image.size[1] - chart.AXIS_PX - (of - 1 - number) * (chart.PANEL_PX + chart.GAP_PX)
    return slice(bottom - chart.PANEL_PX + 2, bottom - 2)


def test_boundaries_and_cuts_stand_where_they_belong(measures):
    image, count = draw_report(measures), len(panels(measures))
    assert image.mode == "RGB" and image.size[0] == 1024 and count == 5
    for number in range(count):
        rows = panel_rows(image, number, count)
        assert columns_of(image, chart.BOUNDARY, rows) == {round(frame_x(frame, 61)) for frame in (25, 43)}
        assert columns_of(image, chart.CUT, rows) == {round(frame_x(50, 61))}
    assert frame_x(0, 61) == chart.LEFT_PX and frame_x(60, 61) == 1024 - chart.RIGHT_PX


def test_every_panel_shows_its_curve(measures):
    image, shown = draw_report(measures), panels(measures)
    pixels = np.asarray(image).astype(int)
    for number, panel in enumerate(shown):
        rows = panel_rows(image, number, len(shown))
        part = pixels[rows.start - 5 : rows.stop + 3]
        drawn = (np.abs(part - ImageColor.getrgb(panel.color)).sum(-1) < 150).any(0)
        # The curve crosses nearly every column, and stands where its scale says.
        assert drawn[chart.LEFT_PX + 20 : 1024 - chart.RIGHT_PX].mean() > 0.9
    distance, scale = shown[2], scale_of(shown[2])
    rows = panel_rows(image, 2, len(shown))
    for frame in (10, 35, 55):
        height = round((rows.stop + 2) - chart.PANEL_PX * scale.height(distance.values[frame]))
        around = pixels[height - 2 : height + 3, round(frame_x(frame, 61))]
        assert (np.abs(around - ImageColor.getrgb(distance.color)).sum(-1) < 120).any()


def test_unknown_chunks_draw_no_boundaries(shown_frames):
    found = measure(stream(shown_frames[:24]))
    image, count = draw_report(found), len(panels(found))
    assert count == 3
    assert not columns_of(image, chart.BOUNDARY, panel_rows(image, 1, count))


def test_long_videos_with_many_chunks_are_drawn(shown_frames):
    found = measure(stream(shown_frames[:, ::4, ::4].repeat(4, 1, 1, 1)), lay_out(244, (4, 2)))
    image = draw_report(found)
    assert image.size[0] == 1024 and len(image.getcolors(1 << 20)) > 500


@pytest.mark.parametrize(
    ("span", "steps", "want"), [(60, 8, 10), (1, 3, 0.5), (7.2, 3, 2.5), (1e-4, 3, 5e-5), (2000, 8, 250)]
)
def test_nice_steps(span, steps, want):
    assert nice_step(span, steps) == pytest.approx(want)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video(shown_frames, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "video.mp4"
    write_video(stream(shown_frames), path)
    return path


def test_command_writes_all_files(video, tmp_path, capsys):
    files = {kind: tmp_path / "new" / f"report.{kind}" for kind in ("json", "csv", "png")}
    options = [str(part) for kind, path in files.items() for part in (f"--{kind}", path)]
    assert main([str(video), "--chunks", "25,18", "--text", "a video", *options]) == 0
    printed = capsys.readouterr()
    assert "61 frames, 160x96" in printed.out and "at frame 43" in printed.out
    assert "needs --clip" in printed.err
    found = json.loads(files["json"].read_text())
    assert found["boundaries"] == [25, 43] and found["cuts"]["frames"] == [50]
    assert found["seams"]["joins"][1]["score"] > 5 * found["seams"]["joins"][0]["score"]
    assert len(files["csv"].read_text().splitlines()) == 62
    with Image.open(files["png"]) as image:
        assert image.format == "PNG" and image.size[0] == 1024


def test_command_as_people_call_it(video, tmp_path):
    command = [sys.executable, "-m", "streaming_core.metrics", str(video), "--json", str(tmp_path / "r.json")]
    result = subprocess.run(command, cwd=dev.ROOT, env=dev.child_environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "windows, chunks unknown" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["chunks_known"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunks", "25;18"], "whole numbers such as 25,18"),
        (["--raft", "absent.pth"], "download https://"),
        (["--clip", "absent"], "no config.json"),
        (["--anchor", "absent.png"], "cannot be read as an image"),
        (["--json", "{video}/report.json"], "cannot be written"),
    ],
)
def test_command_says_what_is_wrong(video, capsys, options, message):
    assert main([str(video), *[option.format(video=video) for option in options]]) == 1
    assert message in capsys.readouterr().err


def test_command_refuses_what_is_no_video(tmp_path, capsys):
    assert main([str(tmp_path / "absent.mp4")]) == 1
    assert "absent.mp4" in capsys.readouterr().err


def test_raft_is_found_in_the_comfyui_around_the_pack(tmp_path, monkeypatch):
    from streaming_core.metrics import __main__ as command

    here = tmp_path / "ComfyUI" / "custom_nodes" / "pack" / "streaming_core" / "metrics" / "__main__.py"
    monkeypatch.setattr(command, "__file__", str(here))
    assert command.installed_raft() is None
    folder = tmp_path / "ComfyUI" / "models" / "optical_flow"
    folder.mkdir(parents=True)
    for name in (RAFT_FILE.replace(".pth", ".safetensors"), RAFT_FILE):
        (folder / name).touch()
        assert command.installed_raft() == folder / name


# -- CLIP from a folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A tiny CLIP with random weights, saved as downloaded ones are."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    characters = [f"{c}{end}" for end in ("", "</w>") for c in "abcdefghijklmnopqrstuvwxyz"]
    words = {word: number for number, word in enumerate([*characters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = {**sizes, "vocab_size": len(words), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_from_a_folder(clip_folder, shown_frames, video, tmp_path):
    tools = load_clip(clip_folder, "a cat")
    assert tools.name == "tiny-clip" and tools.text.shape == (16,)
    with torch.inference_mode():
        embeddings = tools.embed_frames(shown_frames[:3])
    assert embeddings.shape == (3, 16)
    assert not torch.equal(load_clip(clip_folder, "a dog").text, tools.text)
    assert load_clip(clip_folder, "long " * 200).text.isfinite().all()
    path = tmp_path / "r.json"
    assert main([str(video), "--clip", str(clip_folder), "--text", "a cat", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["text_score"]["model"] == "tiny-clip"
    want = torch.nn.functional.cosine_similarity(embeddings[0], tools.text, dim=0)
    assert found["curves"]["text_similarity"][0] == pytest.approx(float(want), abs=0.02)  # the file is compressed
    assert found["curves"]["anchor_similarity"][0] == pytest.approx(1)


def test_incomplete_clip_is_refused(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes() if (clip_folder / name).exists() else b"")
    weights = load_file(clip_folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "visual_projection.weight"},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=r"lacks 1 keys of CLIP \(first visual_projection.weight\)"):
        load_clip(tmp_path)


def test_clip_pixels_keep_the_center():
    frames = torch.zeros(1, 60, 100, 3)
    frames[:, :, 20:80] = 1
    pixels = clip_pixels(frames, 30)
    assert pixels.shape == (1, 3, 30, 30)
    assert (pixels[0, 0, :, 2:-2] > 1.5).all()
