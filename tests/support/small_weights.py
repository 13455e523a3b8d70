"""Random weights of every file Ovi needs, small, under the names of the published files."""

import zlib
from dataclasses import dataclass

import torch
from find_comfyui import import_extension
from torch import Tensor

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

# Leaf name -> (mean, standard deviation). Every other weight is drawn so that its layer keeps the
# scale of its input.
SCALES = {
    "bias": (0.0, 0.1),
    "gamma": (1.0, 0.1),
    "modulation": (0.0, 0.3),
    "learnable_gain": (0.0, 0.1),
    "alpha": (0.0, 0.1),
    "beta": (0.0, 0.1),
}

CORPUS = """
A woman in a red coat walks along the quiet harbour at dawn while gulls cry over the water.
An old man sits by the window and says, <S>I never thought the winter would be this long.<E>
The camera moves slowly towards the singer on the small stage, and the crowd begins to clap.
<S>Where were you last night?<E> she asks. <S>At home,<E> he answers, and looks away.
Audio: rain on a tin roof, distant thunder, soft footsteps and a door that opens with a creak.
<AUDCAP>A clear male voice speaks with a warm tone, quiet piano music plays in the \
background.<ENDAUDCAP>
Two children run through tall grass, laughing, the sun is low and the light is golden.
Close view of a chef who cuts bread in a bright kitchen; the knife makes a steady sound.
jitter, bad hands, blur, distortion
robotic, muffled, echo, distorted
A train crosses a bridge in heavy snow, wheels on steel, wind, a long whistle in the valley.
The young scientist holds up a glass and says, <S>This changes everything we know.<E>
"""


