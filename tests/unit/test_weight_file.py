"""What is read from a file, whatever wraps it, and what is said of one that cannot or must not be
read.
"""

import collections
import os
import pickle
import zipfile
from pathlib import Path

import comfy.utils
import pytest
import torch
from comfyui_ovi.ovi_model.load.weight_file import read_weights
from safetensors.torch import save_file

WEIGHTS = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}


def same(found, expected=WEIGHTS):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


class TestWrappers:
    """Training keeps weights beside other things, or several levels down."""

    @pytest.mark.parametrize(
        "wrap",
        [
            dict,
            collections.OrderedDict,
            lambda weights: {"module": weights},
            lambda weights: {"module": weights, "iteration": 9, "rng": torch.zeros(4)},
            lambda weights: {
                "app": {"model": weights, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}}
            },
            lambda weights: {"state_dict": weights, "epoch": 3},
            lambda weights: {"generator": weights},
            lambda weights: {"model": weights, "optimizer": {}},
            lambda weights: {"state_dict": {"module": weights}},
            lambda weights: {"model": {"name": "ovi"}, **weights},
            lambda weights: {**weights, 7: torch.zeros(1), "step": 3, "history": [1, 2]},
            lambda weights: {name: torch.nn.Parameter(x) for name, x in weights.items()},
        ],
    )
    def test_every_known_wrapper(self, tmp_path, wrap):
        torch.save(wrap(WEIGHTS), tmp_path / "file.pt")
        weights, metadata = read_weights(tmp_path / "file.pt")
        assert same(weights)
        assert not any(tensor.requires_grad for tensor in weights.values())
        assert metadata == {}

    def test_a_dictionary_within_itself_ends(self, tmp_path):
        endless = {}
        endless |= {"model": endless, "module": endless}
        torch.save(endless, tmp_path / "endless.pt")
        with pytest.raises(
            ValueError, match=r"endless\.pt cannot be read: it fills what .* in itself"
        ):
            read_weights(tmp_path / "endless.pt")

    def test_a_file_of_pytorch_before_1_6(self, tmp_path):
        torch.save({"module": WEIGHTS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        assert same(read_weights(tmp_path / "old.pth")[0])


class Trap:
    """Makes a folder when an unpickler calls what this names."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestNothingRuns:
    """A pickle can name any function to be called; none is."""

    @pytest.fixture(autouse=True)
    def unsafe_default(self, monkeypatch):
        """As on a PyTorch for which ComfyUI 0.3.75 unpickles anything unless it is told not to."""
        monkeypatch.setattr(comfy.utils, "ALWAYS_SAFE_LOAD", False, raising=False)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_of_a_torch_file(self, tmp_path, zipped):
        content = {**WEIGHTS, "more": Trap(tmp_path / "trap")}
        torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            ValueError, match=r"^file\.pt cannot be read: it holds Python objects besides tensors"
        ):
            read_weights(tmp_path / "file.pt")
        assert not (tmp_path / "trap").exists()
        torch.load(tmp_path / "file.pt", weights_only=False)  # the trap is one
        assert (tmp_path / "trap").is_dir()

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_of_a_bare_pickle(self, tmp_path, protocol):
        (tmp_path / "file.pt").write_bytes(pickle.dumps(Trap(tmp_path / "trap"), protocol))
        with pytest.raises(ValueError, match=r"^file\.pt cannot be read: "):
            read_weights(tmp_path / "file.pt")
        assert not (tmp_path / "trap").exists()

    def test_attributes_in_front_of_those_of_a_dictionary(self, tmp_path):
        class Masked:
            def __reduce__(self):
                attributes = {"get": torch.Size, "items": torch.Size, "values": torch.Size}
                return collections.OrderedDict, (), attributes, None, iter(WEIGHTS.items())

        torch.save(Masked(), tmp_path / "file.pt")
        assert same(read_weights(tmp_path / "file.pt")[0])


class TestNoFile:
    def test_a_folder_nothing_and_a_link_to_nothing(self, tmp_path):
        (tmp_path / "nowhere.pt").symlink_to(tmp_path / "gone.pt")
        (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
        (tmp_path / "folder.safetensors").mkdir()
        for name, message in (
            ("folder.safetensors", r"'folder\.safetensors' is a folder; choose a file in it"),
            ("gone.pt", r"'gone\.pt' is missing; a weight file is needed here"),
            ("nul\0.pt", "is missing; a weight file is needed here"),
            ("n" * 300, "is missing; a weight file is needed here"),
            (
                "nowhere.pt",
                r"'nowhere\.pt' is a link to a file that is not there; put the file in its place",
            ),
            ("loop.pt", r"'loop\.pt' is a link to a file that is not there"),
        ):
            with pytest.raises(ValueError, match=message):
                read_weights(tmp_path / name)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on POSIX only")
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(ValueError, match=r"'pipe\.safetensors' is no ordinary file"):
            read_weights(tmp_path / "pipe.safetensors")

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file"
    )
    def test_a_file_that_may_not_be_read(self, tmp_path):
        save_file(WEIGHTS, tmp_path / "private.safetensors")
        (tmp_path / "private.safetensors").chmod(0)
        with pytest.raises(
            ValueError, match=r"private\.safetensors cannot be read: .*Check the file's permissions"
        ):
            read_weights(tmp_path / "private.safetensors")

    @pytest.mark.parametrize("ending", ["safetensors", "pt"])
    def test_a_link_to_a_good_file_and_unusual_names(self, tmp_path, ending):
        save = save_file if ending == "safetensors" else torch.save
        good = tmp_path / f"good.{ending}"
        save(WEIGHTS, good)
        for name in (
            "with space",
            "quote\"s '",
            "ünï 漢字 🎬",
            "new\nline",
            "percent%s{0}",
            "-flag",
        ):
            path = tmp_path / f"{name}.{ending}"
            path.symlink_to(good)
            assert same(read_weights(path)[0])
            path.unlink()
            good.rename(path)
            assert same(read_weights(path)[0])
            path.rename(good)


class TestOtherFiles:
    """Each says what the file is, as well as that can be seen."""

    @pytest.mark.parametrize("ending", ["safetensors", "pt"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"is empty \(0 bytes\)\. Download it again"),
            (
                b"GGUF\x03\0\0\0" + bytes(64),
                r"is a GGUF file\. Load it with a GGUF loader node, 'Unet L",
            ),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 23300000000\n",
                "is a Git LFS pointer of 74 bytes, not the file it stands for. Run 'git lfs pull'",
            ),
            (
                b"\n<!DOCTYPE html><title>404</title>",
                "is a web page: .*use its download button; if it asks for",
            ),
            (b"<html lang='en'>", "is a web page"),
            (b"Access to this model is restricted.", "cannot be read: .*download it again"),
            (bytes(100), "cannot be read: .*download it again"),
        ],
    )
    def test_by_their_first_bytes(self, tmp_path, content, message, ending):
        (tmp_path / f"file.{ending}").write_bytes(content)
        with pytest.raises(ValueError, match=rf"^file\.{ending} {message}"):
            read_weights(tmp_path / f"file.{ending}")

    def test_under_each_others_names(self, tmp_path):
        torch.save(WEIGHTS, tmp_path / "file.safetensors")
        with pytest.raises(
            ValueError, match=r"is a PyTorch file under another name\. Rename it to end in \.pth"
        ):
            read_weights(tmp_path / "file.safetensors")
        save_file(WEIGHTS, tmp_path / "file.ckpt")
        with pytest.raises(
            ValueError, match=r"is a safetensors file under another name.*end in \.safetensors"
        ):
            read_weights(tmp_path / "file.ckpt")

    def test_a_zip_of_something_else(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "file.pt", "w") as records:
            records.writestr("notes.txt", "hello")
        with pytest.raises(
            ValueError, match=r"file\.pt cannot be read: .* no complete PyTorch file .*download it"
        ):
            read_weights(tmp_path / "file.pt")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([torch.zeros(1)] * 2, "holds a list, not weights by name"),
            (torch.zeros(2), "cannot be read|holds a Tensor"),
            ({"epoch": 3, "names": ["a"]}, "holds no tensors"),
            ({}, "holds no tensors"),
            ({1: torch.zeros(1), 2: torch.zeros(1)}, "holds no tensors"),
        ],
    )
    def test_a_pickle_of_something_else(self, tmp_path, value, message):
        torch.save(value, tmp_path / "file.pt")
        with pytest.raises(ValueError, match=rf"^file\.pt {message}"):
            read_weights(tmp_path / "file.pt")

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.eye(3).to_sparse(),
            torch.zeros(3, device="meta"),
            torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        ],
    )
    def test_a_tensor_that_is_no_plain_one(self, tmp_path, tensor):
        torch.save({**WEIGHTS, "odd": tensor}, tmp_path / "file.pt")
        with pytest.raises(
            ValueError,
            match=r"^file\.pt: 'odd' is no plain tensor\. Take the file from its original",
        ):
            read_weights(tmp_path / "file.pt")


class TestBombs:
    """A small file must not fill the memory."""

    def test_a_zip_that_grows(self, tmp_path):
        torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for record in plain.infolist():
                bomb.writestr(record.filename, plain.read(record))
        assert (tmp_path / "bomb.pt").stat().st_size < 10_000
        with pytest.raises(
            ValueError, match=r"^bomb\.pt cannot be read: .*it would unpack to 4,000,\d+ bytes"
        ):
            read_weights(tmp_path / "bomb.pt")

    def test_a_record_that_claims_to_be_huge(self, tmp_path):
        torch.save(WEIGHTS, tmp_path / "file.pt")
        content = bytearray((tmp_path / "file.pt").read_bytes())
        directory = content.index(b"PK\x01\x02")
        content[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")
        (tmp_path / "file.pt").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"^file\.pt cannot be read: .*it would unpack to 2,147,48\d,\d+ bytes"
        ):
            read_weights(tmp_path / "file.pt")

    def test_one_number_that_stands_for_many(self, tmp_path):
        torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "file.pt")
        with pytest.raises(
            ValueError,
            match=r"its tensors would take 4,000,000,000,000 bytes, the file has [\d,]+\.",
        ):
            read_weights(tmp_path / "file.pt")

    def test_one_tensor_under_many_names(self, tmp_path):
        one = torch.zeros(1000)
        torch.save({str(index): one for index in range(1000)}, tmp_path / "file.pt")
        with pytest.raises(ValueError, match="its tensors would take 4,000,000 bytes"):
            read_weights(tmp_path / "file.pt")
        torch.save({"a": one, "tied": one}, tmp_path / "file.pt")
        assert len(read_weights(tmp_path / "file.pt")[0]) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied"),
            "the system says .*Permission denied.* Check the file's permissions",
        ),
        (
            RuntimeError("The paging file is too small. (os error 1455)"),
            "the system says .*1455.*free memory",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "the system says .*free memory",
        ),
        (MemoryError("no room"), "the system says 'no room'.*free memory"),
        (
            RuntimeError("PytorchStreamReader failed"),
            r"PytorchStreamReader failed\).*download it again",
        ),
    ],
)
def test_the_cause_is_told(tmp_path, monkeypatch, error, message):
    torch.save(WEIGHTS, tmp_path / "file.pt")

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(comfy.utils, "load_torch_file", fail)
    with pytest.raises(ValueError, match=rf"file\.pt cannot be read: .*{message}"):
        read_weights(tmp_path / "file.pt")


def test_a_file_of_an_old_pytorch_that_cannot_be_mapped_is_no_damaged_one(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pt")[0].keys() == {"a"}
    monkeypatch.setattr(comfy.utils, "MMAP_TORCH_FILES", True)
    with pytest.raises(
        ValueError,
        match=r"old\.pt cannot be read: a PyTorch before 1\.6 saved it.*--mmap-torch-files",
    ):
        read_weights(tmp_path / "old.pt")
