"""A stage of a cascade through the real model, with its text and its input video."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from vdm_jax import build, sampling, settings
from vdm_jax.errors import UserError
from vdm_jax.settings import section_dict
from vdm_jax.settings.sections import Stage
from vdm_jax.training import step

WORDS = 5


def config_of(kind, **stage):
    config = shapes.get_config("smoke").unlock()
    config.video.update(frames=4, height=8, width=8)
    config.data.update(label_vocabulary=(), mean=-0.3, variance=0.2)
    fields = {"augmentation_time": (0.0, 0.5), **stage}
    config.stage = section_dict(Stage(kind, **fields))
    config.conditioning.update(text_dim=6, text_dropout=0.1)
    mixing = ("temporal_conv", "cross_attention")
    config.network.update(
        levels=(dict(channels=8, blocks=1, layers=mixing),), mid_layers=(), head_dim=4
    )
    return config


@pytest.fixture(scope="module", params=["tsr", "ssr"])
def stage(request):
    model = build.build_model(config_of(request.param))
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape, p.dtype),
        model.init(jax.random.key(0)),
    )
    return model, params


def conditions(model, num=3, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-1, 1, (num, *model.low_resolution.input_shape)).astype(
        np.float32
    )
    tokens = rng.normal(size=(num, WORDS, 6)).astype(np.float32)
    mask = np.arange(WORDS) < np.arange(1, num + 1)[:, None]
    return {"low_resolution": low, "text": tokens, "text_mask": mask}


def draw(stage, cond, num=3, negative=None, stage_index=0, **settings):
    model, params = stage
    settings = {"steps": 4, "guidance_scale": 2.0, "batch_size": 3} | settings
    settings = {"sampler": "ddim"} | settings
    inputs = sampling.SamplingInputs(cond, negative)
    run = sampling.Run(stage=stage_index)
    settings = sampling.Settings(**settings)
    return sampling.sample(model, params, num, settings, inputs, run)


def test_a_video_does_not_depend_on_its_batch(stage):
    more = conditions(stage[0])
    whole = draw(stage, more)
    assert whole.shape == (3, *stage[0].shape)
    np.testing.assert_allclose(draw(stage, more, batch_size=2), whole, atol=1e-4)


def test_every_condition_matters(stage):
    more, other = conditions(stage[0]), conditions(stage[0], seed=1)
    whole = draw(stage, more)
    for name in ("low_resolution", "text"):
        changed = draw(stage, more | {name: other[name]})
        assert abs(changed - whole).mean() > 1e-3, name
    assert abs(draw(stage, more, augmentation_snr=math.inf) - whole).mean() > 1e-3
    assert abs(draw(stage, more, stage_index=1) - whole).mean() > 1e-2
    away = {name: other[name] for name in ("text", "text_mask")}
    assert abs(draw(stage, more, negative=away) - whole).mean() > 0


def test_masked_tokens_are_not_read(stage):
    more = conditions(stage[0])
    tokens, mask = more["text"], more["text_mask"]
    junk = np.where(mask[..., None], tokens, 1e3).astype(np.float32)
    same = draw(stage, more | {"text": junk})
    np.testing.assert_allclose(same, draw(stage, more), atol=1e-5)


def test_both_branches_of_guidance_see_the_same_video(stage):
    """Guidance between two empty texts is no guidance: the input video is shared."""
    more = conditions(stage[0])
    empty = {"text": more["text"], "text_mask": np.zeros_like(more["text_mask"])}
    plain = draw(stage, more | empty, guidance_scale=1.0)
    guided = draw(stage, more | empty, negative=empty, guidance_scale=6.0)
    np.testing.assert_allclose(guided, plain, atol=1e-4)


def test_training_and_sampling_have_the_same_conditions(stage):
    """The loss's conditions are those that sampling makes of the same input video."""
    model, params = stage
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, *model.shape), np.uint8)
    text = {"text": jnp.ones((2, 1, 6)), "text_mask": jnp.ones((2, 1), bool)}
    x, cond = model.prepare_batch({"video": video, **text}, jax.random.key(0))
    low = model.low_resolution.observation(model.normalize(video))
    assert low.shape[1:] == model.low_resolution.input_shape
    t = np.arctan(np.exp(-np.asarray(cond["low_res_logsnr"]) / 2)) / (np.pi / 2)
    clear = model.low_resolution.from_observation(
        low, jnp.asarray(t), jnp.zeros(x.shape)
    )["low_res"]
    assert clear.shape == cond["low_res"].shape
    noise = np.asarray(cond["low_res"] - clear)[..., :3]
    sigma = np.sin(np.pi / 2 * t)
    assert noise.std() == pytest.approx(np.sqrt((sigma**2).mean()), rel=0.1)
    loss, _ = step.make_loss(model, "snr_plus_one")(
        params, {}, {"video": video, **text}, jax.random.key(3)
    )
    assert np.isfinite(loss)


