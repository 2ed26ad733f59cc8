"""Keyframes and the frames between them: exact lengths, kept keyframes, resume, reroll, levels, refusals."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import dev
from hosting.inprocess import import_host, import_pack
from streaming_core.errors import RunMismatchError, SettingsError
from streaming_core.frames import TensorFrames
from streaming_core.frames.slices import MOST_FRAMES
from streaming_core.loop.chunk import Chunk
from streaming_core.loop.fillers import SampledGaps
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.sampler import ChunkSampler
from streaming_core.loop.script import Script, parse_cues
from streaming_core.loop.state import Anchor, ChunkResult
from streaming_core.runs.care import use_take
from streaming_core.runs.folder import RunFolder

import_host()
import_pack()

from comfyui_streamingt2v.nodes.hierarchy import FillBetween, KeyframePlan  # noqa: E402
from comfyui_streamingt2v.nodes.host.interpolation.load import gap_filler, load_ema_vfi  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import gaps, handed_out, inspector, reroll, videos  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs.gaps import FillRequest, fill_between, level_names  # noqa: E402

from tiny_models.ema_vfi import write_tiny_ema_vfi  # noqa: E402

HEIGHT, WIDTH = 16, 24
SIZES = {"chunk_frames": 8, "overlap_frames": 3, "width": WIDTH, "height": HEIGHT, "fit": "crop"}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    for module in (videos, reroll, handed_out, gaps, inspector):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    monkeypatch.setattr(KeyframePlan, "hidden", SimpleNamespace(unique_id=None))
    with torch.inference_mode():
        yield tmp_path


@dataclass(frozen=True)
class Both(ChunkSampler):
    """Makes chunks of noise, and gaps that mix both ends with noise; frames tell seed, index, prompt and ends."""

    strength: float = 0.25
    made: list[int] = field(default_factory=list, compare=False)
    stop_at: int | None = None

    family = "both"
    fills = True
    starts_from = frozenset({"prompt", "image", "frames"})
    follows = frozenset({"prompt", "motion"})

    @property
    def size_multiple(self) -> int:
        return 8

    def identity(self) -> dict:
        return {"strength": self.strength}

    def steps(self, chunk: Chunk) -> int:
        return 1

    def _noise(self, chunk: Chunk, height: int, width: int) -> Tensor:
        if chunk.index == self.stop_at:
            raise KeyboardInterrupt
        self.made.append(chunk.index)
        noise = torch.rand(chunk.num_frames, 3, height, width, generator=chunk.generator())
        return noise * (1 + len(chunk.prompt or "")) / 16

    def first_chunk(self, chunk: Chunk, size: tuple[int, int], image: Tensor | None) -> ChunkResult:
        return ChunkResult(self._noise(chunk, *size))

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        return 0.5 * self._noise(chunk, *tail.shape[-2:]) + 0.5 * tail.mean()

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        return latents[chunk.overlap_frames :]

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        weights = torch.linspace(0, 1, chunk.num_frames).reshape(-1, 1, 1, 1)
        mixed = first + (last - first) * weights
        return (1 - self.strength) * mixed + self.strength * self._noise(chunk, *first.shape[-2:])


def frames(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def fill(keyframes, sampler=None, name="video", stride=3, levels=1, num_frames=0, seed=5, plan=None):
    stream = TensorFrames(keyframes, Fraction(4)) if isinstance(keyframes, Tensor) else keyframes
    filler = SampledGaps(sampler or Both(), stride)
    return fill_between(stream, filler, FillRequest(stride, levels, num_frames, seed, name, plan))


def read(stream) -> Tensor:
    return stream.read(0, len(stream))


def files(root: Path, name: str = "video") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / name).glob("chunk_*"))}


@pytest.mark.parametrize(("stride", "levels"), [(2, 1), (3, 1), (5, 1), (2, 2), (3, 2), (2, 3)])
def test_lengths_are_exact_and_keyframes_stay_bit_for_bit(stride, levels):
    keyframes, step = frames(4), stride**levels
    for num_frames in sorted({0, 1, 2, step, step + 1, 2 * step, 3 * step - 1, 3 * step + 1}):
        stream = fill(keyframes, name=f"video {num_frames}", stride=stride, levels=levels, num_frames=num_frames)
        length = num_frames or 3 * step + 1
        video = read(stream)
        assert video.shape == (length, HEIGHT, WIDTH, 3) and stream.fps == 4 * step
        assert torch.equal(video[::step], keyframes[: len(video[::step])])
        rest = [index for index in range(length) if index % step]
        assert len({video[index].numpy().tobytes() for index in rest}) == len(rest), "every frame once"


def test_a_longer_video_keeps_its_gaps(root):
    sampler, keyframes = Both(), frames(5)
    short = read(fill(keyframes, sampler, num_frames=5))
    assert sampler.made == [0, 1]
    long = read(fill(keyframes, sampler, num_frames=13))
    assert sampler.made == [0, 1, 2, 3] and torch.equal(long[:5], short)
    assert torch.equal(read(fill(keyframes, sampler, num_frames=5)), short) and len(sampler.made) == 4


def test_keyframes_of_a_run_and_a_whole_video_by_the_nodes(root):
    widgets = {"num_frames": 40, "seconds": 0.0, "fps": 12.0, "stride": 3, "levels": 1, "chunk_frames": 8}
    cues = {"seed_mode": "fixed", "seed": 5, "seeds": "", "cam_strength": "", "anchor_strength": "", "motion": ""}
    node = KeyframePlan.execute(**widgets, overlap_frames=3, prompts="0: a dog\n00:02: a lion", **cues)
    plan, table, num_frames, stride, levels = node.args
    assert (plan.num_frames, plan.fps, num_frames, stride, levels) == (14, 4, 40, 3, 1)
    assert "one keyframe every 3 frames" in table and "14 frames" in table
    sampler = Both()
    given = {"num_frames": 1, "seed": 0, "anchor_frame": 0, **SIZES}
    keyframes = videos.make_video(sampler, videos.plan_video(**given, plan=plan), "keyframes")
    assert len(keyframes) == 14 and keyframes.fps == 4
    request = {"stride": stride, "levels": levels, "num_frames": num_frames, "seed": 7, "run_name": "whole"}
    stream = FillBetween.execute(keyframes, chunk_sampler=sampler, plan=plan, **request).args[0]
    assert len(stream) == 40 and stream.fps == 12 and torch.equal(read(stream)[::3], read(keyframes))
    records = RunFolder.open(root, "whole").manifest.records
    # Second 2 is keyframe 8, the first of chunk 1; the gaps that lead to chunk 1 have its prompt.
    assert [record.own["prompt"] for record in records] == ["a dog"] * 7 + ["a lion"] * 6
    text, sheet = inspector.describe("whole")
    assert "40 frames" in text and "made by both gaps" in text and text.count("complete") == 13


@pytest.mark.parametrize(("fps", "stride", "levels", "second"), [(24.0, 4, 1, 5), (24.0, 3, 2, 7), (23.976, 8, 1, 9)])
def test_a_time_in_a_keyframe_plan_is_a_time_of_the_video(fps, stride, levels, second):
    widgets = {"num_frames": 400, "seconds": 0.0, "fps": fps, "stride": stride, "levels": levels, "chunk_frames": 6}
    cues = {"seed_mode": "fixed", "seed": 5, "seeds": "", "cam_strength": "", "anchor_strength": "", "motion": ""}
    node = KeyframePlan.execute(**widgets, overlap_frames=2, prompts=f"0: a\n00:{second:02d}: b", **cues)
    plan, step = node.args[0], stride**levels
    rate = Fraction(24000, 1001) if fps < 24 else Fraction(24)
    assert plan.fps * step == rate
    for chunk in plan.chunks:
        # Keyframe k is frame k * step of the video and is shown until the next one.
        ends = chunk.stop * step / rate
        assert chunk.prompt == ("b" if ends > second else "a"), (chunk, ends)


def test_a_keyframe_plan_refuses_what_cannot_be():
    widgets = {"num_frames": 400, "seconds": 0.0, "fps": 12.0, "chunk_frames": 6, "overlap_frames": 2, "prompts": ""}
    cues = {"seed_mode": "fixed", "seed": 5, "seeds": "", "cam_strength": "", "anchor_strength": ""}
    with pytest.raises(
        SettingsError, match="keyframes would be 16777216 frames apart, 1398101 s; use a smaller stride"
    ):
        KeyframePlan.execute(**widgets, **cues, stride=64, levels=4)
    with pytest.raises(SettingsError, match="overlap_frames must be 1 to 5"):
        KeyframePlan.execute(**{**widgets, **cues, "overlap_frames": 6}, stride=2, levels=1)


def test_a_canceled_video_continues_in_its_gap(root):
    keyframes = frames(6)
    whole = read(fill(keyframes, name="whole"))
    with pytest.raises(KeyboardInterrupt):
        fill(keyframes, replace(Both(), stop_at=3))
    before = files(root)
    assert list(before) == [f"chunk_{index:05d}.safetensors" for index in range(3)]
    sampler = Both()
    assert torch.equal(read(fill(keyframes, sampler)), whole) and sampler.made == [3, 4]
    assert before.items() <= files(root).items()


CHILD = """
import sys, time
from pathlib import Path
import torch
from tests.host import test_hierarchy_inprocess as test

