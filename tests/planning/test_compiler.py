"""The process that compiles, by the files that it leaves."""

import dataclasses
import json

import pytest

from vdm_jax.errors import UserError
from vdm_jax.planning import compiler, hlo
from vdm_jax.planning.compiler import Compilation

PASS = "m.0008.x.after_pipeline-start.before_while-loop-async-post-fusion-scheduler"
REPORT = "m.after_optimizations-memory-usage-report"
FITS = "m.after_optimizations_after_buffer_assignment"
DOES_NOT_FIT = "m.oom_intermediate_module"
MODULE = """HloModule m

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%x), to_apply=%add
}
"""


MEMORY = """Memory Space: default (color=0)
Total bytes: 7370526208 (6.86GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
Memory Space: vmem (color=1)
Total bytes: 117440512 (112.00MiB)
"""


class Process:
    """A process that has ended, or has not."""

    def __init__(self, alive: bool, exitcode: int = 1):
        self.alive, self.exitcode = alive, exitcode

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


@pytest.mark.parametrize(("last", "fits"), [(FITS, True), (DOES_NOT_FIT, False)])
def test_a_program_is_read_when_its_memory_is_assigned(folder, last, fits):
    """Whether its process still compiles, or has failed for lack of memory."""
    dumps = folder / compiler.DUMPS
    for name, text in ((PASS, MODULE), (REPORT, MEMORY)):
        (dumps / f"{name}.txt").write_text(text)
        assert compiler.read_dumps(dumps) is None
    (dumps / f"{last}.txt").write_text("")
    found = compiler._wait(Process(fits), folder)
    assert found.collectives.by_kind() == {"all-reduce": {"calls": 1, "bytes": 32}}
    assert (found.memory, found.fits) == (7370526208, fits)
    assert compiler._from_json(compiler.read_cached("k")) == found


def test_a_report_without_the_bytes_of_the_chip_is_refused(folder):
    dumps = folder / compiler.DUMPS
    for name, text in ((PASS, MODULE), (REPORT, MEMORY[60:]), (FITS, "")):
        (dumps / f"{name}.txt").write_text(text)
    with pytest.raises(ValueError, match="report has no total"):
        compiler.read_dumps(dumps)


def test_what_the_process_writes_at_its_end_is_the_result(folder):
    whole = Compilation(hlo.Collectives({}, {}), 7, True, {"fusion": 2})
    (folder / compiler.RESULT).write_text(json.dumps(dataclasses.asdict(whole)))
    assert compiler._wait(Process(True), folder) == whole


def test_a_process_that_fails_says_why(folder):
    with pytest.raises(RuntimeError, match="status 1:\nlibtpu says why"):
        compiler._wait(Process(False), folder)
    (folder / compiler.USER_ERROR).write_text("no such topology")
    with pytest.raises(UserError, match="no such topology"):
        compiler._wait(Process(False), folder)


def test_a_compiler_that_writes_no_reports_is_an_error(folder):
    """It ended well, and no memory was assigned: it is another libtpu."""
    (folder / compiler.DUMPS / f"{PASS}.txt").write_text(MODULE)
    with pytest.raises(RuntimeError, match="libtpu wrote no reports of the program"):
        compiler._wait(Process(False, 0), folder)


def test_what_is_kept_is_known_by_its_text_and_ignored_where_it_is_damaged(tmp_path):
    key = compiler.cache_key("module", "v5e:4x4")
    assert key == compiler.cache_key("module", "v5e:4x4")
    assert key != compiler.cache_key("module", "v5e:2x2")
    assert compiler.read_cached(key) is None
    compiler.write_cached(key, [1, 2])
    assert compiler.read_cached(key) == [1, 2]
    next((tmp_path / "cache").rglob(f"{key}.json")).write_text("[1,")
    assert compiler.read_cached(key) is None
