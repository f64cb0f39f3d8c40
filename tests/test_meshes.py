"""The same training and the same videos on one device and on eight.

Each case is train.py or sample.py in a process of its own, on simulated CPU devices.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import run_command
from tests.parity.recorded import write_autoencoder
from vdm_jax import video_io
from vdm_jax.data import embeddings, shapes

ROOT = Path(__file__).parents[1]
STEPS = 20
SIZES = ("--config.data.batch_size=8", f"--config.train.steps={STEPS}")
QUIET = tuple(
    f"--config.train.{name}_every={STEPS}" for name in ("checkpoint", "sample", "eval")
)


def call(devices: int, x64: bool, script: str, *flags: str, processes: int = 1) -> None:
    """Run a command on so many devices in all."""
    cache = os.environ.get("VDM_CACHE", str(ROOT / ".cache"))
    program = [script]
    if x64 and script.endswith(".py"):
        program = ["-c", run_command.FLOAT64, script.removesuffix(".py")]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": f"{cache}/xla",
        "JAX_NUM_CPU_DEVICES": str(devices // processes),
        "JAX_ENABLE_X64": str(int(x64)),
    }
    several: list[list[str]] = [[]]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            where = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
        count = f"--num_processes={processes}"
        several = [[where, count, f"--process_id={i}"] for i in range(processes)]
    running = [
        subprocess.Popen(
            [sys.executable, *program, *flags, *own], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for own in several
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=1500)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output


def trained(
    folder: Path,
    devices: int,
    x64: bool,
    *mesh: str,
    config: str = "shapes",
    processes: int = 1,
) -> dict[str, np.ndarray]:
    """Train STEPS steps and return the parameters by name."""
    flags = f"--config=configs/{config}.py:smoke", f"--workdir={folder}", *SIZES
    call(devices, x64, "train.py", *flags, *QUIET, *mesh, processes=processes)
    arrays = run_command.arrays(folder / "checkpoints", STEPS, x64)
    return {name: a for name, a in arrays.items() if name.startswith("params/")}


MESHES = {
    "data=8": ("--config.mesh.data=8",),
    "fsdp=8": ("--config.mesh.data=1", "--config.mesh.fsdp=8"),
    "4x2": ("--config.mesh.data=4", "--config.mesh.fsdp=2"),
}
# What each axis splits, one axis at a time and mixed. 6 frames on four devices, and 8
# devices of 12 channels: a part of the axis splits them.
OTHER_MESHES = {
    "tensor=8": ("--config.mesh.tensor=8",),
    "context=4": ("--config.mesh.context=4",),
    "slice=2 x fsdp=4": ("--config.mesh.slice=2", "--config.mesh.fsdp=4"),
    "2x2x2": tuple(f"--config.mesh.{a}=2" for a in ("fsdp", "tensor", "context")),
    "rows": (
        "--config.mesh.context=8",
        "--config.mesh.activation_rules="
        '(("batch",("data",)),("frames",None),("height",("context",)))',
    ),
}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("one") / "run", 1, True)


def largest(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(abs(a[name] - b[name]).max() for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_train_as_one(single, mesh, tmp_path):
    assert next(iter(single.values())).dtype == np.float64
    eight = trained(tmp_path / "run", 8, True, *MESHES[mesh])
    assert largest(single, eight) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("mesh", OTHER_MESHES)
def test_every_axis_trains_as_one_device(single, mesh, tmp_path):
    eight = trained(tmp_path / "run", 8, True, *OTHER_MESHES[mesh])
    assert largest(single, eight) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "4x2", "context=4"])
def test_a_batch_smaller_than_the_devices_trains_as_on_one(mesh, tmp_path):
    """Two examples, with dropout: the mask is the same on every mesh."""
    small = "--config.data.batch_size=2", "--config.network.dropout=0.3"
    one = trained(tmp_path / "one", 1, True, *small)
    flags = (MESHES | OTHER_MESHES)[mesh]
    eight = trained(tmp_path / "eight", 8, True, *flags, *small)
    assert largest(one, eight) < 1e-10


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mesh", ["slice=2 x fsdp=4", "context=4", "2x2x2"])
def test_two_processes_of_four_devices_train_as_one(mesh, tmp_path):
    """Two examples: each process has a part of their frames, or one of them."""
    small = "--config.data.batch_size=2", "--config.network.dropout=0.3"
    one = trained(tmp_path / "one", 1, True, *small)
    flags = *OTHER_MESHES[mesh], *small
    eight = trained(tmp_path / "eight", 8, True, *flags, processes=2)
    assert largest(one, eight) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp=8", "4x2"])
def test_eight_devices_train_an_autoencoder_as_one(mesh, tmp_path):
    """With LPIPS, and a critic that starts to train after a quarter of the steps."""
    start = f"--config.autoencoder.critic_start={STEPS // 4}"
    one = trained(tmp_path / "one", 1, True, start, config="autoencoder")
    flags = *MESHES[mesh], start
    eight = trained(tmp_path / "eight", 8, True, *flags, config="autoencoder")
    assert one["params/critic/conv_out/kernel"].dtype == np.float64
    assert largest(one, eight) < 1e-10


@pytest.mark.slow
def test_eight_devices_start_from_the_parameters_of_one(tmp_path):
    trained(tmp_path / "one", 1, False)
    init_from = f"--config.init_from={tmp_path / 'one'}"
    trained(tmp_path / "eight", 8, False, *MESHES["4x2"], init_from)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mesh", ["fsdp=8", "4x2", "2x2x2"])
def test_eight_devices_distil_as_one(mesh, tmp_path):
    """A round that distils guidance and one of steps, with a sharded teacher."""
    meshes = MESHES | OTHER_MESHES
    teacher = tmp_path / "teacher"
    trained(teacher, 1, True)
    students = []
    for devices, flags in ((1, ()), (8, meshes[mesh])):
        workdir = tmp_path / str(devices)
        call(
            devices, True, "distill.py", "--config=configs/distill_shapes.py:smoke",
            f"--teacher={teacher}", f"--workdir={workdir}",
            "--config.data.batch_size=8", "--config.distill.end_steps=2", *flags,
            f"--config.distill.guidance_updates={STEPS}",
            f"--config.distill.updates_last_rounds={STEPS}",
            f"--config.train.checkpoint_every={STEPS}",
        )  # fmt: skip
        arrays = run_command.arrays(workdir / "rounds/0002/checkpoints", STEPS, True)
        params = {n: a for n, a in arrays.items() if n.startswith("params/")}
        students.append(params)
    before = run_command.arrays(teacher / "checkpoints", STEPS, True)
    assert max(abs(a - before[n]).max() for n, a in students[0].items()
               if n in before) > 1e-3  # fmt: skip
    assert largest(*students) < 1e-10


@pytest.mark.slow
def test_the_loss_in_float32_is_the_same(tmp_path):
    losses = []
    for devices in (1, 8):
        trained(tmp_path / str(devices), devices, False)
        lines = (tmp_path / str(devices) / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        losses.append([r["train/loss"] for r in rows if "train/loss" in r])
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-3), (True, 1e-9)])
def test_eight_devices_sample_as_one(x64, tolerance, tmp_path):
    """64 DDIM steps, with known frames or none; other batch sizes and meshes."""
    run = tmp_path / "run"
    trained(run, 1, x64)
    videos = []
    for devices, batch, mesh in (
        (1, 8, ""), (8, 8, ""), (1, 3, ""), (8, 2, "context=4"),
        (8, 8, "fsdp=2,tensor=2,context=2"),
    ):  # fmt: skip
        out = tmp_path / f"{len(videos)}"
        call(
            devices, x64, "-c",
            "import sys, numpy as np; from vdm_jax import runs, sampling;"
            f"m = runs.load({str(run)!r});"
            "cond = {'label': sampling.label_array(m.model, 8)};"
            "Inputs = sampling.SamplingInputs;"
            f"s = sampling.Settings(64, 'ddim', batch_size={batch}, guidance_scale=2.,"
            f"mesh={mesh!r});"
            "v = sampling.sample(m.model, m.params, 8, s, Inputs(cond));"
            "mask = np.arange(8).reshape(1, 8, 1, 1, 1) < 4;"
            "known = sampling.Observation(v[:1], mask);"
            "known = Inputs(cond, observation=known);"
            "w = sampling.extend_in_blocks(m.model, m.params, 8, s, known);"
            f"np.save({str(out)!r}, np.stack([v, w]))",
        )  # fmt: skip
        videos.append(np.load(f"{out}.npy"))
    for others in videos[1:]:
        assert abs(videos[0] - others).max() < tolerance


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """Return embeddings of every sentence of moving shapes, of dimension 6."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)

    def encode(captions):
        return [rng.normal(size=(len(c.split()), 6)).astype("f2") for c in captions]

    captions = shapes.Shapes(shapes.Geometry(8, 16, 16)).captions
    embeddings.write(folder, captions, encode, {"encoder": "/nowhere", "width": 6})
    return str(folder)


