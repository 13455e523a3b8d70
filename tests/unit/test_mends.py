"""Answers of language models, in good form and in bad, as prompts that Ovi reads."""

import pytest
from comfyui_ovi.nodes.text import OviMendPrompt
from comfyui_ovi.ovi_model.text.advice import advise
from comfyui_ovi.ovi_model.text.mends import MOST_WORDS, mend_answer
from comfyui_ovi.ovi_model.text.prompt import check_prompt

GOOD = "A man on a pier says, <S>Hello there.<E> Close-up.\n\nAudio: a deep voice, waves."
# Answers, and the prompts that they mean.
ANSWERS = {
    GOOD: GOOD,
    f"<think>The user wants a man.</think>\n\n{GOOD}": GOOD,
    f"He could say <S>hi.</think>{GOOD}": GOOD,
    f"```text\n{GOOD}\n```": GOOD,
    f"Here is your prompt:\n\n{GOOD}": GOOD,
    f"Prompt: {GOOD}": GOOD,
    GOOD.replace("Audio:", "**Audio:**"): GOOD,
    GOOD.replace("<S>", "<s>").replace("<E>", "</s>"): GOOD,
    GOOD.replace("<S>", '"').replace("<E>", '"'): GOOD,
    GOOD.replace("Audio:", "audio :"): GOOD,
    GOOD.replace("Audio: ", "### Audio\n"): GOOD.replace("Audio: ", "Audio:\n"),
    GOOD.replace("<S>", '"<S>').replace("<E>", '<E>"'): GOOD.replace("<S>", '"<S>').replace(
        "<E>", '<E>"'
    ),
    GOOD.replace(" <S>", ":\n<S>").replace("says,", "says"): GOOD.replace(" <S>", ":\n<S>").replace(
        "says,", "says"
    ),
    GOOD.replace("<E> Close-up.", ""): "A man on a pier says, <S>Hello there.<E>\n\nAudio: a deep "
    "voice, waves.",
    GOOD.replace("<S>Hello there.", "Hello there."): GOOD.replace("<S>", "").replace("<E>", ""),
    "A cat sleeps.": "A cat sleeps.\n\nAudio: quiet room tone.",
    "Rain. <AUDCAP>drops on tin": "Rain. <AUDCAP>drops on tin<ENDAUDCAP>",
    "<img1>: a woman identified as <sub1>. <sub1> says <s>hi</s>": "<img1>: a woman identified as "
    "<sub1>. <sub1> says <S>hi<E>",
    "```\n<img1>: he, identified as <sub1>.\n**Scene**: a quay\n```": "<img1>: he, identified as "
    "<sub1>.\n**Scene**: a quay",
    'A sign that reads "OPEN". Audio: rain': 'A sign that reads "OPEN". Audio: rain',
    "A dog.\n\n### Sound\nTwo barks.": "A dog.\n\nAudio:\nTwo barks.",
    "A dog.\nSound: two barks.": "A dog.\nAudio: two barks.",
    f"{GOOD}\n\n---\nLet me know if you want another!": GOOD,
    '"A dog barks at a gate. Audio: two barks."': "A dog barks at a gate. Audio: two barks.",
}


@pytest.mark.parametrize(("answer", "prompt"), ANSWERS.items())
def test_an_answer_is_mended_to_the_prompt_it_means(answer, prompt):
    (mended,) = OviMendPrompt.execute(answer).args
    assert mended == prompt
    check_prompt(mended)
    assert not advise(mended)
    assert mend_answer(mended) == mended


def test_speech_that_quotes_hold_is_not_lost():
    mended = mend_answer('He says, "Oh <S>hello<E>", and "bye." Audio: waves.')
    assert mended == 'He says, "Oh <S>hello<E>", and <S>bye.<E> Audio: waves.'


def test_what_is_said_on_the_first_line_is_no_preface():
    assert mend_answer('A man says:\n"Hi."\nAudio: a voice.') == (
        "A man says:\n<S>Hi.<E>\nAudio: a voice."
    )
    assert mend_answer('The prompt you asked for:\n"A dog. Audio: a bark."') == (
        "A dog. Audio: a bark."
    )
    between = "'Come in,' says a man, 'and sit down.' Audio: a voice."
    assert mend_answer(between).count("<S>") == 2


def test_a_sound_that_begins_the_prompt_is_not_cut():
    prompt = "Audio: " + "rain falls. " * 200
    assert mend_answer(prompt) == prompt.strip()


def test_of_a_long_answer_the_picture_is_cut_and_the_speech_and_sound_stay():
    long = "A man says <S>Hello.<E> " + "The sea is grey. " * 120 + "Audio: waves."
    mended = mend_answer(long)
    assert MOST_WORDS - 4 <= len(mended.split()) <= MOST_WORDS
    assert mended.startswith("A man says <S>Hello.<E> The sea")
    assert mended.endswith("\n\nAudio: waves.")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a " * 10_001, "has 20002 letters"),
        ("", "holds no prompt: ''"),
        ("</s>", "The prompt is empty"),
        ("<think>Let me see, a man", "a model that thinks may have used it up"),
        ("0-2 s: a cat sleeps; 2-5 s: it jumps.", "no times in it"),
        ("<S>one <AUDCAP>two<E> three<ENDAUDCAP>", "stands across"),
    ],
)
def test_what_cannot_be_mended_is_told(answer, message):
    with pytest.raises(ValueError, match=message):
        mend_answer(answer)
