"""Chunks drawn anew: which model calls happen, which files change, what the video looks like then."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import RunDamagedError, RunMismatchError, SettingsError
from streaming_core.loop.plan import Beginning, VideoPlan
from streaming_core.loop.script import Cue, Script
from streaming_core.runs.care import delete_older, set_aside_damaged, use_take
from streaming_core.runs.folder import RunFolder
from tests.host.painted import PaintedChunks

FRAMES, OVERLAP, HEIGHT, WIDTH = 6, 2, 16, 24
STEP, NUM_FRAMES, NUM_CHUNKS = FRAMES - OVERLAP, 24, 6
"""Chunk 0 shows frames 0-5, chunk k frames 4k + 2 to 4k + 5."""


@pytest.fixture(scope="module")
def host():
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.runs import reroll, videos

    return {"videos": videos, "reroll": reroll}


class Run:
    """A run of the test's own: makes its video, or chunks of it anew; both return its frames."""

    def __init__(self, host, name: str):
        self.host, self.name = host, name
        self.sampler = PaintedChunks()
        self.image = image = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(3))
        self.plan = host["videos"].plan_video(
            NUM_FRAMES, FRAMES, OVERLAP, WIDTH, HEIGHT, "crop", 7, 1, fps=4, start_image=image
        )

    def video(self, name: str | None = None, **changes) -> torch.Tensor:
        stream = self.host["videos"].make_video(self.sampler, replace(self.plan, **changes), name or self.name)
        return stream.read(0, len(stream))

    def reroll(self, *chunks, mode="new", seed=1, scope="selected only", sampler=None) -> torch.Tensor:
        wanted = self.host["reroll"].RerollRequest(chunks, mode, seed, scope)
        stream = self.host["reroll"].reroll(sampler or self.sampler, self.name, wanted)
        return stream.read(0, len(stream))

    def calls(self) -> list[int]:
        """Chunks the model was called for since this was asked last."""
        calls = list(self.sampler.calls)
        self.sampler.calls.clear()
        return calls

    def open(self, write=False) -> RunFolder:
        return RunFolder.open(self.host["videos"].runs_root(), self.name, write=write)

    def files(self) -> dict[str, tuple[int, str]]:
        return {
            path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in self.open().path.glob("chunk_*")
        }

    def records(self) -> dict:
        return {record.index: record for record in self.open().chunks}


@pytest.fixture
def run(host, request) -> Run:
    return Run(host, request.node.name)


def frames_of(index: int) -> slice:
    return slice(0, FRAMES) if index == 0 else slice(FRAMES + (index - 1) * STEP, FRAMES + index * STEP)


def test_only_the_chosen_chunks_are_made_and_no_other_file_is_touched(run, caplog):
    before = run.video()
    assert run.calls() == list(range(NUM_CHUNKS))
    files = run.files()
    after = run.reroll(2, 4)
    assert run.calls() == [2, 4]
    assert {name: run.files()[name] for name in files} == files, "others and older ones keep time and content"
    assert set(run.files()) - set(files) == {"chunk_00002.t1.safetensors", "chunk_00004.t1.safetensors"}
    for index in range(NUM_CHUNKS):
        same = torch.equal(before[frames_of(index)], after[frames_of(index)])
        assert same == (index not in (2, 4)), f"chunk {index}"
    caplog.set_level(logging.INFO)
    again = run.video()
    assert run.calls() == [] and torch.equal(again, after), "Stream Sampler keeps what was drawn anew"
    seeds = [run.records()[index].seed for index in (2, 4)]
    assert f"rerolled and kept so: chunk 2 (seed {seeds[0]}), 4 (seed {seeds[1]})" in caplog.text
    assert len({*seeds, 7}) == 3


def test_the_end_of_a_chunk_drawn_anew_passes_over_into_what_was_continued(run):
    before = run.video()
    after = run.reroll(2)
    new = run.open().chunk_file(2).read("frames").float() / 255
    old, seen = before[frames_of(2)], after[frames_of(2)]
    # Four frames, the last two of them shared with the next chunk.
    assert torch.equal(seen[:2], new[:2])
    for frame, weight in ((2, 1 / 3), (3, 2 / 3)):
        assert torch.allclose(seen[frame], new[frame] * (1 - weight) + old[frame] * weight, atol=1e-6)


