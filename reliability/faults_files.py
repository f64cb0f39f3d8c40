"""Faults of files and disks, and of paths."""

import contextlib
import functools
import resource
from pathlib import Path

import av
import numpy as np

from reliability.harness import (
    ROOT,
    SHIPPED,
    Done,
    Wrong,
    expect,
    fault,
    run,
    small_disk,
    smoke,
)
from vdm_jax import video_io


@fault
def full_samples(folder: Path) -> str:
    """sample.py --out on a full disk: the arrays are written first."""
    with small_disk(folder, "700k") as disk:
        command = ["--workdir=models/clips", "--steps=1", "--num=16"]
        done = run("sample.py", *command, f"--out={disk / 'out'}")
        answer = expect(done, 2, "no space left on device", "samples.npz holds all")
        left = {path.name for path in (disk / "out").iterdir()}
        if "samples.npz" not in left or "samples.json" in left:
            raise Wrong(f"left: {sorted(left)}")
        return answer


def footage(folder: Path, number: int) -> Path:
    """Write short videos of noise; return their folder."""
    rng = np.random.default_rng(0)
    for i in range(number):
        video = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)
        video_io.write_video(folder / "videos" / f"v{i}.mp4", video, 8, scale=4)
    return folder / "videos"


def check(folder: Path, number: int, **options) -> Done:
    """Run `data check` on such videos with an empty folder as working directory."""
    arguments = [footage(folder, number), f"--cache_dir={folder / 'cache'}"]
    command = ["-m", "vdm_jax.data", "check", *arguments, "--num_frames=8"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": ""}
    return run(*command, cwd=folder, env=environment, **options)


@fault
def damaged_clip(folder: Path) -> str:
    """evaluate.py --videos where a frame of one file is overwritten."""
    videos = footage(folder, 8)
    with av.open(videos / "v3.mp4") as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][4]
    with open(videos / "v3.mp4", "r+b") as file:
        file.seek((packet.pos or 0) + 4)
        file.write(bytes((i * 37 + 11) % 256 for i in range(packet.size - 4)))
    out = f"--out={folder / 'out'}"
    pair = [f"--videos={videos}", f"--reference={videos}", "--num_frames=8", "--num=8"]
    done = run("evaluate.py", *pair, out, env={"XDG_CACHE_HOME": str(folder)})
    expect(done, 0)
    if "v3.mp4: at frame" not in done.out:
        raise Wrong("the damaged file is not named")
    return f"status 0: {done.out.splitlines()[0].strip()}"


@fault
def little_memory(folder: Path) -> str:
    """`ulimit -v` of 3 GB, half of the decoder's own limit."""
    limit = 3 * 10**9, 3 * 10**9
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_AS, limit)
    done = check(folder, 2, preexec_fn=limited)
    expect(done, 0, "usable       2")
    return "status 0: usable 2"


@fault
def modules_among_data(folder: Path) -> str:
    """Files such as json.py in the working directory, which exit when imported."""
    for name in ("json", "numpy", "av", "random", "tqdm", "jax"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported')")
    done = check(folder, 2)
    expect(done, 0, "usable       2")
    return "status 0: usable 2"


def steps(workdir: Path) -> list[int]:
    """Return the steps of the checkpoints in a workdir; Wrong for other entries."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    if odd := [name for name in names if not name.isdecimal()]:
        raise Wrong(f"among the checkpoints: {odd}")
    return sorted(map(int, names))


@fault
def full_logs(folder: Path) -> str:
    """The disk of logs/ fills during training: the state is saved, then one line."""
    workdir = folder / "run"
    command = smoke(workdir, "--config.train.steps=60", "--config.train.log_every=1")
    workdir.mkdir()
    with small_disk(folder, "4k") as disk:
        (workdir / "logs").symlink_to(disk)
        answer = expect(run(*command), 2, "logs/events", "no space left on device")
        if len(saved := steps(workdir)) < 1 or saved[-1] == 60:
            raise Wrong(f"saved: {saved}")
    (workdir / "logs").unlink()
    expect(run(*command), 0, f"resuming from step {saved[-1]}")
    return answer


@fault
def full_workdir(folder: Path) -> str:
    """A run resumes on a full disk: one line, and the checkpoints stay."""
    with small_disk(folder, "60m") as disk:
        workdir = disk / "run"
        expect(run(*smoke(workdir)), 0)
        before = steps(workdir)
        with contextlib.suppress(OSError), open(disk / "fill", "wb", 0) as fill:
            while True:
                fill.write(bytes(4096))
        more = smoke(workdir, "--config.train.steps=8")
        answer = expect(run(*more), 2, "no space left on device")
        if steps(workdir) != before:
            raise Wrong(f"{steps(workdir)} instead of {before}")
        (disk / "fill").unlink()
        expect(run(*more), 0, f"resuming from step {before[-1]}")
        return answer


@fault
def no_inodes(folder: Path) -> str:
    """A disk without free inodes, but with free bytes."""
    with small_disk(folder, "60m", ",nr_inodes=9") as disk:
        return expect(run(*smoke(disk / "run")), 2, "no space left", "no inode free")


@fault
def full_report(folder: Path) -> str:
    """evaluate.py --out on a full disk."""
    with small_disk(folder, "8k") as disk:
        command = ["--workdir=models/shapes", "--steps=1", "--num=2"]
        done = run("evaluate.py", *command, f"--out={disk / 'out'}")
        return expect(done, 2, "no space left on device")


@fault
def damaged_files(folder: Path) -> str:
    """Damaged metrics.jsonl, manifest of the newest checkpoint, and config.json."""
    command = smoke(folder)
    expect(run(*command, "--config.train.checkpoint_every=1"), 0)
    (folder / "metrics.jsonl").write_bytes(b"\xff\n{}\n" + bytes(100))
    newest = folder / "checkpoints" / str(steps(folder)[-1])
    (newest / "manifest.json").write_text("[" * 100_000)
    done = run(*command, "--config.train.checkpoint_every=1")
    expect(done, 0, "set aside as bad-metrics.jsonl", f"set aside as bad-{newest.name}")
    (folder / "config.json").write_bytes(b"")
    return expect(run(*command), 2, "config.json is not JSON")


@fault
def average_begins(folder: Path) -> str:
    """train.ema_decay switched on when a run resumes: nothing is written."""
    expect(run(*smoke(folder, "--config.train.ema_decay=0.0")), 0)
    before = (folder / "config.json").read_text()
    answer = expect(
        run(*smoke(folder, "--config.train.ema_decay=0.9")), 2, "config.train.ema_decay"
    )
    if (folder / "config.json").read_text() != before:
        raise Wrong("config.json was rewritten")
    return answer


@fault
def object_store(folder: Path) -> str:
    """A path is the address of an object store."""
    expect(run(*SHIPPED, "--out=s3://b"), 2, "--out=s3://b")
    field = "--config.data.cache_dir=hdfs://h/c"
    return expect(run(*smoke(folder / "run", field)), 2, "config.data.cache_dir=hdfs:")


@fault
def no_home(folder: Path) -> str:
    """HOME is a folder that does not exist and cannot be created."""
    (folder / "file").write_text("")
    env = {"HOME": f"{folder}/file/home", "TMPDIR": str(folder), "XDG_CACHE_HOME": ""}
    env["JAX_COMPILATION_CACHE_DIR"] = ""
    done = run("-m", "vdm_jax.doctor", env=env)
    if f" {folder}/vdm_jax-" not in done.out:
        raise Wrong(done.out)
    return expect(done, 0)
