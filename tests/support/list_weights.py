"""Makes docs/weights.md, the table of every weight file people have, from the lists that the tests
load.
"""

from collections.abc import Iterable
from pathlib import Path

from encoder_layouts import AUDIO_VAE, ENCODER_LAYOUTS, TEXT, VIDEO_VAE
from weight_layouts import LAYOUTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "weights.md"

HEAD = """# Which file goes where

Every file below loads; a test writes a small one of each layout and compares what it makes with the
plain file's result (`tests/graph/test_layouts.py`). Folders are below `ComfyUI/models`. *Works
since* names the version of this extension; each works with ComfyUI 0.3.75 and later.

This page is written by `python tests/support/write_pages.py`.
"""

MODELS = """
## Ovi: diffusion_models

`a + b` is one release in two files: choose the video file as *model* and the audio file as
*audio_model*. If one half is missing, the node names the other. Files may be renamed: what counts
is what is in them. GGUF files load with the nodes of
[ComfyUI-GGUF](https://github.com/city96/ComfyUI-GGUF).

Nothing in a file tells Ovi 1.0 from 1.1, but its name does. With `960x960` or `ovi1_1` it is 1.1:
*sound_tag* `Audio:`, an area of 960 x 960 (1280 x 704, for example); with `10s` also length 241.
The other published ones are 1.0, by their names and dates: *sound_tag* `<AUDCAP>`, an area of 720 x
720 (960 x 544, for example).
"""

TEXT_ENCODERS = """
## Text encoder: text_encoders

A file without a tokenizer takes it from another umT5 file in the folder. If there is none, the node
says which file to put there. `Load CLIP` reads ComfyUI's own files only.
"""

VIDEO_VAES = """
## Video VAE: vae
"""

AUDIO_VAES = """
## Audio VAE and vocoder: vae

`Load VAE` reads the file that holds both. `python tools/convert_checkpoint.py` makes one of two:
see [convert.md](convert.md).
"""


def page() -> str:
    """Return the whole page."""
    encoders = {
        kind: [row for row in ENCODER_LAYOUTS if row.kind == kind]
        for kind in (TEXT, VIDEO_VAE, AUDIO_VAE)
    }
    sections = [MODELS + table(LAYOUTS, "diffusion_models")]
    for words, rows in zip((TEXT_ENCODERS, VIDEO_VAES, AUDIO_VAES), encoders.values(), strict=True):
        sections.append(words + table(rows, rows[0].folder))
    return HEAD + "".join(sections)


def table(rows: Iterable, folder: str) -> str:
    """One line a file: its name, what it is, its source, loader, folder, version."""
    lines = [
        "",
        "| file | what | from | loader | folder | works since |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        loaders = " or ".join(row.loaders)
        for names in row.names:
            file = (
                names
                if names.startswith("any name")
                else " + ".join(f"`{name}`" for name in names.split(" + "))
            )
            lines.append(
                f"| {file} | {row.what} | {row.source} | {loaders} | `{folder}` | {row.since} |"
            )
    return "\n".join(lines) + "\n"