for module in (test.videos, test.handed_out, test.gaps):
    module.runs_root = lambda: Path(sys.argv[1])

class Slow(test.Both):
    def fill(self, first, last, chunk):
        print("gap", chunk.index, flush=True)
        if chunk.index == 3:
            time.sleep(60)
        return super().fill(first, last, chunk)

with torch.inference_mode():
    test.fill(test.frames(6), Slow())
"""


@pytest.mark.slow
def test_a_video_that_was_killed_in_gap_3_continues_there(root):
    whole = read(fill(frames(6), name="whole"))
    command = [sys.executable, "-c", CHILD, str(root)]
    with subprocess.Popen(command, cwd=dev.ROOT, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.strip() == "gap 3":
                child.kill()
                break
    assert child.returncode == -signal.SIGKILL
    before, sampler = files(root), Both()
    assert len(before) == 3
    assert torch.equal(read(fill(frames(6), sampler)), whole) and sampler.made == [3, 4]
    assert before.items() <= files(root).items()


def test_a_changed_keyframe_makes_its_two_gaps_again_and_on_deeper_levels_theirs(root, caplog):
    caplog.set_level(logging.INFO)
    keyframes, sampler = frames(6), Both()
    before = read(fill(keyframes, sampler, levels=2))
    sampler.made.clear()
    other = keyframes.clone()
    other[2] = 1 - other[2]
    video = read(fill(other, sampler, levels=2))
    assert sampler.made == [1, 2, *range(3, 9)]
    assert "chunks 1 to 2 are made again because last keyframe has other values" in caplog.text
    same = [index for index in range(len(video)) if torch.equal(video[index], before[index])]
    assert same == [*range(0, 10), *range(27, 46)], "all frames of other gaps"
    sampler.made.clear()
    assert torch.equal(read(fill(keyframes, sampler, levels=2)), before) and sampler.made == [], "and back"


def test_a_rerolled_gap_leaves_every_other_byte_alone(root):
    keyframes, sampler = frames(6), Both()
    before = read(fill(keyframes, sampler))
    stored = files(root)
    sampler.made.clear()
    request = reroll.RerollRequest((2,), "new", 1, reroll.SCOPES[0])
    video = read(reroll.reroll(sampler, "video", request))
    assert sampler.made == [2]
    assert {name: content for name, content in files(root).items() if name in stored} == stored
    changed = [index for index in range(len(video)) if not torch.equal(video[index], before[index])]
    assert changed == [7, 8]
    sampler.made.clear()
    assert torch.equal(read(fill(keyframes, sampler)), video) and sampler.made == [], "the reroll stays"
    assert torch.equal(read(reroll.reroll(sampler, "video", request)), video) and sampler.made == []
    given = reroll.RerollRequest((2,), "given", 5, reroll.SCOPES[0])
    assert torch.equal(read(reroll.reroll(sampler, "video", given)), before), "the same seed, the same frames"
    with RunFolder.open(root, "video", write=True) as run:
        use_take(run, 2, 1)
    assert torch.equal(read(RunFolder.open(root, "video").frames_stream()), video)


def test_a_rerolled_gap_of_a_level_makes_those_inside_of_it_again(root):
    keyframes, sampler = frames(4), Both()
    before = read(fill(keyframes, sampler, levels=2))
    reroll.reroll(sampler, "video level 1", reroll.RerollRequest((1,), "new", 1, reroll.SCOPES[0]))
    sampler.made.clear()
    video = read(fill(keyframes, sampler, levels=2))
    assert sampler.made == [3, 4, 5]
    changed = [index for index in range(len(video)) if not torch.equal(video[index], before[index])]
    assert changed == [*range(10, 18)]


def test_a_prompt_belongs_to_its_gaps(root):
    keyframes, sampler = frames(6), Both()

    def planned(text: str) -> VideoPlan:
        return VideoPlan(6, 3, 1, fps=Fraction(4), script=Script(prompts=parse_cues(text), fps=Fraction(4)))

    first = read(fill(keyframes, sampler, plan=planned("0: a dog\n1: a lion")))
    assert not torch.equal(first, read(fill(keyframes, sampler, name="other", plan=planned("0: a dog"))))
    sampler.made.clear()
    fill(keyframes, sampler, plan=planned("0: a dog\n1: a mouse"))
    assert sampler.made == [2, 3, 4], "chunk 0 has keyframes 0 to 2"
    # A reroll reads the plan back and keeps to the prompt.
    reroll.reroll(sampler, "video", reroll.RerollRequest((3,), "new", 1, reroll.SCOPES[0]))
    record = RunFolder.open(root, "video").record(3)
    assert record is not None and record.own["prompt"] == "a mouse" and record.rerolled


def test_prompts_follow_the_chunks_that_keyframes_really_have(root):
    """The plan as it is connected does not know lengths that were fitted to the model, nor start_frames."""

    @dataclass(frozen=True)
    class Even(Both):
        def fit(self, chunk_frames, overlap_frames):
            return chunk_frames + chunk_frames % 2, overlap_frames

    script = Script(prompts=parse_cues("0: a dog\n1: a lion"))
    plan = VideoPlan(12, 7, 3, fps=Fraction(4), script=script)
    given = {"num_frames": 1, "seed": 0, "anchor_frame": 0, **SIZES}
    for name, start, first in (("fitted", None, 8), ("given", frames(5), 5)):
        keyframes = videos.make_video(Even(), videos.plan_video(**given, plan=plan, start_frames=start), name)
        fill(keyframes, Even(), name=f"{name} filled", plan=plan)
        prompts = [record.own["prompt"] for record in RunFolder.open(root, f"{name} filled").manifest.records]
        assert prompts == ["a dog"] * (first - 1) + ["a lion"] * (12 - first)


def test_one_gap_is_in_memory_at_a_time(root):
    alive, most, widest = weakref.WeakSet(), 0, 0

    class Watched(Both):
        def fill(self, first, last, chunk):
            nonlocal most
            made = super().fill(first, last, chunk).clone()
            alive.add(made.untyped_storage())
            most = max(most, len(alive))
            return made

    class Read(TensorFrames):
        def _read(self, start, stop):
            nonlocal widest
            widest = max(widest, stop - start)
            return super()._read(start, stop)

    fill(Read(frames(60), Fraction(4)), Watched(), levels=2, stride=2)
    assert most == 1 and widest <= MOST_FRAMES


def test_a_rerolled_keyframe_finds_its_unnamed_run_again(root):
    sampler = Both()
    keyframes = videos.make_video(sampler, videos.plan_video(num_frames=13, seed=0, anchor_frame=0, **SIZES), "keys")
    stream = fill(keyframes, sampler, name="")
    other = reroll.reroll(sampler, "keys", reroll.RerollRequest((0,), "new", 1, reroll.SCOPES[0]))
    same = [torch.equal(*pair) for pair in zip(read(keyframes), read(other), strict=True)]
    assert same == [False] * 8 + [True] * 5
    sampler.made.clear()
    again = fill(other, sampler, name="")
    assert again.run_name == stream.run_name and sampler.made == list(range(8))
    assert fill(other, sampler, name="", seed=6).run_name != stream.run_name


def test_levels_have_other_noise():
    """With ends that are alike, two levels with the same noise would show the same frames."""
    video = read(fill(frames(1).expand(3, -1, -1, -1), stride=2, levels=2))
    assert not torch.allclose(video[2] - video[0], video[1] - video[0], atol=1e-2)


def test_settings_and_sizes_enter_the_identity(root):
    keyframes = frames(4)
    names = {
        fill(keyframes, *arguments, name="", **options).run_name
        for arguments, options in (
            ((), {}),
            ((), {"seed": 6}),
            ((Both(strength=0.5),), {}),
            ((), {"stride": 4}),
            ((), {"levels": 2}),
        )
    }
    assert len(names) == 4, "an unnamed video is named after what its first gap is made with"
    assert fill(keyframes, name="").run_name in names
    assert all(name.startswith("both_gaps_") for name in names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_frames": 11}, "11 frames need 5 keyframes, one every 3 frames, but there are 4; make more keyframes, or "
         "set num_frames to at most 10"),
        ({"levels": 2, "num_frames": 29}, "29 frames need 5 keyframes, one every 9 frames, but there are 4"),
        ({"keyframes": frames(1), "num_frames": 2}, "2 frames need 2 keyframes, one every 3 frames, but there are 1"),
        ({"keyframes": frames(4)[:, :12]}, "height must be a multiple of 8 pixels, got 12; try 16"),
        ({"plan": VideoPlan(3, 3, 1, script=Script(prompts=parse_cues("a dog")))}, "plan is for 3 keyframes, but there "
         "are 4"),
        ({"plan": VideoPlan(4, 3, 1)}, "plan has no effect: it sets neither prompts nor motion"),
        ({"levels": 4, "stride": 64}, "keyframes at 4 fps become a video of .* fps, more than 1000"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(root, options, words):
    sampler = Both()
    with pytest.raises(SettingsError, match=words):
        fill(**{"keyframes": frames(4), "sampler": sampler, **options})
    assert sampler.made == [] and list(root.iterdir()) == []


def test_one_frame_is_a_video_without_gaps(root):
    sampler, keyframes = Both(), frames(1)
    for stream in (fill(keyframes, sampler), fill(frames(3), sampler, num_frames=1)):
        assert torch.equal(read(stream), keyframes) and stream.fps == 12
    assert sampler.made == [] and list(root.iterdir()) == []


def test_exactly_one_thing_fills(root):
    keyframes = TensorFrames(frames(2), Fraction(4))
    request = {"stride": 3, "levels": 1, "num_frames": 0, "seed": 0, "run_name": ""}
    with pytest.raises(SettingsError, match="^nothing fills the gaps: connect chunk_sampler or interp_model$"):
        FillBetween.execute(keyframes, **request)
    with pytest.raises(
        SettingsError, match="^chunk_sampler and interp_model cannot both fill the gaps; disconnect one"
    ):
        FillBetween.execute(keyframes, chunk_sampler=Both(), interp_model=object(), **request)

    class Unable(Both):
        fills = False

    with pytest.raises(SettingsError, match="both cannot fill a gap between two frames"):
        FillBetween.execute(keyframes, chunk_sampler=Unable(), **request)
    with pytest.raises(SettingsError, match="is not an interpolation model"):
        FillBetween.execute(keyframes, interp_model=SimpleNamespace(model=object()), **request)


def test_other_runs_of_a_name_are_refused_before_the_first_level(root):
    sampler = Both()
    plan = videos.plan_video(num_frames=4, seed=0, anchor_frame=0, **SIZES)
    keyframes = videos.make_video(sampler, plan, "video")
    sampler.made.clear()
    with pytest.raises(
        RunMismatchError, match="run 'video' was made by 'both', not 'both gaps'; choose another run name"
    ):
        fill(keyframes, sampler, levels=2)
    assert sampler.made == [] and [path.name for path in root.iterdir()] == ["video"]
    fill(keyframes, sampler, name="filled")
    with pytest.raises(RunMismatchError, match="run 'filled' was made by 'both gaps', not 'both'"):
        videos.make_video(sampler, plan, "filled")
    with pytest.raises(RunMismatchError, match="24x16, 32x16 was asked for"):
        fill(torch.rand(3, 16, 32, 3), sampler, name="filled")


def test_what_cannot_be_rerolled_is_refused(root):
    keyframes, sampler = frames(4), Both()
    fill(keyframes, sampler)
    sampler.made.clear()

    def refused(words: str, sampler: ChunkSampler = sampler, chunks=(1,), scope=0, error=SettingsError) -> None:
        with pytest.raises(error, match=words):
            reroll.reroll(sampler, "video", reroll.RerollRequest(chunks, "new", 1, reroll.SCOPES[scope]))

    refused("run 'video' holds gaps between keyframes, .* set scope to 'selected only'", scope=1)
    refused("chunk 3 is not in this video of 3 chunks", chunks=(3,))
    refused("made with other settings: .*strength changed 0.25 -> 0.5", Both(0.5), error=RunMismatchError)

    class Other(Both):
        family = "other"

    refused("run 'video' was filled by 'both', not 'other'", Other(), error=RunMismatchError)
    with pytest.raises(KeyboardInterrupt):
        fill(frames(4, seed=2), replace(sampler, stop_at=1))
    refused("chunk 1 of run 'video' is not finished; run .* first to complete the video")
    assert sampler.made == [0]


def test_a_run_that_changed_under_the_node_is_noticed(root):
    keyframes, sampler = frames(4), Both()
    seen = {"run_name": "noticed", "levels": 2}
    before = FillBetween.fingerprint_inputs(**seen)
    fill(keyframes, sampler, name="noticed", levels=2)
    assert FillBetween.fingerprint_inputs(**seen) == before, "making it is no change"
    reroll.reroll(sampler, "noticed level 1", reroll.RerollRequest((1,), "new", 1, reroll.SCOPES[0]))
    rerolled = FillBetween.fingerprint_inputs(**seen)
    assert rerolled == before + 1 and FillBetween.fingerprint_inputs(**seen) == rerolled
    stream = fill(keyframes, sampler, name="")
    count = FillBetween.fingerprint_inputs(run_name="", levels=1)
    next((root / stream.run_name).glob("chunk_*")).unlink()
    assert FillBetween.fingerprint_inputs(run_name=None, levels=None) == count + 1
    assert level_names("a", 3) == ("a level 1", "a level 2", "a")


@pytest.fixture
def ema_vfi(tmp_path_factory, monkeypatch):
    """Loads the same tiny EMA-VFI with settings of its own."""
    from comfyui_streamingt2v.nodes.host.interpolation import load
    from comfyui_streamingt2v.nodes.interpolation import EmaVfiSettings

    path = write_tiny_ema_vfi(tmp_path_factory.mktemp("models") / "ours_t.safetensors")
    monkeypatch.setattr(load, "interpolation_file", lambda name: str(path))
    return lambda *settings: load_ema_vfi("ours_t.safetensors", EmaVfiSettings(*settings), torch.float32)


def test_an_interpolation_model_fills(root, ema_vfi, caplog):
    keyframes = torch.rand(4, 32, 48, 3) * 0.1 + 0.4
    stream = TensorFrames(keyframes, Fraction(4))
    patcher = ema_vfi(True, "off", 1.0)
    request = FillRequest(4, 1, 11, 0, "video")
    video = read(fill_between(stream, gap_filler(patcher, 4), request))
    assert video.shape == (11, 32, 48, 3) and torch.equal(video[::4], keyframes[:3])
    stored = files(root)
    assert len(stored) == 3
    assert torch.equal(read(fill_between(stream, gap_filler(patcher, 4), replace(request, seed=9))), video)
    again = read(fill_between(stream, gap_filler(ema_vfi(True, "off", 1.0), 4), request))
    assert torch.equal(again, video) and files(root) == stored, "the same model again is the same"
    caplog.set_level(logging.INFO)
    fill_between(stream, gap_filler(ema_vfi(False, "off", 1.0), 4), request)
    assert len(files(root)) == 6 and "any_time" in caplog.text
    with pytest.raises(
        RunMismatchError, match="run 'video' was filled by an interpolation model, which makes the same"
    ):
        reroll.reroll(Both(), "video", reroll.RerollRequest((1,), "new", 1, reroll.SCOPES[0]))
    with pytest.raises(SettingsError, match="plan has no effect with interp_model"):
        plan = VideoPlan(4, 3, 1, script=Script(prompts=parse_cues("a dog")))
        fill_between(stream, gap_filler(patcher, 4), replace(request, plan=plan))
