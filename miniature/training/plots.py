"""Draws judged clips: every frame over the sound on one time axis, with what is seen and heard
marked.
"""

from __future__ import annotations

from find_comfyui import import_extension
from PIL import Image, ImageDraw
from torch import Tensor

from .judge import Verdict
from .world import FRAME_RATE, SAMPLE_RATE

import_extension()
from comfyui_ovi.ovi_model.preview import contact_sheet  # noqa: E402

CELL, GAP, MARGIN = 40, 1, 16  # pixels
TITLE, WAVE, BETWEEN = 26, 56, 16
SEEN, HEARD = "#ffd166", "#ef476f"

Judged = tuple[str, Tensor, Tensor, Verdict]  # caption, frames [F, H, W, 3], sound [samples]


def draw_clips(clips: list[Judged]) -> Image.Image:
    """Return one picture of all clips, one below the other."""
    rows = [draw_clip(*clip) for clip in clips]
    width, height = max(row.width for row in rows), rows[0].height + BETWEEN
    sheet = Image.new(
        "RGB", (width + 2 * MARGIN, height * len(rows) + MARGIN), contact_sheet.BACKGROUND
    )
    for index, row in enumerate(rows):
        sheet.paste(row, (MARGIN, MARGIN + index * height))
    return sheet


def draw_clip(caption: str, frames: Tensor, sound: Tensor, verdict: Verdict) -> Image.Image:
    """Return the caption, all frames and the sound of a clip: what is seen is marked below, what is
    heard above.
    """
    step = CELL + GAP
    row = Image.new("RGB", (len(frames) * step, TITLE + CELL + WAVE), contact_sheet.BACKGROUND)
    draw = ImageDraw.Draw(row)
    draw.text((0, TITLE / 2), caption, contact_sheet.TEXT, contact_sheet.font(15), anchor="lm")
    draw.text(
        (row.width, TITLE / 2),
        describe(verdict),
        contact_sheet.FAINT,
        contact_sheet.font(15),
        anchor="rm",
    )
    pictures = [
        Image.fromarray(frame) for frame in (frames.clamp(0, 1) * 255).round().byte().cpu().numpy()
    ]
    length = len(frames) / FRAME_RATE
    heard = contact_sheet.Sound(sound[: round(length * SAMPLE_RATE)].cpu().numpy(), SAMPLE_RATE)
    row.paste(contact_sheet.draw_wave(heard, length, (row.width, WAVE)), (0, TITLE + CELL))
    for index, picture in enumerate(pictures):
        row.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (index * step, TITLE))
    for frame in verdict.seen:
        draw.rectangle(
            (frame * step, TITLE, frame * step + CELL - 1, TITLE + CELL - 1), outline=SEEN, width=2
        )
        draw.line((frame * step, TITLE + CELL, frame * step, row.height), SEEN, 2)
    for seconds in verdict.heard:
        place = round(seconds * FRAME_RATE * step)
        draw.line((place, TITLE + CELL, place, row.height), HEARD, 2)
        draw.polygon(
            [(place - 5, row.height), (place + 5, row.height), (place, row.height - 8)], HEARD
        )
    return row


def describe(verdict: Verdict) -> str:
    """Say in one line what is seen and heard."""
    seen = f"{len(verdict.seen)} seen, {len(verdict.heard)} heard"
    errors = ", ".join(
        "none" if error == float("inf") else f"{1000 * error:.0f}" for error in verdict.errors
    )
    colour, pitch = verdict.colour or "no colour", verdict.pitch or "no pitch"
    return f"{colour}, {pitch}, {seen}, apart by {errors or '-'} ms"
