"""umT5, the text encoder of Ovi, as ComfyUI's CLIP: any size, ComfyUI's layout or Wan's own."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import comfy.utils
import torch
from comfy.text_encoders.sd3_clip import t5_xxl_detect
from comfy.text_encoders.wan import WanT5Tokenizer, te
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from .. import core_facts
from . import quantization
from .reload import reload_with
from .state_dict import StateDict, count_blocks
from .text_encoder_names import core_names
from .weight_file import SAFETENSORS, UNREADABLE, read_weights

RIGHT_FILE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors (Comfy-Org/Wan_2.1_ComfyUI_repackaged)"

# A part of a name that gives another kind of file away.
OTHER_KINDS = (
    ("text_model.encoder.layers", "a CLIP text encoder"),
    ("resblocks.", "a CLIP text encoder"),
    ("model.layers.", "a language model"),
    ("self_attn.norm_q", "a diffusion model"),
    ("decoder.conv_in", "a VAE"),
)

# The stored companions of a quantised weight that ComfyUI 0.3.75 does not know.
UNKNOWN_SCALES = (".weight_scale", ".input_scale", ".comfy_quant")


@dataclass(frozen=True)
class TextEncoderSizes:
    """Every size of a umT5 encoder; umt5-xxl is 4096, 10240, 64, 64, 24, 256384."""

    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    num_layers: int
    vocab_size: int


def load_text_encoder(
    path: str | Path,
    tokenizer_files: Iterable[str | Path] = (),
    embedding_directory: list[str] | None = None,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """Build ComfyUI's CLIP from a umT5 file; its embeddings are [B, 512 or more, d_model], zero
    past the text.

    tokenizer_files: other files that may hold the tokenizer, looked through if this one has none.
    disable_dynamic: as in ComfyUI's own loaders, which call this again to get a plain copy.
    Raises ValueError if the file is no complete umT5 encoder or no tokenizer fits it.
    """
    path, tokenizer_files = Path(path), tuple(tokenizer_files)
    state_dict, metadata = read_weights(path)
    state_dict = core_names(state_dict)
    spiece = state_dict.pop("spiece_model", None)
    state_dict = _current_quantisation(path, state_dict, metadata)
    sizes = _measure(path, state_dict)
    _check_complete(path, state_dict, sizes)
    if spiece is None:
        path_of_tokenizer, spiece = _find_tokenizer(path, sizes.vocab_size, tokenizer_files)
    else:
        path_of_tokenizer = path
    _check_tokenizer(path_of_tokenizer, spiece, sizes.vocab_size)
    clip = _build(state_dict, sizes, spiece, embedding_directory, disable_dynamic)
    reload_with(clip.patcher, load_text_encoder, path, tokenizer_files, embedding_directory)
    return clip


def _current_quantisation(path: Path, state_dict: StateDict, metadata: dict[str, str]) -> StateDict:
    """Bring quantised weights into the form the running ComfyUI reads; plain ones stay."""
    try:
        quantization.read_metadata(metadata)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if core_facts.LAYER_FORMATS:
        return comfy.utils.convert_old_quants(state_dict, model_prefix="", metadata=metadata)[0]
    if any(name.endswith(UNKNOWN_SCALES) for name in state_dict):
        raise ValueError(
            f"{path.name} is quantised in a way this ComfyUI is too old to read. "
            f"Update ComfyUI, or use {RIGHT_FILE}, which it can read."
        )
    if (
        "scaled_fp8" in state_dict
    ):  # a marker: only its type counts, and older releases want it empty
        state_dict["scaled_fp8"] = state_dict["scaled_fp8"].flatten()[:0]
    return state_dict


def _measure(path: Path, state_dict: StateDict) -> TextEncoderSizes:
    """Read the sizes off the weights of the first block."""
    first = "encoder.block.0.layer."
    needed = (
        "shared.weight",
        f"{first}0.SelfAttention.q.weight",
        f"{first}1.DenseReluDense.wi_0.weight",
    )
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    absent = [name for name in (*needed, bias.format(0)) if name not in state_dict]
    if absent:
        raise ValueError(
            f"{path.name} is no umT5 text encoder: {_describe(state_dict)} and has no "
            f"'{absent[0]}'. {_advice()}"
        )
    for name in (*needed, bias.format(0)):
        if state_dict[name].ndim != 2 or 0 in state_dict[name].shape:
            raise ValueError(
                f"{path.name}: '{name}' has shape {list(state_dict[name].shape)}, no matrix. "
                f"{_advice()}"
            )
    layers = _count_layers(path, state_dict)
    if layers > 1 and bias.format(1) not in state_dict:
        raise ValueError(
            f"{path.name} is a T5 or mT5 encoder, not a umT5: only its first block has a "
            f"'relative_attention_bias', umT5 has one in every block. {_advice()}"
        )
    embedding, query, gate = (state_dict[name] for name in needed)
    heads = state_dict[bias.format(0)].shape[1]
    return TextEncoderSizes(
        d_model=embedding.shape[1],
        d_ff=gate.shape[0],
        d_kv=query.shape[0] // heads,
        num_heads=heads,
        num_layers=layers,
        vocab_size=embedding.shape[0],
    )


def _count_layers(path: Path, state_dict: StateDict) -> int:
    try:
        return count_blocks(state_dict, "encoder.block.")
    except ValueError as error:
        raise ValueError(
            f"{path.name} is an incomplete umT5 encoder: it has {error}. {_advice()}"
        ) from error


def _describe(state_dict: StateDict) -> str:
    for part, kind in OTHER_KINDS:
        if any(part in name for name in state_dict):
            return f"it looks like {kind}"
    return f"it begins with '{min(state_dict)}'" if state_dict else "it holds a tokenizer alone"


def _advice() -> str:
    return f"Put {RIGHT_FILE} into models/text_encoders and choose it here."


def _shapes(sizes: TextEncoderSizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights of a umT5 encoder."""
    model, inner = sizes.d_model, sizes.d_kv * sizes.num_heads
    shapes: dict[str, tuple[int, ...]] = {
        "shared.weight": (sizes.vocab_size, model),
        "encoder.final_layer_norm.weight": (model,),
    }
    for index in range(sizes.num_layers):
        attention, feed_forward = (f"encoder.block.{index}.layer.{layer}" for layer in (0, 1))
        shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, model) for name in "qkv"}
        shapes[f"{attention}.SelfAttention.o.weight"] = (model, inner)
        shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (32, sizes.num_heads)
        shapes |= {
            f"{feed_forward}.DenseReluDense.{name}.weight": (sizes.d_ff, model)
            for name in ("wi_0", "wi_1")
        }
        shapes[f"{feed_forward}.DenseReluDense.wo.weight"] = (model, sizes.d_ff)
        shapes |= {f"{layer}.layer_norm.weight": (model,) for layer in (attention, feed_forward)}
    return shapes


