"""Ovi's audio VAE: the two published files (MMAudio's 16 kHz VAE and BigVGAN) as ComfyUI's one
audio VAE.
"""

import math
from pathlib import Path

import comfy.sd
import torch
from comfy.ldm.mmaudio.vae import autoencoder
from comfy.ldm.mmaudio.vae import vae as mel_vae
from comfy.ldm.mmaudio.vae.bigvgan import BigVGANVocoder
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from ..config import AUDIO_CHANNELS, SAMPLE_RATE
from .core_vae import vae_around
from .reload import reload_with
from .state_dict import StateDict, check_tensor, find_undefined
from .weight_file import read_weights

MEL_BINS = 80
FFT_SIZE = 1024
HOP_SIZE = 256
HIGHEST_FREQUENCY = 8000

RIGHT_VAE = "mmaudio_vae_16k_fp32.safetensors or v1-16.pth"
RIGHT_VOCODER = "mmaudio_vocoder_bigvgan_best_netG_fp32.safetensors or best_netG.pt"

# Leading parts of a name that only say where the file came from.
WRAPPERS = ("module", "generator", "vae", "vocoder")
# The first part of a name, without wrappers, says which half it belongs to.
HALVES = {
    "vae": ("encoder", "decoder", "data_mean", "data_std"),
    "vocoder": ("conv_pre", "ups", "resblocks", "activation_post", "conv_post"),
}
# Of the VAE and the vocoder. ComfyUI's own class has the released ones.
RELEASED_WIDTHS = (384, 1536)
SMALLEST_WIDTHS = (1, 64)
# Steps and limit of a half's width, which its first layer tells: a false one must not fill the
# memory. The vocoder halves its width six times.
WIDTHS = {"encoder.conv_in.weight": (1, 768), "conv_pre.weight": (64, 3072)}
# Both spellings of PyTorch's weight normalisation: length, direction.
WEIGHT_NORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
# Constants that the classes compute themselves, so that a file may leave them out.
COMPUTED = ("filter", "data_mean", "data_std", "hann_window")


class SizedAutoencoder(autoencoder.AudioAutoencoder):
    """ComfyUI's 16 kHz audio autoencoder at other widths than the released 384 and 1536."""

    def __init__(self, hidden_dim: int, vocoder_channels: int):
        torch.nn.Module.__init__(self)  # the parent's constructor knows the released widths only
        self.mel_converter = autoencoder.MelConverter(
            sampling_rate=SAMPLE_RATE,
            n_fft=FFT_SIZE,
            num_mels=MEL_BINS,
            hop_size=HOP_SIZE,
            win_size=FFT_SIZE,
            fmin=0,
            fmax=HIGHEST_FREQUENCY,
            norm_fn=torch.log10,
        )
        self.vae = mel_vae.VAE(
            data_dim=MEL_BINS, embed_dim=AUDIO_CHANNELS, hidden_dim=hidden_dim
        ).eval()
        self.vocoder = BigVGANVocoder(
            {
                "resblock": "1",
                "num_mels": MEL_BINS,
                "upsample_rates": [4, 4, 2, 2, 2, 2],
                "upsample_kernel_sizes": [8, 8, 4, 4, 4, 4],
                "upsample_initial_channel": vocoder_channels,
                "resblock_kernel_sizes": [3, 7, 11],
                "resblock_dilation_sizes": [[1, 3, 5]] * 3,
                "activation": "snakebeta",
                "snake_logscale": True,
            }
        ).eval()


class SamplesPerStep(float):
    """How many samples core decodes a step to: a fraction, which it rounds to the nearest; called,
    of so many steps, rounded up in float32, as its resampler does.

    Source: torchaudio, functional/functional.py, _apply_sinc_resample_kernel.
    """

    def __call__(self, steps: int) -> int:
        return int(torch.tensor(self * steps, dtype=torch.float32).ceil())


