"""The converter: every layout in, every format out, and nothing left behind when it cannot."""

import json
import re
from types import SimpleNamespace

import comfy.quant_ops
import comfy.sd
import convert_checkpoint
import find_comfyui
import pytest
import small_weights
import torch
from comfy.ldm.mmaudio.vae import autoencoder
from comfyui_ovi.ovi_model.decode.audio import decode_16k
from comfyui_ovi.ovi_model.load import audio_vae, checkpoint, diffusion_model
from comfyui_ovi.ovi_model.load.core_vae import vae_around
from goldens import load_json, relative_error
from layout_writers import in_blocks, scaled_fp8, two_files
from quantised_forward import forward
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weight_layouts import GGUF, LAYOUTS

FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    "layout", [x for x in LAYOUTS if GGUF not in x.loaders], ids=lambda layout: layout.name
)
def test_every_layout_becomes_plain_weights_under_our_names(convert, released, tmp_path, layout):
    files, values = layout.write(released, tmp_path / layout.name)
    converted = load_file(convert("fp32", *files))
    expected = checkpoint.convert_keys(values)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


def test_two_files_join_in_either_order(convert, released, tmp_path):
    (video, audio), _ = two_files(released, tmp_path / "half")
    joined = convert("same", video, audio).read_bytes()
    swapped = convert("same", audio, video, output=tmp_path / "swapped.safetensors")
    assert [x.dtype for x in load_file(swapped).values()] == [torch.bfloat16] * len(released)
    assert data_of(joined) == data_of(swapped.read_bytes())


def data_of(written):
    """What a safetensors file holds after its header."""
    return written[8 + int.from_bytes(written[:8], "little") :]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, FP8, torch.float8_e5m2]
)
def test_the_same_precision_is_kept(convert, released, tmp_path, dtype):
    save_file(small_weights.cast(released, dtype), tmp_path / "in.safetensors")
    kept = load_file(convert("same", tmp_path / "in.safetensors"))
    expected = small_weights.cast(checkpoint.convert_keys(released), dtype)
    assert all(kept[name].dtype == dtype for name in expected)
    assert all(torch.equal(kept[name].float(), tensor.float()) for name, tensor in expected.items())


@pytest.mark.parametrize("to", ["bf16", "fp16", "fp32"])
def test_a_cast_is_torchs(convert, source, plain, to):
    cast = load_file(convert(to, source))
    assert cast.keys() == plain.keys()
    assert all(
        torch.equal(cast[name], x.to(convert_checkpoint.DTYPES[to])) for name, x in plain.items()
    )


class TestScaledFp8:
    """`<layer>.weight` in eight bits times `<layer>.scale_weight`."""

    def test_matrices_of_blocks_are_as_near_as_fp8_can_be(self, convert, source, plain):
        written = load_file(convert("fp8", source))
        for name, weight in plain.items():
            if not in_blocks(name, weight):
                assert torch.equal(written[name], weight.to(torch.bfloat16)), name
                continue
            scale = written[name.replace(".weight", ".scale_weight")]
            assert written[name].dtype == FP8
            assert scale.dtype == torch.float32
            assert scale.shape == ()
            assert scale == weight.abs().max() / 448
            # Half a unit in the last of four bits, or of the smallest number with a leading zero.
            bound = torch.maximum(weight.abs() * 2**-4, scale * 2**-10)
            assert ((written[name].float() * scale - weight).abs() <= bound * 1.0001).all(), name

    def test_nothing_else_is_in_the_file_but_its_mark(self, convert, source, plain):
        written = load_file(convert("fp8", source))
        scales = {
            name.replace(".weight", ".scale_weight")
            for name, x in plain.items()
            if in_blocks(name, x)
        }
        assert written.keys() == plain.keys() | scales | {"scaled_fp8"}
        assert len(scales) == 2 * 2 * 12
        assert written["scaled_fp8"].dtype == FP8
        assert written["scaled_fp8"].shape == (2,)

    def test_a_layer_of_zeros_stays_zero(self, convert, released, tmp_path):
        key = "video_model.blocks.0.ffn.0.weight"
        save_file(released | {key: torch.zeros_like(released[key])}, tmp_path / "in.safetensors")
        written = load_file(convert("fp8", tmp_path / "in.safetensors"))
        assert written["blocks.0.ffn.0.scale_weight"] == 1
        assert (written["blocks.0.ffn.0.weight"].float() == 0).all()

    def test_two_scaled_files_become_one_without_loss(self, convert, released, tmp_path):
        files, values = scaled_fp8(released, tmp_path / "half", files=2)
        joined = load_file(convert("fp8", *files))
        for half, prefix in zip(map(load_file, files), ("", "audio_model."), strict=True):
            for key in [key for key in half if key.endswith(".weight") and half[key].dtype == FP8]:
                assert torch.equal(
                    joined[prefix + key].view(torch.uint8), half[key].view(torch.uint8)
                ), key
        assert joined.keys() >= checkpoint.convert_keys(values).keys()


ROUNDING = {"fp8": 2**-4, "bf16": 2**-8, "fp16": 2**-11, "fp32": 0, "same": 0}


