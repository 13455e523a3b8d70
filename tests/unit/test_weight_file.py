"""What is said of a file that cannot be read: its fault is told from the system's."""

import comfy.utils
import pytest
import torch
from comfyui_ovi.ovi_model.weight_file import read_weights


def test_a_list_is_no_weight_file(tmp_path):
    torch.save([torch.zeros(1), torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list, not weights by name"):
        read_weights(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied"),
            "the system says .*Permission denied.* Check the file's permissions",
        ),
        (RuntimeError("The paging file is too small. (os error 1455)"), "the system says .*1455.*free memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "the system says .*free memory"),
        (RuntimeError("PytorchStreamReader failed"), r"PytorchStreamReader failed\).*download it again"),
    ],
)
def test_the_cause_is_told(tmp_path, monkeypatch, error, message):
    (tmp_path / "file.pt").write_bytes(b"some bytes")

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(comfy.utils, "load_torch_file", fail)
    with pytest.raises(ValueError, match=rf"file\.pt cannot be read: .*{message}"):
        read_weights(tmp_path / "file.pt")
