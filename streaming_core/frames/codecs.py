"""Which codecs are written how: encoders, containers, quality, image formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import av

from ..errors import SettingsError, VideoWriteError

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
_AUDIO_ENCODERS = {"mp4": "aac", "mov": "aac", "matroska": "aac", "webm": "libopus"}


@dataclass(frozen=True)
class VideoCodec:
    """How a codec is written: encoders in order of preference, default quality, image formats and file types.

    `depths` gives the image format for each number of bits per value that a user may choose; `deep_plays`, whether
    more than eight play where the codec does.
    """

    encoders: tuple[str, ...]
    depths: Mapping[int, str]
    more_formats: tuple[str, ...]
    suffixes: tuple[str, ...]
    crf: int | None = None
    max_crf: int = 0
    preset: str = ""
    min_px: int = 1
    deep_plays: bool = True

    @property
    def pixel_formats(self) -> tuple[str, ...]:
        return (*self.depths.values(), *self.more_formats)


CODECS: dict[str, VideoCodec] = {
    "h264": VideoCodec(
        ("libx264",),
        {8: "yuv420p", 10: "yuv420p10le"},
        ("yuv422p", "yuv444p"),
        (".mp4", ".mov", ".mkv"),
        18,
        51,
        "medium",
        deep_plays=False,
    ),
    "h265": VideoCodec(
        ("libx265",),
        {8: "yuv420p", 10: "yuv420p10le"},
        ("yuv444p",),
        (".mp4", ".mov", ".mkv"),
        20,
        51,
        "medium",
        64,
    ),
    "av1": VideoCodec(
        ("libsvtav1", "libaom-av1"),
        {8: "yuv420p", 10: "yuv420p10le"},
        (),
        (".mp4", ".mkv", ".webm"),
        24,
        63,
        "8",
        64,
    ),
    "ffv1": VideoCodec(
        ("ffv1",), {8: "bgr0", 10: "gbrp10le", 16: "gbrp16le"}, ("yuv420p", "yuv444p"), (".mkv",), min_px=2
    ),
}
LARGE_PIXELS = 3840 * 2160
# Encoders look 40 frames and more ahead: 5 GB of 8K ones. With these they hold few, and files are a little larger.
_LARGE_FRAMES = {
    "libx264": {"x264-params": "rc-lookahead=2:sync-lookahead=0:bframes=0:ref=1:sliced-threads=1"},
    "libx265": {"x265-params": "log-level=error:rc-lookahead=2:bframes=0:ref=1:frame-threads=1:b-adapt=0"},
    "libsvtav1": {"svtav1-params": "lookahead=0:lp=1"},
}
AUTO_DEPTH = "auto"
BIT_DEPTHS = tuple(sorted({bits for codec in CODECS.values() for bits in codec.depths}))


def pixel_format_of(codec: str, bit_depth: int | str, stored_bits: int = 8) -> str:
    """The image format in which a codec keeps `bit_depth` bits per value, a number or its digits; `AUTO_DEPTH` keeps
    those of the frames, `stored_bits`, as far as the codec can, and eight where more would play in few places.

    Raises:
        SettingsError: unknown codec, or it has no such format.
    """
    choice = _known(codec)
    if bit_depth == AUTO_DEPTH:
        kept = [bits for bits in choice.depths if bits >= stored_bits]
        bit_depth = min(kept, default=max(choice.depths)) if choice.deep_plays else 8
    depths = {str(bits): pixel_format for bits, pixel_format in choice.depths.items()}
    if str(bit_depth) not in depths:
        able = [name for name, choice in CODECS.items() if str(bit_depth) in map(str, choice.depths)]
        way_out = f" or the codec {' or '.join(able)}" if able else ""
        raise SettingsError(
            f"{codec} keeps {' or '.join(depths)} bits per value, not {bit_depth}; choose one of these{way_out}"
        )
    return depths[str(bit_depth)]


def _known(codec: str) -> VideoCodec:
    if codec not in CODECS:
        raise SettingsError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
    return CODECS[codec]


def choose_encoder(codec: str, suffix: str, pixel_format: str | None) -> tuple[str, str]:
    """The encoder of this PyAV and the pixel format, or the reason why not."""
    choice = _known(codec)
    if suffix not in choice.suffixes:
        raise SettingsError(
            f"{codec} cannot be written to a {suffix or 'file without suffix'}; use {', '.join(choice.suffixes)}"
        )
    pixel_format = pixel_format or choice.pixel_formats[0]
    if pixel_format not in choice.pixel_formats:
        raise SettingsError(
            f"{codec} is not written as {pixel_format}; choose one of {', '.join(choice.pixel_formats)}"
        )
    there = [name for name in choice.encoders if name in av.codecs_available]
    if not there:
        raise VideoWriteError(
            f"PyAV {av.__version__} was built without an encoder for {codec} ({', '.join(choice.encoders)}); "
            "choose another codec"
        )
    encoder = next((name for name in there if _takes(name, pixel_format)), None)
    if encoder is None:
        raise VideoWriteError(
            f"the encoder of PyAV {av.__version__} for {codec} ({there[0]}) was built without {pixel_format}; choose "
            "another bit depth or codec"
        )
    return encoder, pixel_format


def _takes(encoder: str, pixel_format: str) -> bool:
    formats = av.Codec(encoder, "w").video_formats
    return not formats or pixel_format in [known.name for known in formats]


def encoder_options(
    codec: str, encoder: str, crf: float | None, bitrate: int | None, preset: str | None
) -> dict[str, str]:
    choice = CODECS[codec]
    if choice.crf is None:
        if crf is not None or bitrate is not None:
            raise SettingsError(f"{codec} is lossless: it takes neither crf nor bitrate")
        return {"level": "3", "slicecrc": "1"}
    if crf is not None and bitrate is not None:
        raise SettingsError(f"crf {crf} and bitrate {bitrate} exclude each other; give one of them")
    if bitrate is not None and bitrate < 1000:
        raise SettingsError(f"a bitrate of {bitrate} bits per second is too low; give at least 1000")
    crf = choice.crf if crf is None else crf
    if not 0 <= crf <= choice.max_crf:
        raise SettingsError(f"crf {crf} is outside 0 (best) .. {choice.max_crf} (smallest) of {codec}")
    options = {"cpu-used" if encoder == "libaom-av1" else "preset": preset or choice.preset}
    if bitrate is None:
        options["crf"] = f"{crf:g}" if encoder in ("libx264", "libx265") else str(round(crf))
    if encoder == "libx265":
        options["x265-params"] = "log-level=error"
    return options


def size_options(encoder: str, height: int, width: int) -> dict[str, str]:
    """What an encoder is told about a size: slices, and how many frames it may hold where each takes 50 MB and more."""
    large = height * width > LARGE_PIXELS
    if encoder == "ffv1":
        return {} if large else {"slices": "4"}  # where four are too few, which it refuses, it finds a number itself
    return dict(_LARGE_FRAMES.get(encoder, {})) if large else {}


def check_quality(codec: str, suffix: str, crf: float | None, bitrate: int | None, bit_depth: int | str = 8) -> None:
    """Refuse what a codec cannot be asked for, before there are frames.

    Raises:
        SettingsError: unknown codec, wrong file type, quality or bit depth.
        VideoWriteError: this PyAV has no encoder for it.
    """
    encoder, _ = choose_encoder(codec, suffix, pixel_format_of(codec, bit_depth))
    encoder_options(codec, encoder, crf, bitrate, None)


def check_size(codec: str, height: int, width: int) -> None:
    """Refuse images that a codec's encoder cannot take: x265 (below a width of 50) and SVT-AV1
    (at 16x16) write past their buffers and take the whole process with them; ffv1 refuses a width of 1.

    Raises:
        SettingsError: too small; names the least size.
    """
    least = CODECS[codec].min_px
    if min(height, width) < least:
        raise SettingsError(f"{codec} needs at least {least}x{least} pixels, the video is {width}x{height}; use h264")


def audio_encoder(codec: str, container: str) -> str:
    """The audio codec that goes with a video codec in a container: lossless with lossless where there is one."""
    return "flac" if codec == "ffv1" and container == "matroska" else _AUDIO_ENCODERS[container]
