"""What can be planned: the jitted programs of the commands, with shapes as arguments.

No data set, parameters or captions are read. What training measures of its data is
filled in, as it decides no shape.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import build, sampling, settings, sharding
from vdm_jax.codec import Latents
from vdm_jax.conditions.low_resolution import time_from_snr
from vdm_jax.conditions.text import NULL_TEXT
from vdm_jax.diffusion import samplers
from vdm_jax.distillation import losses
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling import batches
from vdm_jax.sampling.program import init_carry, run_steps
from vdm_jax.sampling.types import SamplingInputs
from vdm_jax.settings import section_dict
from vdm_jax.systems import control_video
from vdm_jax.training import step, trainer

MAX_TOKENS = {"sd": 77}  # of CLIP's text encoder
DEFAULT_MAX_TOKENS = 128  # of T5's in Imagen (Saharia et al. 2022)


@dataclasses.dataclass(frozen=True)
class Work:
    """What the chips are to do, all of them together.

    kind: of `KINDS`. config: complete; its batch size is that over all chips.
    system: "" or a system that samples by the model, of `num_frames` frames.
    """

    kind: str
    config: Any
    system: str = ""
    num_frames: int = 0

    @property
    def batch(self) -> int:
        """Clips or videos, over all chips."""
        section = self.config.sample if self.kind == "sample" else self.config.data
        return section.batch_size


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, its arguments as shapes with shardings, and their mesh.

    state: the arguments that stay on the chips from call to call; params: of them,
      those of the model.
    calls: how often it is called for the unit of the plan, which is a step of training,
      or all steps of sampling.
    on_one_chip: whether only the first chip runs it.
    """

    name: str
    function: Any
    args: tuple
    state: Any
    params: Params
    mesh: Mesh
    activation_rules: Any
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    calls: int = 1
    on_one_chip: bool = False

    def trace(self) -> Any:
        """Return the traced program."""
        rules = sharding.activation_rules(self.mesh, self.activation_rules)
        with jax.set_mesh(self.mesh), rules:
            return self.function.trace(*self.args, **self.options)

    def lower(self) -> Any:
        """Return the lowered program."""
        traced = self.trace()
        with jax.set_mesh(self.mesh):
            return traced.lower()


def complete(config: Any, batch: int, kind: str, mesh: dict[str, int]) -> Any:
    """Return a copy of a config with what a run fills in, for a batch and a mesh.

    Raises:
      UserError: a wrong value, or a config that cannot be planned.
    """
    config = copy.deepcopy(config).unlock()
    if config.get("task", "diffusion") != "diffusion":
        raise UserError(f"config.task={config.task!r}: plan.py plans diffusion models")
    if config.network.get("kind") is None:
        raise UserError(
            "the config is of the tuning of another model, whose workdir it reads: "
            "give --workdir, or the config of that model"
        )
    data = config.data
    data.mean = 0.0 if data.mean is None else data.mean
    data.variance = 1.0 if data.variance is None else data.variance
    if data.label_vocabulary is None:
        data.label_vocabulary = ()
    config.mesh.update(mesh)
    if batch and kind == "sample":
        config.sample.batch_size = batch
    elif batch:
        data.batch_size = batch
    settings.check_config(config, settings.TRAINING)
    return config


def with_control(config: Any) -> Any:
    """Return a config whose model has a ControlNet of its own size, if it has none.

    Raises:
      UserError: it is no image model of Stable Diffusion's kind.
    """
    config = copy.deepcopy(config).unlock()
    if "control" not in config:
        config.control = section_dict(settings.TRAINING["control"])
    config.control.kinds = ("edges",)  # for silhouettes the data must have masks
    build.build_model(config)
    return config


def make_programs(work: Work, mesh: Mesh) -> list[Program]:
    """Return the programs of a work on a mesh; the first is what takes the time."""
    return KINDS[work.kind](work, mesh)


