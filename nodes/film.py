"""Films of several clips: a clip that goes on from another, and both joined."""

import math
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..ovi_model.config import FRAME_RATE, SAMPLE_RATE
from ..ovi_model.core_facts import advanced, choose, search_aliases
from ..ovi_model.latent import continuation, held_sound, overlap
from ..ovi_model.latent.pictures import to_rgb
from ..ovi_model.save.frames_on_disk import join_on_disk
from ..ovi_model.save.join import check_film, join_sound, own_frames
from ..ovi_model.save.sound import read_sound, resample
from .latents import MOST_FRAMES


class OviContinue(io.ComfyNode):
    """The end of a film to the latent of the clip that comes after it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviContinue",
            display_name="Ovi Continue",
            category="Ovi/latent",
            **search_aliases("extend video", "longer video", "continue"),
            description="Starts the clip that comes after a film: the film's last 13 frames and "
            "their sound are held at its beginning, the rest is made. After sampling and decoding, "
            "'Ovi Join' puts both together.",
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The film so far, or its last clip, at least 13 frames at 24 a second; "
                    "width and height multiples of 32 pixels. From 'Ovi Decode', 'Ovi Join', or a "
                    "loaded video through 'Get Video Components'.",
                ),
                io.Audio.Input(
                    "audio",
                    tooltip="Its sound, of the same length: any sample rate, 1 to 8 channels, "
                    "which are mixed down.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="Wan 2.2 video VAE (48 channels): 'Load VAE' with "
                    "wan2.2_vae.safetensors.",
                ),
                io.Vae.Input("audio_vae", tooltip="The VAE of 'Ovi Audio VAE Loader'."),
                io.Float.Input(
                    "seconds",
                    default=4.5,
                    min=0.0,
                    max=MOST_FRAMES / FRAME_RATE,
                    step=0.5,
                    round=False,
                    tooltip="Seconds that the film grows by, to the nearest 1/6. The clip is 13 "
                    "frames longer: 4.5 s make the trained 121 frames, 9.5 s the 241 of the 10 s "
                    "model.",
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    round=False,
                    optional=True,
                    tooltip="Frames a second of the film: connect that of 'Get Video Components'. "
                    "Anything but 24 is refused in words.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="Picture and sound of the new clip, for any sampler.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, images, audio, vae, audio_vae, seconds: float, fps: float = 24.0
    ) -> io.NodeOutput:
        """Return the latent of the next clip."""
        continuation.check_frame_rate(fps)
        length = overlap.length_of(seconds)
        film = read_sound("audio", audio)
        check_film("images", images, "audio", film)
        vae_rate = held_sound.rate_of(audio_vae, "Ovi Continue")
        end = continuation.end_of_sound(film.waveform, film.rate, len(images))
        mono = end.mean(dim=0, keepdim=True)
        known = resample(
            mono, film.rate, SAMPLE_RATE, math.ceil(end.shape[1] * SAMPLE_RATE / film.rate)
        )
        at_16k = continuation.sound_to_encode(known, length)
        samples = round(at_16k.shape[1] * vae_rate / SAMPLE_RATE)
        to_encode = resample(at_16k, SAMPLE_RATE, vae_rate, samples)
        return io.NodeOutput(continuation.continue_film(vae, audio_vae, images, to_encode, length))


def _in_memory(film: Tensor, own: Tensor) -> Tensor:
    return torch.cat([to_rgb(film), own])


def _on_disk(film: Tensor, own: Tensor) -> Tensor:
    return join_on_disk(film, own, Path(folder_paths.get_temp_directory()))


FRAMES = {"on disk": _on_disk, "in memory": _in_memory}


class OviJoin(io.ComfyNode):
    """A film and the clip that goes on from it to one film."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviJoin",
            display_name="Ovi Join",
            category="Ovi/save",
            description="Joins a new clip of 'Ovi Continue' to the film that it goes on from: "
            "frames once, sound placed by time and faded over 40 ms where both have the same. "
            "Chained, it makes a film of any length.",
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The film so far, whose last 13 frames the new clip begins with, at 24 "
                    "frames a second.",
                ),
                io.Audio.Input(
                    "audio",
                    tooltip="Its sound, of the same length. The joined sound has its sample rate.",
                ),
                io.Image.Input(
                    "new_images",
                    tooltip="The new clip as 'Ovi Decode' gives it, of the film's width and height "
                    "in pixels; its first 13 frames are left out.",
                ),
                io.Audio.Input(
                    "new_audio",
                    tooltip="Its sound: brought to the film's sample rate and channels, turned up "
                    "or down by at most 6 dB and moved by at most 8 ms to fit the film's.",
                ),
                io.Combo.Input(
                    "frames",
                    options=list(FRAMES),
                    default="on disk",
                    tooltip="Where the joined frames are kept. On disk: in ComfyUI's temp folder, "
                    "a film of many joins once, 12 bytes a pixel and frame (0.3 GB a second at 960 "
                    "x 960). In memory: each join is a film of its own.",
                    **advanced(),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "joined_images", display_name="images", tooltip="All frames of both, in order."
                ),
                io.Audio.Output(
                    "joined_audio",
                    display_name="audio",
                    tooltip="The sound of both, exactly as long as the frames, at the film's "
                    "sample rate.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images, audio, new_images, new_audio, frames: str) -> io.NodeOutput:
        """Return the frames [N, H, W, 3] and the sound [1, C, samples] of both."""
        keep = choose("frames", frames, FRAMES)
        film, new = read_sound("audio", audio), read_sound("new_audio", new_audio)
        check_film("images", images, "audio", film)
        check_film("new_images", new_images, "new_audio", new)
        own = own_frames(images, new_images)
        sound = join_sound(film, new, (len(images), len(new_images)))
        joined = {"waveform": sound.waveform[None], "sample_rate": sound.rate}
        return io.NodeOutput(keep(images, own), joined)
