"""The enhancement stage on the host: lengths, sizes, seeds, keyframes, streams, Cancel, progress, memory option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from streaming_core.enhance.job import EnhanceJob, EnhanceRequest, plan_enhancement
from streaming_core.enhance.settings import EnhanceSettings
from streaming_core.enhance.size import Size, fit_size
from streaming_core.errors import FrameError, SettingsError, StreamingError
from streaming_core.frames import FrameStream, TensorFrames
from streaming_core.models.modelscope.detect import CLIP_VISION_PREFIX, TEXT_PREFIX, VAE_PREFIX
from streaming_core.models.registry import take
from streaming_core.windows.plan import plan_windows
from tiny_models import enhancer as tiny_enhancer
from tiny_models import modelscope as tiny_modelscope

import_host()
import_pack()

import folder_paths  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfyui_streamingt2v.nodes import enhancer as nodes  # noqa: E402
from comfyui_streamingt2v.nodes.host import encoders  # noqa: E402
from comfyui_streamingt2v.nodes.host.enhance import enhancer as host  # noqa: E402
from comfyui_streamingt2v.nodes.host.enhance import i2vgenxl, stage  # noqa: E402
from comfyui_streamingt2v.nodes.host.modelscope import towers as modelscope_file  # noqa: E402
from comfyui_streamingt2v.streaming_core.enhance import job as enhance_job  # noqa: E402

from tiny_models.native import SVD  # noqa: E402

WINDOW, OVERLAP, STEPS = 5, 2, 3
SETTINGS = EnhanceSettings(steps=4, strength=0.8, window_frames=WINDOW, overlap_frames=OVERLAP, seed=7)


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def enhancer() -> host.Enhancer:
    weights, config = tiny_modelscope.tiny_weights(dtype=torch.float32), tiny_modelscope.TINY
    return host.Enhancer(
        model=i2vgenxl.build_i2vgenxl(tiny_enhancer.tiny_weights(dtype=torch.float32), "tiny"),
        clip=modelscope_file.build_text_encoder(take(weights, TEXT_PREFIX), config.text_encoder),
        clip_vision=encoders.build_clip_vision(take(weights, CLIP_VISION_PREFIX), config.clip_vision),
        vae=modelscope_file.build_kl_vae(take(weights, VAE_PREFIX), config.vae),
    )


def video(frames: int, height: int = 64, width: int = 64, seed: int = 3) -> Tensor:
    """A smooth moving image, IMAGE `[F, H, W, 3]`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    rows, columns = torch.linspace(0, 3, height).view(-1, 1), torch.linspace(0, 3, width).view(1, -1)
    phases = torch.rand(3, generator=generator) * 6
    frames = [
        torch.stack([torch.sin(rows * (1 + c) + columns + 0.3 * t + phases[c]) for c in range(3)], -1)
        for t in range(frames)
    ]
    return torch.stack(frames) * 0.5 + 0.5


def job(
    frames, settings: EnhanceSettings = SETTINGS, width: int = 64, height: int = 64, fit="inside", **more
) -> EnhanceJob:
    stream = frames if isinstance(frames, FrameStream) else TensorFrames(frames, 8)
    return plan_enhancement(EnhanceRequest(stream, width, height, fit, settings, **more))


@dataclass(frozen=True, eq=False)
class CountedFrames(FrameStream):
    """A stream that notes what is read of it."""

    source: Tensor
    reads: list
    fps: Fraction = Fraction(24000, 1001)

    @property
    def height(self) -> int:
        return self.source.shape[1]

    @property
    def width(self) -> int:
        return self.source.shape[2]

    def __len__(self) -> int:
        return len(self.source)

    def _read(self, start: int, stop: int) -> Tensor:
        self.reads.append((start, stop))
        return self.source[start:stop].clone()


@pytest.mark.parametrize("frames", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 8, 13])
def test_no_frame_is_dropped_whatever_the_length(enhancer, frames):
    result = host.enhance(enhancer, job(video(frames))).images()
    assert result.shape == (frames, 64, 64, 3)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1
    assert result.std() > 0


def test_the_seed_decides_and_nothing_else_does(enhancer):
    state = torch.random.get_rng_state()
    once = host.enhance(enhancer, job(video(8))).images()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again = host.enhance(enhancer, job(video(8))).images()
    torch.random.set_rng_state(state)
    other = host.enhance(enhancer, job(video(8), replace(SETTINGS, seed=8))).images()
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_a_stream_in_is_a_stream_out_on_disk_with_the_same_frames(enhancer):
    reads = []
    stream = CountedFrames(video(13), reads)
    images = host.enhance(enhancer, job(video(13))).images()
    result = host.enhance(enhancer, job(stream)).stream()
    assert (len(result), result.height, result.width, result.fps) == (13, 64, 64, Fraction(24000, 1001))
    assert torch.equal(result.read(0, 13), (images * 255).round() / 255)
    assert max(stop - start for start, stop in reads) <= stage.SLICE_FRAMES
    assert sorted(set(reads)) == [(0, 1), (0, 8), (8, 13)]
    folder = Path(folder_paths.get_temp_directory())
    assert any(folder.glob("enhanced_*/chunk_00001.safetensors"))


