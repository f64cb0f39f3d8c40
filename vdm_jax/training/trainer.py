"""What training and distillation share: a state on a mesh, its update, and its run."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from vdm_jax import agreement, data, sharding
from vdm_jax.data import mixed_sizes, packing, pipeline
from vdm_jax.data.source import Source
from vdm_jax.data.stored_latents import StoredLatents
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.initialization import Initializer, evaluate
from vdm_jax.memory import check_memory
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.training import step
from vdm_jax.training.captions import CaptionEmbeddings, add_text
from vdm_jax.training.exported import compile_step
from vdm_jax.training.optimizer import learning_rate, make_optimizer
from vdm_jax.training.run import CONTINUE_ELSEWHERE, OpenRun, open_run
from vdm_jax.training.step import LossFn, TrainState
from vdm_jax.training.stop import PreemptionSignal
from vdm_jax.training.train_loop import Observer, Update, train_loop


class Trainer:
    """Places the state and the batches of a model on a mesh, and trains its runs.

    Args:
      config: complete. Seed, number of steps and learning rate are not read from it,
        but from the config of each run.
      captions: None for a model that is not conditioned on text.
      init_params: key -> new parameters; by default those of the model.

    Attributes:
      sources: the data set at each size that is trained on; the first is `source`.
      abstract_state: a TrainState of shapes with shardings.
      batch_shapes: of each size of batches that take turns (one but with
        mixed_sizes.buffer_tokens=0), name -> shape of the arrays over all processes.
      rows: of each of them, those that this process loads.
      batch_codec: {"codec": the parameters that z of a batch needs}; {} where the codec
        has none, and where batches are of stored latents.

    Raises:
      UserError: the state does not fit into memory, or no rule places a parameter.
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
        self.sources = data.open_sizes(config, source)
        self._initializer = Initializer(init_params or model.init_params)
        self.batch_shapes = batch_shapes(config, model, source, mesh, captions)
        clips = [next(iter(shapes.values())) for shapes in self.batch_shapes]
        self.rows = [sharding.process_rows(a.sharding, a.shape[0]) for a in clips]
        state = abstract_state(config, self._initializer.shapes, mesh)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        check_memory(size / jax.process_count(), "parameters and optimiser")
        self.abstract_state = state
        stored = isinstance(source, StoredLatents)
        self.batch_codec = {} if stored else self._load_codec()

    def with_codec(self, params: Params) -> Params:
        """Return parameters to sample with: those of the codec too, if it has any.

        They are read here where batches are of stored latents.
        """
        return {**params, **(self.batch_codec or self._load_codec())}

    def _load_codec(self) -> Params:
        """Return {"codec": its parameters} on the devices, {} where it has none."""
        params = self.model.codec.load_params()
        codec = {"codec": params} if params else {}
        shardings = sharding.state_shardings(
            self.mesh, codec, self.config.mesh.param_rules
        )
        return jax.device_put(codec, shardings)

    def init_state(self, params: Params) -> TrainState:
        """Return the state of step 0.

        The parameters are copied, so that it can be donated while they stay valid.
        """
        state = evaluate(functools.partial(new_state, self.config), params)
        return jax.tree.map(
            lambda leaf, shape: _copy_to(leaf, shape.sharding),
            state,
            self.abstract_state,
        )

    def new_params(self, seed: int) -> Params:
        """Return new parameters on the host, which all processes have in common."""
        params = self._initializer.draw(samplers.key_from_seed(seed))
        agreement.check({"new parameters": agreement.arrays_checksum(params)})
        return params

    @contextlib.contextmanager
    def open_run(
        self,
        workdir: Path,
        config: Any,
        stop: PreemptionSignal | None = None,
        advice: str = CONTINUE_ELSEWHERE,
    ) -> Iterator[OpenRun]:
        """Open a run of this model; `training.run.open_run` has the arguments."""
        fingerprint = pipeline.fingerprint(config, self.source)
        if "mixed_sizes" in config:
            digests = (pipeline.identity(source)["digest"] for source in self.sources)
            fingerprint["sizes"] = ", ".join(digests)
        if self.captions is not None:
            # It identifies the captions and the weights of their encoder.
            fingerprint["text"] = self.captions.metadata["keys"]
        if codec := self.model.codec.fingerprint():
            fingerprint["codec"] = codec
        state = self.abstract_state
        with (
            open_run(workdir, config, fingerprint, stop, state, advice) as run,
            jax.set_mesh(self.mesh),
            sharding.activation_rules(self.mesh, self.config.mesh.activation_rules),
        ):
            yield run

    def train(
        self,
        run: OpenRun,
        init: Callable[[], TrainState],
        make_update: Callable[[], Update],
        make_observers: Callable[[], Sequence[Observer]] = tuple,
        aux_params: Any = None,
    ) -> TrainState:
        """Train a run to the last step of its config, from its newest checkpoint.

        Args:
          init: returns the state of step 0, for a run without checkpoints.
          make_update, make_observers: called only if steps are left, so that a run that
            has ended compiles nothing.
          aux_params: see `train_loop`.

        Raises:
          As `train_loop` and `OpenRun.resume`.
        """
        config = run.config
        batches = data.train_batches(config, self.sources, self.rows)
        with contextlib.closing(batches):
            state = run.resume(self.abstract_state, init, batches)
            done, num_steps = int(state.step), config.train.steps
            if done >= num_steps:
                run.logger.info(f"nothing to train: step {done} of {num_steps} reached")
                return state
            return train_loop(
                make_update(),
                state,
                {**self.batch_codec, **(aux_params or {})},
                batches,
                run=run,
                key=samplers.key_from_seed(config.seed),
                observers=make_observers(),
            )

    def put_batch(self, batch: pipeline.Batch) -> dict[str, jax.Array]:
        """Add the text of the captions and place the arrays on the devices."""
        batch, size = add_text(batch, self.captions), self._size_of(batch)
        return {
            name: sharding.place_rows(batch[name], shape, self.rows[size])
            for name, shape in self.batch_shapes[size].items()
        }

    def _size_of(self, batch: Mapping[str, Any]) -> int:
        """Return which of the sizes that take turns a batch has."""
        clips = next(iter(self.batch_shapes[0]))
        sizes = [shapes[clips].shape[1:] for shapes in self.batch_shapes]
        return sizes.index(batch[clips].shape[1:])

    def compile_update(
        self, run: OpenRun, loss_fn: LossFn, aux_params: Any, identity: Any = None
    ) -> Update:
        """Compile an update that donates its state, and log what it takes.

        It is one program for each size of batches.

        Args:
          aux_params: of `train`. The learning rate decays over aux_params["updates"]
            steps, or those of the run's config.
          identity: of the loss, for `compile_step`.
        """
        state = self.abstract_state
        update = make_update(self.config.train, run.config.train, loss_fn)
        shardings = update_shardings(state, self.mesh)
        aux_params = {**self.batch_codec, **aux_params}
        started = time.perf_counter()
        key = samplers.key_from_seed(0)
        programs = [
            compile_step(
                update, state, aux_params, shapes, key, out_shardings=shardings,
                identity=identity,
            )
            for shapes in self.batch_shapes
        ]  # fmt: skip
        seconds = time.perf_counter() - started
        sizes = f" for {n} sizes" if (n := len(programs)) > 1 else ""
        run.logger.info(f"compiled the training step{sizes} in {seconds:.1f} s")
        self._log_sizes(run, [program.compiled for program in programs])

        def run_step(state, aux_params, batch, key):
            return programs[self._size_of(batch)](state, aux_params, batch, key)

        return Update(
            run_step, self.put_batch, functools.partial(step.diagnose, loss_fn)
        )

    def _log_sizes(self, run: OpenRun, programs: list[jax.stages.Compiled]) -> None:
        """Log devices, parameters, clips and memory before the first step."""
        params = jax.tree.leaves(self.abstract_state.params)
        mesh = self.mesh
        source = self.source
        log = run.logger.info
        clips, held_out = len(source.split(False)), len(source.split(True))
        log(
            f"{mesh.size} x {mesh.devices.flat[0].device_kind} in "
            f"{jax.process_count()} process(es), mesh {sharding.describe(mesh)}"
        )
        count = sum(leaf.size for leaf in params)
        log(f"{count:,} parameters; videos of {self.model.video_shape}")
        log(f"{source.name}: {clips:,} clips for training, {held_out:,} held out")
        if "mixed_sizes" in self.config and self.config.mixed_sizes.buffer_tokens:
            log(packing.layout(self.config).describe())
        report = getattr(source, "report", None)  # of a folder: files kept and skipped
        for line in report.summary_lines() if report else ():
            log(line)
        peaks = [_peak(memory) for p in programs if (memory := p.memory_analysis())]
        if peaks:
            log(f"{max(peaks) / 2**20:,.0f} MiB per device at the peak of a step")


