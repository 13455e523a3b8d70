"""Finds the Chromium that drives ComfyUI's page; run by itself, it downloads Playwright's where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DOWNLOAD = ("-m", "playwright", "install", "--no-shell", "chromium")
WHAT_TO_DO = "install Chromium or set CHROMIUM to its path"


def find_chromium() -> str | None:
    """Return the Chromium to drive: CHROMIUM, else an installed one, else Playwright's, else None."""
    installed = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    return installed or _find_downloaded()


def _find_downloaded() -> str | None:
    from playwright.sync_api import sync_playwright  # takes a moment to start, and not every user has it

    with sync_playwright() as playwright:
        place = playwright.chromium.executable_path
    return place if Path(place).is_file() else None


def main() -> int:
    """Download a Chromium where none is found; return the exit status."""
    try:
        if find_chromium():
            return 0
    except ImportError:
        print("browser tests are left out: this Python has no playwright", file=sys.stderr)
        return 1
    print("no Chromium found: Playwright downloads one, about 170 MB ...", file=sys.stderr, flush=True)
    if subprocess.run([sys.executable, *DOWNLOAD], stdout=sys.stderr).returncode:
        print(f"browser tests are left out: no Chromium could be downloaded; {WHAT_TO_DO}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
