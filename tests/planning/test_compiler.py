"""The process that compiles, by the files that it leaves."""

import pytest

from vdm_jax.errors import UserError
from vdm_jax.planning import compiler, hlo
from vdm_jax.planning.compiler import Compilation

FIRST = "m.0008.x.after_pipeline-start.before_while-loop-async-post-fusion-scheduler"
SECOND = "m.0010.host_offloading.after_pipeline-start.before_host_collective_rewriter"
MODULE = """HloModule m

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%x), to_apply=%add
}
"""


class Process:
    """A process that has ended, or has not."""

    exitcode = 1

    def __init__(self, alive: bool):
        self.alive = alive

    def join(self, seconds):
        pass

    def is_alive(self):
        return self.alive


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / compiler.DUMPS).mkdir()
    (tmp_path / compiler.KEY).write_text("k")
    (tmp_path / compiler.LOG).write_text("libtpu says why")
    return tmp_path


def test_a_program_is_read_when_the_next_pass_has_written(folder):
    dumps = folder / compiler.DUMPS
    (dumps / f"{FIRST}.txt").write_text(MODULE)
    assert compiler._partitioned(dumps) is None
    (dumps / f"{SECOND}.txt").write_text("")
    assert compiler._partitioned(dumps) == MODULE
    found = compiler._wait(Process(True), folder, 0.0)
    assert found.collectives.by_kind() == {"all-reduce": {"calls": 1, "bytes": 32}}
    assert found.memory is None and found.fits is None
    assert compiler._from_json(compiler.read_cached("k")) == found


def test_what_the_process_writes_at_its_end_is_the_result(folder):
    whole = Compilation(hlo.Collectives({}, {}), 7, True, {"fusion": 2})
    compiler.write_cached("k", {"collectives": {"calls": {}, "bytes": {}}} | {
        "memory": 7, "fits": True, "kernels": {"fusion": 2},
    })  # fmt: skip
    text = next((folder / "cache").rglob("k.json")).read_text()
    (folder / compiler.RESULT).write_text(text)
    assert compiler._wait(Process(True), folder, float("inf")) == whole


def test_a_process_that_fails_says_why(folder):
    with pytest.raises(RuntimeError, match="status 1:\nlibtpu says why"):
        compiler._wait(Process(False), folder, 0.0)
    (folder / compiler.USER_ERROR).write_text("no such topology")
    with pytest.raises(UserError, match="no such topology"):
        compiler._wait(Process(False), folder, 0.0)


def test_what_is_kept_is_known_by_its_text_and_ignored_where_it_is_damaged(tmp_path):
    key = compiler.cache_key("module", "v5e:4x4")
    assert key == compiler.cache_key("module", "v5e:4x4")
    assert key != compiler.cache_key("module", "v5e:2x2")
    assert compiler.read_cached(key) is None
    compiler.write_cached(key, [1, 2])
    assert compiler.read_cached(key) == [1, 2]
    next((tmp_path / "cache").rglob(f"{key}.json")).write_text("[1,")
    assert compiler.read_cached(key) is None
