"""A family written from the interface alone makes whole videos; only what changes a chunk makes it again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import SettingsError
from streaming_core.loop.chunk import Chunk
from streaming_core.loop.plan import Beginning
from streaming_core.loop.sampler import ChunkSampler, WrappedSampler
from streaming_core.loop.script import Script, parse_cues
from streaming_core.loop.state import Anchor, ChunkResult

import_host()
import_pack()

import comfy.samplers  # noqa: E402
from comfy_extras.nodes_model_advanced import RescaleCFG  # noqa: E402
from comfyui_streamingt2v.nodes.host.native.sampler import AnyModelChunkSampler  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import handed_out, reroll, videos  # noqa: E402

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
    assert overridden == set(public) - {"accept"}, "every question is handed on; accept asks the wrapper itself"
    assert wrapped.identity() == sampler.identity() and wrapped.accept(plan()) == sampler.accept(plan())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 20}, "width must be a multiple of 8 pixels, got 20; try 16"),
        ({"beginning": Beginning(FRAMES[:1], FRAMES)}, "start_image has no effect when start_frames is connected"),
        ({"beginning": Beginning(FRAMES[:1], anchor=FRAMES)}, "bare takes one anchor image, got 8"),
        ({"script": Script(prompts=parse_cues("0: a dog"))}, "bare cannot follow the plan's prompt; leave it empty"),
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
