"""What the images of the templates are put together from: frames of videos, images of graphs."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from streaming_core.frames import VideoFrames
from tests.browser.thumbnail_videos import Recipe
from training.demo import to_image

WIDTH, GAP = 768, 4
ROWS, COLUMNS = 2, 4
BACKGROUND = (24, 24, 24)
MOST_HEIGHT = 540
"""Of a graph or report, in pixels."""
MOST_BYTES = 120_000


def video_image(path: Path, recipe: Recipe) -> Image.Image:
    """`ROWS` times `COLUMNS` frames of a video, enlarged, in reading order; the recipe says which."""
    video = VideoFrames.open(path)
    count = min(ROWS * COLUMNS, len(video))
    if recipe.consecutive:
        numbers = [(len(video) - count) // 2 + i for i in range(count)]
    else:
        numbers = [round(i * (len(video) - 1) / max(1, count - 1)) for i in range(count)]
    width = (WIDTH - (COLUMNS - 1) * GAP) // COLUMNS
    height = round(width * video.height / video.width)
    sheet = Image.new("RGB", (WIDTH, ROWS * (height + GAP)), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, number in enumerate(numbers):
        left, top = place % COLUMNS * (width + GAP), place // COLUMNS * (height + GAP)
        frame = to_image(video.read(number, number + 1)[0].movedim(-1, 0))
        sheet.paste(frame.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        draw.text(
            (left + 6, top + 3), recipe.label(number), fill="white", font=font, stroke_width=1, stroke_fill="black"
        )
    return sheet


def wide_image(content: bytes) -> Image.Image:
    """The image in a file, as wide as a thumbnail; a tall one smaller, in the middle."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = min(WIDTH / image.width, MOST_HEIGHT / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (WIDTH, image.height), BACKGROUND)
    sheet.paste(image, ((WIDTH - image.width) // 2, 0))
    return sheet


def stacked(images: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (WIDTH, sum(image.height for image in images)), BACKGROUND)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def save(image: Image.Image, path: Path) -> None:
    """As JPEG, in the best quality that fits."""
    for quality in (88, 80, 70, 60):
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    print(f"{path.name}: {image.width}x{image.height}, {path.stat().st_size / 1000:.0f} kB", flush=True)
