"""Record what the code makes, and compare two recordings.

    python -m experiments.gate.gate record --repo=DIR --out=DIR [--only=NAME,...]
    python -m experiments.gate.gate compare OUT_OF_BASE OUT_OF_NEW [--only=NAME,...]

This is for a change that restructures much and must not change a number. `record` runs
the cases of `CASES` in a checkout, one process after the other, and writes NAME.npz
(arrays) and NAME.json (figures) of each. `compare` prints one row per case and exits
with status 1 if something is missing or differs by more than the tolerance of its case.

Cases run the commands of the checkout. Four scripts next to this file need the library
itself: those of the checkout are run, so that they know its interface.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

# --- running commands in a checkout --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a case has made: arrays and figures by name."""

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Checkout:
    """A checkout whose commands are run, and the folder of its recording."""

    repo: Path
    out: Path

    @property
    def inputs(self) -> Path:
        """Return the folder of clips, masks and prompts that the cases read."""
        return self.out / "inputs"

    @property
    def work(self) -> Path:
        """Return the folder of what the commands write."""
        return self.out / "work"

    def run(self, *words: str, **environment: str) -> str:
        """Run Python with these words in the checkout; return its output."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.repo,
            env={**os.environ, "PYTHONPATH": str(self.repo), **environment},
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words[-20:])}\n{done.stderr[-3000:]}")
        return done.stdout

    def command(self, script: str, *flags: str) -> None:
        """Run a script of the checkout."""
        self.run(script, *flags)

    def script(self, name: str, *words: str, **environment: str) -> None:
        """Run a script that lies next to this file in the checkout."""
        self.run("-m", f"experiments.gate.{name}", *words, **environment)


def fresh(folder: Path) -> Path:
    """Return a folder that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file."""
    with np.load(path) as found:
        return dict(found)


def numbers(tree: Any, path: str = "") -> dict[str, float]:
    """Return the numbers of a JSON tree by their paths, except for times."""
    if isinstance(tree, bool | int | float):
        timed = re.search("time|second", path.rpartition("/")[2])
        return {} if timed else {path: float(tree)}
    if isinstance(tree, list):
        tree = {str(i): value for i, value in enumerate(tree)}
    if not isinstance(tree, dict):
        return {}
    found: dict[str, float] = {}
    for name, value in tree.items():
        found |= numbers(value, f"{path}/{name}" if path else name)
    return found


# --- inputs ---------------------------------------------------------------------------


def disc_frames(num: int, height: int, width: int) -> np.ndarray:
    """Return a film of a red disc that moves over a dark gradient."""
    y, x = np.mgrid[:height, :width]
    frames = np.zeros((num, height, width, 3), np.uint8)
    frames[..., 2] = 40 + 60 * x // width
    for i, frame in enumerate(frames):
        inside = (x - 6 - i) ** 2 + (y - height / 2 - i / 4) ** 2 < height**2 / 16
        frame[inside] = 220, 40, 30
    return frames


def write_clip(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write an mp4, by one thread so that the same frames give the same bytes."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def write_inputs(at: Checkout) -> Recorded:
    """Write the clip, the mask and the prompts that other cases read."""
    folder = fresh(at.inputs)
    write_clip(folder / "clip.mp4", disc_frames(32, 32, 48), fps=16)
    mask = np.zeros((32, 48), np.uint8)
    mask[8:28, 16:32] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    prompts = (at.repo / "cascades/shapes/prompts.txt").read_text().splitlines()
    (folder / "prompts.txt").write_text("\n".join(prompts[:4]) + "\n")
    files = sorted(folder.iterdir())
    return Recorded({f.name: np.frombuffer(f.read_bytes(), np.uint8) for f in files})


# --- cases: samples -------------------------------------------------------------------


def sample(at: Checkout, name: str, model: str, *flags: str) -> Recorded:
    """Sample a model, or edit a clip; an input among the flags is INPUTS/FILE."""
    out = fresh(at.work / name)
    is_edit = any("INPUTS/clip" in flag for flag in flags)
    script = "edit.py" if is_edit and (at.repo / "edit.py").exists() else "sample.py"
    flags = tuple(flag.replace("INPUTS", str(at.inputs)) for flag in flags)
    at.command(script, f"--workdir={model}", f"--out={out}", "--seed=0", *flags)
    return Recorded(read_npz(out / "samples.npz"))


STAGES = ("base", "tsr1", "ssr1", "ssr2", "tsr2")


def cascade(at: Checkout, name: str) -> Recorded:
    """Sample the shipped cascade; the last stage's videos lie in OUT or OUT/STAGE."""
    out = fresh(at.work / name)
    at.command(
        "sample.py", "--cascade=cascades/shapes", "--seed=0",
        f"--prompts={at.inputs}/prompts.txt", f"--out={out}",
    )  # fmt: skip
    arrays = {}
    for stage in STAGES:
        path = out / stage / "samples.npz"
        found = read_npz(path if path.exists() else out / "samples.npz")
        arrays |= {f"{stage}/{key}": array for key, array in found.items()}
    return Recorded(arrays)


