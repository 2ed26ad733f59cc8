"""Every template makes what it is for with the demo models: the videos that its image shows frames of."""

from __future__ import annotations

import pytest
from PIL import Image

from streaming_core.frames import VideoFrames
from tests.browser.thumbnail_videos import FOLDER, RECIPES, make_output
from training.demo import furnish


@pytest.fixture(scope="module")
def server(page_server):
    furnish(page_server.base)
    return page_server


def test_every_template_has_a_recipe():
    assert set(RECIPES) == {path.stem for path in FOLDER.glob("*.json")}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_makes_a_video_with_its_sprite_or_a_report(server, name):
    made = make_output(server, name)
    if made.suffix == ".png":
        assert Image.open(made).width > 500
        return
    video = VideoFrames.open(made)
    frames = video.read(0, len(video))
    assert len(video) >= 8 and {video.width, video.height} == {RECIPES[name].size}
    bright = (frames.amax(dim=-1) > 0.6).float().mean(dim=(1, 2))
    assert ((bright > 0.01) & (bright < 0.3)).float().mean() > 0.9, bright
