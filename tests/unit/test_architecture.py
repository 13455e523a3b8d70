"""Rooms import what the plan allows, and the page that shows them is true."""

import graphlib
import re
from collections import defaultdict

import list_rooms
import pytest
from list_rooms import GROUND, PAGE, REPOSITORY, ROOF, ROOMS, read_arrows, read_imports


def test_the_picture_has_the_arrows_of_the_code():
    assert list_rooms.drawn_arrows() == read_arrows(), "run python tests/support/write_pages.py"


@pytest.mark.parametrize("place", range(len(ROOMS)), ids=ROOMS)
def test_a_room_imports_the_ground_the_network_or_an_earlier_room(place):
    allowed = {"ground", "network", *ROOMS[:place]} if ROOMS[place] != "network" else {"ground"}
    assert {other for one, other in read_arrows() if one == ROOMS[place]} <= allowed


def test_the_ground_imports_no_room():
    assert not {other for one, other in read_arrows() if one == "ground"}


def test_the_model_never_imports_nodes():
    assert not {one for one, other in read_arrows() if other == "nodes"} - {"entry"}
    assert not {one for one, other in read_arrows() if other in ROOF} - {*ROOF, "entry"}


def test_no_module_leads_back_to_itself():
    imports = defaultdict(set)
    for one, other in read_imports():
        imports[one].add(other)
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError


def test_the_table_names_every_file_in_its_room():
    rows = re.findall(r"^\| (ground|roof|`\w+`) \| [^|]+ \| ([^|]+) \|$", PAGE.read_text(), re.M)
    told = {room.strip("`"): set(re.findall(r"`(\w+)`", files)) for room, files in rows}
    folder = REPOSITORY / "ovi_model"
    found = {
        room: {path.stem for path in (folder / room).glob("*.py")} - {"__init__"} for room in ROOMS
    }
    assert told == {**found, "ground": set(GROUND), "roof": set(ROOF)}
