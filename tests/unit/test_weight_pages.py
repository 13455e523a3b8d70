"""The table of weight files is the one the tests load."""

import list_weights


def test_the_page_is_current():
    assert list_weights.PAGE.read_text(encoding="utf-8") == list_weights.page(), (
        "run python tests/support/write_pages.py"
    )
