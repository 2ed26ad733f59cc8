"""What goes wrong on a real server: kills, full disks, damaged files, two prompts at once, strange names."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
import torch

import dev
from benchmarks.crashes import (
    CHECKPOINT,
    CHUNK_FRAMES,
    OVERLAP_FRAMES,
    RUNS,
    SAMPLER,
    crash_videos,
    prepare,
    stamps,
    surroundings,
    video_prompt,
)
from hosting.workflow import BYPASSED, load_workflow, set_inputs, to_prompt
from streaming_core.frames import VideoFrames
from streaming_core.runs.folder import RunFolder

if os.name == "nt":
    pytest.skip("kill -9 and file permissions of POSIX", allow_module_level=True)

pytestmark = pytest.mark.slow
SHORT = CHUNK_FRAMES + 2 * (CHUNK_FRAMES - OVERLAP_FRAMES)
"""Frames of a video of three chunks."""


def test_killed_servers_lose_at_most_the_chunk_in_work(tmp_path):
    """More kills: `python -m benchmarks.reliability`."""
    kills = int(os.environ.get("STREAMING_KILLS", 3))
    tally = crash_videos(tmp_path, kills, random.Random(11))
    assert tally.kills == kills and tally.videos >= 1


@pytest.fixture(scope="module")
def server(host_server):
    prepare(host_server.base)
    return host_server


@pytest.fixture
def run(server, request):
    """A video of three chunks under the test's own name; `folder` is where it lies."""

    class Run:
        name = request.node.name
        folder = server.base / RUNS / request.node.name

        def make(self, status: str = "success", num_frames: int = SHORT, **settings):
            return server.run(video_prompt(self.name, num_frames=num_frames, **settings)).check(status)

        def video(self) -> torch.Tensor:
            stream = RunFolder.open(self.folder.parent, self.name).frames_stream()
            return stream.read(0, len(stream))

        def refused(self, *words: str, node_type: str = "StreamingT2VStreamSampler", **settings) -> None:
            error = self.make("error", **settings).error
            assert error.node_type == node_type and len(error.message.strip().splitlines()) == 1
            for word in words:
                assert word in error.message, error.message

        def act(self, action: str, **inputs):
            prompt = {"look": video_prompt(self.name)["look"]}
            prompt["look"]["inputs"].update(action=action, run_name=self.name, **inputs)
            del prompt["look"]["inputs"]["frames"]
            return server.run(prompt)

    return Run()


def test_a_chunk_file_cut_in_half_or_altered_is_refused_and_made_again_alone(run):
    run.make()
    whole, before = run.video(), stamps(run.folder)
    names = ["chunk_00001.safetensors", "chunk_00001.t1.safetensors", "chunk_00001.t2.safetensors"]
    for number, damage in enumerate((lambda content: content[: len(content) // 2], flip_last_byte)):
        path = run.folder / names[number]
        path.write_bytes(damage(path.read_bytes()))
        # A server that has read the file before notices too.
        run.refused(names[number], "set it aside with Run Inspector", num_frames=SHORT + 1)
        [text] = run.act("set damaged aside").check().ui["look"]["text"]
        assert text.startswith(f"set aside {names[number]}")
        run.make(num_frames=SHORT)
        assert torch.equal(run.video(), whole)
        after = stamps(run.folder)
        assert set(after) - set(before) == {names[number + 1]}, "a number is never used twice"
        assert all(after[name] == before[name] for name in ("chunk_00000.safetensors", "chunk_00002.safetensors"))
        before = after


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_a_manifest_cut_in_half_is_refused_and_recovered(run):
    run.make()
    whole, before = run.video(), stamps(run.folder)
    manifest = run.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])
    run.refused("manifest", "recover", num_frames=SHORT + 1)
    run.act("recover manifest").check()
    run.make()
    assert torch.equal(run.video(), whole) and stamps(run.folder) == before


def test_another_model_between_two_runs_makes_the_video_again_and_keeps_the_first(server, run):
    from tiny_models.streamingsvd import write_tiny_streamingsvd

    run.make()
    whole, before = run.video(), stamps(run.folder)
    write_tiny_streamingsvd(server.base / "models" / "checkpoints" / "other.safetensors", seed=5)
    prompt, log = video_prompt(run.name, num_frames=SHORT), len(server.log())
    prompt["load"]["inputs"]["ckpt_name"] = "other.safetensors"
    server.run(prompt).check()
    assert "chunks 0 to 2 are made again because" in server.log()[log:]
    assert not torch.equal(run.video(), whole)
    log = len(server.log())
    run.make()
    assert "3 of 3 chunks are reused" in server.log()[log:]
    assert torch.equal(run.video(), whole) and stamps(run.folder) == before


def test_a_run_that_another_server_writes_is_refused_with_its_holder(run):
    """The host runs prompts one after the other, so the second writer is another process."""
    run.make()
    before = stamps(run.folder)
    with RunFolder.open(run.folder.parent, run.name, write=True, owner="another ComfyUI"):
        run.refused("in use by another ComfyUI", str(os.getpid()), num_frames=SHORT + 4)
    assert stamps(run.folder) == before
    run.make(num_frames=SHORT + 4)


def test_two_prompts_at_once_on_one_run(server, run):
    """Both are queued at the same time: the second reuses what the first made."""
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(run.make())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.status for report in reports] == ["success"] * 2
    assert len(stamps(run.folder)) == 3 and len(list(run.folder.glob("chunk_*"))) == 3


