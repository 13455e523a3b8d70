"""A latent in a file comes back number by number, or one sentence says what is wrong with it."""

import errno
import json
import os
import random

import pytest
import safetensors.torch
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.save import latent_file
from comfyui_ovi.ovi_model.save.latent_file import HEADER, read_latent, write_latent
from safetensors_bytes import entry, file_of


def pair(clips=1, frames=3, dtype=torch.float32):
    """A latent of 64 x 32 pixels; both streams are views of one tensor, as samplers give them."""
    shapes = (clips, 48, frames, 2, 4), (clips, 20, max(1, round((frames - 1) * 157 / 30)))
    sizes = [torch.Size(shape).numel() for shape in shapes]
    packed = torch.randn(sum(sizes), dtype=dtype)
    streams = (part.view(shape) for part, shape in zip(packed.split(sizes), shapes, strict=True))
    return {"samples": NestedTensor(list(streams))}


def masks(clips=1):
    return NestedTensor([torch.rand(clips, 1, 3, 2, 4), torch.rand(clips, 1, 10)])


LATENTS = {
    "plain": pair(),
    "a batch, in half": pair(clips=3, dtype=torch.float16),
    "bf16": pair(dtype=torch.bfloat16),
    "masks of both": pair(clips=2) | {"noise_mask": masks(2)},
    "one mask for all clips": pair(clips=2) | {"noise_mask": masks(1)},
    "a mask of the picture alone": pair()
    | {"noise_mask": NestedTensor([torch.rand(1, 1, 3, 2, 4)])},
    "a mask on the whole": pair() | {"noise_mask": torch.rand(1, 1, 7, 5)},
    "numbers of clips": pair(clips=2) | {"batch_index": [3, 0], "sample_rate": 16000, "type": "av"},
    "one frame": pair(frames=1),
    "strides": {
        "samples": NestedTensor(
            [torch.randn(1, 48, 3, 4, 2).transpose(3, 4), torch.randn(1, 10, 20).transpose(1, 2)]
        )
    },
}


def parts_of(latent):
    """Every tensor of a latent, and what else it has."""
    given = [latent["samples"], latent.get("noise_mask")]
    tensors = [x.unbind() if getattr(x, "is_nested", False) else x for x in given]
    return tensors, {k: x for k, x in latent.items() if k not in ("samples", "noise_mask")}


@pytest.mark.parametrize("name", LATENTS)
def test_it_comes_back_number_by_number(tmp_path, name):
    latent = LATENTS[name]
    path = write_latent(tmp_path / "l_00001_.safetensors", latent, {"workflow": "{}"})
    found, carried = parts_of(read_latent(path))
    expected, others = parts_of(latent)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert type(found[1]) is type(expected[1])
    assert carried == others
    _, header = latent_file.read_weights(path)
    assert header["workflow"] == "{}"


def test_what_it_holds_does_not_change_with_the_file(tmp_path):
    path = write_latent(tmp_path / "l.safetensors", pair(), {})
    latent = read_latent(path)
    before = [stream.clone() for stream in latent["samples"].unbind()]
    os.truncate(path, 8)
    assert all(map(torch.equal, latent["samples"].unbind(), before))


def test_the_header_says_what_it_is(tmp_path):
    path = write_latent(tmp_path / "l.safetensors", pair(frames=7), {HEADER: "of another"})
    _, header = latent_file.read_weights(path)
    size = {"width": 64, "height": 32, "length": 25}
    assert json.loads(header[HEADER]) == {"version": 1, "frame_rate": 24, "carried": {}} | size


def test_what_is_no_number_is_left_out_with_a_word(tmp_path, caplog):
    latent = pair() | {"guide": torch.ones(1), "batch_index": [0]}
    path = write_latent(tmp_path / "l.safetensors", latent, {})
    assert set(read_latent(path)) == {"samples", "batch_index"}
    assert "'guide' of the latent is not saved" in caplog.text


def test_a_second_file_gets_the_next_number(tmp_path):
    first, second = (write_latent(tmp_path / "l_00001_.safetensors", pair(), {}) for _ in "ab")
    assert (first.name, second.name) == ("l_00001_.safetensors", "l_00002_.safetensors")


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(type(tmp_path), "write_bytes", full_disk)
    with pytest.raises(OSError, match=r"the latent could not be saved: No space.*l\.safetensors"):
        write_latent(tmp_path / "l.safetensors", pair(), {})
    assert not list(tmp_path.iterdir())


