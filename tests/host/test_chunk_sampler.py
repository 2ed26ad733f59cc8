"""A family written from the interface alone makes whole videos; only what changes a chunk makes it again."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.loop.chunk import Chunk
from streaming_core.loop.plan import Beginning, VideoPlan
from streaming_core.loop.remedies import Perturbation
from streaming_core.loop.sampler import ChunkSampler, WrappedSampler
from streaming_core.loop.script import Cue, Script, parse_cues, parse_numbers, parse_positive_numbers
from streaming_core.loop.state import Anchor, ChunkResult
from streaming_core.loop.steps import continue_video, start_video
from streaming_core.runs.manifest import MANIFEST

import_host()
import_pack()

import comfy.samplers  # noqa: E402
from comfy_extras.nodes_model_advanced import RescaleCFG  # noqa: E402
from comfyui_streamingt2v.nodes.host.modelscope.sampler import ModelscopeChunkSampler  # noqa: E402
from comfyui_streamingt2v.nodes.host.native.sampler import AnyModelChunkSampler  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import handed_out, reroll, videos  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs.preflight import preflight  # noqa: E402
from comfyui_streamingt2v.nodes.host.svd.sampler import SvdChunkSampler  # noqa: E402
from comfyui_streamingt2v.nodes.plan import ChunkPlanNode  # noqa: E402

from tiny_models import native as tiny  # noqa: E402
from tiny_models.native_vae import plain_vae  # noqa: E402

SIZES = {"num_frames": 20, "chunk_frames": 8, "overlap_frames": 3, "width": 16, "height": 16, "fit": "crop"}
FRAMES = torch.zeros(8, 3, 16, 16)


@dataclass(frozen=True)
class Bare(ChunkSampler):
    """Only what is abstract; frames tell chunk, seed and tail."""

    made: list[int] = field(default_factory=list, compare=False)

    family = "bare"
    starts_from = frozenset({"prompt", "image", "frames"})

    @property
    def size_multiple(self) -> int:
        return 8

    def identity(self) -> dict:
        return {"model": "bare"}

    def steps(self, chunk: Chunk) -> int:
        return 1

    def _frames(self, chunk: Chunk, height: int, width: int) -> Tensor:
        self.made.append(chunk.index)
        return torch.rand(chunk.num_frames, 3, height, width, generator=chunk.generator())

    def first_chunk(self, chunk: Chunk, size: tuple[int, int], image: Tensor | None) -> ChunkResult:
        return ChunkResult(self._frames(chunk, *size))

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        return 0.5 * self._frames(chunk, *tail.shape[-2:]) + 0.5 * tail.mean()

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        return latents[chunk.overlap_frames :]


@dataclass(frozen=True)
class Moving(Bare):
    """A family that follows motion: frames are brighter, the stronger it is."""

    own_motion: float = 8.0

    family = "moving"
    follows = frozenset({"prompt", "cam_strength", "anchor_strength", "motion"})

    def identity(self) -> dict:
        return {"model": "moving", "motion": self.own_motion}

    def _frames(self, chunk: Chunk, height: int, width: int) -> Tensor:
        motion = self.own_motion if chunk.motion is None else chunk.motion
        return super()._frames(chunk, height, width) / (1 + motion)


@dataclass(frozen=True)
class Still(Moving):
    """The same family as it was before there was motion."""

    follows = frozenset({"prompt", "cam_strength", "anchor_strength"})


def plan(**changes):
    return videos.plan_video(**{**SIZES, "seed": 5, "anchor_frame": 0, **changes})


def test_the_interface_alone_is_enough_for_a_video_with_resume_and_reroll(tmp_path, monkeypatch):
    for module in (videos, reroll, handed_out):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    sampler = Bare()
    whole = videos.make_video(sampler, plan(), "bare")
    frames = whole.read(0, 20)
    assert sampler.made == [0, 1, 2, 3] and frames.shape == (20, 16, 16, 3)
    sampler.made.clear()
    longer = videos.make_video(sampler, plan(num_frames=25), "bare")
    assert sampler.made == [4] and torch.equal(longer.read(0, 20), frames)
    sampler.made.clear()
    other = reroll.reroll(sampler, "bare", reroll.RerollRequest((2,), "new", 1, reroll.SCOPES[0]))
    assert sampler.made == [2] and not torch.equal(other.read(0, 25), longer.read(0, 25))
    sampler.made.clear()
    assert torch.equal(videos.make_video(sampler, plan(num_frames=25), "bare").read(0, 25), other.read(0, 25))
    assert sampler.made == []


def test_a_bare_wrapper_changes_nothing():
    sampler = Bare()
    wrapped = WrappedSampler(sampler)
    public = [name for name in dir(ChunkSampler) if not name.startswith("_")]
    overridden = {name for name in public if name in vars(WrappedSampler)}
    assert overridden == set(public), "every question is handed on"
    assert wrapped.identity() == sampler.identity() and wrapped.accept(plan()) == sampler.accept(plan())


def test_a_family_is_asked_through_its_wrappers():
    """What a family alone refuses (a foreign model, a patch) it refuses with Perturb Tail or Color Anchor around it."""

    class Picky(Bare):
        def accept(self, plan):
            raise SettingsError("not this model")

    for wrapped in (
        WrappedSampler(Picky()),
        Picky().with_perturbed_tail(Perturbation(0.1)),
        WrappedSampler(WrappedSampler(Picky())),
    ):
        with pytest.raises(SettingsError, match="not this model"):
            wrapped.accept(plan())


def test_an_anchor_without_effect_is_refused():
    class Forgetful(Bare):
        remembers_anchor = False

    anchored = replace(plan(), beginning=Beginning(FRAMES[:1], anchor=FRAMES[:1]))
    for sampler in (Forgetful(), WrappedSampler(Forgetful())):
        with pytest.raises(SettingsError, match="anchor has no effect: bare does not remember one"):
            sampler.accept(anchored)
        assert sampler.accept(plan()) == plan()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 20}, "width must be a multiple of 8 pixels, got 20; try 16"),
        ({"beginning": Beginning(FRAMES[:1], FRAMES)}, "start_image has no effect when start_frames is connected"),
        ({"beginning": Beginning(FRAMES[:1], anchor=FRAMES)}, "bare takes one anchor image, got 8"),
        ({"script": Script(prompts=parse_cues("0: a dog"))}, "bare cannot follow the plan's prompt; leave it empty"),
        (
            {"script": Script(motion=(Cue(16.0, 3),))},
            "^bare cannot follow the plan's motion setting; leave it empty in Chunk Plan, or use a chunk sampler that "
            "can$",
        ),
        ({"script": Script(motion=(Cue(16.0, 99),))}, "bare cannot follow the plan's motion setting"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_before_the_first_chunk(changes, words):
    sampler = Bare()
    with pytest.raises(SettingsError, match=words):
        sampler.accept(replace(plan(), **changes))
    assert sampler.made == []


def test_a_typed_rate_is_the_one_that_was_meant():
    widgets = {**SIZES, "seed": 5, "anchor_frame": 0}
    assert videos.plan_video(**widgets, fps=23.976).fps == Fraction(24000, 1001)


def test_a_beginning_is_needed():
    @dataclass(frozen=True)
    class FromImages(Bare):
        starts_from = frozenset({"image", "frames"})

    with pytest.raises(SettingsError, match="connect start_image or start_frames"):
        FromImages().accept(plan())


def test_a_changed_patch_makes_chunks_again_says_why_and_going_back_finds_them(tmp_path, monkeypatch, caplog):
    """Through the loop and the run folder, with a patch of the host: the old video never comes back for a new value."""
    caplog.set_level(logging.INFO)
    for module in (videos, handed_out):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    model, vae = tiny.WAN.make(), plain_vae(tiny.WAN)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    side = tiny.WAN.side * vae.side
    widgets = {**SIZES, "num_frames": 25, "chunk_frames": 17, "overlap_frames": 9, "width": side, "height": side}

    def made(multiplier, name="patched"):
        patched = model if multiplier is None else RescaleCFG().patch(model, multiplier)[0]
        euler = comfy.samplers.sampler_object("euler")
        conds = tiny.WAN.conditioning(1), tiny.WAN.conditioning(2)
        sampler = AnyModelChunkSampler(patched, vae, *conds, euler, sigmas, 4.0)
        caplog.clear()
        with torch.inference_mode():
            stream = videos.make_video(sampler, videos.plan_video(**widgets, seed=1, anchor_frame=0), name)
        return stream.read(0, 25)

    first = made(0.7)
    second = made(0.5)
    assert not torch.equal(first, second)
    assert "multiplier changed 0.7 -> 0.5" in caplog.text and "made again" in caplog.text
    assert torch.equal(second, made(0.5, "alone")), "as if it had been made first"
    assert torch.equal(made(0.7), first) and "2 of 2 chunks are reused" in caplog.text
    assert not torch.equal(made(None), first)


def test_a_run_that_changed_under_a_node_is_noticed(tmp_path, monkeypatch):
    for module in (videos, reroll, handed_out):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    node, sampler = videos.OWNER, Bare()
    before = handed_out.run_changes(node, "noticed")
    videos.make_video(sampler, plan(), "noticed")
    assert handed_out.run_changes(node, "noticed") == before, "making it is no change"
    videos.make_video(sampler, plan(num_frames=25), "noticed")
    assert handed_out.run_changes(node, "noticed") == before, "nor is a longer video"
    reroll.reroll(sampler, "noticed", reroll.RerollRequest((1,), "new", 1, reroll.SCOPES[0]))
    rerolled = handed_out.run_changes(node, "noticed")
    assert rerolled == before + 1 and handed_out.run_changes(node, "noticed") == rerolled
    videos.make_video(sampler, plan(), "")
    [unnamed] = [path for path in tmp_path.iterdir() if path.name.startswith("bare_")]
    count = handed_out.run_changes(node, "")
    next(unnamed.glob("chunk_*")).unlink()
    assert handed_out.run_changes(node, None) == count + 1, "an unnamed run, or a name that comes by link"


def motion(text: str) -> dict:
    return {"script": Script(motion=parse_positive_numbers(text, "motion"), fps=Fraction(12))}


def test_motion_makes_only_the_chunks_again_that_it_concerns(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for module in (videos, reroll, handed_out):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    sampler = Moving()

    def made(text: str, name: str = "moving") -> Tensor:
        sampler.made.clear()
        caplog.clear()
        stream = videos.make_video(sampler, replace(plan(), **motion(text)), name)
        return stream.read(0, len(stream))

    own = made("")
    assert sampler.made == [0, 1, 2, 3]
    faster = made("2: 1")  # chunks show frames 0-7, 8-12, 13-17, 18-19
    assert sampler.made == [2, 3] and "chunks 2 to 3 are made again because motion" in caplog.text
    assert torch.equal(faster[:13], own[:13]) and not torch.equal(faster[13:18], own[13:18])
    other = made("2: 1, 3: 0.5")
    assert sampler.made == [3] and "chunk 3 is made again because motion changed 1 -> 0.5" in caplog.text
    assert torch.equal(other, made("2: 1, 3: 0.5", "alone")), "as if it had been made first"
    assert torch.equal(made("00:01.25: 1"), faster) and sampler.made == [], "second 1.25 is frame 15, in chunk 2"
    assert torch.equal(made(""), own) and sampler.made == []
    made("0: 16")
    assert sampler.made == [0, 1, 2, 3]
    # A reroll reads the plan back from the manifest and keeps to it.
    made("2: 1")
    sampler.made.clear()
    reroll.reroll(sampler, "moving", reroll.RerollRequest((2,), "given", 5, reroll.SCOPES[0]))
    assert sampler.made == [], "the seed is the same, and so is the motion"


def test_a_run_from_before_motion_goes_on(tmp_path, monkeypatch):
    for module in (videos, reroll, handed_out):
        monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    sampler = Moving()
    videos.make_video(sampler, plan(), "older")
    path = tmp_path / "older" / MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["settings"]["plan"]["script"]["motion"]
    path.write_text(json.dumps(manifest), "utf-8")
    sampler.made.clear()
    reroll.reroll(sampler, "older", reroll.RerollRequest((1,), "new", 1, reroll.SCOPES[0]))
    assert sampler.made == [1]
    videos.make_video(sampler, plan(num_frames=25), "older")
    assert sampler.made == [1, 4]


def test_identities_and_hashes_from_before_motion_stay_as_they_are():
    """The numbers were computed before a plan had motion; they decide whether what users have made is found again."""
    script = Script(
        increment=True,
        prompts=parse_cues("a dog\n2: it jumps"),
        cam_strength=parse_numbers("1, 2: 0.8", "cam_strength", 0, 4),
        anchor_strength=parse_numbers("0.5", "anchor_strength", 0, 4),
    )
    chunks = VideoPlan(20, 8, 3, 5, Fraction(12), script).chunks
    bare = (
        "0c437b3c3bf6e643687a44a970c5e8cb28065a7c912ab9e51ec6270e93f1c51e",
        "66f24f50d6d3f4aece86234c050165b307da504df1e13d776ae31f0367663ba8",
    )
    with_cues = (
        "07c0d0ff2c43060d61d6e46e186a443847a3cef319e3ec31fbc0e006d412730d",
        "f4310c6d549b45e1263c96a01147fe393fa0cc6eb0bef5accef19b3550451e10",
    )
    for sampler, expected in ((Bare(), bare), (Still(), with_cues), (Moving(), with_cues)):
        own = [videos.chunk_identity(sampler, chunk) for chunk in chunks]
        hashes = videos.chained_hashes({"sampler": {"model": "before"}}, own)
        assert (hashes[0], hashes[-1]) == expected


def test_motion_counts_only_where_the_plan_sets_it_for_a_family_that_follows_it():
    chunks = VideoPlan(20, 8, 3, 5, Fraction(12), **motion("1: 16, 3: 4")).chunks
    own = [Moving().chunk_identity(chunk) for chunk in chunks]
    assert own == [{}, {"motion": 16.0}, {"motion": 16.0}, {"motion": 4.0}]
    assert [WrappedSampler(Moving()).chunk_identity(chunk) for chunk in chunks] == own
    assert [Still().chunk_identity(chunk) for chunk in chunks] == [{}] * 4


@pytest.mark.parametrize("family", [SvdChunkSampler, ModelscopeChunkSampler, AnyModelChunkSampler])
def test_families_without_motion_say_so(family):
    assert "motion" not in family.follows


def test_preflight_refuses_what_the_video_would():
    for sampler in (Bare(), WrappedSampler(Bare())):
        with pytest.raises(SettingsError, match="bare cannot follow the plan's motion setting"):
            preflight(sampler, VideoPlan(20, 8, 3, **motion("3: 16")), 16, 16)
    assert preflight(Moving(), VideoPlan(20, 8, 3, **motion("3: 16")), 16, 16).num_chunks == 4
    assert sampler.inner.made == []


def test_a_step_refuses_what_its_own_chunk_sampler_cannot_follow():
    """Stream Chunk may take another chunk sampler than Start Video, which accepted the plan."""
    state, _ = start_video(plan(**{"num_frames": 20}), Moving())
    state = replace(state, plan=replace(state.plan, **motion("2: 16")))
    other = Bare()
    state, _ = continue_video(state, other)
    assert other.made == [1], "the plan says nothing of chunk 1"
    for sampler in (other, WrappedSampler(other), Still()):
        with pytest.raises(SettingsError, match="cannot follow the plan's motion setting"):
            continue_video(state, sampler)
    assert other.made == [1]
    state, _ = continue_video(state, Moving())
    assert state.num_chunks == 3


OLD_WIDGETS = {
    "num_frames": 20,
    "seconds": 0.0,
    "fps": 12.0,
    "chunk_frames": 8,
    "overlap_frames": 3,
    "prompts": "",
    "seed_mode": "fixed",
    "seed": 5,
    "seeds": "",
    "cam_strength": "",
    "anchor_strength": "",
}


def test_chunk_plan_reads_motion_and_prompts_saved_without_it(monkeypatch):
    monkeypatch.setattr(ChunkPlanNode, "hidden", SimpleNamespace(unique_id=None))
    before, table = ChunkPlanNode.execute(**OLD_WIDGETS).args
    assert [chunk.motion for chunk in before.chunks] == [None] * 4 and "motion" not in table
    assert ChunkPlanNode.execute(**OLD_WIDGETS, motion="").args == (before, table)
    planned, table = ChunkPlanNode.execute(**OLD_WIDGETS, motion="0: 16\n00:01: 32").args
    assert [chunk.motion for chunk in planned.chunks] == [16.0, 32.0, 32.0, 32.0]
    assert "8-19 | 00:00.67-00:01.67 | 5 | 1 | 1 | 32 | -" in table
    with pytest.raises(SettingsError, match="motion must be a finite number above 0 per chunk, got '0'"):
        ChunkPlanNode.execute(**OLD_WIDGETS, motion="0: 0")
