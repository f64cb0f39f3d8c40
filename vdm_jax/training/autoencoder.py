"""The task "autoencoder": an autoencoder of frames with a critic (Rombach et al. 2022).

    loss = L1 + w_p LPIPS + w_kl KL / values                          for autoencoder
         + w_a (adversarial loss of the reconstruction)               for autoencoder
         + (hinge loss of real frames and of the reconstruction)      for critic

Of arXiv:2112.10752, appendix G, and VQGAN (arXiv:2012.09841, section 3.1). The
adversarial term stops the gradient at the critic's parameters, the hinge loss at the
reconstruction, so one loss trains both and each has the gradient of its own terms.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import build, latents, runs, sharding
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.metrics import lpips
from vdm_jax.metrics.reconstruction import psnr
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.networks.autoencoder import AutoencoderKL
from vdm_jax.networks.critic import PatchCritic
from vdm_jax.sampling import to_uint8
from vdm_jax.training.run import OpenRun
from vdm_jax.training.step import LossFn, TrainState
from vdm_jax.training.train_loop import Observer
from vdm_jax.training.trainer import Trainer
from vdm_jax.video_io.picture_grid import write_picture_grid

MAX_CRITIC_WEIGHT = 1e4  # of the adversarial term, as in VQGAN's code
NUM_HELD_OUT = 64  # clips of the scores
COLUMNS, ROWS = 8, 4  # of reconstructions on a sheet


class AutoencoderTask:
    """A row of TASKS. Its parameters are those of "network" and of "critic".

    Raises:
      UserError: the config lacks a section, or frames are too small for LPIPS.
    """

    def __init__(self, config: Any, model: DiffusionModel):
        if "autoencoder" not in config or not isinstance(model.network, AutoencoderKL):
            raise UserError(
                "config.task='autoencoder' needs a section config.autoencoder and "
                "config.network.kind='autoencoder', as configs/autoencoder.py has"
            )
        self.settings, self.model = config.autoencoder, model
        self.network: Any = model.network
        settings = config.autoencoder
        critic: Any = PatchCritic(settings.critic_channels, settings.critic_layers)
        self.critic = critic
        side = min(model.video_shape[1:3])
        if settings.perceptual_weight and side < lpips.MIN_SIDE:
            raise UserError(
                f"frames of {side} pixels are too small for LPIPS: {lpips.MIN_SIDE} or "
                "more, or config.autoencoder.perceptual_weight=0"
            )

    def init_params(self, key: jax.Array) -> Params:
        """Return new parameters; traceable."""
        network_key, critic_key = jax.random.split(key)
        frame = jnp.zeros((1, 1, *self.model.video_shape[1:]))
        network = self.network.init(network_key, frame)["params"]
        critic = self.critic.init(critic_key, frame)["params"]
        return {"network": network, "critic": critic}

    def load_params(self, workdir: str, mesh: Mesh) -> Params:
        """Return the parameters of a run, or of an exported folder, without a critic.

        config.init_new=("critic/.*",) goes with the second.
        """
        folder = Path(workdir)
        if (folder / "checkpoints").is_dir():
            return load_run(folder)[1]
        return {"network": latents.load(folder)[1]}

    def load_aux_params(self) -> dict[str, Any]:
        """Return the parameters of LPIPS, if it is part of the loss."""
        return {"lpips": lpips.load()} if self.settings.perceptual_weight else {}

    def make_loss(self) -> LossFn:
        """Return (params, aux_params, batch, key) -> (loss, metrics)."""

        def loss_fn(params, aux_params, batch, key):
            settings, critic = self.settings, params["critic"]
            x = self.model.normalize(batch["video"])
            apply = functools.partial(self.network.apply, {"params": params["network"]})
            posterior = apply(x, method="encode")
            y = apply(posterior.sample(key), method="decode")

            def fit(y):
                l1, perceptual = jnp.abs(x - y).mean(), jnp.zeros((), y.dtype)
                if settings.perceptual_weight:
                    perceptual = perceptual_loss(aux_params["lpips"], x, y)
                return l1 + settings.perceptual_weight * perceptual, (l1, perceptual)

            def logits(params, frames):
                return self.critic.apply({"params": params}, frames)

            def adversarial_loss(y):
                return -logits(jax.lax.stop_gradient(critic), y).mean()

            def with_critic(y):
                weight = settings.critic_weight * adversarial_weight(
                    jax.grad(fit, has_aux=True)(y)[0], jax.grad(adversarial_loss)(y)
                )
                real = logits(critic, x)
                fake = logits(critic, jax.lax.stop_gradient(y))
                adversarial, hinge = adversarial_loss(y), hinge_loss(real, fake)
                return weight * adversarial + hinge, {
                    "adversarial": adversarial, "adversarial_weight": weight,
                    "critic": hinge, "critic_real": real.mean(),
                    "critic_fake": fake.mean(),
                }  # fmt: skip

            def without_critic(y):
                return jax.tree.map(
                    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                    jax.eval_shape(with_critic, y),
                )

            error, (l1, perceptual) = fit(y)
            kl = posterior.kl().mean()
            total = error + settings.kl_weight * kl / np.prod(x.shape[2:])
            # A branch, not a factor of 0: a critic makes an update 1.5 times as long.
            started = aux_params["step"] >= settings.critic_start
            of_critic, metrics = jax.lax.cond(started, with_critic, without_critic, y)
            return total + of_critic, {
                "l1": l1, "lpips": perceptual, "kl": kl, **metrics
            }  # fmt: skip

        return loss_fn

    def make_observers(self, trainer: Trainer, run: OpenRun) -> tuple[Observer, ...]:
        """Return sheets of held-out frames and reconstructions, and their scores."""
        source = trainer.source
        if not len(source.split(True)):
            return ()
        n = sharding.whole_batch(trainer.mesh, NUM_HELD_OUT)
        video = pipeline.held_out_batch(run.config, source, n)["video"]
        aux_params = self.load_aux_params()
        reconstruct = make_reconstruct(self.network)

        def reconstruction(state: TrainState) -> np.ndarray:
            return reconstruct(state.eval_params["network"], video)

        def sheet(state: TrainState) -> None:
            write_sheet(run, int(state.step), video, reconstruction(state))

        def scores(state: TrainState) -> Mapping[str, Any]:
            return reconstruction_scores(video, reconstruction(state), aux_params)

        train = run.config.train
        return (
            (train.sample_every, "reconstructing", sheet),
            (train.eval_every, "validating", scores),
        )


def load_run(workdir: Path) -> tuple[AutoencoderKL, Params, int]:
    """Return the network of a run, its averaged parameters, and their step.

    Raises:
      UserError: it holds no checkpoint, or it is a run of another task.
    """
    config = runs.read_config(workdir)
    model = build.build_model(config)
    shapes = jax.eval_shape(
        AutoencoderTask(config, model).init_params, jax.random.key(0)
    )
    params, step = runs.load_averaged(workdir, shapes)
    assert isinstance(model.network, AutoencoderKL)
    return model.network, params, step


def perceptual_loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean LPIPS of the frames of two videos [b, f, h, w, c]; grey is RGB.

    params: of `lpips.load`.
    """
    params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)
    shape = (-1, *x.shape[2:4], 3)
    x, y = (jnp.broadcast_to(v, (*v.shape[:-1], 3)).reshape(shape) for v in (x, y))
    return lpips.distance(params, x, y).mean()