def stage(
    folder: Path, devices: int, text: str, *flags: str, config: str = "cascade_small"
) -> dict[str, np.ndarray]:
    """Train a stage of a cascade with text in float64; return its parameters."""
    call(
        devices, True, "train.py", f"--config=configs/{config}.py:smoke",
        f"--workdir={folder}", *SIZES, *QUIET,
        f"--config.data.text_embeddings_dir={text}",
        "--config.conditioning.text_dim=6", "--config.conditioning.text_dropout=.1",
        "--config.data.joint_image_frames=2", *flags,
    )  # fmt: skip
    arrays = run_command.arrays(folder / "checkpoints", STEPS, True)
    return {name: a for name, a in arrays.items() if name.startswith("params/")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_stage_and_a_cascade_are_the_same_on_eight_devices(text_folder, tmp_path):
    one = stage(tmp_path / "ssr", 1, text_folder)
    for name, flags in (MESHES | OTHER_MESHES).items():
        if name in ("4x2", "context=4", "2x2x2", "rows"):
            eight = stage(tmp_path / name, 8, text_folder, *flags)
            assert largest(one, eight) < 1e-10, name
    size = ("--config.video.height=8", "--config.video.width=8")
    stage(tmp_path / "base", 1, text_folder, *size, config="shapes")
    (tmp_path / "cascade.toml").write_text(
        "".join(
            f'[[stage]]\nname = "{name}"\nworkdir = "{name}"\n'
            "steps = 8\nguidance_scale = 2\n"
            for name in ("base", "ssr")
        )
    )
    videos = []
    for devices in (1, 8):
        out = tmp_path / f"{devices}.npy"
        call(
            devices, True, "-c",
            "import numpy as np; from vdm_jax import cascade, sampling;"
            "tokens = np.random.default_rng(0).normal(size=(8, 5, 6));"
            "text = {'text': tokens, 'text_mask': np.ones((8, 5), bool)};"
            f"made = cascade.sample(cascade.read({str(tmp_path)!r}), 8, text);"
            f"np.save({str(out)!r}, made['ssr'])",
        )  # fmt: skip
        videos.append(np.load(out))
    assert videos[0].std() > 0.1
    assert abs(videos[0] - videos[1]).max() < 1e-9


LATENT_IMAGES = """
from configs import shapes

def get_config():
    config = shapes.get_config("smoke").unlock()
    config.video.update(frames=1, height=16, width=16)
    config.data.update(source="folder", label_vocabulary=())
    config.codec.kind = "autoencoder"
    config.network = {{
        "kind": "sd", "num_heads": (2, 2), "norm_groups": 4, "mid_layers": (),
        "levels": (
            {{"channels": 8, "blocks": 1, "layers": ("spatial_transformer",)}},
            {{"channels": 16, "blocks": 1}},
        ),
    }}
    config.conditioning.update(
        text_dim=6, text_dropout=0.1, text_pooling=False, label_dropout=0.0,
        attribute_dropout=0.0, frame_index_embedding=False,
    )
    config.diffusion.update(
        schedule="discrete", logsnr_shift=0.0, train_logsnr_shifts=(),
    )
    # Few programs, and small ones.
    config.train.update(
        sample_every=0, eval_every=0, optimizer="adam", learning_rate=1e-3
    )
    config.codec.path = {vae!r}
    config.data.update(path={pictures!r}, text_embeddings_dir={text!r})
    config.data.cache_dir = {cache!r}
    return config.lock()
"""


def latent_images(folder: Path) -> tuple[Path, Path]:
    """Write a config of pictures, and what it reads; return it and the text."""
    rng, captions = np.random.default_rng(0), ["a cat", "a dog"]
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(24):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
        captions.append(f"picture number {i}")
        (pictures / f"{i}.txt").write_text(captions[-1])

    def encode(texts):
        return [rng.normal(size=(len(c.split()) + 1, 6)).astype("f2") for c in texts]

    text = folder / "text"
    embeddings.write(text, captions, encode, {"encoder": "/nowhere", "width": 6})
    vae = write_autoencoder(folder / "vae", part="tiles_", scaling_factor=0.5)
    places = {"pictures": pictures, "text": text, "vae": vae, "cache": folder / "c"}
    config = folder / "config.py"
    config.write_text(LATENT_IMAGES.format(**{n: str(p) for n, p in places.items()}))
    return config, text


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "4x2"])
def test_an_image_model_of_latents_is_the_same_on_eight_devices(mesh, tmp_path):
    """Pictures, an autoencoder, Stable Diffusion's U-Net and text."""
    config, _ = latent_images(tmp_path)
    states = []
    for devices, flags in ((1, ()), (8, MESHES[mesh])):
        workdir = tmp_path / str(devices)
        call(
            devices, True, "train.py", f"--config={config}", f"--workdir={workdir}",
            *SIZES, f"--config.train.checkpoint_every={STEPS}", *flags,
        )  # fmt: skip
        arrays = run_command.arrays(workdir / "checkpoints", STEPS, True)
        states.append({n: a for n, a in arrays.items() if n.startswith("params/")})
    assert next(iter(states[0].values())).dtype == np.float64
    assert largest(*states) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "4x2"])
