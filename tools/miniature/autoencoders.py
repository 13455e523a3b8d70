"""Training of what turns clips into latents and back: the video VAE, the audio VAE and the vocoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import parts
from .loop import Losses, train
from .settings import AUDIO_VAE, VIDEO_VAE, VOCODER
from .world import TRAINING_SCENES, Clip, film, room

FFT_SIZES = (256, 512, 1024, 2048)


def draw_clips(count: int) -> list[Clip]:
    """Return clips of the training scenes in turn, with the first seeds."""
    scenes = len(TRAINING_SCENES)
    return [film(TRAINING_SCENES[i % scenes], i // scenes) for i in range(count)]


def train_video_vae(folder: Path) -> nn.Module:
    """Train on windows of clips; the latent's noise has a fixed width, so that neighbours decode alike."""
    settings, batch = VIDEO_VAE, VIDEO_VAE.schedule.batch
    vae = parts.video_vae(settings)
    films = torch.stack([(255 * clip.frames).round().byte() for clip in draw_clips(settings.clips)])
    empty = (room() * 2 - 1).movedim(-1, 0).unsqueeze(1)

    def losses_of(generator: torch.Generator) -> Losses:
        chosen = torch.randint(len(films), (batch,), generator=generator)
        starts = torch.randint(films.shape[1] - settings.window + 1, (batch,), generator=generator)
        cut = [films[i, start : start + settings.window] for i, start in zip(chosen, starts, strict=True)]
        frames = torch.stack(cut).movedim(-1, 1) / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(frames).float()
            made = vae.decode(_blurred(mean, settings.noise, generator))
        # The thing fills a twentieth of the picture.
        weight = 1 + settings.thing * ((frames - empty).abs().amax(1, keepdim=True) > 0.1)
        error = (made.float() - frames) * weight / weight.mean()
        picture = error.abs().mean() + 2 * (error * (made.float() - frames)).mean()
        return {"loss": picture + settings.prior * mean.square().mean(), "L1": error.abs().mean(), "size": mean.std()}

    return train("video_vae", folder, vae, settings.schedule, losses_of)


def _blurred(mean: Tensor, width: float, generator: torch.Generator) -> Tensor:
    return mean + width * torch.randn(mean.shape, generator=generator)


def draw_sounds(count: int) -> Tensor:
    """Return the sounds [count, samples] of as many clips."""
    return torch.stack([clip.sound for clip in draw_clips(count)])


def train_audio_vae(folder: Path) -> nn.Module:
    """Train MMAudio's VAE on the mel bands of sounds."""
    settings = AUDIO_VAE
    model = parts.audio_autoencoder(settings, VOCODER)
    with torch.no_grad():
        mels = model.mel_converter(draw_sounds(settings.clips))
    vae = model.vae

    def losses_of(generator: torch.Generator) -> Losses:
        chosen = torch.randint(len(mels), (settings.schedule.batch,), generator=generator)
        mel = vae.normalize(mels[chosen])
        mean = vae.encode(mel, normalize=False).mean
        made = vae.decode(_blurred(mean, settings.noise, generator), unnormalize=False)
        error = made - mel
        bands = error.abs().mean() + error.square().mean()
        return {"loss": bands + settings.prior * mean.square().mean(), "L1": error.abs().mean(), "size": mean.std()}

    return train("audio_vae", folder, vae, settings.schedule, losses_of)


def train_vocoder(folder: Path) -> nn.Module:
    """Train BigVGAN on the spectra of sounds at several resolutions; there is no adversary."""
    settings = VOCODER
    model = parts.audio_autoencoder(AUDIO_VAE, settings)
    converter, vocoder = model.mel_converter, model.vocoder
    sounds = draw_sounds(AUDIO_VAE.clips)
    with torch.no_grad():
        mels = converter(sounds)
    hop = converter.hop_size
    windows = [torch.hann_window(size) for size in FFT_SIZES]

    def losses_of(generator: torch.Generator) -> Losses:
        batch, length = settings.schedule.batch, settings.window
        chosen = torch.randint(len(mels), (batch,), generator=generator)
        starts = torch.randint(mels.shape[-1] - length + 1, (batch,), generator=generator)
        pairs = list(zip(chosen, starts, strict=True))
        mel = torch.stack([mels[i, :, start : start + length] for i, start in pairs])
        sound = torch.stack([sounds[i, start * hop : (start + length) * hop] for i, start in pairs])
        made = vocoder(_blurred(mel, settings.noise, generator)).squeeze(1)
        spectra = sum(_spectral_distance(made, sound, window) for window in windows) / len(windows)
        # The lengths of what is padded at the ends differ from those of the whole sound.
        bands = (converter(made) - converter(sound)).abs().mean()
        return {"loss": spectra + bands, "spectra": spectra, "bands": bands}

    return train("vocoder", folder, vocoder, settings.schedule, losses_of)


def _spectral_distance(made: Tensor, sound: Tensor, window: Tensor) -> Tensor:
    """Mean distance of magnitudes, relative to the sound's, and of their logarithms."""
    size = len(window)
    spectra = [torch.stft(x, size, size // 4, window=window, return_complex=True).abs() for x in (made, sound)]
    logarithms = [spectrum.clamp(min=1e-4).log10() for spectrum in spectra]
    relative = (spectra[0] - spectra[1]).norm() / (spectra[1].norm() + 1e-3)
    return relative + functional.l1_loss(*logarithms)
