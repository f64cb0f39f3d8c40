"""Sample the shipped models and write a page of the videos: `make demo`.

    python -m vdm_jax.demo --out=runs/demo

Each part is a command of sample.py, which the page names with the seconds that it took.
"""

import argparse
import dataclasses
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from vdm_jax import runtime
from vdm_jax.errors import UserError, printable
from vdm_jax.evaluators.clips import read_sample_info, read_samples, samples_folder
from vdm_jax.evaluators.sections import prompt_grid, prompt_section
from vdm_jax.files import make_folder
from vdm_jax.report import page

ROOT = Path(__file__).parents[1]
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
    flags: str

    def command(self, out: Path) -> list[str]:
        """Return the words after `python`."""
        flags = f"{self.flags} --out={shlex.quote(str(out / self.name))} --overwrite"
        return ["sample.py", *shlex.split(flags)]


# Pairs of object and background that models/sprites was not trained on.
PICTURES = (
    "a rocket on a yellow background",
    "a penguin on a red background",
    "a turtle on a light blue background",
    "a watermelon on a grey background",
    "a robot on a green background",
    "a plane on a dark blue background",
)
PARTS = (  # the quickest first
    Part(
        "shapes",
        "A student of eight steps",
        "--workdir=models/shapes_8step --num=4 --guidance_scale=3",
    ),
    Part(
        "pictures",
        "Pictures from sentences",
        "--workdir=models/sprites "
        + " ".join(f"--prompt='{prompt}'" for prompt in PICTURES),
    ),
    Part(
        "moving",
        "A video of an image model: Text2Video-Zero",
        "--workdir=models/sprites --system=text2video_zero --set=motion=0,-1 "
        "--set=t0=601 --set=t1=681 --guidance_scale=5 "
        + " ".join(f"--prompt='{prompt}'" for prompt in PICTURES[:2]),
    ),
    Part(
        "prompts",
        "Text to video with a cascade",
        "--cascade=cascades/shapes --prompt='a red circle moves left quickly' "
        "--prompt='a green cross moves up slowly'",
    ),
    Part(
        "clips",
        "A model of natural videos",
        "--workdir=models/clips --num=4 --sampler=ddim --steps=16",
    ),
)


def main(arguments: list[str] | None = None) -> None:
    """Sample all parts, write the page and print its path."""
    parser = argparse.ArgumentParser(
        "python -m vdm_jax.demo",
        description="Sample the shipped models and write a page of the videos.",
    )
    parser.add_argument(
        "--out", default="runs/demo", type=runtime.path_type, help="folder of the demo"
    )
    flags = parser.parse_args(arguments)
    if not (ROOT / "sample.py").is_file():
        raise UserError(
            f"{ROOT} has no sample.py: run the demo in a clone of the repository"
        )
    out = make_folder(flags.out).resolve()
    out = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    seconds = []
    for number, part in enumerate(PARTS, start=1):
        print(f"[{number}/{len(PARTS)}] {_shown(part, out)}", flush=True)
        started = time.perf_counter()
        sample(part, out)
        seconds.append(time.perf_counter() - started)
    path = make_folder(ROOT / out / "report") / "index.html"
    write_page(path, out, seconds)
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


def write_page(path: Path, out: Path, seconds: list[float]) -> None:
    """Write the page from the folders that the commands wrote.

    seconds: of each part.
    """
    rows = [
        (part.title, f"{duration:.0f}", _shown(part, out))
        for part, duration in zip(PARTS, seconds, strict=True)
    ]
    page.write(
        path,
        title="vdm_jax: samples of the shipped models",
        summary=f"Videos sampled in {sum(seconds):.0f} seconds on this machine. The "
        f"mp4 files are in {out / '*'}.",
        sections=[
            *(_section(part, out) for part in PARTS),
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


def _section(part: Part, out: Path) -> page.Section:
    folder = samples_folder(ROOT / out / part.name)
    info, videos = read_sample_info(folder), read_samples(folder)
    if "stages" in info:
        return prompt_section(folder, info, videos)
    _, frames, height, width, _ = videos.shape
    if frames == 1:
        pictures = prompt_grid(info["labels"], {part.name: videos}, 1.0)
        return dataclasses.replace(pictures, title=part.title)
    caption = f"{info['workdir']}: {frames} x {height} x {width}"
    return page.VideoGrids(part.title, [page.VideoGrid(caption, videos, info["fps"])])


if __name__ == "__main__":
    runtime.run(main)