def _peak(memory: Any) -> int:
    """Return the bytes of a program's memory analysis that are in use at once."""
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return peak + memory.output_size_in_bytes - memory.alias_size_in_bytes


def new_state(config: Any, params: Params) -> TrainState:
    """Return the state of step 0."""
    ema = config.train.ema_decay > 0
    return step.init_state(params, make_optimizer(config.train), ema)


def abstract_state(config: Any, params: Params, mesh: Mesh) -> TrainState:
    """Return the state of a run as shapes with shardings. params: their shapes."""
    state = jax.eval_shape(functools.partial(new_state, config), params)
    shardings = sharding.state_shardings(mesh, state, config.mesh.param_rules)
    return sharding.with_shardings(state, shardings)


def update_shardings(state: TrainState, mesh: Mesh) -> tuple[Any, NamedSharding]:
    """Return the shardings of an update's results: its state, and its metrics.

    state: of `abstract_state`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return shardings, sharding.replicated(mesh)


def make_update(config: Any, schedule: Any, loss_fn: LossFn) -> Callable:
    """Return the update of a run: (state, aux_params, batch, key) -> (state, metrics).

    config, schedule: sections train; of the latter the learning rate is read, which
      decays over aux_params["updates"] steps, or its own.
    """
    lr_schedule = learning_rate(schedule)

    def lr_fn(step, aux_params) -> jax.Array:
        return lr_schedule(step, aux_params.get("updates", schedule.steps))

    return step.make_step(
        step.stop_frozen_gradients(loss_fn, config.trainable),
        make_optimizer(config),
        lr_fn,
        config.ema_decay,
        config.grad_accum_steps,
    )


def _copy_to(array: Any, placement: Sharding) -> jax.Array:
    """Return a copy of an array on the devices.

    array: of NumPy, the same in all processes, or on devices already.
    """
    if isinstance(array, jax.Array):
        return jax.device_put(array, placement, may_alias=False)
    return jax.make_array_from_callback(array.shape, placement, lambda i: array[i])


def batch_shapes(
    config: Any,
    model: DiffusionModel,
    source: Source | None,
    mesh: Mesh,
    captions: CaptionEmbeddings | None,
) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Return the arrays of a batch that go to the devices, over all processes.

    They are of each size of batches that take turns, one if all have one size.

    source: None for videos of the model's size, wherever they come from.

    Raises:
      UserError: a condition is made of videos, and the source has latents only.
    """
    return [
        _shapes_at_size(own, model, source, mesh, captions)
        for own in mixed_sizes.in_turn(config)
    ]


