"""What a user is told when an input or a file is not what a node needs: where, what was found, what
to do.
"""

import functools
import logging
import re
import types

import comfy.sample
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_graph import MODEL, Graph, is_ours, output
from small_weights import TextSizes, text_encoder_weights

pytestmark = pytest.mark.graph

SAME_FILE = "in the same file"


@pytest.fixture
def refuse(runtime, model_folder):  # noqa: ARG001
    """Run a Graph, which must fail; the message and the type of the node it came from."""

    def run_graph(graph, *wanted):
        result = runtime.run(graph.prompt)
        assert not result.ok
        for text in wanted:
            assert text in result.error, result.error
        assert "Traceback" not in result.error
        return result

    return run_graph


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ({"width": 500}, ["OviLatent", "width is 500", "480 or 512"]),
        ({"height": 33}, ["OviLatent", "height is 33", "32 or 64"]),
        ({"width": 0}, ["width", "0", "32"]),
        ({"length": 120}, ["OviLatent", "length is 120 frames", "117 or 121"]),
        ({"length": 0}, ["length", "0", "1"]),
        ({"batch_size": 0}, ["batch_size", "0", "1"]),
        ({"width": 8224}, ["OviLatent", "width is 8224; the most is 8192"]),
        ({"length": 8197}, ["OviLatent", "length is 8197; the most is 8193"]),
    ],
)
def test_sizes_that_do_not_work_are_answered_with_sizes_that_do(graph, refuse, inputs, wanted):
    graph.show(graph.latent(**inputs))
    refuse(graph, *wanted)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("A man says <S>Hello. Audio: rain", ["'<S>' at line 1, column 12", "add '<E>'"]),
        ("A man.\nHe says <S>Hello.</S>", ["'</S>' at line 2, column 18", "write '<E>'"]),
        ("A man says Hello.<E>", ["'<E>' at line 1, column 18", "add '<S>'"]),
        ("A man. <AUDCAP>rain", ["'<AUDCAP>' at line 1, column 8", "add '<ENDAUDCAP>'"]),
        ("", ["prompt is empty", "<S>...<E>"]),
        (" \n", ["prompt is empty"]),
    ],
)
def test_tags_of_a_prompt_are_named_with_their_place(graph, refuse, prompt, wanted):
    graph.show(graph.text(prompt=prompt))
    refuse(graph, "OviTextEncode", *wanted)


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ({"prompt": "A man says <S>Hello."}, "'<S>' at line 1, column 12"),
        ({"prompt": "Audio: a <AUDCAP>b<ENDAUDCAP>", "sound_tag": "<AUDCAP>"}, "stands across"),
        ({"sound_tag": "Sound:"}, "Sound:"),
    ],
)
def test_a_typed_prompt_is_checked_before_anything_is_loaded(runtime, graph, inputs, wanted):
    graph.show(graph.text(**inputs))
    result = runtime.run(graph.prompt)
    assert wanted in result.error
    assert "node_errors" in result.details
    assert not result.events


def test_typed_sizes_are_checked_before_anything_is_loaded(runtime, graph):
    graph.show(graph.latent(width=500))
    result = runtime.run(graph.prompt)
    assert "The width is 500 pixels; it must be a multiple of 32: 480 or 512." in result.error
    assert "node_errors" in result.details
    assert not result.events


def test_linked_inputs_are_checked_when_they_come(graph, refuse):
    prompt = graph.add("PrimitiveStringMultiline", value="A man says <S>Hello.")
    graph.show(graph.text(prompt=prompt))
    result = refuse(graph, "OviTextEncode", "'<S>' at line 1, column 12")
    assert "node_errors" not in result.details

    graph = Graph()
    graph.show(graph.latent(width=graph.add("PrimitiveInt", value=500)))
    result = refuse(graph, "OviLatent", "width is 500", "480 or 512")
    assert "node_errors" not in result.details
    assert result.events


