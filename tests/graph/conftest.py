"""What every graph test has: test-only nodes, one executor a module, and a log in which this
extension is silent.
"""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_graph import MODEL, TEST_NODES, CountForwards, Graph, is_ours
from small_weights import OviSizes, ovi_weights


@pytest.fixture(scope="session")
def model_folder(small_files) -> Path:
    """Where Load Diffusion Model looks; also holds an Ovi of four blocks, float32, a third of the
    work.
    """
    folder = small_files / "diffusion_models"
    save_file(ovi_weights(OviSizes(layers=4), torch.float32, seed=1), folder / MODEL)
    return folder


@pytest.fixture
def graph() -> Graph:
    return Graph()


@pytest.fixture(scope="module")
def executor(runtime):
    """An executor whose cache lives as long as the module, so that equal parts of workflows run
    once.
    """
    return runtime.new_executor()


@pytest.fixture
def stand_ins(runtime, monkeypatch) -> None:
    """The test-only nodes, at hand while a test runs."""
    for name, node in TEST_NODES.items():
        monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, name, node)


@pytest.fixture
def run(runtime, executor, stand_ins, model_folder):  # noqa: ARG001
    """Run a Graph, which must succeed; the result of the run."""

    def run_graph(graph: Graph, **options):
        CountForwards.calls.clear()
        result = runtime.run(graph.prompt, executor=executor, **options)
        assert result.ok, result.error
        return result

    return run_graph


# The small files are Ovi's by name, and small: what is said of that is tested elsewhere.
EXPECTED = (
    "was not trained for references",
    "Streaming was trained on",
    "Finished blocks are shown no more",
    "cannot play the clip: [Errno 28]",
)


@pytest.fixture(autouse=True)
def silent_log(caplog):
    """Fail a test during which a module of this repository logged another warning or an error."""
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    ours = [record for record in records if record.levelno >= logging.WARNING and is_ours(record)]
    said = [record.getMessage() for record in ours]
    assert [text for text in said if not any(part in text for part in EXPECTED)] == []
