"""The DropletVideo nodes with tiny weights: what they give, what they refuse, and a text encoder of the host's own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hosting.inprocess import import_host, import_pack
from tiny_models.dropletvideo import TINY, WEIGHTS, transformer_settings, transformer_weights, write_tiny_dropletvideo
from tiny_models.streamingsvd import write

import_host()
import_pack()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
from comfy import sd1_clip  # noqa: E402
from comfy.text_encoders import flux, sd3_clip  # noqa: E402
from comfyui_streamingt2v.nodes import dropletvideo as nodes  # noqa: E402
from comfyui_streamingt2v.nodes.host import handed_out  # noqa: E402
from comfyui_streamingt2v.nodes.host.dropletvideo.model import FPS, INPAINT  # noqa: E402
from comfyui_streamingt2v.nodes.host.dropletvideo.text import NEGATIVE, QUALITY, TOKENS  # noqa: E402
from comfyui_streamingt2v.nodes.host.runs import videos  # noqa: E402
from comfyui_streamingt2v.streaming_core.errors import CheckpointError, SettingsError  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.plan import VideoPlan  # noqa: E402
from comfyui_streamingt2v.streaming_core.loop.script import Script, parse_cues, parse_numbers  # noqa: E402
from transformers import T5Config, T5EncoderModel, T5TokenizerFast  # noqa: E402

from tiny_models import native  # noqa: E402
from tiny_models.native_vae import plain_vae  # noqa: E402

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 48, 32
FACTOR = 0.7
T5 = {"d_model": TINY.text_width, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2}
CLIP = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}


@pytest.fixture(scope="module", autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_dropletvideo(tmp_path_factory.mktemp("droplet"))


@pytest.fixture(scope="module")
def loaded(folder) -> tuple:
    return load(folder)


def load(folder: Path, **options) -> tuple:
    """MODEL and VAE from *Load DropletVideo*, as if both of the host's folders were there."""
    with pytest.MonkeyPatch.context() as patch:
        look_in(folder, patch)
        return nodes.LoadDropletVideo.execute(f"transformer/{WEIGHTS}", f"vae/{WEIGHTS}", **options).result


def look_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for key in ("diffusion_models", "vae"):
        endings = folder_paths.folder_names_and_paths[key][1]
        patch.setitem(folder_paths.folder_names_and_paths, key, ([str(folder)], endings))


def images(count: int, seed: int = 4) -> Tensor:
    return torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> list:
    return [[torch.randn(1, 10, TINY.text_width, generator=torch.Generator().manual_seed(seed)), {}]]


# Load DropletVideo


def test_the_loader_lists_files_in_folders_and_reads_an_exchanged_file_again(tmp_path, monkeypatch):
    folder = write_tiny_dropletvideo(tmp_path)
    look_in(folder, monkeypatch)
    names = (f"transformer/{WEIGHTS}", f"vae/{WEIGHTS}")
    offered = {each.id: each.options for each in nodes.LoadDropletVideo.define_schema().inputs[:2]}
    assert names[0] in offered["model_name"] and names[1] in offered["vae_name"]
    before = nodes.LoadDropletVideo.fingerprint_inputs(*names)
    assert nodes.LoadDropletVideo.fingerprint_inputs(*names, scaling_factor=0.0) == before
    write_tiny_dropletvideo(tmp_path / "other", seed=1)
    (tmp_path / "other" / names[1]).replace(folder / names[1])
    assert nodes.LoadDropletVideo.fingerprint_inputs(*names) != before


def test_the_scaling_factor_of_the_widget_reaches_model_and_vae(folder):
    model, vae = load(folder, scaling_factor=0.5)
    assert model.model.latent_format.scale_factor == vae.config.scaling_factor == 0.5


