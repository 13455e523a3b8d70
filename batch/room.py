"""How many workers there are, and how many cards each of them takes."""

from __future__ import annotations

AUTO = "auto"


def read_workers(text: str) -> int:
    """Read --workers; 0 is as many as there are cards for. Raises ValueError for anything else."""
    if text == AUTO:
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"--workers {text}: expected {AUTO}, or a whole number above 0.")
    return int(text)


def find_room(workers: int, cards_per_clip: int, cards: int) -> tuple[int, int]:
    """Return how many workers to start and how many cards each takes, 0 where there are none.

    workers: as read; those there are no cards for yet wait until a host joins. cards: of all hosts.
    Raises ValueError when they do not suffice for one worker.
    """
    if cards_per_clip < 1:
        raise ValueError(f"--cards-per-clip {cards_per_clip}: expected a whole number above 0.")
    if not cards:
        return workers or 1, 0
    if cards < cards_per_clip:
        raise ValueError(
            f"--cards-per-clip {cards_per_clip}: there are only {cards}; give fewer, or join hosts "
            "that have more."
        )
    return workers or cards // cards_per_clip, cards_per_clip
