"""Holding: pictures, a recording or spans of seconds that a clip keeps while the rest is made."""

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..ovi_model.config import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_STEP
from ..ovi_model.core_facts import advanced, choose, search_aliases
from ..ovi_model.latent import held_pictures, held_sound, hold, spans, time_mask
from ..ovi_model.latent.latents import streams
from ..ovi_model.preview.held_bars import Part, draw_held
from ..ovi_model.save.sound import read_sound, resample
from .latents import MOST_FRAMES

UNITS = ("frames", "seconds")
MOST_SECONDS = MOST_FRAMES / FRAME_RATE


def _seconds(name: str, tooltip: str, **more: bool) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=0.0,
        min=0.0,
        max=MOST_SECONDS,
        step=0.001,
        round=False,
        tooltip=tooltip,
        **more,
    )


def _latent() -> tuple[io.Latent.Input, io.Latent.Output]:
    return (
        io.Latent.Input(
            "latent",
            tooltip="Picture and sound, from 'Ovi Latent', another holding node, or a sampler.",
        ),
        io.Latent.Output(
            "held_latent",
            display_name="latent",
            tooltip="The same with what is held, for samplers and further holding nodes.",
        ),
    )


class OviHoldPictures(io.ComfyNode):
    """A picture at a frame, or a video over a span, that a clip keeps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        taken, given = _latent()
        return io.Schema(
            node_id="OviHoldPictures",
            display_name="Ovi Hold Pictures",
            category="Ovi/latent",
            **search_aliases("keyframe", "first last frame", "image to video"),
            description="Keeps a picture at any frame of the clip (first, last, between), or the "
            "frames of a video over a span. The rest is made to fit. The node shows what is held.",
            inputs=[
                taken,
                io.Vae.Input(
                    "vae",
                    tooltip="Wan 2.2 video VAE (48 channels): 'Load VAE' with "
                    "wan2.2_vae.safetensors.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="One picture, or the frames of a video at 24 frames a second, in "
                    "order. Scaled to the clip's size and cut at the centre; the same for all "
                    "clips of a batch.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=-MOST_FRAMES,
                    max=MOST_FRAMES,
                    step=0.001,
                    round=False,
                    tooltip="Where the first of the images is, in frames or seconds: 0 is the "
                    "first frame of the clip; below 0 counts from the end, -1 frames is the last.",
                ),
                io.Combo.Input(
                    "unit",
                    options=list(UNITS),
                    default="frames",
                    tooltip="What start counts: frames, 24 a second, or seconds, which mean the "
                    "nearest frame.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1 keeps the images as they are. From 0 to 1, the less, the more of "
                    "them is made anew.",
                ),
                io.Combo.Input(
                    "keyframe",
                    options=list(held_pictures.KEYFRAMES),
                    default="clean",
                    tooltip="For one picture that is not the first frame: given to the model "
                    "clean, or noised to the level of each step, as spans are. On the miniature "
                    "clean keeps it far better. Of strength 1 alone.",
                    **advanced(),
                ),
            ],
            outputs=[given],
        )

    @classmethod
    def execute(
        cls, latent, vae, images, start: float, unit: str, strength: float, keyframe: str
    ) -> io.NodeOutput:
        """Return the latent that holds the images."""
        choose("keyframe", keyframe, held_pictures.KEYFRAMES)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength:g}; it must be from 0 to 1.")
        first = _frame_of(start, choose("unit", unit, {name: name for name in UNITS}))
        held = held_pictures.hold_pictures(vae, latent, images, first, strength, keyframe)
        return io.NodeOutput(held, ui=_bars(held, cls))


class OviHoldSound(io.ComfyNode):
    """A recording that a clip keeps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        taken, given = _latent()
        return io.Schema(
            node_id="OviHoldSound",
            display_name="Ovi Hold Sound",
            category="Ovi/latent",
            **search_aliases("lip sync", "audio to video", "voice", "recording", "speech to video"),
            description="Keeps a recording over a span of seconds, or for the whole clip, so that "
            "the picture is made to it. Hands the recording on for saving. The node shows what is "
            "held.",
            inputs=[
                taken,
                io.Vae.Input("audio_vae", tooltip="The VAE of 'Ovi Audio VAE Loader'."),
                io.Audio.Input(
                    "audio",
                    tooltip="The recording: any sample rate, 1 to 8 channels, which are mixed "
                    "down. Cut where the span ends; silence follows where it is shorter.",
                ),
                _seconds("start", "Where the recording begins in the clip, in seconds."),
                _seconds("end", "Where it ends in the clip, in seconds. 0: the end of the clip."),
            ],
            outputs=[
                given,
                io.Audio.Output(
                    "recording",
                    display_name="audio",
                    tooltip="The recording at its place in the clip, at its own sample rate, "
                    "mono or stereo, with silence around it: for saving.",
                ),
            ],
        )

    @classmethod
    def execute(cls, latent, audio_vae, audio, start: float, end: float) -> io.NodeOutput:
        """Return the latent that holds the recording, and the recording [1, C, samples] as long as
        the clip.
        """
        video, made = streams(latent, "latent")
        seconds = spans.seconds_of(video.shape[2])
        span = start, spans.check_span(start, end, video.shape[2])
        vae_rate = held_sound.rate_of(audio_vae)
        heard, rate = read_sound("audio", audio)
        placed = held_sound.place(heard, rate, span, seconds)
        mono = placed.mean(dim=0, keepdim=True)
        original = _at(mono, rate, SAMPLE_RATE, seconds)
        # As in training: the sound ends with its last step, a little before or after the picture.
        # What is encoded beyond it changes the last five steps.
        of_steps = made.shape[2] * SAMPLES_PER_STEP / SAMPLE_RATE
        to_encode = _at(mono, rate, vae_rate, of_steps)
        held = held_sound.hold_sound(audio_vae, latent, to_encode, original, span)
        recording = {"waveform": placed[None], "sample_rate": rate}
        return io.NodeOutput(held, recording, ui=_bars(held, cls))


