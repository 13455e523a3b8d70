"""Small pickles that would grow as they are read, and large ones that are as large as what they
hold.
"""

import contextlib
import io
import pickle
import random
import tracemalloc
import zipfile

import pytest
import torch
from comfyui_ovi.ovi_model.load import pickle_steps
from comfyui_ovi.ovi_model.load.weight_file import read_weights

START, END = pickle.PROTO + b"\x02", pickle.STOP
ONE, NAME = pickle.BININT1 + b"\x01", pickle.SHORT_BINSTRING + b"\x01n"
MEMORY = 2**20  # bytes that a refusal may take


def put(number):
    return pickle.BINPUT + bytes([number])


def get(number):
    return pickle.BINGET + bytes([number])


def call(function, *arguments):
    module, name = function.rsplit(".", 1)
    named = pickle.GLOBAL + f"{module}\n{name}\n".encode()
    return named + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def dictionary(*items):
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS


def fill(*items):
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(items) + pickle.APPENDS


def pairs(depth=24):
    """A pair of a pair of a pair, each named twice: 2 ** depth objects."""
    return (
        pickle.EMPTY_TUPLE
        + put(0)
        + b"".join(get(level) + pickle.TUPLE2 + put(level + 1) for level in range(depth))
    )


def lists(depth=24):
    return fill() + put(0) + b"".join(fill(get(n), get(n)) + put(n + 1) for n in range(depth))


def wide(width=100, depth=4):
    rows = (pickle.MARK + get(n) * width + pickle.TUPLE + put(n + 1) for n in range(depth))
    return pickle.MARK + pickle.EMPTY_TUPLE + put(0) + b"".join(rows) + pickle.TUPLE


def text(letters):
    return pickle.BINUNICODE + letters.to_bytes(4, "little") + b"x" * letters


def storage(key):
    return (
        pickle.MARK
        + pickle.SHORT_BINSTRING
        + b"\x07storage"
        + pickle.GLOBAL
        + b"torch\nFloatStorage\n"
        + key
        + NAME
        + ONE
        + pickle.TUPLE
        + pickle.BINPERSID
    )


def hexadecimal(times=24):
    """Bytes that are written as text of twice their length, again and again."""
    encoding, steps = pickle.SHORT_BINSTRING + b"\x03hex", pickle.SHORT_BINSTRING + b"\x01x"
    for _ in range(times):
        steps = call("_codecs.encode", steps, encoding)
    return steps


OFTEN = "names its own parts so often"
NO_FUNCTION = "calls what is no function"
GROWING = {
    "key": (dictionary(pairs(), ONE), OFTEN),
    "value": (dictionary(NAME, pairs()), OFTEN),
    "wide key": (dictionary(wide(), ONE), OFTEN),
    "ordered key": (call("collections.OrderedDict", fill(fill(pairs(), ONE))), OFTEN),
    "counted": (call("collections.Counter", fill(pairs())), OFTEN),
    "in a set": (call("builtins.set", fill(pairs())), OFTEN),
    "key of a storage": (dictionary(NAME, storage(pairs())), OFTEN),
    "lists": (dictionary(NAME, lists()), OFTEN),
    "one long key a thousand times": (
        dictionary(pickle.MARK + ONE * 1000 + pickle.TUPLE + put(0), ONE, *[get(0), ONE] * 1000),
        OFTEN,
    ),
    "one long text a thousand times": (fill(text(100_000) + put(0), get(0) * 1000), OFTEN),
    "deep": (dictionary(pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000, ONE), "more than 200 deep"),
    "called list": (fill() + pickle.EMPTY_TUPLE + pickle.REDUCE, NO_FUNCTION),
    "new list": (fill() + pickle.EMPTY_TUPLE + pickle.NEWOBJ, NO_FUNCTION),
    "filled later": (
        fill() + put(0) + pickle.TUPLE1 + get(0) + ONE + pickle.APPEND + pickle.TUPLE2,
        "fills what already lies in something else",
    ),
    "within itself": (
        pickle.EMPTY_LIST + put(0) + get(0) + pickle.APPEND,
        "fills what already lies in something else, or in itself",
    ),
    "hexadecimal": (hexadecimal(), r"would make bytes with '_codecs encode'"),
    "bytes of a number": (
        call("builtins.bytearray", pickle.LONG1 + b"\x05" + (2**36).to_bytes(5, "little")),
        r"would make bytes with 'builtins bytearray'",
    ),
}


