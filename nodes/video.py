"""Frames and sound become a video file, shown in the node and handed on as VIDEO."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
from comfy_api.latest import InputImpl, Types, io, ui

from ..ovi_model.core_facts import choose, search_aliases
from ..ovi_model.log import log
from ..ovi_model.save.containers import CONTAINERS, Container
from ..ovi_model.save.file_name import check_prefix, with_name
from ..ovi_model.save.mux import Clip, split_clips, write_clip
from .output_folder import next_file, workflow_tags

PREVIEW, PREVIEW_QUALITY = CONTAINERS["webm"], 50  # takes every picture size, and browsers play it


class OviSaveVideo(io.ComfyNode):
    """Frames and their sound to one file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviSaveVideo",
            display_name="Ovi Save Video",
            category="Ovi/save",
            **search_aliases("sound", "mux", "video with audio"),
            description="Saves frames and their sound as one video file, in sync, with the "
            "workflow inside.",
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
                    tooltip="Frames a second. Ovi makes 24; 23.976, 29.97 and 59.94 are taken as "
                    "24000/1001 and so on.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The sound, mono or stereo, any sample rate; cut or filled with "
                    "silence to the length of the frames. A batch of sounds saves one file each. "
                    "Without it the video is silent.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/Ovi",
                    tooltip="Folder and name inside ComfyUI's output folder; a free number is "
                    "added. %date:yyyy-MM-dd%, %width% and the like are filled in.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(CONTAINERS),
                    tooltip="mp4: H.264 and AAC, plays everywhere, even sizes only. webm: VP9 and "
                    "Opus. mov: 10-bit ProRes and 24-bit PCM for video editors, large files.",
                ),
                io.Int.Input(
                    "quality",
                    default=80,
                    min=0,
                    max=100,
                    tooltip="Of the pictures, 0 (smallest file) to 100 (best). mp4: crf 50 to 10 "
                    "(80 is 18). webm: crf 60 to 15 (80 is 24). mov: Proxy from 0, LT from 25, "
                    "Standard from 50, HQ from 75.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="The saved video; of a batch, the first."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images,
        fps,
        filename_prefix,
        format,  # noqa: A002
        quality,
        audio=None,
    ) -> io.NodeOutput:
        """Write a file for each clip and show them; return the first as VIDEO."""
        check_prefix(filename_prefix)
        clips = split_clips(images, fps, audio)
        container = choose("format", format, CONTAINERS)
        progress = comfy.utils.ProgressBar(len(images) * (1 if container.is_streamable else 2))

        def on_frame() -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update(1)

        saver = _Saver(with_name(filename_prefix), on_frame)
        paths, shown = [], []
        for clip in clips:
            path, result = saver.save(
                clip, container, quality, io.FolderType.output, workflow_tags(cls.hidden)
            )
            paths.append(path)
            shown += [result] if container.is_streamable else saver.preview(clip, path.name)
        return io.NodeOutput(_as_video(paths[0], clips[0], container), ui=ui.PreviewVideo(shown))


@dataclass(frozen=True)
class _Saver:
    """Saves the clips of one run. on_frame: called after each frame, and may stop the work."""

    prefix: str
    on_frame: Callable[[], None]

    def save(
        self, clip: Clip, container: Container, quality: int, kind: io.FolderType, metadata: dict
    ) -> tuple[Path, ui.SavedResult]:
        """Return the file, and how the page is told of it."""
        height, width = clip.frames.shape[1:3]
        first, subfolder = next_file(self.prefix, (width, height), container.suffix, kind, "video")
        path = write_clip(first, clip, container, quality, metadata, self.on_frame)
        return path, ui.SavedResult(path.name, subfolder, kind)

    def preview(self, clip: Clip, name: str) -> list[ui.SavedResult]:
        """Return what the page plays in place of a saved file; nothing, and a warning, if that
        fails, for the file is saved.
        """
        try:
            return [self.save(clip, PREVIEW, PREVIEW_QUALITY, io.FolderType.temp, {})[1]]
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # noqa: BLE001
            reason = error.__cause__ or error
            log.warning("%s is saved, but cannot be shown in the node: %s", name, reason)
            return []


def _as_video(
    path: Path, clip: Clip, container: Container
) -> InputImpl.VideoFromFile | InputImpl.VideoFromComponents:
    """The saved file, or its frames and sound where stock nodes of ComfyUI 0.3.75 misread the
    file's PCM.
    """
    if container.is_streamable:
        return InputImpl.VideoFromFile(str(path))
    audio = (
        None
        if clip.waveform is None
        else {"waveform": clip.waveform[None], "sample_rate": clip.sample_rate}
    )
    return InputImpl.VideoFromComponents(Types.VideoComponents(clip.frames, clip.frame_rate, audio))