def test_official_behavior_drops_the_tail_and_refuses_short_videos(enhancer):
    official = replace(SETTINGS, official=True)
    assert len(host.enhance(enhancer, job(video(10), official)).images()) == 8
    assert len(host.enhance(enhancer, job(video(5), official)).images()) == 5
    with pytest.raises(SettingsError, match="window of 5 frames, got 4"):
        host.enhance(enhancer, job(video(4), official)).images()


def test_official_keyframes_are_one_clip_ours_keep_to_the_window(enhancer):
    settings = replace(SETTINGS, window_frames=3, overlap_frames=1)
    lengths = {}

    def sampled(official: bool) -> set[int]:
        seen = set()

        def count(executor, x, timesteps, context, *args, **kwargs):
            seen.add(x.shape[0] // context.shape[0])
            return executor(x, timesteps, context, *args, **kwargs)

        model = enhancer.model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
        wanted = job(video(9), replace(settings, official=official))
        lengths[official] = len(host.make_keyframes(replace(enhancer, model=model), wanted))
        return seen

    assert sampled(official=True) == {4}
    assert sampled(official=False) == {3}
    assert lengths == {True: 4, False: 4}


def test_keyframes_made_before_give_the_same_video(enhancer):
    reads = []
    keys = host.make_keyframes(enhancer, job(CountedFrames(video(11), reads)))
    windows = plan_windows(11, WINDOW, OVERLAP)
    assert keys.shape == (len(windows), 64, 64, 3)
    assert sorted(set(reads)) == [(window.start, window.start + 1) for window in windows], "only keyframes are read"
    inside = host.enhance(enhancer, job(video(11))).images()
    # Encoding one frame or eight at a time rounds differently, which can move an 8-bit keyframe by one.
    assert (host.enhance(enhancer, job(video(11), keyframes=keys)).images() - inside).abs().max() < 2 / 255
    with pytest.raises(SettingsError, match="2 keyframes were given for 3 windows"):
        host.enhance(enhancer, job(video(11), keyframes=keys[:2])).images()
    with pytest.raises(SettingsError, match="image has no effect when keyframes are connected"):
        job(video(11), keyframes=keys, image=keys[:1])


def test_every_window_is_shown_its_own_keyframe(enhancer):
    keys = (video(40, seed=11)[[0, 15, 35]] * 255).round() / 255
    shown = {}

    def record(executor, x, timesteps, context, control, transformer_options, **conds):
        shown[transformer_options["context_window"].index_list[0]] = conds
        return executor(x, timesteps, context, control, transformer_options, **conds)

    model = enhancer.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "record", record)
    host.enhance(replace(enhancer, model=model), job(video(11), keyframes=keys)).images()
    windows = plan_windows(11, WINDOW, OVERLAP)
    assert set(shown) == {window.start for window in windows}
    for window, key in zip(windows, keys, strict=True):
        conds = shown[window.start]
        expected = model.model.process_latent_in(enhancer.vae.encode(key.unsqueeze(0)))
        # Both guidance rows see the image; only one of them sees its embedding.
        assert torch.allclose(conds["image_latents"], expected.expand(2, -1, -1, -1), atol=1e-5)
        dark = conds["image_embeddings"].abs().sum((1, 2)) == 0
        assert dark.sum() == 1
        assert conds["fps"].tolist() == [38, 38]


def test_the_image_sets_the_look_and_is_the_first_frame_by_default(enhancer):
    default = host.enhance(enhancer, job(video(4))).images()
    assert torch.equal(host.enhance(enhancer, job(video(4), image=video(4)[:1])).images(), default)
    assert not torch.equal(host.enhance(enhancer, job(video(4), image=video(1, seed=5))).images(), default)


def test_noise_is_one_for_the_video_and_keyframes_have_their_frame_s(enhancer, monkeypatch):
    given = []
    original = host.sample_video

    def record(model, video_pass, latents, noise, *rest):
        given.append(noise.clone())
        return original(model, video_pass, latents, noise, *rest)

    monkeypatch.setattr(host, "sample_video", record)
    host.enhance(enhancer, job(video(11))).images()
    keys, whole = given
    assert torch.equal(whole, torch.randn(11, 4, 8, 8, generator=torch.Generator().manual_seed(SETTINGS.seed)))
    assert torch.equal(keys, whole[[0, 3, 6]])