def write(path, steps, is_zip):
    pickled = START + steps + END
    if is_zip:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickled)
            file.writestr("archive/version", "3\n")
    else:
        head = [pickle.dumps(x, 2) for x in (torch.serialization.MAGIC_NUMBER, 1001, {})]
        path.write_bytes(b"".join(head) + pickled + pickle.dumps([], 2))


@contextlib.contextmanager
def traced(limit):
    """Fail if Python takes more bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize(("steps", "words"), GROWING.values(), ids=GROWING)
def test_what_would_grow_is_refused_before_it_is_read(tmp_path, monkeypatch, steps, words, is_zip):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    write(tmp_path / "file.pt", steps, is_zip)
    with (
        traced(MEMORY + 300 * len(steps)),
        pytest.raises(ValueError, match=rf"^file\.pt cannot be read: it.*{words}.*refused") as told,
    ):
        read_weights(tmp_path / "file.pt")
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (dictionary(pairs(3), ONE, text(10_000), ONE), r"a name of type tuple, 'x{40}'\. Check"),
        (dictionary(pickle.LONG1 + b"\xff" + b"\x7f" * 255, ONE), "a name of type int"),
        (dictionary(pickle.NONE, ONE, call("torch.device", text(0)), ONE), "damaged"),
    ],
    ids=["tuple", "int", "object"],
)
def test_a_name_of_any_kind_and_length_is_told_in_few_words(tmp_path, steps, told):
    write(tmp_path / "file.pt", steps, is_zip=True)
    with pytest.raises(ValueError, match=told) as error:
        read_weights(tmp_path / "file.pt")
    assert len(str(error.value)) < 300


def test_a_tensor_of_a_long_name_is_refused(tmp_path):
    torch.save({"x" * 501: torch.zeros(1)}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"^file\.pt: the name 'x{40}\.\.\.' has 501 letters"):
        read_weights(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "steps",
    [
        pickle.TUPLE2,
        pickle.TUPLE,
        pickle.APPENDS,
        pickle.MARK + pickle.TUPLE2,
        get(7),
        put(0),
        pickle.MARK + put(0),
        b"",
        b"\xff",
    ],
)
def test_steps_that_do_not_go_together_are_a_damaged_file(tmp_path, steps):
    write(tmp_path / "file.pt", steps, is_zip=True)
    with pytest.raises(ValueError, match=r"^file\.pt cannot be read: .* is damaged or was not"):
        read_weights(tmp_path / "file.pt")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
def test_a_checkpoint_with_all_that_training_keeps_is_read(tmp_path, is_zip):
    """Far from the limits: what is named again is small."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(20)))
    optimizer = torch.optim.AdamW([{"params": [x]} for x in model.parameters()], betas=(0.9, 0.95))
    model(torch.zeros(4)).sum().backward()
    optimizer.step()
    options = {"name": "ovi", "sizes": [1, (2, 3)], "raw": b"\x00\xff" * 50}
    kept = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "options": options,
        "runs": [options] * 20,
        "random": [torch.get_rng_state(), random.getstate()],
    }
    torch.save(kept, tmp_path / "file.pt", _use_new_zipfile_serialization=is_zip)
    assert read_weights(tmp_path / "file.pt")[0].keys() == model.state_dict().keys()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_the_steps_of_every_protocol_are_followed(protocol):
    shared = (1, "two", [3.0])
    content = {"a": [shared] * 3, ("b", 2): {4, 5}, "c": b"bytes", "d": [[[]]]}
    pickle_steps.check(io.BytesIO(pickle.dumps(content, protocol)))