def in_float64(at: Checkout, name: str, *flags: str) -> Recorded:
    """Sample in float64; keep the videos as they are before they are rounded."""
    folder = fresh(at.work / name)
    flags = tuple(flag.replace("INPUTS", str(at.inputs)) for flag in flags)
    at.script(
        "float64", "sample", f"{folder}/videos.npz", f"--out={folder}/out", "--seed=0",
        *flags, JAX_ENABLE_X64="1",
    )  # fmt: skip
    return Recorded(read_npz(folder / "videos.npz"))


def inversion(at: Checkout, name: str) -> Recorded:
    """Invert clips and sample back."""
    out = fresh(at.work / name) / "videos.npz"
    at.script("inversion", str(out))
    return Recorded(read_npz(out))


def evaluate(at: Checkout, name: str) -> Recorded:
    """Measure the shapes model, without networks."""
    out = fresh(at.work / name)
    at.command("evaluate.py", "--workdir=models/shapes", "--num=32", f"--out={out}")
    found = json.loads((out / "results.json").read_text())
    settings = ("sample", "guidance_scales")  # of the command, no figures
    kept = {name: value for name, value in found.items() if name not in settings}
    return Recorded(figures=numbers(kept))


# --- cases: training ------------------------------------------------------------------

QUIET = ("--config.train.sample_every=0", "--config.train.eval_every=0")
SMALL = ("--config.video.height=8", "--config.video.width=8")
STAGE = "--config=configs/cascade_small.py:smoke"
SMOKE = {
    "shapes": ("--config=configs/shapes.py:smoke",),
    "bouncing": ("--config=configs/bouncing.py:smoke", *QUIET),
    "clips": ("--config=configs/clips.py:smoke", *QUIET),
    "base": (  # STAGE without its stage section
        "--config=configs/shapes.py:smoke", *QUIET, *SMALL, "--config.video.frames=4",
        "--config.data.label_vocabulary=()", "--config.data.held_out_combinations=12",
        "--config.data.stride=2", "--config.diffusion.logsnr_shift=0.0",
        "--config.sample.guidance_scale=1.0",
        "--config.diffusion.train_logsnr_shifts=()",
    ),
    "tsr": (
        STAGE, *QUIET, *SMALL, "--config.stage.kind=tsr",
        "--config.stage.temporal_fill=blank",
    ),
    "ssr": (STAGE, *QUIET, "--config.stage.train_crop=(8,8)"),
    "text": (
        STAGE, *QUIET, "--config.conditioning.text_dim=384",
        "--config.conditioning.text_dropout=0.1", "--config.data.joint_image_frames=2",
        "--config.network.mid_layers=('cross_attention','temporal_attention')",
    ),
}  # fmt: skip


def initial_array(path: str, shape: list[int]) -> np.ndarray:
    """Return the first values of a parameter, decided by its path alone."""
    noise = np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape)
    if len(shape) > 1:
        noise = noise / np.sqrt(np.prod(shape[:-1]))
    elif path.endswith("scale"):
        noise = 1 + 0.1 * noise
    else:
        noise = 0.1 * noise
    return noise.astype(np.float32)


def config_flags(at: Checkout, name: str) -> tuple[str, ...]:
    """Return the flags of a training config of SMOKE."""
    text = (f"--config.data.text_embeddings_dir={at.work}/embeddings",) * (
        name == "text"
    )
    return (*SMOKE[name], *text)