@dataclass(frozen=True)
class OviSizes:
    """Sizes of the small twin DiT; head size is 128 and freq_dim 256 as in the released model."""

    dim: int = 256
    ffn_dim: int = 384
    layers: int = 12
    text_dim: int = 64
    freq_dim: int = 256
    video_channels: int = 48
    audio_channels: int = 20

    @property
    def audio_hidden(self) -> int:
        """Width of the audio patch embedding's MLP: 8/3 of dim, rounded up to a multiple of 256."""
        return -(-(8 * self.dim // 3) // 256) * 256


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the small umT5."""

    d_model: int = 64
    d_ff: int = 128
    d_kv: int = 16
    num_heads: int = 4
    num_layers: int = 2
    vocab_size: int = 640


def random_weights(shapes: Shapes, seed: int) -> Weights:
    """Draw one float32 tensor a name; a tensor depends on its name and the seed alone."""
    return {name: _random_weight(name, shape, seed) for name, shape in shapes.items()}


def _random_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    values = torch.randn(tuple(shape), generator=generator)
    leaf = name.rpartition(".")[2]
    if leaf in SCALES:
        mean, deviation = SCALES[leaf]
        return mean + deviation * values
    if len(shape) == 1:
        return 1 + 0.1 * values
    return values / (values.numel() / shape[0]) ** 0.5


def ovi_shapes(sizes: OviSizes) -> Shapes:
    """Names and shapes of the fused Ovi file: two towers of equal blocks, each with its own two
    ends.
    """
    dim, hidden = sizes.dim, sizes.audio_hidden
    video = {
        "patch_embedding.weight": (dim, sizes.video_channels, 1, 2, 2),
        "patch_embedding.bias": (dim,),
    }
    audio = {
        "patch_embedding.0.weight": (dim, sizes.audio_channels, 7),
        "patch_embedding.0.bias": (dim,),
        "patch_embedding.2.w1.weight": (hidden, dim, 7),
        "patch_embedding.2.w2.weight": (dim, hidden, 7),
        "patch_embedding.2.w3.weight": (hidden, dim, 7),
    }
    video |= _tower_shapes(sizes, out_features=sizes.video_channels * 4)
    audio |= _tower_shapes(sizes, out_features=sizes.audio_channels)
    towers = {"video_model": video, "audio_model": audio}
    return {
        f"{tower}.{name}": shape
        for tower, shapes in towers.items()
        for name, shape in shapes.items()
    }


def _linear(name: str, out_features: int, in_features: int) -> Shapes:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def _tower_shapes(sizes: OviSizes, out_features: int) -> Shapes:
    dim = sizes.dim
    shapes = _linear("text_embedding.0", dim, sizes.text_dim) | _linear(
        "text_embedding.2", dim, dim
    )
    shapes |= _linear("time_embedding.0", dim, sizes.freq_dim) | _linear(
        "time_embedding.2", dim, dim
    )
    shapes |= _linear("time_projection.1", 6 * dim, dim)
    for index in range(sizes.layers):
        shapes |= {
            f"blocks.{index}.{name}": shape
            for name, shape in _block_shapes(dim, sizes.ffn_dim).items()
        }
    return shapes | {"head.modulation": (1, 2, dim)} | _linear("head.head", out_features, dim)


def _block_shapes(dim: int, ffn_dim: int) -> Shapes:
    shapes: Shapes = {"modulation.modulation": (1, 6, dim)}
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"):
        shapes |= _linear(name, dim, dim)
    for name in ("q", "k", "v", "o", "k_fusion", "v_fusion"):
        shapes |= _linear(f"cross_attn.{name}", dim, dim)
    for name in ("self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k"):
        shapes[f"{name}.weight"] = (dim,)
    for name in ("norm3", "cross_attn.pre_attn_norm_fusion"):
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    shapes["cross_attn.norm_k_fusion.weight"] = (dim,)
    return shapes | _linear("ffn.0", ffn_dim, dim) | _linear("ffn.2", dim, ffn_dim)


def ovi_weights(sizes: OviSizes, dtype: torch.dtype, seed: int) -> Weights:
    """The fused Ovi file, keys as released."""
    return cast(random_weights(ovi_shapes(sizes), seed), dtype)


def lora_weights(sizes: OviSizes, seed: int, rank: int = 4) -> Weights:
    """A LoRA on both towers' first and last block, and on the layers with which a tower reads the
    other one.
    """
    layers = ("self_attn.q", "self_attn.v", "cross_attn.k_fusion", "ffn.0")
    released = ovi_shapes(sizes)
    shapes: Shapes = {}
    for tower, prefix in (
        ("video_model", "diffusion_model"),
        ("audio_model", "diffusion_model.audio_model"),
    ):
        for index in (0, sizes.layers - 1):
            for layer in layers:
                name = f"blocks.{index}.{layer}"
                out_features, in_features = released[f"{tower}.{name}.weight"]
                shapes[f"{prefix}.{name}.lora_A.weight"] = (rank, in_features)
                shapes[f"{prefix}.{name}.lora_B.weight"] = (out_features, rank)
    return random_weights(shapes, seed)


def tokenizer_model(vocab_size: int) -> Tensor:
    """Return a sentencepiece vocabulary of the sentences above, as bytes."""
    import_extension()
    from comfyui_ovi.miniature.training.tokenizer import train_tokenizer

    return train_tokenizer(vocab_size, CORPUS.strip().splitlines())


def text_encoder_weights(sizes: TextSizes, dtype: torch.dtype, seed: int) -> Weights:
    """umT5's encoder in ComfyUI's layout, without its tokenizer."""
    inner, model = sizes.d_kv * sizes.num_heads, sizes.d_model
    shapes: Shapes = {
        "shared.weight": (sizes.vocab_size, model),
        "encoder.final_layer_norm.weight": (model,),
    }
    for index in range(sizes.num_layers):
        attention, feed_forward = f"encoder.block.{index}.layer.0", f"encoder.block.{index}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, model) for name in "qkv"}
        shapes[f"{attention}.SelfAttention.o.weight"] = (model, inner)
        shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (32, sizes.num_heads)
        shapes |= {
            f"{feed_forward}.DenseReluDense.{name}.weight": (sizes.d_ff, model)
            for name in ("wi_0", "wi_1")
        }
        shapes[f"{feed_forward}.DenseReluDense.wo.weight"] = (model, sizes.d_ff)
        shapes |= {f"{layer}.layer_norm.weight": (model,) for layer in (attention, feed_forward)}
    weights = random_weights(shapes, seed)
    for name in [name for name in weights if name.endswith("SelfAttention.q.weight")]:
        weights[name] /= sizes.d_kv**0.5  # T5 attention has no other scale
    weights["shared.weight"] *= model**0.5
    return cast(weights, dtype)


# ComfyUI's umT5 names to Wan's own.
WAN_NAMES = (
    ("shared.", "token_embedding."),
    ("encoder.final_layer_norm.", "norm."),
    ("encoder.block.", "blocks."),
    (".layer.0.layer_norm.", ".norm1."),
    (".layer.1.layer_norm.", ".norm2."),
    (".layer.0.SelfAttention.relative_attention_bias.", ".pos_embedding.embedding."),
    (".layer.0.SelfAttention.", ".attn."),
    (".layer.1.DenseReluDense.wi_0.", ".ffn.gate.0."),
    (".layer.1.DenseReluDense.wi_1.", ".ffn.fc1."),
    (".layer.1.DenseReluDense.wo.", ".ffn.fc2."),
)


def in_wan_naming(weights: Weights) -> Weights:
    """The same umT5 tensors under the names of Wan's models_t5_umt5-xxl-enc-bf16.pth (which holds
    no tokenizer).
    """
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in WAN_NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def _class_weights(module: torch.nn.Module, seed: int, computed: tuple[str, ...] = ()) -> Weights:
    """Random weights for a ComfyUI class; entries whose leaf is in computed keep what its
    constructor made.
    """
    state = module.state_dict()
    drawn = random_weights({name: tuple(tensor.shape) for name, tensor in state.items()}, seed)
    return drawn | {
        name: state[name].clone() for name in state if name.rpartition(".")[2] in computed
    }


def video_decoder_weights(seed: int) -> Weights:
    """The 48-channel tiny video autoencoder, float16 as published; its frames are spread around mid
    grey.
    """
    from comfy.taesd.taehv import TAEHV

    weights = _class_weights(TAEHV(latent_channels=48), seed)
    weights["decoder.22.weight"] *= 0.6
    weights["decoder.22.bias"].fill_(0.5)
    return cast(weights, torch.float16)


def video_vae_weights(seed: int) -> Weights:
    """ComfyUI's Wan 2.2 VAE at width 16, encoder and decoder; the stock loader builds width 160
    only.
    """
    from comfy.ldm.wan.vae2_2 import WanVAE

    vae = WanVAE(dim=16, dec_dim=16, z_dim=48, temperal_downsample=[False, True, True])
    weights = _class_weights(vae, seed)
    return {
        name: tensor * 0.5 if name.startswith("decoder.head.2") else tensor
        for name, tensor in weights.items()
    }


def audio_vae_weights(seed: int, hidden_dim: int = 16) -> Weights:
    """MMAudio's 16 kHz VAE at a small width, flat keys as in v1-16.pth."""
    from comfy.ldm.mmaudio.vae.vae import VAE

    return _class_weights(
        VAE(data_dim=80, embed_dim=20, hidden_dim=hidden_dim), seed, ("data_mean", "data_std")
    )


def vocoder_weights(seed: int, channels: int = 64) -> Weights:
    """BigVGAN at a small width, plain weights, quiet enough not to clip."""
    from comfy.ldm.mmaudio.vae.bigvgan import BigVGANVocoder

    config = {"resblock": "1", "num_mels": 80, "upsample_initial_channel": channels}
    config |= {"upsample_rates": [4, 4, 2, 2, 2, 2], "upsample_kernel_sizes": [8, 8, 4, 4, 4, 4]}
    config |= {"resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3}
    config |= {"activation": "snakebeta", "snake_logscale": True}
    weights = _class_weights(BigVGANVocoder(config), seed, ("filter",))
    return {
        name: 0.5 * tensor if name.endswith("weight") else tensor
        for name, tensor in weights.items()
    }


def with_weight_norm(weights: Weights) -> Weights:
    """Split every convolution into length and direction, as BigVGAN's training files hold it."""
    split = {}
    for name, tensor in weights.items():
        if name.endswith(".weight"):
            split[f"{name}_g"] = tensor.norm(dim=(1, 2), keepdim=True)
            split[f"{name}_v"] = tensor.clone()
        else:
            split[name] = tensor
    return split


def merged_audio_weights(vae: Weights, vocoder: Weights) -> Weights:
    """Both audio files as the one file ComfyUI's own loader reads; VAE weights there are already
    normalised.
    """
    from torchaudio.functional import melscale_fbanks

    merged = {
        f"vae.{name}": _unit_length(value) if name.endswith("weight") else value
        for name, value in vae.items()
    }
    merged |= {f"vocoder.{name}": tensor for name, tensor in vocoder.items()}
    basis = melscale_fbanks(513, 0.0, 8000.0, 80, 16000, norm="slaney", mel_scale="slaney")
    return merged | {
        "mel_converter.mel_basis": basis.T,
        "mel_converter.hann_window": torch.hann_window(1024),
    }


def _unit_length(tensor: Tensor) -> Tensor:
    """Give each output channel of a convolution length 1, with the guard against zero that MMAudio
    uses.
    """
    return tensor / (tensor.norm(dim=(1, 2), keepdim=True) + 1e-4 * tensor[0].numel() ** 0.5)


def upscaler_weights(seed: int) -> Weights:
    """A 2x 'Compact' upscaler: two convolutions' worth of texture on top of a nearest-neighbour
    enlargement.
    """
    shapes = {"body.0": (8, 3, 3, 3), "body.2": (8, 8, 3, 3), "body.4": (12, 8, 3, 3)}
    weights = random_weights({f"{name}.weight": shape for name, shape in shapes.items()}, seed)
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    weights |= {f"body.{index}.weight": torch.full((8,), 0.25) for index in (1, 3)}
    weights["body.4.weight"] *= 0.05
    return weights


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    return {name: tensor.to(dtype) for name, tensor in weights.items()}
