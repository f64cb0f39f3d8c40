"""Frames that training gives clean: which ones, what the network reads, the loss."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import level_at
from tests.parity import drawn, recorded
from tests.small_model import random_params, smoke_config
from vdm_jax import build
from vdm_jax.conditions.clean_frames import MASKS, CleanFrames, frame_weight
from vdm_jax.diffusion import guidance, losses, process, schedules
from vdm_jax.errors import UserError
from vdm_jax.networks.layers import noise_level_embedding

# Our name of each strategy of Open-Sora. Its own length of "quarter" is 1 to F // 4,
# and fails for two and three frames; ours is 1 there.
STRATEGIES = {
    "image_head": "first", "image_tail": "last", "image_head_tail": "first_and_last",
    "image_random": "one", "quarter_head": "head", "quarter_tail": "tail",
    "quarter_head_tail": "head_and_tail", "quarter_random": "block",
    "random": "random", "intepolate": "every_second",
}  # fmt: skip
SOME = (("first", 0.25), ("last", 0.5))


def draw(masks, z):
    """Return the strength of frames of clips z, as training draws it."""
    return np.asarray(
        CleanFrames(masks).draw(jax.random.key(0), z, z.shape[1]).strength
    )


@functools.cache
def drawn_masks(frames, draws=300):
    """Return the set of masks that each strategy draws, as tuples of bool."""

    @jax.jit
    def draw(keys):
        return {
            name: jax.vmap(lambda key, mask=mask: mask(key, frames + 2, frames))(keys)
            for name, mask in MASKS.items()
        }

    masks = draw(jax.random.split(jax.random.key(0), draws))
    # Frames that are not there may have any value.
    masks = {name: np.asarray(m)[:, :frames] for name, m in masks.items()}
    return {name: {*map(tuple, m.tolist())} for name, m in masks.items()}


def by_definition(name, frames):
    """Return the same set from the description of the strategy."""
    f, index = frames, np.arange(frames)
    quarter = range(1, max(1, f // 4) + 1)
    run = lambda start, n: (index >= start) & (index < start + n)  # noqa: E731
    all_masks = {
        "first": [run(0, 1)],
        "last": [run(f - 1, 1)],
        "first_and_last": [run(0, 1) | run(f - 1, 1)],
        "one": [run(i, 1) for i in range(f)],
        "head": [run(0, n) for n in quarter],
        "tail": [run(f - n, n) for n in quarter],
        "head_and_tail": [run(0, n) | run(f - n, n) for n in quarter],
        "block": [run(i, n) for n in quarter for i in range(f - n + 1)],
        "every_second": [index % 2 == 0, index % 2 == 1],
        "random": [m for m in itertools.product([False, True], repeat=f) if not all(m)],
    }
    return {tuple(bool(x) for x in mask) for mask in all_masks[name]}


def test_the_table_has_these_strategies():
    assert set(MASKS) == set(STRATEGIES.values())


@pytest.mark.parametrize("theirs", list(STRATEGIES))
def test_recorded_masks_of_open_sora_are_drawn(theirs):
    """The recorded examples are among ours, and ours are those of the definition."""
    name = STRATEGIES[theirs]
    text = (recorded.FOLDER / "open_sora_masks.json").read_text()
    examples = json.loads(text)["training_masks_1_is_generated"][theirs]
    for frames in (2, 4, 5, 8):
        ours, defined = drawn_masks(frames)[name], by_definition(name, frames)
        for mask in examples[str(frames)]:
            if not mask.startswith("error"):
                assert tuple(c == "0" for c in mask) in ours
        assert ours == defined if name != "random" else ours <= defined
    assert examples["1"] == ["1"]  # see test_a_single_frame_is_generated


def test_a_single_frame_is_generated():
    strength = draw(SOME, jnp.zeros((9, 1, 1, 1, 1)))
    assert (strength == 1).all()


def test_strategies_are_drawn_by_their_probability():
    z = jnp.zeros((4000, 3, 1, 1, 1))
    strength = draw((("first", 0.3), ("last", 0.2)), z)
    for mask, expected in (([0, 1, 1], 0.3), ([1, 1, 0], 0.2), ([1, 1, 1], 0.5)):
        share = (strength == mask).all(1).mean()
        assert abs(share - expected) < 0.03  # four standard deviations


@pytest.mark.parametrize(
    ("name", "expected"),
    [("last", [1, 0, 1]), ("first_and_last", [0, 0, 1]), ("first", [0, 1, 1])],
)
def test_independent_images_behind_the_frames_are_generated(name, expected):
    condition = CleanFrames(((name, 1.0),))
    drawn = condition.draw(jax.random.key(0), jnp.zeros((4, 3, 1, 1, 1)), frames=2)
    assert (drawn.strength == jnp.asarray(expected)[None]).all()
    one = condition.draw(jax.random.key(0), jnp.zeros((4, 3, 1, 1, 1)), frames=1)
    assert (one.strength == 1).all()


# The loss.


def flow_network(network):
    """Return the denoiser of a velocity x - eps of flow's state, Open-Sora's sign."""

    def denoise(z, level, cond):
        alpha, sigma = process.alpha_sigma(level, z)
        return process.from_flow(-network(z / (alpha + sigma)), z, level)

    return denoise


def channels_last(a):
    return jnp.asarray(np.moveaxis(a, 1, -1), float)


def test_the_recorded_loss_of_open_sora(x64):
    """With and without given frames; the network is half its input, which is equal."""
    shape = (2, 4, 5, 4, 4)
    x, eps = (
        channels_last(drawn.normal(f"flow/input/{n}", shape)) for n in ("x0", "noise")
    )
    tau = np.array([0.7, 0.2])
    level = schedules.noise_level_from_angle(jnp.asarray(np.arctan(tau / (1 - tau))))
    strength = jnp.asarray([[0.0, 1, 1, 1, 0], [1.0] * 5])
    seen = []

    def half(state):
        seen.append(state)
        return state / 2

    plain = flow_network(half)
    given = guidance.clean(plain, x, strength)
    expected = recorded.load("open_sora_flow")
    loss = losses.diffusion_loss(plain, x, eps, level, {}, "flow")
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-6)
    loss = losses.diffusion_loss(given, x, eps, level, {}, "flow", strength)
    np.testing.assert_allclose(loss, expected["loss_masked"], rtol=1e-6)
    np.testing.assert_allclose(
        seen[-1], channels_last(expected["loss_input"]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("logsnr", [-20.0, 0.0, 20.0])
def test_given_frames_have_no_loss_and_no_gradient(logsnr, x64):
    """Neither their noise nor what the network makes of them counts, at any level."""
    rng = np.random.default_rng(0)
    x, eps, out = (jnp.asarray(rng.standard_normal((2, 3, 2, 2, 1))) for _ in range(3))
    strength = jnp.asarray([[0.0, 1, 1], [1.0, 1, 0]])
    level = level_at(np.full(2, logsnr))

    def loss(out, eps, kind):
        def network(z, level, cond):
            return process.PREDICTION_TYPES[kind](out, z, level)

        denoise = guidance.clean(network, x, strength)
        return losses.diffusion_loss(
            denoise, x, eps, level, {}, frame_weight=strength
        ).sum()

    for kind in process.PREDICTION_TYPES:
        of_out, of_eps = jax.grad(loss, (0, 1))(out, eps, kind)
        for gradient in (of_out, of_eps):
            gradient = np.asarray(gradient)
            assert np.isfinite(gradient).all()
            assert (gradient[0, 0] == 0).all() and (gradient[1, 2] == 0).all()
        assert (of_out[0, 1:] != 0).all() and (of_out[1, :2] != 0).all()


def test_a_clip_that_is_all_given_has_no_loss():
    x = jnp.ones((1, 2, 1, 1, 1))
    level = level_at(np.zeros(1), dtype=np.float32)
    weight = jnp.zeros((1, 2))
    plain = lambda z, level, cond: process.from_v(z, z, level)  # noqa: E731
    assert losses.diffusion_loss(plain, x, x, level, {}, frame_weight=weight) == 0


# Of a model.


def clean_model():
    config = smoke_config()
    config.conditioning.clean_frames = SOME
    return build.build_model(config)


def test_the_network_reads_given_frames_as_it_reads_data(monkeypatch):
    """Standardised by mean and deviation, without noise, at the least noise level."""
    model = clean_model()
    params = random_params(model, 0)
    rng = np.random.default_rng(0)
    z, known = (rng.standard_normal((2, *model.shape)).astype(np.float32) for _ in "ab")
    strength = jnp.ones((2, model.shape[0])).at[:, :3].set(0)
    seen = {}

    class Network:
        def apply(self, variables, z, inputs, train, rngs):
            seen.update(z=z, noise_level=inputs.noise_level)
            return jnp.zeros_like(z)

    object.__setattr__(model, "network", Network())
    level = schedules.noise_level(model.schedule, np.full(2, 0.6, np.float32))
    cond = model.raw_conditions(model.null_conditions((2,)))
    cond["clean"] = jnp.asarray(known), strength
    prediction = model.denoiser(params)(jnp.asarray(z), level, cond)
    deviation = np.sqrt(model.variance)
    expected = (known - model.mean) / deviation
    np.testing.assert_allclose(seen["z"][:, :3], expected[:, :3], rtol=0, atol=1e-5)
    assert (abs(seen["z"][:, 3:] - expected[:, 3:]) > 1e-3).mean() > 0.9
    at_data = np.asarray(noise_level_embedding(jnp.array(20.0), 16))
    clean, noisy = np.split(np.asarray(seen["noise_level"]), [3], axis=1)
    assert abs(clean - at_data).max() < 1e-6 < abs(noisy - at_data).max(2).min()
    np.testing.assert_array_equal(prediction.x[:, :3], known[:, :3])


def test_training_gives_frames_and_validation_none():
    model = clean_model()
    rng = np.random.default_rng(0)
    shape = (64, *model.video_shape)
    batch = {"video": jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))}
    batch["label"] = jnp.zeros((64, 2), jnp.int32)
    z, cond = model.prepare_batch(batch, jax.random.key(0))
    np.testing.assert_array_equal(cond["clean"].known, z)
    assert 0.5 < (frame_weight(cond) == 0).any(1).mean() < 1
    _, cond = model.prepare_batch(batch, jax.random.key(0), drop_conditions=False)
    assert frame_weight(cond) is None


def test_probabilities_above_one_are_refused():
    config = smoke_config()
    config.conditioning.clean_frames = (("first", 0.7), ("last", 0.4))
    with pytest.raises(UserError, match="at most 1 together"):
        build.build_model(config)
