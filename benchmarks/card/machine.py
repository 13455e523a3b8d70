"""What rows are measured on: device, sizes, and the models last made, which rows share."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from clips import CLIPS, Clip

GIB = 2**30
Result = TypeVar("Result")
SMALL = {"dim": 256, "ffn_dim": 512, "num_layers": 2, "text_dim": 64, "freq_dim": 32}
SMALL = {**SMALL, "num_heads": 2}
# Seconds after which a row has been run often enough, and how often at most.
ENOUGH, TURNS = 5.0, 3


@dataclass
class Machine:
    """A device, and whether everything is small."""

    device: torch.device
    small: bool
    decoded: dict[tuple, dict] = field(default_factory=dict, repr=False)  # by clip and way
    kept: dict[str, tuple] = field(default_factory=dict, repr=False)  # by sort: its key, itself

    @property
    def is_card(self) -> bool:
        return self.device.type == "cuda"

    def clip(self, name: str) -> Clip:
        """The clip of this name, or a small one with its proportions."""
        clip = CLIPS.get(name) or Clip(704, 704, 241)
        if not self.small:
            return clip
        side = 32 * (clip.width // 320)
        return Clip(side, side, 5 if clip.frames == 121 else 9, SMALL)

    def keep(self, sort: str, key: object, make: Callable[[], object]):
        """Return what was made for this key; the last of its sort is freed before another."""
        if sort not in self.kept or self.kept[sort][0] != key:
            self.kept.pop(sort, None)
            self.give_back()
            self.kept[sort] = key, make()
        return self.kept[sort][1]

    def give_back(self) -> None:
        """Take everything off the card."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()

    def free(self) -> None:
        """Forget all that was made."""
        self.kept.clear()
        self.give_back()

    def wait(self) -> None:
        if self.is_card:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object]) -> float:
        """How long one call takes."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def medians(self, *functions: Callable[[], object]) -> list[float]:
        """Median seconds of functions that run in turn, each of which has run before."""
        spent: list[list[float]] = [[] for _ in functions]
        begin = time.perf_counter()
        for _ in range(TURNS):
            for taken, function in zip(spent, functions, strict=True):
                taken.append(self.seconds(function))
            if time.perf_counter() - begin > ENOUGH:
                break
        return [statistics.median(taken) for taken in spent]

    def peak_of(self, function: Callable[[], Result]) -> tuple[float | None, Result]:
        """The most memory of the card in a call, in GiB, weights counted; and what it returned."""
        if not self.is_card:
            return None, function()
        torch.cuda.reset_peak_memory_stats()
        result = function()
        self.wait()
        return torch.cuda.max_memory_allocated() / GIB, result

    @contextmanager
    def limited_to(self, gigabytes: int):
        """Let no more of the card be used, and ComfyUI know it; 0 for no limit."""
        import comfy.model_management as management

        if not (gigabytes and self.is_card):
            yield
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        reserved = management.EXTRA_RESERVED_VRAM
        if total < gigabytes * GIB:
            raise MemoryError(f"the card has only {total / GIB:.1f} GiB")
        management.EXTRA_RESERVED_VRAM = total - gigabytes * GIB + reserved
        torch.cuda.set_per_process_memory_fraction(gigabytes * GIB / total)
        try:
            yield
        finally:
            management.EXTRA_RESERVED_VRAM = reserved
            torch.cuda.set_per_process_memory_fraction(1.0)

    def product_rate(self) -> float:
        """FLOP a second of one large product in bfloat16: what a floor is reckoned by."""
        side = 8192 if self.is_card else 256
        a, b = (torch.randn(side, side, device=self.device).bfloat16() for _ in range(2))

        def multiply() -> None:
            for _ in range(8):
                a @ b

        multiply()
        return 8 * 2 * side**3 / self.medians(multiply)[0]
