"""Training: which parameters previews and validation use, and what the seed decides."""

import contextlib
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from tests.seams import fps
from vdm_jax import build, conditions, data, sharding
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.training import observers, train, trainer
from vdm_jax.training import run as runs
from vdm_jax.training.checks import check_config
from vdm_jax.training.step import TrainState
from vdm_jax.training.trainer import Trainer


class CountLabels:
    """A conditioning encoder that returns which labels are kept."""

    def apply(self, variables, logsnr, frames, cond):
        return cond["keep"]["label"].astype(logsnr.dtype)


class Constant:
    """A network that returns its one parameter where the label is kept."""

    def apply(self, variables, z, kept, train, rngs):
        assert not train
        return variables["params"] * kept.reshape(-1, 1, 1, 1, 1) + 0 * z


def params(value):
    return {"network": jnp.float32(value), "conditioning_encoder": {}}


def test_previews_and_validation_use_the_average_if_there_is_one(monkeypatch):
    """They use held-out clips with all conditions kept, and always the same noise.

    The loss is the square of v - scale n for the network's n, so the scale's square is
    the factor of n^2. A dropped label would make n 0.
    """
    config = shapes.get_config("smoke").unlock()
    config.conditioning.label_dropout = 0.5
    source = data.open_source(config)
    data.resolve(config, source)
    model = dataclasses.replace(
        build.build_model(config),
        network=Constant(),
        conditioning_encoder=CountLabels(),
    )
    seen = []

    def sample(model, params, num, settings, inputs, run):
        seen.append((params["network"], run.seed, inputs.cond["label"].tolist()))
        return np.zeros((num, *model.shape))

    monkeypatch.setattr(observers.sampling, "sample", sample)
    run = SimpleNamespace(logger=SimpleNamespace(active=False), config=config)
    trainer = SimpleNamespace(
        model=model, source=source, captions=None, mesh=sharding.make_mesh(),
        with_codec=lambda params: params, batch_codec={},
        batch_shapes=[{"video": None, "label": None}],
    )  # fmt: skip
    (sample_every, _, preview), (eval_every, _, validate) = observers.make_observers(
        trainer, run
    )
    assert (sample_every, eval_every) == (
        config.train.sample_every,
        config.train.eval_every,
    )
    losses = []
    for step, ema in enumerate((params(0.0), None, params(2.0))):
        state = TrainState(jnp.int32(step), params(1.0), ema, (), jnp.int32(0))
        preview(state)
        losses.append(validate(state))
        assert validate(state) == losses[-1]
    assert [value for value, *_ in seen] == [0, 1, 2]
    assert seen[0][1:] == seen[1][1:] == seen[2][1:] and seen[0][1] == config.seed
    kept = pipeline.held_out_batch(config, source, observers.NUM_VALIDATION_CLIPS)
    batch = {name: kept[name] for name in ("video", "label")}
    assert losses[2] == observers.make_validation(model)(params(2.0), batch)

    none, once, twice = (np.array(list(each.values())) for each in losses)
    variance = config.data.variance
    for factor, band in zip(
        (twice - 2 * once + none) / 2, observers.LOGSNR_BANDS, strict=True
    ):
        signal = 1 / (1 + np.exp(-np.linspace(*band, 1000)))  # alpha^2
        expected = (variance / (signal * variance + 1 - signal)).mean()
        assert factor == pytest.approx(expected, rel=0.02)


def test_the_seed_makes_the_parameters_and_all_noise(tmp_path, monkeypatch):
    seen, seed = {}, 7

    def train_loop(update, state, aux_params, batches, *, key, run, **kwargs):
        seen.update(state=state, key=key, first=next(batches))
        return state

    monkeypatch.setattr(trainer, "train_loop", train_loop)
    monkeypatch.setattr(Trainer, "compile_update", lambda *args: None)
    config = shapes.get_config("smoke").unlock()
    config.seed = seed
    level = dict(channels=8, blocks=1, layers=("temporal_conv",))
    config.network.update(levels=(level,), mid_layers=())
    train.train(config, tmp_path)
    key = jax.random.key(seed)
    assert seen["key"] == key
    params, average = build.build_model(config).init(key), seen["state"].ema
    for tree in (seen["state"].params, average):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, tree)))
    source = data.open_source(config)
    with contextlib.closing(pipeline.train_batches(config, source)) as batches:
        np.testing.assert_array_equal(next(batches)["video"], seen["first"]["video"])


def test_a_run_that_is_finished_compiles_nothing(tmp_path, monkeypatch, capsys):
    """Otherwise a process with a compiled step would wait for one without."""
    config = shapes.get_config("smoke")
    state = SimpleNamespace(step=config.train.steps)
    monkeypatch.setattr(runs.OpenRun, "resume", lambda *args: state)
    monkeypatch.setattr(Trainer, "compile_update", None)
    assert train.train(config, tmp_path) is state
    assert "nothing to train: step 4 of 4" in capsys.readouterr().out


def test_a_source_without_an_array_of_the_model_is_refused(monkeypatch):
    monkeypatch.setitem(conditions.CONDITIONS, "fps", fps.Fps.from_config)
    config = shapes.get_config("smoke").unlock()
    config.fps = {"dropout": 0.1}
    with pytest.raises(UserError, match="conditioned on fps, which clips of .* do not"):
        train.build_from_config(config)


def test_clips_are_trained_at_the_rate_of_the_files_written():
    config = shapes.get_config("smoke").unlock()
    config.data.target_fps = 8.0
    check_config(config)
    config.data.target_fps = 16.0
    with pytest.raises(UserError, match=r"target_fps=16.0: .*video.fps=8.*: set both"):
        check_config(config)


@pytest.mark.parametrize(("frames", "shown"), [(1, "png"), (2, "gif")])
def test_a_preview_of_pictures_has_no_gif(frames, shown, tmp_path):
    logged = []
    logger = SimpleNamespace(
        active=True,
        recording_failure=contextlib.nullcontext,
        image=lambda *args: logged.append(args),
    )
    video = SimpleNamespace(video=SimpleNamespace(fps=8))
    run = SimpleNamespace(workdir=tmp_path, logger=logger, config=video)
    videos = np.random.default_rng(0).integers(0, 255, (3, frames, 8, 8, 3), np.uint8)
    observers.write_preview(run, 7, videos, ["a", "b", "c"])
    written = sorted(path.suffix for path in (tmp_path / "samples").iterdir())
    assert written == ([".gif"] if frames > 1 else []) + [".npz", ".png"]
    path = tmp_path / "samples" / f"step-0000007.{shown}"
    assert logged == [(7, "samples", path)]
