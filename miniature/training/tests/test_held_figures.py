"""How well pictures and recordings are kept: intervals, and what a count is made of."""

import pytest
from comfyui_ovi.miniature.training import figures, generate, held_figures, world


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(48, 48, 0.926, 1.0), (16, 48, 0.217, 0.475), (0, 10, 0.0, 0.278), (0, 0, 0.0, 1.0)],
)
def test_intervals_are_wilsons(hits, trials, low, high):
    assert figures.wilson(hits, trials) == pytest.approx((low, high), abs=1e-3)


def test_a_clip_counts_where_it_keeps_the_picture(monkeypatch):
    """Of a model that gives the true clip for every second seed, and a bare room for the others."""
    made = {seed: clip for seed, _, clip in held_figures.asked(4)}
    monkeypatch.setattr(held_figures, "hold_picture", lambda *_: {})

    def make_clip(_parts, _caption, seed, _guidance, _latent, held):
        assert held == "decoded"
        clip = made[seed]
        room = world.room().expand_as(clip.frames)
        return (room if seed % 2 else clip.frames), clip.sound

    monkeypatch.setattr(generate, "make_clip", make_clip)
    assert held_figures.count_pictures(None, 4, "last", "clean") == (2, 4)


def test_only_sounds_of_the_span_that_is_held_count(monkeypatch):
    made = {seed: clip for seed, _, clip in held_figures.asked(3)}
    monkeypatch.setattr(held_figures, "hold_sound", lambda *_: {})
    monkeypatch.setattr(
        generate, "make_clip", lambda _p, _c, seed, *_: (made[seed].frames, made[seed].sound)
    )
    hits, sounds = held_figures.count_sounds(None, 3, start=0.5)
    events = [event / world.FRAME_RATE for clip in made.values() for event in clip.events]
    assert hits == sounds == sum(event >= 0.5 for event in events)
    assert 0 < sounds < len(events)
