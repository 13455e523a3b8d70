"""Which files are Ovi's, what they lack, and how two halves become one."""

import pytest
import torch
from comfyui_ovi.ovi_model import checkpoint, loader
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def released(small_files):
    return load_file(small_files / "diffusion_models" / "ovi_small.safetensors")


@pytest.fixture(scope="module")
def halves(released):
    """The two files of a split release: bare keys for the picture, `audio_model.` for the sound."""
    plain = {key.replace(".modulation.modulation", ".modulation"): tensor for key, tensor in released.items()}
    video = {key.removeprefix("video_model."): x for key, x in plain.items() if key.startswith("video_model.")}
    return video, {key: tensor for key, tensor in plain.items() if key.startswith("audio_model.")}


def write(path, weights):
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return str(path)


def without(weights, *parts):
    return {key: tensor for key, tensor in weights.items() if not any(part in key for part in parts)}


def test_sizes_are_read_off_the_weights(released):
    video, audio = checkpoint.read_config(checkpoint.convert_keys(released))
    assert (video.dim, video.ffn_dim, video.num_layers, video.num_heads, video.head_dim) == (256, 384, 12, 2, 128)
    assert (video.in_dim, video.out_dim, video.patch_size, video.text_dim) == (48, 48, (1, 2, 2), 64)
    assert (audio.in_dim, audio.out_dim, audio.patch_hidden, audio.patch_kernel) == (20, 20, 768, 7)


def test_keys_keep_their_tensors(released):
    converted = checkpoint.convert_keys(released)
    assert len(converted) == len(released)
    assert converted["blocks.0.modulation"] is released["video_model.blocks.0.modulation.modulation"]
    assert "audio_model.blocks.0.modulation" in converted


def test_two_keys_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"both be named 'a\.bias'; the second is 'video_model\.a\.bias'"):
        checkpoint.convert_keys({"a.bias": torch.zeros(1), "video_model.a.bias": torch.zeros(1)})


@pytest.mark.parametrize("spelling", ["audio_model.", "bare", "saved by ComfyUI"])
def test_two_files_make_the_model_of_one(tmp_path, released, halves, spelling):
    video, audio = halves
    if spelling == "saved by ComfyUI":
        video, audio = ({f"model.diffusion_model.{key}": x for key, x in half.items()} for half in halves)
    if spelling == "bare":
        audio = {key.removeprefix("audio_model."): tensor for key, tensor in audio.items()}
    paths = write(tmp_path / "video.safetensors", video), write(tmp_path / "audio.safetensors", audio)
    one = loader.load_model(write(tmp_path / "one.safetensors", released), None, "default").model.state_dict()
    two = loader.load_model(*paths, "default").model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_what_is_not_ovi_is_said(tmp_path, released, halves):
    video, audio = halves
    files = {
        "video": video,
        "audio": audio,
        "fused": released,
        "wan": without(video, "fusion"),
        "short": without(released, "audio_model.blocks.7.ffn"),
        "shape": {**released, "audio_model.head.head.weight": torch.zeros(20, 250)},
        "shallow": without(audio, "blocks.11."),
        "narrow": {**released, "video_model.patch_embedding.weight": torch.zeros(256, 48)},
    }
    paths = {name: write(tmp_path / f"{name}.safetensors", weights) for name, weights in files.items()}

    def refusal(model, audio_model=None):
        with pytest.raises(ValueError) as caught:
            loader.load_model(paths[model], audio_model and paths[audio_model], "default")
        return str(caught.value)

    assert "video.safetensors holds only the video tower" in refusal("video")
    assert "'audio_model'" in refusal("video")
    assert "audio.safetensors holds only the audio tower" in refusal("audio")
    assert "wan.safetensors is not an Ovi model" in refusal("wan")
    assert "'Load Diffusion Model'" in refusal("wan")
    assert "short.safetensors: The Ovi weights lack 4 of" in refusal("short")
    assert "'audio_model.blocks.7.ffn.0.weight'" in refusal("short")
    assert "'audio_model.head.head.weight' has the shape [20, 250], expected [20, 256]" in refusal("shape")
    assert "fused.safetensors holds both towers of Ovi: set 'audio_model'" in refusal("fused", "audio")
    assert "audio_model fused.safetensors holds both towers" in refusal("video", "fused")
    assert "audio_model wan.safetensors holds no audio tower" in refusal("video", "wan")
    assert "video has 12 blocks of width 256, audio 11" in refusal("video", "shallow")
    assert "'patch_embedding.weight' has the shape [256, 48], expected 5 dimensions" in refusal("narrow")


def test_half_a_file_in_the_stock_loader_points_to_ours(tmp_path, halves):
    import comfy.sd

    for half, other in zip(halves, ("audio", "video"), strict=True):
        path = write(tmp_path / "half.safetensors", half)
        with pytest.raises(ValueError, match=f"its {other} tower is in a second file.*'Ovi Model Loader'"):
            comfy.sd.load_diffusion_model(path)
