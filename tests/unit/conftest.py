"""A small Ovi in float32 for the tests of the converter, and the converter as its users run it."""

import convert_checkpoint
import pytest
import small_weights
import torch
from safetensors.torch import save_file

# Rows of the second layer of each feed-forward are no multiple of 32.
SIZES = small_weights.OviSizes(dim=128, ffn_dim=200, layers=2)


@pytest.fixture(scope="session")
def released():
    """The fused file in float32, under the published names."""
    return small_weights.ovi_weights(SIZES, torch.float32, seed=3)


@pytest.fixture(scope="session")
def plain(released):
    """The same under our names."""
    from comfyui_ovi.ovi_model.load import checkpoint

    return checkpoint.convert_keys(released)


@pytest.fixture(scope="session")
def source(released, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "ovi.safetensors"
    save_file(released, path)
    return path


@pytest.fixture
def convert(tmp_path):
    """Run the tool as a user does; returns the file it wrote."""

    def convert(to, *inputs, output=None, options=()):
        ending = "gguf" if to in convert_checkpoint.GGUF else "safetensors"
        output = output or tmp_path / f"converted_{to}.{ending}"
        convert_checkpoint.main([*map(str, inputs), str(output), "--to", to, *options])
        return output

    return convert
