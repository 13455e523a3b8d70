"""References in workflows: what runs, what they change, and what is refused in words."""

import pytest
import torch
from comfyui_ovi.ovi_model import core_facts
from comfyui_ovi.ovi_model.load.video_vae import load_video_vae
from goldens import relative_error
from lora_files import LAYERS, merged, with_lora, write_lora
from safetensors.torch import load_file, save_file
from small_graph import MODEL, WINDOWS, CountForwards, output, parts, sampled

pytestmark = pytest.mark.graph

RATE = 16000


@pytest.fixture
def files(runtime, monkeypatch, stand_ins, small_files):  # noqa: ARG001
    """Nodes that give a picture and a recording, each drawn from a seed, and a video VAE that
    encodes.
    """

    class Picture:
        INPUT_TYPES = classmethod(lambda cls: {"required": {"seed": ("INT", {})}})  # noqa: ARG005
        RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "tests"

        def make(self, seed):
            return (torch.rand(1, 40, 30, 3, generator=torch.Generator().manual_seed(seed)),)

    class Recording:
        INPUT_TYPES = classmethod(
            lambda cls: {"required": {"seed": ("INT", {}), "seconds": ("FLOAT", {})}}  # noqa: ARG005
        )
        RETURN_TYPES, FUNCTION, CATEGORY = ("AUDIO",), "make", "tests"

        def make(self, seed, seconds):
            draw = torch.Generator().manual_seed(seed)
            sound = torch.rand(1, 1, round(seconds * RATE), generator=draw) - 0.5
            return ({"waveform": sound, "sample_rate": RATE},)

    class Encoder:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
        RETURN_TYPES, FUNCTION, CATEGORY = ("VAE",), "make", "tests"

        def make(self):
            return (load_video_vae(small_files / "vae" / "wan22_encoder_small.safetensors"),)

    for node in (Picture, Recording, Encoder):
        monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, node.__name__, node)


def person(graph, latent, text, seed=1, **inputs):
    """Add 'Ovi References' with a picture and a voice, or what else is given."""
    given = {
        "image": graph.add("Picture", seed=seed),
        "voice": graph.add("Recording", seed=seed, seconds=2.0),
        "vae": graph.add("Encoder"),
        "audio_vae": graph.audio_vae(),
        "voice_start": 1.0,
        "voice_2_start": 1.0,
    }
    given = {name: link for name, link in {**given, **inputs}.items() if link is not None}
    return graph.add(
        "OviReferences", positive=text, negative=output(text, 1), latent=latent, **given
    )


def led(graph, image_cfg=1.5, voice_cfg=2.0, audio_cfg=4.0, model=None):
    model = model or graph.add("CountForwards", model=graph.model())
    return graph.add(
        "OviReferenceGuidance",
        model=model,
        audio_cfg=audio_cfg,
        image_cfg=image_cfg,
        voice_cfg=voice_cfg,
    )


def test_faces_and_voices_change_a_clip_and_a_guider_is_the_patch(run, graph, files):  # noqa: ARG001
    latent, text = graph.latent(), graph.text()
    text_of = [person(graph, latent, text, seed) for seed in (1, 2)]
    model = led(graph)
    links = [graph.sample(model, text, latent_image=latent, cfg=3.0) for text in (text, *text_of)]
    one = text_of[0]
    guider = graph.add(
        "OviReferenceGuider",
        model=graph.model(),
        positive=one,
        negative=output(one, 1),
        video_cfg=3.0,
        audio_cfg=4.0,
        image_cfg=1.5,
        voice_cfg=2.0,
    )
    sigmas = graph.add(
        "BasicScheduler", model=graph.model(), scheduler="simple", steps=2, denoise=1.0
    )
    sampler = graph.add("KSamplerSelect", sampler_name="euler")
    noise = graph.add("RandomNoise", noise_seed=7)
    links.append(
        graph.add(
            "SamplerCustomAdvanced",
            guider=guider,
            sigmas=sigmas,
            latent_image=latent,
            sampler=sampler,
            noise=noise,
        )
    )
    graph.show(*links)
    without, first, second, advanced = sampled(run(graph), *links)
    assert (first - without).norm() > 0.01 * without.norm()
    assert (first - second).norm() > 0.01 * first.norm()
    assert (first - advanced).norm() <= 1e-5 * first.norm()


