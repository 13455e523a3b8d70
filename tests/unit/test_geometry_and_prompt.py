"""Sizes, lengths and prompts at their limits, and what is said beyond them."""

import re

import pytest
from comfy_server import REPOSITORY
from comfyui_ovi.nodes.latents import AREAS
from comfyui_ovi.ovi_model.latent import geometry
from comfyui_ovi.ovi_model.text import advice, prompt


@pytest.mark.parametrize(
    ("frames", "cells", "steps"), [(1, 1, 1), (5, 2, 5), (121, 31, 157), (241, 61, 314)]
)
def test_lengths(frames, cells, steps):
    assert geometry.latent_frames(frames) == cells
    assert geometry.audio_steps(cells) == steps
    assert abs(steps * 512 / 16000 - frames / 24) < 0.13


@pytest.mark.parametrize(
    ("cells", "fitting"),
    [(1, range(1, 4)), (2, range(4, 9)), (3, range(9, 14)), (31, range(156, 160))],
)
def test_a_sound_lasts_as_long_as_its_picture_give_or_take_a_step(cells, fitting):
    """By the model's count, or as many steps as the frames last."""
    for steps in fitting:
        geometry.check_equally_long("it", cells, steps)
    for steps in (fitting[0] - 1, fitting[-1] + 1):
        with pytest.raises(ValueError, match=f"^it has {steps} steps, but .* {cells} latent frame"):
            geometry.check_equally_long("it", cells, steps)


@pytest.mark.parametrize("cells", [2, 3, 7, 31, 61, 2049])
def test_what_cuts_both_streams_by_one_number_is_found(cells):
    """As TrimVideoLatent does, at either end."""
    steps = geometry.audio_steps(cells)
    for cut in range(1, min(cells, steps)):
        with pytest.raises(ValueError, match=r"the sound lasts .* s, the picture"):
            geometry.check_equally_long("it", cells - cut, steps - cut)


@pytest.mark.parametrize(("area", "megapixels"), [("960x960", 0.9), ("720x720", 0.5)])
def test_sizes_of_the_resolution_selector_are_near_the_area_that_was_trained(area, megapixels):
    """With what the help of Ovi Latent says to set, for every proportion it has."""
    core = pytest.importorskip("comfy_extras.nodes_resolution")
    help_page = (REPOSITORY / "web" / "docs" / "OviLatent.md").read_text(encoding="utf-8")
    assert f"{megapixels} for model" in help_page
    for ratio in core.ASPECT_RATIOS:
        width, height = core.ResolutionSelector.execute(ratio, megapixels, 32).args
        geometry.check_size(width, height, 121)
        assert width * height == pytest.approx(AREAS[area], rel=0.05)
        if ratio.startswith("16:9"):
            assert f"{width} x {height}" in help_page


def test_samples_of_a_video():
    assert geometry.video_samples(121) == 80667
    assert geometry.video_samples(24) == 16000


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((500, 512, 121), "width is 500 pixels; it must be a multiple of 32: 480 or 512"),
        ((512, 0, 121), "height is 0 pixels; it must be a multiple of 32: 32 or 64"),
        ((512, -7, 121), "height is -7 pixels; it must be a multiple of 32: 32 or 64"),
        ((512, 512, 120), r"length is 120 frames; it must be 4n \+ 1: 117 or 121"),
        ((512, 512, 0), r"length is 0 frames; it must be 4n \+ 1: 1 or 5"),
    ],
)
def test_sizes_the_model_does_not_have(size, message):
    with pytest.raises(ValueError, match=message):
        geometry.check_size(*size)


@pytest.mark.parametrize("size", [(32, 32, 1), (960, 960, 121), (1280, 704, 241)])
def test_sizes_the_model_has(size):
    geometry.check_size(*size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompt is empty"),
        (" \n ", "prompt is empty"),
        (
            "A man says <S>Hi there. Audio: wind",
            r"'<S>' at line 1, column 12 .*Hi there.* is not closed: add '<E>'",
        ),
        ("One.\nTwo <S>Hi</S>", r"'</S>' at line 2, column 10 .* is not a tag of Ovi: write '<E>'"),
        ("<S>One <S>two<E>", r"'<S>' at line 1, column 8 .* opens before the last '<S>' is closed"),
        ("One<E> two", r"'<E>' at line 1, column 4 .* closes nothing"),
        (
            "A cat. <AUDCAP>purr",
            r"'<AUDCAP>' at line 1, column 8 .* is not closed: add '<ENDAUDCAP>'",
        ),
        ("A cat. purr<ENDAUDCAP>", "'<ENDAUDCAP>' at line 1, column 12 .* closes nothing"),
        ("A cat. <AUDCAP>purr</AUDCAP>", "'</AUDCAP>' .* write '<ENDAUDCAP>'"),
    ],
)
def test_prompts_that_the_model_would_misread(text, message):
    with pytest.raises(ValueError, match=message):
        prompt.check_prompt(text)


