"""A clip as one picture, and the clip itself where a page plays it."""

import functools
import itertools
from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..ovi_model.core_facts import search_aliases
from ..ovi_model.latent.pictures import to_rgb
from ..ovi_model.log import log
from ..ovi_model.preview.contact_sheet import (
    TIME_AXIS,
    Sound,
    Spans,
    draw_sheet,
    fit,
    frames_on_sheet,
)
from ..ovi_model.preview.speech import find_speech
from ..ovi_model.save.mux import Clip, split_clips
from .output_folder import write_for_page

MAX_SPANS = 8  # of speech in the title
PLAYED = "ovi_clips"  # beside "images", in what pages and clients are told


class OviPreview(io.ComfyNode):
    """Frames and their sound to a contact sheet, shown in the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviPreview",
            display_name="Ovi Preview",
            category="Ovi/preview",
            **search_aliases("waveform", "contact sheet", "speech"),
            description="Shows a clip as one picture: eight frames over the waveform on one time "
            "axis, speech marked. The page plays it above, from where you click. It is for looking "
            "and listening, nothing is saved.",
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The frames, in order; the clips of a batch one after the other.",
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=0.01,
                    max=1000.0,
                    step=0.001,
                    tooltip="Frames a second.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The sound, mono or stereo, any sample rate. A batch of sounds makes "
                    "one picture each. What sounds like a voice is marked; an instrument may pass "
                    "for one.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="sheet",
                    tooltip="The picture, 2040 pixels wide; one for each clip.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor, fps: float, audio: dict | None = None) -> io.NodeOutput:
        """Return the sheets [B, H, W, 3]."""
        clips = split_clips(images, fps, audio)
        progress = comfy.utils.ProgressBar(100 * len(clips))

        def on_part(place: int, done: float) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update_absolute(round(50 * (place + done)))

        sheets = torch.stack(
            [_sheet(clip, functools.partial(on_part, place)) for place, clip in enumerate(clips)]
        )
        shown = ui.PreviewImage(sheets, cls=cls).as_dict()
        played = _write_clips(clips, lambda place, done: on_part(len(clips) + place, done))
        return io.NodeOutput(sheets, ui={**shown, PLAYED: played})


def _write_clips(
    clips: list[Clip], on_part: Callable[[int, float], None]
) -> list[dict[str, object]]:
    """Write the clips for the player of the page (web/js/player.js), and return what it is told of
    each; nothing, and a warning, if that fails, for the sheets are there.
    """
    try:
        return [
            _write_clip(clip, functools.partial(on_part, place)) for place, clip in enumerate(clips)
        ]
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # noqa: BLE001
        reason = error.__cause__ or error
        log.warning("Ovi Preview shows its picture, but cannot play the clip: %s", reason)
        return []


def _write_clip(clip: Clip, on_part: Callable[[float], None]) -> dict[str, object]:
    """The file as any page knows it, its seconds, and where they begin and end on the sheet."""
    frames = itertools.count(1)
    saved = write_for_page("Ovi_preview", clip, lambda: on_part(next(frames) / len(clip.frames)))
    return {**saved, "seconds": float(len(clip.frames) / clip.frame_rate), "axis": TIME_AXIS}


def _sheet(clip: Clip, on_part: Callable[[float], None]) -> Tensor:
    """The sheet of one clip [H, W, 3], 0 to 1; its title tells when somebody speaks.

    on_part: told which part of the work is done, 0 to 1, and may stop it.
    """
    on_part(0)
    frames, height, width = clip.frames.shape[:3]
    pictures = [_picture(clip.frames[index]) for index in frames_on_sheet(frames)]
    sound, title = Sound(torch.zeros(0).numpy(), 0), ""
    if clip.waveform is not None:
        waveform = clip.waveform[:, : clip.samples].float().cpu()
        speech = find_speech(waveform, clip.sample_rate, on_part)
        whole = clip.waveform.shape[1] / clip.sample_rate
        sound = Sound(waveform.mean(0).numpy(), clip.sample_rate, len(waveform), speech, whole)
        title = _tell(speech)
    sheet = draw_sheet(title, (width, height), frames, float(clip.frame_rate), pictures, sound)
    on_part(1)
    return (
        torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(
            sheet.height, sheet.width, 3
        )
        / 255
    )


def _tell(speech: Spans) -> str:
    """When somebody speaks, in a line that leaves room for the facts beside it."""
    if not speech:
        return "no speech found"
    spans = ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in speech[:MAX_SPANS])
    return f"speech {spans}{' and so on' if len(speech) > MAX_SPANS else ''}"


def _picture(frame: Tensor) -> Image.Image:
    """A frame [H, W, 1, 3 or 4], 0 to 1, at the size of the sheet; an alpha is dropped, as when it
    is saved.
    """
    colours = to_rgb(frame).nan_to_num().clamp(0, 1)
    return fit(Image.fromarray((colours * 255).round().byte().cpu().numpy()))
