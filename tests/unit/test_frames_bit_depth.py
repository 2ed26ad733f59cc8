"""Every image format that is written: the values in the file are those of the standard, rounded once."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from streaming_core.errors import SettingsError, VideoWriteError
from streaming_core.frames import BIT_DEPTHS, CODECS, TensorFrames, check_quality, codecs, pixel_format_of, write_video
from streaming_core.frames.pixels import format_bits, quantize, to_video_frame

FORMATS = sorted({name for codec in CODECS.values() for name in codec.pixel_formats} - {"bgr0"})
LUMA = np.array([0.2126, 0.7152, 0.0722])
BLOCK = 16


def chart() -> torch.Tensor:
    """`[1, H, W, 3]`: blocks of one color each, black, white and pure colors among them."""
    colors = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(3))
    colors[0, :8] = torch.tensor([[red, green, blue] for red in (0, 1) for green in (0, 1) for blue in (0, 1)])
    return colors.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[None]


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    kind = "<u2" if format_bits(frame.format.name) > 8 else "u1"
    return [
        np.frombuffer(bytes(plane), kind).reshape(plane.height, -1)[:, : plane.width].astype(float)
        for plane in frame.planes
    ]


def expected_planes(images: torch.Tensor, pixel_format: str) -> list[np.ndarray]:
    """What the planes hold at full resolution, unrounded, by ITU-R BT.709."""
    rgb, bits = images[0].double().numpy(), format_bits(pixel_format)
    if av.VideoFormat(pixel_format).is_rgb:
        return [rgb[..., channel] * (2**bits - 1) for channel in (1, 2, 0)]
    luma, step = rgb @ LUMA, 2 ** (bits - 8)
    blue, red = (rgb[..., 2] - luma) / 1.8556, (rgb[..., 0] - luma) / 1.5748
    return [(16 + 219 * luma) * step, (128 + 224 * blue) * step, (128 + 224 * red) * step]


def centers(plane: np.ndarray) -> np.ndarray:
    """One value per block, from its middle, at any resolution of the plane."""
    rows, columns = plane.shape[0] // 32, plane.shape[1] // 48
    return plane[rows // 2 :: rows, columns // 2 :: columns]


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_values_are_those_of_the_standard(pixel_format):
    bits = format_bits(pixel_format)
    frame = to_video_frame(quantize(chart(), bits)[0], pixel_format)
    # 8 bits come from pixels that are rounded themselves, at most half a step of 255 in each.
    source = torch.from_numpy(quantize(chart()) / 255) if bits == 8 else chart()
    for plane, expected in zip(planes_of(frame), expected_planes(source, pixel_format), strict=True):
        errors = centers(plane) - centers(expected)
        assert np.abs(errors).max() < 0.55
        assert abs(errors.mean()) < 0.05  # rounded to both sides


@pytest.mark.parametrize("pixel_format", [name for name in FORMATS if not av.VideoFormat(name).is_rgb])
def test_shared_color_is_the_mean_of_its_pixels(pixel_format):
    """Color that is a straight line stays one, without a shift to any side."""
    ramp = torch.linspace(0, 1, 96).expand(32, 96)
    images = torch.stack([ramp, torch.full_like(ramp, 0.5), 1 - ramp], -1)[None]
    frame = to_video_frame(quantize(images, format_bits(pixel_format))[0], pixel_format)
    plane, full = planes_of(frame)[1], expected_planes(images, pixel_format)[1]
    means = full.reshape(plane.shape[0], 32 // plane.shape[0], plane.shape[1], 96 // plane.shape[1]).mean((1, 3))
    assert np.abs(plane - means)[:, 2:-2].max() < 0.95


@pytest.mark.parametrize(("bits", "pixel_format"), [(10, "gbrp10le"), (16, "gbrp16le")])
def test_every_level_of_a_deep_format_arrives(bits, pixel_format):
    levels = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    images = levels.float().view(1, -1, 64, 1).expand(-1, -1, -1, 3)
    for plane in planes_of(to_video_frame(quantize(images, bits)[0], pixel_format)):
        assert (plane.ravel() == np.arange(2**bits)).all()


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (10, 257), (16, 257)])
def test_bytes_keep_their_values(bits, scale):
    stored = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    found = quantize(stored, bits)
    assert (found == stored.numpy().astype(int) * scale).all()
    assert (found == quantize(stored.float() / 255, bits)).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bits", BIT_DEPTHS)
def test_every_codec_keeps_the_bits_it_offers(tmp_path, codec, bits):
    if bits not in CODECS[codec].depths:
        with pytest.raises(SettingsError, match=f"{codec} keeps 8 or 10 bits per value, not {bits}; .*codec ffv1"):
            check_quality(codec, ".mp4", None, None, bits)
        return
    suffix = CODECS[codec].suffixes[0]
    check_quality(codec, suffix, None, None, bits)
    ramp = torch.linspace(0, 1, 1024).expand(64, 1024)
    stream, best = TensorFrames(ramp[None, ..., None].expand(3, -1, -1, 3), 24), None if codec == "ffv1" else 0
    pixel_format = pixel_format_of(codec, str(bits))
    write_video(stream, tmp_path / f"video{suffix}", codec=codec, crf=best, pixel_format=pixel_format)
    with av.open(str(tmp_path / f"video{suffix}")) as container:
        frame = next(container.decode(video=0))
        assert len(list(container.decode(video=0))) == 2
    assert frame.format.name == pixel_format
    if pixel_format != "bgr0":
        levels = len(np.unique(planes_of(frame)[0][32]))
        assert levels > {8: 200, 10: 800, 16: 1000}[bits]
    if not frame.format.is_rgb:
        assert (frame.colorspace, frame.color_range) == (1, 1)


@pytest.mark.parametrize(
    ("codec", "stored", "pixels"),
    [
        ("ffv1", 8, "bgr0"),
        ("ffv1", 10, "gbrp10le"),
        ("ffv1", 12, "gbrp16le"),
        ("h265", 10, "yuv420p10le"),
        ("av1", 12, "yuv420p10le"),
        ("h265", 8, "yuv420p"),
        ("h264", 10, "yuv420p"),
    ],
)
def test_auto_keeps_the_bits_that_were_read(codec, stored, pixels):
    assert pixel_format_of(codec, "auto", stored) == pixels


def test_an_encoder_without_the_format_is_passed_over_or_refused(monkeypatch):
    class Shallow:
        video_formats = (av.VideoFormat("yuv420p"),)

    real = av.Codec
    monkeypatch.setattr(codecs.av, "codecs_available", {"libsvtav1", "libaom-av1", "libx265"})
    monkeypatch.setattr(codecs.av, "Codec", lambda name, mode: Shallow() if name != "libaom-av1" else real("ffv1", "w"))
    assert codecs.choose_encoder("av1", ".mp4", "yuv420p")[0] == "libsvtav1"
    assert codecs.choose_encoder("av1", ".mp4", "yuv420p10le")[0] == "libaom-av1"
    with pytest.raises(VideoWriteError, match="libx265.* without yuv420p10le; choose another bit depth or codec"):
        check_quality("h265", ".mp4", None, None, 10)


def test_a_depth_that_nobody_keeps_is_refused():
    for wrong in (12, "12", "deep", ""):
        with pytest.raises(
            SettingsError, match=f"h264 keeps 8 or 10 bits per value, not {wrong}; choose one of these$"
        ):
            pixel_format_of("h264", wrong)
