"""Kill one of two processes of a run repeatedly; its final state must be equal.

    python -m reliability.kill9_processes --kills=20

Trains the smallest shapes model on two processes, which meet on loopback, once without
interruption, then again while one of them, drawn each time, is killed with SIGKILL at a
random moment: while they start, train or save. The other must exit with status 134;
then both are started again. Writes kill9_processes.json.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reliability.kill9 import arguments, compare, names, newest, write

ROOT = Path(__file__).parents[1]
MOMENTS = ("anywhere", "anywhere", "saving", "starting")
ABORTED = 134  # the shell's status for SIGABRT, with which JAX ends the others
TIMEOUT = 180  # seconds that the other may take to exit


def start(workdir: Path, steps: int, every: int = 5) -> list[subprocess.Popen]:
    """Start both processes of a run, each with a log next to the workdir."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = []
    for rank in range(2):
        with Path(f"{workdir}.{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [
                        sys.executable, "train.py", f"--workdir={workdir}",
                        "--config=configs/shapes.py:smoke",
                        f"--config.train.steps={steps}",
                        f"--config.train.checkpoint_every={every}",
                        "--config.train.keep_checkpoints=2",
                        "--config.train.log_every=5", "--config.train.sample_every=0",
                        "--config.train.eval_every=0", f"--coordinator={address}",
                        "--num_processes=2", f"--process_id={rank}",
                    ],
                    cwd=ROOT, stdout=log, stderr=log,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                )
            )  # fmt: skip
    return processes


def read_logs(workdir: Path) -> str:
    """Return the logs of both processes."""
    return "\n".join(Path(f"{workdir}.{rank}.log").read_text() for rank in range(2))


def finish(workdir: Path, steps: int) -> None:
    """Run to the end without further checkpoints, or raise with what was printed."""
    statuses = [process.wait() for process in start(workdir, steps, every=steps)]
    if any(statuses):
        raise SystemExit(f"exit statuses {statuses}:\n{read_logs(workdir)}")


def kill_once(workdir: Path, steps: int, moment: str, rng: random.Random) -> dict:
    """Start both, kill one at the moment; return how the other ended."""
    before = newest(names(workdir))
    pair, rank = start(workdir, steps), rng.randrange(2)

    def wait_for(what) -> None:
        while not what():
            if any(process.poll() is not None for process in pair):
                for process in pair:
                    process.kill()
                raise SystemExit(f"ended before its kill:\n{read_logs(workdir)}")
            time.sleep(0.005)

    if moment == "starting":
        time.sleep(rng.uniform(0, 12))
    else:  # resumed, and one checkpoint further
        wait_for(lambda: newest(names(workdir)) > before)
    if moment == "saving":
        wait_for(lambda: any(name.startswith("saving") for name in names(workdir)))
        time.sleep(rng.uniform(0, 0.2))
    if moment == "anywhere":
        time.sleep(rng.uniform(0, 2))
    pair[rank].kill()
    killed, other = time.monotonic(), pair[1 - rank]
    try:
        status = other.wait(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        other.kill()
        raise SystemExit(f"the other still runs:\n{read_logs(workdir)}") from None
    return {
        "moment": moment,
        "killed": rank,
        "status": 128 - status if status < 0 else status,
        "seconds": round(time.monotonic() - killed, 1),
        "before": before,
        "newest": newest(names(workdir)),
    }


def main() -> None:
    """Kill, compare, print and write."""
    args = arguments(steps=600)
    rng, kills, started = random.Random(args.seed), [], time.monotonic()
    print("  #  moment    killed  other's status  after s  newest", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
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
        result = compare(whole, killed, args.steps)
    moments = {m: sum(k["moment"] == m for k in kills) for m in sorted(set(MOMENTS))}
    statuses = {str(s): sum(k["status"] == s for k in kills) for s in {ABORTED}}
    result |= {"kills": len(kills), "moments": moments, "statuses": statuses}
    print(json.dumps(result, indent=1))
    target = "no bit differs; the other process exits with status 134"
    write(args.out, target, result, kills, time.monotonic() - started)


if __name__ == "__main__":
    main()
