"""Finds the Chromium that drives ComfyUI's page; run by itself, it installs one where there is
none.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

from runtime import runtime_folder

# Playwright's download lies beside the ComfyUI that is built for the tests.
os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(runtime_folder() / "browsers"))
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DOWNLOAD = ("-m", "playwright", "install", "--no-shell", "chromium")
APT = (
    ("apt-get", "update", "-q"),
    ("apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"),
)


class NoBrowserError(Exception):
    """No browser can be driven; the message says why and what to do."""


def find_chromium() -> str:
    """Return the Chromium to drive: CHROMIUM, else an installed one, else Playwright's; raises
    NoBrowserError.
    """
    if not importlib.util.find_spec("playwright"):
        raise NoBrowserError("this Python has no playwright, which drives the browser")
    chosen = os.environ.get("CHROMIUM")
    chromium = (
        shutil.which(chosen) if chosen else _find_installed() or shutil.which(_place_of_download())
    )
    if not chromium:
        found = f"CHROMIUM={chosen} is no program" if chosen else "no Chromium found"
        raise NoBrowserError(f"{found}: install Chromium or set CHROMIUM to its path")
    tried = subprocess.run([chromium, "--version"], capture_output=True, text=True)
    if tried.returncode:
        raise NoBrowserError(f"{chromium} does not start: {tried.stderr.strip()[-300:]}")
    return chromium


def _find_installed() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _place_of_download() -> str:
    from playwright.sync_api import sync_playwright  # not everybody who imports this has it

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def install() -> None:
    """Get a Chromium where none is installed, chosen or downloaded yet: Playwright's, else Debian's
    package.
    """
    if os.environ.get("CHROMIUM") or not importlib.util.find_spec("playwright"):
        return
    if _find_installed() or os.path.exists(_place_of_download()):
        return
    _say("no Chromium found: Playwright downloads one, about 170 MB ...")
    if subprocess.run([sys.executable, *DOWNLOAD], stdout=sys.stderr).returncode and _may_use_apt():
        _say("Playwright's download failed: installing Debian's package chromium ...")
        for command in APT:
            if subprocess.run(command, stdout=sys.stderr).returncode:
                return


def _may_use_apt() -> bool:
    return bool(shutil.which("apt-get")) and hasattr(os, "geteuid") and os.geteuid() == 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Make sure that there is a Chromium; return the exit status."""
    install()
    try:
        find_chromium()
    except NoBrowserError as error:
        _say(f"browser tests are left out: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
