"""Sample the shipped models and write a page of the videos: `make demo`.

    python -m vdm_jax.demo --out=runs/demo

Each part is a command of sample.py, which the page names with the seconds that it took.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from vdm_jax import runtime
from vdm_jax.errors import UserError, printable
from vdm_jax.evaluators.clips import (
    read_sample_info,
    read_samples,
    samples_folder,
)
from vdm_jax.evaluators.sections import prompt_section
from vdm_jax.files import make_folder, read_text
from vdm_jax.report import page

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "cascades" / "shapes" / "prompts.txt"
NUM_PROMPTS = 2
NEXT_COMMANDS = (
    "source .venv/bin/activate",
    'python sample.py --cascade=cascades/shapes --prompt="a green cross moves up '
    'slowly" --out=out',
    "python sample.py --workdir=models/shapes_8step --label=red,circle,left,fast "
    "--guidance_scale=3 --out=out2",
    "python edit.py --workdir=models/shapes --extend=out2/samples.npz --out=out3",
    "python train.py --config=configs/shapes.py --workdir=runs/shapes",
    "python -m vdm_jax.data check MY_VIDEOS",
    "make tour",
)


class Part(NamedTuple):
    """A command of sample.py. name: of the folder of its videos."""

    name: str
    title: str
    flags: tuple[str, ...]

    def command(self, out: Path) -> list[str]:
        """Return the words after `python`."""
        return ["sample.py", *self.flags, f"--out={out / self.name}", "--overwrite"]


def parts() -> list[Part]:
    """Return what is sampled, the quickest first.

    Raises:
      UserError: the library is not that of a clone, which holds the models.
    """
    if not PROMPTS.is_file():
        raise UserError(f"{PROMPTS} is missing: run the demo in a clone")
    prompts = read_text(PROMPTS).splitlines()[:NUM_PROMPTS]
    return [
        Part(
            "shapes",
            "A student of eight steps",
            ("--workdir=models/shapes_8step", "--num=4", "--guidance_scale=3"),
        ),
        Part(
            "prompts",
            "Text to video with a cascade",
            ("--cascade=cascades/shapes", *(f"--prompt={each}" for each in prompts)),
        ),
        Part(
            "clips",
            "A model of natural videos",
            ("--workdir=models/clips", "--num=4", "--sampler=ddim", "--steps=16"),
        ),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Sample all parts, write the page and print its path."""
    parser = argparse.ArgumentParser(
        "python -m vdm_jax.demo",
        description="Sample the shipped models and write a page of the videos.",
    )
    parser.add_argument(
        "--out", default="runs/demo", type=runtime.path_type, help="folder of the demo"
    )
    out = parser.parse_args(arguments).out
    make_folder(out)
    out = out.resolve()
    out = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    all_parts = parts()
    seconds = []
    for number, part in enumerate(all_parts, start=1):
        print(f"[{number}/{len(all_parts)}] {_shown(part, out)}", flush=True)
        started = time.perf_counter()
        sample(part, out)
        seconds.append(time.perf_counter() - started)
        print(f"{seconds[-1]:.0f} s", flush=True)
    path = ROOT / out / "report" / "index.html"
    make_folder(path.parent)
    write_page(path, out, all_parts, seconds)
    print(printable(str(path)))


def sample(part: Part, out: Path) -> None:
    """Run the command of a part.

    Raises:
      UserError: it failed; its own message is on standard error.
    """
    done = subprocess.run([sys.executable, *part.command(out)], cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"failed: {_shown(part, out)}", status=done.returncode)


def _shown(part: Part, out: Path) -> str:
    return printable(shlex.join(["python", *part.command(out)]))


def write_page(path: Path, out: Path, all_parts: list[Part], seconds: list[float]):
    """Write the page from the folders that the commands wrote."""
    sections: list[page.Section] = [_part_section(part, out) for part in all_parts]
    rows = [
        (part.title, f"{duration:.0f}", _shown(part, out))
        for part, duration in zip(all_parts, seconds, strict=True)
    ]
    page.write(
        path,
        title="vdm_jax: samples of the shipped models",
        summary=f"Videos sampled in {sum(seconds):.0f} seconds on this machine. The "
        f"mp4 files are in {out / '*'}.",
        sections=[
            *sections,
            page.Table(
                "Seconds",
                ("part", "seconds", "command"),
                rows,
                note="Start of Python and compilation included. Compiled programs are "
                "cached: the same command takes less time again.",
            ),
            page.Commands(
                "Next commands",
                NEXT_COMMANDS,
                note="Training the model of moving shapes takes a quarter of an hour "
                "on two CPU cores; README.md describes each command.",
            ),
        ],
    )


def _part_section(part: Part, out: Path) -> page.Section:
    folder = samples_folder(ROOT / out / part.name)
    info, videos = read_sample_info(folder), read_samples(folder)
    if "stages" in info:
        return prompt_section(folder, info, videos)
    _, frames, height, width, _ = videos.shape
    caption = f"{info['workdir']}: {frames} x {height} x {width}"
    return page.VideoGrids(part.title, [page.VideoGrid(caption, videos)], info["fps"])


if __name__ == "__main__":
    runtime.run(main)
