"""What many verdicts amount to, as figures and as a table of them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable

from scipy.stats import binomtest
from torch import Tensor

from .judge import IN_SYNC, Verdict, find_colour, find_places, sync_errors

NEAR = 4.0  # pixels, less than the radius of the smallest ball

# Name in the files: what the table says, how it shows a number.
ROWS = {
    "clips": ("clips", "{:.0f}"),
    "events_heard": ("events heard", "{:.0f}"),
    "sync": ("heard within one frame (42 ms) of one seen", "{:.1%}"),
    "sync_chance": (
        "the same, sound and picture of two clips that were asked for as many events",
        "{:.1%}",
    ),
    "sync_seen": ("seen within one frame of one heard", "{:.1%}"),
    "sync_error_ms": ("from heard to seen, median, ms", "{:.0f}"),
    "colour": ("colour as asked", "{:.1%}"),
    "count_seen": ("as many events seen as asked", "{:.1%}"),
    "count_heard": ("as many events heard as asked", "{:.1%}"),
    "count_both": ("as many seen and as many heard as asked", "{:.1%}"),
    "pitch": ("pitch as asked", "{:.1%}"),
    "all_right": ("all of these as asked, and every sound in step", "{:.1%}"),
    "snr_db": ("events above silence, median, dB", "{:.1f}"),
    "loudness_by_size": ("correlation of a ball's loudness and size", "{:.2f}"),
    "place_spread": ("where it is, spread over the seeds of a caption, pixels", "{:.1f}"),
    "time_spread": ("when it first happens, spread over the seeds of a caption, frames", "{:.1f}"),
    "carried_on": (
        "first frame carried on: its colour, never over 4 pixels from its place",
        "{:.1%}",
    ),
    "carried_colour": ("of that, its colour", "{:.1%}"),
    "carried_place": ("of that, its place", "{:.1%}"),
    "seconds": ("seconds a clip, sampling and decoding", "{:.2f}"),
}


def summarise(verdicts: list[Verdict]) -> dict[str, float]:
    """Return the figures of many clips by the names in ROWS; not a number where there is nothing to
    tell from.
    """
    errors = [error for verdict in verdicts for error in verdict.errors]
    together = sum(error <= IN_SYNC for error in errors)
    return {name: share(right) for name, right in answers(verdicts).items()} | {
        "clips": len(verdicts),
        "events_heard": len(errors),
        "sync_chance": chance(verdicts),
        "sync_seen": together / (sum(len(verdict.seen) for verdict in verdicts) or math.nan),
        "sync_error_ms": 1000 * median(errors),
        "snr_db": median(verdict.snr for verdict in verdicts if verdict.snr is not None),
        "loudness_by_size": correlation(
            [
                (v.loudness, v.radius)
                for v in verdicts
                if v.asked.thing == "ball" and v.heard and v.radius
            ]
        ),
        "place_spread": spread(verdicts, lambda verdict: float(verdict.places[0, 0])),
        "time_spread": spread(
            verdicts, lambda verdict: verdict.seen[0] if verdict.seen else math.nan
        ),
    }


def answers(verdicts: list[Verdict]) -> dict[str, list[bool]]:
    """Return whether each sound is in sync and each clip as asked, by the names in ROWS."""
    return {
        "sync": [error <= IN_SYNC for verdict in verdicts for error in verdict.errors],
        "colour": [verdict.colour == verdict.asked.colour for verdict in verdicts],
        "count_seen": [len(verdict.seen) == verdict.asked.count for verdict in verdicts],
        "count_heard": [len(verdict.heard) == verdict.asked.count for verdict in verdicts],
        "count_both": [len(v.seen) == len(v.heard) == v.asked.count for v in verdicts],
        "pitch": [verdict.pitch == verdict.asked.pitch for verdict in verdicts],
        "all_right": [v.colour == v.asked.colour and is_right_but_for_colour(v) for v in verdicts],
    }


def is_right_but_for_colour(verdict: Verdict) -> bool:
    """Whether as much is seen and heard as asked, at the right pitch, and each sound is in step."""
    asked = verdict.asked
    return (
        len(verdict.seen) == len(verdict.heard) == asked.count
        and verdict.pitch == asked.pitch
        and all(error <= IN_SYNC for error in verdict.errors)
    )


def carried_on(verdict: Verdict, first_frame: Tensor) -> tuple[bool, bool]:
    """Return whether a clip keeps the colour and the place of the frame [H, W, 3] that it was to
    start from.

    A ball may rise and fall; nothing else moves.
    """
    colour, masks = find_colour(first_frame[None])
    places, _ = find_places(masks)
    axes = 1 if verdict.asked.thing == "ball" else 2
    distance = (verdict.places[1:, :axes] - places[0, :axes]).abs().max()
    return verdict.colour == colour, bool(distance <= NEAR)


def summarise_carried(carried: list[tuple[bool, bool]]) -> dict[str, float]:
    """Return the figures of clips that started from a frame."""
    return {
        "carried_on": share(colour and place for colour, place in carried),
        "carried_colour": share(colour for colour, _ in carried),
        "carried_place": share(place for _, place in carried),
    }


def chance(verdicts: list[Verdict]) -> float:
    """Return the share in sync of each sound with the picture of every other clip that was asked
    for as many events.
    """
    pairs = [
        (a, b) for a in verdicts for b in verdicts if a is not b and a.asked.count == b.asked.count
    ]
    return share(error <= IN_SYNC for a, b in pairs for error in sync_errors(a.heard, b.seen))


def spread(verdicts: list[Verdict], value: Callable[[Verdict], float]) -> float:
    """Return the standard deviation over the clips of one scene, averaged over all scenes with two
    clips or more.
    """
    by_scene = defaultdict(list)
    for verdict in verdicts:
        if not math.isnan(value(verdict)):
            by_scene[verdict.asked].append(value(verdict))
    variances = [statistics.variance(values) for values in by_scene.values() if len(values) > 1]
    return math.sqrt(sum(variances) / len(variances)) if variances else math.nan


def share(right: Iterable[bool]) -> float:
    right = list(right)
    return sum(right) / len(right) if right else math.nan


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % of a share."""
    if not trials:
        return 0.0, 1.0
    low, high = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def median(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.median(values) if values else math.nan


def correlation(pairs: list[tuple[float, float]]) -> float:
    """Return Pearson's correlation; not a number for fewer than three pairs or without any
    difference.
    """
    columns = list(zip(*pairs, strict=True))
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in columns):
        return math.nan
    return statistics.correlation(*columns)


def table(columns: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of the figures of several evaluations by their names."""
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, (meaning, shown) in ROWS.items():
        values = [figures.get(name) for figures in columns.values()]
        if any(value is not None for value in values):
            cells = [
                "-" if value is None or math.isnan(value) else shown.format(value)
                for value in values
            ]
            lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return "\n".join(lines)
