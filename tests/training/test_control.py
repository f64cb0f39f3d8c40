"""A ControlNet trains next to a frozen image model: configs/control.py."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import control
from tests.sprite_cases import needs_pictures
from tests.training.test_inflation import WordTokens, config, image_run  # noqa: F401
from vdm_jax import runs
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.commands.export import export_model
from vdm_jax.errors import UserError
from vdm_jax.training import base_model, control_tuning, observers, train
from vdm_jax.training.step import make_loss
from vdm_jax.trees import named_leaves


def control_config(base, **changes):
    """Return the smoke variant for a base of the lowest resolution of sprites."""
    value = control.get_config("smoke").unlock()
    value.init_from = str(base)
    value.train.update(
        steps=2, checkpoint_every=2, log_every=1, sample_every=2, eval_every=2,
        learning_rate=0.01,
    )  # fmt: skip
    value.conditioning.text_dropout = 0.1  # that of the base
    value.update_from_flattened_dict(changes)
    base_model.complete(value)
    return value


@pytest.mark.slow
@needs_pictures
def test_it_starts_as_the_image_model_and_trains_alone(
    image_run,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    starts, start_params = [], train._start_params

    def start(trainer, task):
        params = jax.device_get(start_params(trainer, task))
        starts.append((trainer, params))
        return params

    monkeypatch.setattr(train, "_start_params", start)
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: WordTokens())
    state = train.train(control_config(image_run), tmp_path / "control")
    [(trainer, before)] = starts
    image = runs.load(image_run)

    captions = WordTokens()(np.array(["a rocket", "a frog on a red background"]))
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 255, (2, 1, 32, 32, 3), np.uint8), **captions}
    batch["silhouette"] = rng.integers(0, 255, (2, 1, 32, 32, 1), np.uint8)
    losses = [
        jax.jit(make_loss(model, "snr_plus_one"))(params, {}, batch, jax.random.key(0))
        for model, params in ((trainer.model, before), (image.model, image.params))
    ]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-6)
    trained = jax.device_get(state.params)
    validate = observers.make_validation(trainer.model)
    gains = [float(validate(p, batch)["val/control_gain"]) for p in (before, trained)]
    assert abs(gains[0]) < 1e-6 < 1e-4 < abs(gains[1])
    changed = {
        name
        for name, leaf in named_leaves(trained).items()
        if not np.array_equal(leaf, named_leaves(before)[name])
    }
    own = {name for name in named_leaves(trained) if "/control_0/" in name}
    assert changed <= own and {n for n in own if "/zero_" in n} <= changed
    copied, network = before["network"]["control_0"], image.params["network"]
    for part in control_tuning.COPIED:
        jax.tree.map(np.testing.assert_array_equal, copied[part], network[part])
    samples = sorted(path.suffix for path in (tmp_path / "control/samples").iterdir())
    assert ".png" in samples
    export_model(tmp_path / "control", tmp_path / "shipped")
    assert load_file(tmp_path / "shipped" / runs.PARAMS).keys() == own


def arrays(workdir, step):
    return Checkpoints(workdir / "checkpoints", read_only=True).arrays(step)


@pytest.mark.slow
@needs_pictures
def test_a_resumed_run_is_the_same(image_run, tmp_path, monkeypatch):  # noqa: F811
    """Bit for bit: the ControlNet, its average and its optimiser."""
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: WordTokens())
    constant = {"train.end_lr_fraction": 1.0, "train.sample_every": 4}
    constant |= {"train.eval_every": 4}
    for folder, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        value = control_config(image_run, **constant, **{"train.steps": steps})
        train.train(value, tmp_path / folder)
    whole, resumed = (arrays(tmp_path / name, 4) for name in ("whole", "parts"))
    assert whole.keys() == resumed.keys()
    assert any("ema" in name and "control_0" in name for name in whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], name)
    first, last = (arrays(tmp_path / "parts", step) for step in (2, 4))
    assert any(not np.array_equal(first[name], last[name]) for name in first)


@pytest.fixture
def base(tmp_path):
    """Return a folder with the config of an image model."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(config("smoke").to_json_best_effort())
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "this config tunes a model: --config.init_from=DIR"),
        ({"diffusion.prediction_type": "eps"}, "which the ControlNet controls, has"),
    ],
)
def test_what_does_not_fit_is_refused(base, changes, message):
    with pytest.raises(UserError, match=message):
        control_tuning.prepare(control_config(base, **changes))


def test_a_base_with_a_controlnet_is_refused(base):
    own = control_config(base)
    (base / "config.json").write_text(own.to_json_best_effort())
    with pytest.raises(UserError, match="has a ControlNet: a ControlNet is trained"):
        control_tuning.prepare(own)
    own.init_from = ""
    with pytest.raises(UserError, match="next to a trained model: set init_from"):
        control_tuning.prepare(own)
