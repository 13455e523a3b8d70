"""How many workers are started, and with how many cards; what cannot be is told, not waited for."""

import pytest
from comfyui_ovi.batch.room import find_room, read_workers


@pytest.mark.parametrize(
    ("workers", "cards_per_clip", "cards", "found"),
    [
        ("auto", 1, 0, (1, 0)),
        ("4", 2, 0, (4, 0)),
        ("auto", 1, 3, (3, 1)),
        ("auto", 2, 5, (2, 2)),
        ("1", 2, 4, (1, 2)),
        ("3", 2, 4, (3, 2)),
    ],
)
def test_workers_have_room(workers, cards_per_clip, cards, found):
    assert find_room(read_workers(workers), cards_per_clip, cards) == found


@pytest.mark.parametrize(
    ("workers", "cards_per_clip", "cards", "words"),
    [
        ("auto", 2, 1, "--cards-per-clip 2: there are only 1"),
        ("1", 4, 3, "--cards-per-clip 4: there are only 3"),
        ("auto", 0, 4, "--cards-per-clip 0: expected"),
        ("0", 1, 4, "--workers 0: expected auto"),
        ("two", 1, 0, "--workers two: expected auto"),
    ],
)
def test_too_little_room_is_told(workers, cards_per_clip, cards, words):
    with pytest.raises(ValueError, match=words):
        find_room(read_workers(workers), cards_per_clip, cards)
