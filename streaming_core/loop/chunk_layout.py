"""How a video is cut into chunks, for metrics that look at chunks and at the joins between them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingsError


@dataclass(frozen=True)
class ChunkLayout:
    """Chunks of a video: `starts[k]` is the first frame of chunk k, `starts[0]` is 0.

    `known` is false where nobody said how the video was made and equal windows stand in for the chunks: curves are then
    averaged over them, but the places where they meet are not joins.
    """

    num_frames: int
    starts: tuple[int, ...]
    known: bool = True

    @property
    def boundaries(self) -> tuple[int, ...]:
        """First frame of every chunk but the first; empty where the chunks are not known."""
        return self.starts[1:] if self.known else ()

    @property
    def chunks(self) -> tuple[range, ...]:
        stops = (*self.starts[1:], self.num_frames)
        return tuple(range(start, stop) for start, stop in zip(self.starts, stops, strict=True))


def lay_out(num_frames: int, chunk_frames: tuple[int, ...]) -> ChunkLayout:
    """Chunks of the given lengths, the last length repeated to the end; the last chunk is what is left.

    `lay_out(61, (25, 18))` starts chunks at 0, 25 and 43.

    Raises:
        SettingsError: no length, or one below 1.
    """
    if not chunk_frames or min(chunk_frames) < 1:
        raise SettingsError(f"chunk lengths must be 1 or more frames, such as 25,18; got {list(chunk_frames)}")
    starts, number = [0], 0
    while starts[-1] < num_frames:
        starts.append(starts[-1] + chunk_frames[min(number, len(chunk_frames) - 1)])
        number += 1
    return ChunkLayout(num_frames, tuple(starts[:-1]))


def windows(num_frames: int, most: int = 12, least_frames: int = 8) -> ChunkLayout:
    """Equal windows for a video whose chunks are not known: about `most` of them, none shorter than `least_frames`."""
    size = max(least_frames, -(-num_frames // most))
    return ChunkLayout(num_frames, tuple(range(0, max(1, num_frames - size // 2), size)), known=False)


def parse_chunks(text: str) -> tuple[int, ...]:
    """Chunk lengths as people write them: "25,18" or "16 8"; an empty text is an empty tuple.

    Raises:
        SettingsError: something that is not a whole number of at least 1.
    """
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SettingsError(f"chunk lengths must be whole numbers such as 25,18; got {text!r}")
    return tuple(int(part) for part in parts)
