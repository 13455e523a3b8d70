"""Where nodes save: the next free number in ComfyUI's output folder, and the workflow inside."""

import json
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io


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


def workflow_tags(hidden) -> dict[str, str]:
    """Return the tags that bring the workflow back when the file is dropped on the canvas."""
    if args.disable_metadata:
        return {}
    tags = {**(hidden.extra_pnginfo or {}), "prompt": hidden.prompt}
    return {name: json.dumps(value) for name, value in tags.items() if value is not None}
