"""A process that another one started with multiprocessing."""

import multiprocessing
import multiprocessing.process
import os
import threading


def end_with_parent() -> None:
    """End this process, with all its threads, as soon as its parent has ended.

    However that ended: it may have been killed.
    """
    parent = multiprocessing.process.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
