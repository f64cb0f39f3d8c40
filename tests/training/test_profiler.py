"""Traces of training steps: when, where, and what they hold."""

import os
import signal

import jax
import numpy as np
import pytest

from tests.training.test_train_loop import Data, train
from vdm_jax.errors import UserError
from vdm_jax.training.profiler import Profiler, count_device_events
from vdm_jax.training.stop import PreemptionSignal


def traces(workdir):
    return sorted((workdir / "profile").glob("process0/plugins/profile/*/*.xplane.pb"))


def traced_steps(path) -> list[int]:
    """The numbers of the steps that a trace is marked with."""
    return sorted(
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    )


def test_the_flag_traces_whole_steps_and_counts_device_events(tmp_path, capsys):
    profiler = Profiler.from_flag("1:2")
    train(tmp_path, stop=PreemptionSignal(profiler=profiler))
    [path] = traces(tmp_path)
    assert traced_steps(path) == [2, 3]
    count = count_device_events(path)
    assert count > 0
    printed = capsys.readouterr().out
    assert f"traced up to step 3: {count:,} events of devices" in printed
    assert f"tensorboard --logdir={tmp_path / 'profile'}" in printed


def test_a_signal_traces_but_never_the_first_step(tmp_path):
    profiler = Profiler()
    before = signal.signal(signal.SIGUSR2, profiler.request)
    try:
        ask = Data(lambda n: os.kill(os.getpid(), signal.SIGUSR2) if n == 1 else None)
        train(tmp_path, data=ask, stop=PreemptionSignal(profiler=profiler))
    finally:
        signal.signal(signal.SIGUSR2, before)
    [path] = traces(tmp_path)
    assert traced_steps(path) == [2, 3, 4]


def test_the_last_step_ends_a_trace(tmp_path):
    train(tmp_path, stop=PreemptionSignal(profiler=Profiler(3, 100)))
    assert traced_steps(traces(tmp_path)[0]) == [4]


def test_a_trace_without_device_events_says_so(tmp_path, capsys):
    profiler = Profiler(1, 1)
    for step in (1, 2):
        profiler.begin_step(tmp_path, np.zeros(3))
        profiler.end_step(step, np.zeros(3), last=False)
    assert count_device_events(traces(tmp_path)[0]) == 0
    assert "traced up to step 2: no event of a device" in capsys.readouterr().out


@pytest.mark.parametrize("failing", ["start_trace", "stop_trace", "nothing written"])
def test_a_trace_that_fails_is_one_line(tmp_path, monkeypatch, capfd, failing):
    def fail(*_):
        raise RuntimeError("UNAVAILABLE:\nno trace today")

    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(
            jax.profiler, name, fail if name == failing else lambda *_: None
        )
    profiler = Profiler(1, 1)
    for step in (1, 2, 3):
        profiler.begin_step(tmp_path, np.zeros(3))
        profiler.end_step(step, np.zeros(3), last=False)
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("no trace: ")


@pytest.mark.parametrize("text", ["0:2", "3", "a:b", "3:0", "3:2:1", "-1:2", ""])
def test_other_forms_of_the_flag_are_refused(text):
    with pytest.raises(UserError, match="START:STEPS"):
        Profiler.from_flag(text)
