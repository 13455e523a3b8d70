"""A ComfyUI for the tests of training, as all other tests have it."""

import comfy_plugin
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Boot it, unless another folder of tests has."""
    if not config.pluginmanager.is_registered(comfy_plugin):
        config.pluginmanager.register(comfy_plugin)
