"""Makes PyPI's CUDA builds of torchaudio and torchvision import beside a CPU build of torch; run by
the venv's Python.

Nothing is touched where both import already. Lost afterwards are operators ComfyUI does not call on
the CPU: torchaudio's forced alignment, torchvision's nms and image readers.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

MARK = (
    "# Added for a torch without CUDA: torchvision registers fakes for operators only its CUDA "
    "library defines."
)
DEFINITIONS = f"""

{MARK}
if not _has_ops():
    _definitions = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _definitions.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def imports(name: str) -> bool:
    """Tell whether a module imports in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def folder_of(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    return Path(importlib.util.find_spec(name).origin).parent


def fix_torchaudio() -> None:
    """Remove the compiled libraries; torchaudio runs on PyTorch alone when they are absent."""
    for library in (folder_of("torchaudio") / "lib").glob("*.so"):
        library.unlink()


def fix_torchvision() -> None:
    """Define the operators that torchvision's unloadable library would have defined."""
    loader = folder_of("torchvision") / "extension.py"
    source = loader.read_text()
    if MARK not in source:
        loader.write_text(source + DEFINITIONS)


def main() -> int:
    """Fix what does not import; return the exit status."""
    if sys.prefix == sys.base_prefix:
        print(
            "this changes installed packages: run it with the Python of a virtual environment",
            file=sys.stderr,
        )
        return 1
    if not imports("torch"):
        print("torch itself does not import")
        return 1
    for name, fix in (("torchaudio", fix_torchaudio), ("torchvision", fix_torchvision)):
        if not imports(name):
            fix()
            if not imports(name):
                print(f"{name} does not import beside this torch")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
