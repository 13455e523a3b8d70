"""A ComfyUI for every test."""

import comfy_plugin
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Boot it, unless another folder of tests has."""
    if not config.pluginmanager.is_registered(comfy_plugin):
        config.pluginmanager.register(comfy_plugin)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How to compile what tests compile ("inductor" as the stock node does, but some minutes), and
    how much to fuzz.
    """
    parser.addoption(
        "--compile-backend",
        default="aot_eager",
        help="torch.compile's backend (inductor, aot_eager)",
    )
    parser.addoption("--nightly", action="store_true", help="fuzz with 10,000 cases instead of 500")