def load_audio_vae(vae_path: str | Path, vocoder_path: str | Path | None = None) -> comfy.sd.VAE:
    """Build ComfyUI's audio VAE from a VAE file and a vocoder file, or from one file that holds
    both.

    Raises ValueError if a half is absent, in the wrong place, of another size, or not finite.
    """
    state_dict = read_audio_vae(vae_path, vocoder_path)
    widths = _read_widths(state_dict)
    if widths == RELEASED_WIDTHS:
        built = comfy.sd.VAE(sd=state_dict)
    else:
        model = SizedAutoencoder(*widths)
        built = vae_around(model, state_dict, autoencoder, "AudioAutoencoder")
    built.upscale_ratio = SamplesPerStep(built.upscale_ratio)
    reload_with(built.patcher, load_audio_vae, vae_path, vocoder_path)
    return built


def read_audio_vae(vae_path: str | Path, vocoder_path: str | Path | None = None) -> StateDict:
    """Return the weights in float32, as ComfyUI's one file holds them.

    Raises ValueError as load_audio_vae.
    """
    paths = [Path(vae_path), Path(vocoder_path or vae_path)]
    vae, vocoder, normalised = _read_halves(*paths)
    if not normalised:
        vae = {
            name: unit_length(x) if name.endswith(".weight") and x.ndim == 3 else x
            for name, x in vae.items()
        }
    state_dict = {f"vae.{name}": tensor for name, tensor in vae.items()}
    state_dict |= {f"vocoder.{name}": tensor for name, tensor in vocoder.items()}
    state_dict["mel_converter.mel_basis"] = mel_basis()
    return _complete(state_dict, *paths)


def _read_widths(state_dict: StateDict) -> tuple[int, int]:
    """Return how wide the VAE and the vocoder begin."""
    return len(state_dict["vae.encoder.conv_in.weight"]), len(state_dict["vocoder.conv_pre.weight"])


def _read_halves(vae_path: Path, vocoder_path: Path) -> tuple[StateDict, StateDict, bool]:
    """Return the VAE's weights, the vocoder's, and whether the VAE's are normalised, as in
    ComfyUI's one file.
    """
    vae, vocoder = split_halves(read_weights(vae_path)[0])
    if vocoder_path != vae_path:
        other_vae, other_vocoder = split_halves(read_weights(vocoder_path)[0])
        if vocoder and other_vae and not vae:
            raise ValueError(
                f"{vae_path.name} is the vocoder and {vocoder_path.name} the VAE: swap the two "
                "inputs."
            )
        if not other_vocoder:
            found = "an audio VAE" if other_vae else "something else"
            raise ValueError(
                f"vocoder {vocoder_path.name} is {found}, not a BigVGAN vocoder such as "
                f"{RIGHT_VOCODER}."
            )
        vocoder = other_vocoder
    if not vae:
        found = (
            "not an audio VAE"
            if vocoder_path != vae_path or not vocoder
            else "a vocoder, not a VAE"
        )
        raise ValueError(
            f"vae {vae_path.name} is {found}; choose MMAudio's 16 kHz VAE, {RIGHT_VAE}."
        )
    if not vocoder:
        raise ValueError(
            f"{vae_path.name} holds the audio VAE only. Also choose its vocoder, {RIGHT_VOCODER} "
            "(BigVGAN, 16 kHz)."
        )
    _check_half(vae_path, vae, "encoder.conv_in.weight")
    _check_half(vocoder_path, vocoder, "conv_pre.weight")
    lengths = vae["encoder.conv_in.weight"].norm(dim=(1, 2))
    return vae, vocoder, bool(((lengths - 1).abs() < 0.02).all())


def split_halves(state_dict: StateDict) -> tuple[StateDict, StateDict]:
    """Return the weights of the VAE and of the vocoder in float32, under their own names, whatever
    wraps them.

    A half is empty if the file has not its first layer; a video VAE has names like ours, but no 1-d
    convolutions.
    """
    halves: dict[str, StateDict] = {half: {} for half in HALVES}
    for name, tensor in state_dict.items():
        parts = name.split(".")
        while parts[0] in WRAPPERS and len(parts) > 1:
            parts = parts[1:]
        for half, heads in HALVES.items():
            if parts[0] in heads:
                halves[half][".".join(parts)] = tensor.float()
    vae, vocoder = halves["vae"], fold_weight_norm(halves["vocoder"])
    is_vae, is_vocoder = _starts_with(vae, "encoder.conv_in"), _starts_with(vocoder, "conv_pre")
    return (vae if is_vae else {}), (vocoder if is_vocoder else {})


