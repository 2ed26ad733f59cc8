"""A host that keeps no results between prompts, as many run it to save memory: `--cache-none`.

Every pipeline runs twice there and gives, frame for frame, what it gives on a host that keeps them. (Enhance Video and
Randomized Blending: `test_enhancer.py`.)
"""

from __future__ import annotations

import pytest
import torch

from hosting.server import HostServer
from hosting.workflow import set_inputs
from streaming_core.frames import VideoFrames
from tests.host import test_frames_server, test_modelscope, test_streamingsvd

pytestmark = pytest.mark.slow
SOURCES: dict[str, bytes] = {}


def image_to_video(server: HostServer) -> dict:
    test_streamingsvd.furnish(server)
    return test_streamingsvd.make_prompt(server)


def text_to_video(server: HostServer) -> dict:
    test_modelscope.furnish(server)
    prompt = test_modelscope.make_prompt(server)
    set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=16)
    return prompt


def interpolation(server: HostServer) -> dict:
    test_frames_server.furnish(server)
    # An H.264 encoder with several threads is not always the same: every server reads the file made first.
    source = server.base / "input" / "with_audio.mp4"
    source.write_bytes(SOURCES.setdefault(source.name, source.read_bytes()))
    return test_frames_server.interpolation_prompt(server)


@pytest.fixture(scope="module")
def uncached():
    import dev

    with HostServer(pack=dev.ROOT, extra=("--cache-none",)) as server:
        yield server


def test_the_pack_loads(uncached):
    assert not uncached.import_failures()
    assert uncached.pack_nodes()


@pytest.mark.parametrize("make", (image_to_video, text_to_video, interpolation))
def test_it_makes_the_same_video_twice(host_server, uncached, make):
    def video(server: HostServer) -> torch.Tensor:
        prompt = make(server)
        set_inputs(prompt, "StreamingT2VSaveStream", codec="ffv1")  # see `test_enhancer.svd_prompt`
        [output] = server.run(prompt).check().outputs
        frames = VideoFrames.open(output.path)
        return frames.read(0, len(frames))

    expected = video(host_server)
    assert torch.equal(video(uncached), expected)
    assert torch.equal(video(uncached), expected)
