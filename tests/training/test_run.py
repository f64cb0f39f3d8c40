"""The owner of a workdir, its config, and where a run resumes from."""

import json
import os
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.record_writer import masked_crc32c

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.migration import ADDED_FIELDS, migrate
from vdm_jax.scalars import read_scalars
from vdm_jax.training.logging import Event, Logger
from vdm_jax.training.run import RESUME_RULES, open_run

STATE = {"params": jnp.arange(3.0), "step": jnp.int32(7)}


class Counter:
    """Batches that are numbers."""

    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        return np.full((2, 1), self.count, np.float32)

    def get_state(self):
        return {"batches": self.count}

    def set_state(self, state):
        self.count = state["batches"]


def config(**changes) -> ConfigDict:
    value = ConfigDict(
        migrate(
            {
                "seed": 0,
                "init_from": "",
                "video": {"frames": 8},
                "data": {
                    "batch_size": 2,
                    "path": "a",
                    "label_vocabulary": (("x", "y"),),
                },
                "network": {"levels": ({"channels": 8},), "remat": "none"},
                "conditioning": {"text_dim": 0},
                **{name: {} for name in ("codec", "diffusion", "sample", "mesh")},
                "train": {
                    "steps": 4,
                    "keep_checkpoints": 2,
                    "trainable": ((".*", True),),
                    "ema_decay": 0.9,
                },
            }
        )
    )
    value.update_from_flattened_dict(changes)
    return value.lock()


def begin(workdir, *, fingerprint=None, **changes):
    """Resume a run, or save its step 7 if the directory is empty; return its state."""
    data = Counter()
    with open_run(workdir, config(**changes), fingerprint or {"items": 5}) as run:
        state = run.resume(jax.eval_shape(lambda: STATE), lambda: "new", data)
        if run.restored_step is None:
            data.count = 70
            run.save(7, STATE, data)
    return state, data


def test_own_checkpoint_first_then_init_from_then_fresh(tmp_path, capsys):
    state, _ = begin(tmp_path / "fresh")
    assert state == "new"
    assert "starting at step 0 with new parameters" in capsys.readouterr().out
    state, _ = begin(tmp_path / "other", init_from="9")
    assert state == "new"
    assert "starting at step 0 with the parameters of 9" in capsys.readouterr().out
    state, data = begin(tmp_path / "other", init_from="9")
    np.testing.assert_array_equal(state["params"], STATE["params"])
    assert state["step"] == 7 and data.count == 70
    out = capsys.readouterr().out
    assert "resuming from step 7" in out and "init_from=9 is not used" in out


def test_config_is_written_complete(tmp_path):
    begin(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == json.loads(json.dumps(config().to_dict()))


def test_harmless_changes_are_printed(tmp_path, capsys):
    begin(tmp_path)
    capsys.readouterr()
    begin(tmp_path, **{"train.steps": 9, "data.path": "b", "network.remat": "full"})
    out = capsys.readouterr().out
    assert "config.train.steps 4 -> 9" in out
    assert "config.data.path 'a' -> 'b'" in out
    assert out.count("changed") == 3
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 9
    begin(tmp_path, **{"train.steps": 9, "data.path": "b", "network.remat": "full"})
    assert "changed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("seed", 0, 1),
        ("video.frames", 8, 16),
        ("data.batch_size", 2, 4),
        ("network.levels", [{"channels": 8}], ({"channels": 16},)),
        ("train.trainable", [[".*", True]], ((".*", False),)),
        ("train.ema_decay", 0.9, 0.0),
        ("conditioning.text_dim", 0, 6),
        ("diffusion.schedule", "cosine", "flow"),
    ],
)
def test_what_cannot_change_is_refused_and_changes_nothing(tmp_path, field, old, new):
    begin(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as caught:
        begin(tmp_path, **{field: new})
    message = str(caught.value)
    assert caught.value.status == 2
    assert (tmp_path / "config.json").read_text() == before
    assert f"config.{field}={json.loads(json.dumps(new))!r}" in message
    assert f"with {old!r}" in message and f"init_from={tmp_path}" in message
    begin(tmp_path)


def test_an_average_may_become_longer_but_neither_starts_nor_ends(tmp_path, capsys):
    begin(tmp_path, **{"train.ema_decay": 0.0})
    with pytest.raises(
        UserError, match="train.ema_decay=0.9, but .* was started with 0.0"
    ):
        begin(tmp_path)
    begin(tmp_path / "other")
    begin(tmp_path / "other", **{"train.ema_decay": 0.99})
    assert "config.train.ema_decay 0.9 -> 0.99" in capsys.readouterr().out


def test_a_state_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    """As if the code of an optimiser or a network changed, but no field."""
    begin(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".lock"}
    more = jax.eval_shape(lambda: {**STATE, "more": jnp.zeros(2)})
    with (
        pytest.raises(UserError, match="7 of .*more: here float32.2., there abs"),
        open_run(tmp_path, config(**{"train.steps": 9}), {"items": 5},
                 abstract_state=more),
    ):  # fmt: skip
        pass
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\0" * 100, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "not what was written"),
        (b"null", "not what was written"),
        (b"{}", "not a config: it lacks .*data"),
        (b'{"seed": 0, "train": 3, "data": null}', "not a config: it lacks .*data"),
    ],
)
def test_a_damaged_config_beside_checkpoints_is_one_line(tmp_path, content, words):
    begin(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"config.json is .*{words}"):
        begin(tmp_path)
    assert path.read_bytes() == content


