"""What a prompt may say by mistake and no check can refuse, each with its fix."""

from __future__ import annotations

import re

from .people import advise_on_people, names_people
from .prompt import CLOSING_MISTAKES, SPEECH, TAGS, place_of

_LETTERS_BEFORE = 60  # quoted words, in which a word like "says" is looked for

LIKE_A_TAG = re.compile(r"<\s*/?\s*(?:S|E|AUDCAP|ENDAUDCAP)\s*>", re.IGNORECASE)
LIKE_A_NAME = re.compile(r"(?<!\w)audio\s*[:\uff1a]", re.IGNORECASE)
_SOUND = re.compile(r"Audio:|<AUDCAP>")
QUOTED = re.compile(
    r'"[^"]+"|\u201c[^\u201d]+\u201d|\u201e[^\u201c\u201d]+[\u201c\u201d]|\u00ab[^\u00bb]+\u00bb'
    r"|\u300c[^\u300d]+\u300d|\u300e[^\u300f]+\u300f|(?<!\w)['\u2018](?=\w).{1,300}?['\u2019](?!\w)"
)
SPOKEN = re.compile(
    r"\b(?:says?|said|saying|asks?|asked|asking|answers?|answered|repl(?:y|ies|ied)|tells?|told|"
    r"whispers?|whispered|whispering|shouts?|shouted|shouting|yells?|yelled|cries|cried|sings?|"
    r"sang|singing|speaks?|spoke|speaking|calls?|called|exclaims?|mutters?|murmurs?)\b[^.<>]{0,40}$"
)

# Quoted words that are seen: on a sign, or as a name.
_WRITTEN = re.compile(
    r"\b(?:reads?|reading|signs?|posters?|screens?|titled?|label(?:s|l?ed)?|written|writing|named|"
    r"words?|letters?|logo|caption)\b[^.<>]{0,20}$"
)


def without_speech(prompt: str) -> str:
    """Blank what is spoken; all else stays at its place."""
    return SPEECH.sub(lambda match: " " * len(match[0]), prompt)


def find_sound(prompt: str) -> int | None:
    """Return where the sound of a prompt begins; None if it has none. Speech may hold its name."""
    match = _SOUND.search(without_speech(prompt))
    return match.start() if match else None


def advise(prompt: str) -> list[str]:
    """Return a sentence for each place that Ovi may read as something else than was meant."""
    about_rest = advise_on_people if names_people(prompt) else _about_sound
    return [*_about_tags(prompt), *about_rest(prompt), *_about_speech(prompt)]


def _about_tags(prompt: str) -> list[str]:
    for match in LIKE_A_TAG.finditer(prompt):
        if match[0] not in TAGS:
            meant = re.sub(r"\s", "", match[0]).upper()
            meant = CLOSING_MISTAKES.get(meant, meant)
            place = place_of(prompt, match.start())
            return [f"'{match[0]}' {place} is no tag, and is read as letters: write '{meant}'."]
    return []


def _about_sound(prompt: str) -> list[str]:
    if find_sound(prompt) is not None:
        return []
    match = LIKE_A_NAME.search(without_speech(prompt))
    if match:
        place = place_of(prompt, match.start())
        return [f"'{match[0]}' {place} does not begin the sound: write 'Audio:'."]
    return ["It says nothing of the sound: end it with 'Audio: ...'."]


def find_untagged_speech(prompt: str) -> re.Match | None:
    """Return the first quoted words that may be spoken: where nothing is tagged as speech any but
    those on a sign, else those after a word like 'says'. None if they hold tagged speech.
    """
    picture = without_speech(prompt)[: find_sound(prompt)]
    has_speech = SPEECH.search(prompt)
    for match in QUOTED.finditer(picture):
        before = picture[max(0, match.start() - _LETTERS_BEFORE) : match.start()]
        is_tagged = SPEECH.search(prompt, *match.span())
        if has_speech:
            is_spoken = SPOKEN.search(before) and not is_tagged
        else:
            is_spoken = not _WRITTEN.search(before)
        if is_spoken:
            return match
    return None


def _about_speech(prompt: str) -> list[str]:
    match = find_untagged_speech(prompt)
    if match is None:
        return []
    place = place_of(prompt, match.start())
    return [f"If {match[0]} {place} is spoken, write <S>{match[0][1:-1]}<E>."]
