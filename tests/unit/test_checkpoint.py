"""Which files are Ovi's, what they lack, and how two halves become one."""

import pytest
import torch
from comfyui_ovi.ovi_model.load import checkpoint, diffusion_model
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def released(small_files):
    return load_file(small_files / "diffusion_models" / "ovi_small.safetensors")


@pytest.fixture(scope="module")
def halves(released):
    """The two files of a split release: bare keys for the picture, `audio_model.` for the sound."""
    plain = {
        key.replace(".modulation.modulation", ".modulation"): tensor
        for key, tensor in released.items()
    }
    video = {
        key.removeprefix("video_model."): x
        for key, x in plain.items()
        if key.startswith("video_model.")
    }
    return video, {key: tensor for key, tensor in plain.items() if key.startswith("audio_model.")}


def write(path, weights):
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return str(path)


def without(weights, *parts):
    return {
        key: tensor for key, tensor in weights.items() if not any(part in key for part in parts)
    }


def test_sizes_are_read_off_the_weights(released):
    video, audio = checkpoint.read_config(checkpoint.convert_keys(released))
    assert (video.dim, video.ffn_dim, video.num_layers, video.num_heads, video.head_dim) == (
        256,
        384,
        12,
        2,
        128,
    )
    assert (video.in_dim, video.out_dim, video.patch_size, video.text_dim) == (
        48,
        48,
        (1, 2, 2),
        64,
    )
    assert (audio.in_dim, audio.out_dim, audio.patch_hidden, audio.patch_kernel) == (20, 20, 768, 7)


def test_keys_keep_their_tensors(released):
    converted = checkpoint.convert_keys(released)
    assert len(converted) == len(released)
    assert (
        converted["blocks.0.modulation.modulation"]
        is released["video_model.blocks.0.modulation.modulation"]
    )
    assert (
        converted["audio_model.head.modulation.modulation"]
        is released["audio_model.head.modulation"]
    )


def test_two_keys_of_one_name_are_refused():
    with pytest.raises(
        ValueError, match=r"both be named 'a\.bias'; the second is 'video_model\.a\.bias'"
    ):
        checkpoint.convert_keys({"a.bias": torch.zeros(1), "video_model.a.bias": torch.zeros(1)})


@pytest.mark.parametrize(
    "spelling", ["audio_model.", "bare", "model.diffusion_model.", "model.", "module."]
)
def test_two_files_make_the_model_of_one(tmp_path, released, halves, spelling):
    video, audio = halves
    if spelling.startswith("mod"):
        video, audio = ({spelling + key: x for key, x in half.items()} for half in halves)
    if spelling == "bare":
        audio = {key.removeprefix("audio_model."): tensor for key, tensor in audio.items()}
    paths = (
        write(tmp_path / "video.safetensors", video),
        write(tmp_path / "audio.safetensors", audio),
    )
    one = diffusion_model.load_model(
        write(tmp_path / "one.safetensors", released), None, "default"
    ).model.state_dict()
    two = diffusion_model.load_model(*paths, "default").model.state_dict()
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
    paths = {
        name: write(tmp_path / f"{name}.safetensors", weights) for name, weights in files.items()
    }

    def refusal(model, audio_model=None):
        with pytest.raises(ValueError) as caught:
            diffusion_model.load_model(paths[model], audio_model and paths[audio_model], "default")
        return str(caught.value)

    assert "video.safetensors holds only the video tower" in refusal("video")
    assert "'audio_model'" in refusal("video")
    assert "audio.safetensors holds only the audio tower" in refusal("audio")
    assert "wan.safetensors is not an Ovi model" in refusal("wan")
    assert "'Load Diffusion Model'" in refusal("wan")
    assert "short.safetensors: The Ovi weights lack 4 of" in refusal("short")
    assert "'audio_model.blocks.7.ffn.0.weight'" in refusal("short")
    assert "'audio_model.head.head.weight' has the shape [20, 250], expected [20, 256]" in refusal(
        "shape"
    )
    assert "fused.safetensors holds both towers of Ovi: set 'audio_model'" in refusal(
        "fused", "audio"
    )
    assert "audio_model fused.safetensors holds both towers" in refusal("video", "fused")
    assert "audio_model wan.safetensors holds no audio tower" in refusal("video", "wan")
    assert "video has 12 blocks of width 256, audio 11" in refusal("video", "shallow")
    assert "'patch_embedding.weight' has the shape [256, 48], expected 5 dimensions" in refusal(
        "narrow"
    )