class OviTimeMask(io.ComfyNode):
    """A span of seconds that is made anew, the rest of a clip held."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        taken, given = _latent()
        return io.Schema(
            node_id="OviTimeMask",
            display_name="Ovi Time Mask",
            category="Ovi/latent",
            description="Makes a span of seconds of a clip anew and keeps what is outside it. "
            "Masks of several nodes multiply: what one of them holds stays held. The node shows "
            "what is held.",
            inputs=[
                taken,
                _seconds("start", "Where the span starts, in seconds."),
                _seconds(
                    "end",
                    "Where the span ends, in seconds; the end itself is outside. 0: the end of "
                    "the clip.",
                ),
                io.Combo.Input(
                    "streams",
                    options=list(time_mask.STREAMS),
                    default="picture and sound",
                    tooltip="Which mask is changed. Latent frames (0.167 s) and audio steps "
                    "(0.032 s) are made anew where they lie in the span as a whole.",
                ),
                _seconds(
                    "ramp",
                    "Seconds inside the span in which the mask rises from 0 to 1 at each edge. 0: "
                    "a hard edge.",
                    **advanced(),
                ),
            ],
            outputs=[given],
        )

    @classmethod
    def execute(cls, latent, start: float, end: float, streams: str, ramp: float) -> io.NodeOutput:
        """Return the latent with masks that open the span."""
        kind = choose("streams", streams, {name: name for name in time_mask.STREAMS})
        if ramp < 0:
            raise ValueError(f"ramp is {ramp:g} s; it must be 0 or more.")
        held = time_mask.open_span(latent, start, end, kind, ramp)
        return io.NodeOutput(held, ui=_bars(held, cls))


def _frame_of(start: float, unit: str) -> int:
    """Return a frame, below 0 from the end, of frames or seconds.

    Raises ValueError for a part of a frame.
    """
    if unit == "seconds":
        return round(start * FRAME_RATE)
    if start != round(start):
        raise ValueError(
            f"start is {start:g} frames; it must be a whole number of frames. For a time choose "
            "the unit seconds."
        )
    return round(start)


def _at(mono: Tensor, rate: int, new_rate: int, seconds: float) -> Tensor:
    """Return so much of a sound [1, samples] at another rate in Hz, silence where it is short."""
    samples = round(seconds * new_rate)
    made = resample(mono, rate, new_rate, samples)
    return torch.nn.functional.pad(made, (0, samples - made.shape[1]))


def _bars(latent: dict, cls: type[io.ComfyNode]) -> ui.PreviewImage:
    """Show what a latent holds, of the first clip."""
    video, audio = time_mask.masks_of(latent)
    length, steps = video.shape[2], audio.shape[2]
    seconds = spans.seconds_of(length)
    clean = hold.clean_frames(video, None)
    picture = [
        Part(
            spans.frames_in(index).start / FRAME_RATE,
            spans.frames_in(index).stop / FRAME_RATE,
            float(video[0, 0, index].mean()),
            bool(clean[0, 0, index]),
        )
        for index in range(length)
    ]
    step = SAMPLES_PER_STEP / SAMPLE_RATE
    sound = [
        Part(
            min(seconds, index * step),
            seconds if index == steps - 1 else min(seconds, (index + 1) * step),
            float(audio[0, 0, index]),
        )
        for index in range(steps)
    ]
    image = draw_held(picture, sound, seconds)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return ui.PreviewImage(pixels.view(1, image.height, image.width, 3) / 255, cls=cls)