def hinge_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return the critic's loss (Lim & Ye 2017, arXiv:1705.02894) of its logits."""
    return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2


def adversarial_weight(of_fit: jax.Array, of_critic: jax.Array) -> jax.Array:
    """Return |of_fit| / |of_critic|, a constant (VQGAN, equation 7).

    of_fit, of_critic: gradients with respect to the reconstruction. VQGAN takes those
    with respect to the last layer's kernel, which needs two more backward passes.
    """
    norms = (jnp.sqrt(jnp.square(g).sum()) for g in (of_fit, of_critic))
    fit, critic = (jax.lax.stop_gradient(norm) for norm in norms)
    tiny = jnp.finfo(fit.dtype).tiny
    return jnp.minimum(fit / jnp.maximum(critic, tiny), MAX_CRITIC_WEIGHT)


def make_reconstruct(network: AutoencoderKL):
    """Return (params, uint8 [n, f, h, w, c]) -> the decoded mean latents, as uint8."""
    autoencoder = latents.Autoencoder(network, scale=1.0)

    @jax.jit
    def reconstruct(params, video):
        x = video.reshape(1, -1, *video.shape[2:]) / 127.5 - 1.0
        y = autoencoder.decode(params, autoencoder.encode(params, x))
        return y.reshape(video.shape)

    return lambda params, video: to_uint8(np.asarray(reconstruct(params, video)))


def reconstruction_scores(
    video: np.ndarray, reconstruction: np.ndarray, aux_params: Mapping[str, Params]
) -> dict[str, float]:
    """Return the mean PSNR in dB, and LPIPS where its parameters are given.

    video, reconstruction: uint8 [n, f, h, w, c].
    """
    scores = {"val/psnr": float(psnr(video, reconstruction).mean())}
    if "lpips" in aux_params:
        a, b = (v.repeat(3 // v.shape[-1], -1) for v in (video, reconstruction))
        distances = lpips.video_distance(aux_params["lpips"], a, b)
        scores["val/lpips"] = float(distances.mean())
    return scores


def write_sheet(
    run: OpenRun, step: int, video: np.ndarray, reconstruction: np.ndarray
) -> None:
    """Write first frames in rows, real above reconstruction; process 0 does so."""
    if not run.logger.active:
        return
    path = run.workdir / "samples" / f"step-{step:07d}.png"
    with run.logger.recording_failure():
        pictures = paired_rows(video, reconstruction)
        write_picture_grid(path, pictures, columns=COLUMNS, overwrite=True)


def paired_rows(video: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Return first frames uint8 [k, h, w, c] for rows of COLUMNS: real, then decoded.

    video, reconstruction: uint8 [n, f, h, w, c].
    """
    n = min(len(video), COLUMNS * ROWS) // COLUMNS * COLUMNS
    both = np.stack([video[:n, 0], reconstruction[:n, 0]])
    rows = both.reshape(2, -1, COLUMNS, *both.shape[2:]).swapaxes(0, 1)
    return rows.reshape(-1, *both.shape[2:])
