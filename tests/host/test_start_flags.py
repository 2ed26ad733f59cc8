"""Flags that a host is started with, where they change how networks are made: both families work, or say why not."""

from __future__ import annotations

import pytest

import dev
from hosting.server import HostServer
from hosting.workflow import set_inputs
from streaming_core.frames import VideoFrames
from tests.host import test_modelscope, test_streamingsvd

pytestmark = pytest.mark.slow
FAMILIES = {"StreamingSVD": test_streamingsvd, "StreamingModelscope": test_modelscope}
SET = {
    "memory format of images": (("--force-channels-last",), {"StreamingSVD": "start it without that flag"}),
    "weights in eight bits": (("--fp8_e4m3fn-unet", "--disable-smart-memory"), {}),
    "halves, attention in parts": (("--bf16-unet", "--bf16-vae", "--use-split-cross-attention", "--deterministic"), {}),
}


@pytest.mark.parametrize(("flags", "refused"), SET.values(), ids=SET)
def test_both_families_make_a_video_or_say_why_not(flags, refused):
    with HostServer(pack=dev.ROOT, extra=flags) as server:
        assert not server.import_failures()
        for family, tests in FAMILIES.items():
            tests.furnish(server)
            prompt = tests.make_prompt(server)
            set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=12)
            result = server.run(prompt)
            if family in refused:
                assert result.status == "error" and refused[family] in str(result.messages)
                continue
            [output] = result.check().outputs
            frames = VideoFrames.open(output.path)
            pixels = frames.read(0, len(frames))
            assert len(frames) == 12 and pixels.std() > 0.01, family
