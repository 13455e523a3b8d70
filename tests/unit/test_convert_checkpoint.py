"""The converter: every layout in, every format out, and nothing left behind when it cannot."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import convert_checkpoint
import find_comfyui
import gguf
import pytest
import small_weights
import torch
from comfy.ldm.mmaudio.vae import autoencoder
from comfyui_ovi.ovi_model import audio_vae, checkpoint, loader
from goldens import load_json, relative_error
from layout_writers import in_blocks, scaled_fp8, split, two_files
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weight_layouts import GGUF, LAYOUTS

# Rows of the second layer of each feed-forward are no multiple of 32.
SIZES = small_weights.OviSizes(layers=2, ffn_dim=200)
FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def released():
    """The fused file in float32, under the published names."""
    return small_weights.ovi_weights(SIZES, torch.float32, seed=3)


@pytest.fixture(scope="module")
def plain(released):
    return checkpoint.convert_keys(released)


@pytest.fixture(scope="module")
def source(released, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "ovi.safetensors"
    save_file(released, path)
    return path


@pytest.fixture
def convert(tmp_path):
    """Run the tool as a user does; returns the file it wrote."""

    def convert(to, *inputs, output=None, options=()):
        ending = "gguf" if to in convert_checkpoint.GGUF else "safetensors"
        output = output or tmp_path / f"converted_{to}.{ending}"
        convert_checkpoint.main([*map(str, inputs), str(output), "--to", to, *options])
        return output

    return convert


def forward(patcher):
    """Picture and sound that a loaded model makes of something, flat."""
    generator = torch.Generator().manual_seed(5)
    shapes = (1, 48, 2, 4, 4), (1, 20, 9), (1, 7, SIZES.text_dim)
    video, audio, text = (torch.randn(shape, generator=generator) for shape in shapes)
    comfy.model_management.load_models_gpu([patcher])
    with torch.no_grad():
        made = patcher.model.diffusion_model([video, audio], torch.tensor([500.0]), text)
    return torch.cat([x.flatten() for x in made])


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if GGUF not in x.loaders], ids=lambda layout: layout.name)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, FP8, torch.float8_e5m2])
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
    assert all(torch.equal(cast[name], x.to(convert_checkpoint.DTYPES[to])) for name, x in plain.items())


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
        scales = {name.replace(".weight", ".scale_weight") for name, x in plain.items() if in_blocks(name, x)}
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
                assert torch.equal(joined[prefix + key].view(torch.uint8), half[key].view(torch.uint8)), key
        assert joined.keys() >= checkpoint.convert_keys(values).keys()


@pytest.mark.parametrize(("to", "error"), [("fp8", 0.06), ("bf16", 0.006), ("fp16", 0.001), ("fp32", 0), ("same", 0)])
def test_stock_and_own_loader_read_the_file(convert, source, to, error):
    """A rounded weight is off by 3 % at the most on average in fp8, 0.3 % in bf16; see test_layouts."""
    expected = forward(comfy.sd.load_diffusion_model(str(source)))
    converted = str(convert(to, source))
    stock = forward(comfy.sd.load_diffusion_model(converted))
    assert error / 60 <= relative_error(stock, expected) <= error
    assert torch.equal(stock, forward(loader.load_model(converted, None, "default")))


# The largest rounding error in steps of a block, and the steps up to the largest number of a block. In 4 and 5 bits
# the range has one step more on the side of that number, so that its opposite is cut off by one.
STEPS = {"q8_0": (0.5, 127), "q5_0": (1, 16), "q4_0": (1, 8)}


class TestGGUF:
    @pytest.fixture(params=list(STEPS))
    def written(self, request, convert, source):
        return request.param, gguf.GGUFReader(convert(request.param, source))

    def test_every_weight_is_within_the_formats_error(self, written, plain):
        kind, reader = written
        assert sorted(tensor.name for tensor in reader.tensors) == sorted(plain)
        for tensor in reader.tensors:
            weight = plain[tensor.name]
            actual = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).reshape(
                weight.shape
            )
            bound = {"F32": 0, "F16": weight.abs() * 2**-11 + 2**-25}.get(tensor.tensor_type.name)
            if bound is None:
                most, steps = STEPS[kind]
                largest = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
                # The scale itself is rounded to half precision.
                bound = (largest * (most / steps + 2**-10)).expand(*largest.shape[:-1], 32).flatten(-2)
            assert ((actual - weight).abs() <= bound).all(), tensor.name

    def test_types_are_those_the_public_loader_can_use(self, written, plain):
        kind, reader = written
        types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        for name, weight in plain.items():
            if weight.ndim == 1 or name.endswith("modulation"):
                assert types[name] == "F32", name
            elif in_blocks(name, weight) and weight.shape[1] % 32 == 0:
                assert types[name] == kind.upper(), name
            else:
                assert types[name] == "F16", name
        assert types["blocks.0.ffn.2.weight"] == "F16"
        assert set(types.values()) == {"F32", "F16", kind.upper()}

    def test_what_the_file_says_of_itself(self, written, source):
        kind, reader = written
        assert reader.get_field("general.architecture").contents() == "wan"
        assert reader.get_field("ovi.converted_from").contents() == source.name
        assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]
        shapes = {x: y for x, y in reader.fields.items() if x.startswith("comfy.gguf.orig_shape.")}
        assert list(shapes) == ["comfy.gguf.orig_shape.patch_embedding.weight"]
        (field,) = shapes.values()
        assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
        assert field.contents() == [SIZES.dim, 48, 1, 2, 2]

    def test_without_the_package(self, convert, source, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gguf", None)
        monkeypatch.delitem(sys.modules, "gguf_file", raising=False)
        with pytest.raises(SystemExit, match=r"need the package 'gguf': run '.*python.* -m pip install gguf'"):
            convert("q8_0", source)
        assert not list(tmp_path.iterdir())

    def test_numbers_too_large_for_half_precision(self, convert, released, tmp_path):
        released = released | {"audio_model.head.head.weight": torch.full((20, SIZES.dim), 1e6)}
        save_file(released, tmp_path / "in.safetensors")
        with pytest.raises(SystemExit, match=r"'audio_model\.head\.head\.weight' has numbers too large for half"):
            convert("q8_0", tmp_path / "in.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


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


def test_the_published_file_gets_the_sizes_that_help_names():
    find_comfyui.import_ovi_model()
    import gguf_file

    shapes = load_json("ovi_fusion_keys")
    released = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    outlines = checkpoint.convert_keys(released)
    for to, meaning in convert_checkpoint.TARGETS.items():
        named = re.search(r"([\d.]+) GB", meaning)
        if named and to in convert_checkpoint.GGUF:
            assert float(named[1]) == round(gguf_file.size(outlines, to) / 1e9, 1)
        elif named:
            conversion = convert_checkpoint.choose_conversion(SimpleNamespace(quantised=False), to)
            size = sum(convert_checkpoint.total_size(conversion(*item)) for item in outlines.items())
            assert float(named[1]) == round(size / 1e9, 1)
        else:
            assert to in ("same", "audio-vae")


class TestAudio:
    @pytest.fixture
    def pair(self, small_files):
        return small_files / "vae" / "mmaudio_vae_small.pth", small_files / "vae" / "bigvgan_small.pt"

    def sound(self, vae):
        latents = torch.randn(1, 20, 9, generator=torch.Generator().manual_seed(1))
        return audio_vae.decode_16k(vae, latents)

    def test_one_file_sounds_as_two(self, convert, pair):
        merged = convert("audio-vae", *pair)
        expected = self.sound(audio_vae.load_audio_vae(*pair))
        assert torch.equal(self.sound(audio_vae.load_audio_vae(merged)), expected)
        stored = load_file(merged)
        assert all(x.dtype == torch.float32 for x in stored.values())
        # Core's own loader, with its own class at the small width.
        with audio_vae._core_takes(audio_vae.SizedAutoencoder(16, 64)):
            stock = comfy.sd.VAE(sd=stored)
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
        for path, weights in zip(pair, (torch.load(pair[0]), torch.load(pair[1])["generator"]), strict=True):
            halves.append(tmp_path / f"{path.stem}.safetensors")
            save_file({name: x.contiguous() for name, x in weights.items()}, halves[-1])
        expected = load_file(convert("audio-vae", *pair))
        actual = load_file(convert("audio-vae", *halves, output=tmp_path / "other.safetensors"))
        assert all(torch.equal(actual[name], x) for name, x in expected.items())

    def test_a_half_alone(self, convert, pair):
        with pytest.raises(SystemExit, match=r"mmaudio_vae_small\.pth holds the audio VAE only\. Also choose"):
            convert("audio-vae", pair[0])


class TestNothingIsLeft:
    @pytest.fixture(params=["bf16", "q4_0"])
    def to(self, request):
        return request.param

    def test_after_an_interruption(self, convert, source, tmp_path, monkeypatch, to):
        def interrupt(bar, _done):
            if bar.total and bar.n > bar.total / 2:
                raise KeyboardInterrupt
            bar.n += _done

        monkeypatch.setattr(convert_checkpoint.tqdm, "update", interrupt)
        with pytest.raises(SystemExit, match=r"Stopped; nothing was written\."):
            convert(to, source)
        assert not list(tmp_path.iterdir())

    def test_after_a_bad_weight_and_the_old_output_stays(self, convert, released, tmp_path, to):
        key = list(released)[-1]
        bad = released | {key: torch.full_like(released[key], float("nan"))}
        save_file(bad, tmp_path / "bad.safetensors")
        output = tmp_path / f"old{'.gguf' if to == 'q4_0' else '.safetensors'}"
        output.write_bytes(b"old")
        with pytest.raises(SystemExit, match=rf"bad\.safetensors: '{re.escape(key)}' holds infinite or undefined"):
            convert(to, tmp_path / "bad.safetensors", output=output, options=["--force"])
        assert output.read_bytes() == b"old"
        assert {path.name for path in tmp_path.iterdir()} == {"bad.safetensors", output.name}


class TestRefusals:
    """Each is one sentence that names the file, before anything is written."""

    @pytest.fixture
    def refuse(self, convert, tmp_path):
        def refuse(to, *inputs, **options):
            before = sorted(tmp_path.iterdir())
            with pytest.raises(SystemExit) as caught:
                convert(to, *inputs, **options)
            assert sorted(tmp_path.iterdir()) == before
            return str(caught.value)

        return refuse

    @pytest.fixture
    def halves(self, released, tmp_path):
        return two_files(released, tmp_path / "half")[0]

    @pytest.fixture
    def changed(self, released, tmp_path):
        def changed(change):
            weights = dict(released)
            change(weights)
            save_file(weights, tmp_path / "mine.safetensors")
            return tmp_path / "mine.safetensors"

        return changed

    def test_an_output_that_exists(self, refuse, source, tmp_path):
        (tmp_path / "there.safetensors").touch()
        message = refuse("bf16", source, output=tmp_path / "there.safetensors")
        assert "there.safetensors exists already. Choose another output, or replace it with --force." in message

    def test_an_existing_output_is_replaced_by_force(self, convert, source, tmp_path):
        (tmp_path / "there.safetensors").touch()
        assert load_file(convert("bf16", source, output=tmp_path / "there.safetensors", options=["--force"]))

    def test_the_input_as_output(self, refuse, released, tmp_path):
        path = tmp_path / "own.safetensors"
        save_file(released, path)
        assert "own.safetensors is an input" in refuse("bf16", path, output=path, options=["--force"])
        (tmp_path / "link.safetensors").symlink_to(path)
        link = tmp_path / "link.safetensors"
        assert "link.safetensors is an input" in refuse("bf16", path, output=link, options=["--force"])

    def test_a_folder_as_output(self, refuse, source, tmp_path):
        (tmp_path / "folder.safetensors").mkdir()
        message = refuse("bf16", source, output=tmp_path / "folder.safetensors", options=["--force"])
        assert "folder.safetensors is a folder" in message

    def test_no_folder_for_the_output(self, refuse, source, tmp_path):
        assert "There is no folder" in refuse("bf16", source, output=tmp_path / "none" / "out.safetensors")

    @pytest.mark.parametrize(("to", "ending"), [("q8_0", ".safetensors"), ("fp8", ".gguf"), ("audio-vae", ".pth")])
    def test_a_misleading_ending(self, refuse, source, tmp_path, to, ending):
        message = refuse(to, source, output=tmp_path / f"out{ending}")
        assert f"out{ending} must end in {'.gguf' if to == 'q8_0' else '.safetensors'}" in message

    def test_a_full_disk(self, refuse, source, monkeypatch):
        monkeypatch.setattr(convert_checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        assert re.search(r"converted_fp8\.safetensors needs 0\.\d\d GB; '.*' has 0\.00 GB free", refuse("fp8", source))
        assert re.search(r"converted_q8_0\.gguf needs 0\.\d\d GB", refuse("q8_0", source))

    def test_one_half(self, refuse, halves):
        video, audio = halves
        assert f"{video.name} holds only the video tower of Ovi: give the file of its audio" in refuse("bf16", video)
        assert f"{audio.name} holds only the audio tower of Ovi: give the file of its video" in refuse("bf16", audio)

    def test_two_of_a_kind(self, refuse, halves, source):
        video, audio = halves
        assert "both hold the audio tower of Ovi: one must be the video" in refuse("bf16", audio, audio)
        assert "ovi.safetensors holds both towers of Ovi already: give it alone" in refuse("bf16", video, source)

    def test_three_inputs(self, convert, source, capsys):
        with pytest.raises(SystemExit):
            convert("bf16", source, source, source)
        assert "3 input files were given; one or two are needed" in capsys.readouterr().err

    def test_another_model(self, refuse, small_files):
        message = refuse("bf16", small_files / "text_encoders" / "umt5_small.safetensors")
        assert "umt5_small.safetensors is not an Ovi model: it has no" in message

    def test_a_missing_input(self, refuse, tmp_path):
        assert "'none.safetensors' is missing" in refuse("bf16", tmp_path / "none.safetensors")

    def test_a_gguf_file(self, refuse, tmp_path):
        (tmp_path / "q.gguf").write_bytes(b"GGUF" + bytes(64))
        assert "q.gguf is a GGUF file; give the file that it was made from" in refuse("bf16", tmp_path / "q.gguf")

    def test_a_damaged_file(self, refuse, source, tmp_path):
        (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:100_000])
        assert "cut.safetensors" in refuse("bf16", tmp_path / "cut.safetensors")

    def test_a_missing_weight(self, refuse, changed):
        path = changed(lambda weights: weights.pop("video_model.blocks.1.norm3.bias"))
        assert "mine.safetensors: The Ovi weights lack 1 of" in refuse("bf16", path)

    def test_a_scale_without_a_weight(self, refuse, changed):
        def only_scale(weights):
            weights["video_model.blocks.0.ffn.0.scale_weight"] = torch.ones(())
            del weights["video_model.blocks.0.ffn.0.weight"]

        assert "ffn.0.scale_weight: a scale needs one weight" in refuse("bf16", changed(only_scale))

    def test_integers_without_a_scale(self, refuse, changed):
        key = "video_model.blocks.0.ffn.0.weight"
        path = changed(lambda weights: weights.update({key: weights[key].to(torch.int8)}))
        assert "'blocks.0.ffn.0.weight' is stored as torch.int8, without a scale" in refuse("bf16", path)

    def test_a_format_that_is_not_numbers_times_a_scale(self, refuse, changed):
        how = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
        path = changed(lambda weights: weights.update({"video_model.blocks.0.ffn.0.comfy_quant": how}))
        assert "mine.safetensors: 'video_model.blocks.0.ffn.0' is quantised as 'nvfp4'" in refuse("bf16", path)

    def test_such_a_format_in_the_metadata(self, refuse, released, tmp_path):
        listed = {"layers": {"video_model.blocks.0.ffn.0": {"format": "mxfp8"}}}
        save_file(released, tmp_path / "mine.safetensors", {"_quantization_metadata": json.dumps(listed)})
        message = refuse("bf16", tmp_path / "mine.safetensors")
        assert "mine.safetensors: 'video_model.blocks.0.ffn.0' is quantised as 'mxfp8'" in message

    def test_a_layer_that_does_not_say_how_it_is_quantised(self, refuse, changed):
        path = changed(lambda weights: weights.update({"a.comfy_quant": torch.zeros(2, dtype=torch.uint8)}))
        assert "mine.safetensors: 'a.comfy_quant' is no JSON" in refuse("bf16", path)

    def test_quantised_weights_cannot_stay_the_same(self, refuse, released, tmp_path):
        (path,), _ = scaled_fp8(released, tmp_path / "scaled", files=1)
        message = refuse("same", path)
        assert "scaled.safetensors: quantised weights must be stored anew; use --to fp8 or --to bf16" in message

    def test_numbers_too_large_for_half_precision(self, refuse, changed):
        key = "video_model.blocks.0.ffn.0.bias"
        path = changed(lambda weights: weights.update({key: weights[key] + 1e6}))
        assert "'blocks.0.ffn.0.bias' has numbers too large for torch.float16" in refuse("fp16", path)


def test_what_ovi_has_no_use_for_is_left_out(convert, released, tmp_path, capsys):
    save_file(released | {"video_model.ema.decay": torch.ones(3)}, tmp_path / "in.safetensors")
    written = load_file(convert("bf16", tmp_path / "in.safetensors"))
    assert len(written) == len(released)
    assert "Left out, for Ovi has no such weights: 1, the first 'ema.decay'" in capsys.readouterr().out


def test_the_halves_of_these_tests_are_halves(released):
    assert [len(half) for half in split(released, nested=True)] == [len(released) // 2 - 1, len(released) // 2 + 2]


class TestOnItsOwn:
    """In a Python of its own, started anywhere."""

    TOOL = Path(convert_checkpoint.__file__)

    def run(self, folder, *arguments):
        return subprocess.run(
            [sys.executable, str(self.TOOL), *arguments], capture_output=True, text=True, cwd=folder, check=False
        )

    def test_it_converts(self, source, tmp_path):
        done = self.run(tmp_path, str(source), "out.safetensors", "--to", "fp8")
        assert done.returncode == 0, done.stderr
        assert re.search(r"out\.safetensors is written: 0\.\d\d GB", done.stdout)
        assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
        assert "scaled_fp8" in load_file(tmp_path / "out.safetensors")

    def test_it_explains_itself(self, tmp_path):
        told = self.run(tmp_path, "--help").stdout
        assert all(f"  {to} " in told for to in convert_checkpoint.TARGETS)

    def test_it_says_where_comfyui_is_not(self, source, tmp_path):
        done = self.run(tmp_path, str(source), "out.safetensors", "--to", "fp8", "--comfyui", str(tmp_path))
        assert done.returncode == 1
        assert "is no ComfyUI: it has no comfy/sd.py. Give the folder that holds ComfyUI's main.py" in done.stderr
