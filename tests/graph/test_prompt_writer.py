"""The blueprint that lets a language model write the prompt, run with one whose answers are known;
and that it is offered where it can run.
"""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from comfy_server import REPOSITORY
from comfyui_ovi.ovi_model import blueprints
from comfyui_ovi.ovi_model.blueprints import find_missing
from comfyui_ovi.ovi_model.text.prompt import check_prompt

NAME = "Ovi prompt writer"
FOLDER = REPOSITORY / "subgraphs"
GOOD = "A man on a pier says, <S>It will rain.<E> Close-up.\n\nAudio: a deep voice, waves."
# By the idea: what the model answers.
ANSWERS = {
    "good": GOOD,
    "thinking": f"<think>A pier? Yes, <S>a pier.</think>\n{GOOD}",
    "small tags": GOOD.replace("<S>", "<s>").replace("<E>", "</s>"),
    "quotes": f"Here is the prompt:\n\n{GOOD.replace('<S>', chr(8220)).replace('<E>', chr(8221))}",
    "not closed": GOOD.replace("<E> Close-up.", ""),
    "Markdown": GOOD.replace("Audio:", "**audio:**"),
    "no sound": "A cat sleeps on a sill. Close-up.",
    "times": "0-2 s: a cat sleeps; 2-5 s: it jumps.",
    "thinks on": "<think>" + "Let me see. " * 90,
}
MENDED = {
    "not closed": GOOD.replace(" Close-up.", ""),
    "no sound": "A cat sleeps on a sill. Close-up.\n\nAudio: quiet room tone.",
}
REFUSED = {"times": "no times in it", "thinks on": "more max_length"}


class SmallWriter:
    """The model, as a loader of core's gives one."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    clip = None

    def load(self):
        return (self.clip,)


@pytest.fixture
def writer(runtime, monkeypatch):
    """The model at hand, where the core can ask one."""
    if "TextGenerate" not in runtime.nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("this ComfyUI has no node TextGenerate")
    from small_writer import small_writer  # imports comfy, which is there now

    SmallWriter.clip = SmallWriter.clip or small_writer(ANSWERS)
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "SmallWriter", SmallWriter)
    return SmallWriter.clip


def ask(graph, idea, **given):
    """Add the nodes of the blueprint; return its prompt. given: links into it, by name."""
    (drawn,) = json.loads((FOLDER / f"{NAME}.json").read_text("utf-8"))["definitions"]["subgraphs"]
    given = {"clip": graph.add("SmallWriter"), "idea": idea, "seed": 3, **given}
    made = {}
    for node in sorted(drawn["nodes"], key=lambda node: node["order"]):
        values = iter(node.get("widgets_values", []))
        inputs = {slot["name"]: next(values) for slot in node["inputs"] if "widget" in slot}
        for link in (link for link in drawn["links"] if link["target_id"] == node["id"]):
            name = node["inputs"][link["target_slot"]]["name"]
            source = made.get(link["origin_id"]) or given.get(
                drawn["inputs"][link["origin_slot"]]["name"]
            )
            if source is not None:
                inputs[name] = source
        made[node["id"]] = graph.add(node["type"], **inputs)
    (end,) = (link for link in drawn["links"] if link["target_id"] == -20)
    return made[end["origin_id"]]


@pytest.mark.parametrize("idea", [idea for idea in ANSWERS if idea not in REFUSED])
def test_an_answer_becomes_a_prompt_that_is_shown_and_encoded(writer, run, graph, idea):
    prompt = ask(graph, idea)
    graph.show(prompt, graph.text(prompt=prompt))
    result = run(graph)
    written = result.value(prompt[0])
    assert written == MENDED.get(idea, GOOD)
    check_prompt(written)
    assert {"text": [written]} in list(result.outputs.values())
    assert writer.tokenizer.asked["text"].startswith("Write a prompt for Ovi")
    assert writer.tokenizer.asked["text"].endswith(f"The idea: {idea}")
    assert writer.tokenizer.asked["image"] is None


def test_a_picture_is_shown_to_the_model(writer, run, graph):
    image = graph.add("EmptyImage", width=64, height=32, batch_size=1, color=0)
    graph.show(ask(graph, "good", image=image))
    run(graph)
    assert writer.tokenizer.asked["image"].shape == (1, 32, 64, 3)


@pytest.mark.parametrize("idea", REFUSED)
@pytest.mark.usefixtures("writer", "stand_ins")
def test_what_is_no_prompt_is_refused_in_words(runtime, graph, idea):
    graph.show(ask(graph, idea))
    result = runtime.run(graph.prompt)
    assert not result.ok
    assert REFUSED[idea] in result.error


def test_it_is_offered_where_the_core_has_its_nodes(runtime):
    known = runtime.nodes.NODE_CLASS_MAPPINGS
    assert (find_missing(FOLDER, known) == set()) == ("TextGenerate" in known)
    without = {name: node for name, node in known.items() if name != "TextGenerate"}
    assert find_missing(FOLDER, without) == {NAME}


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("path", ["/global_subgraphs", "/api/global_subgraphs"])
def test_what_is_not_ours_stays_in_the_list_and_so_does_all_else_of_the_answer(monkeypatch, path):
    monkeypatch.setattr("nodes.NODE_CLASS_MAPPINGS", {})
    ours = {"name": NAME, "info": {"node_pack": f"custom_nodes.{blueprints.FOLDER.name}"}}
    others = {"a": {"name": NAME, "info": {"node_pack": "custom_nodes.other"}}, "b": {"name": "x"}}

    async def answer(_request):
        return web.json_response({"c": ours, **others}, headers={"Cache-Control": "no-store"})

    request = make_mocked_request("GET", path)
    response = asyncio.run(blueprints._leave_out(request, answer))
    assert json.loads(response.text) == others
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