def test_a_read_only_folder_is_refused_in_one_sentence(run):
    if os.geteuid() == 0:
        # Permissions do not bind this user: a file in the folder's place does.
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        run.folder.write_text("in the way")
        run.refused("cannot be written")
        assert run.folder.read_text() == "in the way"
        return
    run.make()
    before = stamps(run.folder)
    run.folder.chmod(0o500)
    try:
        run.refused("cannot be written", num_frames=SHORT + 4)
        assert stamps(run.folder) == before
    finally:
        run.folder.chmod(0o700)


@pytest.mark.parametrize("name", ["../out", "a/b", "a\\b", "..", "/tmp/out"])
def test_run_names_that_are_paths_are_refused(server, name):
    before = surroundings(server.base)
    folders = set((server.base / RUNS).iterdir()) if (server.base / RUNS).exists() else set()
    error = server.run(video_prompt(name, num_frames=CHUNK_FRAMES)).check("error").error
    assert "without slashes" in error.message or "is a path" in error.message
    assert surroundings(server.base) == before
    assert (set((server.base / RUNS).iterdir()) if (server.base / RUNS).exists() else set()) == folders


@pytest.mark.parametrize("name", ["x" * 300, "🎬 take 2", "con", "a:b?*"])
def test_other_run_names_become_one_folder(server, name):
    before = surroundings(server.base)
    for _ in range(2):
        report = server.run(video_prompt(name, num_frames=CHUNK_FRAMES)).check()
    assert len(RunFolder.open(server.base / RUNS, name).chunks) == 1
    [shown] = report.ui["look"]["text"]
    assert name in shown
    assert surroundings(server.base) == before