@pytest.mark.parametrize(
    ("half", "files", "message"),
    [
        (
            0,
            ["Ovi_Video_bf16", "Ovi_Audio_bf16"],
            "as 'audio_model': Ovi_Audio_bf16.safetensors, in the same folder.",
        ),
        (
            0,
            ["ovi_video_10B"],
            "as 'audio_model': ovi_audio_10B.safetensors, to be downloaded too.",
        ),
        (1, ["ovi_audio_10B"], "as 'model': ovi_video_10B.safetensors, to be downloaded too."),
        (0, ["renamed"], "as 'audio_model'."),
    ],
)
def test_the_other_half_is_named(tmp_path, halves, half, files, message):
    path, *_ = [write(tmp_path / f"{name}.safetensors", halves[half]) for name in files]
    with pytest.raises(ValueError) as caught:
        diffusion_model.load_model(path, None, "default")
    assert str(caught.value).endswith(message)


def test_half_a_file_in_the_stock_loader_points_to_ours(tmp_path, halves):
    import comfy.sd

    for half, other in zip(halves, ("audio", "video"), strict=True):
        path = write(tmp_path / "half.safetensors", half)
        with pytest.raises(
            ValueError, match=f"its {other} tower is in a second file.*'Ovi Model Loader'"
        ):
            comfy.sd.load_diffusion_model(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("video_model.blocks.3.norm3.bias", "blocks.3.norm3.bias"),
        (
            "audio_model.blocks.0.modulation.modulation",
            "audio_model.blocks.0.modulation.modulation",
        ),
    ],
)
def test_a_number_that_is_none_is_refused(tmp_path, released, number, key, named):
    damaged = {**released, key: released[key].clone()}
    damaged[key].view(-1)[7] = number
    path = write(tmp_path / "damaged.safetensors", damaged)
    with pytest.raises(
        ValueError, match=rf"damaged\.safetensors: '{named}' holds infinite or undefined .*download"
    ):
        diffusion_model.load_model(path, None, "default")


def test_numbers_of_a_matrix_are_not_looked_through_at_every_load():
    checkpoint._check_numbers({"matrix": torch.full((300, 300), float("nan"))})


@pytest.mark.parametrize("tower", ["", "audio_model."])
def test_a_block_number_makes_no_blocks(released, tower):
    weights = checkpoint.convert_keys(released) | {
        f"{tower}blocks.99999999.norm3.bias": torch.zeros(1)
    }
    with pytest.raises(
        ValueError, match=f"have '{tower}blocks.99999999' but no '{tower}blocks.12'. .*download"
    ):
        checkpoint.read_config(weights)
    weights = checkpoint.convert_keys(released) | {f"{tower}blocks.{'9' * 5000}.x": torch.zeros(1)}
    assert checkpoint.read_config(weights) == checkpoint.read_config(
        checkpoint.convert_keys(released)
    )


@pytest.mark.parametrize("tower", ["video_model.", "audio_model."])
def test_a_width_makes_no_model(tmp_path, released, tower):
    wide = released | {f"{tower}text_embedding.0.weight": torch.zeros(128 * 2000, 64)}
    with pytest.raises(
        ValueError, match=r"text_embedding\.2\.weight' has the shape \[256, 256\], exp"
    ):
        diffusion_model.load_model(write(tmp_path / "wide.safetensors", wide), None, "default")


def test_a_size_of_nothing_is_refused(released):
    weights = checkpoint.convert_keys(released) | {
        "patch_embedding.weight": torch.zeros(256, 48, 0, 2, 2)
    }
    with pytest.raises(
        ValueError, match=r"'patch_embedding\.weight' has the shape \[256, 48, 0, 2, 2\].* none "
    ):
        checkpoint.read_config(weights)


def test_two_keys_of_one_name_are_refused_in_either_file(tmp_path, halves):
    video, audio = halves
    key = "audio_model.blocks.0.norm3.bias"
    good = write(tmp_path / "video.safetensors", video)
    twice = write(
        tmp_path / "audio.safetensors",
        {**audio, key.removeprefix("audio_model."): audio[key].clone()},
    )
    with pytest.raises(
        ValueError,
        match=rf"audio\.safetensors: Two tensors of the file would both be named '{key}'",
    ):
        diffusion_model.load_model(good, twice, "default")
    saved = {**video, "model.diffusion_model.head.head.bias": video["head.head.bias"].clone()}
    with pytest.raises(
        ValueError, match=r"twice\.safetensors: Two tensors .* named 'head\.head\.bias'"
    ):
        diffusion_model.load_model(write(tmp_path / "twice.safetensors", saved), None, "default")


def test_whole_numbers_of_another_shape_are_refused_unless_they_are_packed(released):
    weights = checkpoint.convert_keys(released)
    sizes = checkpoint.read_config(weights)
    weights["blocks.0.ffn.0.weight"] = torch.zeros(384, 128, dtype=torch.uint8)
    with pytest.raises(
        ValueError,
        match=r"'blocks\.0\.ffn\.0\.weight' has the shape \[384, 128\], expected \[384, 256\]",
    ):
        checkpoint.check_weights(weights, *sizes)
    checkpoint.check_weights(
        weights | {"blocks.0.ffn.0.comfy_quant": torch.zeros(2, dtype=torch.uint8)}, *sizes
    )
