"""Training of a sentencepiece vocabulary, a second's work."""

import io
from collections.abc import Sequence

import torch
from sentencepiece import SentencePieceTrainer
from torch import Tensor


def train_tokenizer(vocab_size: int, sentences: Sequence[str]) -> Tensor:
    """Return a vocabulary of sentences (pad 0, eos 1, unknown 2, bytes for unseen characters),
    uint8.
    """
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        # The default's table of Unicode is 240 KB.
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
