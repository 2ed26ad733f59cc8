"""Deinterlacing: two fields of half the lines, taken one after the other, as one image."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import av

FRAMES_BEFORE = 1
"""How many frames before a wanted one have to be decoded for it to be as when the video is read from its start."""


def deinterlaced(frames: Iterator[av.VideoFrame], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The same frames, at the same times; those that are marked as interlaced lose their combs (FFmpeg's bwdif)."""
    graph: av.filter.Graph | None = None
    times: deque[int | None] = deque()
    for frame in frames:
        if graph is None:
            graph = _graph_for(frame, stream)
        times.append(frame.pts)
        graph.push(frame)
        yield from _ready(graph, times)
    if graph is not None:
        graph.push(None)
        yield from _ready(graph, times)


def _graph_for(frame: av.VideoFrame, stream: av.VideoStream) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base)
    filters = [source, graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), graph.add("buffersink")]
    graph.link_nodes(*filters).configure()
    return graph


def _ready(graph: av.filter.Graph, times: deque[int | None]) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        # The filter counts in half ticks.
        frame.pts = times.popleft()
        yield frame
