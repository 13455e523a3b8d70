"""Training in ComfyUI: a folder of clips, our trainer, core's trainer, and the LoRA in every loader
that takes one.
"""

import functools
import shutil

import numpy as np
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model import core_facts
from comfyui_ovi.ovi_model.save import containers, mux
from comfyui_ovi.ovi_model.train import core_trainer, lora
from PIL import Image
from safetensors.torch import load_file, save_file
from small_graph import Graph, output, sampled
from weights import seeded

pytestmark = pytest.mark.graph

IS_OLD = not core_facts.NESTED_LATENTS
newer = pytest.mark.skipif(IS_OLD, reason="core's trainer takes joint latents from 0.33 on")
CAPTION = "A red ball bounces once. Audio: one low knock."
RATE = 16000


def write_video(path, frames=9, size=(64, 64), channels=1, fps=24, caption=CAPTION, tone=0.3):
    """A clip of a grey that rises, with a hum; and its caption."""
    pictures = torch.linspace(0.2, 0.8, frames).view(-1, 1, 1, 1).expand(-1, *size, 3)
    seconds = torch.arange(round(frames / fps * RATE)) / RATE
    hum = tone * (2 * torch.pi * 300 * seconds).sin()
    sound = {"waveform": hum.expand(1, channels, -1), "sample_rate": RATE} if channels else None
    (clip,) = mux.split_clips(pictures, fps, sound)
    mux.write_clip(path, clip, containers.CONTAINERS["mp4"], 80, {}, lambda: None)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def write_wav(path, channels, seconds=0.5):
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        hum = (8000 * np.sin(np.arange(round(seconds * RATE)) / 9)).astype(np.int16)
        file.writeframes(np.repeat(hum[:, None], channels, axis=1).tobytes())


@pytest.fixture
def folder(runtime):
    """A folder in the input folder, empty."""
    path = runtime.input / "clips to train on"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


def read(graph, name, **inputs):
    defaults = {
        "folder": name,
        "size": 64,
        "length": 9,
        "sound_tag": "Audio:",
        "caption_dropout": 0.1,
        "first_frame": 0.0,
    }
    # Its VAEs encode, too; the small ones of other tests do not.
    miniature = graph.add("OviMiniature")
    parts = ("clip", "vae", "audio_vae")
    links = {name: output(miniature, slot) for slot, name in enumerate(parts, start=1)}
    return graph.add("OviTrainingClips", **defaults | links | inputs)


