"""Speech and sound tags of a prompt: checked where they stand, and put in the form a checkpoint was
trained on.

Speech is `<S>...<E>`. Sound is `<AUDCAP>...<ENDAUDCAP>` for the 720x720 checkpoint, `Audio: ...`
for the others. Source: character-ai/Ovi, ovi/utils/utils.py.
"""

from __future__ import annotations

import re

from ..config import TEXT_LENGTH
from ..log import log

PAIRS = (("<S>", "<E>"), ("<AUDCAP>", "<ENDAUDCAP>"))
CLOSING_MISTAKES = {
    "</S>": "<E>",
    "</E>": "<E>",
    "</AUDCAP>": "<ENDAUDCAP>",
    "</ENDAUDCAP>": "<ENDAUDCAP>",
}

_TAGGED_SOUND = re.compile(r"<AUDCAP>(.*?)<ENDAUDCAP>", re.DOTALL)
# What is tagged already is passed over, even if it holds the word itself.
_NAMED_SOUND = re.compile(r"<AUDCAP>.*?<ENDAUDCAP>|Audio:\s*(.*)", re.DOTALL)


def sound_as_audio(prompt: str) -> str:
    """Write the sound as `Audio: ...`, as the 960x960 checkpoints read it."""
    return _TAGGED_SOUND.sub(lambda match: f"Audio: {match[1]}", prompt)


def sound_as_tags(prompt: str) -> str:
    """Write the sound as `<AUDCAP>...<ENDAUDCAP>`, as the 720x720 checkpoint reads it: all that
    follows `Audio:`.
    """
    return _NAMED_SOUND.sub(
        lambda match: match[0] if match[1] is None else f"<AUDCAP>{match[1]}<ENDAUDCAP>", prompt
    )


SOUND_FORMS = {"Audio:": sound_as_audio, "<AUDCAP>": sound_as_tags, "as written": str}


def check_prompt(prompt: str) -> None:
    """Raise ValueError naming the first tag that is not closed, not opened or misspelt, and its
    place.
    """
    if not prompt.strip():
        raise ValueError(
            "The prompt is empty. Describe the picture, put speech in <S>...<E> and end with the "
            "sound."
        )
    for wrong, right in CLOSING_MISTAKES.items():
        if wrong in prompt:
            raise ValueError(
                f"'{wrong}' {_place(prompt, prompt.index(wrong))} is not a tag of Ovi: write "
                f"'{right}'."
            )
    for opening, closing in PAIRS:
        _check_pair(prompt, opening, closing)


def _check_pair(prompt: str, opening: str, closing: str) -> None:
    opened = None
    for match in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", prompt):
        place = _place(prompt, match.start())
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
            f"'{opening}' {_place(prompt, opened)} is not closed: add '{closing}' where it ends."
        )


def _place(prompt: str, index: int) -> str:
    """Say where a tag stands, for people: line, column and the words after it."""
    line = prompt.count("\n", 0, index) + 1
    column = index - (prompt.rfind("\n", 0, index) + 1) + 1
    words = prompt[index : index + 24].splitlines()[0]
    return f"at line {line}, column {column} (\u2026{words}\u2026)"


def encode_prompts(
    clip, prompt: str, video_negative: str, audio_negative: str
) -> tuple[list, list]:
    """Return positive and negative CONDITIONING, each text [1, 512, width].

    One text serves both towers, but for the negative, whose text for the audio tower is the option
    `audio_context`.
    """
    positive, negative, sound = (
        _encode(clip, text) for text in (prompt, video_negative, audio_negative)
    )
    pairs = zip(negative, sound, strict=True)
    return positive, [
        [text, {**options, "audio_context": heard}] for (text, options), (heard, _) in pairs
    ]


def _encode(clip, text: str) -> list:
    """Encode a text literally: speech must reach the model as written, so parentheses are no
    weights.

    Raises ValueError for half a character, which broken programs send; no tokenizer takes it.
    """
    halves = [letter for letter in text if "\ud800" <= letter <= "\udfff"]
    if halves:
        raise ValueError(
            f"The text {text[:40]!a} holds half a character, {halves[0]!a}. Type that place anew."
        )
    tokens = clip.tokenize(text, disable_weights=True)
    return clip.encode_from_tokens_scheduled(
        {name: [_cut(batch, text) for batch in tokens[name]] for name in tokens}
    )


def _cut(tokens: list, text: str) -> list:
    """Keep as many tokens as Ovi was trained with, the last of which ends the text, and say so.

    Source: character-ai/Ovi, ovi/modules/tokenizers.py, HuggingfaceTokenizer, truncation.
    """
    if len(tokens) <= TEXT_LENGTH:
        return tokens
    log.warning(
        "reads %d tokens of a prompt; this one has %d, so its end is not read: %s\u2026",
        TEXT_LENGTH,
        len(tokens),
        text[:40],
    )
    return [*tokens[: TEXT_LENGTH - 1], tokens[-1]]