@pytest.mark.parametrize(
    ("text", "tagged"),
    [
        ("A cat. Audio: purr", "A cat. <AUDCAP>purr<ENDAUDCAP>"),
        ("A cat. <AUDCAP>Audio: purr<ENDAUDCAP>", "A cat. <AUDCAP>Audio: purr<ENDAUDCAP>"),
        ("<AUDCAP>purr<ENDAUDCAP> Audio: rain", "<AUDCAP>purr<ENDAUDCAP> <AUDCAP>rain<ENDAUDCAP>"),
    ],
)
def test_what_is_tagged_already_is_not_tagged_again(text, tagged):
    assert prompt.sound_as_tags(text) == tagged
    assert prompt.sound_as_tags(tagged) == tagged


@pytest.mark.parametrize(
    "text",
    ["A cat.", "<S>Hi!<E> <S>Ho.<E> Audio: wind", "a < b <AUDCAP>x\ny<ENDAUDCAP>", "猫 (1.2)"],
)
def test_prompts_that_are_fine(text):
    prompt.check_prompt(text)


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("0-2 s: a cat sleeps; 2-5 s: it jumps. Audio: purring.", "0-2 s:", "2-5 s:"),
        ("A room.\n[0s-2.5s] A cat.\n[3s-5s] A dog.", r"\[0s-2.5s\]", r"\[3s-5s\]"),
        ("Shot 1 (0 to 2 seconds): a cat. Shot 2 (2 to 4 SECONDS): a dog.", r"\(0 to", r"\(2 to"),
        ("(0:00\u20130:02) a cat (0:02\u20130:05) a dog", r"\(0:00", r"\(0:02"),
        ("0-1 s: <S>Hi.<E> 1\u20145sec: <S>Ho.<E>", "0-1 s:", "1\u20145sec:"),
        ("A cat. Audio: 0-2 s: purring, 2-5 s: a bark.", "0-2 s:", "2-5 s:"),
    ],
)
def test_a_prompt_whose_parts_have_times_is_refused_with_what_to_do(text, first, second):
    message = f"'{first}.* at line .* and '{second}.* 'Ovi Continue' .*Ovi_06_Film_of_three_shots"
    for check in (prompt.check_prompt, lambda text: prompt.check_inputs(text, "as written")):
        with pytest.raises(ValueError, match=message):
            check(text)


@pytest.mark.parametrize(
    "text",
    [
        "He waits 2-3 seconds: nothing. Then 3-4 seconds: a bell.",
        "For 0-2 s: nothing moves. Then a cat jumps.",
        "A tiger in 4 to 5 s: it leaps; from 0-2 s: it waits.",
        "Open 9:00-17:00: busy. 17:00-20:00: empty. Audio: a crowd.",
        "A clock tower, 00:00-08:00: dark, 08:00-12:00: light.",
        "The score is 0-2 (2-5 at the break), the year 1990-1995: <S>0-2 s: go! 2-5 s: stop!<E>",
        'A sign reads "0-2 s: red, 2-5 s: green". Audio: wind.',
        "A ratio of 16:9 to 4:3, ages 0-2: toys, 2-5: blocks.",
        "First a cat sleeps, after 2 s it wakes, at 5 s it runs.",
        "(0-2) and (2-5) are on the doors.",
    ],
)
def test_prose_with_times_is_no_timeline(text):
    prompt.check_prompt(text)


SPOKEN = "A man says <S>Turn on the Audio: now<E> and leaves."


