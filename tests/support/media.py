"""Saves clips for the tests and decodes what was saved."""

from types import SimpleNamespace

import av
import numpy as np
import torch
from comfyui_ovi.ovi_model.save import containers, mux


def save(
    folder,
    format_name,
    images,
    fps=24,
    audio=None,
    quality=80,
    metadata=None,
    on_frame=lambda: None,
):
    (clip,) = mux.split_clips(images, fps, audio)
    path = folder / f"clip.{format_name}"
    return mux.write_clip(
        path, clip, containers.CONTAINERS[format_name], quality, metadata or {}, on_frame
    )


def make_audio(samples, sample_rate=16000, channels=1, batch=1):
    return {"waveform": torch.zeros(batch, channels, samples), "sample_rate": sample_rate}


def decode(path):
    """Frames as [N, H, W, 3] of BT.709, their seconds, sound [C, L] and its rate, and the stream
    facts.
    """
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        pictures = list(file.decode(video))
        facts = SimpleNamespace(
            rate=video.average_rate,
            primaries=video.codec_context.color_primaries,
            transfer=video.codec_context.color_trc,
            matrix=video.codec_context.colorspace,
            video_codec=video.codec_context.name,
            pixel_format=video.codec_context.pix_fmt,
            seconds=file.duration / av.time_base,
            tags=dict(file.metadata),
        )
    facts.frames = np.stack([to_rgb(picture) for picture in pictures])
    facts.times = [picture.time for picture in pictures]
    facts.sound, facts.sound_rate, facts.sound_start, facts.sound_seconds = decode_sound(path)
    return facts


def to_rgb(picture):
    """[H, W, 3] from 0 to 1, by the equations of BT.709 in limited range; PyAV 14 would read every
    file as BT.601.
    """
    luma, blue, red = picture.reformat(format="yuv444p").to_ndarray().astype(float)
    luma, blue, red = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    rgb = np.stack(
        [luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue], axis=-1
    )
    return rgb.clip(0, 1)


def decode_sound(path):
    with av.open(str(path)) as file:
        if not file.streams.audio:
            return None, None, None, None
        stream = file.streams.audio[0]
        resampler = av.AudioResampler(format="fltp")
        decoded = list(file.decode(stream))
        start, rate = decoded[0].time, decoded[0].sample_rate
        chunks = [
            chunk.to_ndarray() for frame in [*decoded, None] for chunk in resampler.resample(frame)
        ]
        sound = np.concatenate(chunks, axis=1)
        seconds = (
            float(stream.duration * stream.time_base) if stream.duration else sound.shape[1] / rate
        )
    return sound, rate, start, seconds
