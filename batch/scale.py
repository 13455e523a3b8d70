"""What many clips cost and what failures take from them: arithmetic, and a simulation that holds it
to account. docs/scale.md has what this prints.

Usage: python batch/scale.py
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

TERA, PETA = 1e12, 1e15
STEPS, PREDICTIONS = 50, 2  # a step predicts with the prompt and without it
# TFLOP of one prediction and of decoding the picture, 5 s. Source: docs/speed.md, counted by
# benchmarks/floor.py and decode_traffic.py; decoding goes with the area.
SIZES = {"704 x 704": (235, 1106), "960 x 960": (567, 2057)}
# FLOP a second that a card is assumed to reach; 40 % of the 989 TFLOP/s of an H100's data sheet.
REACHED = 400 * TERA
CLIPS = 1_000_000


@dataclass(frozen=True)
class Fleet:
    """Workers that are alike.

    seconds: of a clip. restart: seconds from a failure to the next clip's begin. life: mean seconds
    between the failures of one worker, which come at random.
    """

    workers: int
    seconds: float
    restart: float
    life: float

    @property
    def share(self) -> float:
        """The share of the time that goes into clips that are kept.

        A clip is kept when its worker lives through it: exp(-seconds / life). The expected time to
        one kept clip, tries that were lost and restarts included, is
        (life + restart) * (exp(seconds / life) - 1).
        """
        return self.seconds / ((self.life + self.restart) * math.expm1(self.seconds / self.life))

    @property
    def lost_share(self) -> float:
        """The expected number of failures for each kept clip."""
        return math.expm1(self.seconds / self.life)


@dataclass(frozen=True)
class Run:
    """What a simulated run took: hours, failures, and how often each job was kept."""

    hours: float
    failures: int
    kept: list[int]


def clip_petaflop(size: str) -> float:
    """Return what one clip of 5 s multiplies, in PFLOP."""
    prediction, decoding = SIZES[size]
    return (STEPS * PREDICTIONS * prediction + decoding) * TERA / PETA


def clip_seconds(size: str) -> float:
    """Return the seconds of a clip on a card that reaches REACHED."""
    return clip_petaflop(size) * PETA / REACHED


def card_hours(size: str, clips: int = CLIPS) -> float:
    """Return the hours of one card that so many clips take, without failures."""
    return clips * clip_seconds(size) / 3600


def simulate(fleet: Fleet, jobs: int, seed: int = 0) -> Run:
    """Run jobs through workers that fail at random; a lost job goes back to the front."""
    chance = random.Random(seed)
    waiting, kept, failures = deque(range(jobs)), [0] * jobs, 0
    free = [(0.0, worker) for worker in range(fleet.workers)]
    heapq.heapify(free)
    lives = [chance.expovariate(1 / fleet.life) for _ in range(fleet.workers)]
    ended = 0.0
    # A job counts as kept where it is given out: its end is known then, and jobs that are lost go
    # back early, which changes their order but no count.
    while waiting:
        now, worker = heapq.heappop(free)
        job = waiting.popleft()
        if now + fleet.seconds <= lives[worker]:
            kept[job] += 1
            ended = max(ended, now + fleet.seconds)
            heapq.heappush(free, (now + fleet.seconds, worker))
        else:
            failures += 1
            waiting.appendleft(job)
            back = lives[worker] + fleet.restart
            lives[worker] = back + chance.expovariate(1 / fleet.life)
            heapq.heappush(free, (back, worker))
    return Run(ended / 3600, failures, kept)


def exchanged_gigabytes(cards: int) -> float:
    """Return what each card sends in one prediction at 704 x 704 when it has 1/cards of the
    picture's tokens: query, key, value and result of every self-attention, in bf16, of which
    (cards - 1) / cards go to others. The sound's 157 tokens are on every card.
    """
    tokens, width, layers, tensors, bytes_each = 31 * 22 * 22, 3072, 30, 4, 2
    all_of_it = tokens * width * layers * tensors * bytes_each
    return all_of_it * (cards - 1) / cards**2 / 1e9


def split_seconds(cards: int, bandwidth: float) -> float:
    """Return the seconds of one prediction over so many cards that send bandwidth bytes a second
    each, when nothing is sent while something is computed.
    """
    alone = SIZES["704 x 704"][0] * TERA / REACHED
    return alone / cards + exchanged_gigabytes(cards) * 1e9 / bandwidth


def table() -> list[str]:
    """Return the lines of docs/scale.md's tables."""
    lines = []
    for size in SIZES:
        lines.append(
            f"| {size} | {clip_petaflop(size):.1f} | {clip_seconds(size):.0f} "
            f"| {card_hours(size):,.0f} | {card_hours(size) / 1000:.1f} |"
        )
    for hours in (1000, 100, 24, 2):
        fleet = Fleet(1000, clip_seconds("704 x 704"), 300, hours * 3600)
        run = simulate(fleet, 200_000)
        lines.append(
            f"| {hours} | {100 * fleet.share:.2f} "
            f"| {100 * ideal_hours(fleet, 200_000) / run.hours:.1f} "
            f"| {CLIPS * fleet.lost_share:,.0f} | {run.failures:,} |"
        )
    for cards in (2, 4, 8):
        times = [split_seconds(1, 1) / split_seconds(cards, rate) for rate in (450e9, 50e9)]
        lines.append(
            f"| {cards} | {exchanged_gigabytes(cards):.1f} | {times[0]:.1f} | {times[1]:.1f} |"
        )
    return lines


def ideal_hours(fleet: Fleet, jobs: int) -> float:
    """Return the hours that jobs take when nothing fails and all workers end together."""
    return jobs * fleet.seconds / fleet.workers / 3600


def main() -> int:
    """Print the tables."""
    print(*table(), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
