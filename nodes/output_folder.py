"""Where nodes save: the next free number in ComfyUI's output folder, and the workflow inside."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..ovi_model.save.containers import FOR_PAGE
from ..ovi_model.save.mux import Clip, write_clip

QUALITY = 60  # of what a page plays, 0 to 100
# ComfyUI empties its temp folder when it starts, while pages may still ask for what was there.
THIS_START = secrets.token_hex(3)


def next_file(
    prefix: str, size: tuple[int, int], suffix: str, kind: io.FolderType, what: str
) -> tuple[Path, str]:
    """Return the next free numbered name, as stock save nodes count, and its folder for the page.

    size: width and height in pixels, for names that hold them.
    Raises OSError with the folder if it cannot be made or read.
    """
    root = folder_paths.get_directory_by_type(kind.value)
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root, *size)
    except OSError as error:
        raise OSError(
            error.errno, f"the {what} could not be saved: {error.strerror}", error.filename
        ) from error
    return Path(folder, f"{name}_{max(counter, 1):05}_{suffix}"), subfolder


def write_for_page(prefix: str, clip: Clip, on_frame: Callable[[], None]) -> ui.SavedResult:
    """Write a clip small, where files do not stay, and return how the page is told of it.

    on_frame: called after each frame, and may stop the work.
    """
    height, width = clip.frames.shape[1:3]
    kind = io.FolderType.temp
    prefix = f"{prefix}_{THIS_START}"
    first, subfolder = next_file(prefix, (width, height), FOR_PAGE.suffix, kind, "clip to play")
    path = write_clip(first, clip, FOR_PAGE, QUALITY, {}, on_frame)
    return ui.SavedResult(path.name, subfolder, kind)


def workflow_tags(hidden) -> dict[str, str]:
    """Return the tags that bring the workflow back when the file is dropped on the canvas."""
    if args.disable_metadata:
        return {}
    tags = {**(hidden.extra_pnginfo or {}), "prompt": hidden.prompt}
    return {name: json.dumps(value) for name, value in tags.items() if value is not None}
