"""Does memory grow with the length? The same clip extended to two lengths.

    python perf/length.py --workdir=DIR --clip=clip.mp4

Runs sample.py --extend in a process of its own for each length, watches its resident
memory, and prints the peaks: the longer one may have 1.05 of the shorter one's. A run
before them, not counted, fills the compilation cache: compiling takes more memory than
sampling does.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from vdm_jax.runtime import path_type

LENGTHS = 32, 256


def watch(command: list[str]) -> tuple[float, float, list[float]]:
    """Peak MiB, seconds, and the resident MiB twice a second, of a process."""
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


def main() -> None:
    """Run both lengths; print and keep the peaks."""
    parser = argparse.ArgumentParser(description="Memory by the length of a video.")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--clip", required=True)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=path_type, default=Path("runs/length"))
    args = parser.parse_args()
    results: dict = {"command": " ".join(["python", *sys.argv])}
    for frames in (LENGTHS[0], *LENGTHS):
        peak, seconds, seen = watch(
            [
                sys.executable, "sample.py", f"--workdir={args.workdir}", "--num=1",
                f"--extend={args.clip}", f"--num_frames={frames}", f"--steps={args.steps}",
                f"--out={args.out}/{frames}", "--overwrite",
            ]
        )  # fmt: skip
        results[str(frames)] = {"peak_mib": peak, "seconds": seconds, "seen": seen}
        print(f"{frames} frames: peak {peak:.0f} MiB, {seconds:.0f} s", flush=True)
    short, long = (results[str(frames)]["peak_mib"] for frames in LENGTHS)
    results["ratio"] = long / short
    print(f"{LENGTHS[1]} against {LENGTHS[0]} frames: {long / short:.3f} of the memory")
    Path("perf/length.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
