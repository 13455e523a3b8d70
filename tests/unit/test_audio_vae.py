"""The audio VAE from files of every layout, at any width; wrong files say what they are."""

import comfy.sd
import pytest
import small_weights
import torch
import torchaudio
from comfy.ldm.mmaudio.vae import autoencoder
from comfyui_ovi.ovi_model.decode.audio import decode_16k
from comfyui_ovi.ovi_model.load import audio_vae
from safetensors.torch import load_file, save_file

VAE, VOCODER, MERGED = "mmaudio_vae_small.pth", "bigvgan_small.pt", "mmaudio_small.safetensors"


@pytest.fixture(scope="module")
def folder(small_files):
    return small_files / "vae"


@pytest.fixture
def halves(folder):
    """Weights of the two published files."""
    return torch.load(folder / VAE), torch.load(folder / VOCODER)["generator"]


@pytest.fixture
def load(tmp_path):
    """Save one or two state dicts as files and load them as an audio VAE."""

    def load(vae, vocoder=None):
        paths = []
        for name, weights in (("vae", vae), ("vocoder", vocoder)):
            if weights is not None:
                paths.append(tmp_path / f"my_{name}.safetensors")
                save_file({key: tensor.contiguous() for key, tensor in weights.items()}, paths[-1])
        return audio_vae.load_audio_vae(*paths)

    return load


@pytest.fixture
def expected(folder):
    return sound(audio_vae.load_audio_vae(folder / VAE, folder / VOCODER))


def sound(vae, batch=1):
    latents = torch.randn(batch, 20, 9, generator=torch.Generator().manual_seed(1))
    return decode_16k(vae, latents)


def parametrized(vocoder):
    spelling = {
        "weight_g": "parametrizations.weight.original0",
        "weight_v": "parametrizations.weight.original1",
    }
    renamed = {}
    for name, tensor in vocoder.items():
        head, _, leaf = name.rpartition(".")
        renamed[f"{head}.{spelling.get(leaf, leaf)}"] = tensor
    return renamed


def test_one_step_is_512_samples_and_clips_are_independent(folder):
    vae = audio_vae.load_audio_vae(folder / VAE, folder / VOCODER)
    both = sound(vae, batch=2)
    latents = torch.randn(2, 20, 9, generator=torch.Generator().manual_seed(1))
    assert both.shape == (2, 1, 9 * 512)
    assert both.dtype == torch.float32
    torch.testing.assert_close(both[1:], decode_16k(vae, latents[1:]))
    assert both.std() > 1e-3


@pytest.mark.parametrize("spell", [dict, parametrized, audio_vae.fold_weight_norm])
@pytest.mark.parametrize("prefix", ["", "{}.", "module.{}.", "generator."])
def test_every_spelling_gives_the_same_sound(halves, load, expected, spell, prefix):
    vae = {prefix.format("vae") + name: tensor for name, tensor in halves[0].items()}
    vocoder = {prefix.format("vocoder") + name: tensor for name, tensor in spell(halves[1]).items()}
    torch.testing.assert_close(sound(load(vae, vocoder)), expected, rtol=1e-5, atol=1e-6)


def test_constants_may_be_absent(halves, load, expected):
    vae, vocoder = (
        {k: v for k, v in half.items() if k.split(".")[-1] not in audio_vae.COMPUTED}
        for half in halves
    )
    torch.testing.assert_close(sound(load(vae, vocoder)), expected, rtol=1e-5, atol=1e-6)


def test_comfyuis_one_file_gives_the_same_sound(folder, expected):
    merged = audio_vae.load_audio_vae(folder / MERGED)
    torch.testing.assert_close(sound(merged), expected, rtol=1e-4, atol=1e-6)
    stored = load_file(folder / MERGED)
    loaded = merged.first_stage_model.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.allclose(stored[name], loaded[name], atol=1e-7) for name in stored)