ONES = torch.ones(1, 1, 3, 2, 4)
UNSAVED = {
    "one stream": ({"samples": ONES}, r"latent is no latent of picture and sound"),
    "a nest of one": (
        {"samples": NestedTensor([torch.ones(1, 48, 3, 2, 4)])},
        "'Ovi Concat Latent'",
    ),
    "odd ranks": ({"samples": NestedTensor([torch.ones(3), torch.ones(())])}, r"\[3\] and \[\]"),
    "unlike clips": (
        {"samples": NestedTensor([torch.ones(2, 48, 3, 2, 4), torch.ones(1, 20, 10)])},
        "'latent' has 2 video clips but 1 sounds",
    ),
    "NaN": ({"samples": pair()["samples"] * float("nan")}, "The video and audio of 'latent' holds"),
    "unlike lengths": (
        {"samples": NestedTensor([*pair()["samples"].unbind()[:1], torch.ones(1, 20, 40)])},
        "40 steps, but",
    ),
    "three masks": (pair() | {"noise_mask": NestedTensor([ONES] * 3)}, "has 3 masks"),
    "an undefined mask": (pair() | {"noise_mask": ONES / 0}, "'mask' holds infinite"),
    "a mask of whole numbers": (pair() | {"noise_mask": ONES.int()}, "'mask' is of type int32"),
    "clips without numbers": (pair(2) | {"batch_index": [0]}, r"batch_index is \[0\]; expected 2"),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, name):
    latent, said = UNSAVED[name]
    with pytest.raises(ValueError, match=said):
        write_latent(tmp_path / "l.safetensors", latent, {})
    assert not list(tmp_path.iterdir())


DESCRIBED = {"version": 1, "frame_rate": 24, "width": 64, "height": 32, "length": 9}


def file(tensors=None, header=None, **described):
    """The bytes of a file that differs from a good one in what is told."""
    video, audio = pair()["samples"].unbind()
    tensors = {"video": video, "audio": audio} | (tensors or {})
    own = {name: x.clone().contiguous() for name, x in tensors.items() if x is not None}
    told = {HEADER: json.dumps(DESCRIBED | described)} if header is None else header
    return safetensors.torch.save(own, told)