def test_texts_are_dynamic_as_those_of_core_s_node(runtime):
    """The page resolves {a|b} and comments of such inputs before it sends them."""
    nodes = runtime.nodes.NODE_CLASS_MAPPINGS
    assert nodes["CLIPTextEncode"].INPUT_TYPES()["required"]["text"][1]["dynamicPrompts"] is True
    inputs = nodes["OviTextEncode"].INPUT_TYPES()["required"]
    dynamic = {name for name, (_, *options) in inputs.items() if options[0].get("dynamicPrompts")}
    assert dynamic == {"prompt", "video_negative", "audio_negative"}


@pytest.mark.parametrize("words", [10, 600])
def test_a_prompt_that_may_be_misread_is_warned_of_once(run, graph, caplog, words):
    scene = "sea " * words
    link = graph.text(prompt=f'A <s>, {scene}says "hi there". Audio: rain')
    graph.show(link)
    run(graph)
    run(graph)  # what is encoded already is not said again
    (record,) = [record for record in caplog.records if is_ours(record)]
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert "'<s>' at line 1, column 3" in said
    assert "write <S>hi there<E>" in said
    assert ("so its end is not read" in said) is (words == 600)
    assert ("With it goes all of the sound" in said) is (words == 600)
    caplog.clear()


def test_start_image_needs_a_vae(graph, refuse):
    image = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=255)
    graph.show(graph.latent(start_image=image))
    refuse(graph, "start_image is connected but vae is not", "'Load VAE'")


def test_a_start_image_needs_the_vae_of_the_picture(graph, refuse):
    image = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=255)
    graph.show(graph.latent(start_image=image, vae=graph.audio_vae()))
    refuse(graph, "'vae' of Ovi Latent is an audio VAE", "wan2.2_vae.safetensors")


def test_noise_of_one_stream_is_not_taken_for_none(graph, refuse, runtime, monkeypatch):
    class NoiseOfThePicture:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})  # noqa: ARG005
        RETURN_TYPES = ("NOISE",)
        FUNCTION = "make"
        CATEGORY = "tests"
        seed = 0
        make = lambda self: (self,)  # noqa: E731
        generate_noise = lambda self, latent: torch.randn(latent["samples"].unbind()[0].shape)  # noqa: E731, ARG005

    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "NoiseOfThePicture", NoiseOfThePicture)
    sigmas = graph.add("OviScheduler", steps=2, shift=5.0, denoise=1.0)
    noise = graph.add("NoiseOfThePicture")
    graph.show(
        graph.sample_custom(graph.model(), graph.text(), graph.latent(), sigmas, noise=noise)
    )
    refuse(graph, "The noise has one shape, [", "'RandomNoise'")


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("is_held", [False, True])
def test_a_replaced_prepare_noise_is_named(graph, refuse, monkeypatch, batch_size, is_held):
    """As an extension does for every workflow, whether or not one of its nodes is in it."""
    home = types.ModuleType("custom_nodes.other_noise")
    code = "import torch\ndef prepare_noise(latent, *_): return torch.randn(latent.size())"
    exec(code, home.__dict__)  # noqa: S102
    monkeypatch.setattr(
        comfy.sample,
        "prepare_noise",
        functools.wraps(comfy.sample.prepare_noise)(home.prepare_noise),
    )
    latent = graph.latent(batch_size=batch_size)
    if is_held:
        mask = graph.add("SolidMask", value=1.0, width=64, height=64)
        latent = graph.add("SetLatentNoiseMask", samples=latent, mask=mask)
    graph.show(graph.sample(latent_image=latent))
    refuse(
        graph, "'custom_nodes.other_noise' replaced comfy.sample.prepare_noise", "restart ComfyUI"
    )


def test_start_images_must_fit_the_batch(graph, refuse):
    image = graph.add("EmptyImage", width=64, height=64, batch_size=3, color=255)
    graph.show(graph.latent(batch_size=2, start_image=image, vae=graph.video_vae()))
    refuse(graph, "start_image holds 3 images for a batch of 2", "one image, or one for each clip")


