"""Clips joined by time: where every sample goes, the fade, the level and the alignment, and frames
that lie on the disk.
"""

import math

import folder_paths
import pytest
import torch
from comfyui_ovi.nodes import OviJoin
from comfyui_ovi.ovi_model.latent.overlap import HELD_FRAMES, length_of, sample_at
from comfyui_ovi.ovi_model.save import frames_on_disk, join
from comfyui_ovi.ovi_model.save.sound import Sound

RATE = 16000
FRAMES = (40, 37)  # of a film and of a new clip
START = 18000  # the sample at which frame 40 - 13 begins
STOP, FADE = 8667, 640  # samples after that, where film and fade end, and the fade's length
TOTAL = 42667  # 64 frames


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where ComfyUI keeps what goes when it ends."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


def noise(seconds, seed, channels=1, rate=RATE):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, round(seconds * rate), generator=generator)


def tone(seconds, rate=RATE, hertz=440, start=0.0):
    time = start + torch.arange(round(seconds * rate)) / rate
    return 0.3 * (2 * math.pi * hertz * time).sin()[None]


def joined(film, new, rate=RATE):
    return join.join_sound(Sound(film, rate), Sound(new, rate), FRAMES).waveform


def in_common(late=0, factor=1.0):
    """A sound of 64 frames, of which the film has the first 40, and the new clip the last 37; the
    new one so many samples late, and louder by a factor.
    """
    whole = noise(64 / 24, seed=1)
    new = torch.nn.functional.pad(whole, (max(0, late), max(0, -late)))[:, START + max(0, -late) :]
    return whole, whole[:, : sample_at(40, RATE)], factor * new


def test_a_sample_is_the_nearest_to_its_frame():
    assert [sample_at(frame, RATE) for frame in range(9999)] == [
        round(frame * 16000 / 24) for frame in range(9999)
    ]
    assert [sample_at(frame, 44100) for frame in (1, 2, 3)] == [1838, 3675, 5513]  # later of two


def test_seconds_make_lengths_that_the_model_has():
    assert [length_of(seconds) for seconds in (4.5, 9.5, 1.0, 1 / 6, 0.2, 5.0)] == [
        121,
        241,
        37,
        17,
        17,
        133,
    ]
    with pytest.raises(ValueError, match=r"seconds is 0.05; .* at least 4 frames"):
        length_of(0.05)


def test_the_film_stays_up_to_the_fade_and_the_new_sound_follows_it():
    film, new = noise(40 / 24, seed=1), noise(37 / 24, seed=2)
    film = film * 0.1 / film[:, START : START + STOP].square().mean().sqrt()
    new = new * 0.1 / new[:, :STOP].square().mean().sqrt()
    sound = joined(film, new)
    begin, end = START + STOP - FADE, START + STOP
    assert sound.shape == (1, TOTAL)
    assert sound[:, :begin].equal(film[:, :begin])
    torch.testing.assert_close(sound[:, end:], new[:, STOP : TOTAL - START])
    share = torch.arange(1, FADE + 1) / (FADE + 1)
    expected = (1 - share) * film[:, begin:end] + share * new[:, STOP - FADE : STOP]
    torch.testing.assert_close(sound[:, begin:end], expected)


@pytest.mark.parametrize(
    ("factor", "left"), [(0.6, 1.0), (1.7, 1.0), (0.25, 0.5), (4.0, 2.0)], ids=str
)
def test_the_new_sound_is_as_loud_as_the_film_within_6_db(factor, left):
    whole, film, new = in_common(factor=factor)
    torch.testing.assert_close(
        joined(film, new)[:, START + STOP :],
        whole[:, START + STOP :] * left,
        rtol=0.01,
        atol=1e-4,
    )


def test_it_is_not_turned_up_past_full_scale():
    _, film, new = in_common(factor=0.6)
    new[:, -1] = 0.9
    assert joined(film, new)[0, -1] == pytest.approx(1.0)


@pytest.mark.parametrize("silent", ["film", "new"])
def test_silence_says_nothing_of_how_loud_a_sound_is(silent):
    whole, film, new = in_common()
    film, new = film.clone(), new.clone()
    (film[:, START:] if silent == "film" else new[:, :STOP]).mul_(1e-3)
    torch.testing.assert_close(joined(film, new)[:, START + STOP :], whole[:, START + STOP :])


@pytest.mark.parametrize("late", [-128, -3, 0, 57, 128])
def test_the_new_sound_is_moved_by_up_to_8_ms(late):
    whole, film, new = in_common(late)
    kept = TOTAL - 128
    torch.testing.assert_close(joined(film, new)[:, :kept], whole[:, :kept], rtol=0.03, atol=1e-3)


