"""A language model of a few MB whose answers are known, behind ComfyUI's own CLIP: a table of
logits of the next letter, read greedily. Real ones need tokenizer files that no test downloads.
"""

from types import SimpleNamespace

import comfy.sd
import torch
from torch import Tensor, nn

LETTERS = 256
MOST = 1200  # letters of an answer


class LetterModel(nn.Module):
    """[answers, MOST, LETTERS]: the logits of each letter of each answer; letter 0 ends it."""

    dtypes = (torch.float32,)

    def __init__(self, answers: dict[str, str], device=None, **_options):
        super().__init__()
        self.ideas = list(answers)
        table = torch.zeros(len(answers), MOST, LETTERS)
        for row, answer in zip(table, answers.values(), strict=True):
            row[torch.arange(MOST), torch.tensor(list(answer.encode().ljust(MOST, b"\0")))] = 1
        self.table = nn.Parameter(table.to(device), requires_grad=False)

    def reset_clip_options(self) -> None:
        """Nothing is remembered."""

    def set_clip_options(self, options: dict) -> None:
        """Nothing is remembered."""

    def generate(self, tokens: dict, max_length: int, **_sampling) -> Tensor:
        """Return the letters of the answer to the idea that the prompt ends with."""
        asked = LetterTokenizer.decode(tokens["letters"])
        place = next(n for n, idea in enumerate(self.ideas) if asked.endswith(idea))
        letters = self.table[place].argmax(-1)
        return letters[: min(max_length, int((letters != 0).sum()))]


class LetterTokenizer:
    """Text to the numbers of its letters; keeps what was asked last."""

    def __init__(self, **_files):
        self.asked: dict = {}

    def tokenize_with_weights(self, text: str, _return_word_ids: bool, **options) -> dict:
        """Return the letters of a text."""
        self.asked = {"text": text, **options}
        return {"letters": list(text.encode())}

    @staticmethod
    def decode(letters, **_options) -> str:
        """Return the text of letters."""
        return bytes(int(letter) for letter in letters).decode(errors="ignore")


def small_writer(answers: dict[str, str]) -> comfy.sd.CLIP:
    """Return a CLIP that answers an idea with what is known of it."""
    target = SimpleNamespace(
        params={"answers": answers}, clip=LetterModel, tokenizer=LetterTokenizer
    )
    return comfy.sd.CLIP(target)
