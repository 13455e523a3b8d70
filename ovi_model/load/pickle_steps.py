"""Follows the steps of a pickle without taking them, and refuses one that would grow as it is read.

A few hundred bytes can name an object twice, the pair twice, and so on: a walk over the result, as
for its hash, never ends.
"""

import itertools
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

# A PyTorch file of before 1.6: a number, a version, the system, the weights, the names of storages.
PICKLES_OF_AN_OLD_FILE = 5

# Objects that a step may bring back from earlier ones, on average over a file, and how deep one may
# lie in another. Checkpoints, with what their training keeps, bring back under two and are ten
# deep.
BROUGHT_BACK = 100
DEEPEST = 200
# Characters that count as one object more.
CHARACTERS = 100

FETCH = ("GET", "BINGET", "LONG_BINGET")
STORE = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
FILL = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
CALL = ("REDUCE", "NEWOBJ")

# What PyTorch lets a pickle call, and what of it makes more than it is given: bytes of a number,
# and text in any encoding but the one in which Python writes bytes down.
BYTES, ENCODE, ENCODING = "builtins bytearray", "_codecs encode", "latin1"


class RefusedError(ValueError):
    """A pickle that can be read, but must not."""


@dataclass(slots=True, eq=False)
class Value:
    """What is known of an object that a pickle would make."""

    size: int = 1  # objects that a walk over it would meet
    depth: int = 0
    says: object = None  # what a simple one is, the name of a function, or the last of a tuple
    is_function: bool = False
    is_held: bool = False  # by another, which knows its size


def check_file(path: Path, is_zip: bool) -> None:
    """Raise RefusedError if the pickle of a PyTorch file would grow or calls what is no
    function.
    """
    if is_zip:
        # The reader of torch.load itself: another might find another record of that name.
        check(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
        return
    with path.open("rb") as file:
        for _ in range(PICKLES_OF_AN_OLD_FILE):
            check(file)


def check(pickled: bytes | BinaryIO) -> None:
    """Follow a pickle up to its end.

    Raises RefusedError if it would grow or calls what is no function; ValueError or KeyError if its
    steps do not go together.
    pickletools knows what each step takes from the stack and leaves there.
    """
    stack: list[Value | None] = []  # None: a mark
    stored: dict[int, Value] = {}
    brought_back = 0
    for step, (opcode, argument, _) in enumerate(pickletools.genops(pickled), 1):
        if opcode.name in FETCH:
            stack.append(stored[argument])
            brought_back += stored[argument].size
            if brought_back > BROUGHT_BACK * step:
                raise RefusedError("it names its own parts so often that it would never be read")
        elif opcode.name in STORE:
            stored[len(stored) if argument is None else argument] = _top(stack)
        elif opcode.name == "MARK":
            stack.append(None)
        else:
            _take_step(opcode, argument, stack)


def _top(stack: list[Value | None]) -> Value:
    if not stack or stack[-1] is None:
        raise ValueError("a step finds nothing to store")
    return stack[-1]


def _take_step(opcode: pickletools.OpcodeInfo, argument: object, stack: list[Value | None]) -> None:
    """Replace what a step takes by what it leaves."""
    taken = _take(opcode, stack)
    if opcode.name in FILL:
        filled, *taken = taken
        if filled.is_held or any(value is filled for value in taken):
            raise RefusedError("it fills what already lies in something else, or in itself")
        stack.append(filled)
    else:
        if opcode.name in CALL:
            _check_call(*taken[:2])
        filled = Value(size=1 + _length(argument) // CHARACTERS)
        filled.says = taken[-1].says if taken else argument
        filled.is_function = opcode.name == "GLOBAL"
        stack.extend(itertools.repeat(filled, len(opcode.stack_after)))
    for value in taken:
        value.is_held = True
        filled.size += value.size
        filled.depth = max(filled.depth, value.depth + 1)
    if filled.depth > DEEPEST:
        raise RefusedError(f"its parts lie more than {DEEPEST} deep in each other")


def _take(opcode: pickletools.OpcodeInfo, stack: list[Value | None]) -> list[Value]:
    """Take what a step needs: a number of values, some of them from behind the last mark on."""
    needs = opcode.stack_before
    count = len(needs)
    if pickletools.markobject in needs:
        marks = (index for index in reversed(range(len(stack))) if stack[index] is None)
        if (mark := next(marks, None)) is None:
            raise ValueError("a step finds no mark")
        del stack[mark]
        count = len(stack) - mark + needs.index(pickletools.markobject)
    taken = stack[len(stack) - count :]
    if count > len(stack) or None in taken:
        raise ValueError("a step takes more than there is")
    del stack[len(stack) - count :]
    return taken


def _check_call(function: Value, arguments: Value) -> None:
    """What is no function would be written out in PyTorch's message, however large."""
    if not function.is_function:
        raise RefusedError("it calls what is no function")
    if function.says == BYTES or (function.says == ENCODE and arguments.says != ENCODING):
        raise RefusedError(f"it would make bytes with '{function.says}'")


def _length(argument: object) -> int:
    return len(argument) if isinstance(argument, str | bytes) else 0
