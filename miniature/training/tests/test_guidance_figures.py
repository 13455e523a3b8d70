"""The table of guidance_figures.py: a line for each way to sample, with what it made and cost."""

from dataclasses import replace

import pytest
import torch
from comfyui_ovi.miniature.training import evaluate, generate, guidance_figures, world

pytestmark = pytest.mark.graph
CLIPS = 2
PLAIN = guidance_figures.Variant("plain", guidance=generate.Guidance(steps=2))
IDLE = replace(PLAIN, name="idle", node=guidance_figures.PAG, inputs={"scale": 0.0})
ACTING = replace(IDLE, name="acting", inputs={})


@pytest.fixture(scope="module")
def parts(runtime):  # noqa: ARG001
    return generate.load(evaluate.REPOSITORY / "miniature")


def make(parts, variant):
    scene = world.HELD_OUT_SCENES[0]
    clip, costs = world.film(scene, evaluate.FIRST_SEED), []
    source = guidance_figures.make_source(parts, variant, costs)
    with torch.inference_mode():
        return *source(clip, scene.caption(), 3), costs


def test_a_node_that_does_nothing_equals_plain_and_costs_the_same(parts):
    with torch.inference_mode():
        made = guidance_figures.table(parts, (PLAIN, IDLE, ACTING), CLIPS)
    head, _, *lines = [line.strip("|").split(" | ") for line in made.splitlines()[:5]]

    assert [line[0].strip() for line in lines] == ["plain", "idle", "acting"]
    assert {len(line) for line in lines} == {len(head)}
    plain, idle, acting = ([cell.strip() for cell in line[1:-1]] for line in lines)
    assert plain == idle
    forwards, rows = ([cells[place] for cells in (plain, acting)] for place in (-2, -1))
    assert forwards == ["2.0", "4.0"]  # a third prediction each step, of the prompt alone
    assert rows == ["4.0", "6.0"]


def test_a_clip_is_changed_by_a_node_that_acts_alone(parts):
    plain, idle, acting = (make(parts, variant) for variant in (PLAIN, IDLE, ACTING))

    for its, same, other in zip(plain[:2], idle[:2], acting[:2], strict=True):
        assert torch.equal(its, same)
        assert not torch.equal(its, other)


@pytest.mark.parametrize(
    ("word", "prompt", "negatives"),
    [
        (
            "colour",
            "A ball bounces twice. Audio: two low knocks.",
            {"video_negative": "yellow"},
        ),
        ("pitch", "A yellow ball bounces twice. Audio: two knocks.", {"audio_negative": "low"}),
    ],
)
def test_a_word_to_lead_away_from_is_said_by_the_negative_prompt_alone(word, prompt, negatives):
    scene = world.Scene("ball", "yellow", 2, "low")
    asked, guidance = guidance_figures.ask(replace(PLAIN, away_from=word), scene, scene.caption())
    assert (asked, guidance.negatives) == (prompt, negatives)
    assert replace(guidance, negatives={}) == PLAIN.guidance


def test_a_negative_prompt_is_the_one_asked_for(parts):
    guidance = PLAIN.guidance
    with torch.inference_mode():
        (picture, _), (other, _) = (
            generate.make_clip(parts, "A ball.", 3, its)
            for its in (guidance, replace(guidance, negatives={"video_negative": "red"}))
        )
    assert not torch.equal(picture, other)


def test_intervals_are_wilsons():
    # By its formula with z = 1.96: 0 of 48 ends at z^2 / (n + z^2) = 3.84 / 51.84.
    assert guidance_figures.share_with_interval([False] * 48) == "0% (0 to 7)"
    assert guidance_figures.share_with_interval([True] * 48) == "100% (93 to 100)"
    assert guidance_figures.share_with_interval([True] * 15 + [False] * 33) == "31% (20 to 45)"
    assert guidance_figures.share_with_interval([]) == "-"


def test_a_table_is_written_between_its_two_comments():
    page = "a\n<!-- core begins -->\nold\n<!-- core ends -->\nb\n"
    assert guidance_figures.put(page, "core", "new") == page.replace("old", "new")
    with pytest.raises(SystemExit, match="<!-- nag begins -->"):
        guidance_figures.put(page, "nag", "new")


def test_every_variant_has_a_name_of_its_own_and_the_page_a_place_for_its_table():
    page = guidance_figures.RESULTS.read_text(encoding="utf-8")
    for name, variants in guidance_figures.TABLES.items():
        assert len({variant.name for variant in variants}) == len(variants)
        assert f"<!-- {name} begins -->" in page


def test_a_node_that_this_comfyui_lacks_is_named(parts):
    with pytest.raises(SystemExit, match=r"no comfy_extras\.nodes_lt\.Nothing"):
        guidance_figures.apply_node(parts.model, "nodes_lt.Nothing", {})
