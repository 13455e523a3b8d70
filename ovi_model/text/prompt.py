"""Speech and sound tags of a prompt: checked where they stand, and put in the form a checkpoint was
trained on. Times of its parts, which no checkpoint reads, are refused.

Speech is `<S>...<E>`. Sound is `<AUDCAP>...<ENDAUDCAP>` for the 720x720 checkpoint, `Audio: ...`
for the others.
Source: character-ai/Ovi, ovi/utils/utils.py.
"""

from __future__ import annotations

import re

from ..core_facts import choose

PAIRS = (("<S>", "<E>"), ("<AUDCAP>", "<ENDAUDCAP>"))
CLOSING_MISTAKES = {
    "</S>": "<E>",
    "</E>": "<E>",
    "</AUDCAP>": "<ENDAUDCAP>",
    "</ENDAUDCAP>": "<ENDAUDCAP>",
}

TAGS = {tag for pair in PAIRS for tag in pair}

# Spans of a clip that begin a part of a prompt: "0-2 s: ...", "[2s to 5s] ...", "(0:05-0:08) ...".
_TIME = r"(\d{1,2}:\d\d|\d{1,3}(?:\.\d+)?)"
_UNIT = r"\s*(?:s|secs?|seconds?)"
_SPAN = re.compile(
    rf"[\[(]?\b{_TIME}(?:{_UNIT})?\s*(?:-|\u2013|\u2014|\bto\b)\s*{_TIME}({_UNIT}\b)?\s*"
    r"(?:[\])]\s*:?|:)",
    re.IGNORECASE,
)
LONGEST = 60.0  # seconds; later times are those of a clock
# What is spoken, or written on something that is seen.
_WORDS = re.compile(r'<S>.*?<E>|"[^"]*"|\u201c[^\u201d]*\u201d', re.DOTALL)
SPEECH = re.compile(r"<S>.*?<E>", re.DOTALL)

# Speech is passed over, and what is tagged already, even if they hold the word or tag itself.
_TAGGED_SOUND = re.compile(r"<S>.*?<E>|<AUDCAP>(.*?)<ENDAUDCAP>", re.DOTALL)
_NAMED_SOUND = re.compile(r"<S>.*?<E>|<AUDCAP>.*?<ENDAUDCAP>|Audio:\s*(.*)", re.DOTALL)


def sound_as_audio(prompt: str) -> str:
    """Write the sound as `Audio: ...`, as the 960x960 checkpoints read it."""
    return _TAGGED_SOUND.sub(
        lambda match: match[0] if match[1] is None else f"Audio: {match[1]}", prompt
    )


def sound_as_tags(prompt: str) -> str:
    """Write the sound as `<AUDCAP>...<ENDAUDCAP>`, as the 720x720 checkpoint reads it: all that
    follows `Audio:`.
    """
    return _NAMED_SOUND.sub(
        lambda match: match[0] if match[1] is None else f"<AUDCAP>{match[1]}<ENDAUDCAP>", prompt
    )


SOUND_FORMS = {"Audio:": sound_as_audio, "<AUDCAP>": sound_as_tags, "as written": str}


def write_sound(prompt: str, sound_tag: str) -> str:
    """Put a prompt in the form that a checkpoint reads.

    Raises ValueError for a fault of the prompt, or if its tags cross in that form.
    """
    check_prompt(prompt)
    written = choose("sound_tag", sound_tag, SOUND_FORMS)(prompt)
    _check_crossing(written)
    return written


def check_inputs(prompt: str | None, sound_tag: str | None) -> None:
    """Check what is typed, before anything runs; None is made by another node."""
    if sound_tag is not None:
        choose("sound_tag", sound_tag, SOUND_FORMS)
    if None not in (prompt, sound_tag):
        write_sound(prompt, sound_tag)
    elif prompt is not None:
        check_prompt(prompt)


def check_prompt(prompt: str) -> None:
    """Raise ValueError naming the first tag that is not closed, not opened or misspelt, and its
    place; or where a prompt gives its parts times.
    """
    if not prompt.strip():
        raise ValueError(
            "The prompt is empty. Describe the picture, put speech in <S>...<E> and end with the "
            "sound."
        )
    for wrong, right in CLOSING_MISTAKES.items():
        if wrong in prompt:
            raise ValueError(
                f"'{wrong}' {place_of(prompt, prompt.index(wrong))} is not a tag of Ovi: write "
                f"'{right}'."
            )
    for opening, closing in PAIRS:
        _check_pair(prompt, opening, closing)
    _check_times(prompt)


def _check_times(prompt: str) -> None:
    """Raise ValueError for a prompt whose parts are each for a span of the clip.

    Two spans at least, one after the other from 0 on: no prose has that by chance.
    """
    blanked = _WORDS.sub(lambda match: " " * len(match[0]), prompt)
    found, reached = [], 0.0
    for match in _SPAN.finditer(blanked):
        start, end = _seconds(match[1]), _seconds(match[2])
        is_next = start >= reached and start < end <= LONGEST and (found or start == 0)
        if is_next and (match[3] or ":" in match[2]):
            found.append(match)
            reached = end
    if len(found) > 1:
        first, second = (match[0].strip() for match in found[:2])
        raise ValueError(
            f"'{first}' {place_of(prompt, found[0].start())} and '{second}' give parts of the "
            "prompt times, but Ovi reads one prompt for the whole clip and no times in it. Make "
            "each part a clip with a prompt of its own: 'Ovi Continue' goes on from the one "
            "before (workflow Ovi_06_Film_of_three_shots). Or say in words what comes first and "
            "what then."
        )


def _seconds(time: str) -> float:
    """Read '2.5', or minutes and seconds, '0:02'."""
    minutes, _, seconds = time.rpartition(":")
    return 60 * int(minutes or 0) + float(seconds)


def _check_pair(prompt: str, opening: str, closing: str) -> None:
    opened = None
    for match in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", prompt):
        place = place_of(prompt, match.start())
        if match[0] == opening and opened is not None:
            raise ValueError(
                f"'{opening}' {place} opens before the last '{opening}' is closed: add '{closing}'."
            )
        if match[0] == closing and opened is None:
            raise ValueError(
                f"'{closing}' {place} closes nothing: add '{opening}' before it, or remove it."
            )
        opened = match.start() if match[0] == opening else None
    if opened is not None:
        raise ValueError(
            f"'{opening}' {place_of(prompt, opened)} is not closed: add '{closing}' where it ends."
        )


def _check_crossing(written: str) -> None:
    """Raise ValueError unless each tag closes the last one opened, and no sound holds a sound."""
    opened: list[str] = []
    closed_by = dict(PAIRS)
    for match in re.finditer("|".join(TAGS), written):
        tag = match[0]
        if opened and closed_by[opened[-1]] == tag:
            opened.pop()
        elif tag in closed_by and tag not in opened:
            opened.append(tag)
        else:
            raise ValueError(
                f"As the model gets this prompt, '{tag}' {place_of(written, match.start())} stands "
                f"across '{opened[-1]}': close speech before the sound begins or ends, and name "
                "the sound in one form, 'Audio: ...' or <AUDCAP>...<ENDAUDCAP>."
            )


def place_of(prompt: str, index: int) -> str:
    """Say where a tag stands, for people: line, column and the words after it."""
    line = prompt.count("\n", 0, index) + 1
    column = index - (prompt.rfind("\n", 0, index) + 1) + 1
    excerpt = prompt[index : index + 24].splitlines()[0]
    return f"at line {line}, column {column} (\u2026{excerpt}\u2026)"
