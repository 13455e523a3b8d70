"""The texts of the nodes in every language: complete, up to date, and such that ComfyUI's page can
show them.
"""

import json
import re

import export_locales
import pytest
from comfyui_ovi.nodes import NODES

FOLDER = export_locales.FILE.parents[1]
SCRIPTS = FOLDER.parent / "web" / "js"
SAID = re.compile(r'\bsay\("([^"]+)"')
# Names in the menu of examples, which are said by their variable.
EXAMPLE = re.compile(r'^  "([A-Z][^"]+)":', re.MULTILINE)
LANGUAGES = ["en", "es", "fr", "ja", "ko", "zh"]
# What every language leaves as it is: tags, file names, numbers with a point, options in capitals.
UNCHANGED = re.compile(
    r"<\w+>|%[\w:-]+%|\w+\.safetensors|\d+\.\d+|\b(?:bf16|fp8|mp4|webm|mov|umT5)\b"
)


def read(language):
    return json.loads((FOLDER / language / "nodeDefs.json").read_text(encoding="utf-8"))


def texts(entry, path=()):
    """Every text below an entry, by the names that lead to it."""
    if isinstance(entry, str):
        return {path: entry}
    return {
        key: text
        for name, part in entry.items()
        for key, text in texts(part, (*path, name)).items()
    }


def test_every_language_is_there():
    assert sorted(path.name for path in FOLDER.iterdir()) == LANGUAGES


def test_english_is_what_the_nodes_say():
    expected = export_locales.as_file(export_locales.node_texts(NODES))
    assert export_locales.FILE.read_text(encoding="utf-8") == expected, (
        "run tools/export_locales.py"
    )


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_translation_has_every_text_and_no_other(language):
    english, translated = texts(read("en")), texts(read(language))
    assert list(translated) == list(english)
    assert all(text.strip() for text in translated.values())
    same = [
        path
        for path, text in english.items()
        if path[-1] in ("tooltip", "description") and translated[path] == text
    ]
    assert same == [], "not translated"


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_translation_keeps_what_is_no_language(language):
    translated = texts(read(language))
    for path, text in texts(read("en")).items():
        kept = {part for part in UNCHANGED.findall(text) if part not in translated[path]}
        # A fraction may have a comma.
        assert {part for part in kept if part.replace(".", ",") not in translated[path]} == set(), (
            path
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_holds_what_the_page_reads_as_syntax(language):
    """vue-i18n reads braces, bars and at signs."""
    wrong = {path: text for path, text in texts(read(language)).items() if set(text) & set("{}|@")}
    assert wrong == {}


def said_on_the_page():
    """What the page's scripts say, in English."""
    said = {line for path in SCRIPTS.glob("*.js") for line in SAID.findall(path.read_text("utf-8"))}
    return said | set(EXAMPLE.findall((SCRIPTS / "prompt_examples.js").read_text("utf-8")))


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_the_page_speaks_the_language_too(language):
    path = FOLDER / language / "main.json"
    (translated,) = json.loads(path.read_text(encoding="utf-8")).values()
    assert set(translated) == said_on_the_page()
    for english, text in translated.items():
        assert set(UNCHANGED.findall(english)) == set(UNCHANGED.findall(text)), english
        assert not set(text) & set("{}|@")
