"""Training on packed buffers: the loss is that of each video, and a run works."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dit
from tests.data.test_packing import SIZES, Sized
from tests.small_model import random_params
from tests.sprite_cases import needs_pictures
from tests.training.test_dit import PooledTokens
from tests.training.test_inflation import DIM
from vdm_jax import build, data, sampling
from vdm_jax.conditions.clean_frames import Clean, frame_weight
from vdm_jax.data import packing
from vdm_jax.diffusion import losses, schedules
from vdm_jax.networks.packing import unpack
from vdm_jax.training import train
from vdm_jax.training.step import draw_times, make_loss

TOKENS = 28


def packed_config(**conditioning) -> Any:
    config: Any = dit.get_config("smoke").unlock()
    config.video.update(frames=3, height=4, width=6)
    config.data.update(joint_image_frames=0, batch_size=2, mean=0.0, variance=1.0)
    config.network.patch_size = 2
    config.conditioning.update(text_dim=DIM, **conditioning)
    config.mixed_sizes = dict(rows=SIZES, buffer_tokens=TOKENS)
    return config


@pytest.fixture(scope="module")
def batch():
    """Return a batch with texts of three tokens."""
    config = packed_config()
    stream = packing.train_batches(config, [Sized(row) for row in SIZES])
    made = next(stream)
    stream.close()
    rng = np.random.default_rng(0)
    made["video"] = rng.integers(0, 256, made["video"].shape).astype(np.uint8)
    shape = (*made["caption"].shape, 3)
    made["text"] = rng.standard_normal((*shape, DIM), np.float32)
    made["text_mask"] = rng.random(shape) < 0.7
    return made


@pytest.mark.parametrize("given", [False, True])
def test_the_loss_is_that_of_each_video(batch, given):
    """Of the same noise, times and given frames, weighted by the number of tokens."""
    masks = (("last", 1.0),) if given else ()
    model = build.build_model(packed_config(clean_frames=masks))
    params = random_params(model, 0)
    arrays = {name: a for name, a in batch.items() if name not in ("caption", "label")}
    x, cond = model.prepare_batch(arrays, jax.random.key(0))
    eps = jax.random.normal(jax.random.key(1), x.shape)
    t = draw_times(model.training_schedule, jax.random.key(2), x, cond)
    level = schedules.noise_level(model.training_schedule, t)
    denoise = model.denoiser(params)
    loss = losses.diffusion_loss(
        denoise, x, eps, level, cond, "flow", frame_weight(cond)
    )
    padding = batch["segments"] == 0
    assert not np.asarray(frame_weight(cond))[padding].any() and padding.any()
    for row in range(len(x)):
        total = weights = 0.0
        for i in range(1, int(batch["segments"][row].max()) + 1):
            own = batch["segments"][row] == i
            f, h, w = batch["positions"][row][own].max(0) + 1
            size = [(f, 2 * h, 2 * w)]
            video, noise = (
                unpack(np.asarray(a[row])[own], size, 2)[0] for a in (x, eps)
            )
            alone = {
                "text": cond["text"][row, i - 1][None],
                "text_mask": cond["text_mask"][row, i - 1][None],
                "keep": {"text": cond["keep"]["text"][row, i - 1][None]},
            }
            weight = np.ones(f)
            if given:
                strength = np.asarray(cond["clean"].strength)[row][own]
                weight = strength.reshape(f, -1)[:, 0]
                alone["clean"] = Clean(jnp.asarray(video)[None], weight[None])
            times = np.unique(np.asarray(t)[row][own])
            assert len(times) == 1  # one of each video
            loss_of_video = losses.diffusion_loss(
                denoise, video[None], noise[None],
                schedules.noise_level(model.training_schedule, jnp.asarray(times)),
                alone, "flow", frame_weight(alone),
            )  # fmt: skip
            tokens = weight.sum() * h * w
            total += float(loss_of_video[0]) * tokens
            weights += tokens
        np.testing.assert_allclose(loss[row], total / weights, rtol=2e-5)
    if given:
        strength = np.asarray(cond["clean"].strength)
        assert 0 < (strength[batch["segments"] > 0] == 0).mean() < 1
        assert strength[:, :18].any()


def test_padding_and_neighbours_have_no_gradient(batch):
    """What is in the padding changes nothing, in no parameter's gradient."""
    model = build.build_model(packed_config())
    params = random_params(model, 0)
    loss_fn = make_loss(model, "flow")
    arrays = {name: a for name, a in batch.items() if name not in ("caption", "label")}
    gradient = jax.jit(jax.grad(lambda p, b: loss_fn(p, {}, b, jax.random.key(0))[0]))
    padding = arrays["segments"] == 0
    assert padding.any()
    other = arrays | {
        "video": np.where(padding[..., None, None, None], 99, arrays["video"])
    }
    for a, b in zip(
        *map(jax.tree.leaves, (gradient(params, arrays), gradient(params, other))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_parameters_do_not_depend_on_the_packing():
    config = packed_config()
    packed = jax.eval_shape(build.build_model(config).init_params, jax.random.key(0))
    del config["mixed_sizes"]
    assert packed == jax.eval_shape(
        build.build_model(config).init_params, jax.random.key(0)
    )


@needs_pictures
def test_a_run_trains_resumes_and_samples_another_size(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: PooledTokens())
    config: Any = dit.get_config("smoke").unlock()
    config.conditioning.text_dim = DIM
    config.data.joint_image_frames = 0
    sizes = (4, 32, 32, 2), (2, 32, 48, 1), (1, 48, 32, 1)
    config.mixed_sizes = dict(rows=sizes, buffer_tokens=128)
    config.train.update(steps=2, checkpoint_every=1, eval_every=2)
    config.train.update(end_lr_fraction=1.0, optimizer="adam")
    train.train(config, tmp_path / "run")
    config.train.steps = 4
    whole = train.train(config, tmp_path / "whole")
    state = train.train(config, tmp_path / "run")
    assert int(state.step) == 4 and int(state.skipped) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
    wide = build.build_model(build.at_size(config, (32, 48)))
    videos = sampling.sample(wide, state.eval_params, 1, sampling.Settings(steps=2))
    assert videos.shape == (1, 4, 32, 48, 3) and np.isfinite(videos).all()
    assert data.open_source(config).geometry.width == 32
