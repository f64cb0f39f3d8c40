"""A save that fails in the background ends the run at the next step."""

import errno
import os
import time

import pytest

from tests.training.test_train_loop import Data, same, steps, train
from vdm_jax.errors import UserError
from vdm_jax.storage import LocalSteps


def test_a_save_that_failed_is_raised_at_the_next_step(tmp_path, monkeypatch):
    """Not at the next save, which may be hours away; the run then resumes."""
    write = LocalSteps.write

    def failing(self, folder, name, content):
        if folder == "saving-4":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(self, folder, name, content)

    used = []

    def hook(number):
        used.append(number)
        if number > 4:
            time.sleep(0.5)  # the save has failed by then

    with monkeypatch.context() as patch:
        patch.setattr(LocalSteps, "write", failing)
        with pytest.raises(
            UserError, match="read-only.*steps .2. are unchang"
        ) as caught:
            train(tmp_path, until=1000, data=Data(hook))
    assert caught.value.status == 2 and max(used) <= 5
    assert steps(tmp_path) == [2]
    # Its config says 1000 steps; the learning rate does not depend on them.
    resumed = train(tmp_path, until=6)
    assert steps(tmp_path) == [4, 6]
    assert same(resumed, train(tmp_path / "whole", until=6))