def test_a_bare_video_latent_is_refused(graph, refuse):
    video = graph.add("OviSeparateLatent", latent=graph.latent())
    graph.show(graph.add("OviSeparateLatent", latent=video))
    refuse(
        graph,
        "OviSeparateLatent",
        "latent is no latent of picture and sound",
        "[1, 48, 3, 4, 4]",
        "Ovi Concat",
    )

    graph = Graph()
    video = graph.add("OviSeparateLatent", latent=graph.latent())
    vaes = {"vae": graph.video_vae(), "audio_vae": graph.audio_vae()}
    graph.show(graph.add("OviDecode", samples=video, tiling="auto", **vaes))
    refuse(
        graph,
        "OviDecode",
        "samples is no latent of picture and sound",
        "[1, 48, 3, 4, 4]",
        "'VAE Decode'",
    )


def test_streams_that_do_not_fit_are_not_put_together(graph, refuse):
    short, long = (
        graph.add("OviSeparateLatent", latent=graph.latent(length=frames)) for frames in (9, 17)
    )
    graph.show(graph.add("OviConcatLatent", video_latent=short, audio_latent=output(long, 1)))
    refuse(graph, "audio_latent has 21 steps", "needs 10")

    graph = Graph()
    video = graph.add("OviSeparateLatent", latent=graph.latent())
    graph.show(graph.add("OviConcatLatent", video_latent=output(video, 1), audio_latent=video))
    refuse(graph, "video_latent is of shape [1, 20, 10]", "48 channels")


def write_bad_files(folder):
    """Files that are nearly Ovi's, or nothing like it."""
    whole = load_file(folder / MODEL)
    video = {key: tensor for key, tensor in whole.items() if key.startswith("video_model.")}
    fusion = ("k_fusion", "v_fusion", "pre_attn_norm_fusion", "norm_k_fusion")
    wan = {key: tensor for key, tensor in video.items() if not any(part in key for part in fusion)}
    wan = {
        key.removeprefix("video_model.").replace("modulation.modulation", "modulation"): wan[key]
        for key in wan
    }
    wan["text_embedding.0.weight"] = torch.zeros(256, 4096)  # core knows Wan with umt5-xxl only
    layer = "video_model.blocks.2.ffn.0.weight"
    files = {
        "plain_wan": wan,
        "video_tower": video,
        "audio_tower": {key: tensor for key, tensor in whole.items() if key not in video},
        "wrong_shape": whole | {layer: whole[layer][:, :100].contiguous()},
        "lacks_one": {key: tensor for key, tensor in whole.items() if key != layer},
        "lora": {f"diffusion_model.{layer}.lora_A.weight": torch.zeros(4, 8)},
    }
    for name, weights in files.items():
        save_file(weights, folder / f"bad_{name}.safetensors")
    content = (folder / MODEL).read_bytes()
    (folder / "bad_truncated.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "bad_page.safetensors").write_bytes(b"<!DOCTYPE html><title>404 Not Found</title>")
    (folder / "bad_empty.safetensors").write_bytes(b"")


@pytest.fixture(scope="module")
def bad_files(model_folder):
    write_bad_files(model_folder)
    return model_folder


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        (
            "plain_wan",
            [
                "'blocks.0.cross_attn.norm_k_fusion.weight'",
                "a video and an audio tower",
                "'Load Diffusion Model'",
            ],
        ),
        ("video_tower", ["only the video tower", "'audio_model'"]),
        ("audio_tower", ["only the audio tower", "'audio_model'", "'model'"]),
        ("wrong_shape", ["'blocks.2.ffn.0.weight'", "[384, 100]", "[384, 256]"]),
        ("lacks_one", ["'blocks.2.ffn.0.weight'", "incomplete", "download it again"]),
        ("lora", ["not an Ovi model", "model_960x960.safetensors"]),
        ("truncated", ["damaged or was not downloaded to the end", "download it again"]),
        ("page", ["is a web page", "use its download button"]),
        ("empty", ["0 bytes", "Download it again"]),
    ],
)
def test_our_loader_names_the_file_and_what_is_wrong_with_it(graph, refuse, file, wanted):
    name = f"bad_{file}.safetensors"
    graph.show(
        graph.add("OviModelLoader", model=name, audio_model=SAME_FILE, weight_dtype="default")
    )
    refuse(graph, "OviModelLoader", name, *wanted)


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(
    ("model", "audio", "wanted"),
    [
        (MODEL, "bad_audio_tower.safetensors", [MODEL, "holds both towers", SAME_FILE]),
        ("bad_video_tower.safetensors", MODEL, [f"audio_model {MODEL} holds both towers", "alone"]),
        (
            "bad_video_tower.safetensors",
            "bad_plain_wan.safetensors",
            ["audio_model bad_plain_wan", "no audio tower"],
        ),
        (
            "bad_audio_tower.safetensors",
            "bad_video_tower.safetensors",
            ["bad_audio_tower", "the video file as 'model'"],
        ),
        (
            "bad_video_tower.safetensors",
            "bad_truncated.safetensors",
            ["bad_truncated", "download it again"],
        ),
    ],
)
def test_two_files_that_do_not_belong_together(graph, refuse, model, audio, wanted):
    graph.show(graph.add("OviModelLoader", model=model, audio_model=audio, weight_dtype="default"))
    refuse(graph, "OviModelLoader", *wanted)


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("video_tower", ["only the video tower", "'Ovi Model Loader'", "'audio_model'"]),
        ("audio_tower", ["only the audio tower", "'Ovi Model Loader'", "'audio_model'"]),
        ("wrong_shape", ["'blocks.2.ffn.0.weight'", "[384, 100]", "[384, 256]"]),
        ("lacks_one", ["'blocks.2.ffn.0.weight'", "download it again"]),
    ],
)
def test_the_stock_loader_says_what_is_wrong_with_an_ovi_file(graph, refuse, file, wanted):
    """Which file it is, the user sees in the node, which core names."""
    graph.show(graph.model(f"bad_{file}.safetensors"))
    refuse(graph, "UNETLoader", *wanted)


