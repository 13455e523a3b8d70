"""The converter writes all or nothing, says in a sentence why not, and runs on its own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import convert_checkpoint
import pytest
import torch
from layout_writers import scaled_fp8, two_files
from safetensors.torch import load_file, save_file


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
        with pytest.raises(
            SystemExit, match=rf"bad\.safetensors: '{re.escape(key)}' holds infinite or undefined"
        ):
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
        assert (
            "there.safetensors exists already. Choose another output, or replace it with --force."
            in message
        )

    def test_an_existing_output_is_replaced_by_force(self, convert, source, tmp_path):
        (tmp_path / "there.safetensors").touch()
        assert load_file(
            convert("bf16", source, output=tmp_path / "there.safetensors", options=["--force"])
        )

    def test_the_input_as_output(self, refuse, released, tmp_path):
        path = tmp_path / "own.safetensors"
        save_file(released, path)
        assert "own.safetensors is an input" in refuse(
            "bf16", path, output=path, options=["--force"]
        )
        (tmp_path / "link.safetensors").symlink_to(path)
        link = tmp_path / "link.safetensors"
        assert "link.safetensors is an input" in refuse(
            "bf16", path, output=link, options=["--force"]
        )

    def test_a_folder_as_output(self, refuse, source, tmp_path):
        (tmp_path / "folder.safetensors").mkdir()
        message = refuse(
            "bf16", source, output=tmp_path / "folder.safetensors", options=["--force"]
        )
        assert "folder.safetensors is a folder" in message

    def test_no_folder_for_the_output(self, refuse, source, tmp_path):
        assert "There is no folder" in refuse(
            "bf16", source, output=tmp_path / "none" / "out.safetensors"
        )

    @pytest.mark.parametrize(
        ("to", "ending"), [("q8_0", ".safetensors"), ("fp8", ".gguf"), ("audio-vae", ".pth")]
    )
    def test_a_misleading_ending(self, refuse, source, tmp_path, to, ending):
        message = refuse(to, source, output=tmp_path / f"out{ending}")
        assert f"out{ending} must end in {'.gguf' if to == 'q8_0' else '.safetensors'}" in message

    def test_a_full_disk(self, refuse, source, monkeypatch):
        monkeypatch.setattr(
            convert_checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000)
        )
        assert re.search(
            r"converted_fp8\.safetensors needs 0\.\d\d GB; '.*' has 0\.00 GB free",
            refuse("fp8", source),
        )
        assert re.search(r"converted_q8_0\.gguf needs 0\.\d\d GB", refuse("q8_0", source))

    def test_one_half(self, refuse, halves):
        video, audio = halves
        assert (
            f"{video.name} holds only the video tower of Ovi: give the file of its audio"
            in refuse("bf16", video)
        )
        assert (
            f"{audio.name} holds only the audio tower of Ovi: give the file of its video"
            in refuse("bf16", audio)
        )

    def test_two_of_a_kind(self, refuse, halves, source):
        video, audio = halves
        assert "both hold the audio tower of Ovi: one must be the video" in refuse(
            "bf16", audio, audio
        )
        assert "ovi.safetensors holds both towers of Ovi already: give it alone" in refuse(
            "bf16", video, source
        )

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
        assert "q.gguf is a GGUF file; give the file that it was made from" in refuse(
            "bf16", tmp_path / "q.gguf"
        )

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
        assert "'blocks.0.ffn.0.weight' is stored as torch.int8, without a scale" in refuse(
            "bf16", path
        )

    def test_a_format_that_is_not_numbers_times_a_scale(self, refuse, changed):
        how = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
        path = changed(
            lambda weights: weights.update({"video_model.blocks.0.ffn.0.comfy_quant": how})
        )
        assert "mine.safetensors: 'video_model.blocks.0.ffn.0' is quantised as 'nvfp4'" in refuse(
            "bf16", path
        )

    def test_such_a_format_in_the_metadata(self, refuse, released, tmp_path):
        listed = {"layers": {"video_model.blocks.0.ffn.0": {"format": "mxfp8"}}}
        save_file(
            released, tmp_path / "mine.safetensors", {"_quantization_metadata": json.dumps(listed)}
        )
        message = refuse("bf16", tmp_path / "mine.safetensors")
        assert "mine.safetensors: 'video_model.blocks.0.ffn.0' is quantised as 'mxfp8'" in message

    def test_a_layer_that_does_not_say_how_it_is_quantised(self, refuse, changed):
        key = "video_model.blocks.0.ffn.0.comfy_quant"
        path = changed(lambda weights: weights.update({key: torch.zeros(2, dtype=torch.uint8)}))
        assert f"mine.safetensors: '{key}' is no JSON" in refuse("bf16", path)

    def test_quantised_weights_cannot_stay_the_same(self, refuse, released, tmp_path):
        (path,), _ = scaled_fp8(released, tmp_path / "scaled", files=1)
        message = refuse("same", path)
        assert (
            "scaled.safetensors: quantised weights must be stored anew; use --to fp8 or --to bf16"
            in message
        )

    def test_numbers_too_large_for_half_precision(self, refuse, changed):
        key = "video_model.blocks.0.ffn.0.bias"
        path = changed(lambda weights: weights.update({key: weights[key] + 1e6}))
        assert "'blocks.0.ffn.0.bias' has numbers too large for torch.float16" in refuse(
            "fp16", path
        )


class TestOnItsOwn:
    """In a Python of its own, started anywhere."""

    TOOL = Path(convert_checkpoint.__file__)

    def run(self, folder, *arguments):
        return subprocess.run(
            [sys.executable, str(self.TOOL), *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
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
        done = self.run(
            tmp_path, str(source), "out.safetensors", "--to", "fp8", "--comfyui", str(tmp_path)
        )
        assert done.returncode == 1
        assert (
            "is no ComfyUI: it has no comfy/sd.py. Give the folder that holds ComfyUI's main.py"
            in done.stderr
        )
