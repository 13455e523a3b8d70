"""Training of the text encoder: umT5 learns to guess hidden words of captions."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy.text_encoders.t5 import T5LayerNorm
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from torch.nn import functional

from . import parts
from .loop import Losses, train
from .settings import TEXT
from .tokenizer import train_tokenizer
from .world import TRAINING_SCENES

# The negative prompts that nodes suggest; guidance leads away from them, so training must have seen
# them.
VIDEO_NEGATIVE = "jitter, bad hands, blur, distortion"
AUDIO_NEGATIVE = "robotic, muffled, echo, distorted"
PAD, END, UNKNOWN = 0, 1, 2


def captions() -> list[str]:
    return [scene.caption(form) for scene in TRAINING_SCENES for form in (0, 1)]


def tokenizer() -> Tensor:
    """Return a sentencepiece model of the words that captions and negative prompts have, as the
    file holds it.
    """
    return train_tokenizer(TEXT.vocabulary, [*captions(), VIDEO_NEGATIVE, AUDIO_NEGATIVE])


def processor() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=tokenizer().numpy().tobytes())


class Guesser(nn.Module):
    """umT5 and a layer that reads words off its output; the file keeps umT5 alone."""

    def __init__(self, words: int):
        super().__init__()
        self.encoder = parts.text_encoder(words)
        self.words = nn.Linear(TEXT.width, words)
        for layer in self.encoder.modules():
            if isinstance(layer, T5LayerNorm):
                # ComfyUI adds to what this layer read, in place, which its gradient still needs.
                layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, T], mask [B, T], 1 for text -> logits [B, T, words]."""
        return self.words(self.encoder(tokens, mask)[0])


def train_text_encoder(folder: Path) -> nn.Module:
    """Train on captions of which some tokens are replaced by the unknown one, and return umT5."""
    pieces = processor()
    texts = [[*pieces.encode(text), END] for text in (*captions(), VIDEO_NEGATIVE, AUDIO_NEGATIVE)]
    length = max(map(len, texts))
    tokens = torch.tensor([text + [PAD] * (length - len(text)) for text in texts])
    guesser = Guesser(pieces.get_piece_size())

    def losses_of(generator: torch.Generator, size: int) -> Losses:
        chosen = tokens[torch.randint(len(tokens), (size,), generator=generator)]
        is_text = chosen != PAD
        hidden = is_text & (torch.rand(chosen.shape, generator=generator) < TEXT.hidden)
        logits = guesser(chosen.masked_fill(hidden, UNKNOWN), is_text.float())
        right = (logits.argmax(-1) == chosen)[hidden].float().mean()
        return {
            "loss": functional.cross_entropy(logits[is_text], chosen[is_text]),
            "wrong": 1 - right + 1e-3,
        }

    return train("text_encoder", folder, guesser, TEXT.schedule, losses_of).encoder
