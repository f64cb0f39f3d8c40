"""Laws of given frames in sampling: kept bit for bit, or changed by their strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import append_axes, final_z, gaussian, level_at
from tests.diffusion.sampler_cases import EVERY
from tests.parity import drawn, recorded
from vdm_jax.diffusion import guidance, process, samplers, schedules
from vdm_jax.sampling.given_frames import rows_of_frames

SHAPE = (2, 4, 2, 2, 1)
GIVEN = np.array([[0.0, 1, 1, 1], [1.0, 1, 0, 0]])


def videos(count, dtype=np.float32):
    rng = np.random.default_rng(4)
    return [jnp.asarray(rng.standard_normal(SHAPE), dtype) for _ in range(count)]


def mixing(z, level, cond):
    """Predict by a nonlinear function that mixes frames and pixels."""
    x = 0.9 * jnp.tanh(z + 0.5 * jnp.roll(z, 1, axis=1) + jnp.roll(z, 1, axis=2) ** 2)
    return process.from_x(x, z, level)


def run(sampler, denoise, n=4):
    """Return z of n steps of a sampler, from fixed noise."""
    start, *draws = videos(5)
    noise = lambda i, number: jnp.roll(jnp.stack(draws)[i], number, 3)  # noqa: E731
    table = samplers.pad_table(sampler.table(schedules.Cosine(), n), np.float32)
    return jax.jit(
        lambda z, table: final_z(sampler, denoise, z, table, 0, n, noise, None)
    )(start, table)


@pytest.mark.parametrize("sampler", list(EVERY.values()), ids=list(EVERY))
def test_given_frames_come_back_bit_for_bit(sampler):
    known = videos(1)[0] / 2
    z = np.asarray(run(sampler, guidance.clean(mixing, known, jnp.asarray(GIVEN))))
    given = GIVEN == 0
    np.testing.assert_array_equal(z[given], np.asarray(known)[given])
    assert np.isfinite(z).all() and (z[~given] != np.asarray(known)[~given]).all()


def test_all_frames_given_is_the_video_itself():
    known = videos(1)[0]
    z = run(samplers.ddim(), guidance.clean(mixing, known, jnp.zeros((2, 4))))
    np.testing.assert_array_equal(z, known)


def test_no_frame_given_is_plain_sampling_bit_for_bit():
    """Step by step: the programs of both, compiled, may round differently."""
    ddim, known = samplers.ddim(), videos(1)[0]
    with jax.disable_jit():
        same = run(ddim, guidance.clean(mixing, known, jnp.ones((2, 4))), 2)
        np.testing.assert_array_equal(same, run(ddim, mixing, 2))


def test_given_frames_change_the_others():
    ddim = samplers.ddim()
    made = [
        run(ddim, guidance.clean(mixing, scale * videos(1)[0], jnp.asarray(GIVEN)))
        for scale in (0.1, 1)
    ]
    change = np.asarray(abs(made[0] - made[1]).mean((2, 3, 4)))
    assert change[0, 1] > 0.01 and change[1, 0] > 0.01  # a frame reads the one before


@pytest.mark.parametrize("logsnr", [-20.0, 0.0, 20.0])
def test_the_network_reads_given_frames_without_noise(logsnr, x64):
    """At level 0; the prediction there is that of z: alpha x + sigma eps = z."""
    known, z = videos(2, np.float64)
    seen = []

    def record(z, level, cond):
        seen.append((z, level))
        return mixing(z, level, cond)

    for level in (level_at(logsnr, 3), level_at(np.full(2, logsnr), 3)):
        prediction = guidance.clean(record, known, jnp.asarray(GIVEN))(z, level, None)
        z_seen, frames = seen[-1]
        mask = append_axes(GIVEN == 0)
        np.testing.assert_array_equal(z_seen, np.where(mask, known, z))
        expected = np.where(GIVEN == 0, np.inf, logsnr), GIVEN == 0
        np.testing.assert_array_equal(frames.logsnr, expected[0])
        np.testing.assert_array_equal(frames.sigma == 0, expected[1])
        np.testing.assert_array_equal(frames.alpha == 1, expected[1])
        assert frames.step_index == 3
        alpha, sigma = append_axes(level.alpha), append_axes(level.sigma)
        again = alpha * prediction.x + sigma * prediction.eps
        np.testing.assert_allclose(again, np.where(mask, z, again), atol=1e-9)
        np.testing.assert_array_equal(
            prediction.x, np.where(mask, known, mixing(z_seen, frames, None).x)
        )


def test_the_strength_of_a_frame_is_how_far_it_goes_to_the_model(x64):
    """For data N(m, s^2), DDIM with many steps: the closed form of each frame.

    A frame becomes active at flow's time s: z = alpha known + sigma eps there. The
    probability flow then scales z - alpha m by s / sqrt(alpha^2 s^2 + sigma^2), so its
    distance from `known` grows with the strength, from 0.
    """
    mean, spread, strength = 0.4, 0.3, np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    shape = (1, 6, 1, 1, 1)
    known = jnp.full(shape, -0.8)
    start = jnp.full(shape, 0.7)
    denoise = guidance.clean(gaussian(mean, spread), known, jnp.asarray(strength[None]))
    n = 1000
    table = samplers.ddim().table(schedules.Flow(-30, 30), n)
    z = jax.jit(
        lambda z: final_z(samplers.ddim(), denoise, z, table, 0, n, None, None)
    )(start)
    size = np.hypot(strength, 1 - strength)
    alpha, sigma = (1 - strength) / size, strength / size
    noisy = alpha * -0.8 + sigma * 0.7
    deviation = np.sqrt(alpha**2 * spread**2 + sigma**2)
    expected = mean + spread * (noisy - alpha * mean) / deviation
    np.testing.assert_allclose(z.ravel(), expected, rtol=0, atol=2e-3)
    distance = np.abs(np.asarray(z).ravel() - -0.8)
    assert distance[0] == 0 and (np.diff(distance) > 0.01).all()


def two_steps_method(z, lam, predict):
    """Return z of DPM-Solver++(2M) from log(alpha / sigma)'s levels `lam` to the data.

    Algorithm 2 of arXiv:2211.01095, for a prediction predict(z, i) of the data; the
    first and the last step, to no noise, are of first order.
    """
    sigma = 1 / np.sqrt(1 + np.exp(2 * lam))
    alpha = np.sqrt(1 - sigma**2)
    older = None
    for i in range(len(lam)):
        x = predict(z, alpha[i], sigma[i])
        if i + 1 == len(lam):
            return x
        h, d = lam[i + 1] - lam[i], x
        if older is not None:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x - older / (2 * r)
        z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * np.expm1(-h) * d
        older = x
    raise AssertionError


def test_a_frame_that_becomes_active_does_not_overshoot(x64):
    """A run of the frame alone that starts there, in numpy: its start has no memory.

    Data of N(m, s^2) far from the given frame, so that its prediction jumps.
    """
    mean, spread, known, start, n = 0.4, 0.3, -5.0, 0.7, 12
    strength = np.array([[0.0, 0.3, 0.62, 1.0], [0.5, 0.5, 0.0, 0.9]])
    schedule = schedules.Flow(-12, 12)
    plain = samplers.dpm().table(schedule, n)
    table = rows_of_frames(samplers.dpm(), plain, strength)
    shape = (*strength.shape, 1, 1, 1)
    assert table["x_coef"].shape == (n, *shape) and table["z_coef"].shape == (n,)
    denoise = guidance.clean(
        gaussian(mean, spread), jnp.full(shape, known), jnp.asarray(strength)
    )
    z = jnp.full(shape, start)
    made = final_z(samplers.dpm(), denoise, z, table, 0, n, None, None)[..., 0, 0, 0]
    tau = plain["sigma"] / (plain["alpha"] + plain["sigma"])
    lam = np.log(plain["alpha"] / plain["sigma"])

    def predict(z, alpha, sigma):
        variance = alpha**2 * spread**2 + sigma**2
        return mean + alpha * spread**2 * (z - alpha * mean) / variance

    for place, own in np.ndenumerate(strength):
        first = int((tau > own).sum())
        expected = known
        if first < n:
            alpha, sigma = plain["alpha"], plain["sigma"]
            eps = (start - alpha[0] * known) / sigma[0]
            noisy = alpha[first] * known + sigma[first] * eps
            expected = two_steps_method(noisy, lam[first:], predict)
        np.testing.assert_allclose(made[place], expected, rtol=0, atol=1e-9)
    other = final_z(samplers.dpm(), denoise, z, plain, 0, n, None, None)[..., 0, 0, 0]
    assert np.abs(other - made)[strength == 0.5].min() > 0.05


@pytest.mark.parametrize("sampler", list(EVERY.values()), ids=list(EVERY))
def test_frames_given_always_or_never_have_the_table_of_all(sampler):
    table = sampler.table(schedules.Cosine(), 5)
    for strength in (GIVEN, np.float32(GIVEN)):
        own = rows_of_frames(sampler, table, strength)
        assert all(own[name] is table[name] for name in table)


def test_every_column_of_a_frame_is_padded():
    strength = np.array([[0.5, 1.0]])
    table = samplers.unipc().table(schedules.Cosine(), 5)
    own = rows_of_frames(samplers.unipc(), table, strength)
    padded = samplers.pad_table(own, np.float32)
    assert {a.shape[1:] for a in padded.values()} == {(), (1, 2, 1, 1, 1)}
    assert {len(a) for a in padded.values()} == {samplers.MAX_STEPS}
    for name in table:  # the second frame is active from the start
        column = own[name] if own[name].ndim == 1 else own[name][:, 0, 1, 0, 0, 0]
        np.testing.assert_array_equal(column, table[name])


# Open-Sora's sampler.

VALUES = np.array([0, 1, 1, 0.5, 1, 0.8])  # strength of each frame
LATENTS = (1, 4, 6, 4, 4)


def frames_last(a):
    return jnp.asarray(np.moveaxis(a, 1, -1), float)


def text_mean(name):
    return drawn.normal(f"flow/input/{name}", (1, 1, 6, 24)).astype(float).mean()


def stand_in(z, level, cond):
    """Predict by the recorded linear network, guided by 4; v is x - eps there.

    A given frame's time is that of the others: the recorded network reads none but t.
    """
    alpha, sigma = process.alpha_sigma(level, z)
    state, t = z / (alpha + sigma), cond
    rolled = jnp.roll(state, 1, axis=3)
    v = (0.5 + 0.5 * t) * state + 0.25 * rolled - 0.2 * state.mean(1, keepdims=True)
    null, text = text_mean("null"), text_mean("text")
    v = v + 0.05 * (null + 4 * (text - null))
    return process.from_flow(-v, z, level)


def test_recorded_sampling_of_open_sora(x64):
    """Ten steps at shifted times, without and with given frames, every step active.

    Given frames of a strength above 0 are noised by the noise of the step at which they
    become active, which here is their own noise from the start.
    """
    expected = recorded.load("open_sora_flow")
    z0 = frames_last(drawn.normal("flow/input/z", LATENTS))
    times = expected["masked_times"] / 1000
    active = expected["masked_active"].astype(bool)
    # With a shift r the flow schedule has exactly these times.
    r = times[5] / (1 - times[5])
    table = samplers.ddim().table(schedules.Flow(-60, 60, -2 * np.log(r)), 10)
    tau = table["sigma"] / (table["alpha"] + table["sigma"])
    np.testing.assert_allclose(tau, times, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(tau[:, None] <= VALUES, active)

    start = z0
    for frame in (3, 5):
        first = int(np.argmax(active[:, frame]))
        noise = drawn.normal(f"flow/input/renoise_{first}", LATENTS)
        start = start.at[:, frame].set(frames_last(noise)[:, frame])

    def sample(z, wrap):
        levels = []

        def timed(z, level, cond):
            levels.append(level)
            time = process.flow_time(level)
            own = lambda z, level, _: stand_in(z, level, time)  # noqa: E731
            return wrap(own)(z, level, None)

        return final_z(samplers.ddim(), timed, z, table, 0, 10, None, None)

    free = sample(z0, lambda denoise: denoise)
    np.testing.assert_allclose(free, frames_last(expected["free"]), rtol=0, atol=1e-5)
    strength = jnp.asarray(VALUES[None])
    masked = sample(start, lambda denoise: guidance.clean(denoise, z0, strength))
    np.testing.assert_allclose(
        masked, frames_last(expected["masked"]), rtol=0, atol=1e-5
    )