@pytest.mark.usefixtures("bad_files")
def test_a_plain_wan_file_stays_wan_for_the_stock_loader(runtime, graph):
    model = graph.model("bad_plain_wan.safetensors")
    graph.show(model)
    result = runtime.run(graph.prompt)
    assert result.ok, result.error
    assert type(result.value(model[0]).model).__name__ == "WAN22"


def test_a_model_of_another_family_is_refused_by_guidance(graph, refuse, bad_files):  # noqa: ARG001
    settings = {"audio_cfg": 3.0, "skip_layer": -1, "start_percent": 0.0, "end_percent": 1.0}
    graph.show(graph.add("OviGuidance", model=graph.model("bad_plain_wan.safetensors"), **settings))
    refuse(graph, "OviGuidance", "not an Ovi", "'Ovi Model Loader'")


def test_a_layer_that_the_model_lacks_is_refused(graph, refuse):
    settings = {"audio_cfg": 3.0, "skip_layer": 4, "start_percent": 0.0, "end_percent": 1.0}
    graph.show(graph.add("OviGuidance", model=graph.model(), **settings))
    refuse(graph, "skip_layer is 4", "this model has 1 to 3")


def test_a_text_encoder_of_another_width_is_refused(graph, refuse, small_files):
    tokenizer = load_file(small_files / "text_encoders" / "umt5_small.safetensors")["spiece_model"]
    weights = text_encoder_weights(TextSizes(d_model=96), torch.float32, seed=0)
    save_file(
        weights | {"spiece_model": tokenizer}, small_files / "text_encoders" / "wide.safetensors"
    )
    clip = graph.add("OviTextEncoderLoader", text_encoder="wide.safetensors")
    graph.show(graph.sample(text=graph.text(clip)))
    refuse(graph, "KSampler", "encoded 96 wide", "reads 64", "'Ovi Text Encoder Loader'")


def test_the_end_of_a_prompt_that_is_too_long_is_left_out_and_the_log_says_so(run, graph, caplog):
    """As in the reference, which cuts before it encodes: what is left out changes nothing in what
    is read.
    """
    links = [
        graph.text(prompt="A man walks by the sea. " * 100 + end) for end in ("", "Then it rains.")
    ]
    graph.show(*links)
    result = run(graph)
    long, longer = (result.value(link[0])[0][0] for link in links)
    assert long.shape[1] == 512
    assert torch.equal(long, longer)
    records = [record for record in caplog.records if is_ours(record)]
    assert [record.levelno for record in records] == [logging.WARNING] * 2
    assert re.search(
        r"Ovi: reads 512 tokens of a prompt; this one has \d+", records[0].getMessage()
    )
    caplog.clear()


