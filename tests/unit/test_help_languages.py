"""The help pages in the page's other languages: they tell what the English ones tell.

ComfyUI's page asks for web/docs/<node>/<language>.md first, then for web/docs/<node>.md.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = REPOSITORY / "web" / "docs"
NODES = sorted(path.stem for path in PAGES.glob("*.md"))
LANGUAGES = sorted(path.name for path in (REPOSITORY / "locales").iterdir() if path.name != "en")
PICTURE = re.compile(r"\]\(([^)]+)\)")
CODE = re.compile(r"```[^`]+```|`[^`]+`")
# 922,000 is 922.000 or 922 000 elsewhere, and 0.5 is 0,5.
NUMBER = re.compile(r"\d{1,3}(?:[., \u00a0\u202f]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?")
MESSAGE = re.compile(r"\*([^*]+)\*")
BOLD = re.compile(r"\*\*([^*]+)\*\*")

each_page = pytest.mark.parametrize(
    ("node", "language"), [(node, language) for language in LANGUAGES for node in NODES]
)


def pages(node, language):
    """The English page and its translation."""
    translated = PAGES / node / f"{language}.md"
    assert translated.is_file(), "a node has a help page in every language"
    return (PAGES / f"{node}.md").read_text(encoding="utf-8"), translated.read_text(
        encoding="utf-8"
    )


def names(language):
    return json.loads(
        (REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    )


def numbers(text):
    """How often each number stands there, without the marks between its digits."""
    return Counter(re.sub(r"\D", "", number) for number in NUMBER.findall(CODE.sub("", text)))


def cells(text):
    """How many cells each row of a table has."""
    return [line.count("|") for line in text.splitlines() if line.startswith("|")]


def messages(text):
    """What the list of mistakes quotes, which nodes say in English."""
    lines = [line for line in text.splitlines() if line.startswith("- *") and line[3] != "*"]
    return [MESSAGE.findall(line.partition(":")[0]) for line in lines]


@each_page
def test_it_shows_the_same(node, language):
    english, translated = pages(node, language)
    assert PICTURE.findall(translated) == PICTURE.findall(english)
    assert Counter(CODE.findall(translated)) == Counter(CODE.findall(english))
    assert cells(translated) == cells(english)
    assert numbers(english) - numbers(translated) == Counter()


@each_page
def test_it_names_what_the_node_shows(node, language):
    english, translated = pages(node, language)
    known, shown = names("en"), names(language)
    assert translated.startswith(f"# {shown[node]['display_name']}\n")
    for name, entry in shown[node].get("inputs", {}).items():
        assert f"| {entry['name']} |" in translated, f"{name} is not in its table"
    in_english = {known[other]["display_name"]: other for other in known}
    for name in BOLD.findall(english):
        if name in in_english:
            assert f"**{shown[in_english[name]]['display_name']}**" in translated


@each_page
def test_it_quotes_what_nodes_say(node, language):
    english, translated = pages(node, language)
    for quoted in messages(english):
        for message in quoted:
            assert f"*{message}*" in translated


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_page_is_left_over(language):
    assert sorted(path.parent.name for path in PAGES.glob(f"*/{language}.md")) == NODES