def test_neighbors_drawn_anew_together_need_no_seam(run):
    run.video()
    run.calls()
    after = run.reroll(2, 3)
    assert run.calls() == [2, 3]
    new = run.open().chunk_file(2).read("frames").float() / 255
    assert torch.equal(after[frames_of(2)], new)
    # Later the chunk behind a seam is drawn anew too: it continues what is there, and the seam is gone.
    single = run.reroll(4)
    assert torch.equal(single[frames_of(3)], run.open().chunk_file(3).read("frames").float() / 255)


def test_a_second_drawing_still_ends_like_what_was_continued(run):
    before = run.video()
    run.reroll(2, seed=1)
    after = run.reroll(2, seed=2)
    record = run.records()[2]
    assert record.file == "chunk_00002.t2.safetensors"
    new = run.open().chunk_file(2).read("frames").float() / 255
    last = frames_of(2).stop - 1
    assert torch.allclose(after[last], new[-1] / 3 + before[last] * 2 / 3, atol=1e-6)


def test_all_after_continue_it(run):
    before = run.video()
    run.calls()
    after = run.reroll(3, scope="selected and following", mode="given", seed=99)
    assert run.calls() == [3, 4, 5]
    assert torch.equal(after[: frames_of(3).start], before[: frames_of(3).start])
    records = run.records()
    assert [records[index].seed for index in range(NUM_CHUNKS)] == [7, 7, 7, 99, 7, 7]
    # The same as a video planned so from the beginning, and Stream Sampler has nothing to do.
    script = Script(seeds=(Cue(99, 3), Cue(7, 4)))
    assert torch.equal(run.video(name="planned so", script=script), after)
    run.calls()
    assert torch.equal(run.video(), after) and run.calls() == []


def test_the_first_clip_can_be_drawn_anew(run):
    before = run.video()
    run.calls()
    only = run.reroll(0)
    assert run.calls() == [0]
    assert torch.equal(only[FRAMES:], before[FRAMES:]) and not torch.equal(only[:FRAMES], before[:FRAMES])
    kept = run.open().chunk_file(0).read("anchor")
    everything = run.reroll(0, scope="selected and following", seed=5)
    assert run.calls() == list(range(NUM_CHUNKS))
    assert not torch.equal(run.open().chunk_file(0).read("anchor"), kept), "the anchor is a frame of the first clip"
    assert torch.equal(run.video(), everything) and run.calls() == []


def test_the_same_request_again_goes_on_where_it_stopped(run, monkeypatch):
    run.video()
    run.calls()
    original = PaintedChunks.sample_chunk

    def stops(sampler, chunk, *args):
        if chunk.index == 4:
            raise InterruptedError
        return original(sampler, chunk, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PaintedChunks, "sample_chunk", stops)
        with pytest.raises(InterruptedError):
            run.reroll(2, 4)
    run.calls()
    first = run.reroll(2, 4)
    assert run.calls() == [4]
    assert torch.equal(run.reroll(2, 4), first) and run.calls() == []
    run.reroll(2, 4, seed=8)
    assert run.calls() == [2, 4]


def test_what_is_there_is_not_made_again_whatever_else_is_asked_for(run):
    run.video()
    run.reroll(2)
    run.calls()
    run.reroll(2, 4)
    assert run.calls() == [4]
    run.reroll(1, 2)
    assert run.calls() == [1, 2], "chunk 2 has the seed, but continues another chunk 1 now"
    run.reroll(1, scope="selected and following")
    assert run.calls() == [3, 4, 5], "these continued older drawings"
    run.reroll(1, scope="selected and following")
    assert run.calls() == []
    run.reroll(4, mode="given", seed=run.records()[4].seed)
    assert run.calls() == []


