"""Prompts with an area, a mask, boxes or a ControlNet: refused in words before anything runs,
whatever samples them; what acts on whole prompts, and on a picture without sound, acts.
"""

import comfy.controlnet
import comfy.samplers
import pytest
import stock_parts
import torch
from comfyui_ovi.ovi_model.sample import other_conds
from goldens import relative_error, small_patcher
from small_graph import CountForwards

pytestmark = pytest.mark.graph

AREA = {"width": 0.5, "height": 1.0, "temporal": 1.0, "x": 0.0, "y": 0.0, "z": 0.0}
AREA |= {"strength": 1.0}
SAYS = {
    "area": "A prompt is given an area of the picture",
    "mask": "A prompt is given a mask",
    "control": "A ControlNet is applied to a prompt",
    "gligen": "GLIGEN gives words a box",
}


class SmallControlNet:
    """A ControlNet that gives residuals for a latent of any shape."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self):
        return (TakesAnyLatent(),)


class TakesAnyLatent(comfy.controlnet.ControlBase):
    """As ControlNets of extensions are, which know more than pictures."""

    def get_control(self, x_noisy, *_about):
        return {"output": [torch.ones_like(x_noisy)]}

    def copy(self):
        copied = TakesAnyLatent()
        self.copy_to(copied)
        return copied


class SmallGligen:
    """GLIGEN's weights for no layer."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
    RETURN_TYPES = ("GLIGEN",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self):
        return (stock_parts.gligen(),)


@pytest.fixture
def made(runtime, stand_ins, model_folder, monkeypatch):  # noqa: ARG001
    """Run a Graph; the result, which may be an error."""
    for node in (SmallControlNet, SmallGligen):
        monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, node.__name__, node)

    def run_graph(graph):
        CountForwards.calls.clear()
        return runtime.run(graph.prompt)

    return run_graph


def asks(graph, text, kind):
    """A prompt with one of the options."""
    if kind == "area":
        return graph.add("ConditioningSetAreaPercentageVideo", conditioning=text, **AREA)
    if kind == "mask":
        mask = graph.add("SolidMask", value=0.5, width=64, height=64)
        half = {"strength": 1.0, "set_cond_area": "default"}
        return graph.add("ConditioningSetMask", conditioning=text, mask=mask, **half)
    if kind == "gligen":
        words = {"clip": graph.clip(), "gligen_textbox_model": graph.add("SmallGligen")}
        box = {"text": "a dog", "width": 32, "height": 32, "x": 0, "y": 0}
        return graph.add("GLIGENTextBoxApply", conditioning_to=text, **words, **box)
    control = {"control_net": graph.add("SmallControlNet"), "strength": 1.0}
    image = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0)
    return graph.add("ControlNetApply", conditioning=text, image=image, **control)


# Guiders, with the inputs that take a prompt under test, and those that take another one.
GUIDERS = {
    "BasicGuider": (["conditioning"], {}),
    "CFGGuider": (["positive", "negative"], {"cfg": 4.0}),
    "DualCFGGuider": (
        ["cond1", "cond2", "negative"],
        {"cfg_conds": 4.0, "cfg_cond2_negative": 3.0, "style": "regular"},
    ),
    "DualModelGuider": (["positive", "negative"], {"cfg": 4.0}),
    "OviReferenceGuider": (
        ["positive", "negative"],
        {"video_cfg": 3.0, "audio_cfg": 4.0, "image_cfg": 1.5, "voice_cfg": 2.0},
    ),
    "PerpNegGuider": (
        ["positive", "negative", "empty_conditioning"],
        {"cfg": 4.0, "neg_scale": 1.0},
    ),
}
PLACES = [(guider, name) for guider, (names, _) in GUIDERS.items() for name in names]


