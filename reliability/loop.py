"""The training loop of two arrays, which kill9_processes starts fast.

    python -m reliability.loop WORKDIR STEPS EVERY [COORDINATOR COUNT RANK]

Two arrays of a million numbers, their average and Adam's moments, split between all
devices, are trained on rows of one stream and saved every EVERY steps.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vdm_jax import buckets, runtime, sharding
from vdm_jax.training import launch
from vdm_jax.training.run import open_run
from vdm_jax.training.step import init_state, make_step
from vdm_jax.training.train_loop import Update, train_loop

HEARTBEAT = 10  # seconds, for 60: a proof of many kills waits for it often


class Rows:
    """Batches by their number."""

    number = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.number += 1
        rows = np.random.default_rng(self.number).normal(size=(16, 3))
        count, rank = jax.process_count(), jax.process_index()
        return {"x": np.split(rows.astype(np.float32), count)[rank]}

    def get_state(self) -> int:
        """Return the position."""
        return self.number

    def set_state(self, number: int) -> None:
        """Continue behind a batch."""
        self.number = number


def loss_fn(params, aux_params, batch, key):
    """Return a loss that reaches every parameter."""
    noise = jax.random.normal(key, batch["x"].shape)
    goal = jnp.mean(batch["x"] + noise)
    squares = [jnp.mean((leaf - goal) ** 2) for leaf in params.values()]
    return jnp.stack(squares).sum(), {}


def main(workdir: str, steps: str, every: str, *processes: str) -> None:
    """Train, or resume."""
    if processes:
        address, count, rank = processes
        launch.TIMEOUTS["heartbeat_timeout_seconds"] = HEARTBEAT
        launch.start(address, int(count), int(rank))
    train = dict(
        steps=int(steps), checkpoint_every=int(every), keep_checkpoints=2,
        log_every=5, max_nonfinite_updates=2,
    )  # fmt: skip
    config = ConfigDict({"init_from": "", "train": train})
    tx = optax.scale_by_adam()

    def new():
        shape = (1024, 1024)
        params = {"kernel": jnp.ones(shape), "bias": jnp.zeros(shape)}
        return init_state(params, tx, ema=True)

    mesh = sharding.make_mesh(data=1, fsdp=jax.device_count())
    placed = sharding.state_shardings(mesh, jax.eval_shape(new))
    step = jax.jit(
        make_step(loss_fn, tx, lambda step, aux: jnp.float32(0.01), 0.9),
        donate_argnums=0,
        out_shardings=(placed, sharding.replicated(mesh)),
    )
    split = sharding.batch_sharding(mesh, (16, 3))

    def put(batch):
        return {"x": jax.make_array_from_process_local_data(split, batch["x"])}

    folder = buckets.mirror(workdir) if "://" in workdir else workdir
    data: Any = Rows()
    with open_run(folder, config, {}) as run, jax.set_mesh(mesh):
        abstract = sharding.with_shardings(jax.eval_shape(new), placed)
        state = run.resume(abstract, jax.jit(new, out_shardings=placed), data)
        if int(state.step) < int(steps):
            update = Update(step, put)
            train_loop(update, state, {}, data, run=run, key=jax.random.key(0))


if __name__ == "__main__":
    runtime.configure_jax()
    main(*sys.argv[1:])