def test_a_faulty_file_is_told_and_nothing_else_is_lost(runtime, model_folder, folder, caplog):  # noqa: ARG001
    write_video(folder / "good.mp4", size=(48, 96))
    write_video(folder / "silent.mp4", channels=0)
    write_video(folder / "one frame.mp4", frames=1)
    write_video(folder / "ten minutes.mp4", frames=600, fps=1)
    write_video(folder / "no words.mp4", caption="  ")
    write_video(folder / "open.mp4", caption="A man says <S>hello.")
    write_video(folder / "no caption.mp4")
    (folder / "no caption.txt").unlink()
    write_video(folder / "broken.mp4")
    (folder / "broken.mp4").write_bytes(bytes(range(256)) * 8)
    write_video(folder / "cut off.mp4")
    (folder / "cut off.mp4").write_bytes((folder / "cut off.mp4").read_bytes()[:300])
    Image.new("RGB", (64, 64), "navy").save(folder / "still.png")
    write_wav(folder / "still.wav", channels=6)
    (folder / "still.txt").write_text(CAPTION)
    Image.new("RGB", (64, 64)).save(folder / "mute.png")
    (folder / "mute.txt").write_text(CAPTION)
    (folder / "alone.txt").write_text(CAPTION)

    def run():
        graph = Graph()
        link = read(graph, folder.name)
        graph.show(output(link, 2))
        result = runtime.run(graph.prompt)
        assert result.ok, result.error
        return result.values(link[0])

    latents, positive, (report,) = run()
    told = dict(line.split(": ", 1) for line in report.splitlines())
    assert told.pop(folder.name).startswith("4 clips (")
    assert told.keys() == {
        "alone.txt", "broken.mp4", "cut off.mp4", "mute.png", "no caption.mp4", "no words.mp4",
        "one frame.mp4", "open.mp4", "silent.mp4", "still.png", "ten minutes.mp4",
    }  # fmt: skip
    said = {
        "alone.txt": "a caption without a clip",
        "broken.mp4": "left out: it cannot be read",
        "cut off.mp4": "left out: it has no picture",
        "mute.png": "put mute.wav beside",
        "no caption.mp4": "write one into no caption.txt",
        "no words.mp4": "left out: The prompt is empty",
        "one frame.mp4": "it has 1 frame at 24 a second",
        "open.mp4": "'<S>' at line 1, column 12",
        "silent.mp4": "it has no sound: silence is trained",
        "still.png": "its sound of 6 channels is mixed down to one",
        "ten minutes.mp4": "it lasts 600.0 s: its first 0.38 s are used",
    }
    assert {name: told[name] for name, words in said.items() if words not in told[name]} == {}
    caplog.clear()  # what is told is a warning, too
    assert len(latents) == len(positive) == 4
    shapes = [tuple(x.shape) for latent in latents for x in latent["samples"].unbind()]
    assert shapes[:2] == [(1, 48, 3, 2, 6), (1, 20, 10)]
    assert set(shapes[2:]) == {(1, 48, 3, 4, 4), (1, 20, 10)}
    kept = {path: path.stat().st_mtime_ns for path in folder.glob(".ovi_latents/*.safetensors")}
    assert len(kept) == 4
    again, _, (report_again,) = run()
    assert report_again == report
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    for one, other in zip(latents, again, strict=True):
        assert torch.equal(one["samples"].unbind()[0], other["samples"].unbind()[0])
    caplog.clear()


def test_what_is_damaged_in_the_cache_is_made_again(runtime, model_folder, folder):  # noqa: ARG001
    for height in (64, 96, 128):  # clips of one content have one latent
        write_video(folder / f"{height}.mp4", size=(64, height))

    def run():
        graph = Graph()
        graph.show(output(read(graph, folder.name), 2))
        result = runtime.run(graph.prompt)
        assert result.ok, result.error

    run()
    kept = {path: path.read_bytes() for path in folder.glob(".ovi_latents/*.safetensors")}
    cut_off, earlier, foreign = kept
    cut_off.write_bytes(kept[cut_off][:100])
    save_file({"video": torch.zeros(1)}, earlier)  # of another version
    save_file(load_file(foreign) | {"told": torch.tensor([1.5])}, foreign)
    run()
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_folder_without_any_clip_is_an_error(runtime, model_folder, folder):  # noqa: ARG001
    graph = Graph()
    graph.show(output(read(graph, folder.name), 2))
    result = runtime.run(graph.prompt)
    assert "has no clip that can be trained on: it is empty" in result.error
    graph = Graph()
    graph.show(output(read(graph, "nowhere"), 2))
    assert "There is no folder 'nowhere'" in runtime.run(graph.prompt).error


def train(graph, clips, model=None, **inputs):
    defaults = {
        "parts": "all", "rank": 2, "steps": 2, "learning_rate": 0.01, "batch_size": 2,
        "sound_weight": 1.0, "seed": 3, "recompute": True, "name": "", "save_every": 100,
    }  # fmt: skip
    links = {"latents": clips, "positive": output(clips, 1), "model": model or graph.model()}
    return graph.add("OviTrainLora", **defaults | links | inputs)


