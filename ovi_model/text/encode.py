"""A prompt and its negatives to CONDITIONING, as many tokens as Ovi was trained with."""

from __future__ import annotations

from torch import Tensor

from ..config import TEXT_LENGTH
from ..log import log
from .advice import advise, find_sound

PADDING = 0  # umT5's token


def encode_prompts(
    clip, prompt: str, video_negative: str, audio_negative: str
) -> tuple[list, list]:
    """Return positive and negative CONDITIONING, each text [1, 512, width].

    One text serves both towers, but for the negative, whose text for the audio tower is the option
    `audio_context`.
    What the prompt may say by mistake is logged, once.
    """
    texts = prompt, video_negative, audio_negative
    for text in texts:
        _check_letters(text)
    advice = [*advise(prompt), *_about_length(clip, prompt)]
    positive, negative, sound = (
        _encode(clip, text, said) for text, said in zip(texts, (advice, [], []), strict=True)
    )
    pairs = zip(negative, sound, strict=True)
    return positive, [
        [text, {**options, "audio_context": heard}] for (text, options), (heard, _) in pairs
    ]


def encode_caption(clip, caption: str) -> list:
    """Return CONDITIONING of one text alone, of which nothing is advised: it may be empty."""
    _check_letters(caption)
    return _encode(clip, caption, [])


def _check_letters(text: str) -> None:
    """Raise ValueError for half a character, which broken programs send; no tokenizer takes it."""
    halves = [letter for letter in text if "\ud800" <= letter <= "\udfff"]
    if halves:
        raise ValueError(
            f"The text {text[:40]!a} holds half a character, {halves[0]!a}. Type that place anew."
        )


def _about_length(clip, prompt: str) -> list[str]:
    """Say so if the sound begins where no token is read any more."""
    begin = find_sound(prompt)
    if begin is None:
        return []
    before, *more = next(iter(_tokenize(clip, prompt[:begin]).values()))
    # umT5 has one list of tokens; what cuts a text in several is another encoder, refused later.
    is_lost = not more and len(before) >= TEXT_LENGTH and before[-1][0] != PADDING
    return ["With it goes all of the sound: describe the picture in fewer words."] * is_lost


def _tokenize(clip, text: str) -> dict[str, list]:
    """Take a text literally: speech must reach the model as written, so parentheses are no
    weights.
    """
    return clip.tokenize(text, disable_weights=True)


def _encode(clip, text: str, advice: list[str]) -> list:
    tokens = _tokenize(clip, text)
    _say(text, max(len(batch) for batches in tokens.values() for batch in batches), advice)
    return clip.encode_from_tokens_scheduled(
        {name: [_cut(batch) for batch in tokens[name]] for name in tokens}
    )


def _say(text: str, count: int, advice: list[str]) -> None:
    """Log in one line what is not read of a text, and what may be read in another way."""
    if count > TEXT_LENGTH:
        fault = (
            f"reads {TEXT_LENGTH} tokens of a prompt; this one has {count}, so its end is not read"
        )
    elif advice:
        fault = "may not read this prompt as it is meant"
    else:
        return
    log.warning("%s", " ".join([f"{fault}: {text[:40]}\u2026", *advice]))


def _cut(tokens: list) -> list:
    """Keep as many tokens as Ovi was trained with, the last of which ends the text.

    Source: character-ai/Ovi, ovi/modules/tokenizers.py, HuggingfaceTokenizer, truncation.
    """
    if len(tokens) <= TEXT_LENGTH:
        return tokens
    return [*tokens[: TEXT_LENGTH - 1], tokens[-1]]


def without_padding(text: Tensor, length: int) -> Tensor:
    """[B, T, D] -> [B, length, D]: what 'Conditioning (Concat)' put together, without the zeros
    between.
    """
    is_padding = (text == 0).all(-1)
    order = is_padding.int().argsort(dim=1, stable=True)
    if (~is_padding).sum(1).max() > length:
        log.warning(
            "The prompts put together have more than %d tokens: what is above is cut.", length
        )
    return text.gather(1, order[..., None].expand_as(text))[:, :length]