def test_no_link_is_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    for name in ".lock", "config.tmp", "metrics.tmp":
        place = tmp_path / f"of {name}"
        place.mkdir()
        (place / name).symlink_to(tmp_path / "victim")
        if name == ".lock":
            with pytest.raises(UserError, match=".lock is a link"):
                begin(place)
        else:
            begin(place)
        assert (tmp_path / "victim").read_text() == "mine"


def test_a_field_that_was_added_later_has_its_former_meaning(tmp_path):
    """The run had no choice of schedule, so another schedule is a change."""
    begin(tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["diffusion"]["schedule"]
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match="diffusion.schedule='flow'.*started with 'cos"):
        begin(tmp_path, **{"diffusion.schedule": "flow"})


def test_every_added_field_keeps_its_former_meaning(tmp_path, capsys):
    """Also those that are lists after they were stored as JSON."""
    begin(tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    for section, fields in ADDED_FIELDS.items():
        for name in fields:
            del old[section][name]
    path.write_text(json.dumps(old))
    capsys.readouterr()
    begin(tmp_path)
    assert "changed" not in capsys.readouterr().out


def test_before_the_first_checkpoint_everything_may_change(tmp_path):
    with open_run(tmp_path, config(), {}):
        pass
    begin(tmp_path, seed=1)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_other_data_is_refused(tmp_path):
    begin(tmp_path)
    with pytest.raises(UserError, match="items is 6, but .* was started with 5"):
        begin(tmp_path, fingerprint={"items": 6})


def test_every_field_has_a_resume_rule():
    assert RESUME_RULES[-1] == (".*", False)


def test_a_section_of_a_condition_may_not_change(tmp_path):
    begin(tmp_path, fps={"dropout": 0.1})
    with pytest.raises(UserError, match=r"fps.dropout=0.5, but .* started with 0.1"):
        begin(tmp_path, fps={"dropout": 0.5})


def test_the_rate_of_the_files_may_change(tmp_path, capsys):
    begin(tmp_path, **{"video.fps": 8.0})
    begin(tmp_path, **{"video.fps": 12.0})
    assert "changed since the run was started: config.video.fps" in (
        capsys.readouterr().out
    )


HOLDER = """
import sys
from vdm_jax.training.run import lock_workdir
from pathlib import Path
with lock_workdir(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_second_run_is_refused_until_the_first_is_gone_even_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on"):
            begin(tmp_path)
        holder.send_signal(signal.SIGKILL)
    begin(tmp_path)  # the lock file still names the killed process


def test_an_open_run_keeps_its_workdir_locked(tmp_path):
    """Also though its processes compare the owner in the lock file."""
    with open_run(tmp_path, config(), {}):
        second = subprocess.run(
            [sys.executable, "-c", HOLDER, tmp_path], capture_output=True, text=True
        )
    assert second.returncode == 1
    assert f"in use by process {os.getpid()} on" in second.stderr


def test_workdir_must_be_a_directory(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(UserError, match=f"--workdir={path} cannot be used"):
        begin(path)


def test_resuming_leaves_no_scalar_twice(tmp_path):
    logger = Logger(tmp_path)
    for step in range(1, 6):
        logger.scalars(step, {"train/loss": step, "bad": np.nan})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "tr')  # a kill cut this one short
    logger = Logger(tmp_path, step=3)
    logger.scalars(4, {"train/loss": 40})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        (1, 1), (2, 2), (3, 3), (4, 40),
    ]  # fmt: skip
    assert rows[0]["bad"] is None


def test_videos_reach_tensorboard_as_gif(tmp_path):
    logger = Logger(tmp_path)
    video = np.random.default_rng(0).integers(0, 255, (4, 16, 20, 3), np.uint8)
    video_io.write_gif(tmp_path / "a.gif", video, 8, scale=2)
    logger.image(3, "samples", tmp_path / "a.gif")
    [value] = events(tmp_path)[-1].summary.value
    assert (value.image.width, value.image.height) == (40, 32)
    assert value.image.encoded_image_string == (tmp_path / "a.gif").read_bytes()


def events(folder):
    """Read the events of TensorBoard's files in logs/; verify their checksums."""
    found = []
    for path in sorted((folder / "logs").iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            data, rest = content[12 : 12 + size], content[12 + size :]
            sums = struct.unpack("<I", content[8:12]) + struct.unpack("<I", rest[:4])
            assert sums == (masked_crc32c(content[:8]), masked_crc32c(data))
            found.append(Event.FromString(data))
            content = rest[4:]
    return found


def test_tensorboard_reads_scalars_and_hides_repeated_steps(tmp_path):
    Logger(tmp_path, step=6).scalars(7, {"a": 1.5, "b/c": 2.0})
    version, hidden, row = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (hidden.step, hidden.session_log.status) == (7, 1)  # START
    assert {v.tag: v.simple_value for v in row.summary.value} == {"a": 1.5, "b/c": 2.0}
    assert row.step == 7 and row.wall_time > 1e9


DAMAGED = {
    "zeros of a power cut": (b"\0" * 4096, 3, False),
    "cut": (b'{"step": 4, "train/lo', 3, False),
    "cut before its end of line": (b'{"step": 3, "train/loss": 3}', 4, False),
    "not UTF-8": (b"\xff\xfe\n{}\n", 3, True),
    "deep": (b"[" * 200_000 + b"\n7\n", 3, True),
    "other types": (b'{"step": "2"}\n[]\nnull\n{"step": 1e999}\n"x"\n', 3, True),
    "huge numbers": (b'{"step": 3, "train/loss": 1' + b"0" * 400 + b"}\n", 4, False),
    "huge step": (b'{"step": 1' + b"0" * 400 + b"}\n{}\n", 3, True),
}


@pytest.mark.parametrize(("tail", "rows", "aside"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_log_is_mended(tmp_path, capsys, tail, rows, aside):
    good = b"".join(b'{"step": %d, "train/loss": 1.0}\n' % n for n in (1, 2, 3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(good + tail)
    Logger(tmp_path, step=3).scalars(4, {"train/loss": 2.0})
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines[-2:]] == [3, 4]
    assert len(lines) == rows + 1 and path.read_bytes().startswith(good)
    assert aside == ("metrics.jsonl: " in capsys.readouterr().err)
    assert aside == (tmp_path / "bad-metrics.jsonl").is_file()
    at, loss = read_scalars(tmp_path)["train/loss"]
    assert at[-1] == 4 and loss[-1] == 2


def test_logs_that_cannot_be_written_are_refused_before_the_first_step(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(
        UserError, match="logs cannot be an output folder .*File exists"
    ):
        begin(tmp_path)
    (tmp_path / "logs").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="metrics.jsonl is no plain file"):
        begin(tmp_path)