def test_gradients_reach_every_parameter_of_a_stage(stage):
    model, params = stage
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (2, *model.shape), np.uint8),
        "text": rng.normal(size=(2, 2, 6)).astype(np.float32),
        "text_mask": jnp.ones((2, 2), bool),
    }
    grads = jax.grad(
        lambda p: step.make_loss(model, "snr_plus_one")(
            p, {}, batch, jax.random.key(0)
        )[0]
    )(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            {"low_resolution": None},
            r"conditioned on low_resolution, videos of \(",
        ),
        (
            {"low_resolution": np.zeros((3, 1, 1, 1, 3))},
            r"low_resolution, videos of .*: not \(1, 1, 1, 3\)",
        ),
    ],
)
def test_a_wrong_input_video_says_what_would_be_right(stage, wrong, message):
    with pytest.raises(UserError, match=message):
        draw(stage, conditions(stage[0]) | wrong)


@pytest.mark.parametrize("snr", [0.5, 0.0, -1.0, math.nan])
def test_a_noise_never_trained_with_is_refused(stage, snr):
    trained = "trained with 1 to inf on its low-resolution"
    message = trained if snr > 0 else "augmentation_snr=.*from 1e-09 to inf"
    with pytest.raises(UserError, match=message):
        draw(stage, conditions(stage[0]), augmentation_snr=snr)


def test_tiles_of_the_crops_size():
    """One tile of all is the whole; a smaller one reads the input under it."""
    whole = build.build_model(config_of("ssr"))
    params = jax.tree.map(
        lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape),
        whole.init(jax.random.key(0)),
    )
    plain, more = draw((whole, params), conditions(whole)), conditions(whole)
    one, four = (build.build_model(config_of("ssr", train_crop=(n, n))) for n in (8, 4))
    tiled = draw((one, params), more, tiled_sampling=True)
    np.testing.assert_allclose(tiled, plain, atol=1e-4)
    first = draw((four, params), more, tiled_sampling=True, steps=1)
    # No tile that reads the last corner of the input has the first two pixels.
    more["low_resolution"][:, :, 3:, 3:] *= -1
    second = draw((four, params), more, tiled_sampling=True, steps=1)
    changed = abs(second - first).mean((0, 1, 4)) > 1e-6
    assert changed[4:, 4:].all() and not changed[:2].any() and not changed[:, :2].any()
    with pytest.raises(UserError, match="for stages that were trained on crops"):
        draw((whole, params), more, tiled_sampling=True)


@pytest.mark.parametrize(
    "settings, nfe",
    [
        ({}, 8),  # two branches
        ({"guidance_scale": 1.0}, 4),
        ({"guidance_scale": 1.0, "sampler": "heun"}, 8),
        ({"langevin_delta": 0.1}, 16),
        ({"tiled_sampling": True}, 72),  # three by three tiles
    ],
)
def test_number_of_function_evaluations(settings, nfe):
    model = build.build_model(config_of("ssr", train_crop=(4, 4)))
    settings = sampling.Settings(**{"steps": 4, "guidance_scale": 2.0, **settings})
    assert sampling.nfe(model, settings) == nfe


def test_a_stage_is_not_inverted(stage):
    with pytest.raises(UserError, match="inversion is not for super-resolution stages"):
        sampling.invert(*stage, np.zeros((1, *stage[0].shape), np.float32))


def test_a_base_model_takes_no_video(trained):
    model, params = trained
    low = np.zeros((1, 4, 8, 8, 3))
    with pytest.raises(UserError, match="is not conditioned on low_resolution"):
        inputs = sampling.SamplingInputs({"low_resolution": low})
        sampling.sample(model, params, 1, inputs=inputs)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "super"}, "stage.kind='super': one of ssr, tsr"),
        ({"factor": 1}, "stage.factor=1: an integer from 2"),
        ({"factor": 3}, "must be a multiple of 3 (stage.factor): nearest 3"),
        (
            {"temporal_fill": "blank"},
            "stage.temporal_fill='blank' needs stage.kind='tsr'",
        ),
        (
            {"temporal_fill": "zeros"},
            "stage.temporal_fill='zeros': one of repeat, blank",
        ),
        ({"augmentation_time": (0.5, 0.1)}, "the lower time first"),
        ({"augmentation_time": (0.5,)}, "(a number from 0 to 1, a number from 0 to 1)"),
        ({"train_crop": (4,)}, "height and width of random crops"),
        ({"train_crop": (2, 2), "patch": 4}, "height=2 must be a multiple of 4"),
        ({"train_crop": (6, 16)}, "a width of at most 8"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(changes, message):
    config = config_of("tsr" if changes.get("factor") == 3 else "ssr")
    config.network.patch_size = changes.get("patch", 2)
    config.stage.update({k: v for k, v in changes.items() if k != "patch"})
    with pytest.raises(UserError) as error:
        settings.check_config(config, settings.TRAINING)
        build.build_model(config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_text_is_dropped_whatever_the_noise(stage):
    """The draws are independent: the branch without text is trained at every level."""
    model, _ = stage
    n = 512
    batch = {
        "video": np.zeros((n, *model.shape), np.uint8),
        "text": jnp.zeros((n, 1, 6)),
        "text_mask": jnp.ones((n, 1), bool),
    }
    _, cond = jax.jit(model.prepare_batch)(batch, jax.random.key(0))
    kept, noise = np.asarray(cond["keep"]["text"]), np.asarray(cond["low_res_logsnr"])
    assert 0.05 < 1 - kept.mean() < 0.17
    rank = noise.argsort().argsort() / n
    assert abs(rank[~kept].mean() - rank[kept].mean()) < 0.2
    assert rank[~kept].min() < 0.3 and rank[~kept].max() > 0.7