@pytest.mark.parametrize("to", ROUNDING)
def test_stock_and_own_loader_read_the_file(convert, source, to):
    """Weights are off by half of ROUNDING on average; errors of layers in a row add up in squares,
    to four times that.

    A layer read without its scale would be off by far more than all of it.
    """
    expected = forward(comfy.sd.load_diffusion_model(str(source)))
    converted = str(convert(to, source))
    stock = forward(comfy.sd.load_diffusion_model(converted))
    assert ROUNDING[to] / 8 <= relative_error(stock, expected) <= 2 * ROUNDING[to]
    assert torch.equal(stock, forward(diffusion_model.load_model(converted, None, "default")))


def test_the_file_is_laid_out_as_the_format_asks(convert, source):
    written = convert("fp8", source)
    data = written.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = header.pop("__metadata__")
    assert length % 8 == 0
    assert about == {"format": "pt", "converted_from": "ovi.safetensors", "converted_to": "fp8"}
    end = 0
    with safe_open(written, "pt") as file:
        for name, entry in header.items():
            start = end
            assert entry["data_offsets"][0] == start
            end = entry["data_offsets"][1]
            assert start % file.get_tensor(name).dtype.itemsize == 0
    assert 8 + length + end == len(data)


def alike(outlines):
    """Pairs of one outline and its name, and how many are stored as it is: thirty blocks repeat."""
    kinds = {}
    for name, outline in outlines.items():
        kinds.setdefault((outline.shape, in_blocks(name, outline)), []).append((name, outline))
    return [(members[0], len(members)) for members in kinds.values()]


def test_the_published_file_gets_the_sizes_that_help_names():
    find_comfyui.import_extension()
    import gguf_file
    import quantised_layers

    shapes = load_json("ovi_fusion_keys")
    released = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for name, shape in shapes.items()
    }
    outlines = checkpoint.convert_keys(released)
    for to, meaning in convert_checkpoint.TARGETS.items():
        named = re.search(r"([\d.]+) GB", meaning)
        if named and to in convert_checkpoint.GGUF:
            assert float(named[1]) == round(gguf_file.size(outlines, to) / 1e9, 1)
        elif to in quantised_layers.KITCHEN and not getattr(comfy.quant_ops, "ck", None):
            continue
        elif named:
            conversion = convert_checkpoint.choose_conversion(SimpleNamespace(quantised=False), to)
            size = sum(
                count * convert_checkpoint.total_size(conversion(*outline))
                for outline, count in alike(outlines)
            )
            assert float(named[1]) == round(size / 1e9, 1)
        else:
            assert to in ("same", "audio-vae")


class TestAudio:
    @pytest.fixture
    def pair(self, small_files):
        return (
            small_files / "vae" / "mmaudio_vae_small.pth",
            small_files / "vae" / "bigvgan_small.pt",
        )

    def sound(self, vae):
        latents = torch.randn(1, 20, 9, generator=torch.Generator().manual_seed(1))
        return decode_16k(vae, latents)

    def test_one_file_sounds_as_two(self, convert, pair):
        merged = convert("audio-vae", *pair)
        expected = self.sound(audio_vae.load_audio_vae(*pair))
        assert torch.equal(self.sound(audio_vae.load_audio_vae(merged)), expected)
        stored = load_file(merged)
        assert all(x.dtype == torch.float32 for x in stored.values())
        # Core's own loader, with its own class at the small width.
        stock = vae_around(
            audio_vae.SizedAutoencoder(16, 64), stored, autoencoder, "AudioAutoencoder"
        )
        assert torch.equal(self.sound(stock), expected)

    def test_nothing_is_left_that_core_would_have_to_make_up(self, convert, pair):
        stored = load_file(convert("audio-vae", *pair))
        with torch.device("meta"):
            own = autoencoder.AudioAutoencoder(mode="16k").state_dict()
        assert stored.keys() == own.keys()
        assert torch.equal(stored["mel_converter.mel_basis"], audio_vae.mel_basis())
        assert torch.equal(stored["mel_converter.hann_window"], torch.hann_window(1024))
        lengths = stored["vae.encoder.conv_in.weight"].norm(dim=(1, 2))
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0.02, atol=0)
        assert not [name for name in stored if name.endswith(("weight_g", "weight_v"))]

    def test_safetensors_halves(self, convert, pair, tmp_path):
        halves = []
        for path, weights in zip(
            pair, (torch.load(pair[0]), torch.load(pair[1])["generator"]), strict=True
        ):
            halves.append(tmp_path / f"{path.stem}.safetensors")
            save_file({name: x.contiguous() for name, x in weights.items()}, halves[-1])
        expected = load_file(convert("audio-vae", *pair))
        actual = load_file(convert("audio-vae", *halves, output=tmp_path / "other.safetensors"))
        assert all(torch.equal(actual[name], x) for name, x in expected.items())

    def test_a_half_alone(self, convert, pair):
        with pytest.raises(
            SystemExit, match=r"mmaudio_vae_small\.pth holds the audio VAE only\. Also choose"
        ):
            convert("audio-vae", pair[0])


def test_what_ovi_has_no_use_for_is_left_out(convert, released, tmp_path, capsys):
    save_file(released | {"video_model.ema.decay": torch.ones(3)}, tmp_path / "in.safetensors")
    written = load_file(convert("bf16", tmp_path / "in.safetensors"))
    assert len(written) == len(released)
    assert (
        "Left out, for Ovi has no such weights: 1, the first 'ema.decay'" in capsys.readouterr().out
    )