def test_a_lora_is_trained_and_every_loader_gives_the_same(
    run, graph, folder, model_folder, small_files, runtime
):
    """Ours, stock 'Load LoRA' and core's 'Load LoRA Model'; and merged by 'ModelSave'."""
    write_video(folder / "one.mp4")
    write_video(folder / "two.mp4", size=(64, 128), frames=5)
    trained = train(graph, read(graph, folder.name))
    graph.add("SaveLoRA", lora=trained, prefix="loras/taught", steps=output(trained, 2))
    graph.add("LossGraphNode", loss=output(trained, 1), filename_prefix="loss")
    result = run(graph)
    weights, losses, steps = (result.value(trained[0], slot) for slot in range(3))
    assert steps == len(losses["loss"]) == 2
    (saved,) = (runtime.output / "loras").glob("taught_2_steps_*.safetensors")
    assert load_file(saved).keys() == weights.keys()
    shutil.move(saved, small_files / "loras" / "taught.safetensors")

    model, text, latent = graph.model(), graph.text(), graph.latent()
    ones = {f"strength_{group}": 1.0 for group in lora.GROUPS}
    bypass = {} if IS_OLD else {"bypass": False}
    by = [
        graph.add("LoraLoaderModelOnly", model=model, lora_name="taught.safetensors",
                  strength_model=1.0),
        graph.add("OviLoraLoader", model=model, lora_name="taught.safetensors", **ones),
        graph.add("LoraModelLoader", model=model, lora=trained, strength_model=1.0, **bypass),
    ]  # fmt: skip
    graph.add("ModelSave", model=by[0], filename_prefix="taught_model")
    links = [graph.sample(its, text, latent_image=latent) for its in (model, *by)]
    graph.show(*links)
    result = run(graph)
    plain, *with_lora = sampled(result, *links)
    assert not torch.allclose(plain, with_lora[0], atol=1e-3)
    (merged,) = runtime.output.glob("taught_model*.safetensors")
    shutil.move(merged, model_folder / "taught_model.safetensors")
    graph = Graph()
    link = graph.sample(graph.model("taught_model.safetensors"), latent_image=graph.latent())
    graph.show(link)
    with_lora += sampled(run(graph), link)
    for made in with_lora[1:]:
        assert torch.allclose(made, with_lora[0], atol=1e-5)


def test_strengths_of_a_trained_part_change_that_part(run, graph, folder, small_files):
    write_video(folder / "one.mp4")
    trained = train(graph, read(graph, folder.name), parts="audio", steps=1)
    graph.show(output(trained, 2))
    weights = run(graph).value(trained[0])
    save_file(weights, small_files / "loras" / "audio_alone.safetensors")
    graph = Graph()
    strengths = {"strength_video": 1.0, "strength_audio": 1.0, "strength_fusion": 1.0}
    loaded = graph.add(
        "OviLoraLoader", model=graph.model(), lora_name="audio_alone.safetensors", **strengths
    )
    graph.show(output(loaded, 1))
    report = run(graph).value(loaded[0], 1)
    assert "video 0, audio " in report
    assert "fusion 0" in report


def test_the_name_of_a_training_is_the_name_of_a_folder(runtime, graph, folder, model_folder):  # noqa: ARG001
    write_video(folder / "one.mp4")
    trained = train(graph, read(graph, folder.name), name="../out", steps=1)
    graph.show(trained)
    assert "is no name of a folder" in runtime.run(graph.prompt).error


