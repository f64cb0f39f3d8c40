"""A look at a pickle before it is loaded: what it would cost without holding it."""

import pickletools
from typing import BinaryIO

# What these push is no tuple of the pickle's own making.
NOT_TUPLES = (
    "UNICODE", "BYTES", "STRING", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "DICT",
    "LIST", "PERSID",
)  # fmt: skip

MAX_INTEGER_BITS = 60  # bits of an integer that is its own hash
MAX_LARGE_INTEGERS = 8  # integers above: torch's old format begins with one


def check_pickle(stream: BinaryIO) -> None:
    """Read one pickle to its end without running it, and go back to its beginning.

    The loader allocates as many slots of its memo as a pickle of five bytes asks for,
    gigabytes of them; whole pickles number them in order. And a tuple that stands twice
    in another, which does so again, needs no space, but no end of time where its hash
    or its text is asked for; what arrays are written with never takes a tuple twice.
    Integers of more bits than a hash has can be chosen such that all hashes are equal:
    as keys of a dictionary or in a set they take time that grows with their square.

    Raises:
      ValueError: a pickle that is cut short, whose memo has gaps, which takes a tuple
        twice, or has more than MOST_LARGE large integers or a set.
    """
    start, large = stream.tell(), 0
    previous, slots, plain = "", set(), set()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if "PUT" in name or name == "MEMOIZE":
            slot = len(slots) if name == "MEMOIZE" else argument
            if not 0 <= (slot or 0) <= count:
                raise ValueError(f"slot {slot} of its memo comes after {count} steps")
            slots.add(slot)
            (plain.add if previous.endswith(NOT_TUPLES) else plain.discard)(slot)
        elif name == "DUP" or (name.endswith("GET") and argument not in plain):
            raise ValueError("it takes twice what is no text, array or dictionary")
        elif "SET" in name and "ITEM" not in name or name == "ADDITEMS":
            raise ValueError("it holds a set")
        elif type(argument) is int and argument.bit_length() > MAX_INTEGER_BITS:
            large += 1
            if large > MAX_LARGE_INTEGERS:
                raise ValueError(
                    f"it holds integers of more than {MAX_INTEGER_BITS} bits"
                )
        previous = name
    stream.seek(start)