@pytest.mark.parametrize(
    ("scales", "kinds"),
    [
        ((1.5, 2.0), [0, 1, 2, 3]),
        ((1.5, 0.0), [0, 1, 2]),
        ((0.0, 2.0), [0, 1, 2]),
        ((0.0, 0.0), [0, 1]),
    ],
)
def test_a_scale_of_0_costs_nothing(run, graph, files, scales, kinds):  # noqa: ARG001
    latent = graph.latent()
    text = person(graph, latent, graph.text())
    graph.show(graph.sample(led(graph, *scales), text, latent_image=latent))
    run(graph)
    assert [sorted(call) for call in CountForwards.calls] == [kinds] * 2


@pytest.mark.parametrize(
    ("absent", "kinds"), [("image", [0, 1, 2]), ("voice", [0, 1, 2])], ids=["voice", "image"]
)
def test_a_voice_or_a_picture_alone(run, graph, files, absent, kinds):  # noqa: ARG001
    latent = graph.latent()
    text = person(graph, latent, graph.text(), **{absent: None})
    link = graph.sample(led(graph), text, latent_image=latent)
    graph.show(link)
    result = run(graph)
    assert [sorted(call) for call in CountForwards.calls] == [kinds] * 2
    parts(result.value(link[0]))


def test_guidance_without_references_is_plain(run, graph):
    """And at cfg 1 and audio_cfg 1 there is one prediction a step, or one for each reference."""
    graph.show(graph.sample(led(graph)))
    run(graph)
    assert [sorted(call) for call in CountForwards.calls] == [[0, 1]] * 2


def test_without_a_negative_prompt_references_still_lead(run, graph, files):  # noqa: ARG001
    latent = graph.latent()
    text = person(graph, latent, graph.text())
    graph.show(graph.sample(led(graph, audio_cfg=1.0), text, latent_image=latent, cfg=1.0))
    run(graph)
    assert [sorted(call) for call in CountForwards.calls] == [[0, 2, 3]] * 2


def test_a_first_frame_is_held_and_two_people_are_there(run, graph, files):  # noqa: ARG001
    image = graph.add("Picture", seed=3)
    latent = graph.latent(vae=graph.add("Encoder"), start_image=image, batch_size=2)
    second = {
        "image_2": graph.add("Picture", seed=4),
        "voice_2": graph.add("Recording", seed=4, seconds=1.5),
    }
    text = person(graph, latent, graph.text(), **second)
    link = graph.sample(led(graph), text, latent_image=latent)
    graph.show(link, latent)
    result = run(graph)
    video, audio = parts(result.value(link[0]))
    given, _ = parts(result.value(latent[0]))
    assert len(video) == len(audio) == 2
    assert torch.equal(video[:, :, :1], given[:, :, :1].to(video))


def test_a_lora_with_references_is_the_lora_added_to_the_file(
    run,
    graph,
    files,  # noqa: ARG001
    small_files,
    model_folder,
):
    """By the stock loader and by ours."""
    file, strengths = "references.safetensors", ("strength_video", "strength_audio")
    write_lora(small_files / "loras" / file, LAYERS)
    save_file(merged(load_file(model_folder / MODEL), LAYERS), model_folder / "merged.safetensors")
    model = graph.model()
    models = [
        model,
        graph.model("merged.safetensors"),
        with_lora(graph, model, file),
        graph.add(
            "OviLoraLoader",
            model=model,
            lora_name=file,
            **dict.fromkeys((*strengths, "strength_fusion"), 1.0),
        ),
    ]
    latent = graph.latent()
    text = person(graph, latent, graph.text())
    links = [
        graph.sample(led(graph, model=one), text, latent_image=latent, steps=1) for one in models
    ]
    graph.show(*links)
    plain, expected, *others = sampled(run(graph), *links)
    assert relative_error(expected, plain) > 1e-2
    for made in others:
        assert relative_error(made, expected) < 1e-5