def _training(work: Work, mesh: Mesh) -> list[Program]:
    """Return the update of train.py."""
    config = work.config
    model = build.build_model(config)
    loss_fn = step.make_loss(model, config.diffusion.loss_weighting)
    return [_update(config, model, config.train, loss_fn, mesh, {})]


def _distillation(work: Work, mesh: Mesh) -> list[Program]:
    """Return the update of a round of distill.py, the config being the teacher's."""
    config = work.config
    model = build.build_model(config)
    train = section_dict(settings.DISTILLATION["train"])
    train.steps = 1  # of the round, which decides the learning rate alone
    weighting = config.diffusion.loss_weighting
    clip_x = config.sample.clip_x if model.prediction_type == "eps" else 0.0
    loss_fn = losses.progressive_distillation_loss(model, weighting, False, clip_x)
    numbers = {"steps": np.int32(0), "updates": np.int32(0), "time_power": np.float32()}
    everywhere = sharding.replicated(mesh)
    aux: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((), number.dtype, sharding=everywhere)
        for name, number in numbers.items()
    }
    teacher = jax.eval_shape(model.init_params, jax.random.key(0))
    aux["teacher"] = _placed(teacher, mesh, config.mesh.param_rules)
    return [_update(config, model, train, loss_fn, mesh, aux)]


