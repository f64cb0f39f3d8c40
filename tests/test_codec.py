"""Codecs: laws of the transforms, and a model that diffuses another z than pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cascade_small, shapes
from tests.run_command import SMOKE, call
from tests.small_model import area_mean_errors
from vdm_jax import build, codec, data, runs, sampling
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.model import check_shapes_chain
from vdm_jax.sampling import Observation, SamplingInputs
from vdm_jax.training.checks import check_config

PATCH = codec.Patch()


def videos(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("made", [codec.Codec(), PATCH], ids=["identity", "patch"])
def test_decoding_is_the_inverse_and_keeps_the_shape_it_says(made):
    x = videos(2, 3, 4, 6, 3)
    z = made.encode(x)
    assert z.shape[1:] == made.z_shape(x.shape[1:])
    np.testing.assert_allclose(made.decode(z), x, atol=1e-6)
    assert abs(z).max() <= made.limit


def test_a_patch_keeps_the_norm_and_its_first_coefficient_is_the_mean():
    x = videos(2, 3, 4, 6, 3)
    z = np.asarray(PATCH.encode(x))
    np.testing.assert_allclose((z**2).sum(), (x**2).sum(), rtol=1e-5)
    means = x.reshape(2, 3, 2, 2, 3, 2, 3).mean((3, 5))
    np.testing.assert_allclose(z[..., :3], 2 * means, atol=1e-6)
    assert abs(PATCH.encode(np.ones((1, 1, 2, 2, 1)))).max() == pytest.approx(2)


def test_a_patch_is_known_where_all_of_its_pixels_are():
    mask = np.ones((1, 1, 4, 4, 1), bool)
    mask[0, 0, 0, 3] = False
    assert PATCH.encode_mask(mask)[0, 0, :, :, 0].tolist() == [
        [True, False], [True, True]
    ]  # fmt: skip


def test_a_patch_needs_even_sizes_and_a_codec_a_known_name():
    with pytest.raises(UserError, match="an even height and width, not 4x5"):
        PATCH.z_shape((1, 4, 5, 3))
    config = shapes.get_config("smoke").unlock()
    config.codec.kind = "patches"
    with pytest.raises(UserError, match="config.codec.kind='patches': one of identity"):
        check_config(config)


def test_mean_and_variance_are_those_of_z():
    config = shapes.get_config("smoke").unlock()
    config.codec.kind = "patch"
    source = data.open_source(config)
    data.resolve(config, source)
    clips = list(pipeline.fixed_clips(config, source.split(False), data.STATS_CLIPS))
    z = PATCH.encode(np.concatenate([clip["video"] for clip in clips]) / 127.5 - 1)
    assert config.data.mean == pytest.approx(float(z.mean()), abs=1e-5)
    assert config.data.variance == pytest.approx(float(z.var()), rel=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the workdir of a run that diffuses patches."""
    workdir = tmp_path_factory.mktemp("patch") / "run"
    done = call(
        "train", SMOKE, "--config.codec.kind=patch", "--config.network.patch_size=1",
        "--config.train.steps=4", f"--workdir={workdir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return workdir


def test_it_trains_samples_and_previews(trained):
    run = runs.load(trained)
    assert run.model.shape == (8, 8, 8, 12) and run.model.video_shape == (8, 16, 16, 3)
    preview = np.load(next((trained / "samples").glob("*.npz")))["videos"]
    assert preview.shape[1:] == (8, 16, 16, 3)
    settings = sampling.Settings(sampler="ddim", steps=2, guidance_scale=2.0)
    made = sampling.sample(run.model, run.params, 2, settings)
    assert made.shape == (2, 8, 16, 16, 3) and abs(made).max() <= 1
    z = sampling.invert(
        run.model, run.params, made, sampling.Settings(sampler="ddim", steps=2)
    )
    assert z.shape == (2, 8, 8, 8, 12)


def test_it_extends_and_known_pixels_come_back(trained):
    run = runs.load(trained)
    video, mask = videos(1, 12, 16, 16, 3), np.zeros((1, 12, 16, 16, 1), bool)
    mask[:, :4] = True
    settings = sampling.Settings(sampler="ddim", steps=2)
    inputs = SamplingInputs(observation=Observation(video, mask))
    made = sampling.extend_in_blocks(run.model, run.params, 2, settings, inputs)
    np.testing.assert_array_equal(made[:, :4], np.repeat(video[:, :4], 2, 0))
    assert abs(made[:, 4:] - video[:, 4:]).mean() > 0.1


def test_known_area_means_guide_the_decoded_video(trained):
    errors = area_mean_errors(runs.load(trained), mean=0.5)
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.slow
def test_it_is_distilled(trained, tmp_path):
    done = call(
        "distill", "--config=configs/distill_shapes.py:smoke", f"--teacher={trained}",
        f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert runs.load(tmp_path / "run").model.codec == PATCH


def test_a_stage_encodes_its_input_before_noise_is_added():
    config = cascade_small.get_config("smoke").unlock()
    config.codec.kind, config.network.patch_size = "patch", 1
    config.stage.update(kind="ssr", factor=2, augmentation_time=(0.0, 0.0))
    config.data.update(mean=0.0, variance=1.0, label_vocabulary=())
    model = build.build_model(config)
    batch = {"video": np.full((2, *model.video_shape), 255, np.uint8)}
    z, cond = model.prepare_batch(batch, jax.random.key(0))
    assert z.shape[1:] == model.shape and cond["low_res"].shape == z.shape
    np.testing.assert_allclose(cond["low_res"], z, atol=1e-2)
    params = model.init(jax.random.key(0))
    low = videos(1, *model.low_resolution.input_shape)
    settings = sampling.Settings(sampler="ddim", steps=1, augmentation_snr=float("inf"))
    inputs = SamplingInputs({"low_resolution": low})
    made = sampling.sample(model, params, 1, settings, inputs)
    assert made.shape[1:] == model.video_shape
    check_shapes_chain([("base", build.build_model(base(config))), ("ssr", model)])
    assert jnp.isfinite(made).all()


def base(config):
    """Return a base model's config, whose videos are the stage's input."""
    config = config.copy_and_resolve_references()
    del config.stage
    config.video.update(height=config.video.height // 2, width=config.video.width // 2)
    return config
