"""The task "autoencoder": its loss, who gets which gradient, resuming, exporting."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import autoencoder as config_file
from vdm_jax import build, data, latents, runs, scalars, sharding
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.commands.export_autoencoder import export_autoencoder
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.metrics import lpips
from vdm_jax.training import autoencoder
from vdm_jax.training.autoencoder import AutoencoderTask
from vdm_jax.training.init import start_from
from vdm_jax.training.tasks import TASKS
from vdm_jax.training.train import train
from vdm_jax.trees import named_leaves

START = 10  # step from which the critic trains


def tiny(**changes):
    """Return a config of 16x16 shapes, without LPIPS."""
    config = config_file.get_config("smoke").unlock()
    config.video.update(height=16, width=16, frames=2)
    config.data.update(source="shapes", path="", crop="center", flip=False)
    config.data.update(mean=0.0, variance=1.0)
    config.network.update(channels=(4, 4), num_groups=2, mid_attention=False)
    config.autoencoder.update(
        perceptual_weight=0.0, kl_weight=0.3, critic_start=START, critic_channels=4,
        critic_layers=1, critic_weight=0.7,
    )  # fmt: skip
    config.train.update(optimizer="adam", learning_rate=1e-3, end_lr_fraction=1.0)
    config.autoencoder.update(changes)
    return config


@pytest.fixture(scope="module")
def case():
    """Return a task with parameters, a batch and a key."""
    config = tiny()
    task = AutoencoderTask(config, build.build_model(config))
    params = task.init_params(jax.random.key(0))
    shape = (3, *task.model.video_shape)
    video = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    return task, params, {"video": video}, jax.random.key(1)


@pytest.fixture(scope="module")
def loss_and_grads(case):
    """Return step -> ((loss, metrics), gradients)."""
    task, *arguments = case
    fn = jax.jit(jax.value_and_grad(task.make_loss(), has_aux=True))
    params, batch, key = arguments
    return lambda step: fn(params, {"step": jnp.int32(step)}, batch, key)


def parts(case):
    """Return the frames, their posterior, reconstruction and logits."""
    task, params, batch, key = case
    network = {"params": params["network"]}
    x = batch["video"] / np.float32(127.5) - 1
    posterior = task.network.apply(network, x, method="encode")
    y = task.network.apply(network, posterior.sample(key), method="decode")
    real, fake = (task.critic.apply({"params": params["critic"]}, v) for v in (x, y))
    return x, posterior, y, real, fake


@pytest.mark.parametrize("step", [START - 1, START])
def test_the_loss_is_that_of_the_paper(case, loss_and_grads, step):
    """Recomputed by NumPy; |grad of L1| is 1 / sqrt(values), since |x|' is 1 or -1."""
    task, params, *_ = case
    x, (mean, log_variance), y, real, fake = jax.tree.map(np.asarray, parts(case))
    l1 = abs(x - y).mean()
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum((2, 3, 4))
    hinge = 0.5 * (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean())
    of_critic = jax.grad(
        lambda y: task.critic.apply({"params": params["critic"]}, y).mean()
    )(y)
    weight = 0.7 / np.sqrt(x.size) / np.linalg.norm(of_critic)
    expected = l1 + 0.3 * kl.mean() / (16 * 16 * 3)
    if step == START:
        expected += hinge - weight * fake.mean()
    (loss, metrics), _ = loss_and_grads(step)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    critic = hinge if step == START else 0
    np.testing.assert_allclose(metrics["critic"], critic, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], kl.mean(), rtol=1e-5)


def test_neither_side_gets_the_gradient_of_the_other(case, loss_and_grads):
    """The critic's is that of the hinge loss with the reconstruction as data.

    The autoencoder's is that of a loss in which the critic is a constant.
    """
    task, params, *rest = case
    _, grads = loss_and_grads(START)
    x, _, y, *_ = parts(case)

    def of_critic(critic):
        real, fake = (task.critic.apply({"params": critic}, v) for v in (x, y))
        return 0.5 * (jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + fake).mean())

    def of_network(network):
        x, posterior, y, _, fake = parts((task, {**params, "network": network}, *rest))
        kl = posterior.kl().mean() / (16 * 16 * 3)
        return abs(x - y).mean() + 0.3 * kl - weight * fake.mean()

    critic = {"params": params["critic"]}
    gradient = jax.grad(lambda y: task.critic.apply(critic, y).mean())(y)
    weight = 0.7 / np.sqrt(x.size) / np.linalg.norm(gradient)
    expected = {
        "network": jax.jit(jax.grad(of_network))(params["network"]),
        "critic": jax.jit(jax.grad(of_critic))(params["critic"]),
    }
    named = named_leaves(expected)
    for name, grad in named_leaves(grads).items():
        size = np.abs(named[name]).max()
        np.testing.assert_allclose(grad, named[name], atol=1e-4 * size + 1e-8)


def test_the_critic_waits(loss_and_grads):
    _, grads = loss_and_grads(START - 1)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["critic"]))


