"""Draws what is held of a clip: two bars over its seconds, of the picture and of the sound."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageColor, ImageDraw

from .contact_sheet import BACKGROUND, FAINT, PANEL, TEXT, font

SIZE = (640, 168)  # pixels
LEFT, RIGHT = 84, 24
BAR_HEIGHT = 36
TOPS = (36, 84)  # of the bars
AXIS = 128
MADE, HELD, CLEAN = PANEL, "#e0a030", "#6fe0d6"
MOST_TICKS = 10


class Part(NamedTuple):
    """A latent frame or an audio step."""

    start: float  # seconds
    end: float
    made: float  # 0 is held, 1 is made anew
    is_clean: bool = False


def draw_held(picture: list[Part], sound: list[Part], seconds: float) -> Image.Image:
    """Return the bars of a clip of so many seconds: held and clean parts in their colours, what is
    held in part between them and what is made.
    """
    image = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(image)
    scale = (SIZE[0] - LEFT - RIGHT) / seconds
    for name, parts, top in zip(("picture", "sound"), (picture, sound), TOPS, strict=True):
        middle = top + BAR_HEIGHT / 2
        draw.text((LEFT - 12, middle), name, TEXT, font(17), anchor="rm")
        for part in parts:
            box = (LEFT + part.start * scale, top, LEFT + part.end * scale, top + BAR_HEIGHT)
            draw.rectangle(box, _colour(part))
    _draw_legend(draw)
    _draw_seconds(draw, seconds, scale)
    return image


def _colour(part: Part) -> tuple[int, int, int]:
    """Return the colour between held, or clean, and made."""
    held, made = (ImageColor.getrgb(c) for c in (CLEAN if part.is_clean else HELD, MADE))
    return tuple(
        round(a + (b - a) * min(1, max(0, part.made))) for a, b in zip(held, made, strict=True)
    )


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    left = LEFT
    for name, colour in (("held", HELD), ("held clean", CLEAN), ("made", MADE)):
        draw.rectangle((left, 12, left + 11, 23), colour, FAINT)
        draw.text((left + 18, 18), name, FAINT, font(15), anchor="lm")
        left += 48 + 8 * len(name)


def _draw_seconds(draw: ImageDraw.ImageDraw, seconds: float, scale: float) -> None:
    """Draw ticks at round times under the bars."""
    steps = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
    step = next((step for step in steps if seconds / step <= MOST_TICKS), 60)
    for tick in range(int(seconds / step + 1e-6) + 1):
        place = LEFT + tick * step * scale
        draw.line((place, AXIS, place, AXIS + 6), FAINT)
        draw.text((place, AXIS + 20), f"{tick * step:g} s", FAINT, font(15), anchor="mm")
