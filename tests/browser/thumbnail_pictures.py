"""What the pictures of the templates are put together from: frames of films, pictures of graphs."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from streaming_core.frames import VideoFrames
from tests.browser.thumbnail_films import Recipe
from tests.demo import to_picture

WIDTH, GAP = 768, 4
ROWS, COLUMNS = 2, 4
BACKGROUND = (24, 24, 24)
MOST_HEIGHT = 540
"""Of a graph or report, in pixels."""
MOST_BYTES = 120_000


def film_picture(path: Path, recipe: Recipe) -> Image.Image:
    """`ROWS` times `COLUMNS` frames of a film, enlarged, in reading order; the recipe says which."""
    film = VideoFrames.open(path)
    count = min(ROWS * COLUMNS, len(film))
    if recipe.consecutive:
        numbers = [(len(film) - count) // 2 + i for i in range(count)]
    else:
        numbers = [round(i * (len(film) - 1) / max(1, count - 1)) for i in range(count)]
    width = (WIDTH - (COLUMNS - 1) * GAP) // COLUMNS
    height = round(width * film.height / film.width)
    sheet = Image.new("RGB", (WIDTH, ROWS * (height + GAP)), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, number in enumerate(numbers):
        left, top = place % COLUMNS * (width + GAP), place // COLUMNS * (height + GAP)
        frame = to_picture(film.read(number, number + 1)[0].movedim(-1, 0))
        sheet.paste(frame.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        draw.text(
            (left + 6, top + 3), recipe.label(number), fill="white", font=font, stroke_width=1, stroke_fill="black"
        )
    return sheet


def wide_picture(content: bytes) -> Image.Image:
    """The picture in a file, as wide as a thumbnail; a tall one smaller, in the middle."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    scale = min(WIDTH / picture.width, MOST_HEIGHT / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (WIDTH, picture.height), BACKGROUND)
    sheet.paste(picture, ((WIDTH - picture.width) // 2, 0))
    return sheet


def stacked(pictures: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (WIDTH, sum(picture.height for picture in pictures)), BACKGROUND)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def save(picture: Image.Image, path: Path) -> None:
    """As JPEG, in the best quality that fits."""
    for quality in (88, 80, 70, 60):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    print(f"{path.name}: {picture.width}x{picture.height}, {path.stat().st_size / 1000:.0f} kB", flush=True)
