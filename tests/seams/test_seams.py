"""A condition, a video condition, a network and a task of one file each work."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import shapes as config_file
from tests.seams import autoencoder, first_frame, fps, transformer
from vdm_jax import conditions, networks, runs, sampling, scalars
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.data import shapes
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError
from vdm_jax.evaluators import models as evaluator
from vdm_jax.evaluators.clips import model_cascade
from vdm_jax.evaluators.reports import ReportOptions
from vdm_jax.training import tasks
from vdm_jax.training.train import train


@dataclasses.dataclass(frozen=True)
class ClipsOfTwoRates(shapes.Shapes):
    """Moving shapes at 8 frames a second, or the same with every frame twice: 16."""

    def load(self, index, rng, frames):
        clip, times = super().load(index, rng, frames), int(rng.integers(1, 3))
        clip["video"] = clip["video"].repeat(times, axis=0)[:frames]
        return {**clip, "fps": np.float32(8 * times)}


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """Add a row to each table, as a file of the library would."""
    monkeypatch.setitem(conditions.CONDITIONS, "fps", fps.Fps.from_config)
    first = first_frame.FirstFrame.from_config
    monkeypatch.setitem(conditions.CONDITIONS, "first_frame", first)
    monkeypatch.setitem(networks.NETWORKS, "transformer", transformer.from_config)
    monkeypatch.setitem(tasks.TASKS, "linear", autoencoder.Task)
    monkeypatch.setattr(shapes, "open_shapes", open_clips)


def open_clips(config):
    v = config.video
    return ClipsOfTwoRates(shapes.Geometry(v.frames, v.height, v.width))


def tiny(steps, **sections):
    """Return a config of the transformer, trained for some updates."""
    config = config_file.get_config("smoke").unlock()
    config.network = {"kind": "transformer", "width": 64}
    config.data.batch_size = 16
    config.sample.steps = 4
    config.train.update(
        steps=steps, warmup=min(10, steps), checkpoint_every=50, log_every=10,
        sample_every=0,
        eval_every=0, learning_rate=3e-3, optimizer="adam", ema_decay=0.9,
    )  # fmt: skip
    for name, fields in sections.items():
        config[name] = fields
    return config


def losses(workdir):
    """Return the first and the mean of the last logged losses."""
    _, loss = scalars.read_scalars(workdir)["train/loss"]
    return loss[0], loss[-3:].mean()


def prediction(model, params, name, value):
    """Return x of fixed noisy videos and labels, conditioned on a value."""
    n = 4
    raw = model.null_conditions((n,)) | {name: value}
    cond = raw | model.raw_conditions(raw)
    z = jax.random.normal(jax.random.key(0), (n, *model.shape))
    level = schedules.noise_level(model.schedule, jax.numpy.full(n, 0.7))
    return np.asarray(model.denoiser(params)(z, level, cond).x)


@pytest.mark.slow
def test_a_scalar_condition_and_a_network(tmp_path):
    """Trained, resumed, guided, sampled and evaluated."""
    config = tiny(50, fps={"dropout": 0.2})
    train(config, tmp_path / "run")
    config.train.steps = 150
    train(config, tmp_path / "run")  # resumes at 50
    steps, _ = scalars.read_scalars(tmp_path / "run")["train/loss"]
    assert steps.tolist() == [*range(10, 151, 10)]
    first, last = losses(tmp_path / "run")
    assert last < 0.8 * first
    run = runs.load(tmp_path / "run")
    assert isinstance(run.model.network, transformer.Transformer)
    slow, fast = (np.full(4, rate, np.float32) for rate in (16.0, 8.0))
    swapped = [prediction(run.model, run.params, "fps", rate) for rate in (slow, fast)]
    assert abs(swapped[0] - swapped[1]).mean() > 1e-3
    made = [
        sampling.sample(
            run.model, run.params, 4,
            sampling.Settings(4, "ddim", guidance_scale=scale),
            sampling.SamplingInputs({"fps": rate}),
        )
        for scale, rate in ((1.0, slow), (3.0, slow), (3.0, fast))
    ]  # fmt: skip
    assert min(abs(made[0] - made[1]).mean(), abs(made[1] - made[2]).mean()) > 1e-3
    cascade = model_cascade(run.model, run.config, tmp_path / "run")
    results = evaluator.evaluate(
        cascade, ReportOptions(tmp_path / "report"), num=4, seed=0, networks=None
    )
    assert np.isfinite(results["pixels"][0]["frame_fd"])


@pytest.mark.slow
def test_a_video_condition(tmp_path):
    config = tiny(60, first_frame={})
    train(config, tmp_path / "run")
    first, last = losses(tmp_path / "run")
    assert last < 0.9 * first
    run = runs.load(tmp_path / "run")
    frames = np.random.default_rng(0).uniform(-1, 1, (2, 4, 1, 16, 16, 3))
    frames = frames.astype(np.float32)
    swapped = [prediction(run.model, run.params, "first_frame", x) for x in frames]
    assert abs(swapped[0] - swapped[1]).mean() > 1e-3
    settings = sampling.Settings(sampler="ddim", steps=4, guidance_scale=2.0)
    inputs = [sampling.SamplingInputs({"first_frame": x}) for x in frames]
    made = [sampling.sample(run.model, run.params, 4, settings, i) for i in inputs]
    assert abs(made[0] - made[1]).mean() > 1e-3
    with pytest.raises(UserError, match="conditioned on first_frame, videos of"):
        sampling.sample(run.model, run.params, 1, settings)


def test_a_task(tmp_path):
    """An autoencoder, which resumes and reconstructs."""
    config = tiny(50, task="linear")
    config.train.learning_rate = 0.01
    train(config, tmp_path / "run")
    config.train.steps = 300
    train(config, tmp_path / "run")
    first, last = losses(tmp_path / "run")
    assert last < 0.1 * first
    arrays = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).arrays(300)
    params = {}
    for path, array in arrays.items():
        if path.startswith("ema/"):
            _, layer, leaf = path.split("/")
            params.setdefault(layer, {})[leaf] = array
    clip = open_clips(config).load(0, np.random.default_rng(0), 8)["video"] / 127.5 - 1
    again = autoencoder.Autoencoder().apply({"params": params}, clip[None])[0]
    assert ((again - clip) ** 2).mean() < 0.1 * clip.var()
    with pytest.raises(UserError, match="trains the task 'linear'"):
        runs.load(tmp_path / "run")


def test_an_unknown_row_is_one_line(tmp_path):
    with pytest.raises(UserError, match="config.task='x': one of diffusion, .*autoenc"):
        train(tiny(1, task="x"), tmp_path)
    with pytest.raises(UserError, match="network.kind='x': one of unet, .*transformer"):
        train(tiny(1, network={"kind": "x"}), tmp_path)