def test_a_model_tuned_on_a_clip_is_the_same_on_eight_devices(mesh, tmp_path):
    """And so is its preview: the clip and its edit."""
    config, text = latent_images(tmp_path)
    base, clip = tmp_path / "base", tmp_path / "clip.mp4"
    call(1, True, "train.py", f"--config={config}", f"--workdir={base}", *SIZES)
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    video_io.write_video(clip, frames, 8)
    flags = (
        "--config=configs/tune_a_video.py:smoke", f"--config.init_from={base}",
        f"--config.data.path={clip}", "--config.data.caption=a cat", *SIZES, *QUIET,
        "--config.data.edited_caption=a dog", "--config.video.frames=3",
        f"--config.data.text_embeddings_dir={text}",
    )  # fmt: skip
    params, edits = [], []
    for devices, own in ((1, ()), (8, MESHES[mesh])):
        workdir = tmp_path / str(devices)
        call(devices, True, "train.py", *flags, f"--workdir={workdir}", *own)
        arrays = run_command.arrays(workdir / "checkpoints", STEPS, True)
        params.append({n: a for n, a in arrays.items() if n.startswith("params/")})
        [edited] = (workdir / "samples").glob("*.npz")
        edits.append(np.load(edited)["videos"])
    assert next(iter(params[0].values())).dtype == np.float64
    assert largest(*params) < 1e-10
    np.testing.assert_array_equal(*edits)
    assert len(edits[0]) == 2


