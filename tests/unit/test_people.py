"""The form in which a prompt names the people of references."""

import pytest
from comfyui_ovi.ovi_model.text.advice import advise

ONE = (
    "<img1>: A woman with grey hair, identified as <sub1>.\n"
    "**Overall Environment/Scene**: A kitchen.\n"
    "**Main Characters/Subjects Actions**: <sub1> says, <S>Good morning.<E>"
)
TWO = f"<img2>: A boy, identified as <sub2>.\n{ONE} <sub2> answers, <S>Hello.<E>"


@pytest.mark.parametrize("prompt", [ONE, TWO])
def test_the_model_s_form_needs_no_advice(prompt):
    assert advise(prompt) == []


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (ONE.replace("<img1>: ", ""), "Person 1 is not named"),
        (ONE.replace("identified as <sub1>", "in red"), "Person 1 is not named"),
        (TWO.replace("as <sub2>", "as <sub1>"), "Person 2 is not named"),
        (f"{ONE} <sub3> laughs.", "Person 3 is not known"),
        (f"{ONE} Audio: rain", "'Audio:' is not part of this form"),
        (f"{ONE} <AUDCAP>rain<ENDAUDCAP>", "'<AUDCAP>' is not part of this form"),
    ],
)
def test_what_is_not_its_form_is_said(prompt, said):
    (sentence,) = advise(prompt)
    assert said in sentence


def test_a_prompt_without_people_is_asked_for_its_sound():
    (sentence,) = advise("A cat on a roof.")
    assert "nothing of the sound" in sentence