def test_a_damaged_config_is_named(tmp_path):
    folder = write_tiny_dropletvideo(tmp_path)
    (folder / "transformer" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is damaged .* or remove it"):
        load(folder)


# DropletVideo Conditioning


def conditioning(loaded: tuple, num_frames: int = 13, **options) -> tuple:
    given = {"motion_fps": 8.0, "reference_noise": 0.0, "seed": 3, "fit": "crop", **options}
    return nodes.DropletVideoConditioning.execute(*loaded, text(1), text(2), WIDTH, HEIGHT, num_frames, **given).result


def inpaint(outputs: tuple) -> Tensor:
    return outputs[0][0][1][INPAINT]


def known_latents(outputs: tuple) -> list[float]:
    """Of the mask channel, per latent, in parts of the scaling factor; the same everywhere on a latent."""
    mask = inpaint(outputs)[0, 0] / FACTOR
    assert (mask == mask[:, :1, :1]).all()
    return [round(value, 4) for value in mask[:, 0, 0].tolist()]


@pytest.mark.parametrize(("num_frames", "latents", "decoded"), [(9, 3, 9), (13, 4, 16), (81, 21, 81), (85, 22, 88)])
def test_lengths_are_those_of_the_vae(loaded, num_frames, latents, decoded):
    positive, negative, empty, count = conditioning(loaded, num_frames)
    shape = (1, 16, latents, HEIGHT // 8, WIDTH // 8)
    assert empty["samples"].shape == shape and not empty["samples"].any() and count == decoded
    assert all(cond[0][1][INPAINT].shape == (1, 17, *shape[2:]) for cond in (positive, negative))
    assert all(cond[0][1][FPS] == 8.0 for cond in (positive, negative))
    assert torch.equal(positive[0][0], text(1)[0][0]) and torch.equal(negative[0][0], text(2)[0][0])


def test_the_vae_decodes_as_many_frames_as_the_node_says(loaded):
    *_, empty, count = conditioning(loaded, 13)
    assert loaded[1].decode(empty["samples"]).shape[1] == count == 16


@pytest.mark.parametrize(
    ("given", "known"), [(1, [1, 0, 0, 0]), (3, [1, 0.5, 0, 0]), (4, [1, 1, 0, 0]), (9, [1, 1, 1, 0])]
)
def test_the_mask_channel_shows_which_latents_are_known(loaded, given, known):
    assert known_latents(conditioning(loaded, start_images=images(given))) == known


def test_a_last_frame_is_seen_but_not_in_the_mask(loaded):
    """As in the official program (reference: dropletvideo, section 7)."""
    start = conditioning(loaded, start_images=images(1))
    both = conditioning(loaded, start_images=images(1), end_image=images(1, 9))
    assert known_latents(both) == known_latents(start) == [1, 0, 0, 0]
    changed = (inpaint(both) - inpaint(start)).abs().amax(dim=(0, 1, 3, 4))
    assert changed[-1] > 0.01 and changed[0] == 0
    assert inpaint(conditioning(loaded, end_image=images(1, 9))).any()


def test_nothing_known_is_zero_everywhere(loaded):
    assert not inpaint(conditioning(loaded)).any()


def test_images_of_another_size_are_fitted_as_the_widget_says(loaded):
    wide = torch.rand(1, 40, 200, 3, generator=torch.Generator().manual_seed(1))
    found = [inpaint(conditioning(loaded, start_images=wide, fit=how)) for how in ("crop", "pad", "stretch")]
    assert all(each.shape == (1, 17, 4, 4, 6) for each in found)
    assert not any(torch.allclose(found[one], found[two]) for one, two in ((0, 1), (0, 2), (1, 2)))
    alpha = torch.cat([images(1), torch.ones(1, HEIGHT, WIDTH, 1)], dim=-1)
    plain = conditioning(loaded, start_images=images(1))
    assert torch.equal(inpaint(conditioning(loaded, start_images=alpha)), inpaint(plain))


def test_reference_noise_follows_widget_seed_and_config(loaded, tmp_path):
    def known(of=loaded, **options) -> Tensor:
        return inpaint(conditioning(of, start_images=images(1), **options))

    clean = known()
    assert torch.equal(known(reference_noise=-1.0), clean), "config.json says that there is none"
    noisy = known(reference_noise=0.0563)
    assert not torch.allclose(noisy, clean) and torch.equal(known(reference_noise=0.0563), noisy)
    assert not torch.allclose(known(reference_noise=0.0563, seed=4), noisy)
    folder = write_tiny_dropletvideo(tmp_path)
    settings = {**transformer_settings(), "add_noise_in_inpaint_model": True}
    (folder / "transformer" / "config.json").write_text(json.dumps(settings))
    trained_with_noise = load(folder)
    assert torch.equal(known(trained_with_noise, reference_noise=-1.0), noisy)
    assert torch.equal(known(trained_with_noise, reference_noise=0.0), clean)


@pytest.mark.parametrize("num_frames", [10, 11, 12, 80, 84])
def test_other_lengths_are_refused(loaded, num_frames):
    with pytest.raises(SettingsError, match=rf"4n \+ 1 frames, not {num_frames}"):
        conditioning(loaded, num_frames)


def test_more_known_frames_than_frames_are_refused(loaded):
    with pytest.raises(SettingsError, match="10 known frames do not fit into a video of 9"):
        conditioning(loaded, 9, start_images=images(9), end_image=images(1))


@pytest.fixture(scope="module")
def foreign() -> tuple:
    """MODEL and VAE of another family."""
    return native.WAN.make(), plain_vae(native.WAN)


def test_another_model_and_another_vae_are_refused(loaded, foreign):
    with pytest.raises(SettingsError, match="the model is not DropletVideo"):
        conditioning((foreign[0], loaded[1]))
    with pytest.raises(SettingsError, match="the VAE is not DropletVideo's"):
        conditioning((loaded[0], foreign[1]))
    with pytest.raises(SettingsError, match="the model is not DropletVideo"):
        nodes.DropletVideoSampling.execute(foreign[0], 4)


# DropletVideo Sampling


def sample(loaded: tuple, outputs: tuple, sampler, sigmas: Tensor) -> Tensor:
    positive, negative, empty, _ = outputs
    noise = torch.randn(empty["samples"].shape, generator=torch.Generator().manual_seed(5))
    conds, options = (positive, negative, empty["samples"]), {"disable_pbar": True, "seed": 1}
    return comfy.sample.sample_custom(loaded[0], noise, 3.0, sampler, sigmas, *conds, **options)


def test_the_nodes_together_make_a_video_that_follows_every_setting(loaded):
    sampler, sigmas = nodes.DropletVideoSampling.execute(loaded[0], 3).result
    assert len(sigmas) == 4 and sigmas[-1] == 0 and (sigmas[:-1] > sigmas[1:]).all()
    plain = sample(loaded, conditioning(loaded, 9, start_images=images(1)), sampler, sigmas)
    assert torch.equal(sample(loaded, conditioning(loaded, 9, start_images=images(1)), sampler, sigmas), plain)
    assert plain.isfinite().all()
    for options in (
        {"motion_fps": 4.0, "start_images": images(1)},
        {"start_images": images(1, 8)},
        {"start_images": images(4)},
        {"start_images": images(1), "end_image": images(1, 8)},
        {},
    ):
        assert not torch.allclose(sample(loaded, conditioning(loaded, 9, **options), sampler, sigmas), plain, atol=1e-3)


@pytest.mark.parametrize("steps", [20, 30, 50])
def test_a_scheduler_of_the_host_comes_near(loaded, steps):
    _, sigmas = nodes.DropletVideoSampling.execute(loaded[0], steps).result
    sampling = loaded[0].get_model_object("model_sampling")
    stock = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    levels = [torch.stack([sampling.timestep(sigma) for sigma in each[:-1]]) for each in (sigmas, stock)]
    assert len(stock) == len(sigmas) and (levels[0] - levels[1]).abs().max() <= 1, "of 1000"


def test_the_last_steps_alone_are_sampled_and_more_than_there_are_refused(loaded):
    outputs = conditioning(loaded, 9, start_images=images(1))
    sampler, sigmas = nodes.DropletVideoSampling.execute(loaded[0], 4).result
    assert sample(loaded, outputs, sampler, sigmas[2:]).isfinite().all()
    _, more = nodes.DropletVideoSampling.execute(loaded[0], 5).result
    with pytest.raises(SettingsError, match="made for 4 steps and got sigmas of 5"):
        sample(loaded, outputs, sampler, more)


def test_fp8_files_are_read(loaded, tmp_path):
    """Plain, and with a scale per layer: each as the same numbers in full."""
    steps, known = nodes.DropletVideoSampling.execute(loaded[0], 2).result, conditioning(loaded, 9)
    whole = transformer_weights()
    layers = {key for key, tensor in whole.items() if key.startswith("transformer_blocks.") and tensor.ndim == 2}
    scales = {key: whole[key].abs().max() / 448 for key in layers}
    small = {key: (whole[key] / scales[key]).to(torch.float8_e4m3fn) for key in layers}
    plain = {**whole, **{key: whole[key].to(torch.float8_e4m3fn) for key in layers}}
    scaled = {**whole, **small, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    scaled |= {key.replace(".weight", ".scale_weight"): scale for key, scale in scales.items()}
    for name, tensors, same in (
        ("plain", plain, {key: plain[key].float() for key in layers}),
        ("scaled", scaled, {key: small[key].float() * scales[key] for key in layers}),
    ):
        made = []
        for kind, content in (("fp8", tensors), ("full", {**whole, **same})):
            folder = write_tiny_dropletvideo(tmp_path / name / kind)
            write(folder / "transformer" / WEIGHTS, content)
            made.append(sample(load(folder), known, *steps))
        assert (made[0] - made[1]).abs().max() < 0.03 * made[1].abs().max(), name


# DropletVideo Text


def text_encoder(network, tokenizer, **towers) -> comfy.sd.CLIP:
    """The host's CLIP with tiny towers of random weights. `towers`: model options that make them tiny."""
    options = {"t5xxl_model_config": T5, **{f"{name}_model_config": CLIP for name in ("clip_l", "clip_g")}, **towers}
    target = SimpleNamespace(params={}, clip=network, tokenizer=tokenizer)
    clip = comfy.sd.CLIP(target, model_options=options)
    generator = torch.Generator().manual_seed(2)
    for weight in clip.cond_stage_model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return clip


@pytest.fixture(scope="module")
def t5() -> comfy.sd.CLIP:
    return text_encoder(sd3_clip.sd3_clip(clip_l=False, clip_g=False, t5=True), sd3_clip.SD3Tokenizer)


def encode(clip: comfy.sd.CLIP, prompt: str, quality: str = "", negative: str = "") -> tuple[Tensor, Tensor]:
    positive, other = nodes.DropletVideoText.execute(clip, prompt, quality, negative).result
    return positive[0][0], other[0][0]


def tokenizer() -> T5TokenizerFast:
    return T5TokenizerFast.from_pretrained(str(Path(sd3_clip.__file__).with_name("t5_tokenizer")))


@pytest.fixture(scope="module")
def official(t5):
    """A text as the official program encodes it: 400 tokens of the stock tokenizer, and no attention mask."""
    config = T5Config(**T5, vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    network = T5EncoderModel(config).eval()
    missing = network.load_state_dict(t5.cond_stage_model.t5xxl.transformer.state_dict(), strict=False).missing_keys
    assert set(missing) <= {"encoder.embed_tokens.weight"}, "the same tensor as shared.weight"
    network.set_input_embeddings(network.shared)
    words = tokenizer()

    def encoded(prompt: str) -> Tensor:
        tokens = words(prompt, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        return network(tokens.input_ids).last_hidden_state

    return encoded


LONG = "A red fox runs through deep snow while the camera follows it from the left. " * 40


@pytest.mark.parametrize(
    "prompt", ["", "a dog", "A dog's tail,\nwagging; 3 cats.", LONG], ids=["none", "short", "marks", "long"]
)
def test_a_prompt_is_what_the_official_program_makes_of_it(t5, official, prompt):
    """400 tokens: the end token after the words, then padding; a long text is cut off before its end token."""
    got, _ = encode(t5, prompt)
    assert got.shape == (1, TOKENS, TINY.text_width)
    wanted = official(prompt.strip())
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_quality_follows_the_prompt_and_the_negative_prompt_stands_alone(t5, official):
    positive, negative = encode(t5, " a dog ", QUALITY, NEGATIVE)
    assert torch.allclose(positive, official(f"a dog {QUALITY}"), atol=1e-4)
    assert torch.allclose(negative, official(NEGATIVE), atol=1e-4)
    assert torch.equal(encode(t5, "a dog")[0], encode(t5, "a dog", "  ")[0])


def test_what_is_beyond_400_tokens_does_not_count_and_what_is_before_does(t5):
    assert len(tokenizer()(LONG).input_ids) > TOKENS + 50
    assert torch.equal(encode(t5, LONG)[0], encode(t5, f"{LONG} It stops.")[0])
    assert not torch.allclose(encode(t5, LONG)[0], encode(t5, f"It stops. {LONG}")[0], atol=1e-2)


def test_weights_of_words_count_for_nothing(t5):
    plain, _ = encode(t5, "a red ball")
    for weighted in ("a (red:1.5) ball", "a (red:0.2) ball", "a ((red)) ball"):
        assert torch.equal(encode(t5, weighted)[0], plain)


def test_parentheses_of_the_text_are_written_as_everywhere_in_the_host(t5, official):
    assert torch.allclose(encode(t5, r"a \(small\) dog")[0], official("a (small) dog"), atol=1e-4)
    assert torch.equal(encode(t5, "a (small) dog")[0], encode(t5, "a small dog")[0])


def test_t5_among_other_towers_of_sd3_is_taken_alone(t5):
    triple = text_encoder(sd3_clip.sd3_clip(), sd3_clip.SD3Tokenizer)
    triple.cond_stage_model.t5xxl.load_state_dict(t5.cond_stage_model.t5xxl.state_dict())
    assert torch.equal(encode(triple, "a dog")[0], encode(t5, "a dog")[0])


@pytest.mark.parametrize(
    ("network", "words", "message"),
    [
        (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer, "takes its prompt from a T5 XXL text encoder"),
        (sd3_clip.sd3_clip(True, False, False), sd3_clip.SD3Tokenizer, "takes its prompt from a T5 XXL text encoder"),
        (sd3_clip.sd3_clip(False, False, True, t5_attention_mask=True), sd3_clip.SD3Tokenizer, "leaves padding out"),
        (flux.flux_clip(), flux.FluxTokenizer, "from T5 XXL alone"),
    ],
    ids=["clip", "sd3 without t5", "masked", "flux"],
)
def test_other_text_encoders_are_refused(network, words, message):
    with pytest.raises(SettingsError, match=message):
        encode(text_encoder(network, words), "a dog")


def test_text_of_another_width_is_refused_by_the_model(loaded):
    small = text_encoder(
        sd3_clip.sd3_clip(False, False, True), sd3_clip.SD3Tokenizer, t5xxl_model_config={**T5, "d_model": 16}
    )
    positive, negative = nodes.DropletVideoText.execute(small, "a dog", "", "").result
    sampler, sigmas = nodes.DropletVideoSampling.execute(loaded[0], 2).result
    outputs = (positive, negative, *conditioning(loaded, 9)[2:])
    with pytest.raises(SettingsError, match="text of width 24, got shape"):
        sample(loaded, outputs, sampler, sigmas)


# DropletVideo Chunk Sampler


def chunk_sampler(loaded: tuple, **options):
    given = {
        "positive": text(1),
        "negative": text(2),
        "steps": 2,
        "cfg": 3.0,
        "motion_fps": 8.0,
        "prefix_frames": "4",
        "reference_noise": -1.0,
        "quality": QUALITY,
        **options,
    }
    return nodes.DropletVideoChunkSampler.execute(*loaded, **given).result[0]


@pytest.fixture
def run_root(tmp_path, monkeypatch):
    for module in (videos, handed_out):
        if hasattr(module, "runs_root"):
            monkeypatch.setattr(module, "runs_root", lambda: tmp_path)
    return tmp_path


def plan(frames: int, chunk_frames: int, **options) -> VideoPlan:
    given = {"overlap_frames": 1, "width": WIDTH, "height": HEIGHT, "fit": "crop", "seed": 5, "anchor_frame": 0}
    given |= {"start_image": images(1), **options}
    return videos.plan_video(num_frames=frames, chunk_frames=chunk_frames, **given)


def make(sampler, frames: int, chunk_frames: int, name: str = "mine", **options) -> Tensor:
    video = videos.make_video(sampler, plan(frames, chunk_frames, **options), name)
    return video.read(0, len(video))


@pytest.mark.parametrize("chunk_frames", [9, 13], ids=["odd latents as of 81", "even latents as of 85"])
@pytest.mark.parametrize("start", ["image", "prompt", "frames"])
def test_three_chunks_from_the_node(loaded, run_root, chunk_frames, start):
    frames = chunk_frames + 2 * (chunk_frames - 4)
    given = {"image": {}, "prompt": {"start_image": None}}.get(start, {"start_image": None, "start_frames": images(6)})
    made = make(chunk_sampler(loaded), frames, chunk_frames, **given)
    assert made.shape == (frames, HEIGHT, WIDTH, 3) and made.isfinite().all()
    chunks = {path.name for path in run_root.rglob("*.safetensors")}
    assert len(chunks) >= 3 - (start == "frames")
    if start == "frames":
        assert (made[:6] - images(6)).abs().max() < 0.01, "given frames stay"


def test_every_setting_of_the_node_is_another_video(loaded, run_root):
    plain = make(chunk_sampler(loaded), 9, 9, "plain")
    assert torch.equal(make(chunk_sampler(loaded), 9, 9, "again"), plain)
    euler = {"sampler": comfy.samplers.sampler_object("euler")}
    for number, options in enumerate(
        (
            {"positive": text(3)},
            {"negative": text(3)},
            {"steps": 3},
            {"cfg": 1.5},
            {"motion_fps": 32.0},
            {"reference_noise": 0.5},
            euler,
            {**euler, "sigmas": torch.tensor([20.0, 3.0, 0.0])},
        )
    ):
        assert not torch.equal(make(chunk_sampler(loaded, **options), 9, 9, f"other {number}"), plain), options


def test_the_prompts_of_a_plan_are_encoded_with_the_quality_sentence(loaded, t5, run_root):
    script = Script(prompts=parse_cues("0: a dog\n1: a cat"))
    asked = {"plan": VideoPlan(14, 9, 4, 5, 8, script)}
    of_plan = make(chunk_sampler(loaded, clip=t5, positive=None), 14, 9, "plan", **asked)
    positive, _ = nodes.DropletVideoText.execute(t5, "a dog", QUALITY, "").result
    connected = make(chunk_sampler(loaded, positive=positive), 14, 9, "connected")
    assert torch.equal(of_plan[:9], connected[:9]) and not torch.allclose(of_plan[9:], connected[9:], atol=0.01)
    bare = make(chunk_sampler(loaded, clip=t5, positive=None, quality=" "), 14, 9, "bare", **asked)
    assert not torch.equal(bare, of_plan)
    with pytest.raises(SettingsError, match="connect clip to the chunk sampler"):
        chunk_sampler(loaded).accept(plan(14, 9, **asked))
    with pytest.raises(SettingsError, match="chunk 0 has no prompt; begin the plan's prompts with '0: ...'"):
        chunk_sampler(loaded, clip=t5, positive=None).accept(plan(14, 9))


def test_what_the_chunk_sampler_cannot_do_is_refused(loaded, foreign):
    with pytest.raises(SettingsError, match="a video needs a prompt; connect positive, or clip"):
        chunk_sampler(loaded, positive=None)
    with pytest.raises(SettingsError, match="the official sampler belongs to its own sigmas"):
        chunk_sampler(loaded, sigmas=torch.tensor([2.0, 0.0]))
    with pytest.raises(SettingsError, match="the model is not DropletVideo"):
        chunk_sampler((foreign[0], loaded[1]))
    with pytest.raises(SettingsError, match="the VAE is not DropletVideo's"):
        chunk_sampler((loaded[0], foreign[1]))
    with pytest.raises(SettingsError, match="width must be a multiple of 16 pixels, got 40"):
        chunk_sampler(loaded).accept(plan(9, 9, width=40))
    weaker = VideoPlan(9, 9, 4, 5, 8, Script(cam_strength=parse_numbers("0.5", "cam_strength", 0.0, 4.0)))
    with pytest.raises(SettingsError, match="cannot follow the plan's cam strength"):
        chunk_sampler(loaded).accept(plan(9, 9, plan=weaker))