def _starts_with(state_dict: StateDict, layer: str) -> bool:
    weight = state_dict.get(f"{layer}.weight")
    return weight is not None and weight.ndim == 3


def _check_half(path: Path, state_dict: StateDict, first_layer: str) -> None:
    """Raise ValueError if a half is made for another number of mel bands or of no width, or is not
    all numbers.
    """
    width, bins, _ = state_dict[first_layer].shape
    if bins != MEL_BINS:
        raise ValueError(
            f"{path.name} works on {bins} mel bands, Ovi's audio on {MEL_BINS}: it is MMAudio's "
            f"44.1 kHz version. Use the 16 kHz files, {RIGHT_VAE} and {RIGHT_VOCODER}."
        )
    step, widest = WIDTHS[first_layer]
    if width not in range(step, widest + 1, step):
        raise ValueError(
            f"{path.name} is {width} wide ('{first_layer}'); widths up to {widest} in steps of "
            f"{step} are possible. It is damaged or made for something else: download it again."
        )
    if undefined := find_undefined(state_dict):
        raise ValueError(
            f"{path.name}: '{undefined}' holds infinite or undefined numbers. Download the file "
            "again."
        )


def unit_length(weight: Tensor) -> Tensor:
    """Scale each output channel of a convolution [out, in, width] to length 1.

    Source: hkchengrex/MMAudio, mmaudio/ext/autoencoder/edm2_utils.py, MPConv1D.remove_weight_norm.
    """
    length = weight.norm(dim=(1, 2), keepdim=True)
    return weight / (length + 1e-4 * math.prod(weight.shape[1:]) ** 0.5)


def fold_weight_norm(state_dict: StateDict) -> StateDict:
    """Replace each length and direction by the weight they stand for; other tensors stay as they
    are.
    """
    folded = dict(state_dict)
    for length_name, direction_name in WEIGHT_NORMS:
        for name in [name for name in folded if name.endswith(f".{direction_name}")]:
            layer = name.removesuffix(direction_name)
            direction, length = folded[name], folded.get(layer + length_name)
            if (
                length is not None
                and direction.ndim == 3
                and length.shape == (len(direction), 1, 1)
            ):
                folded[f"{layer}weight"] = direction * (
                    length / direction.norm(dim=(1, 2), keepdim=True)
                )
                del folded[name], folded[layer + length_name]
    return folded


def mel_basis() -> Tensor:
    """Return the mel filters [80, 513], slaney's scale and area, which ComfyUI leaves unset."""
    bins = FFT_SIZE // 2 + 1
    filters = melscale_fbanks(
        bins, 0.0, HIGHEST_FREQUENCY, MEL_BINS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return filters.T.contiguous()


def _complete(state_dict: StateDict, vae_path: Path, vocoder_path: Path) -> StateDict:
    """Add the constants a file may leave out; raise ValueError for any other absent or misshapen
    weight.
    """
    with torch.device("meta"):
        expected = SizedAutoencoder(*_read_widths(state_dict)).state_dict()
    constants = SizedAutoencoder(*SMALLEST_WIDTHS).state_dict()  # they are alike at all widths
    complete = {}
    for name, wanted in expected.items():
        half, _, own_name = name.partition(".")
        found = state_dict.get(name)
        if found is None and name.rpartition(".")[2] in COMPUTED:
            found = constants[name]
        path = vocoder_path if half == "vocoder" else vae_path
        complete[name] = check_tensor(path, own_name, found, wanted)
    return complete


def is_audio_vae(vae: comfy.sd.VAE) -> bool:
    """Whether this is MMAudio's autoencoder with its vocoder, from this loader or ComfyUI's own."""
    return isinstance(vae.first_stage_model, autoencoder.AudioAutoencoder)
