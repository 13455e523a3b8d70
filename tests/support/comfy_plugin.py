"""Pytest plugin: boots ComfyUI with this repository as its extension before any test is imported,
for tests to use.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from comfy_runtime import ComfyRuntime
from small_files import write_small_files

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME = pytest.StashKey[ComfyRuntime]()
BASE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Start ComfyUI from COMFYUI_PATH, on the CPU unless OVI_TEST_GPU is set."""
    comfyui = os.environ.get("COMFYUI_PATH", "")
    if not (Path(comfyui) / "main.py").is_file():
        found = (
            f"COMFYUI_PATH={comfyui!r} holds no ComfyUI" if comfyui else "COMFYUI_PATH is not set"
        )
        pytest.exit(
            f"{found}: run the tests with 'bash tools/test.sh', which finds or builds one",
            returncode=4,
        )
    config.stash[BASE] = Path(tempfile.mkdtemp(prefix="ovi-tests-")).resolve()
    try:
        cpu = not os.environ.get("OVI_TEST_GPU")
        config.stash[RUNTIME] = ComfyRuntime(
            Path(comfyui).resolve(), config.stash[BASE], REPOSITORY, cpu
        )
    except ImportError as error:
        pytest.exit(str(error), returncode=4)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder that held the models, inputs and outputs of this test run."""
    shutil.rmtree(config.stash.get(BASE, ""), ignore_errors=True)


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest) -> ComfyRuntime:
    """The ComfyUI of this process."""
    return request.config.stash[RUNTIME]


@pytest.fixture(scope="session")
def small_files(runtime: ComfyRuntime) -> Path:
    """The models folder of the runtime, filled with a freshly made small set of checkpoints."""
    write_small_files(Path(os.environ["COMFYUI_PATH"]).resolve(), runtime.models)
    return runtime.models