def _shapes_at_size(
    config: Any,
    model: DiffusionModel,
    source: Source | None,
    mesh: Mesh,
    captions: CaptionEmbeddings | None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return `batch_shapes` of one size, that of the config."""
    video = config.video
    shape = video.frames, video.height, video.width, video.channels
    model = dataclasses.replace(model, video_shape=shape)
    b, images = config.data.batch_size, config.data.joint_image_frames
    frames = model.video_shape[0] + images
    clips = {"name": "video", "channels": model.video_shape[3], "dtype": np.uint8}
    size = model.video_shape[1:3]
    is_packed = "mixed_sizes" in config
    # A plan has no source: what is packed of an autoencoder are stored latents.
    planned = is_packed and source is None and config.codec.kind != "identity"
    if isinstance(source, StoredLatents) or planned:
        if names := ", ".join(dict(model.video_conditions)):
            raise UserError(
                f"the model is conditioned on {names}, which is made of videos: set "
                "config.data.path to the data set, and latents_dir to ''"
            )
        _, *size, channels = model.shape
        dtype = getattr(source, "dtype", np.float16)
        clips = {"name": "latents", "channels": 2 * channels, "dtype": dtype}
    shapes: dict[str, tuple]
    if is_packed:
        layout = packing.layout(config)
        shapes, n = packing.shapes(layout, **clips), (b, layout.places)
    else:
        array = (b, frames, *size, clips["channels"]), clips["dtype"]
        # Independent images behind a video have conditions of their own.
        shapes, n = {clips["name"]: array}, (b, 1 + images) if images else (b,)
    if images:
        shapes["frame_mask"] = ((b, frames), np.bool_)
    for name, array in model.null_conditions((1, *n[1:])).items():
        if name in model.batch_arrays:
            shapes[name] = (b, *array.shape[1:]), array.dtype
    for _, condition in model.video_conditions:
        for name, (shape, dtype) in condition.reads.items():
            shapes[name] = (b, *shape), dtype
    if captions is not None:
        shapes |= captions.shapes(n)
    rules = config.mesh.activation_rules
    return {
        name: jax.ShapeDtypeStruct(
            shape, dtype, sharding=sharding.batch_sharding(mesh, shape, rules)
        )
        for name, (shape, dtype) in shapes.items()
    }