def initial(at: Checkout, name: str) -> Path:
    """Write a shipped model of known numbers, for a config of SMOKE, once."""
    folder = at.work / "initial" / name
    if not (folder / "params.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        at.script("model", str(folder), *config_flags(at, name))
        shapes = json.loads((folder / "shapes.json").read_text())
        arrays = {path: initial_array(path, shape) for path, shape in shapes.items()}
        save_file(arrays, folder / "params.safetensors")
    return folder


def parameters(at: Checkout, workdir: Path) -> dict[str, np.ndarray]:
    """Return the parameters of a run's newest checkpoint, and their averages."""
    out = workdir / "arrays.npz"
    at.script("arrays", str(workdir), str(out))
    return read_npz(out)


def log_figures(workdir: Path) -> dict[str, float]:
    """Return what a run has logged, as STEP/NAME."""
    found: dict[str, float] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        found |= numbers({f"{step}/{key}": value for key, value in row.items()})
    return found


def train(at: Checkout, name: str, smoke: str) -> Recorded:
    """Train four updates from known numbers."""
    workdir = at.work / name
    shutil.rmtree(workdir, ignore_errors=True)
    start = f"--config.init_from={initial(at, smoke)}"
    flags = (*config_flags(at, smoke), start, f"--workdir={workdir}")
    at.command("train.py", *flags)
    return Recorded(parameters(at, workdir), log_figures(workdir))


def students(at: Checkout, workdir: Path, prefix: str = "") -> Recorded:
    """Return the parameters of every student of a distillation, and its figures."""
    arrays = {}
    figures = numbers(json.loads((workdir / "rounds.json").read_text()))
    for path in sorted((workdir / "rounds").iterdir()):
        found = parameters(at, path)
        arrays |= {f"{path.name}/{key}": array for key, array in found.items()}
        logged = log_figures(path)
        figures |= {f"{path.name}/{key}": number for key, number in logged.items()}
    return Recorded(
        {prefix + key: array for key, array in arrays.items()},
        {prefix + key: number for key, number in figures.items()},
    )


def distill(at: Checkout, name: str) -> Recorded:
    """Distil the shapes model of known numbers: guidance first, then to one step."""
    workdir = at.work / name
    shutil.rmtree(workdir, ignore_errors=True)
    at.command(
        "distill.py", "--config=configs/distill_shapes.py:smoke",
        f"--teacher={initial(at, 'shapes')}", f"--workdir={workdir}",
    )  # fmt: skip
    return students(at, workdir)


def distill_cascade(at: Checkout, name: str) -> Recorded:
    """Distil a cascade of three small stages of known numbers."""
    workdir = at.work / name
    stages = ("base", "tsr", "ssr")
    shutil.rmtree(workdir, ignore_errors=True)
    table = '[[stage]]\nname = "{0}"\nworkdir = "{1}"\nsteps = 4\n'
    text = "\n".join(table.format(stage, initial(at, stage)) for stage in stages)
    file = at.work / "initial" / "cascade.toml"
    file.write_text(text)
    at.command(
        "distill.py", "--config=configs/distill_cascade.py:smoke",
        f"--cascade={file}", f"--workdir={workdir}",
    )  # fmt: skip
    found = [students(at, workdir / stage, f"{stage}/") for stage in stages]
    return Recorded(
        {key: array for each in found for key, array in each.arrays.items()},
        {key: number for each in found for key, number in each.figures.items()},
    )


# --- the list -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A function (checkout, name) -> Recorded, and the largest difference allowed."""

    make: Callable[[Checkout, str], Recorded]
    tolerance: float = 0.0


def sampled(model: str, *flags: str) -> Case:
    """Return the case of one command that samples a model in models/."""

    def make(at: Checkout, name: str) -> Recorded:
        return sample(at, name, f"models/{model}", *flags)

    return Case(make)


FOUR = ("--num=4", "--steps=16")
FEW = ("--num=2", "--steps=8")
SAMPLERS = ("ddim", "ancestral", "dpm", "heun", "stochastic")
CASES: dict[str, Case] = {
    "inputs": Case(lambda at, name: write_inputs(at)),
    "bouncing": sampled("bouncing", *FOUR),
    "bouncing_ddim": sampled("bouncing", *FOUR, "--sampler=ddim"),
    "clips": sampled("clips", *FOUR),
    "clips_dpm": sampled("clips", *FOUR, "--sampler=dpm"),
    "shapes": sampled("shapes", *FOUR),
    "shapes_8step": sampled("shapes_8step", "--num=4"),
    "shapes_8step_s3": sampled("shapes_8step", "--num=4", "--guidance_scale=3"),
    **{
        f"{sampler}_s{s}": sampled(
            "shapes", *FOUR, f"--sampler={sampler}", f"--guidance_scale={s}"
        )
        for sampler in SAMPLERS
        for s in (1, 3)
    },
    "interval_rescaled": sampled(
        "shapes", *FOUR, "--guidance_scale=3", "--guidance_schedule=interval:-4:4",
        "--cfg_mode=rescaled", "--dynamic_threshold=99",
    ),
    "oscillating_projected": sampled(
        "shapes", *FOUR, "--guidance_scale=3", "--guidance_schedule=oscillating:2:.5",
        "--cfg_mode=projected", "--clip_x=0", "--sampling_schedule=linear",
    ),
    "frames_negative": sampled(
        "shapes", *FOUR, "--guidance_scale=3", "--guidance_schedule=frames:1.5",
        "--label=circle,red", "--negative_label=square,blue", "--langevin_delta=.1",
    ),
    "ancestral_gamma": sampled(
        "shapes", *FOUR, "--sampler=ancestral", "--ancestral_gamma=0.8"
    ),
    "heun_churn": sampled("shapes", *FOUR, "--sampler=heun", "--s_churn=10"),
    "long": sampled("bouncing", *FEW, "--num_frames=12", "--overlap_frames=3"),
    "extend": sampled(
        "bouncing", *FEW, "--extend=INPUTS/clip.mp4", "--num_cond_frames=4",
        "--num_frames=16",
    ),
    "extend_backward": sampled(
        "bouncing", *FEW, "--extend=INPUTS/clip.mp4", "--backward"
    ),
    "interpolate": sampled(
        "bouncing", *FEW, "--interpolate=INPUTS/clip.mp4", "--num_cond_frames=2"
    ),
    "inpaint": sampled(
        "shapes", *FEW, "--inpaint=INPUTS/clip.mp4", "--mask=INPUTS/mask.png",
        "--label=square,green", "--guidance_scale=2", "--reconstruction_weight=5",
        "--reconstruction_schedule=exact",
    ),
    "upscale": sampled(
        "shapes", *FEW, "--upscale=INPUTS/clip.mp4", "--downscale_factor=2"
    ),
    "multidiffusion": sampled(
        "shapes", "--num=2", "--steps=4", "--multidiffusion", "--tiles=1x2",
        "--num_frames=12",
    ),
    "cascade": Case(cascade),
    "inversion": Case(inversion),
    "evaluate": Case(evaluate),
    **{
        f"train_{smoke}": Case(functools.partial(train, smoke=smoke)) for smoke in SMOKE
    },
    "distill": Case(distill),
    "distill_cascade": Case(distill_cascade),
    "float64_shapes": Case(
        lambda at, name: in_float64(
            at, name, "--workdir=models/shapes", "--num=4", "--steps=8",
            "--guidance_scale=3",
        ),
    ),
    "float64_cascade": Case(
        lambda at, name: in_float64(
            at, name, "--cascade=cascades/shapes", "--last_stage=tsr1",
            "--prompts=INPUTS/prompts.txt",
        ),
    ),
}  # fmt: skip

# --- record ---------------------------------------------------------------------------


def check_checkout(at: Checkout) -> None:
    """Make sure that the library that runs is the one of the checkout."""
    found = at.run("-c", "import vdm_jax; print(vdm_jax.__file__)").strip()
    if not Path(found).resolve().is_relative_to(at.repo.resolve()):
        raise SystemExit(f"vdm_jax is {found}, not of {at.repo}")


def write(at: Checkout, name: str, made: Recorded) -> None:
    """Write what a case has made."""
    for suffix in ("npz", "json"):
        (at.out / f"{name}.{suffix}").unlink(missing_ok=True)
    if made.arrays:
        arrays: dict[str, Any] = dict(made.arrays)
        np.savez_compressed(at.out / f"{name}.npz", **arrays)
    if made.figures:
        text = json.dumps(made.figures, indent=1, sort_keys=True)
        (at.out / f"{name}.json").write_text(text + "\n")


def record_case(at: Checkout, name: str) -> dict[str, Any]:
    """Run one case; return its seconds, and its error if it failed."""
    started = time.monotonic()
    error = ""
    try:
        write(at, name, CASES[name].make(at, name))
    except (RuntimeError, OSError, KeyError, subprocess.TimeoutExpired) as bad:
        error = str(bad) or type(bad).__name__
    seconds = round(time.monotonic() - started, 1)
    print(f"{name:24} {seconds:6.1f} s  {error}", flush=True)
    return {"seconds": seconds, "error": error}


def record(repo: Path, out: Path, names: list[str]) -> int:
    """Run cases in a checkout; return 1 if one failed."""
    at = Checkout(repo.resolve(), out.resolve())
    at.work.mkdir(parents=True, exist_ok=True)
    check_checkout(at)
    if not at.inputs.exists() and "inputs" not in names:
        write_inputs(at)
    path = at.out / "record.json"
    about: dict[str, Any] = {"cases": {}}
    if path.exists():
        about = json.loads(path.read_text())
    about |= {"repo": str(at.repo)}
    print(f"{at.repo}, into {at.out}", flush=True)
    for name in names:
        about["cases"][name] = record_case(at, name)
        path.write_text(json.dumps(about, indent=1) + "\n")
    print(f"{sum(about['cases'][name]['seconds'] for name in names):.0f} s in all")
    return int(any(about["cases"][name]["error"] for name in names))


# --- compare --------------------------------------------------------------------------


def read(out: Path, name: str) -> dict[str, np.ndarray]:
    """Return the arrays and figures of a case."""
    npz, figures = out / f"{name}.npz", out / f"{name}.json"
    arrays = read_npz(npz) if npz.exists() else {}
    found = json.loads(figures.read_text()) if figures.exists() else {}
    return arrays | {f"figure {key}": np.array(value) for key, value in found.items()}


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest absolute difference; infinity for another shape or type."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.tobytes() == b.tobytes():
        return 0.0
    if a.dtype.kind not in "fiub":
        return float("inf")
    apart = np.atleast_1d(np.abs(a.astype(np.float64) - b.astype(np.float64)))
    apart[np.atleast_1d(np.isnan(a) & np.isnan(b))] = 0
    return float(np.nan_to_num(apart, nan=np.inf).max())


def share(a: np.ndarray, b: np.ndarray) -> str:
    """Say how many elements of two arrays differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
    return f"{np.count_nonzero(a != b)} of {a.size} values differ"


def compare_case(a: Path, b: Path, name: str) -> tuple[int, str, bool]:
    """Return how many arrays were compared, what was found, and if that is fine."""
    first, second = read(a, name), read(b, name)
    if not first or not second:
        return 0, f"missing in {a if not first else b}", False
    if lacking := sorted(first.keys() ^ second.keys()):
        where = {key: b if key in first else a for key in lacking}
        shown = ", ".join(f"{key} in {where[key]}" for key in lacking[:3])
        return 0, f"{len(lacking)} missing: {shown}", False
    apart = {key: difference(first[key], second[key]) for key in first}
    worst = max(apart, key=lambda key: apart[key])
    if not apart[worst]:
        return len(apart), "equal bit for bit", True
    allowed = CASES[name].tolerance
    count = sum(value > 0 for value in apart.values())
    text = (
        f"{apart[worst]:.3g} in {worst} ({share(first[worst], second[worst])}; "
        f"{count} arrays differ; allowed {allowed:g})"
    )
    return len(apart), text, apart[worst] <= allowed


def compare(a: Path, b: Path, names: list[str]) -> int:
    """Print the table; return 1 if a case is missing or differs too much."""
    fine = True
    print(f"{'case':24} {'arrays':>6}  result")
    for name in names:
        count, text, good = compare_case(a, b, name)
        fine = fine and good
        print(f"{name:24} {count:6}  {text}{'' if good else '  <--'}")
    return int(not fine)


def main() -> int:
    """Parse the command line, and record or compare."""
    parser = argparse.ArgumentParser(description="Record what the code makes; compare.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    comparing = commands.add_parser("compare")
    recording.add_argument("--repo", type=Path, required=True)
    recording.add_argument("--out", type=Path, required=True)
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    for each in (recording, comparing):
        each.add_argument("--only", default=",".join(CASES), help="cases, with commas")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(
            f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}"
        )
    if args.command == "record":
        return record(args.repo, args.out, names)
    return compare(args.a, args.b, names)


if __name__ == "__main__":
    sys.exit(main())
