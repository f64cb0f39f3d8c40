"""Tasks that the processes of an engine run in the tests; nothing else is imported."""

import os
import signal
import sys
import time


def modules_of_a_writer(_):
    """Return the packages that a process has imported which writes a shard."""
    import vdm_jax.clip_shards.shard  # noqa: F401

    return frozenset(name.split(".")[0] for name in sys.modules)


def end_by_a_signal(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
