"""Makes docs/weights.md, the table of every weight file people have, from the lists that the tests
load.
"""

from collections.abc import Iterable
from dataclasses import dataclass
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

Two other models have Ovi's own 2,073 tensors, so every loader takes them, and only their names tell
them from Ovi. **DreamID-Omni** (`dreamid_omni.safetensors`, said to be fp32, about 46.6 GB;
`dreamid_omni.bf16.safetensors`, 23.3 GB) takes faces and voices through *Ovi References*;
**Hallo-Live** (`hallolive_dit.pt`) is for *Ovi Streaming Sampler*. Where a file's name says that it
is Ovi's or Hallo-Live's, a line in the log says that references are not what it was trained for;
ComfyUI's own loaders before 0.33 do not keep the name. A file renamed to hold `dreamid` is taken by
its name. Neither was tried with its published file.
"""

CONVERTED = """
### What the converter makes of them

`python tools/convert_checkpoint.py` ([convert.md](convert.md)) gives fewer bits to the linear
layers of blocks, 10.95 of 11.66 billion numbers, and keeps the rest in bf16. *Size* is counted on
the shapes of the published file. *Error* is that of one forward of the miniature, relative: with
quantised weights alone, and with what the layers read quantised too, as a card does that multiplies
such numbers; int8 is never multiplied otherwise. 48 clips of the miniature are judged as in its
results (`miniature/training/RESULTS.md` in the repository), with products quantised, on a
processor; in brackets the 95 % interval of Wilson. All intervals overlap: on so many clips no
target is told from bf16, and a model of 12 billion numbers may answer otherwise. Measured by
`python benchmarks/quantised.py --comfyui PATH --work FOLDER --clips 48`.
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


@dataclass(frozen=True)
class Converted:
    """What was counted and measured of one target of the converter."""

    target: str
    size: str  # of the published model, GB
    bits: str  # a number of blocks, a number of the whole model
    cores: str
    multiplied: str
    error: str
    judged: str  # sync, colour, pitch


EVERY, NEW = "0.3.75 and later", "with comfy-kitchen"
CONVERSIONS = (
    Converted(
        "bf16",
        "23.3",
        "16, 16",
        EVERY,
        "in full",
        "0",
        "97.0 % (92 to 99); 100 % (93 to 100); 100 % (93 to 100)",
    ),
    Converted(
        "fp8",
        "12.4",
        "8.00, 8.49",
        EVERY,
        "in full",
        "1.2 %",
        "96.0 % (90 to 98); 100 % (93 to 100); 100 % (93 to 100)",
    ),
    Converted(
        "fp8-product",
        "12.4",
        "8.00, 8.49",
        EVERY,
        "fp8",
        "1.2 %, 1.6 %",
        "94.1 % (88 to 97); 100 % (93 to 100); 100 % (93 to 100)",
    ),
    Converted(
        "int8",
        "12.4",
        "8.00, 8.49",
        NEW,
        "int8",
        "0.8 %",
        "99.0 % (95 to 100); 100 % (93 to 100); 100 % (93 to 100)",
    ),
    Converted(
        "int8-convrot",
        "12.4",
        "8.01, 8.50",
        NEW,
        "int8",
        "0.4 %",
        "97.0 % (92 to 99); 100 % (93 to 100); 100 % (93 to 100)",
    ),
    Converted(
        "mxfp8",
        "12.7",
        "8.25, 8.72",
        NEW,
        "mxfp8",
        "1.1 %, 1.5 %",
        "99.0 % (94 to 100); 100 % (93 to 100); 100 % (93 to 100)",
    ),
    Converted(
        "nvfp4",
        "7.6",
        "4.50, 5.20",
        NEW,
        "nvfp4",
        "3.7 %, 5.2 %",
        "95.0 % (89 to 98); 100 % (93 to 100); 100 % (93 to 100)",
    ),
)


def page() -> str:
    """Return the whole page."""
    encoders = {
        kind: [row for row in ENCODER_LAYOUTS if row.kind == kind]
        for kind in (TEXT, VIDEO_VAE, AUDIO_VAE)
    }
    sections = [MODELS + table(LAYOUTS, "diffusion_models"), CONVERTED + table_of_conversions()]
    for words, rows in zip((TEXT_ENCODERS, VIDEO_VAES, AUDIO_VAES), encoders.values(), strict=True):
        sections.append(words + table(rows, rows[0].folder))
    return HEAD + "".join(sections)


def table_of_conversions() -> str:
    """One line a target: its size, where it loads, what it costs."""
    lines = [
        "",
        "| `--to` | size, GB | bits a number: blocks, all | ComfyUI | multiplied | error | "
        "in sync; colour; pitch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in CONVERSIONS:
        cells = row.size, row.bits, row.cores, row.multiplied, row.error, row.judged
        lines.append(f"| `{row.target}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
