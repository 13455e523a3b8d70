"""The archive that is published, in an empty ComfyUI: everything is there, and nothing that should
not be.
"""

import ast
import json
import os
import re
import urllib.request
import zipfile
from pathlib import Path

import build_archive
import pytest
from comfy_server import EXTENSION, running_server
from comfyui_ovi.nodes import NODES

pytestmark = pytest.mark.graph
# What scanners of packages take for harm, and no node needs.
REFUSED = {"subprocess", "ctypes", "socket", "marshal", "pip", "ensurepip"}
REFUSED_CALLS = {"eval", "exec", "compile", "system", "popen"}
LINK = re.compile(r"\]\(([^)#\s]+)")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    path = build_archive.build(tmp_path_factory.mktemp("dist"))
    assert path.name == f"ovi-{build_archive.version()}.zip"
    folder = tmp_path_factory.mktemp("archive") / EXTENSION
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def test_it_holds_what_is_used_and_nothing_else(unpacked):
    top = {path.name for path in unpacked.iterdir()}
    assert {
        "__init__.py",
        "LICENSE",
        "NOTICE.md",
        "README.md",
        "pyproject.toml",
        "requirements.txt",
    } <= top
    assert {"locales", "miniature", "nodes", "ovi_model", "web", "workflows"} <= top
    assert not {"tests", "benchmarks", "batch", ".ci", ".github", "demo_output"} & top
    assert not (unpacked / "miniature" / "training").exists()
    assert sum(path.stat().st_size for path in unpacked.rglob("*")) < 40e6


def test_the_same_commit_gives_the_same_bytes(tmp_path):
    one, other = (build_archive.build(tmp_path / name).read_bytes() for name in "ab")
    assert one == other


def test_no_file_starts_programs_or_runs_text(unpacked):
    for path in unpacked.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [
                alias.name for alias in getattr(node, "names", []) if isinstance(node, ast.Import)
            ]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & REFUSED, path
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", None)
                assert called not in REFUSED_CALLS, path
                if (
                    isinstance(node.func, ast.Attribute)
                    and getattr(node.func.value, "id", None) == "os"
                ):
                    assert node.func.attr not in REFUSED_CALLS, path


def test_links_of_its_pages_lead_to_what_it_holds(unpacked):
    """README.md and the other pages are read where only the archive is."""
    pages = [page for page in unpacked.rglob("*.md") if "web" not in page.parts]
    assert {"README.md", "NOTICE.md", "weights.md"} <= {page.name for page in pages}
    missing = [
        f"{page.relative_to(unpacked)}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not missing, "name what the archive leaves out as `path`, without a link"


def test_links_of_help_pages_stay_in_their_folder(unpacked):
    for page in (unpacked / "web" / "docs").glob("*.md"):
        assert "](../" not in page.read_text(encoding="utf-8"), (
            f"{page.name}: a help page is shown without its folder"
        )


def test_an_empty_comfyui_runs_it(unpacked, tmp_path):
    """Nodes, templates, their pictures, help pages and texts come from the archive alone."""
    base = tmp_path / "comfyui"
    with running_server(Path(os.environ["COMFYUI_PATH"]), base, extension=unpacked) as server:
        known = server.get("/object_info")
        assert {node.define_schema().node_id for node in NODES} <= set(known)
        templates = server.get("/workflow_templates")[EXTENSION]
        assert sorted(templates) == sorted(
            path.stem for path in (unpacked / "workflows").glob("*.json")
        )
        texts = server.get("/i18n")["ja"]["nodeDefs"]
        assert (
            texts["OviDecode"]
            == json.loads((unpacked / "locales/ja/nodeDefs.json").read_text())["OviDecode"]
        )
        for name in ("docs/OviDecode.md", "js/prompt.js"):
            with urllib.request.urlopen(f"{server.url}/extensions/{EXTENSION}/{name}") as response:
                assert response.read() == (unpacked / "web" / name).read_bytes()
        prompt = json.loads(
            (unpacked / "workflows/api/Ovi_13_All_nodes_miniature.json").read_text()
        )
        outputs = server.run(prompt)
    assert any(base.glob("output/**/*.mp4")), outputs
