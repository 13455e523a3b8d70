"""Pytest plugin: boots ComfyUI with this repository as its extension before any test is imported,
for tests to use.

With pytest-xdist each worker boots its own, in one folder that the process above them removes.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from comfy_runtime import ComfyRuntime
from filelock import FileLock
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
    worker = getattr(config, "workerinput", None)
    if worker:
        config.stash[BASE] = Path(worker["base"], worker["workerid"])
    else:
        config.stash[BASE] = Path(tempfile.mkdtemp(prefix="ovi-tests-")).resolve()
        if config.getoption("dist", "no") != "no" and not config.option.collectonly:
            return  # this process runs no test
    try:
        cpu = not os.environ.get("OVI_TEST_GPU")
        config.stash[RUNTIME] = ComfyRuntime(
            Path(comfyui).resolve(), config.stash[BASE], REPOSITORY, cpu
        )
    except ImportError as error:
        pytest.exit(str(error), returncode=4)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Tell a worker of pytest-xdist where its folder is to be."""
    node.workerinput["base"] = str(node.config.stash[BASE])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder that held the models, inputs and outputs of this test run."""
    shutil.rmtree(config.stash.get(BASE, ""), ignore_errors=True)


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest) -> ComfyRuntime:
    """The ComfyUI of this process."""
    return request.config.stash[RUNTIME]


@pytest.fixture(scope="session")
def small_files(request: pytest.FixtureRequest, runtime: ComfyRuntime) -> Path:
    """The models folder of the runtime, filled with a freshly made small set of checkpoints.

    Workers of pytest-xdist wait for the first of them to make the set, and copy it.
    """
    comfyui = Path(os.environ["COMFYUI_PATH"]).resolve()
    if not hasattr(request.config, "workerinput"):
        write_small_files(comfyui, runtime.models)
        return runtime.models
    shared = runtime.base.parent / "small_files"
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            partial = shared.with_suffix(".partial")
            write_small_files(comfyui, partial)
            partial.rename(shared)
    shutil.copytree(shared, runtime.models, dirs_exist_ok=True)
    return runtime.models