class Given:
    """Latents and captions of two lengths, one clip with a held first frame."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",)}})  # noqa: ARG005
    RETURN_TYPES = ("LATENT", "CONDITIONING")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, clip):
        sizes = ((2, 5), (3, 10))
        latents = [
            {
                "samples": NestedTensor(
                    [seeded(f"v{f}", (1, 48, f, 4, 4)), seeded(f"a{s}", (1, 20, s))]
                )
            }
            for f, s in sizes
        ]
        video, audio = torch.ones(1, 1, 3, 4, 4), torch.ones(1, 1, 10)
        video[:, :, 0] = 0
        latents[1]["noise_mask"] = NestedTensor([video, audio])
        captions = [
            clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (CAPTION, "Rain.")
        ]
        return latents, captions


@pytest.fixture
def given(runtime, monkeypatch):
    monkeypatch.setitem(runtime.nodes.NODE_CLASS_MAPPINGS, "Given", Given)


def core_train(graph, clips, **inputs):
    defaults = {
        "batch_size": 2, "grad_accumulation_steps": 1, "steps": 2, "learning_rate": 0.01,
        "rank": 2, "optimizer": "AdamW", "loss_function": "MSE", "seed": 3,
        "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": "LoRA",
        "gradient_checkpointing": True, "existing_lora": "[None]",
    }  # fmt: skip
    if not IS_OLD:
        defaults |= {
            "quantized_backward": False, "checkpoint_depth": 2, "offloading": False,
            "bucket_mode": False, "bypass_mode": False,
        }  # fmt: skip
    links = {"latents": clips, "positive": output(clips, 1), "model": graph.model()}
    return graph.add("TrainLoraNode", **defaults | links | inputs)


@pytest.mark.usefixtures("model_folder", "given")
@pytest.mark.skipif(not IS_OLD, reason="newer ones take them")
def test_core_s_trainer_says_that_it_is_too_old(runtime, graph):
    graph.show(output(core_train(graph, graph.add("Given", clip=graph.clip())), 1))
    assert "Use 'Ovi Train LoRA', which needs no newer ComfyUI" in runtime.run(graph.prompt).error


@newer
@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("how", [{}, {"algorithm": "LoKr", "bypass_mode": True}], ids=str)
def test_core_s_trainer_takes_clips_of_several_lengths(run, graph, how):
    trained = core_train(graph, graph.add("Given", clip=graph.clip()), **how)
    graph.show(output(trained, 2))
    result = run(graph)
    weights, losses = result.value(trained[0]), result.value(trained[0], 1)["loss"]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    for part in ("video", "audio"):
        inside = "audio_model" in part
        moved = [x for name, x in weights.items() if name.endswith(".diff_b")
                 and ("audio_model." in name) == (part == "audio")]  # fmt: skip
        assert moved, inside
        assert all(x.any() for x in moved if x.numel() > 256)


@newer
@pytest.mark.usefixtures("given")
def test_core_s_trainer_goes_on_with_biases_and_alpha(run, graph, small_files):
    clips = graph.add("Given", clip=graph.clip())
    first = core_train(graph, clips)
    graph.show(output(first, 2))
    weights = run(graph).value(first[0])
    alphas = {name: torch.tensor(2.0) for name in weights if name.endswith(".alpha")}
    save_file(weights | alphas, small_files / "loras" / "begun_2_steps_1.safetensors")
    graph = Graph()
    clips = graph.add("Given", clip=graph.clip())
    second = core_train(
        graph, clips, existing_lora="begun_2_steps_1.safetensors", steps=1, learning_rate=1e-7
    )
    graph.show(output(second, 2))
    result = run(graph)
    again, steps = result.value(second[0]), result.value(second[0], 2)
    assert steps == 3
    for name, weight in weights.items():
        wanted = alphas.get(name, weight)
        assert torch.allclose(again[name].float(), wanted.float(), atol=1e-5), name


def test_latents_of_one_tensor_go_the_old_way():
    """What is not ours is handed on as it came."""
    calls = []

    class Node:
        @classmethod
        def execute(cls, **kwargs):
            calls.append(kwargs)
            return "made"

    wrap = functools.partial(core_trainer.take_clips, is_ours=lambda _: True, takes_nested=True)
    Node.execute = wrap(Node.execute)
    inputs = {"model": [None], "latents": [{"samples": torch.zeros(1, 4, 8, 8)}], "positive": []}
    assert Node.execute(**inputs) == "made"
    assert calls == [inputs]
    assert core_trainer.count_clips(lambda *args: args)(torch.zeros(2), 1, False)[1] == 1
