"""Reading trained models: runs, shipped ones, and what is no run or damaged."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from tests.small_model import smoke_config
from vdm_jax import build, runs
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.pretrained import params as params_file
from vdm_jax.training.step import TrainState


@pytest.fixture(scope="module")
def model():
    return build.build_model(smoke_config())


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def test_a_shipped_model_is_loaded(model, params, tmp_path):
    (tmp_path / "config.json").write_text(smoke_config().to_json())
    params_file.write(tmp_path / "params.safetensors", params)
    trained = runs.load(tmp_path)
    assert trained.model == model
    for a, b in zip(*map(jax.tree.leaves, (params, trained.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
        assert b.dtype == np.float32


@pytest.mark.parametrize("has_ema", [False, True])
def test_the_average_is_loaded_where_a_run_keeps_one(params, tmp_path, has_ema):
    (tmp_path / "config.json").write_text(smoke_config().to_json())
    ema = jax.tree.map(lambda a: a + 1, params)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, ema if has_ema else None, (), zero)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, state, {})
    checkpoints.close()
    trained = runs.load(tmp_path)
    assert trained.step == 3
    expected = ema if has_ema else params
    for a, b in zip(*map(jax.tree.leaves, (trained.params, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_config_from_before_a_field_existed_is_read(model, tmp_path):
    fields = json.loads(smoke_config().to_json())
    for name in ("schedule", "noise_logsnr_shift"):
        del fields["diffusion"][name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert build.build_model(runs.read_config(tmp_path)) == model


def test_a_config_with_a_removed_field_is_read(model, tmp_path):
    """`network.attention` named one program twice."""
    fields = json.loads(smoke_config().to_json())
    fields["network"]["attention"] = "dot_product"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert build.build_model(runs.read_config(tmp_path)) == model


@pytest.mark.parametrize("stored, read", [(9.0, None), (50.0, 50.0)])
def test_a_default_weight_of_an_old_config_is_left_open(tmp_path, stored, read):
    """Every config had 9 before the kind of observation decided."""
    config = smoke_config()
    fields = json.loads(config.to_json_best_effort())
    del fields["sample"]["reconstruction_weight"]
    fields["sample"]["reconstruction"] = stored
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert runs.read_config(tmp_path).sample.reconstruction_weight == read


def test_a_weight_of_a_new_config_is_kept(tmp_path):
    config = smoke_config()
    config.sample.reconstruction_weight = 9.0
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    assert runs.read_config(tmp_path).sample.reconstruction_weight == 9.0


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no config.json"):
        runs.load(tmp_path)
    (tmp_path / "config.json").write_text(smoke_config().to_json())
    with pytest.raises(UserError, match="no checkpoint yet"):
        runs.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("conditioning", "label_dropout", "x"),
        ("conditioning", "guidance_range", "x"),
        ("data", "cache_dir", [1]),
        ("diffusion", "logsnr_max", None),
        ("diffusion", "logsnr_shift", "1"),
        ("diffusion", "logsnr_shift", 1e30),
        ("diffusion", "logsnr_shift", math.nan),
        ("diffusion", "logsnr_min", math.nan),
        ("sample", "num", "4"),
        ("sample", "label", None),
        ("video", "fps", "x"),
        ("video", "fps", 0),
        ("video", "frames", -1),
        ("video", "frames", 2.5),
        ("video", "frames", None),
    ],
)
def test_a_value_of_another_type_is_one_line(tmp_path, section, name, value):
    fields = json.loads(shapes.get_config("cpu").to_json())
    fields["data"] |= {"mean": 0.0, "variance": 1.0, "label_vocabulary": [["a", "b"]]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    runs.read_config(tmp_path)
    fields[section][name] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    message = f"config.json: .*{name}.*put back a copy"
    with pytest.raises(UserError, match=message) as caught:
        runs.read_config(tmp_path)
    assert "\n" not in str(caught.value)
