"""The form in which a prompt names the people of references, and what of it may be missing.

`<img1>: ... identified as <sub1>.` says whose picture it is; `<sub1>` stands for them after that.
There is no sound tag. Source: Guoxu1233/DreamID-Omni, its prompts.
"""

from __future__ import annotations

import re

MOST = 2  # people

_PERSON = re.compile(r"<(img|sub)(\d+)>")
_NAMED = re.compile(r"<img(\d+)>\s*:[^<]*identified as\s*<sub(\d+)>", re.DOTALL)
# What the reference takes out of a prompt.
_TAKEN_OUT = re.compile(r"<[A-Z]*(?:AUDCAP|AUDIO_DESCRIPTION|SPEAKER_TIMESTAMPS)[A-Z_]*>|Audio:")


def names_people(prompt: str) -> bool:
    """Whether a prompt is written for references."""
    return _PERSON.search(prompt) is not None


def advise_on_people(prompt: str) -> list[str]:
    """Return a sentence for each person not named as the model learnt it, and for a sound."""
    named = {(image, person) for image, person in _NAMED.findall(prompt)}
    found = _PERSON.findall(prompt)
    people = sorted({number for _, number in found}, key=int)
    advice = [
        f"Person {number} is not named: write '<img{number}>: ... identified as <sub{number}>.', "
        f"and <sub{number}> wherever that person does or says something."
        for number in people
        if (number, number) not in named and 0 < int(number) <= MOST
    ]
    strange = [number for number in people if not 0 < int(number) <= MOST]
    if strange:
        advice.append(
            f"Person {strange[0]} is not known: references are <img1>, <sub1> and <img2>, <sub2>."
        )
    sound = _TAKEN_OUT.search(prompt)
    if sound:
        advice.append(
            f"'{sound[0]}' is not part of this form, which says nothing of the sound: remove it, "
            "or describe the sound in a sentence."
        )
    return advice