def test_a_full_disk_costs_the_chunk_in_work_and_says_so(fresh_server, tmp_path):
    """Files of the server may not grow to what one chunk takes, which fails like a full disk does."""
    import resource

    prepare(tmp_path)
    server = fresh_server(base=tmp_path)
    server.run(video_prompt("full", num_frames=CHUNK_FRAMES)).check()
    before = stamps(tmp_path / RUNS / "full")
    sizes = {path.suffix: path.stat().st_size for path in (tmp_path / RUNS / "full").iterdir()}
    assert 2 * sizes[".json"] < sizes[".safetensors"]
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (sizes[".safetensors"] // 2, limits[1]))
    error = server.run(video_prompt("full", num_frames=SHORT)).check("error").error
    assert "chunk 1 could not be stored" in error.message and "the chunks before it are kept" in error.message
    assert stamps(tmp_path / RUNS / "full") == before
    assert not list((tmp_path / RUNS / "full").glob(".*.part"))
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    server.run(video_prompt("full", num_frames=SHORT)).check()
    assert {name: stamps(tmp_path / RUNS / "full")[name] for name in before} == before


# Reroll and the inspector


def reroll_prompt(run_name: str, chunks: str, seed: int = 1, scope: str = "selected only") -> dict[str, dict]:
    prompt = video_prompt(run_name, num_frames=SHORT)
    inputs = {"run_name": "", "chunks": chunks, "seed_mode": "new", "seed": seed, "scope": scope}
    links = {"chunk_sampler": ["chunks", 0], "frames": [SAMPLER, 0]}
    prompt["reroll"] = {"class_type": "StreamingT2VRerollChunks", "inputs": {**inputs, **links}}
    prompt["look"]["inputs"]["frames"] = ["reroll", 0]
    return prompt


def test_reroll_calls_the_model_for_the_chosen_chunk_only(server, run):
    run.make()
    whole, before = run.video(), stamps(run.folder)
    report = server.run(reroll_prompt(run.name, "1")).check()
    assert report.bars()["reroll"] == (2, 2), "two steps: one chunk"
    after = stamps(run.folder)
    assert set(after) - set(before) == {"chunk_00001.t1.safetensors"}
    kept = {name: after[name] for name in after if name in before}
    assert kept == {name: before[name] for name in ("chunk_00000.safetensors", "chunk_00002.safetensors")}
    video, second = run.video(), slice(CHUNK_FRAMES, 2 * CHUNK_FRAMES - OVERLAP_FRAMES)
    assert not torch.equal(video[second], whole[second])
    assert torch.equal(video[: second.start], whole[: second.start])
    assert torch.equal(video[second.stop :], whole[second.stop :])
    [text] = report.ui["look"]["text"]
    assert "rerolled" in text and any(each.node == "look" for each in report.outputs), "and a sheet of thumbnails"
    # Stream Sampler keeps it, and the older take can be chosen again.
    log = len(server.log())
    run.make()
    assert "rerolled and kept so: chunk 1" in server.log()[log:] and torch.equal(run.video(), video)
    run.act("choose take", chunk=1, take=0).check()
    assert torch.equal(run.video(), whole)


def test_the_inspector_deletes_only_what_is_confirmed(server, run):
    run.make()
    other = run.folder.parent / "neighbor"
    server.run(video_prompt("neighbor", num_frames=CHUNK_FRAMES)).check()
    elsewhere = server.base / "elsewhere.txt"
    elsewhere.write_text("precious")
    (run.folder / "notes.txt").write_text("mine")
    (run.folder / "link").symlink_to(elsewhere)
    before = stamps(run.folder), stamps(other)
    for confirm in ("", "neighbor", "yes"):
        error = run.act("delete run", confirm=confirm).check("error").error
        assert "nothing was deleted" in error.message
    assert (stamps(run.folder), stamps(other)) == before
    [text] = run.act("delete run", confirm=run.name).check().ui["look"]["text"]
    assert f"deleted run {run.name}" in text and "2 unrecognized files were left" in text
    assert sorted(path.name for path in run.folder.iterdir()) == ["link", "notes.txt"]
    assert elsewhere.read_text() == "precious" and stamps(other) == before[1]
    assert "there is no run" in run.act("delete run", confirm=run.name).check("error").error.message


@pytest.mark.parametrize("redraw", [False, True])
def test_the_template_runs_with_and_without_reroll(server, run, redraw):
    workflow = load_workflow(dev.ROOT / "workflows" / "resume_and_reroll.json")
    [reroll] = [node for node in workflow["nodes"] if node["type"] == "StreamingT2VRerollChunks"]
    assert reroll["mode"] == BYPASSED
    reroll["mode"] = 0 if redraw else BYPASSED
    prompt = to_prompt(workflow, server.object_info())
    sizes = {"chunk_frames": CHUNK_FRAMES, "overlap_frames": OVERLAP_FRAMES}
    set_inputs(prompt, "LoadImage", image="start.png")
    set_inputs(prompt, "StreamingT2VLoadStreamingSVD", ckpt_name=CHECKPOINT)
    set_inputs(prompt, "StreamingT2VStreamingSVDChunkSampler", steps=2, first_steps=2)
    set_inputs(prompt, "StreamingT2VChunkPlan", num_frames=SHORT, **sizes)
    set_inputs(prompt, "StreamingT2VPreflight", width=64, height=32)
    set_inputs(prompt, "StreamingT2VStreamSampler", width=64, height=32, anchor_frame=1, run_name="template")
    if redraw:
        set_inputs(prompt, "StreamingT2VRerollChunks", chunks="2")
    report = server.run(prompt).check()
    [output] = [each for each in report.outputs if each.path.suffix == ".mp4"]
    assert len(VideoFrames.open(output.path)) == SHORT
    [text] = [report.ui[node]["text"][0] for node, value in prompt.items() if "Inspector" in value["class_type"]]
    assert text.startswith(f"template: {SHORT} frames, 64x32 at 12 fps") and ("rerolled" in text) == redraw


# A plan, a preflight, and a VIDEO that nobody asked for


def planned_prompt(run_name: str, **plan) -> dict[str, dict]:
    prompt = video_prompt(run_name, num_frames=1, chunk_frames=25)
    widgets = {
        "num_frames": SHORT,
        "seconds": 0.0,
        "fps": 12.0,
        "chunk_frames": CHUNK_FRAMES,
        "overlap_frames": OVERLAP_FRAMES,
        "prompts": "",
        "seed_mode": "fixed",
        "seed": 33,
        "seeds": "",
        "cam_strength": "",
        "anchor_strength": "",
        **plan,
    }
    prompt["plan"] = {"class_type": "StreamingT2VChunkPlan", "inputs": widgets}
    size = {"width": 64, "height": 32, "time_a_step": True}
    flight = {"chunk_sampler": ["chunks", 0], "plan": ["plan", 0], **size}
    prompt["flight"] = {"class_type": "StreamingT2VPreflight", "inputs": flight}
    prompt[SAMPLER]["inputs"].update(plan=["flight", 1], chunk_sampler=["flight", 0])
    return prompt


def test_a_plan_and_a_preflight_in_front_of_a_video(server, run):
    run.make()
    widgets = run.video()
    log = len(server.log())
    report = server.run(planned_prompt(run.name, num_frames=1, seconds=SHORT / 12)).check()
    assert "3 of 3 chunks are reused" in server.log()[log:], "the same video, however it was planned"
    assert torch.equal(run.video(), widgets)
    [table] = report.ui["plan"]["text"]
    assert table.splitlines()[2].startswith("0-2 | 0-13 | 00:00.00-00:01.17 | 33 | 1 | 1 | -")
    [costs] = report.ui["flight"]["text"]
    assert f"video: {SHORT} frames in 3 chunks" in costs and "6 sampling steps" in costs and "about" in costs
    # Only chunk 2 changes, so only chunk 2 is made.
    log = len(server.log())
    server.run(planned_prompt(run.name, cam_strength="1, 2: 0.5")).check()
    assert "2 of 3 chunks are reused" in server.log()[log:]
    error = server.run(planned_prompt(run.name, prompts="0: a dog")).check("error").error
    assert "cannot follow the plan's prompt" in error.message, "SVD knows none"
    error = server.run(planned_prompt(run.name, motion="0: 16\n2: 32")).check("error").error
    assert error.node_type == "StreamingT2VPreflight" and "cannot follow the plan's motion setting" in error.message


def test_a_video_that_cannot_fit_is_refused_before_anything_runs(server, run):
    prompt = planned_prompt(run.name, num_frames=1_000_000)
    prompt["flight"]["inputs"].update(width=8192, height=8192, time_a_step=False)
    error = server.run(prompt).check("error").error
    assert error.node_type == "StreamingT2VPreflight" and "of disk but" in error.message and "GiB" in error.message
    assert not run.folder.exists()


def test_a_video_is_encoded_only_when_a_node_uses_it(server, run):
    def encoded() -> set[Path]:
        return set((server.base / "temp").glob("video_*.mp4"))

    before = encoded()
    run.make()
    assert encoded() == before, "nothing is connected to video"
    prompt = video_prompt(run.name, num_frames=SHORT)
    save = {"video": [SAMPLER, 1], "filename_prefix": "video/late", "format": "auto", "codec": "auto"}
    prompt["save"] = {"class_type": "SaveVideo", "inputs": save}
    report = server.run(prompt).check()
    assert SAMPLER in report.cached, "the video itself came from the cache"
    [output] = [each for each in report.outputs if each.node == "save"]
    assert output.path.stat().st_size > 0 and len(encoded() - before) == 1
