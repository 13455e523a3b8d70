"""The graphs that make the templates' cards: every one with the miniature, whole, and none left."""

import json

import pytest
from picture_cards import CARDS, LEFT_OUT, LOADERS, NOT_SHOWN, WORKFLOWS, with_miniature


def test_every_template_has_a_card():
    assert {*CARDS, *NOT_SHOWN} == {path.stem for path in WORKFLOWS.glob("*.json")}
    assert {card.given for card in CARDS.values()} <= {"", *CARDS}


@pytest.mark.parametrize("name", CARDS)
def test_the_miniature_stands_in_for_all_that_is_loaded(name):
    released = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = with_miniature(released, CARDS[name])
    types = [node["class_type"] for node in prompt.values()]
    if any(node["class_type"] == "OviMiniature" for node in released.values()):
        assert prompt.keys() == released.keys()
    else:
        assert types.count("OviMiniature") == 1
        assert not set(types) & {*LOADERS, *LEFT_OUT}
    for node in prompt.values():
        links = [value for value in node["inputs"].values() if isinstance(value, list)]
        assert {source for source, _ in links} <= set(prompt)
    asked = [node["inputs"] for node in prompt.values() if node["class_type"] == "OviTextEncode"]
    assert [inputs["prompt"] for inputs in asked] == CARDS[name].prompts
    for node in prompt.values():
        if node["class_type"] == "OviLatent":
            side = CARDS[name].side
            asked = [node["inputs"][key] for key in ("width", "height", "length")]
            assert asked == [side, side, 37]