def test_lpips_has_a_gradient_where_no_feature_is_active():
    """All features of this network are 0 everywhere, as some are in real frames."""
    widths = (3, 2, 2, 2, 2, 2)
    sizes = (11, 5, 3, 3, 3)
    layers = {
        f"Conv_{i}": {"kernel": jnp.zeros((k, k, *widths[i : i + 2])),
                      "bias": -jnp.ones(widths[i + 1])}
        for i, k in enumerate(sizes)
    }  # fmt: skip
    heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": jnp.ones(2)}} for i in range(5)}
    params = {"AlexNet_0": layers, **heads}
    x = jnp.ones((1, 1, 32, 32, 3))
    loss, grad = jax.value_and_grad(autoencoder.perceptual_loss, 1)(params, x, -x)
    assert loss == 0 and np.isfinite(grad).all()
    assert lpips.distance(params, x[0], x[0]) == 0


def arrays(workdir: Path, step: int):
    return Checkpoints(workdir / "checkpoints", read_only=True).arrays(step)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run of four updates, of which two are the critic's, and its config."""
    workdir, config = tmp_path_factory.mktemp("autoencoder") / "run", tiny()
    config.autoencoder.critic_start = 2
    train(config, workdir)
    return workdir, config


@pytest.mark.slow
def test_a_resumed_run_is_the_same(run, tmp_path):
    workdir, config = run
    config = config.copy_and_resolve_references()
    config.train.steps = 2
    train(config, tmp_path / "run")
    config.train.steps = 4
    train(config, tmp_path / "run")
    whole, resumed = arrays(workdir, 4), arrays(tmp_path / "run", 4)
    assert whole.keys() == resumed.keys()
    assert {"params/critic/conv_out/bias", "ema/network/decoder/conv_out/bias"} < {
        *whole
    }
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], name)


def test_scores_and_sheets_of_held_out_frames(run):
    workdir, _ = run
    steps, scores = scalars.read_scalars(workdir)["val/psnr"]
    assert steps.tolist() == [4] and np.isfinite(scores).all()
    assert {path.name for path in (workdir / "samples").iterdir()} == {
        "step-0000002.png", "step-0000004.png",
    }  # fmt: skip


def test_the_exported_folder_holds_what_was_trained(run, tmp_path):
    workdir, config = run
    out = tmp_path / "shipped"
    export_autoencoder(workdir, config, out)
    assert {path.name for path in out.iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors", "training_config.json",
    }  # fmt: skip
    network, trained, step = autoencoder.load_run(workdir)
    trained = trained["network"]
    assert step == 4
    read, params = latents.load(out)
    assert read.network == network
    for name, array in named_leaves(params).items():
        half = np.asarray(named_leaves(trained)[name], np.float16)
        np.testing.assert_array_equal(array, half.astype(np.float32), name)
    part = data.open_source(config).split(False)
    clips = [clip["video"] for clip in pipeline.fixed_clips(config, part, 64)]
    x = np.concatenate(clips).astype(np.float32) / np.float32(127.5) - 1
    z = jax.jit(read.encode)(params, x)
    assert np.std(z) == pytest.approx(1, rel=0.02)
    mean = network.apply({"params": trained}, x, method="encode").mean
    np.testing.assert_allclose(z, mean * read.scale, atol=0.02)

    check_start_from(workdir, out, config)


def check_start_from(workdir, exported, config):
    """Compare what a run starts from with what was trained; a critic starts new."""
    task = AutoencoderTask(config, build.build_model(config))
    mesh = sharding.make_mesh()
    whole, part = (task.load_params(str(f), mesh) for f in (workdir, exported))
    expected = jax.eval_shape(task.init_params, jax.random.key(0))
    init = lambda: task.init_params(jax.random.key(5))  # noqa: E731
    start = start_from(whole, expected, init, "the run")
    averaged = {n: a for n, a in arrays(workdir, 4).items() if n.startswith("ema/")}
    for name, array in named_leaves(start).items():
        np.testing.assert_array_equal(array, averaged[f"ema/{name}"], name)
    start = start_from(part, expected, init, "the folder", ["critic/.*"])
    new = named_leaves(init()["critic"])["conv_0/kernel"]
    np.testing.assert_array_equal(start["critic"]["conv_0"]["kernel"], new)


def test_what_does_not_fit_is_one_line(tmp_path):
    config = tiny()
    with pytest.raises(UserError, match="trains the task 'autoencoder'"):
        stored = tmp_path / "run"
        stored.mkdir()
        (stored / "config.json").write_text(config.to_json_best_effort())
        runs.load(stored)
    model = build.build_model(config)
    with pytest.raises(UserError, match="goes with config.task='autoencoder'"):
        TASKS["diffusion"](config, model)
    config.autoencoder.perceptual_weight = 1.0
    with pytest.raises(UserError, match="16 pixels are too small for LPIPS: 31 or"):
        AutoencoderTask(config, model)
    del config["autoencoder"]
    with pytest.raises(UserError, match="needs a section config.autoencoder"):
        AutoencoderTask(config, model)
    config.network.channels = (4, 6)
    config.network.num_groups = 4
    with pytest.raises(UserError, match="channels=6 must be a multiple of 4"):
        build.build_model(config)


def test_a_sheet_has_the_real_frame_above_its_reconstruction():
    video = np.arange(18, dtype=np.uint8).reshape(18, 1, 1, 1, 1)
    rows = autoencoder.paired_rows(video, video + 100).ravel().tolist()
    assert rows == [*range(8), *range(100, 108), *range(8, 16), *range(108, 116)]
