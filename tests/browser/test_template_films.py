"""Every template makes what it is for with the demo models: the films that its picture shows frames of."""

from __future__ import annotations

import pytest
from PIL import Image

from streaming_core.frames import VideoFrames
from tests.browser.thumbnail_films import FOLDER, RECIPES, SIZE, make_output
from tests.demo import furnish


@pytest.fixture(scope="module")
def server(page_server):
    furnish(page_server.base)
    return page_server


def test_every_template_has_a_recipe():
    assert set(RECIPES) == {path.stem for path in FOLDER.glob("*.json")}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_makes_a_film_with_its_sprite_or_a_report(server, name):
    made = make_output(server, name)
    if made.suffix == ".png":
        assert Image.open(made).width > 500
        return
    film = VideoFrames.open(made)
    frames = film.read(0, len(film))
    assert len(film) >= 8 and (film.width, film.height) == (SIZE, SIZE)
    bright = (frames.amax(dim=-1) > 0.6).float().mean(dim=(1, 2))
    assert ((bright > 0.01) & (bright < 0.3)).float().mean() > 0.9, bright
