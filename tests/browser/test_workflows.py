"""Every workflow opens in ComfyUI's real page as its author saved it, and its API-format twin is up
to date.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from comfy_server import running_server
from workflow_files import WORKFLOWS, skip_if_newer

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_page, small_files, tmp_path_factory):
    """ComfyUI's page, served with the small checkpoints."""
    base = tmp_path_factory.mktemp("browser")
    shutil.copytree(small_files, base / "models", dirs_exist_ok=True)
    with (
        running_server(Path(os.environ["COMFYUI_PATH"]).resolve(), base) as server,
        open_page(server.url) as page,
    ):
        yield page


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_opens_and_equals_its_twin(page, path, tmp_path):
    page.load(json.loads(path.read_text(encoding="utf-8")), path.stem)
    page.screenshot(tmp_path / f"{path.stem}.png")
    skip_if_newer(page.missing_nodes())

    assert page.problems == []
    assert page.missing_nodes() == []
    assert page.empty_widgets() == []
    twin = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert without_titles(page.api_form()) == without_titles(twin), "run tools/export_workflows.sh"


def without_titles(prompt: dict) -> dict:
    """Return the workflow as the server reads it; titles of stock nodes change with ComfyUI's
    version.
    """
    return {node_id: {**node, "_meta": None} for node_id, node in prompt.items()}