def test_what_is_later_than_8_ms_stays():
    whole, film, new = in_common(late=200)
    torch.testing.assert_close(
        joined(film, new)[:, START + STOP + 200 :],
        whole[:, START + STOP : -200],
        rtol=0.02,
        atol=1e-3,
    )


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 16000), (16000, 48000), (8000, 16000)])
def test_sounds_of_two_rates_and_of_mono_and_stereo_go_on_as_one(rate, new_rate):
    film = tone(40 / 24, rate).expand(2, -1)
    new = tone(37 / 24, new_rate, start=27 / 24)
    sound = join.join_sound(Sound(film, rate), Sound(new, new_rate), FRAMES)
    assert sound.rate == rate
    assert sound.waveform.shape == (2, sample_at(64, rate))
    within = slice(0, -rate // 100)  # the resampler's end
    torch.testing.assert_close(
        sound.waveform[:, within],
        tone(64 / 24, rate)[:, : sample_at(64, rate)].expand(2, -1)[:, within],
        rtol=0,
        atol=0.01,
    )


def test_a_sound_that_ends_before_its_picture_leaves_no_gap():
    whole = tone(64 / 24)
    film = whole[:, : sample_at(40, RATE)].clone()
    film[:, -round(0.056 * RATE) :] = 0
    torch.testing.assert_close(joined(film, whole[:, START:]), whole[:, :TOTAL], rtol=0, atol=1e-3)


# The node.


def clip(frames, seed=0, height=6, width=8, rate=RATE, channels=1):
    torch.manual_seed(seed)
    waveform = noise(frames / 24, seed, channels, rate)
    waveform = torch.nn.functional.pad(waveform, (0, 1))[:, : sample_at(frames, rate)]
    return torch.rand(frames, height, width, 3), {"waveform": waveform[None], "sample_rate": rate}


def run(film, new, frames="on disk"):
    return OviJoin.execute(
        images=film[0], audio=film[1], new_images=new[0], new_audio=new[1], frames=frames
    ).result


@pytest.mark.parametrize("frames", ["on disk", "in memory"])
def test_a_chain_of_ten_joins_has_every_frame_once_and_the_samples_that_they_last(frames):
    film = clip(31)
    expected = [film[0]]
    for shot in range(10):
        new = clip(17 + 4 * (shot % 3), seed=shot)
        expected.append(new[0][HELD_FRAMES:])
        film = run(film, new, frames)
        assert film[1]["waveform"].shape == (1, 1, round(len(film[0]) * 16000 / 24))
    assert film[0].equal(torch.cat(expected))
    assert len(film[0]) == 31 + 4 * 4 + 3 * 8 + 3 * 12


@pytest.mark.parametrize("frames", ["on disk", "in memory"])
def test_gray_and_transparent_films_become_rgb(frames):
    film, new = clip(20), clip(17)
    gray = film[0][..., :1], film[1]
    made, _ = run(gray, new, frames)
    assert made.equal(torch.cat([film[0][..., :1].expand(-1, -1, -1, 3), new[0][HELD_FRAMES:]]))


def test_frames_on_the_disk_are_kept_once(tmp_path):
    film, *own = (torch.rand(count, 4, 6, 3) for count in (5, 3, 2, 4))
    longer = frames_on_disk.join_on_disk(film, own[0], tmp_path)
    (file,) = tmp_path.iterdir()
    longest = frames_on_disk.join_on_disk(longer, own[1], tmp_path)
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_size == 4 * longest.numel()
    other = frames_on_disk.join_on_disk(longer, own[2], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    for shown, parts in ((longer, own[:1]), (longest, own[:2]), (other, [own[0], own[2]])):
        assert shown.equal(torch.cat([film, *parts]))


def test_what_is_drawn_on_frames_from_the_disk_does_not_reach_the_file(tmp_path):
    film = frames_on_disk.join_on_disk(torch.zeros(2, 4, 6, 3), torch.zeros(1, 4, 6, 3), tmp_path)
    film.add_(1)
    (file,) = tmp_path.iterdir()
    assert not any(file.read_bytes())


def test_a_file_goes_with_the_last_film_that_shows_it(tmp_path):
    film = frames_on_disk.join_on_disk(torch.zeros(2, 4, 6, 3), torch.zeros(1, 4, 6, 3), tmp_path)
    longer = frames_on_disk.join_on_disk(film, torch.zeros(1, 4, 6, 3), tmp_path)
    del film
    assert len(list(tmp_path.iterdir())) == 1
    del longer
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named(tmp_path):
    film = frames_on_disk.join_on_disk(torch.zeros(2, 4, 6, 3), torch.zeros(1, 4, 6, 3), tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()  # what cannot be written
    with pytest.raises(OSError, match=r"frames, 0.0 GiB, could not be written: .*'in memory'"):
        frames_on_disk.join_on_disk(film, torch.zeros(1, 4, 6, 3), tmp_path)
    file.rmdir()


def longer_by(film, seconds):
    images, sound = film
    waveform = torch.nn.functional.pad(sound["waveform"], (0, round(seconds * RATE)))
    return images, sound | {"waveform": waveform}


FAULTS = {
    "images is 12 frames: a clip goes on from the last 13": (clip(12), clip(17)),
    "new_images has 13 frames, and the first 13 are the film's": (clip(20), clip(13)),
    "images are 8 x 6 pixels and new_images 16 x 6": (clip(20), clip(17, width=16)),
    r"audio lasts 1.03 s, but the 20 frames of images last 0.83 s at 24 a second": (
        longer_by(clip(20), 0.2),
        clip(17),
    ),
    "audio is empty: the video that was loaded may have no sound": ((clip(20)[0], None), clip(17)),
    "new_audio holds 2 sounds: give one": (
        clip(20),
        (clip(17)[0], {"waveform": torch.zeros(2, 1, 11333), "sample_rate": RATE}),
    ),
    "new_images holds NaN": (clip(20), (clip(17)[0] / 0 * 0, clip(17)[1])),
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_cannot_be_joined_is_named(message):
    with pytest.raises(ValueError, match=message):
        run(*FAULTS[message])


def test_a_clip_of_another_film_is_told_in_the_log(caplog):
    film, other = clip(20), clip(17)
    film[0].mul_(0)
    run(film, other)
    assert "does not begin with the film's last 13 frames" in caplog.text
    caplog.clear()
    other[0][:HELD_FRAMES] = 0.05
    run(film, other)
    assert caplog.text == ""
