"""Leaves out of ComfyUI's list of blueprints those of ours that need a node which it does not have;
it lists every file of the folder.
"""

import json
import sys
from pathlib import Path

from aiohttp import web

from . import core_facts

FOLDER = Path(__file__).parents[1]  # not resolved: ComfyUI knows a link by its own name


def install() -> None:
    """Look through the list before it is sent; without a server there is none."""
    server = core_facts.find_server()
    if server is not None:
        server.app.middlewares.append(_leave_out)


@web.middleware
async def _leave_out(request: web.Request, handler) -> web.StreamResponse:
    response = await handler(request)
    is_list = request.path.removeprefix("/api") == "/global_subgraphs" and response.status == 200
    if not is_list or not isinstance(response, web.Response) or response.body is None:
        return response
    if "Content-Encoding" in response.headers:  # packed by who came before
        return response
    missing = find_missing(FOLDER / "subgraphs", sys.modules["nodes"].NODE_CLASS_MAPPINGS)
    blueprints = json.loads(response.text)
    for key, blueprint in list(blueprints.items()):
        is_ours = (blueprint.get("info") or {}).get("node_pack") == f"custom_nodes.{FOLDER.name}"
        if is_ours and blueprint["name"] in missing:
            del blueprints[key]
    response.text = json.dumps(blueprints)
    return response


def find_missing(folder: Path, known: dict[str, type]) -> set[str]:
    """Return the names of a folder's blueprints that have nodes which are not known."""
    return {path.stem for path in folder.glob("*.json") if not _types_inside(path) <= set(known)}


def _types_inside(path: Path) -> set[str]:
    graphs = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    types = {node["type"] for graph in graphs for node in graph["nodes"]}
    return types - {graph["id"] for graph in graphs}
