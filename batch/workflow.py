"""A workflow in API format: its inputs by name, and copies with other values in them."""

from __future__ import annotations

import copy
import json
import math
import mimetypes
from pathlib import Path
from typing import Any, NamedTuple

# A folder's columns -> the classes and inputs that take them.
COLUMNS = {
    "picture": [("LoadImage", "image")],
    "sound": [("LoadAudio", "audio")],
    "film": [("LoadVideo", "file")],
    "prompt": [("OviTextEncode", "prompt")],
}
MEDIA = ("image", "audio", "video")
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Place(NamedTuple):
    """One input of one node."""

    node: str
    name: str


class Workflow:
    """The nodes of a workflow by id, as ComfyUI's page exports them (API)."""

    def __init__(self, nodes: dict[str, dict]):
        self.nodes = nodes

    @classmethod
    def read(cls, path: Path) -> Workflow:
        """Read a file; raises ValueError when it is not in API format."""
        try:
            nodes = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a workflow: {error}") from error
        is_api = isinstance(nodes, dict) and all(
            isinstance(node, dict) and {"class_type", "inputs"} <= node.keys()
            for node in nodes.values()
        )
        if not nodes or not is_api:
            raise ValueError(
                f"{path} is no workflow in API format: in ComfyUI, choose Workflow > Export (API)."
            )
        return cls(nodes)

    def title(self, node: str) -> str:
        """Return the title of a node as its page shows it."""
        return self.nodes[node].get("_meta", {}).get("title", self.nodes[node]["class_type"])

    def find(self, address: str) -> Place:
        """Return the input at `node_title.input`, `node_id.input` or a folder's column.

        Raises ValueError when there is none, or more than one.
        """
        if address in COLUMNS:
            return self._only(address)
        node_name, dot, name = address.rpartition(".")
        if not dot:
            raise ValueError(
                f"column '{address}' names no input: write 'node_title.input' or 'node_id.input'."
            )
        nodes = [node for node in self.nodes if node_name in (node, self.title(node))]
        if not nodes:
            titles = ", ".join(sorted({f"'{self.title(node)}'" for node in self.nodes}))
            raise ValueError(
                f"column '{address}': the workflow has no node '{node_name}', only {titles}."
            )
        if len(nodes) > 1:
            raise ValueError(
                f"column '{address}': {len(nodes)} nodes are called '{node_name}'; write the id of "
                f"one in its place: {', '.join(nodes)}."
            )
        self._check_input(address, nodes[0], name)
        return Place(nodes[0], name)

    def _check_input(self, address: str, node: str, name: str) -> None:
        inputs = self.nodes[node]["inputs"]
        typed = [key for key, value in inputs.items() if not _is_link(value)]
        if name not in inputs:
            raise ValueError(
                f"column '{address}': '{self.title(node)}' has no input '{name}' with a value in "
                f"this workflow, only {', '.join(typed) or 'none'}."
            )
        if _is_link(inputs[name]):
            raise ValueError(
                f"column '{address}': '{name}' is connected to node {inputs[name][0]} "
                f"('{self.title(inputs[name][0])}'); set an input of that node."
            )

    def _only(self, column: str) -> Place:
        """Return the one input that takes a folder's column."""
        places = [
            Place(node, name)
            for node, what in self.nodes.items()
            for kind, name in COLUMNS[column]
            if what["class_type"] == kind and not _is_link(what["inputs"].get(name, []))
        ]
        if len(places) != 1:
            wanted = " or ".join(kind for kind, _ in COLUMNS[column])
            raise ValueError(
                f"column '{column}': the workflow has {len(places)} nodes of {wanted}, and one is "
                "needed; address an input as 'node_title.input' instead."
            )
        return places[0]

    def value(self, place: Place) -> Any:
        """Return what the workflow itself has at an input."""
        return self.nodes[place.node]["inputs"][place.name]

    def takes_file(self, place: Place) -> bool:
        """Tell whether an input names a picture, a sound or a film to load."""
        known = (self.nodes[place.node]["class_type"], place.name)
        if any(known in inputs for column, inputs in COLUMNS.items() if column != "prompt"):
            return True
        value = self.value(place)
        kind = mimetypes.guess_type(value)[0] if isinstance(value, str) else None
        return bool(kind) and kind.split("/")[0] in MEDIA

    def convert(self, address: str, place: Place, given: Any) -> Any:
        """Return a value in the type that the workflow has there; text of a CSV is read as it.

        Raises ValueError when it cannot be.
        """
        own = self.value(place)
        if isinstance(own, bool):
            return _as_truth(address, given)
        if isinstance(own, int | float):
            return _as_number(address, given)
        if isinstance(given, str):
            return given
        raise ValueError(f"column '{address}' is {given!r}: expected text in quotation marks.")

    def patched(self, changes: dict[Place, Any]) -> dict[str, dict]:
        """Return the nodes with other values, for ComfyUI to run."""
        nodes = copy.deepcopy(self.nodes)
        for place, value in changes.items():
            nodes[place.node]["inputs"][place.name] = value
        return nodes


def _is_link(value: Any) -> bool:
    return isinstance(value, list)


def _as_truth(address: str, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in TRUTHS:
        return TRUTHS[given.strip().lower()]
    raise ValueError(f"column '{address}' is {given!r}: expected true or false.")


def _as_number(address: str, given: Any) -> int | float:
    number = given
    if isinstance(given, str):
        try:
            number = int(given)
        except ValueError:
            try:
                number = float(given)
            except ValueError:
                number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"column '{address}' is {given!r}: expected a number.")
    if not math.isfinite(number):
        raise ValueError(f"column '{address}' is {given!r}: expected a finite number.")
    return number