@pytest.mark.parametrize(
    ("width", "height", "length"), [(64, 96, 1), (128, 64, 13), (96, 160, 41)], ids=str
)
def test_other_lengths_and_sizes(run, graph, files, width, height, length):  # noqa: ARG001
    """Two people in a clip of each size, and both act."""
    latent = graph.latent(width, height, length)
    text, pictures = graph.text(), [graph.add("Picture", seed=seed) for seed in (1, 4, 5)]
    of_two = [person(graph, latent, text, image_2=image) for image in pictures[1:]]
    model = led(graph)
    links = [graph.sample(model, text, latent_image=latent, steps=1) for text in (text, *of_two)]
    graph.show(*links)
    result = run(graph)
    video, audio = parts(result.value(links[1][0]))
    assert list(video.shape) == [1, 48, (length + 3) // 4, height // 16, width // 16]
    assert audio.shape[2] == parts(result.value(latent[0]))[1].shape[2]
    without, first, second = sampled(result, *links)
    assert relative_error(first, without) > 1e-2
    assert relative_error(first, second) > 1e-3


def test_a_clip_that_reaches_the_references_is_refused(runtime, graph, files, model_folder):  # noqa: ARG001
    """600 frames are 151 latent frames."""
    latent = graph.latent(length=601)
    text = person(graph, latent, graph.text(), voice=None)
    graph.show(graph.sample(led(graph), text, latent_image=latent))
    result = runtime.run(graph.prompt)
    assert "make it 597 frames or shorter, or let context windows cut it" in result.error


@pytest.mark.skipif(not core_facts.NESTED_WINDOWS, reason="this core cannot cut nested latents")
def test_every_context_window_has_the_references(run, graph, files):  # noqa: ARG001
    """One window over the whole clip is the clip without windows; each window gets a clock of its
    own length.
    """
    latent = graph.latent(length=17)
    text = person(graph, latent, graph.text())
    model = graph.model()

    def cut(length):
        windows = graph.add(
            "WanContextWindowsManual", model=model, context_length=length, **WINDOWS
        )
        return graph.sample(led(graph, model=windows), text, latent_image=latent)

    links = [graph.sample(led(graph, model=model), text, latent_image=latent), cut(17), cut(9)]
    graph.show(*links)
    whole, one, many = sampled(run(graph), *links)
    assert torch.allclose(one, whole, atol=1e-5)
    assert not torch.allclose(many, whole, atol=1e-3)
    assert many.isfinite().all()


FAULTS = {
    "nothing": ({"image": None, "voice": None}, "connect 'image', 'voice' or both"),
    "no vae": ({"vae": None}, "'image' is connected, but 'vae' is not"),
    "no audio_vae": ({"audio_vae": None}, "'voice' is connected, but 'audio_vae' is not"),
    "late": ({"voice_start": 1.9}, "voice lasts 2.00 s"),
    "second alone": ({"image": None, "image_2": "image"}, "'image_2' is connected and 'image' is"),
    "swapped": ({"audio_vae": "vae"}, "is no audio VAE of Ovi"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(runtime, graph, files, fault):  # noqa: ARG001
    changes, message = FAULTS[fault]
    links = {"image": graph.add("Picture", seed=1), "vae": graph.add("Encoder")}
    changes = {
        name: links[value] if isinstance(value, str) else value for name, value in changes.items()
    }
    graph.show(person(graph, graph.latent(), graph.text(), **changes))
    result = runtime.run(graph.prompt)
    assert message in result.error


def test_a_picture_of_another_size_is_refused(runtime, graph, files, model_folder):  # noqa: ARG001
    text = person(graph, graph.latent(width=96), graph.text())
    graph.show(graph.sample(led(graph), text, latent_image=graph.latent()))
    result = runtime.run(graph.prompt)
    assert "give the latent that is sampled to 'Ovi References'" in result.error