@pytest.mark.parametrize(
    ("text", "tagged", "named"),
    [
        (SPOKEN, SPOKEN, SPOKEN),
        (
            f"{SPOKEN} Audio: rain",
            f"{SPOKEN} <AUDCAP>rain<ENDAUDCAP>",
            f"{SPOKEN} Audio: rain",
        ),
        (
            "Audio: <S>Audio: one<E> two",
            "<AUDCAP><S>Audio: one<E> two<ENDAUDCAP>",
            "Audio: <S>Audio: one<E> two",
        ),
        (
            "<S>the <AUDCAP>tag<ENDAUDCAP><E> <AUDCAP>rain<ENDAUDCAP>",
            "<S>the <AUDCAP>tag<ENDAUDCAP><E> <AUDCAP>rain<ENDAUDCAP>",
            "<S>the <AUDCAP>tag<ENDAUDCAP><E> Audio: rain",
        ),
    ],
)
def test_speech_stays_as_it_is_spoken(text, tagged, named):
    assert prompt.write_sound(text, "<AUDCAP>") == tagged
    assert prompt.write_sound(text, "Audio:") == named
    assert prompt.write_sound(text, "as written") == text


@pytest.mark.parametrize(
    ("text", "sound_tag", "crossed"),
    [
        ("A <AUDCAP>b <S>c<ENDAUDCAP> d<E>", "<AUDCAP>", "'<ENDAUDCAP>' .* across '<S>'"),
        ("A <AUDCAP>b <S>c<ENDAUDCAP> d<E>", "as written", "'<ENDAUDCAP>' .* across '<S>'"),
        ("<S>b <AUDCAP>c<E> d<ENDAUDCAP>", "Audio:", "'<E>' .* across '<AUDCAP>'"),
        ("Audio: a <AUDCAP>b<ENDAUDCAP>", "<AUDCAP>", "'<AUDCAP>' .* across '<AUDCAP>'"),
    ],
)
def test_tags_that_cross_in_the_form_of_the_checkpoint_are_refused(text, sound_tag, crossed):
    with pytest.raises(ValueError, match=f"As the model gets this prompt, {crossed}.*in one form"):
        prompt.write_sound(text, sound_tag)


def test_tags_that_no_longer_cross_are_fine():
    written = prompt.write_sound("A <AUDCAP>b <S>c<ENDAUDCAP> d<E>", "Audio:")
    assert written == "A Audio: b <S>c d<E>"


def test_an_unknown_form_of_sound():
    with pytest.raises(ValueError, match="sound_tag is 'Sound:'; choose one of 'Audio:'"):
        prompt.check_inputs(None, "Sound:")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A man says <s>Hi<e> Audio: rain", "'<s>' at line 1, column 12 .*: write '<S>'"),
        ("One.\nA <S>b<E> <audcap>rain<endaudcap> Audio: x", "'<audcap>' at line 2, column 11"),
        ("A < S >b< E > Audio: rain", "'< S >' .*: write '<S>'"),
        ("A <S>b<E> </s> Audio: rain", "'</s>' .*: write '<E>'"),
        ("A cat. audio: purr", "'audio:' at line 1, column 8 .*: write 'Audio:'"),
        ("A cat. AUDIO : purr", "'AUDIO :' .*: write 'Audio:'"),
        ("A cat. Audio\uff1apurr", "'Audio\uff1a' .*: write 'Audio:'"),
        ("A cat.", "says nothing of the sound: end it with 'Audio: ...'"),
        ("He says <S>Audio: now<E>.", "says nothing of the sound"),
        ('A man: "Hello there!" Audio: rain', 'If "Hello there!" .* write <S>Hello there!<E>'),
        ("She says \u201cHello\u201d. Audio: rain", "write <S>Hello<E>"),
        ("Sie sagt \u201eHallo\u201c. Audio: rain", "write <S>Hallo<E>"),
        ("\u00abBonjour\u00bb, dit-elle. Audio: rain", "write <S>Bonjour<E>"),
        ("\u5973\u4eba\u8aaa\u300c\u4f60\u597d\u300d Audio: rain", "write <S>\u4f60\u597d<E>"),
        ("A man says 'I don't know.' Audio: rain", "write <S>I don't know\\.<E>"),
        ('<S>One<E> and she replies, "Two" Audio: rain', "write <S>Two<E>"),
    ],
)
def test_what_may_be_read_in_another_way_is_said_with_the_fix(text, said):
    (sentence,) = advice.advise(text)
    assert re.search(said, sentence)


@pytest.mark.parametrize(
    "text",
    [
        "A man says <S>Hi<E> Audio: rain",
        "The dogs' bowls and the cats' beds. <AUDCAP>purr<ENDAUDCAP>",
        'A sign reads "OPEN". A man says <S>Hi<E> Audio: a voice says "hi"',
        "A man's hat. He doesn't say <S>I said \"no\"<E>. Audio: audio: rain",
    ],
)
def test_nothing_is_said_of_prompts_that_are_clear(text):
    assert advice.advise(text) == []