def test_low_memory_gives_the_same_video(enhancer):
    # One window, so that no 8-bit keyframe stands in between.
    normal = host.enhance(enhancer, job(video(WINDOW))).images()
    low = host.enhance(replace(enhancer, low_memory=True), job(video(WINDOW))).images()
    assert (low - normal).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("height", "width", "box", "fit", "expected"),
    [
        (64, 64, (72, 40), "inside", (40, 40)),
        (48, 96, (96, 96), "inside", (48, 96)),
        (54, 96, (128, 72), "inside", (72, 128)),
        (48, 96, (40, 72), "crop", (72, 40)),
        (48, 96, (40, 72), "pad", (72, 40)),
        (48, 96, (40, 72), "stretch", (72, 40)),
    ],
)
def test_any_size_that_is_a_multiple_of_eight_works(enhancer, height, width, box, fit, expected):
    result = host.enhance(enhancer, job(video(2, height, width), width=box[0], height=box[1], fit=fit)).images()
    assert result.shape == (2, *expected, 3)


def test_inside_keeps_the_aspect():
    box = Size(720, 1280)
    assert fit_size(Size(576, 1024), box) == box
    assert fit_size(Size(256, 256), box) == Size(720, 720)
    assert fit_size(Size(1080, 1920), box) == box
    for height in range(16, 2000, 37):
        for width in range(16, 2000, 53):
            size = fit_size(Size(height, width), box)
            assert size.height_px % 8 == size.width_px % 8 == 0
            assert size.height_px <= 720 and size.width_px <= 1280
            assert size.height_px >= 8 and size.width_px >= 8
            if min(size.height_px, size.width_px) > 64:
                assert abs(size.width_px / size.height_px * height / width - 1) < 0.1


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 4, 6, 9])
def test_cancel_stops_at_the_next_slice_or_step_and_leaves_nothing(enhancer, monkeypatch, after, tmp_path):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    calls = []

    def cancel():
        calls.append(1)
        if len(calls) > after:
            raise Cancelled

    for module in (stage, encoders, __import__("comfyui_streamingt2v.nodes.host.progress", fromlist=["progress"])):
        monkeypatch.setattr(module, "check_cancel", cancel)
    with pytest.raises(Cancelled):
        host.enhance(enhancer, job(CountedFrames(video(20), []))).stream()
    assert not list(tmp_path.iterdir())


def test_one_bar_from_start_to_end(enhancer, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, *args, **kwargs):
            self.total, self.values = total, []
            bars.append(self)

        def update_absolute(self, value, total=None, preview=None):
            self.values.append(value)

        def update(self, value):
            self.values.append((self.values or [0])[-1] + value)

    monkeypatch.setattr("comfyui_streamingt2v.nodes.host.progress.comfy.utils.ProgressBar", Bar)
    for settings, frames in ((SETTINGS, 11), (SETTINGS, 4), (replace(SETTINGS, official=True), 10)):
        bars.clear()
        host.enhance(enhancer, job(video(frames), settings)).images()
        (bar,) = [bar for bar in bars if bar.values]
        assert bar.values == sorted(bar.values) and bar.values[-1] == bar.total
    bars.clear()
    host.make_keyframes(enhancer, job(video(11)))
    (bar,) = [bar for bar in bars if bar.values]
    assert bar.values[-1] == bar.total


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        ({"overlap_frames": 5}, (64, 64), ["overlap of 5", "window of 5", "4"]),
        ({"window_frames": 0, "overlap_frames": 0}, (64, 64), ["at least 1 frame", "0"]),
        ({"strength": 0.1}, (64, 64), ["0.1", "4 steps", "0.25"]),
        ({"strength": 0.0}, (64, 64), ["above 0", "0"]),
        ({"steps": 0}, (64, 64), ["1 to 999", "0"]),
        ({}, (60, 64), ["multiples of 8", "60x64", "56x64"]),
    ],
)
def test_bad_settings_are_refused_when_the_job_is_made(settings, size, words):
    reads = []
    with pytest.raises(StreamingError) as refused:
        job(CountedFrames(video(8), reads), replace(SETTINGS, **settings), *size)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)
    assert reads == []


def test_frames_too_small_to_enlarge_and_unknown_fits_are_refused_when_the_job_is_made():
    with pytest.raises(FrameError, match="8x64 pixels, too small"):
        job(video(2, 64, 8))
    with pytest.raises(SettingsError, match="fit is one of inside, crop, pad, stretch, got 'cover'"):
        job(video(2), fit="cover")


