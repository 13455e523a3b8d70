"""Gathers ComfyUI and what it needs beside PyTorch in a folder, to be taken to another machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .absent import UNUSED

LIMIT_MB = 60
ARCHIVE, CONTENTS = "pack.tar.xz", ("ComfyUI", "site")
MB = 10**6
BENCHMARKS = Path(__file__).resolve().parents[1]
# Parts of ComfyUI that its models import; only their Python is taken, for tokenizers and the like
# are not used.
PARTS = ("comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "utils")
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)]
PLATFORMS += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
# Prints what is imported for all kinds of rows.
LIST_IMPORTS = """
import json, sys
from pathlib import Path
from card import boot, worker
boot.start(Path(sys.argv[1]), None, True)
worker.measures()
import goldens, small_weights, forward, comfyui_version
from comfy.ldm.wan import vae2_2
from comfyui_ovi.ovi_model.decode import tiled_video
from comfyui_ovi.ovi_model.load import video_vae
from comfyui_ovi.ovi_model.sample import guidance, solver
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def gather(folder: Path, comfyui: Path | None, python: str, without: Sequence[str] = ()) -> str:
    """Fill the folder; return what was done, in words.

    python: the version, such as 3.12, of the machine that is to run it; without: what it has.
    Raises SystemExit where the folder holds something else, or too much would be in it.
    """
    if comfyui is None and "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Name the ComfyUI to pack with --comfyui.")
    comfyui = (comfyui or Path(os.environ["COMFYUI_PATH"])).resolve()
    if folder.is_dir() and not (folder / ARCHIVE).is_file() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds something else: name a new folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="ovi-pack-") as place:
        laid_out = Path(place)
        copy_python(comfyui, laid_out / "ComfyUI")
        needed = needed_distributions(imported_packages(comfyui))
        wanted = {name: version for name, version in needed.items() if name not in without}
        download(wanted, laid_out / "wheels", python)
        lay_out(laid_out / "wheels", laid_out / "site")
        size = compress(laid_out, folder / ARCHIVE)
    if size > LIMIT_MB:
        raise SystemExit(f"{folder} has {size:.0f} MB, more than {LIMIT_MB}: {', '.join(wanted)}")
    return f"{folder} has {size:.1f} MB: ComfyUI, {', '.join(wanted)}"


def lay_out(wheels: Path, site: Path) -> None:
    """Unpack wheels as an installer would."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def compress(folder: Path, archive: Path) -> float:
    """Put ComfyUI and packages in one archive; return its megabytes.

    Kernels compiled for many cards take four times as much in a wheel.
    """
    with tarfile.open(archive, "w:xz", preset=6) as packed:
        for part in CONTENTS:
            packed.add(folder / part, part)
    return archive.stat().st_size / MB


def copy_python(comfyui: Path, target: Path) -> None:
    """Copy ComfyUI's Python files, without its nodes' web parts, tokenizers and pictures."""
    files = [*comfyui.glob("*.py")]
    for part in PARTS:
        files += (comfyui / part).rglob("*.py")
    for file in files:
        place = target / file.relative_to(comfyui)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def imported_packages(comfyui: Path) -> list[str]:
    """Names of everything that is imported to measure, found by importing it."""
    listed = subprocess.run(
        [sys.executable, "-c", LIST_IMPORTS, str(comfyui)],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        raise SystemExit(f"What is to be packed cannot be imported here:\n{listed.stderr[-2000:]}")
    return json.loads(listed.stdout.splitlines()[-1])


def needed_distributions(packages: list[str]) -> dict[str, str]:
    """Name and version of what brings these packages, but for PyTorch's own and the unused.

    Those that only unused packages ask for are left out too.
    """
    owners = importlib.metadata.packages_distributions()
    imported = {_normal(owner) for package in packages for owner in owners.get(package, ())}
    unused = {_normal(owner) for package in UNUSED for owner in owners.get(package, ())}
    without = with_needs("torch") | unused
    only_for_unused = set().union(*(with_needs(name) for name in unused)) - ESSENTIAL
    names = imported - without - only_for_unused
    return {name: importlib.metadata.version(name) for name in sorted(names)}


# What ComfyUI's models use themselves, though unused packages ask for it too.
ESSENTIAL = {"numpy", "safetensors", "tqdm", "einops", "packaging", "psutil"}


def with_needs(name: str) -> set[str]:
    """A distribution and all that it needs, as far as installed."""
    found, waiting = set(), [name]
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(wanted: dict[str, str], folder: Path, python: str) -> None:
    """Fetch wheels of these versions for another machine; raise SystemExit where there is none."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    fetched = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary=:all:", "--python-version", python, "--implementation", "cp"),
            *(*platforms, "--dest", str(folder)),
            *(f"{name}=={version}" for name, version in wanted.items()),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode:
        raise SystemExit(f"Not all wheels could be fetched:\n{fetched.stderr[-2000:]}")


def add_site(folder: Path) -> None:
    """Let imports find the packages, those installed first.

    Before PyTorch is imported, which looks for numpy then and never again.
    """
    sys.path.append(str(folder / "site"))


def unpack(folder: Path) -> None:
    """Lay out beside the archive what is in it, once, for imports to find."""
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise SystemExit(f"{folder} is no folder that --pack has filled: it has no {ARCHIVE}.")
    if all((folder / part).is_dir() for part in CONTENTS):
        return
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
