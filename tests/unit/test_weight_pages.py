"""The table of weight files is the one the tests load."""

import re

import convert_checkpoint
import list_weights


def test_the_page_is_current():
    assert list_weights.PAGE.read_text(encoding="utf-8") == list_weights.page(), (
        "run python tests/support/write_pages.py"
    )


def test_converted_files_have_the_sizes_that_the_converter_names():
    listed = {row.target: row.size for row in list_weights.CONVERSIONS}
    assert listed.keys() >= {"fp8", *convert_checkpoint.PRODUCTS}
    for target, size in listed.items():
        assert re.search(r"([\d.]+) GB", convert_checkpoint.TARGETS[target])[1] == size