def test_models_that_do_not_fit_together_are_refused_before_the_video_is_read(enhancer):
    class Narrow:
        """A text encoder of another width."""

        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, tokens):
            return [[torch.zeros(1, 77, 8), {}]]

    reads = []
    with pytest.raises(SettingsError, match="one prompt of width"):
        host.enhance(replace(enhancer, clip=Narrow()), job(CountedFrames(video(8), reads))).images()
    assert reads == [(0, 1)], "the condition image alone"
    with pytest.raises(SettingsError, match="latents with 16 channels, the model takes 4"):
        replace(enhancer, vae=SimpleNamespace(latent_channels=16))


def test_embeddings_do_not_depend_on_the_images_next_to_them(enhancer):
    size = enhancer.clip_vision.image_size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(4))
    together = encoders.embed_pixels(enhancer.clip_vision, pixels)
    assert together.shape == (3, enhancer.model.model.condition_width) and together.dtype == torch.float32
    assert torch.equal(
        together, torch.cat([encoders.embed_pixels(enhancer.clip_vision, each) for each in pixels.split(1)])
    )


def test_another_model_is_refused_by_name(enhancer):
    with pytest.raises(SettingsError, match="Load Enhancer, got SVD_img2vid"):
        replace(enhancer, model=SVD.make())


def node_values(enhancer) -> dict:
    return {
        "model": enhancer.model,
        "clip": enhancer.clip,
        "clip_vision": enhancer.clip_vision,
        "vae": enhancer.vae,
        "width": 64,
        "height": 64,
        "fit": "inside",
        "prompt": SETTINGS.prompt,
        "negative_prompt": SETTINGS.negative_prompt,
        "strength": 0.8,
        "steps": 4,
        "cfg": 9.0,
        "window": WINDOW,
        "overlap": OVERLAP,
        "seed": 7,
        "model_fps": 38,
        "memory": "normal",
        "official": False,
    }


def test_one_run_of_the_node_plans_once(enhancer, monkeypatch):
    counted = []
    for name in ("_target", "enhancer_sigmas"):
        original = getattr(enhance_job, name)
        monkeypatch.setattr(enhance_job, name, lambda *a, f=original, n=name: counted.append(n) or f(*a))
    nodes.EnhanceVideo.execute(video(8), fps=8.0, **node_values(enhancer))
    assert sorted(counted) == ["_target", "enhancer_sigmas"]


def test_nodes_hand_over_what_they_are_given(enhancer):
    values = node_values(enhancer)
    expected = host.enhance(enhancer, job(video(8))).images()
    stream, images = nodes.EnhanceVideo.execute(video(8), fps=8.0, **values).result
    assert torch.equal(images, expected) and torch.equal(stream.read(0, 8), expected) and stream.fps == 8
    stream, blocked = nodes.EnhanceVideo.execute(TensorFrames(video(8), 8), **values).result
    assert torch.equal(stream.read(0, 8), (expected * 255).round() / 255)
    assert "Stream to Images" in blocked.message
    (keys,) = nodes.KeyframePass.execute(video(8), **values).result
    assert torch.equal(keys, host.make_keyframes(enhancer, job(video(8))))
    batch, single, count = nodes.PickKeyframes.execute(video(8), WINDOW, OVERLAP).result
    assert torch.equal(batch, video(8)[[0, 3]]) and count == 2 and torch.equal(torch.cat(single), batch)


def test_the_stage_wired_by_hand_gives_the_same_frames(enhancer):
    """Load Enhancer, Enhancer Conditioning, Enhancer Sigmas and the host's own nodes, for a video of one window."""
    import comfy.sample
    import comfy.samplers

    frames = video(4)
    positive, negative = nodes.EnhancerConditioning.execute(
        enhancer.model,
        enhancer.clip,
        enhancer.clip_vision,
        enhancer.vae,
        frames,
        64,
        64,
        SETTINGS.prompt,
        SETTINGS.negative_prompt,
        38,
    ).result
    (sigmas,) = nodes.EnhancerSigmas.execute(4, 0.8).result
    latents = enhancer.vae.encode(frames)
    result = comfy.sample.sample_custom(
        enhancer.model,
        comfy.sample.prepare_noise(latents, SETTINGS.seed),
        9.0,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        positive,
        negative,
        latents,
        disable_pbar=True,
        seed=SETTINGS.seed,
    )
    by_hand = enhancer.vae.decode(result)
    assert (by_hand - host.enhance(enhancer, job(frames)).images()).abs().max() <= 1e-4