GOOD = file()
DEEP = "[" * 100_000
DAMAGED = {
    "empty": (b"", "is empty"),
    "a web page": (b"<!DOCTYPE html><html>", "is a web page"),
    "cut in its header": (GOOD[:40], "cannot be read"),
    "cut in its data": (GOOD[:-1], "cannot be read"),
    "extended": (GOOD + b"\0", "cannot be read"),
    "a header longer than the file": (file_of({}, length=2**62), "cannot be read"),
    "two tensors in one place": (
        file_of({"video": entry(0, 8), "audio": entry(0, 8)}, b"\0" * 8),
        "cannot be read",
    ),
    "no tensors": (file_of({"__metadata__": {HEADER: "{}"}}), "holds no tensors"),
    "weights": (file(header={}), f"its header has no '{HEADER}'. Choose a file"),
    "of Save Latent": (file({"latent_tensor": ONES}, {}), "use 'Load Latent'"),
    "no JSON": (file(header={HEADER: "{"}), "is no description"),
    "a list": (file(header={HEADER: "[1]"}), "is no description"),
    "deep JSON": (file(header={HEADER: DEEP}), "is no description"),
    "a newer version": (file(version=2), "version '2' of the format; .* Update"),
    "version true": (file(version=True), "is of version 'True'"),
    "no version": (file(version=None), "is of version 'None'"),
    "another frame rate": (file(frame_rate=25), "says frame_rate '25', its tensors are of 24"),
    "another width": (file(width=96), "says width '96', its tensors are of 64"),
    "another length": (file(length="9"), "says length '9', its tensors are of 9"),
    "no sound": (file({"audio": None}), "is incomplete: it has no 'audio'"),
    "no picture": (file({"video": None}), "is incomplete: it has no 'video'"),
    "another tensor": (file({"extra": ONES}), "holds 'extra', which is no part"),
    "a mask too many": (file({"mask": ONES, "video_mask": ONES}), "video_mask and mask, which do"),
    "a mask of the sound alone": (file({"audio_mask": ONES[0, 0, :1]}), "audio_mask, which do not"),
    "whole numbers": (
        file({"video": torch.ones(1, 48, 3, 2, 4).int()}),
        "'video' is of type int32",
    ),
    "truth values": (file({"video_mask": ONES.bool()}), "'video_mask' is of type bool"),
    "a mask without a size": (file({"mask": torch.ones(0, 1, 2, 2)}), r"shape \[0, 1, 2, 2\]"),
    "a mask of rank 1": (file({"mask": torch.ones(4)}), r"shape \[4\], which is no mask"),
    "a sound's mask of rank 4": (file({"video_mask": ONES, "audio_mask": ONES[0]}), "'audio_mask'"),
    "an undefined mask": (file({"mask": ONES * float("nan")}), "'mask' holds infinite"),
    "too few channels": (file({"video": torch.ones(1, 16, 3, 2, 4)}), "is no latent of picture"),
    "too few dimensions": (file({"video": torch.ones(48, 3, 2, 4)}), "is no latent of picture"),
    "a row": (file({"audio": torch.ones(20)}), "is no latent of picture"),
    "empty streams": (file({"video": torch.ones(1, 48, 0, 2, 4)}), "The video of .* is empty"),
    "unlike clips": (file({"audio": torch.ones(2, 20, 10)}), "1 video clips but 2 sounds"),
    "unlike lengths": (file({"audio": torch.ones(1, 20, 30)}), "30 steps, but"),
    "NaN": (
        file({"audio": torch.full((1, 20, 10), float("nan"))}),
        "The audio of .* holds infinite",
    ),
    "infinity": (
        file({"video": torch.full((1, 48, 3, 2, 4), float("inf"))}),
        "The video of .*holds",
    ),
    "carries a list of lists": (file(carried={"a": [[1]]}), "carries something"),
    "carries no dict": (file(carried=[1]), "carries something"),
    "carries other samples": (file(carried={"samples": 1}), "carries a second 'samples'"),
    "a clip's number too high": (file(carried={"batch_index": [10**12]}), "batch_index is"),
    "a negative number": (file(carried={"batch_index": [-1]}), "batch_index is"),
    "half a number": (file(carried={"batch_index": [0.5]}), "batch_index is"),
    "numbers that are none": (file(carried={"batch_index": 3}), "batch_index is 3; expected 1"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_none_is_named_with_its_fault(tmp_path, name):
    content, said = DAMAGED[name]
    path = tmp_path / "some_00001_.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_latent(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 700


def test_any_bytes_are_a_latent_or_a_sentence(tmp_path):
    """Bytes changed, cut out or doubled in the header of a good file."""
    choose = random.Random(5)
    head = 8 + int.from_bytes(GOOD[:8], "little")
    path = tmp_path / "some.safetensors"
    for _ in range(150):
        content = bytearray(GOOD)
        for _ in range(choose.randint(1, 4)):
            place = choose.randrange(head)
            content[place : place + choose.randint(0, 2)] = choose.randbytes(choose.randint(0, 2))
        path.write_bytes(content)
        said = ""
        try:
            said = read_latent(path) and path.name
        except ValueError as error:
            said = str(error)
        assert path.name in said


def test_what_was_held_is_saved_as_the_latent_holds_it_and_the_log_says_so(tmp_path, caplog):
    latent = {
        "samples": NestedTensor([torch.randn(1, 48, 3, 4, 4), torch.randn(1, 20, 10)]),
        "noise_mask": NestedTensor([torch.zeros(1, 1, 3, 4, 4), torch.ones(1, 1, 10)]),
        "ovi_held_pictures": (torch.rand(1, 8, 8, 3),),
        "ovi_held_sound": (),
    }
    read = read_latent(write_latent(tmp_path / "held.safetensors", latent, {}))
    assert set(read) == {"samples", "noise_mask"}
    for key in read:
        assert all(map(torch.equal, read[key].unbind(), latent[key].unbind()))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Ovi: Pictures and sound that were held are saved as the latent holds")
