"""How many cases to run, told before the tests are imported."""

import hostile
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """With --nightly, run all of them."""
    hostile.NIGHTLY = config.getoption("nightly")
