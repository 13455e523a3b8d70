"""A prompt that a language model wrote, put in the form that Ovi reads.

The page mends typed prompts by the same rules, one by one: `web/js/prompt_mends.js`.
"""

from __future__ import annotations

import re

from .advice import (
    LIKE_A_NAME,
    LIKE_A_TAG,
    QUOTED,
    SPOKEN,
    find_sound,
    find_untagged_speech,
    without_speech,
)
from .people import names_people
from .prompt import CLOSING_MISTAKES, PAIRS, write_sound

QUIET = "Audio: quiet room tone."
MOST_WORDS = 350  # English takes the 512 tokens that are read with about so many

# What models put around an answer: their reasoning, closed or not, and marks of Markdown.
_REASONING = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*</think>", re.DOTALL)
_MARKS = re.compile(r"^[ \t]*(?:```\w*|#+\s)|\*\*|__", re.MULTILINE)
_MARKS_OF_BLOCKS = re.compile(r"^[ \t]*```\w*", re.MULTILINE)
_PREFACE = re.compile(r"\A(?:prompt[ \t]*:|(?!audio\b)[^\n<>]{1,80}:[ \t]*\n)", re.IGNORECASE)
_BEGINS_SPEECH = re.compile(r'\s*["\u201c<]')
# What is left of a heading over the sound.
_HEADING = re.compile(r"^[ \t]*(?:(?:audio|sounds?)[ \t]*$|sounds?[ \t]*:)", re.I | re.MULTILINE)
_CLOSING_REMARK = re.compile(r"\n[ \t]*-{3,}[ \t]*\n.*\Z", re.DOTALL)
MOST_LETTERS = 20_000  # of an answer; a prompt has a tenth of that


def mend_answer(answer: str) -> str:
    """Return the prompt in a model's answer, mended.

    Raises ValueError if there is none, or for times of its parts, which nothing mends.
    """
    if len(answer) > MOST_LETTERS:
        raise ValueError(
            f"The text has {len(answer)} letters, and a prompt has at most {MOST_LETTERS}: give "
            "'Generate Text' less max_length, or connect another text."
        )
    # Prompts that name people have headings of their own in **.
    marks = _MARKS_OF_BLOCKS if names_people(answer) else _MARKS
    bare = marks.sub("", _REASONING.sub("", answer)).strip()
    bare = _CLOSING_REMARK.sub("", bare)
    bare = _without_preface(_HEADING.sub("Audio:", bare))
    if not bare:
        raise ValueError(
            f"The text holds no prompt: {answer.strip()[:60]!r}. Write the idea in other words, "
            "take another seed, or give 'Generate Text' more max_length: a model that thinks may "
            "have used it up."
        )
    mended = mend_prompt(_without_quotes_around(bare))
    return write_sound(mended.strip(), "as written")


def mend_prompt(prompt: str) -> str:
    """Return a prompt of which nothing is left to mend."""
    steps = (_mend_tags, _mend_closing, _mend_name, _mend_sound, _mend_quotes, _mend_length)
    mended: str | None = prompt
    while mended is not None:
        prompt = mended
        found = (step(prompt) for step in steps)
        mended = next((mend for mend in found if mend is not None), None)
    return prompt


def _without_preface(answer: str) -> str:
    """A line such as 'She says:' before speech is none."""
    match = _PREFACE.match(answer)
    if match is None:
        return answer
    is_picture = "prompt" not in match[0].lower() and SPOKEN.search(match[0])
    if is_picture and _BEGINS_SPEECH.match(answer, match.end()):
        return answer
    return answer[match.end() :].strip()


def _without_quotes_around(prompt: str) -> str:
    match = QUOTED.match(prompt)
    return prompt[1:-1].strip() if match and match.end() == len(prompt) else prompt


def _mend_tags(prompt: str) -> str | None:
    def meant(match: re.Match) -> str:
        tag = re.sub(r"\s", "", match[0]).upper()
        return CLOSING_MISTAKES.get(tag, tag)

    mended = LIKE_A_TAG.sub(meant, prompt)
    return mended if mended != prompt else None


def _mend_closing(prompt: str) -> str | None:
    """A tag that is not closed is closed before the next one, the sound or the end of its line."""
    for opening, closing in PAIRS:
        opened = None
        for match in re.finditer(f"{opening}|{closing}", prompt):
            if match[0] == closing and opened is None:
                return prompt[: match.start()] + prompt[match.end() :]
            if match[0] == opening and opened is not None:
                break
            opened = match.end() if match[0] == opening else None
        if opened is not None:
            return _close(prompt, opened, closing)
    return None


def _close(prompt: str, start: int, closing: str) -> str:
    following = re.compile(r"<S>|<AUDCAP>|Audio:|\n").search(prompt, start)
    words = prompt[start : following.start() if following else None].rstrip()
    return prompt[:start] + words + closing + prompt[start + len(words) :]


def _mend_name(prompt: str) -> str | None:
    match = LIKE_A_NAME.search(without_speech(prompt))
    if match is None or find_sound(prompt) is not None:
        return None
    return f"{prompt[: match.start()]}Audio:{prompt[match.end() :]}"


def _mend_sound(prompt: str) -> str | None:
    if not prompt.strip() or find_sound(prompt) is not None or names_people(prompt):
        return None
    return f"{prompt.rstrip()}\n\n{QUIET}"


def _mend_quotes(prompt: str) -> str | None:
    match = find_untagged_speech(prompt)
    if match is None:
        return None
    return f"{prompt[: match.start()]}<S>{match[0][1:-1]}<E>{prompt[match.end() :]}"


def _mend_length(prompt: str) -> str | None:
    """The end, where the sound stands, would be cut; so the last sentences of the picture go, but
    none with a tag.
    """
    over = len(prompt.split()) - MOST_WORDS
    sound = find_sound(prompt)
    start = len(prompt) if sound is None else sound
    sentences = re.findall(r"[^.!?\n]*[.!?\n]+\s*|[^.!?\n]+$", prompt[:start])
    if over <= 0:
        return None
    for place in range(len(sentences) - 1, 0, -1):
        if over > 0 and not re.search("[<>]", sentences[place]):
            over -= len(sentences.pop(place).split())
    picture = "".join(sentences).rstrip()
    return None if over > 0 else f"{picture}\n\n{prompt[start:]}".rstrip()
