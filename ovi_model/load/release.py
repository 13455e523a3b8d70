"""Which release a model's file says it is of, by its name.

DreamID-Omni's and Hallo-Live's weights have Ovi's names and shapes: nothing else tells them apart.
"""

from __future__ import annotations

import re

from ..config import VARIANTS

OVI, DREAMID, HALLO = "Ovi", "DreamID-Omni", "Hallo-Live"
MINIATURE = "the miniature"  # which a LoRA beside it teaches references
# What a file's name holds, in lower case, and the release it is then of.
NAMES = {
    r"dreamid": DREAMID,
    r"hallo": HALLO,
    r"ovi_miniature": MINIATURE,
    r"(?<![a-z])ovi(?![a-z])": OVI,
}


def release_of(file: str | None) -> str | None:
    """Return the release a file's name tells, or None if it tells none."""
    if file is None:
        return None
    if file in {variant.file for variant in VARIANTS.values()}:
        return OVI
    found = (release for name, release in NAMES.items() if re.search(name, file.lower()))
    return next(found, None)
