"""What is measured, as data: one Row for each line of the table, in the order of measuring."""

from __future__ import annotations

from dataclasses import dataclass

BASE = "960x960 5 s"
# Names of clips in benchmarks/clips.py.
FORWARD_CLIPS = ("704x704 5 s", BASE, "704x704 10 s", "960x960 10 s")
DECODE_CLIPS = ("704x704 5 s", BASE, "960x960 10 s")
WHOLE_CLIPS = ("704x704 5 s", BASE)
# Core's names of its attention functions.
KERNELS = ("flash", "sage", "sage3", "xformers", "comfy_kitchen_int8", "split", "sub_quad")
# Core's names of its quantised layouts; the last is one of them with its weights rotated.
LAYOUTS = (
    "float8_e4m3fn",
    "float8_e5m2",
    "int8_tensorwise",
    "mxfp8",
    "nvfp4",
    "convrot_w4a4",
    "asym_w4a8_int8",
    "int8_tensorwise+convrot",
)
GOLDENS = ("fp32", "bf16", "float8_e4m3fn", "int8_tensorwise")
SHORT = ("float8_e4m3fn", "int8_tensorwise")
GIGABYTES = (8, 12, 16)
# Steps of a whole clip; reckoned from fewer where it is the full schedule.
STEPS = (50, 8, 6)
RECKONED_STEPS = 50


@dataclass(frozen=True)
class Row:
    """One measurement.

    kind: who measures it; precision: of the weights, or a layout; kernel: core's name of an
    attention; gigabytes: all of the card that may be used, 0 for all there is; how: of decoding,
    "whole", "tiled" or "tiny"; short: whether it is among the few that matter most.
    """

    kind: str
    clip: str = ""
    precision: str = "bf16"
    kernel: str = "pytorch"
    compiled: bool = False
    gigabytes: int = 0
    how: str = ""
    steps: int = 0
    short: bool = False

    @property
    def name(self) -> str:
        parts = [
            self.kind,
            self.clip,
            f"{self.steps} steps" if self.steps else "",
            self.how,
            "" if self.kind == "decode" else self.precision,
            f"attention {self.kernel}" if self.kernel != "pytorch" else "",
            "compiled" if self.compiled else "",
            f"in {self.gigabytes} GB" if self.gigabytes else "",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def is_reckoned(self) -> bool:
        return self.steps == RECKONED_STEPS


def all_rows() -> list[Row]:
    """Every row; those that share weights stand together."""
    return [
        *(Row("golden", precision=precision, short=True) for precision in GOLDENS),
        *(Row("forward", clip, short=clip == BASE) for clip in FORWARD_CLIPS),
        *(Row("forward", BASE, kernel=kernel, short=kernel == "sage") for kernel in KERNELS),
        *(
            Row("clip", clip, steps=steps, short=clip == BASE and steps != 6)
            for clip in WHOLE_CLIPS
            for steps in STEPS
        ),
        *(
            Row("decode", clip, how=how, short=clip == BASE and how != "tiled")
            for clip in DECODE_CLIPS
            for how in ("whole", "tiled", "tiny")
        ),
        *(Row("forward", BASE, gigabytes=size, short=size == 12) for size in GIGABYTES),
        *(Row("forward", clip, compiled=True, short=clip == BASE) for clip in FORWARD_CLIPS),
        *(Row("forward", BASE, precision=layout, short=layout in SHORT) for layout in LAYOUTS),
    ]


def short_rows() -> list[Row]:
    """The row of each kind that matters most."""
    return [row for row in all_rows() if row.short]
