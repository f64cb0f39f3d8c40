"""Kill one of two processes of a run repeatedly; its final state must be equal.

    python -m reliability.kill9_processes --kills=20
    python -m reliability.kill9_processes --kills=20 --model=loop --steps=800 \
        --out=reliability/kill9_saving.json
    python -m reliability.kill9_processes --kills=20 --model=loop --steps=800 \
        --store=s3 --out=reliability/kill9_bucket.json

Trains the smallest shapes model, or only arrays (loop.py), on two processes, which meet
on loopback, once without interruption, then again while one of them, drawn each time,
is killed with SIGKILL at a random moment: while they start, train or save. The other
must exit with status 134; then both are started again. Writes kill9_processes.json.

With --store the run is in a bucket of a server on this machine (object_stores.py), and
each process has a disk of its own.
"""

import contextlib
import functools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from reliability.kill9 import arguments, compare, names, newest, write
from vdm_jax import buckets

ROOT = Path(__file__).parents[1]
MOMENTS = ("saving", "anywhere", "saving", "starting")
ABORTED = 134  # the shell's status for SIGABRT, with which JAX ends the others
TIMEOUT = 180  # seconds that the other may take to exit


def shapes(workdir: str, steps: int, every: int, address: str, rank: int) -> list[str]:
    """Return the command of the smallest shapes model."""
    return [
        "train.py", f"--workdir={workdir}", "--config=configs/shapes.py:smoke",
        f"--config.train.steps={steps}", f"--config.train.checkpoint_every={every}",
        "--config.train.keep_checkpoints=2", "--config.train.log_every=5",
        "--config.train.sample_every=0", "--config.train.eval_every=0",
        f"--coordinator={address}", "--num_processes=2", f"--process_id={rank}",
    ]  # fmt: skip


def loop(workdir: str, steps: int, every: int, address: str, rank: int) -> list[str]:
    """Return the command of reliability/loop.py."""
    words = (workdir, steps, every, address, 2, rank)
    return ["-m", "reliability.loop", *map(str, words)]


MODELS = {"shapes": shapes, "loop": loop}


class Place(NamedTuple):
    """Where a run is.

    command: one of MODELS.
    workdir: the flag.
    folder: the directory that Checkpoints takes, without the last part.
    names: -> the steps, and "saving-..." for one that is being written.
    environment: of each process.
    """

    command: Callable[..., list[str]]
    workdir: str
    folder: Path
    names: Callable[[], set[str]]
    environment: tuple[dict[str, str], dict[str, str]] = ({}, {})

    def log(self, rank: int) -> Path:
        """Return the file of a process's output."""
        return Path(f"{self.folder}.{rank}.log")


@contextlib.contextmanager
def places(
    folder: Path, model: str | None, store: str | None
) -> Iterator[tuple[Place, Place]]:
    """Yield a place for each of two runs."""
    command = MODELS[model or "shapes"]
    if store is None:
        paths = [folder / "whole", folder / "killed"]
        first, second = (
            Place(command, str(p), p, functools.partial(names, p)) for p in paths
        )
        yield first, second
        return
    from reliability.object_stores import BUCKET, served, step_names

    with served(folder) as (_, environment):
        os.environ.update(environment)
        disks = [environment | {"XDG_CACHE_HOME": str(folder / d)} for d in "ab"]
        pair = []
        for name in "whole", "killed":
            address = f"{store}://{BUCKET}/{name}"
            listing = functools.partial(step_names, address)
            mirrored = buckets.mirror(address)
            pair.append(
                Place(command, address, mirrored, listing, (disks[0], disks[1]))
            )
        yield pair[0], pair[1]


def start(place: Place, steps: int, every: int = 5) -> list[subprocess.Popen]:
    """Start both processes of a run, each with a log next to its folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = []
    for rank in range(2):
        environment = {"JAX_PLATFORMS": "cpu", **place.environment[rank]}
        with place.log(rank).open("w") as log:
            processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        *place.command(place.workdir, steps, every, address, rank),
                    ],
                    cwd=ROOT, stdout=log, stderr=log,
                    env={**os.environ, **environment},
                )
            )  # fmt: skip
    return processes


def read_logs(place: Place) -> str:
    """Return the logs of both processes."""
    return "\n".join(place.log(rank).read_text() for rank in range(2))


def finish(place: Place, steps: int) -> None:
    """Run to the end without further checkpoints, or raise with what was printed."""
    statuses = [process.wait() for process in start(place, steps, every=steps)]
    if any(statuses):
        raise SystemExit(f"exit statuses {statuses}:\n{read_logs(place)}")


def kill_once(place: Place, steps: int, moment: str, rng: random.Random) -> dict:
    """Start both, kill one at the moment; return how the other ended."""
    before = newest(place.names())
    pair, rank = start(place, steps), rng.randrange(2)

    def wait_for(what) -> None:
        while not what():
            if any(process.poll() is not None for process in pair):
                for process in pair:
                    process.kill()
                raise SystemExit(f"ended before its kill:\n{read_logs(place)}")
            time.sleep(0.005)

    if moment == "starting":  # they have met: before, a process waits for half an hour
        wait_for(lambda: " of 2 (" in place.log(rank).read_text())
        time.sleep(rng.uniform(0, 12))
    else:  # resumed, and one checkpoint further
        wait_for(lambda: newest(place.names()) > before)
    if moment == "saving":
        wait_for(lambda: any(name.startswith("saving") for name in place.names()))
        time.sleep(rng.uniform(0, 0.2))
    if moment == "anywhere":
        time.sleep(rng.uniform(0, 2))
    pair[rank].kill()
    killed, other = time.monotonic(), pair[1 - rank]
    try:
        status = other.wait(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        other.kill()
        raise SystemExit(f"the other still runs:\n{read_logs(place)}") from None
    return {
        "moment": moment,
        "killed": rank,
        "status": 128 - status if status < 0 else status,
        "seconds": round(time.monotonic() - killed, 1),
        "before": before,
        "newest": newest(place.names()),
    }


def main() -> None:
    """Kill, compare, print and write."""
    args = arguments(steps=600, model=None, store=None)
    rng, kills, started = random.Random(args.seed), [], time.monotonic()
    print("  #  moment    killed  other's status  after s  newest", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        places(Path(folder), args.model, args.store) as (whole, killed),
    ):
        for number in range(args.kills):
            row = kill_once(killed, args.steps, MOMENTS[number % len(MOMENTS)], rng)
            print(
                f"{number + 1:3}  {row['moment']:8}  {row['killed']:6}  "
                f"{row['status']:14}  {row['seconds']:7}  {row['newest']:6}",
                flush=True,
            )
            kills.append(row)
            if row["status"] != ABORTED:
                raise SystemExit(f"status {row['status']}:\n{read_logs(killed)}")
            if row["newest"] < row["before"]:
                raise SystemExit("a saved checkpoint is gone")
        finish(killed, args.steps)
        finish(whole, args.steps)
        result = compare(whole.folder, killed.folder, args.steps)
    moments = {m: sum(k["moment"] == m for k in kills) for m in sorted(set(MOMENTS))}
    statuses = {str(s): sum(k["status"] == s for k in kills) for s in {ABORTED}}
    result |= {"kills": len(kills), "moments": moments, "statuses": statuses}
    print(json.dumps(result, indent=1))
    target = "no bit differs; the other process exits with status 134"
    write(args.out, target, result, kills, time.monotonic() - started)


if __name__ == "__main__":
    main()