def test_older_drawings_can_be_chosen_again_and_deleted(run):
    before = run.video()
    after = run.reroll(2)
    with run.open(write=True) as folder:
        use_take(folder, 2, 0)
        assert torch.equal(folder.frames_stream(NUM_FRAMES).read(0, NUM_FRAMES), before)
        use_take(folder, 2, 1)
        assert torch.equal(folder.frames_stream(NUM_FRAMES).read(0, NUM_FRAMES), after)
    run.calls()
    assert torch.equal(run.video(), after) and run.calls() == []
    with run.open(write=True) as folder:
        assert delete_older(folder) == 0, "chunk 3 continues the older drawing, so its seam needs it"
        use_take(folder, 2, 0)
        assert delete_older(folder) > 0
        assert len(folder.manifest.takes(2)) == 1
    assert torch.equal(run.video(), before) and run.calls() == []


def test_a_longer_video_goes_on_behind_what_was_drawn_anew(run):
    run.video()
    after = run.reroll(2)
    run.calls()
    longer = run.video(num_frames=NUM_FRAMES + STEP)
    assert run.calls() == [NUM_CHUNKS]
    assert torch.equal(longer[:NUM_FRAMES], after[:NUM_FRAMES])


def test_a_changed_setting_draws_everything_it_changes(run):
    before = run.video()
    run.reroll(2)
    run.calls()
    script = Script(cam_strength=(Cue(0.5, 4),))
    changed = run.video(script=script)
    assert run.calls() == [4, 5], "chunk 2 and the others before keep their settings"
    assert not torch.equal(changed[frames_of(4)], before[frames_of(4)])


def test_a_damaged_chunk_alone_is_made_again(run):
    before = run.video()
    run.calls()
    for index in (0, 3):
        path = run.open().chunk_file(index).path
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(RunDamagedError, match="set it aside with Run Inspector"):
        run.video()
    with run.open(write=True) as folder:
        assert set_aside_damaged(folder) == ("chunk_00000.safetensors", "chunk_00003.safetensors")
    assert torch.equal(run.video(), before)
    assert run.calls() == [0, 3]


def test_a_damaged_drawing_gives_way_to_the_older_one(run):
    before = run.video()
    run.reroll(2)
    run.calls()
    path = run.open().chunk_file(2).path
    path.write_bytes(path.read_bytes()[:100])
    with run.open(write=True) as folder:
        set_aside_damaged(folder)
    assert torch.equal(run.video(), before) and run.calls() == []


def test_what_cannot_be_drawn_anew_says_why(run):
    run.video()
    with pytest.raises(SettingsError, match=f"chunk 6 is not in this video of {NUM_CHUNKS}"):
        run.reroll(2, 6)
    with pytest.raises(RunMismatchError, match="style changed"):
        run.reroll(2, sampler=PaintedChunks(style="dots"))
    with pytest.raises(RunMismatchError, match="model changed"):
        run.reroll(2, sampler=PaintedChunks(weights="others"))
    path = run.open().chunk_file(4).path
    with run.open(write=True) as folder:
        folder.save_manifest(folder.manifest.choosing(4, folder.manifest.wanted[4], None))
    with pytest.raises(SettingsError, match="chunk 4 .* is not finished"):
        run.reroll(4)
    assert path.exists()


def test_your_own_clip_cannot_be_drawn_anew_but_what_follows_can(run):
    clip = torch.rand(FRAMES + 2, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(4))
    before = run.video(beginning=Beginning(frames=clip.movedim(-1, 1), anchor_frame=1))
    run.calls()
    after = run.reroll(1)
    assert run.calls() == [1]
    assert torch.equal(after[: FRAMES + 2], before[: FRAMES + 2])
    with pytest.raises(SettingsError, match="your own start_frames"):
        run.reroll(0)


def test_a_plan_makes_the_same_video_as_the_widgets(host, run):
    plan = VideoPlan(NUM_FRAMES, FRAMES, OVERLAP, 7, Fraction(4))
    wrong = {"num_frames": 1, "chunk_frames": 2, "overlap_frames": 1, "seed": 0, "fps": 9}
    widgets = {"width": WIDTH, "height": HEIGHT, "fit": "crop", "anchor_frame": 1, "start_image": run.image}
    before = run.video()
    run.calls()
    run.plan = host["videos"].plan_video(plan=plan, **wrong, **widgets)
    assert torch.equal(run.video(), before) and run.calls() == []
