"""The arithmetic of docs/scale.md: the simulation agrees with it, and the page with both."""

from pathlib import Path

import pytest
from comfyui_ovi.batch import scale

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


@pytest.mark.parametrize(("life", "restart"), [(3600, 300), (600, 30), (200, 600)])
def test_the_simulation_keeps_what_the_arithmetic_says(life, restart):
    """Within 3 % at 100 jobs a worker, with failures as frequent as every third clip."""
    fleet = scale.Fleet(workers=200, seconds=60, restart=restart, life=life)
    jobs = 40_000
    run = scale.simulate(fleet, jobs)
    assert run.kept == [1] * jobs
    assert run.failures / jobs == pytest.approx(fleet.lost_share, rel=0.03, abs=0.002)
    share = scale.ideal_hours(fleet, jobs) / run.hours
    assert share == pytest.approx(fleet.share, rel=0.03)


def test_without_failures_nothing_is_lost():
    fleet = scale.Fleet(workers=10, seconds=60, restart=300, life=1e12)
    run = scale.simulate(fleet, 1000)
    assert (run.failures, run.hours) == (0, pytest.approx(scale.ideal_hours(fleet, 1000)))
    assert fleet.share == pytest.approx(1)


def test_the_page_has_what_is_counted():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert not [line for line in scale.table() if line not in lines], "run python batch/scale.py"
