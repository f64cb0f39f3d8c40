"""Peak memory of sampling by the length of a video.

    python -m perf.length --workdir=DIR --clip=clip.mp4

Runs edit.py --extend in a process per length, reads its resident memory twice a
second, and prints the peaks. The target is that the longer video takes at most 1.05 of
the shorter one's memory. A first run, which is not counted, fills the compilation
cache, because compilation takes more memory than sampling.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

from perf import rows
from vdm_jax.runtime import path_type

LENGTHS = 32, 256  # frames
TARGET = 1.05


def watch(command: list[str]) -> tuple[float, float, list[float]]:
    """Return peak MiB, seconds, and resident MiB twice a second, of a process."""
    started, seen = time.perf_counter(), []
    process = subprocess.Popen(command)
    peak = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except FileNotFoundError:
            break
        sizes = {
            key: float(rest.split()[0]) / 1024
            for key, _, rest in (line.partition(":") for line in status.splitlines())
            if key in ("VmHWM", "VmRSS")
        }
        if sizes:
            peak = max(peak, sizes["VmHWM"])
            seen.append(round(sizes["VmRSS"], 1))
        time.sleep(0.5)
    if process.wait():
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}")
    return peak, time.perf_counter() - started, seen


def make_row(lengths: dict[str, dict], machine: str, command: str) -> dict:
    """Return the row of perf/: the peak of the longer video over the shorter one's."""
    short, long = (lengths[str(frames)]["peak_mib"] for frames in LENGTHS)
    return rows.make_row(
        f"peak memory, {LENGTHS[1]} over {LENGTHS[0]} frames", long / short,
        target=TARGET, better="lower", machine=machine, command=command,
    )  # fmt: skip


def main() -> None:
    """Run both lengths; print and write the peaks."""
    parser = argparse.ArgumentParser(description="Memory by the length of a video.")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--clip", required=True)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=path_type, default=Path("runs/length"))
    args = parser.parse_args()
    lengths: dict[str, dict] = {}
    for frames in (LENGTHS[0], *LENGTHS):
        peak, seconds, seen = watch(
            [
                sys.executable, "edit.py", f"--workdir={args.workdir}", "--num=1",
                f"--extend={args.clip}", f"--num_frames={frames}",
                f"--steps={args.steps}", f"--out={args.out}/{frames}", "--overwrite",
            ]
        )  # fmt: skip
        lengths[str(frames)] = {"peak_mib": peak, "seconds": seconds, "seen": seen}
        print(f"{frames} frames: peak {peak:.0f} MiB, {seconds:.0f} s", flush=True)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, CPU"
    command = shlex.join(["python", "-m", "perf.length", *sys.argv[1:]])
    row = make_row(lengths, machine, command)
    print(rows.format_row(row))
    rows.write(Path(__file__).with_suffix(".json"), [row], lengths=lengths)


if __name__ == "__main__":
    main()