def _update(
    config: Any,
    model: DiffusionModel,
    train: Any,
    loss_fn: step.LossFn,
    mesh: Mesh,
    aux: dict[str, Any],
) -> Program:
    """Return an update of the parameters. train: its section, aux: its aux_params."""
    config = copy.copy(config)
    config.train = train
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    state = trainer.abstract_state(config, params, mesh)
    function = jax.jit(
        trainer.make_update(train, train, loss_fn),
        donate_argnums=0,
        out_shardings=trainer.update_shardings(state, mesh),
    )
    if codec := model.codec.param_shapes():
        aux = aux | {"codec": _placed(codec, mesh, config.mesh.param_rules)}
    shapes = trainer.batch_shapes(config, model, None, mesh, None)
    tokens = max_tokens(config)
    for name in {"text", "text_mask", *NULL_TEXT} & shapes.keys():
        shapes[name] = _with_tokens(shapes[name], tokens, name.endswith("mask"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Program(
        "training step", function, (state, aux, shapes, key), (state, aux),
        state.params, mesh, config.mesh.activation_rules,
    )  # fmt: skip


def max_tokens(config: Any) -> int:
    """Return the number of tokens of a text, of the longest that its encoder takes."""
    return MAX_TOKENS.get(config.network.kind, DEFAULT_MAX_TOKENS)


def _with_tokens(
    shape: jax.ShapeDtypeStruct, tokens: int, is_mask: bool
) -> jax.ShapeDtypeStruct:
    """Return the shape of text [..., tokens, dim], or of its mask, of so many."""
    axis = len(shape.shape) - (1 if is_mask else 2)
    sizes = (*shape.shape[:axis], tokens, *shape.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(sizes, shape.dtype, sharding=shape.sharding)


def _placed(tree: Any, mesh: Mesh, *rules: Any) -> Any:
    """Return shapes with the shardings of parameters."""
    return sharding.with_shardings(tree, sharding.state_shardings(mesh, tree, *rules))


def _sampling(work: Work, mesh: Mesh) -> list[Program]:
    """Return a step of the sampler, and the decoder of a model of latents.

    Steps of ControlVideo in which it interpolates frames are a program of their own.
    """
    config = work.config
    image_model = model = build.build_model(config)
    own = sampling.Settings.from_config(config.sample)
    run, wrap = sampling.Run(mesh=mesh, shared_noise=bool(work.system)), None
    if work.system:
        options = control_video.Options()
        wrap = control_video.smoother(model, own, options)
        model = control_video.video_model(model, work.num_frames, options)
    params = jax.eval_shape(image_model.init_params, jax.random.key(0))
    if codec := model.codec.param_shapes():
        params = {**params, "codec": codec}
    params = _placed(params, mesh)
    program = batches.make_program(model, own, run)
    dtype = jnp.result_type(float)
    table, weights = batches.step_arrays(program, own, 0, dtype)
    if any(name.startswith("control_") for name, _ in model.video_conditions):
        scales = np.ones((samplers.MAX_STEPS, len(model.video_conditions)), dtype)
        weights["control_scales"] = scales
    numbers = jax.ShapeDtypeStruct((work.batch,), np.int32)
    inputs = _inputs(model, work.batch, max_tokens(config), dtype)

    def prepare(videos, inputs, codec_params):
        seed = np.uint32(0)
        keys, carry = init_carry(videos, None, seed, seed, seed, program=program)
        t = np.asarray(time_from_snr(own.augmentation_snr))
        cond = batches.branch_conditions(
            program, SamplingInputs(inputs), keys, lambda a: a, t, dtype, codec_params
        )
        return keys, carry, cond

    with jax.set_mesh(mesh):
        prepared = jax.eval_shape(prepare, numbers, inputs, params.get("codec"))
    keys, carry, (cond, uncond) = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.batch_sharding(mesh, leaf.shape)
        ),
        prepared,
    )
    zero = np.int32(0)
    columns = samplers.pad_table(table, dtype)
    args = params, (cond, uncond, None), keys, carry, columns, zero, zero, weights
    smoothed = len(wrap.steps) if wrap else 0
    main = Program(
        "sampling step", run_steps, args, params, params, mesh,
        sharding.ACTIVATION_RULES, {"program": program}, own.steps - smoothed,
    )  # fmt: skip
    others = _decoder(model, params, work.batch, mesh)
    if wrap:
        wrapped = {"program": dataclasses.replace(program, wrap=wrap)}
        name = "step with interpolation"
        others.insert(
            0, dataclasses.replace(main, name=name, options=wrapped, calls=smoothed)
        )
    return [main, *others]


def _inputs(
    model: DiffusionModel, batch: int, tokens: int, dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the conditions of a batch that sampling is given, as shapes."""
    null = model.null_conditions((1,))
    shapes = {
        name: jax.ShapeDtypeStruct((batch, *null[name].shape[1:]), null[name].dtype)
        for name in model.batch_arrays
    }
    for name in {"text", "text_mask", *NULL_TEXT} & shapes.keys():
        shapes[name] = _with_tokens(shapes[name], tokens, name.endswith("mask"))
    for name, condition in model.video_conditions:
        size = (batch, *condition.input_shape)
        shapes[name] = jax.ShapeDtypeStruct(size, dtype)
    return shapes


def _decoder(
    model: DiffusionModel, params: Params, batch: int, mesh: Mesh
) -> list[Program]:
    """Return the decoder of a chunk of frames, which runs on one chip; [] without."""
    if "codec" not in params:
        return []
    one = Mesh(mesh.devices.reshape(-1)[:1], ("chip",))
    placed = sharding.replicated(one)
    z = jax.ShapeDtypeStruct((1, *model.shape), np.float32)
    chunk = model.shape[0]  # a causal autoencoder has a loop over them
    if isinstance(model.codec, Latents):
        chunk = min(chunk, model.codec.autoencoder.chunk_of_z(z))
    z = jax.ShapeDtypeStruct((1, chunk, *model.shape[1:]), np.float32, sharding=placed)
    codec = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        params["codec"],
    )
    function = jax.jit(model.codec.decode)
    calls = batch * -(-model.shape[0] // chunk)
    return [
        Program("decoder", function, (z, codec), codec, codec, one, (), {}, calls, True)
    ]


# --work -> its programs.
KINDS: dict[str, Callable[[Work, Mesh], list[Program]]] = {
    "train": _training,
    "sample": _sampling,
    "distill": _distillation,
}