PACKED = """
from configs import shapes

def get_config():
    config = shapes.get_config("smoke").unlock()
    config.video.update(frames=4, height=16, width=16)
    config.network = {
        "kind": "dit", "width": 24, "depth": 2, "num_heads": 2, "patch_size": 4,
        "positions": "rope",
    }
    config.conditioning.update(
        frame_index_embedding=False, clean_frames=(("first", 0.3), ("head", 0.2))
    )
    config.mixed_sizes = {
        "rows": ((4, 16, 16, 8), (4, 16, 24, 4), (3, 24, 16, 4)), "buffer_tokens": 170
    }
    config.train.update(
        sample_every=0, eval_every=0, optimizer="adam", learning_rate=1e-3
    )
    return config.lock()
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_packed_buffers_train_as_on_one_device(tmp_path):
    """Three sizes in eight buffers, with labels and given frames."""
    config = tmp_path / "config.py"
    config.write_text(PACKED)
    states, meshes = {}, {"one": ()} | MESHES | OTHER_MESHES
    for name in ("one", "4x2", "context=4", "2x2x2"):
        workdir = tmp_path / name
        call(
            1 if name == "one" else 8, True, "train.py", f"--config={config}",
            f"--workdir={workdir}", *SIZES, f"--config.train.checkpoint_every={STEPS}",
            *meshes[name],
        )  # fmt: skip
        arrays = run_command.arrays(workdir / "checkpoints", STEPS, True)
        states[name] = {n: a for n, a in arrays.items() if n.startswith("params/")}
    one = states.pop("one")
    assert next(iter(one.values())).dtype == np.float64
    for name, other in states.items():
        assert largest(one, other) < 1e-10, name
