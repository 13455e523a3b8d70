"""Training of what turns clips into latents and back: video VAE, audio VAE and vocoder."""

from __future__ import annotations

from pathlib import Path

import torch
from comfyui_ovi.ovi_model.load.audio_vae import SizedAutoencoder
from torch import Tensor, nn
from torch.nn import functional

from . import parts
from .loop import Losses, train, train_repeatedly
from .settings import AUDIO_VAE, VIDEO_VAE, VOCODER
from .world import FRAME_RATE, SAMPLE_RATE, TRAINING_SCENES, Clip, film, room

FFT_SIZES = (256, 512, 1024, 2048)
AUDIBLE = 2.0  # 40 dB, as log10
FLOOR = -5.0  # of mel bands, log10
QUIET = 1e-2  # level, root mean square, from which on an error counts as a share of the sound


def draw_clips(count: int, grid: float | None = None) -> list[Clip]:
    """Return clips of the training scenes in turn, with the first seeds; grid: of their pitches, in
    Hz.
    """
    scenes = len(TRAINING_SCENES)
    return [film(TRAINING_SCENES[i % scenes], i // scenes, grid) for i in range(count)]


def train_video_vae(folder: Path) -> nn.Module:
    """Train on windows of clips; the latent's noise has a fixed width, so that neighbours decode
    alike.
    """
    settings = VIDEO_VAE
    vae = parts.video_vae(settings)
    films = torch.stack([(255 * clip.frames).round().byte() for clip in draw_clips(settings.clips)])
    empty = (room() * 2 - 1).movedim(-1, 0).unsqueeze(1)

    def losses_of(generator: torch.Generator, size: int) -> Losses:
        chosen = torch.randint(len(films), (size,), generator=generator)
        starts = torch.randint(films.shape[1] - settings.window + 1, (size,), generator=generator)
        cut = [
            films[i, start : start + settings.window]
            for i, start in zip(chosen, starts, strict=True)
        ]
        frames = torch.stack(cut).movedim(-1, 1) / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(frames).float()
            made = vae.decode(_blurred(mean, settings.noise, generator))
        # The thing fills a twentieth of the picture.
        weight = 1 + settings.thing * ((frames - empty).abs().amax(1, keepdim=True) > 0.1)
        error = (made.float() - frames) * weight / weight.mean()
        picture = error.abs().mean() + 2 * (error * (made.float() - frames)).mean()
        return {
            "loss": picture + settings.prior * mean.square().mean(),
            "L1": error.abs().mean(),
            "size": mean.std(),
        }

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

    def losses_of(generator: torch.Generator, size: int) -> Losses:
        chosen = torch.randint(len(mels), (size,), generator=generator)
        mel = vae.normalize(mels[chosen])
        mean = vae.encode(mel, normalize=False).mean
        made = vae.decode(_blurred(mean, settings.noise, generator), unnormalize=False)
        # What is heard is a thirtieth of all bands; the rest is near silence.
        level = vae.unnormalize(mel)
        weight = 1 + settings.audible * (level > level.amax((1, 2), keepdim=True) - AUDIBLE)
        error = (made - mel) * weight / weight.mean()
        bands = error.abs().mean() + (error * (made - mel)).mean()
        return {
            "loss": bands + settings.prior * mean.square().mean(),
            "L1": error.abs().mean(),
            "size": mean.std(),
        }

    return train_repeatedly("audio_vae", folder, vae, settings.schedules, losses_of)


def train_vocoder(folder: Path, model: SizedAutoencoder) -> nn.Module:
    """Train BigVGAN on notes: on the wave itself and on its spectra; there is no adversary.

    It reads mel bands as they are and as the trained VAE of the model gives them back.

    The pitches it is to make are multiples of the rate of mel frames. Such a wave is the same in
    each frame, so that no phase has to be carried from frame to frame, which takes by far the
    longest to learn.
    """
    settings = VOCODER
    converter, vocoder = model.mel_converter, model.vocoder
    clips = draw_clips(AUDIO_VAE.clips)
    hop, length = converter.hop_size, settings.window
    with torch.no_grad():
        mels = converter(torch.stack([clip.sound for clip in clips]))
        again = torch.cat(
            [model.vae.decode(model.vae.encode(part).mean) for part in mels.split(50)]
        )
    versions = torch.stack([mels, again], 1)
    sounds = torch.stack(
        [clip.sound for clip in draw_clips(AUDIO_VAE.clips, grid=SAMPLE_RATE / hop)]
    )
    windows = [torch.hann_window(size) for size in FFT_SIZES]

    def draw_window(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        number = int(torch.randint(len(clips), (1,), generator=generator))
        event = clips[number].events[0] * SAMPLE_RATE / FRAME_RATE / hop
        before = int(torch.randint(2, length, (1,), generator=generator))
        start = min(max(0, round(event) + length // 2 - before), mels.shape[-1] - length)
        version = int(torch.randint(2, (1,), generator=generator))
        mel = versions[number, version, :, start : start + length]
        change = -settings.quieter * torch.rand(1, generator=generator)
        return (mel + change).clamp(min=FLOOR), sounds[
            number, start * hop : (start + length) * hop
        ] * 10**change

    def losses_of(generator: torch.Generator, size: int) -> Losses:
        batch = [draw_window(generator) for _ in range(size)]
        mel, sound = (torch.stack(part) for part in zip(*batch, strict=True))
        made = vocoder(_blurred(mel, settings.noise, generator)).squeeze(1)
        wave = (
            (made - sound).square().mean(1).sqrt() / (sound.square().mean(1).sqrt() + QUIET)
        ).mean()
        spectra = sum(_spectral_distance(made, sound, window) for window in windows) / len(windows)
        return {"loss": 2 * wave + spectra, "wave": wave, "spectra": spectra}

    return train_repeatedly("vocoder", folder, vocoder, settings.schedules, losses_of)


def _spectral_distance(made: Tensor, sound: Tensor, window: Tensor) -> Tensor:
    """Mean distance of magnitudes, relative to the sound's, and of their logarithms down to -60 dB.

    Below, silence would count for so much that a first, rough tone would be worse than none.
    """
    size, floor = len(window), 1e-3 * window.sum() / 2
    spectra = [
        torch.stft(x, size, size // 4, window=window, return_complex=True).abs()
        for x in (made, sound)
    ]
    logarithms = [spectrum.clamp(min=floor).log10() for spectrum in spectra]
    error, power = (x.square().mean((1, 2)).sqrt() for x in (spectra[0] - spectra[1], spectra[1]))
    return (error / (power + QUIET * window.norm())).mean() + functional.l1_loss(*logarithms)
