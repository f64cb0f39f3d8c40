"""What is looked at while a model trains: which parameters, told what, how often."""

import contextlib
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from vdm_jax import build, data, sharding
from vdm_jax.data import pipeline
from vdm_jax.training import run as runs
from vdm_jax.training import train
from vdm_jax.training.state import TrainState


class Told:
    """A conditioning encoder: how many of the labels are kept."""

    def apply(self, variables, logsnr, frames, cond):
        return cond["keep"]["label"].astype(logsnr.dtype)


class Constant:
    """A network: its one parameter where the label is kept."""

    def apply(self, variables, z, kept, train, rngs):
        assert not train
        return variables["params"] * kept.reshape(-1, 1, 1, 1, 1) + 0 * z


def params(value):
    return {"network": jnp.float32(value), "conditioning_encoder": {}}


def test_the_average_is_what_is_looked_at_if_there_is_one(monkeypatch):
    """Previews and validation, of held-out clips with all conditions kept.

    v less a network's n times its scale: the square of n has the scale's as factor. A
    dropped label would answer 0. The noise is always the same.
    """
    config = shapes.get_config("smoke").unlock()
    config.conditioning.label_dropout = 0.5
    source = data.open_source(config)
    data.resolve(config, source)
    model = dataclasses.replace(
        build.build_model(config), network=Constant(), conditioning_encoder=Told()
    )
    seen = []

    def sample(model, params, num, settings, *, labels, seed, **how):
        seen.append((params["network"], seed, labels.tolist()))
        return np.zeros((num, *model.shape))

    monkeypatch.setattr(train.sampling, "sample", sample)
    run = SimpleNamespace(logger=SimpleNamespace(active=False))
    (often, _, preview), (seldom, _, validate) = train.observers(
        config, model, sharding.make_mesh(), source, None, run
    )
    assert (often, seldom) == (config.train.sample_every, config.train.eval_every)
    figures = []
    for step, ema in enumerate((params(0.0), None, params(2.0))):
        state = TrainState(jnp.int32(step), params(1.0), ema, (), jnp.int32(0))
        preview(state)
        figures.append(validate(state))
        assert validate(state) == figures[-1]
    assert [value for value, *_ in seen] == [0, 1, 2]
    assert seen[0][1:] == seen[1][1:] == seen[2][1:] and seen[0][1] == config.seed
    kept = pipeline.held_out_batch(config, source, train.NUM_VALIDATION_CLIPS)
    batch = {name: kept[name] for name in ("video", "label")}
    assert figures[2] == train.make_validation(model)(params(2.0), batch)

    none, once, twice = (np.array(list(each.values())) for each in figures)
    variance = config.data.variance
    for factor, band in zip(
        (twice - 2 * once + none) / 2, train.LOGSNR_BANDS, strict=True
    ):
        signal = 1 / (1 + np.exp(-np.linspace(*band, 1000)))  # alpha^2
        expected = (variance / (signal * variance + 1 - signal)).mean()
        assert factor == pytest.approx(expected, rel=0.02)


def test_the_seed_makes_the_parameters_and_all_noise(tmp_path, monkeypatch):
    seen, seed = {}, 7

    def fit(step, state, frozen, batches, *, key, **how):
        seen.update(state=state, key=key, first=next(batches))

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "compile_step", lambda *args: None)
    monkeypatch.setattr(train, "describe", lambda *args: None)
    asked = shapes.get_config("smoke").unlock()
    asked.seed = seed
    level = dict(channels=8, blocks=1, layers=("temporal_conv",))
    asked.network.update(levels=(level,), mid_layers=())
    train.train(asked, tmp_path)
    key = jax.random.key(seed)
    assert seen["key"] == key
    params, average = build.build_model(asked).init(key), seen["state"].ema
    for tree in (seen["state"].params, average):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, tree)))
    source = data.open_source(asked)
    with contextlib.closing(pipeline.train_batches(asked, source)) as batches:
        np.testing.assert_array_equal(next(batches)["video"], seen["first"]["video"])


def test_a_run_that_is_finished_compiles_nothing(tmp_path, monkeypatch, capsys):
    """Processes of which one has the step compiled would wait for the other."""
    config = shapes.get_config("smoke")
    state = SimpleNamespace(step=config.train.steps)
    monkeypatch.setattr(runs.Run, "resume", lambda *how: state)
    monkeypatch.setattr(train, "compile_step", None)
    assert train.train(config, tmp_path) is state
    assert "nothing to train: step 4 of 4" in capsys.readouterr().out
