"""How well pictures and recordings are kept: intervals, and what a count is made of."""

from types import SimpleNamespace

import pytest
from comfyui_ovi.miniature.training import figures, held_figures, world

OPTIONS = SimpleNamespace(clips=4, seed=1000)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(48, 48, 0.926, 1.0), (16, 48, 0.217, 0.475), (0, 10, 0.0, 0.278), (0, 0, 0.0, 1.0)],
)
def test_intervals_are_wilsons(hits, trials, low, high):
    assert figures.wilson(hits, trials) == pytest.approx((low, high), abs=1e-3)


def given_back(monkeypatch, held, clip_of):
    """Have the figures judge what clip_of makes of each of the world's clips, by its number."""
    clips = held_figures.asked(OPTIONS.clips)
    monkeypatch.setattr(held_figures, "hold_picture", lambda *_, **__: {})
    monkeypatch.setattr(held_figures, "hold_sound", lambda *_, **__: {})

    def make_clips(_parts, asks, _guidance, held_as):
        assert held_as == held
        asks = list(asks)
        assert [ask.caption for ask in asks] == [clip.scene.caption() for clip in clips]
        return [clip_of(ask.seed - OPTIONS.seed, clips[ask.seed - OPTIONS.seed]) for ask in asks]

    monkeypatch.setattr(held_figures, "make_clips", make_clips)
    return clips


def test_a_clip_counts_where_it_keeps_the_picture(monkeypatch):
    """Of a model that gives the true clip for every second seed, and a bare room for the others."""

    def clip_of(number, clip):
        room = world.room().expand_as(clip.frames)
        return (room if number % 2 else clip.frames), clip.sound

    given_back(monkeypatch, "decoded", clip_of)
    assert held_figures.count_pictures(None, OPTIONS, "last", "clean") == (2, 4)


def test_only_sounds_of_the_span_that_is_held_count(monkeypatch):
    clips = given_back(monkeypatch, "as given", lambda _, clip: (clip.frames, clip.sound))
    hits, sounds = held_figures.count_sounds(None, OPTIONS, start=0.5)
    events = [event / world.FRAME_RATE for clip in clips for event in clip.events]
    assert hits == sounds == sum(event >= 0.5 for event in events)
    assert 0 < sounds < len(events)
