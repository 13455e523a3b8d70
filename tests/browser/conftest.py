"""ComfyUI's page in two versions: the one this ComfyUI comes with, and the newest that is known to
run.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import runtime as builder
import torch
from browser import NoBrowserError, find_chromium
from comfy_server import running_server
from PIL import Image
from recording import write_tone, write_training_clips, write_video
from safetensors.torch import load_file, save_file
from small_files import SMALL_FILES
from workflow_files import files_asked

REQUIREMENT = builder.TOOLS / "requirements-frontend.txt"
NEWEST = "newest page"


def newest_page() -> Path:
    """Return the folder of the newest page, kept beside the built runtime; installed when it is not
    there yet.
    """
    folder = builder.runtime_folder() / f"frontend-{builder.hash_of(REQUIREMENT)[:12]}"
    if not folder.is_dir():
        builder.install_page(folder, REQUIREMENT)
    return folder / "comfyui_frontend_package" / "static"


@pytest.fixture(scope="session")
def open_page() -> Callable[[str], AbstractContextManager]:
    """comfy_page.open_page in this machine's Chromium; without one tests skip, but fail in CI."""
    try:
        chromium = find_chromium()
    except NoBrowserError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    from comfy_page import open_page  # imports playwright, which is there now

    return partial(open_page, chromium=chromium)


@pytest.fixture(scope="module", params=["own page", NEWEST])
def served(request, open_page, small_files, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A server with the small checkpoints under the names that the workflows have, and its page."""
    base = tmp_path_factory.mktemp("browser")
    shutil.copytree(small_files, base / "models", dirs_exist_ok=True)
    name_as_released(base / "models")
    (base / "input").mkdir()
    picture = base / "input" / "example.png"  # ComfyUI brings one of this name
    Image.new("RGB", (96, 128), "teal").save(picture)
    write_tone(base / "input" / "recording.wav", hertz=440, seconds=2.0)
    write_video(base / "input" / "clip.mp4", (33, 64, 96))
    write_training_clips(base / "input" / "training_clips")
    flags = ["--front-end-root", str(newest_page())] if request.param == NEWEST else []
    with (
        running_server(Path(os.environ["COMFYUI_PATH"]).resolve(), base, flags=flags) as server,
        open_page(server.url) as page,
    ):
        yield SimpleNamespace(
            server=server, page=page, base=base, is_newest=request.param == NEWEST
        )


@pytest.fixture
def page(served):
    """The page with nothing open and an empty canvas."""
    served.page.clear()
    return served.page


@pytest.fixture(scope="session")
def small() -> dict[str, object]:
    """Widgets by name that make any workflow small."""
    return {
        "width": 64,
        "height": 64,
        "size": 64,
        "length": 5,
        "steps": 2,
        "second_steps": 2,
        "model_area": "720x720",
        "skip_layer": -1,
    }


def name_as_released(models: Path) -> None:
    """Give the small files the names that the shared workflows ask for."""
    for entry, names in files_asked().items():
        small = next(models.rglob(SMALL_FILES[entry]))
        for name in names:
            released = small.with_name(name)
            if released.suffix == small.suffix:
                shutil.copy(small, released)
            elif small.suffix == ".safetensors":
                torch.save(load_file(small), released)
            else:
                weights = torch.load(small, weights_only=True)
                save_file(weights.get("generator", weights), released)
