"""What this extension says in ComfyUI's log, under one prefix."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any


class _Prefixed(logging.LoggerAdapter):
    def process(
        self, msg: str, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        return f"Ovi: {msg}", kwargs


log = _Prefixed(logging.getLogger("ovi"), {})
