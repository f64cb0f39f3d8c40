"""What training and distillation share: a state on a mesh and its compiled update."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import sharding
from vdm_jax.data import pipeline
from vdm_jax.data.source import Source
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.training.captions import CaptionEmbeddings, add_text
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.run import Run
from vdm_jax.training.state import TrainState
from vdm_jax.training.step import (
    LossFn,
    first_non_finite,
    init_state,
    make_step,
    stop_frozen_gradients,
)
from vdm_jax.training.train_loop import Update


class Trainer:
    """Places the state and the batches of a model on a mesh and compiles its updates.

    Args:
      config: complete. Seed, number of steps and learning rate are not read from it,
        but from the config of each run.
      captions: None for a model that is not conditioned on text.
      init_params: key -> new parameters; by default those of the model.

    Attributes:
      abstract_state: a TrainState of shapes with shardings.
      init_state: jitted; parameters -> state of step 0. The parameters are copied, so
        that the state can be donated while they stay valid.
      batch_shapes: name -> shape of the arrays of a batch, over all processes.
    """

    def __init__(
        self,
        config: Any,
        model: DiffusionModel,
        source: Source,
        captions: CaptionEmbeddings | None,
        mesh: Mesh,
        init_params: Callable[[jax.Array], Params] | None = None,
    ):
        self.config, self.model, self.mesh = config, model, mesh
        self.source, self.captions = source, captions
        self.optimizer = make_optimizer(config.train)
        key = jax.random.key(0)
        state = jax.eval_shape(
            lambda: self._new_state((init_params or model.init_params)(key))
        )
        shardings = sharding.state_shardings(mesh, state, config.mesh.param_rules)
        self.abstract_state: TrainState = sharding.with_shardings(state, shardings)
        self.init_state = jax.jit(self._new_state, out_shardings=shardings)
        self.batch_shapes = batch_shapes(config, model, mesh, captions)

    def _new_state(self, params: Params) -> TrainState:
        params = jax.tree.map(jnp.copy, params)
        return init_state(params, self.optimizer, self.config.train.ema_decay > 0)

    @property
    def state_bytes(self) -> int:
        """Size of parameters, average and moments, over all processes."""
        leaves = jax.tree.leaves(self.abstract_state)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def fingerprint(self, config: Any) -> dict[str, Any]:
        """Return what identifies the stream of batches that a config describes."""
        fingerprint = pipeline.fingerprint(config, self.source)
        if self.captions is not None:
            fingerprint["text"] = self.captions.digest
        return fingerprint

    def batches(self, config: Any):
        """Open this process's part of the stream of batches of a config."""
        return pipeline.train_batches(
            config, self.source, jax.process_index(), jax.process_count()
        )

    def put_batch(self, batch: pipeline.Batch) -> dict[str, jax.Array]:
        """Add the text of the captions and place the arrays on the devices."""
        batch = add_text(batch, self.captions)
        return {
            name: jax.make_array_from_process_local_data(shape.sharding, batch[name])
            for name, shape in self.batch_shapes.items()
        }

    def compile_update(
        self,
        run: Run,
        loss_fn: LossFn,
        lr_fn: Callable[..., jax.Array],
        aux_params: Any,
        key: jax.Array,
    ) -> Update:
        """Compile an update that donates its state, and log what it takes.

        lr_fn: (step, aux_params) -> learning rate.
        """
        trainable = self.config.train.trainable
        step = make_step(
            stop_frozen_gradients(loss_fn, trainable),
            self.optimizer,
            lr_fn,
            self.config.train.ema_decay,
            self.config.train.grad_accum_steps,
        )
        state = self.abstract_state
        shardings = (
            jax.tree.map(lambda leaf: leaf.sharding, state),
            sharding.replicated(self.mesh),
        )
        started = time.perf_counter()
        jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        compiled = jitted.lower(state, aux_params, self.batch_shapes, key).compile()
        seconds = time.perf_counter() - started
        run.logger.info(f"compiled the training step in {seconds:.1f} s")
        self._log_sizes(run, compiled)
        return Update(
            compiled, self.put_batch, functools.partial(first_non_finite, loss_fn)
        )

    def _log_sizes(self, run: Run, compiled: jax.stages.Compiled) -> None:
        """Log devices, parameters, clips and memory before the first step."""
        params = jax.tree.leaves(self.abstract_state.params)
        mesh, source, log = self.mesh, self.source, run.logger.info
        clips, held_out = len(source.split(False)), len(source.split(True))
        log(
            f"{mesh.size} x {mesh.devices.flat[0].device_kind} in "
            f"{jax.process_count()} process(es), mesh {dict(mesh.shape)}"
        )
        count = sum(leaf.size for leaf in params)
        log(f"{count:,} parameters; videos of {self.model.video_shape}")
        log(f"{source.name}: {clips:,} clips for training, {held_out:,} held out")
        report = getattr(source, "report", None)  # of a folder: files kept and skipped
        for line in report.summary_lines() if report else ():
            log(line)
        memory = compiled.memory_analysis()
        if memory is not None:
            peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
            log(f"{peak / 2**20:,.0f} MiB per device at the peak of a step")


def batch_shapes(
    config: Any, model: DiffusionModel, mesh: Mesh, captions: CaptionEmbeddings | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the arrays of a batch that go to the devices, over all processes."""
    b, images = config.data.batch_size, config.data.joint_image_frames
    frames = model.video_shape[0] + images
    shapes: dict[str, tuple] = {
        "video": ((b, frames, *model.video_shape[1:]), np.uint8)
    }
    # Independent images behind a video have conditions of their own.
    n = (b, 1 + images) if images else (b,)
    if images:
        shapes["frame_mask"] = ((b, frames), np.bool_)
    for name, array in model.null_conditions(n).items():
        if name in model.batch_arrays:
            shapes[name] = array.shape, array.dtype
    if captions is not None:
        shapes |= captions.shapes(n)
    split = sharding.batch_sharding(mesh, config.mesh.activation_rules)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }
