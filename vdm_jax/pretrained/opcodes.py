"""Scan the opcodes of a pickle before it is loaded, to refuse costly ones."""

import pickletools
from typing import BinaryIO

# Opcodes that push anything but a tuple of the pickle's own.
NOT_TUPLES = (
    "UNICODE", "BYTES", "STRING", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "DICT",
    "LIST", "PERSID",
)  # fmt: skip

MAX_INTEGER_BITS = 60  # an integer of no more bits is its own hash
MAX_LARGE_INTEGERS = 8  # torch's old format starts with one


def check_pickle(stream: BinaryIO) -> None:
    """Scan one pickle to its end without running it; return the stream to its start.

    Three attacks are refused that need few bytes:
    - A memo slot of a huge number makes the loader allocate gigabytes. Valid pickles
      number their slots in order.
    - A tuple that contains the same tuple twice, and so on, takes no memory, but
      hashing or printing it takes exponential time. Pickled arrays never use a tuple
      twice.
    - Integers of more bits than a hash has can all have the same hash. As keys of a
      dictionary or in a set they take quadratic time.

    Raises:
      ValueError: the pickle is truncated, its memo has gaps, it uses a tuple twice, or
        it has a set or more than MAX_LARGE_INTEGERS large integers.
    """
    start, large = stream.tell(), 0
    previous, slots, not_tuples = "", set(), set()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if "PUT" in name or name == "MEMOIZE":
            slot = len(slots) if name == "MEMOIZE" else argument
            if not 0 <= (slot or 0) <= count:
                raise ValueError(f"memo slot {slot} is used after {count} opcodes")
            slots.add(slot)
            if previous.endswith(NOT_TUPLES):
                not_tuples.add(slot)
            else:
                not_tuples.discard(slot)
        elif name == "DUP" or (name.endswith("GET") and argument not in not_tuples):
            raise ValueError("it uses an object twice that could be a tuple")
        elif "SET" in name and "ITEM" not in name or name == "ADDITEMS":
            raise ValueError("it has a set")
        elif type(argument) is int and argument.bit_length() > MAX_INTEGER_BITS:
            large += 1
            if large > MAX_LARGE_INTEGERS:
                raise ValueError(
                    f"it has integers of more than {MAX_INTEGER_BITS} bits"
                )
        previous = name
    stream.seek(start)