def save(graph, seconds, channels=1, sample_rate=16000):
    """Nine white frames and a silent sound, into OviSaveVideo."""
    images = graph.add("EmptyImage", width=64, height=32, batch_size=9, color=0xFFFFFF)
    audio = graph.add("EmptyAudio", duration=seconds, sample_rate=sample_rate, channels=channels)
    inputs = {"fps": 24.0, "filename_prefix": "bad/Ovi", "format": "mp4", "quality": 50}
    return graph.add("OviSaveVideo", images=images, audio=audio, **inputs)


def test_a_sound_without_samples_is_refused_and_leaves_no_file(runtime, graph, refuse):
    save(graph, seconds=0.0)
    refuse(graph, "OviSaveVideo", "audio has 0 samples", "disconnect audio")
    assert not list((runtime.output / "bad").glob("*"))


def test_stereo_at_another_rate_is_taken_and_names_go_on(run, runtime, graph):
    first, second = (
        save(graph, 0.1, channels=2, sample_rate=48000),
        save(graph, 1.0, channels=1, sample_rate=22050),
    )
    result = run(graph)
    for link in (first, second):
        components = result.value(link[0]).get_components()
        assert components.images.shape == (9, 32, 64, 3)
        seconds = components.audio["waveform"].shape[-1] / components.audio["sample_rate"]
        assert abs(seconds - 9 / 24) < 1024 / 22050
    assert sorted(path.name for path in (runtime.output / "bad").iterdir()) == [
        "Ovi_00001_.mp4",
        "Ovi_00002_.mp4",
    ]


def two_lengths(graph):
    """A clip of seven latent frames that core's node cuts by three of them, and three steps."""
    return graph.add("TrimVideoLatent", samples=graph.latent(length=25), trim_amount=3)


LENGTHS = "28 steps, but a video latent of 4 latent frames needs 16: the sound lasts 0.90 s, the"


@pytest.mark.parametrize("door", ["KSampler", "OviDecode", "OviSeparateLatent"])
def test_streams_that_do_not_last_equally_long_are_refused_at_every_door(graph, refuse, door):
    latent = two_lengths(graph)
    if door == "KSampler":
        graph.show(graph.sample(latent_image=latent))
    elif door == "OviDecode":
        vaes = {"vae": graph.video_vae(), "audio_vae": graph.audio_vae()}
        graph.show(graph.add(door, samples=latent, tiling="auto", **vaes))
    else:
        graph.show(graph.add(door, latent=latent))
    refuse(graph, door, LENGTHS, "picture 0.54 s", "'Ovi Separate Latent' before")


def test_a_sampled_clip_cut_in_its_latent_is_not_decoded(graph, refuse):
    sampled = graph.sample(latent_image=graph.latent(length=25), steps=1)
    cut = graph.add("TrimVideoLatent", samples=sampled, trim_amount=1)
    vaes = {"vae": graph.video_vae(), "audio_vae": graph.audio_vae()}
    graph.show(graph.add("OviDecode", samples=cut, tiling="off", **vaes))
    refuse(graph, "OviDecode", "30 steps", "6 latent frames needs 26", "0.96 s", "0.88 s")


def test_streams_put_together_by_core_s_node_are_checked_at_the_sampler(graph, refuse, runtime):
    if "LTXVConcatAVLatent" not in runtime.nodes.NODE_CLASS_MAPPINGS:
        pytest.skip("this core has no LTXVConcatAVLatent")
    short, long = (
        graph.add("OviSeparateLatent", latent=graph.latent(length=frames)) for frames in (25, 49)
    )
    latent = graph.add("LTXVConcatAVLatent", video_latent=short, audio_latent=output(long, 1))
    graph.show(graph.sample(latent_image=latent))
    refuse(graph, "KSampler", "63 steps", "7 latent frames needs 31", "2.02 s", "1.04 s")
