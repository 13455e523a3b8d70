"""Whatever a prompt or a file holds, it is read as it says or refused in words that name it; 500
cases, and 10,000 with --nightly.
"""

import functools
import json
import re
import tempfile
from pathlib import Path

import hostile
import pytest
import torch
from comfyui_ovi.ovi_model.load import audio_vae, checkpoint, diffusion_model, text_encoder
from comfyui_ovi.ovi_model.load.weight_file import read_weights
from comfyui_ovi.ovi_model.text import prompt
from hostile import fuzz
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_weights import (
    TextSizes,
    audio_vae_weights,
    in_wan_naming,
    text_encoder_weights,
    tokenizer_model,
    vocoder_weights,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def refusal(function, *arguments) -> str:
    """What is said, or nothing if nothing is wrong; anything but a ValueError fails the test."""
    try:
        function(*arguments)
    except (UnicodeError, json.JSONDecodeError):
        raise  # a ValueError too, but one that nobody worded
    except ValueError as error:
        return str(error)
    return ""


@fuzz(100, 3300, text=hostile.tag_soup)
def test_any_prompt_is_read_or_its_fault_is_placed(text):
    said = refusal(prompt.check_prompt, text)
    if said:
        assert "prompt is empty" in said or re.search(
            r"'.+' at line \d+, column \d+", said, re.DOTALL
        )
    for convert in prompt.SOUND_FORMS.values():
        convert(text)


def words(text: str) -> str:
    return "".join(re.sub(r"<AUDCAP>|<ENDAUDCAP>|Audio:", "", text).split())


@fuzz(80, 1600, text=hostile.good_prompts)
def test_a_good_prompt_keeps_its_words_in_either_form(text):
    if refusal(prompt.check_prompt, text):
        assert not text.strip()
        return
    for convert in prompt.SOUND_FORMS.values():
        converted = convert(text)
        assert words(converted) == words(text)
        assert not refusal(prompt.check_prompt, converted)
        assert convert(converted) == converted
    assert "<AUDCAP>" not in prompt.sound_as_audio(text)


def described(content: bytes) -> dict[str, tuple[list[int], bytes]]:
    """Shape and bytes of every tensor, as the header says."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {
        name: (about["shape"], data[slice(*about["data_offsets"])])
        for name, about in header.items()
    }


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@fuzz(90, 1800, content=hostile.safetensors_files())
def test_a_safetensors_file_is_read_as_it_says_or_refused(folder, content):
    path = folder / "file.safetensors"
    path.write_bytes(content)
    said = refusal(read_weights, path)
    if said:
        assert said.startswith("file.safetensors ")
        return
    weights, _ = read_weights(path)
    assert {name: (list(x.shape), as_bytes(x)) for name, x in weights.items()} == described(content)


@fuzz(70, 1200, content=hostile.torch_files())
def test_a_torch_file_is_read_or_refused(folder, content):
    path = folder / "file.pt"
    path.write_bytes(content)
    said = refusal(read_weights, path)
    if said:
        assert said.startswith("file.pt")
    else:
        assert sum(tensor.nbytes for tensor in read_weights(path)[0].values()) <= 4 * len(content)


OVI = hostile.smallest_ovi()


@fuzz(60, 1600, changes=hostile.changes)
def test_the_sizes_of_any_checkpoint_are_read_or_its_key_is_named(changes):
    weights = hostile.apply_changes(OVI, changes)
    said = refusal(lambda: checkpoint.read_config(checkpoint.convert_keys(weights)))
    assert not said or "'" in said


@fuzz(20, 120, changes=hostile.changes)
def test_a_checkpoint_fits_or_its_key_is_named(changes):
    weights = hostile.apply_changes(OVI, changes)

    def check():
        converted = checkpoint.convert_keys(weights)
        checkpoint.check_weights(converted, *checkpoint.read_config(converted))

    said = refusal(check)
    assert not said or "'" in said


def save(weights, path, metadata=None):
    apart = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    save_file(apart, path, metadata)


@pytest.fixture(scope="module")
def load_model(folder):
    """Save a state dict and what is said of its layers as a file, and load it as OviModelLoader
    does.
    """

    def load(weights, metadata=None):
        path = folder / "model.safetensors"
        save(weights, path, metadata)
        return diffusion_model.load_model(str(path), None, "default")

    return load


@fuzz(14, 60, changes=hostile.changes)
def test_a_model_file_is_loaded_or_refused(load_model, changes):
    weights = hostile.apply_changes(OVI, changes)
    said = refusal(load_model, weights)
    assert not said or (said.startswith("model.safetensors") and "'" in said)


QUANTISED = hostile.quantised_ovi()


@fuzz(14, 60, changes=hostile.changes)
def test_a_quantised_layer_is_loaded_or_refused(load_model, changes):
    said = refusal(
        load_model, hostile.apply_changes(QUANTISED, changes, among="video_model.blocks.0.ffn.0")
    )
    assert not said or (said.startswith("model.safetensors") and "'" in said)


@fuzz(14, 60, changes=hostile.changes)
def test_two_files_are_loaded_or_refused(folder, changes):
    weights = hostile.apply_changes(OVI, changes)
    paths = [str(folder / f"{half}.safetensors") for half in ("video", "audio")]
    for half, path in enumerate(paths):
        save(
            {
                name: x
                for name, x in weights.items()
                if name.startswith("audio_model.") == bool(half)
            },
            path,
        )
    said = refusal(diffusion_model.load_model, *paths, "default")
    assert not said or ".safetensors" in said


@fuzz(20, 120, text=hostile.quantisations)
def test_what_is_said_of_layers_is_read_or_refused(load_model, text):
    said = refusal(load_model, OVI, {"_quantization_metadata": text})
    assert not said or said.startswith("model.safetensors")


@functools.cache
def umt5():
    weights = text_encoder_weights(TextSizes(16, 16, 8, 2, 2, 640), torch.bfloat16, seed=0)
    return weights | {"spiece_model": tokenizer_model(640)}


@pytest.fixture(scope="module")
def neighbour(folder):
    save(umt5(), folder / "neighbour.safetensors")
    return folder / "neighbour.safetensors"


@fuzz(14, 160, changes=hostile.changes, rename=st.sampled_from([dict, in_wan_naming]))
def test_a_text_encoder_is_loaded_or_refused(folder, neighbour, changes, rename):
    path = folder / "umt5.safetensors"
    save(rename(hostile.apply_changes(umt5(), changes)), path)
    said = refusal(text_encoder.load_text_encoder, path, [neighbour])
    assert not said or said.startswith("umt5.safetensors")


@functools.cache
def audio():
    halves = {"vae": audio_vae_weights(0, hidden_dim=4), "vocoder": vocoder_weights(0, channels=64)}
    return {
        f"{half}.{name}": tensor
        for half, weights in halves.items()
        for name, tensor in weights.items()
    }


@fuzz(4, 12, changes=hostile.changes)
def test_an_audio_vae_is_loaded_or_refused(folder, changes):
    path = folder / "audio.pt"
    torch.save(hostile.apply_changes(audio(), changes), path)
    said = refusal(audio_vae.load_audio_vae, path)
    assert not said or "audio.pt" in said


def test_enough_cases_ran():
    if hostile.CASES.keys() != hostile.PLANNED.keys():
        pytest.skip("only some of the properties were chosen")
    assert sum(hostile.CASES.values()) >= (10_000 if hostile.NIGHTLY else 500), hostile.CASES
