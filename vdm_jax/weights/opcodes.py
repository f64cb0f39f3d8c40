"""A look at a pickle before it is loaded: what it would allocate without holding it."""

import pickletools
from typing import BinaryIO


def check(stream: BinaryIO) -> None:
    """Read one pickle to its end without running it, and go back to its beginning.

    The loader allocates as many slots of its memo as a pickle of five bytes asks for,
    gigabytes of them; whole pickles number them in order.

    Raises:
      ValueError: a pickle that is cut short, or whose memo has gaps.
    """
    start = stream.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if "PUT" in opcode.name and not 0 <= (argument or 0) <= count:
            raise ValueError(f"slot {argument} of its memo comes after {count} steps")
    stream.seek(start)