def _check_complete(path: Path, state_dict: StateDict, sizes: TextEncoderSizes) -> None:
    """Raise ValueError for the first weight that is absent or does not fit the others."""
    for name, shape in _shapes(sizes).items():
        if name not in state_dict:
            raise ValueError(
                f"{path.name} is an incomplete umT5 encoder: it has no '{name}'. {_advice()}"
            )
        if tuple(state_dict[name].shape) != shape:
            found = list(state_dict[name].shape)
            raise ValueError(
                f"{path.name}: '{name}' has shape {found}, the rest of the file needs "
                f"{list(shape)}."
            )
        if (
            not state_dict[name].is_floating_point()
            and name.removesuffix("weight") + "comfy_quant" not in state_dict
        ):
            raise ValueError(
                f"{path.name}: '{name}' holds {state_dict[name].dtype}, not fractions. {_advice()}"
            )


def _find_tokenizer(
    path: Path, vocab_size: int, files: Iterable[str | Path]
) -> tuple[Path, Tensor]:
    """Take the tokenizer of the first other umT5 file with the same vocabulary; only headers are
    read on the way.
    """
    for other in map(Path, files):
        if other.suffix.lower() not in SAFETENSORS:
            continue
        try:
            with safe_open(other, framework="pt") as opened:
                if {"spiece_model", "shared.weight"} <= set(opened.keys()):
                    rows = opened.get_slice("shared.weight").get_shape()[:1]
                    if rows == [vocab_size]:
                        return other, opened.get_tensor("spiece_model")
        except UNREADABLE:
            continue  # a damaged neighbour is no reason to refuse this file
    raise ValueError(
        f"{path.name} holds no tokenizer, and no other file in models/text_encoders holds one for "
        f"its {vocab_size} tokens. Also put {RIGHT_FILE} there: its tokenizer will be used."
    )


def _check_tokenizer(path: Path, spiece: Tensor, vocab_size: int) -> None:
    pieces = _count_pieces(spiece)
    if not pieces:
        raise ValueError(
            f"{path.name}: its 'spiece_model' is no sentencepiece model. Download the file again."
        )
    if pieces > vocab_size:
        raise ValueError(
            f"{path.name}: its tokenizer has {pieces} tokens, the encoder knows {vocab_size}. "
            f"{_advice()}"
        )


def _count_pieces(spiece: Tensor) -> int:
    """Return how many tokens a tokenizer has; none if it is no tokenizer, or one of its tokens
    cannot be read.
    """
    if spiece.dtype != torch.uint8 or not spiece.numel():
        return 0
    try:
        processor = SentencePieceProcessor(model_proto=spiece.flatten().numpy().tobytes())
        return len([processor.id_to_piece(token) for token in range(processor.get_piece_size())])
    except (RuntimeError, UnicodeDecodeError):
        return 0


def _build(
    state_dict: StateDict,
    sizes: TextEncoderSizes,
    spiece: Tensor,
    embedding_directory: list[str] | None,
    disable_dynamic: bool,
) -> comfy.sd.CLIP:
    """Build the same object as ComfyUI's own loader does for type 'wan', at any size."""
    options = {
        "target": SimpleNamespace(
            params={}, clip=te(**t5_xxl_detect(state_dict)), tokenizer=WanT5Tokenizer
        ),
        "embedding_directory": embedding_directory,
        "tokenizer_data": {"spiece_model": spiece},
        "parameters": comfy.utils.calculate_parameters(state_dict),
        "model_options": {"umt5xxl_model_config": vars(sizes)},
    }
    # Current releases load before they move to the GPU.
    if "state_dict" in inspect.signature(comfy.sd.CLIP).parameters:
        return comfy.sd.CLIP(**options, state_dict=[state_dict], disable_dynamic=disable_dynamic)
    clip = comfy.sd.CLIP(**options)
    clip.load_sd(state_dict)
    return clip
