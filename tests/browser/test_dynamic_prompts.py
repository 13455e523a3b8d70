"""The page resolves choices and comments of Ovi Text Encode as those of core's node, and the panel
shows the prompt as typed.
"""

import pytest

PLACE = (300, 300)
TYPED = "A {red|red} ball // note\n<S>{hi|hi}<E> /* draft */ Audio: {rain|rain}"
SENT = "A red ball"


@pytest.fixture
def page(served):
    served.page.clear()
    return served.page


def sent_by(page, name):
    """What the page sends of one text of a node, by the name of its input."""
    (asked,) = page.api_form().values()
    return asked["inputs"][name]


def test_choices_and_comments_are_resolved_as_for_core_s_node(page):
    page.add_by_search("CLIP Text Encode", *PLACE)
    page.set_widgets({"text": TYPED})
    expected = sent_by(page, "text")
    assert expected.startswith(SENT)
    assert "<S>hi<E>" in expected
    assert not any(mark in expected for mark in ("{", "|", "//", "note", "draft"))

    page.clear()
    page.add_by_search("Ovi Text Encode", *PLACE)
    names = ("prompt", "video_negative", "audio_negative")
    page.set_widgets(dict.fromkeys(names, TYPED))
    assert {name: sent_by(page, name) for name in names} == dict.fromkeys(names, expected)
    page.page.locator(".ovi-ruler-speech", has_text="{hi|hi}").wait_for()
