"""Steps in a bucket: what counts, what is removed, and what a failing store costs."""

import json
import random
from datetime import timedelta

import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint_cases import abstract, assert_good, assert_same, make, saved
from vdm_jax import buckets
from vdm_jax.buckets import Bucket, BucketSteps, mirror
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.storage import BAD, BEGUN, COMMIT, OWNER

pytest.importorskip("moto.server", reason="pip install -r requirements-dev.txt")
pytest.importorskip("obstore", reason="pip install obstore")
from obstore.store import MemoryStore  # noqa: E402

from reliability.object_stores import BUCKET, served  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server")) as (proxy, environment):
        yield proxy, environment


@pytest.fixture
def address(monkeypatch, tmp_path):
    """The address of a run in a store in memory, of the same library."""
    memory = MemoryStore()
    monkeypatch.setattr(buckets, "_open_store", lambda address: memory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"gs://{BUCKET}/run"


@pytest.fixture(params=["s3", "gs"])
def served_address(request, server, monkeypatch, tmp_path):
    """The address of a run in a bucket that a server on this machine has."""
    proxy, environment = server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    proxy.fails, proxy.failed = lambda *_: False, 0
    return f"{request.param}://{BUCKET}/{request.node.name}"


only_s3 = pytest.mark.parametrize("served_address", ["s3"], indirect=True)


def directory(address):
    """The directory of the checkpoints, in the folder that stands for the run."""
    return mirror(address) / "checkpoints"


def objects(address) -> set[str]:
    names = Bucket(address).names("checkpoints/")
    return {name.removeprefix("checkpoints/") for name in names}


def test_every_bit_comes_back_and_the_newest_are_kept(served_address):
    saved(directory(served_address), 1, 2, 3).close()
    assert_good(directory(served_address), 3)
    assert Checkpoints(directory(served_address)).steps() == [2, 3]
    assert {name.split("/")[0] for name in objects(served_address)} == {
        "2",
        "3",
        OWNER,
    }
    assert not directory(served_address).exists()  # nothing of it is on this disk


class Kill(BaseException):
    """Represents kill -9: no handler of the library catches it."""


def test_a_kill_between_any_two_requests_costs_at_most_that_step(address, monkeypatch):
    """Each request of a save that changes the bucket is the last one in some run."""
    saved(directory(address), 1, 2).close()
    moments = 0
    while True:
        checkpoints = Checkpoints(directory(address))
        left = moments

        def ticking(change):
            def call(bucket, *args):
                nonlocal left
                if not left:
                    if change.__name__ == "remove":  # it is several requests
                        change(bucket, args[0][len(args[0]) // 2 :])
                    raise Kill
                left -= 1
                return change(bucket, *args)

            return call

        step = 3 + moments
        with monkeypatch.context() as patch:
            for change in Bucket.put, Bucket.remove:
                patch.setattr(Bucket, change.__name__, ticking(change))
            try:
                checkpoints.save(step, make(step), {"data": {"batches": step}})
                checkpoints.wait()
                killed = False
            except Kill:
                killed = True
        before = objects(address)
        committed = f"{step}/{COMMIT}" in before
        reader = Checkpoints(directory(address), read_only=True)
        assert (step in reader.steps()) == committed
        for each in reader.steps():  # whatever is listed is whole
            state, _ = reader.restore(each, abstract(make(0)))
            assert_same(state, make(each))
        if not committed:
            saved(directory(address), step).close()  # removes what is left
        assert_good(directory(address), step)
        assert {n.split("/")[0] for n in objects(address)} - {OWNER} == set(
            map(str, Checkpoints(directory(address)).steps())
        )
        if not killed:
            break
        moments += 1
    assert moments > 8 and committed


def test_what_is_not_committed_is_neither_listed_nor_removed_unless_it_is_ours(
    address, capfd
):
    saved(directory(address), 1, 2).close()
    bucket = Bucket(address)
    # A copy that somebody is making: it has no begun.json, or that of another place.
    bucket.put("checkpoints/3/manifest.json", b"{}")
    bucket.put("checkpoints/4/manifest.json", b"{}")
    elsewhere = {"address": "gs://other/run/checkpoints/4"}
    bucket.put(f"checkpoints/4/{BEGUN}", json.dumps(elsewhere).encode())
    ours = {"address": f"{address}/checkpoints/5"}  # left by a kill
    bucket.put(f"checkpoints/5/{BEGUN}", json.dumps(ours).encode())
    bucket.put("checkpoints/5/state-00000-of-00001.safetensors", b"half")
    assert_good(directory(address), 2)
    error = capfd.readouterr().err
    assert "checkpoints/3 is not committed" in error
    assert "checkpoints/4 is not committed" in error
    folders = {name.split("/")[0] for name in objects(address)}
    assert folders == {"1", "2", "3", "4", OWNER}
    saved(directory(address), 3).close()  # next to the copy
    assert f"3.2/{COMMIT}" in objects(address) and "3/manifest.json" in objects(address)
    assert_good(directory(address), 3)


def test_a_step_of_a_disk_that_is_copied_to_a_bucket_is_committed_there(
    address, tmp_path
):
    saved(tmp_path / "disk", 1).close()
    bucket = Bucket(address)
    for path in sorted((tmp_path / "disk" / "1").iterdir()):
        bucket.put(f"checkpoints/1/{path.name}", path.read_bytes())
    assert_good(directory(address), 1)
    saved(directory(address), 2, 3).close()
    assert Checkpoints(directory(address)).steps() == [2, 3]  # deleted in its turn
    assert not any(name.startswith("1/") for name in objects(address))


@pytest.mark.parametrize("damage", ["flipped", "missing", "other manifest"])
def test_a_damaged_step_is_set_aside_and_the_one_before_used(address, damage, capfd):
    saved(directory(address), 1, 2).close()
    bucket = Bucket(address)
    (name,) = (n for n in bucket.names("checkpoints/2/") if "/state-" in n)
    if damage == "missing":
        bucket.remove([name])
    elif damage == "flipped":
        content = bytearray(bucket.get(name))
        content[random.Random(0).randrange(len(content))] ^= 1
        bucket.put(name, bytes(content))
    else:
        manifest = json.loads(bucket.get("checkpoints/2/manifest.json"))
        bucket.put("checkpoints/2/manifest.json", json.dumps(manifest).encode())
    assert_good(directory(address), 1)
    assert "checkpoints/2: " in capfd.readouterr().err
    assert f"2/{BAD}" in objects(address)
    saved(directory(address), 2).close()  # the run makes that step again
    assert_good(directory(address), 2)
    assert f"2.2/{COMMIT}" in objects(address) and f"2/{BAD}" in objects(address)


def test_nothing_usable_left_is_never_a_fresh_start(address):
    saved(directory(address), 1).close()
    bucket = Bucket(address)
    bucket.put("checkpoints/1/extra.json", b"{}")
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            Checkpoints(directory(address)).newest_intact()
        assert caught.value.status == 4


@only_s3
def test_a_store_that_fails_half_of_its_writes_loses_nothing(served_address, server):
    proxy, _ = server
    proxy.fail_half_of_the_writes()
    saved(directory(served_address), 1, 2, 3).close()
    assert proxy.failed > 10
    assert_good(directory(served_address), 3)
    assert Checkpoints(directory(served_address)).steps() == [2, 3]


@only_s3
def test_a_store_that_is_down_is_one_line_and_the_older_steps_stay(
    served_address, server, monkeypatch
):
    proxy, _ = server
    saved(directory(served_address), 1, 2).close()
    short = buckets.RETRY | {"retry_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(buckets, "RETRY", short)
    checkpoints = Checkpoints(directory(served_address))
    proxy.fails = lambda method, path: method in ("PUT", "POST") and "state-" in path
    checkpoints.save(3, make(3), {"data": {"batches": 3}})
    with pytest.raises(UserError, match=r"503.*steps \[1, 2\] are unchanged") as caught:
        checkpoints.wait()
    assert "\n" not in str(caught.value) and caught.value.status == 2
    proxy.fails = lambda *_: False
    assert_good(directory(served_address), 2)
    assert not any(name.startswith("3/") for name in objects(served_address))


@only_s3
def test_a_store_that_cannot_be_read_is_no_damage_and_no_fresh_start(
    served_address, server, monkeypatch
):
    proxy, _ = server
    saved(directory(served_address), 1).close()
    monkeypatch.setattr(
        buckets, "RETRY", buckets.RETRY | {"retry_timeout": timedelta(seconds=1)}
    )
    checkpoints = Checkpoints(directory(served_address), read_only=True)
    for path in "list-type", "manifest", "state-":
        proxy.fails = lambda _, where, path=path: path in where
        with pytest.raises(UserError, match="cannot be read .*503.*nothing is changed"):
            checkpoints.newest_intact()
    proxy.fails = lambda *_: False
    assert_good(directory(served_address), 1)


def test_a_second_run_in_a_bucket_ends_the_first_at_its_next_commit(address):
    first = saved(directory(address), 1)
    # Also one with the same process number and hostname, as in a restarted pod.
    Checkpoints(directory(address))
    first.save(2, make(2), {})
    with pytest.raises(UserError, match="has taken the run over"):
        first.wait()
    assert_good(directory(address), 1)


def test_a_second_run_takes_over_before_it_removes_anything(address, monkeypatch):
    first, second = BucketSteps(Bucket(address)), BucketSteps(Bucket(address))
    first.prepare("first", alone=True)
    folder = first.begin(1)
    first.write(folder, "manifest.json", b"{}")
    remove = second._remove

    def commits_in_between(folder):
        remove(folder)
        with pytest.raises(OSError, match="second has taken the run over"):
            first.commit(folder, 1, b"{}")

    monkeypatch.setattr(second, "_remove", commits_in_between)
    second.prepare("second", alone=True)
    assert objects(address) == {OWNER}


def test_a_takeover_during_a_commit_costs_no_older_step(address, monkeypatch):
    first, put = saved(directory(address), 1, 2), Bucket.put

    def put_late(bucket, name, content):
        if name.endswith(COMMIT):
            Checkpoints(directory(address))  # removes what is not committed
        put(bucket, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", put_late)
        first.save(3, make(3), {})
        with pytest.raises(UserError, match="has taken the run over"):
            first.wait()
    assert_good(directory(address), 2)
    assert Checkpoints(directory(address)).steps() == [1, 2]


def test_a_copy_that_does_not_count_is_never_a_fresh_start(address):
    """Also a run whose steps Orbax wrote: they have no commit.json."""
    bucket = Bucket(address)
    bucket.put("checkpoints/1000/manifest.json", b"{}")
    bucket.put("checkpoints/1200/state/d/0", b"half")
    before = objects(address)
    for read_only in False, True:
        checkpoints = Checkpoints(directory(address), read_only=read_only)
        with pytest.raises(UserError, match="1000, 1200.*commit.json") as caught:
            checkpoints.newest_intact()
        assert caught.value.status == 2 and "\n" not in str(caught.value)
    assert objects(address) == before | {OWNER}
    bucket.remove([f"checkpoints/{name}" for name in before])
    assert Checkpoints(directory(address)).newest_intact() is None
    # What this run itself has begun, and writes at this moment, is no copy.
    Checkpoints(directory(address))._steps.begin(1)
    reader = Checkpoints(directory(address), read_only=True)
    assert reader.newest_intact() is None


@pytest.mark.parametrize(
    "text",
    ["gs://", "gs://b", "gs:///x", "ftp://b/x", "gs://b/../x", "gs://b/x?y", "s3:/b"],
)
def test_an_address_names_a_bucket_and_a_path(text):
    with pytest.raises(UserError, match="give gs://BUCKET/PATH or s3://BUCKET/PATH"):
        mirror(text)


def test_the_folder_of_a_run_has_the_config_of_the_bucket(address):
    bucket = Bucket(address)
    bucket.put("config.json", b"{}")
    folder = mirror(address + "/")
    assert (folder / "config.json").read_bytes() == b"{}"
    (folder / "config.json").write_text("[1]")
    buckets.publish(folder / "config.json")
    assert bucket.get("config.json") == b"[1]"
    bucket.remove(["config.json"])
    assert mirror(address) == folder and not (folder / "config.json").exists()
    assert buckets.address_of(folder) == address
    assert buckets.address_of(folder.parent) is None


def test_large_arrays_go_in_parts(served_address, monkeypatch):
    monkeypatch.setattr(buckets, "PART", 5 << 20)  # the least of S3
    values = np.random.default_rng(0).normal(size=3_000_000).astype(np.float32)
    checkpoints = Checkpoints(directory(served_address))
    checkpoints.save(1, {"x": jnp.asarray(values)}, {})
    checkpoints.wait()
    assert checkpoints.newest_intact() == 1
    np.testing.assert_array_equal(checkpoints.arrays(1)["x"], values)