def guided(graph, node, place, prompt, sampler):
    """A clip by a guider whose input at a place is a prompt, and whose others are plain."""
    names, settings = GUIDERS[node]
    prompts = dict.fromkeys(names, graph.text()) | {place: prompt}
    model = graph.add("CountForwards", model=graph.model())
    if node == "DualModelGuider":
        settings = {**settings, "model_negative": model}
    return graph.add(
        "SamplerCustomAdvanced",
        guider=graph.add(node, model=model, **prompts, **settings),
        noise=graph.add("RandomNoise", noise_seed=7),
        sampler=sampler,
        sigmas=graph.add("OviScheduler", steps=4, shift=5.0, denoise=1.0),
        latent_image=graph.latent(),
    )


def assert_refused(result, kind):
    assert not result.ok
    assert SAYS[kind] in result.error
    assert "Remove that node" in result.error
    assert CountForwards.calls == []


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("place", ["positive", "negative"])
def test_ksampler_refuses_what_ovi_cannot_give(made, graph, kind, place):
    text = graph.text()
    model = graph.add("CountForwards", model=graph.model())
    graph.show(graph.sample(model, text, **{place: asks(graph, text, kind)}))
    assert_refused(made(graph), kind)


@pytest.mark.parametrize(("node", "place"), PLACES)
def test_every_guider_refuses_it_of_each_of_its_prompts(runtime, made, graph, node, place):
    if node not in runtime.nodes.NODE_CLASS_MAPPINGS:
        pytest.skip(f"this ComfyUI has no {node}")
    sampler = graph.add("KSamplerSelect", sampler_name="euler")
    graph.show(guided(graph, node, place, asks(graph, graph.text(), "mask"), sampler))
    assert_refused(made(graph), "mask")


@pytest.mark.parametrize("kind", SAYS)
def test_a_clip_in_blocks_refuses_it(made, graph, kind):
    sampler = graph.add("OviStreamingSampler", frames_per_block=3, keep="on the card")
    prompt = asks(graph, graph.text(), kind)
    graph.show(guided(graph, "BasicGuider", "conditioning", prompt, sampler))
    assert_refused(made(graph), kind)


def test_one_of_several_prompts_is_enough(made, graph):
    text = graph.text()
    both = graph.add(
        "ConditioningCombine", conditioning_1=text, conditioning_2=asks(graph, text, "area")
    )
    graph.show(graph.sample(graph.add("CountForwards", model=graph.model()), text, positive=both))
    assert_refused(made(graph), "area")


@pytest.mark.parametrize("kind", SAYS)
def test_a_picture_without_sound_has_places_and_no_controlnet(made, graph, kind):
    text = graph.text()
    latent = graph.add("OviSeparateLatent", latent=graph.latent())
    other = graph.text(prompt="A dog. Audio: it barks")
    links = []
    for prompt in (text, asks(graph, text, kind)):
        both = graph.add("ConditioningCombine", conditioning_1=prompt, conditioning_2=other)
        model = graph.add("CountForwards", model=graph.model())
        links.append(graph.sample(model, text, positive=both, latent_image=latent))
    if kind in other_conds.ALWAYS:
        graph.show(links[1])
        assert_refused(made(graph), kind)
        return
    graph.show(*links)
    result = made(graph)
    assert result.ok, result.error
    plain, part = (result.value(link[0])["samples"] for link in links)
    assert relative_error(part, plain) > 1e-3


def test_residuals_that_come_another_way_are_not_swallowed():
    model = small_patcher().model
    latent, text = torch.zeros(1, 1, 4), torch.zeros(1, 1, 32)
    residuals = {"output": [torch.ones(1, 1, 4)]}
    with pytest.raises(ValueError, match="A ControlNet is applied to a prompt"):
        model.apply_model(latent, torch.ones(1), c_crossattn=text, control=residuals)


def test_prompts_of_other_models_are_not_looked_at():
    guider = comfy.samplers.CFGGuider(small_patcher())
    guider.set_conds([[torch.zeros(1, 1, 32), {"gligen": ("position",)}]], [])
    ours, theirs = (
        other_conds.check_all(lambda *_given: "sampled", is_ours=lambda _model, ours=ours: ours)
        for ours in (True, False)
    )
    assert theirs(guider, torch.zeros(1), torch.zeros(1)) == "sampled"
    with pytest.raises(ValueError, match="GLIGEN"):
        ours(guider, torch.zeros(1), torch.zeros(1))
