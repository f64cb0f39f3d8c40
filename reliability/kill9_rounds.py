"""Kill a distillation repeatedly; its last student must be equal bit for bit.

    python -m reliability.kill9_rounds --kills=20

Distils the smallest shapes model with guidance from 8 steps to 1, once without
interruption, then again while it is killed with SIGKILL: at random moments, while a
checkpoint is being written, between two rounds, when a round's last checkpoint is saved
and its row is not yet in rounds.json, and while it starts. Writes kill9_rounds.json.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reliability.kill9 import arguments, compare, names, newest, write

ROOT = Path(__file__).parents[1]
MOMENTS = ("anywhere", "anywhere", "saving", "between", "starting")
STEPS = (8, 4, 2, 1)  # of the students
UPDATES = 50


def command(workdir: Path, teacher: Path, every: int = 5) -> list[str]:
    """Return the command of a short guided distillation, frequent checkpoints."""
    return [
        sys.executable, "distill.py", "--config=configs/distill_shapes.py:smoke",
        f"--teacher={teacher}", f"--workdir={workdir}",
        f"--config.distill.start_steps={STEPS[0]}",
        f"--config.distill.updates_per_round={UPDATES}",
        f"--config.distill.updates_last_rounds={UPDATES}",
        f"--config.distill.guidance_updates={UPDATES}", "--config.distill.num=64",
        f"--config.train.checkpoint_every={every}", "--config.train.log_every=5",
    ]  # fmt: skip


def finish(line: list[str]) -> None:
    """Run to the end, or raise with what was printed."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}:\n{done.stdout}{done.stderr}")


def progress(workdir: Path) -> tuple[int, int]:
    """Return the finished rounds and the newest checkpoint of the next round."""
    path = workdir / "rounds.json"
    rounds = len(json.loads(path.read_text())) if path.is_file() else 0
    if rounds == len(STEPS):
        return rounds, 0
    return rounds, newest(names(workdir / "rounds" / f"{STEPS[rounds]:04d}"))


def kill_once(workdir: Path, line: list[str], moment: str, rng: random.Random) -> dict:
    """Start, wait for progress and then for the moment, and kill."""
    before = progress(workdir)
    log = workdir.with_suffix(".log")
    with (
        log.open("w") as output,
        subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=output) as child,
    ):

        def wait_for(what) -> None:
            while not what():
                if child.poll() is not None:
                    raise SystemExit(f"ended before its kill:\n{log.read_text()}")
                time.sleep(0.002)

        if moment == "starting":
            time.sleep(rng.uniform(0, 15))
        else:
            wait_for(lambda: progress(workdir) > before)
        if moment == "anywhere":
            time.sleep(rng.uniform(0, 1.5))
        elif moment == "between":
            wait_for(lambda: progress(workdir)[1] == UPDATES)
            time.sleep(rng.uniform(0, 0.3))
        elif moment == "saving":
            folder = workdir / "rounds" / f"{STEPS[progress(workdir)[0]]:04d}"
            wait_for(lambda: any(n.startswith("saving") for n in names(folder)))
            time.sleep(rng.uniform(0, 0.1))
        child.kill()
    after = progress(workdir)
    folder = workdir / "rounds" / f"{STEPS[min(after[0], len(STEPS) - 1)]:04d}"
    return {
        "moment": moment,
        "before": before,
        "after": after,
        "left": sorted(n for n in names(folder) if not n.isdecimal()),
    }


def main() -> None:
    """Kill, compare, print and write."""
    args = arguments()
    rng = random.Random(args.seed)
    kills, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher, whole, killed = (folder / n for n in ("teacher", "whole", "killed"))
        finish([
            sys.executable, "train.py", "--config=configs/shapes.py:smoke",
            f"--workdir={teacher}",
        ])  # fmt: skip
        finish(command(whole, teacher, every=UPDATES))
        print("  #  moment    rounds and step before, after  left on disk", flush=True)
        for number in range(args.kills):
            if progress(killed)[0] == len(STEPS) - 1 and progress(killed)[1] > 20:
                break  # too close to its end to be killed again
            moment = MOMENTS[number % len(MOMENTS)]
            row = kill_once(killed, command(killed, teacher), moment, rng)
            print(
                f"{number + 1:3}  {moment:8}  {row['before']} {row['after']}  "
                f"{' '.join(row['left']) or '-'}",
                flush=True,
            )
            if tuple(row["after"]) < tuple(row["before"]):
                raise SystemExit("saved progress is gone")
            kills.append(row)
        finish(command(killed, teacher))
        last = f"rounds/{STEPS[-1]:04d}"
        result = compare(whole / last, killed / last, UPDATES)
    moments = {m: sum(k["moment"] == m for k in kills) for m in sorted(set(MOMENTS))}
    result |= {"kills": len(kills), "moments": moments}
    print(json.dumps(result, indent=1))
    target = "no bit of the last student differs"
    write(args.out, target, result, kills, time.monotonic() - started)


if __name__ == "__main__":
    main()