def test_half_precision_files_are_computed_in_float32(halves, load, expected):
    vae, vocoder = ({name: tensor.half() for name, tensor in half.items()} for half in halves)
    actual = sound(load(vae, vocoder))
    assert (actual - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize(("hidden_dim", "channels"), [(8, 64), (24, 128)])
def test_widths_come_from_the_weights(load, hidden_dim, channels):
    vae = small_weights.audio_vae_weights(0, hidden_dim)
    model = load(vae, small_weights.vocoder_weights(0, channels)).first_stage_model
    assert model.vae.encoder.conv_in.weight.shape[0] == hidden_dim
    assert model.vocoder.conv_pre.weight.shape[0] == channels


def test_stock_decode_and_encode_work_at_44100(folder):
    vae = audio_vae.load_audio_vae(folder / VAE, folder / VOCODER)
    latents = torch.randn(1, 20, 9)
    resampled = torchaudio.functional.resample(decode_16k(vae, latents), 16000, 44100)
    torch.testing.assert_close(vae.decode(latents).movedim(-1, 1), resampled)
    mel_frames = (44100 * 16000 // 44100 + 768 - 1024) // 256 + 1
    assert vae.encode(torch.rand(1, 44100, 2) - 0.5).shape == (1, 20, mel_frames // 2)


@pytest.fixture(scope="module")
def stock(folder):
    """The VAE as core's nodes have it."""
    return audio_vae.load_audio_vae(folder / VAE, folder / VOCODER)


@pytest.mark.parametrize("steps", [1, 2, 47, 157])
def test_the_stock_tiled_decode_makes_as_many_samples(stock, steps):
    """Of clips of 37 and 121 frames too, whose sound is no whole number of samples long."""
    latents = torch.randn(1, 20, steps)
    whole = stock.decode(latents)
    at_once = stock.decode_tiled(latents, tile_x=512, tile_y=512, overlap=64)
    torch.testing.assert_close(at_once, whole.expand_as(at_once), rtol=0, atol=1e-6)
    # Every fifth step begins with a whole sample; before 0.33 core needs that of each tile.
    in_tiles = stock.decode_tiled(latents, tile_x=32, tile_y=32, overlap=2)
    assert in_tiles.shape == at_once.shape
    assert in_tiles.isfinite().all()


def test_samples_are_counted_as_the_resampler_counts(stock):
    assert stock.upscale_ratio == 512 * 44100 / 16000
    for steps in (*range(1, 80), 156, 157, 314):
        made = torchaudio.functional.resample(torch.zeros(1, 512 * steps), 16000, 44100)
        assert stock.upscale_ratio(steps) == made.shape[-1]


def test_nothing_of_comfyui_stays_replaced(folder, monkeypatch):
    original = autoencoder.AudioAutoencoder
    audio_vae.load_audio_vae(folder / MERGED)
    assert autoencoder.AudioAutoencoder is original

    def broken(*_, **__):
        raise MemoryError

    monkeypatch.setattr(comfy.sd, "VAE", broken)
    with pytest.raises(MemoryError):
        audio_vae.load_audio_vae(folder / MERGED)
    assert autoencoder.AudioAutoencoder is original


def test_comfyui_can_ask_for_a_fresh_copy(folder):
    vae = audio_vae.load_audio_vae(folder / VAE, folder / VOCODER)
    reload, arguments = vae.patcher.cached_patcher_init
    copy = reload(*arguments, disable_dynamic=True)
    assert copy.model is not vae.first_stage_model
    assert all(
        map(
            torch.equal,
            copy.model.state_dict().values(),
            vae.first_stage_model.state_dict().values(),
        )
    )


class TestWrongFiles:
    """Each names the file, what was found, and which file belongs there."""

    @pytest.mark.parametrize(
        ("vae", "vocoder", "message"),
        [
            (
                VAE,
                None,
                f"{VAE} holds the audio VAE only. Also choose its vocoder, mmaudio_vocoder",
            ),
            (
                VOCODER,
                None,
                f"vae {VOCODER} is a vocoder, not a VAE; choose MMAudio's 16 kHz VAE, mmaudio_vae",
            ),
            (VOCODER, VAE, f"{VOCODER} is the vocoder and {VAE} the VAE: swap the two inputs"),
            (
                MERGED,
                VAE,
                f"vocoder {VAE} is an audio VAE, not a BigVGAN vocoder such as mmaudio_vocoder",
            ),
            (VAE, "wan22_tiny_small.safetensors", "is something else, not a BigVGAN vocoder"),
            (
                "wan22_encoder_small.safetensors",
                None,
                "vae wan22_encoder_small.safetensors is not an audio VAE",
            ),
            (
                "wan22_tiny_small.safetensors",
                VOCODER,
                "vae wan22_tiny_small.safetensors is not an audio VAE",
            ),
        ],
    )
    def test_wrong_place(self, folder, vae, vocoder, message):
        with pytest.raises(ValueError) as caught:
            audio_vae.load_audio_vae(folder / vae, vocoder and folder / vocoder)
        assert message in str(caught.value)

    def test_an_image_vae_is_no_audio_vae(self, load):
        with pytest.raises(ValueError, match=r"vae my_vae\.safetensors is not an audio VAE"):
            load({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)})

    def test_44_khz(self, halves, load):
        vae, vocoder = halves
        vae["encoder.conv_in.weight"] = torch.zeros(16, 128, 3)
        with pytest.raises(
            ValueError,
            match=r"my_vae\.safetensors works on 128 mel bands, Ovi's audio on 80.*44\.1 kHz",
        ):
            load(vae, vocoder)

    def test_44_khz_vocoder(self, halves, load):
        vae, vocoder = halves
        vocoder["conv_pre.weight_v"] = torch.ones(64, 128, 7)
        with pytest.raises(ValueError, match=r"my_vocoder\.safetensors works on 128 mel bands"):
            load(vae, vocoder)

    @pytest.mark.parametrize(
        ("half", "key", "width"),
        [
            (0, "encoder.conv_in.weight", 0),
            (0, "encoder.conv_in.weight", 769),
            (1, "conv_pre.weight", 0),
            (1, "conv_pre.weight", 65),
            (1, "conv_pre.weight", 4096),
        ],
    )
    def test_a_width_that_is_none(self, halves, load, half, key, width):
        halves = halves[0], audio_vae.fold_weight_norm(halves[1])
        halves[half][key] = torch.ones(width, 80, 1)
        file = ("my_vae", "my_vocoder")[half]
        with pytest.raises(
            ValueError,
            match=rf"^{file}\.safetensors is {width} wide \('{key}'\).*download it again",
        ):
            load(*halves)

    @pytest.mark.parametrize("shape", [(), (64,), (64, 1), (1, 1, 1)])
    def test_lengths_that_do_not_fit_their_directions(self, halves, load, shape):
        vae, vocoder = halves
        vocoder["ups.0.0.weight_g"] = torch.ones(shape)
        with pytest.raises(
            ValueError,
            match=r"my_vocoder\.safetensors is incomplete: it has no 'ups\.0\.0\.weight'",
        ):
            load(vae, vocoder)

    @pytest.mark.parametrize("shape", [(), (80,), (80, 5)])
    def test_a_weight_that_is_no_convolution(self, halves, load, shape):
        vae, vocoder = halves
        vae["decoder.conv_out.weight"] = torch.zeros(shape)
        with pytest.raises(
            ValueError, match=r"my_vae\.safetensors: 'decoder\.conv_out\.weight' has shape \["
        ):
            load(vae, vocoder)

    def test_names_that_are_wrappers_alone(self, halves):
        vae, vocoder = audio_vae.split_halves(
            {**halves[0], "module": torch.zeros(1), "": torch.zeros(1)}
        )
        assert vae.keys() == halves[0].keys()
        assert not vocoder

    def test_not_finite(self, halves, load):
        vae, vocoder = halves
        vae["decoder.conv_in.weight"][0, 0, 0] = float("nan")
        with pytest.raises(
            ValueError, match=r"my_vae\.safetensors: 'decoder\.conv_in\.weight' holds infinite"
        ):
            load(vae, vocoder)

    def test_missing_weight(self, halves, load):
        vae, vocoder = halves
        del vocoder["ups.3.0.weight_v"]
        with pytest.raises(
            ValueError,
            match=r"my_vocoder\.safetensors is incomplete: it has no 'ups\.3\.0\.weight'",
        ):
            load(vae, vocoder)

    def test_wrong_shape(self, halves, load):
        vae, vocoder = halves
        vae["decoder.conv_out.weight"] = torch.zeros(80, 5, 3)
        with pytest.raises(
            ValueError,
            match=r"my_vae\.safetensors: 'decoder\.conv_out\.weight' has shape \[80, 5, 3\]",
        ):
            load(vae, vocoder)


def test_a_merge_of_the_two_files_as_they_are_equals_the_two_files(small_files, tmp_path):
    halves = (
        torch.load(small_files / "vae" / "mmaudio_vae_small.pth"),
        load_half(small_files / "vae" / "bigvgan_small.pt"),
    )
    merged = {
        f"{part}.{key}": x
        for part, half in zip(("vae", "vocoder"), halves, strict=True)
        for key, x in half.items()
    }
    torch.save(merged, tmp_path / "merged.pth")
    paths = small_files / "vae" / "mmaudio_vae_small.pth", small_files / "vae" / "bigvgan_small.pt"
    expected = audio_vae.load_audio_vae(*paths).first_stage_model.state_dict()
    actual = audio_vae.load_audio_vae(tmp_path / "merged.pth").first_stage_model.state_dict()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def load_half(path):
    return torch.load(path)["generator"]
