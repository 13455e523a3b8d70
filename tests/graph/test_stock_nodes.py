"""Every node of core that takes a MODEL, or makes prompts of prompts, does on Ovi what
docs/compatibility.md says: it acts, gives, saves, refuses in words, or is listed with a reason.
"""

import comfyui_version
import list_stock_nodes
import pytest
from stock_nodes import Walker, is_of_core, stock_nodes
from stock_outcomes import FAILS, LISTED, NOTES, SAME, SILENT

import nodes

pytestmark = pytest.mark.graph

CORE = comfyui_version.__version__
RECORDED = list_stock_nodes.read()
KNOWN = RECORDED.get(CORE)
HERE = stock_nodes(nodes.NODE_CLASS_MAPPINGS)
# Left to `write_stock_nodes.py --check`: a compiler, which takes longer than all the others
# (test_compile.py compiles), and merges by other models' names, which are one function of core.
SLOW = {
    name
    for name in HERE
    if name == "TorchCompileModel"
    or (name.startswith("ModelMerge") and "merging_model_specific" in HERE[name].__module__)
} - {"ModelMergeWAN2_1"}
ADD = "Run python tests/support/write_stock_nodes.py with the Python that runs this ComfyUI."


@pytest.fixture(scope="module")
def walker(runtime):
    walker = Walker(runtime)
    yield walker
    walker.close()


@pytest.mark.skipif(KNOWN is None, reason=f"ComfyUI {CORE} has no table. {ADD}")
def test_the_table_has_every_node_of_this_core():
    missing, gone = sorted({*HERE} - {*KNOWN}), sorted({*KNOWN} - {*HERE})
    assert not missing, f"not in docs/stock_nodes.json: {', '.join(missing)}. {ADD}"
    assert not gone, f"in docs/stock_nodes.json, but not in this ComfyUI: {', '.join(gone)}. {ADD}"


@pytest.mark.parametrize("name", sorted({*HERE} - SLOW))
def test_a_node_does_what_the_table_says(walker, name):
    if KNOWN is not None:
        assert walker.look(name).outcome == KNOWN[name].outcome
        return
    try:
        found = walker.look(name)
    except KeyError as error:  # a node with inputs of a type that is new
        pytest.skip(f"{error.args[0]}. {ADD}")
    if found.outcome in (SILENT, FAILS):
        pytest.skip(f"'{name}' {found.outcome} on ComfyUI {CORE}: {found.says}. {ADD}")


def test_the_table_has_no_fault_and_no_reason_is_left_over():
    outcomes = [outcome for core in RECORDED.values() for outcome in core.values()]
    assert not {SILENT, FAILS} & {outcome.outcome for outcome in outcomes}
    used = {name for core in RECORDED.values() for name, its in core.items() if its.says}
    assert {*LISTED, *SAME, *NOTES} <= used


def test_nodes_of_extensions_are_not_core_s():
    assert not is_of_core(nodes.NODE_CLASS_MAPPINGS["OviGuidance"])
    assert is_of_core(nodes.NODE_CLASS_MAPPINGS["KSampler"])
