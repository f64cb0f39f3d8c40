"""A model: a network, what it is told, its schedule and scaling, built from a config.

The one way in for every verb: `build(config)` for a new model, `load(workdir)` for a
trained one. ConfigDicts stop here; what leaves is frozen dataclasses and Linen.
"""

import dataclasses
import types
import typing
import zlib
from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import agreement, files, sharding
from vdm_jax.checkpoint import MANIFEST, Checkpoints
from vdm_jax.conditioning import Cond, Conditioner
from vdm_jax.diffusion import process, schedules
from vdm_jax.diffusion.process import Array, Denoiser, Prediction, expand
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.networks import unet3d
from vdm_jax.stages import FILLS, KINDS, Stage
from vdm_jax.weights import params as params_file

Params = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """Immutable; parameters are passed to its functions and never held.

    shape: (frames, height, width, channels) of a video. mean, variance: of the data in
    [-1, 1], for the preconditioning; 0 and 1 make it the plain network of the papers.
    guidance_range: lowest and highest weight w of (1 + w) conditional - w unconditional
    that a guided student is told, in place of a second branch; () for all others.
    """

    network: unet3d.UNet3D
    conditioner: Conditioner
    schedule: schedules.Schedule  # of sampling
    training_schedule: schedules.Schedule
    shape: tuple[int, int, int, int]
    attributes: tuple[tuple[str, ...], ...] = ()
    output: str = "v"
    mean: float = 0.0
    variance: float = 1.0
    label_drop: float = 0.0
    attribute_drop: float = 0.0
    text_width: int = 0
    text_drop: float = 0.0
    guidance_range: tuple[float, ...] = ()
    stage: Stage | None = None  # of a cascade, for models that are given a video

    def encode(self, video: Array) -> Array:
        """uint8 video [b, f, h, w, c] -> what is diffused, in [-1, 1]."""
        return video.astype(jnp.result_type(float)) / 127.5 - 1.0

    def conditions(self, batch: dict[str, Array]) -> Cond:
        """The raw conditions in a batch, all kept."""
        cond: Cond = {"keep": {}}
        if "frame_mask" in batch:
            cond["frame_mask"] = batch["frame_mask"]
        if self.attributes:
            cond["label"] = batch["label"]
            cond["keep"]["label"] = jnp.ones(batch["label"].shape[:-1], bool)
        if self.text_width:
            cond |= {"text": batch["text"], "text_mask": batch["text_mask"]}
            cond["keep"]["text"] = jnp.ones(batch["text"].shape[:-2], bool)
        return cond

    def example(
        self, batch: dict[str, Array], key: Array, dropping: bool = True
    ) -> tuple[Array, Cond]:
        """A batch as training has it: videos to diffuse, and what is told of them."""
        x, cond = self.encode(batch["video"]), self.conditions(batch)
        if self.stage is not None:
            # `drop` splits this key, and fold_in(key, i) is split(key)[i]: another.
            x, low = self.stage.example(x, jax.random.fold_in(key, 2))
            cond |= low
        return x, self.drop(cond, key) if dropping else cond

    def drop(self, cond: Cond, key: Array) -> Cond:
        """Training's random dropping: whole conditions, and single attributes."""
        shares = {"label": self.label_drop, "text": self.text_drop}
        key, single = jax.random.split(key)
        keep = {
            name: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - share, old.shape)
            for i, (name, share) in enumerate(shares.items())
            if (old := cond["keep"].get(name)) is not None
        }
        cond = {**cond, "keep": keep}
        if "label" in cond:
            label = cond["label"]
            lost = jax.random.bernoulli(single, self.attribute_drop, label.shape)
            cond["label"] = jnp.where(lost, -1, label)
        return cond

    @property
    def guidable(self) -> bool:
        """Whether training dropped every condition that guidance would drop."""
        drops = [self.label_drop] * bool(self.attributes)
        drops += [self.text_drop] * bool(self.text_width)
        return bool(drops) and all(drop > 0 for drop in drops)

    def tell(self, cond: Cond, weight: Array) -> Cond:
        """With the guidance weight [b] that a guided student is told."""
        return {**cond, "guidance": weight}

    def null(self, cond: Cond) -> Cond:
        """The unconditional twin: every keep mask false, the rest shared."""
        return {**cond, "keep": jax.tree.map(jnp.zeros_like, cond["keep"])}

    def fresh(self, key: Array) -> Params:
        """New parameters, traceable: for eval_shape and for `init`."""
        dtype = jnp.result_type(float)
        batch = {
            "label": jnp.zeros((1, len(self.attributes)), jnp.int32),
            "text": jnp.zeros((1, 1, self.text_width), dtype),
            "text_mask": jnp.ones((1, 1), bool),
        }
        cond = self.conditions(batch)
        if self.stage is not None:
            cond |= self.stage.empty(dtype)
        if self.guidance_range:
            cond = self.tell(cond, jnp.zeros(1, dtype))
        told = (jnp.zeros(1, dtype), self.shape[0], cond)
        first, second = jax.random.split(key)
        inputs, conditioner = self.conditioner.init_with_output(first, *told)
        z = jnp.zeros((1, *self.shape), dtype)
        network = self.network.init(second, z, inputs)
        return {"conditioner": conditioner["params"], "network": network["params"]}

    def init(self, key: Array) -> Params:
        """New parameters. Compiled without optimisation, since it runs once."""
        quick: Any = {"xla_backend_optimization_level": "0"}
        return jax.jit(self.fresh).lower(key).compile(quick)(key)

    def denoiser(self, params: Params, dropout_key: Array | None = None) -> Denoiser:
        """`denoise(z, step, cond)` with these parameters; dropout only with a key.

        Preconditioning, for v outputs: v = E[v | z] for data of this mean and variance
        if it were Gaussian, plus the residual's standard deviation times the network,
        which sees z standardised (after Karras et al. 2022, section 5).
        """
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None

        def denoise(z: Array, step: schedules.Step, cond: Cond) -> Prediction:
            batch, frames = z.shape[:2]
            logsnr = jnp.asarray(step.logsnr, z.dtype)
            if logsnr.ndim == 0:
                logsnr = jnp.broadcast_to(logsnr, (batch,))
            inputs = self.conditioner.apply(
                {"params": params["conditioner"]}, logsnr, frames, cond
            )
            alpha, sigma = (expand(jnp.asarray(a, z.dtype), z) for a in step[2:4])
            spread = alpha**2 * self.variance + sigma**2
            centred = z - alpha * self.mean
            output: Any = self.network.apply(
                {"params": params["network"]},
                centred / jnp.sqrt(spread),
                inputs,
                train,
                rngs=rngs,
            )
            output = output.astype(z.dtype)
            if self.output == "v":
                linear = alpha * sigma * (1 - self.variance) / spread * centred
                scale = jnp.sqrt(self.variance / spread)
                output = linear - sigma * self.mean + scale * output
            return process.PREDICTIONS[self.output](output, z, step)

        return denoise


def network_spec(config: Any) -> unet3d.UNetSpec:
    """The U-Net's frozen spec from its plain data in the config."""
    fields = config.network.to_dict()
    levels = tuple(
        unet3d.LevelSpec(**{**level, "mixing": tuple(level["mixing"])})
        for level in fields.pop("levels")
    )
    fields["middle"] = tuple(fields["middle"])
    fields["out_channels"] = config.video.channels
    return unet3d.UNetSpec(levels=levels, **fields)


def make_schedule(diffusion: Any) -> schedules.Schedule:
    """The schedule that a config's diffusion section names, with its range."""
    name, known = diffusion.schedule, schedules.SCHEDULES
    if name not in known:
        raise UserError(f"diffusion.schedule={name!r}: one of {', '.join(known)}")
    takes = {field.name for field in dataclasses.fields(known[name])}
    for field in ("shift", "noise_shift"):
        if diffusion[field] and field not in takes:
            raise UserError(
                f"diffusion.{field}={diffusion[field]}: schedule {name!r} has none; "
                "set it to 0"
            )
    if diffusion.train_shifts and name not in ("cosine", "flow"):
        raise UserError(
            f"diffusion.train_shifts moves schedule 'cosine' or 'flow', not {name!r}: "
            "set it to ()"
        )
    if diffusion.output == "eps" and diffusion.logsnr_min < -20:
        raise UserError(
            f"diffusion.logsnr_min={diffusion.logsnr_min} with an eps output, which "
            "says nothing of the video where no signal is left: -20 or more, or "
            "diffusion.output='v'"
        )
    fields = ("logsnr_min", "logsnr_max", "shift", "noise_shift")
    return schedules.named(name, **{field: diffusion[field] for field in fields})


def make_stage(config: Any) -> Stage | None:
    """The super-resolution stage that a config describes, None for a base model."""
    asked, video = config.stage, config.video
    if asked.kind == "base":
        return None
    if asked.kind not in KINDS:
        raise UserError(f"stage.kind={asked.kind!r}: one of base, {', '.join(KINDS)}")
    if asked.fill not in FILLS:
        raise UserError(f"stage.fill={asked.fill!r}: one of {', '.join(FILLS)}")
    if asked.kind == "ssr" and asked.fill != "repeat":
        raise UserError(f"stage.fill={asked.fill!r} is of stage.kind='tsr'")
    if asked.factor < 2:
        raise UserError(f"stage.factor={asked.factor}: 2 or more")
    times = tuple(asked.noise)
    if len(times) != 2 or not 0 <= times[0] <= times[1] <= 1:
        raise UserError(f"stage.noise={times}: two times from 0 to 1, in order")
    names = ("frames",) if asked.kind == "tsr" else ("height", "width")
    for name in names:
        if video[name] % asked.factor:
            least = max(round(video[name] / asked.factor), 1) * asked.factor
            raise UserError(
                f"video.{name}={video[name]} must divide by stage.factor="
                f"{asked.factor}: the nearest that does is {least}"
            )
    if len(asked.crop) not in (0, 2):
        raise UserError(
            f"stage.crop={tuple(asked.crop)}: (height, width), or () for none"
        )
    for side, name in zip(asked.crop, ("height", "width"), strict=False):
        if side % asked.factor or not 0 < side <= video[name]:
            raise UserError(
                f"stage.crop={tuple(asked.crop)}: a {name} of at most {video[name]} "
                f"that divides by stage.factor={asked.factor}"
            )
    return Stage(
        kind=asked.kind,
        factor=asked.factor,
        shape=(video.frames, video.height, video.width, video.channels),
        fill=asked.fill,
        noise=(float(times[0]), float(times[1])),
        crop=tuple(asked.crop),
    )


def build(config: Any) -> Model:
    """The model a config describes; raises UserError for sizes that do not fit."""
    video, diffusion, told = config.video, config.diffusion, config.conditioning
    if diffusion.output not in process.PREDICTIONS:
        raise UserError(
            f"diffusion.output={diffusion.output!r}: one of "
            + ", ".join(process.PREDICTIONS)
        )
    if diffusion.precondition and diffusion.output != "v":
        raise UserError(
            f"diffusion.precondition is for output 'v', not {diffusion.output!r}: "
            "set diffusion.precondition=False"
        )
    spec = network_spec(config)
    unet3d.check(spec, video.height, video.width)
    attributes = tuple(tuple(names) for names in config.data.attributes or ())
    schedule = make_schedule(diffusion)
    turns = tuple(
        dataclasses.replace(schedule, shift=shift)  # type: ignore[call-arg]
        for shift in diffusion.train_shifts
    )
    guidance_range = tuple(told.guidance_range)
    stage = make_stage(config)
    if stage is not None and stage.crop:
        unet3d.check(spec, *stage.crop)
    scaling = {}
    if diffusion.precondition:
        scaling = {"mean": config.data.mean, "variance": config.data.variance}
    return Model(
        network=unet3d.UNet3D(spec),
        conditioner=Conditioner(
            width=told.width,
            layers=told.layers,
            cardinalities=tuple(len(names) for names in attributes),
            frame_position=told.frame_position,
            text=told.text_width > 0,
            guidance=guidance_range,
            low=stage is not None,
        ),
        schedule=schedule,
        training_schedule=schedules.TakingTurns(turns) if turns else schedule,
        shape=(video.frames, video.height, video.width, video.channels),
        attributes=attributes,
        output=diffusion.output,
        label_drop=told.label_drop,
        attribute_drop=told.attribute_drop,
        text_width=told.text_width,
        text_drop=told.text_drop,
        guidance_range=guidance_range,
        stage=stage,
        **scaling,
    )


def odd_field(made: Any) -> str:
    """Name a field of a dataclass, or of one in it, that is not of its type; or ""."""
    for field in dataclasses.fields(made):
        value = getattr(made, field.name, None)
        if not fits(value, field.type):
            return f"{field.name}={value!r:.40}"
        inner = value if isinstance(value, tuple) else (value,)
        for each in filter(dataclasses.is_dataclass, inner):
            if odd := odd_field(each):
                return odd
    return ""


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type, of those that a config can hold."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if typing.get_origin(kind) is tuple:
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if kind is float:  # NaN compares with nothing, so no range would hold it
        return type(value) in (int, float) and value == value
    if kind in (int, str, bool, types.NoneType):
        return type(value) is kind
    return True


# Fields younger than some runs, with what those did before there was a choice.
LATER = {
    "conditioning": {"guidance_range": [], "encoder": "", "encoder_sha256": ""},
    "data": {"unseen": 0, "embeddings": ""},
    "diffusion": {"schedule": "cosine", "noise_shift": 0.0, "student_steps": 0},
    "stage": {
        "kind": "base",
        "factor": 1,
        "fill": "repeat",
        "noise": [0.0, 1.0],
        "crop": [],
    },
    "train": {"decay": "cosine"},
}
GONE = {"network": "attention"}  # a choice between two names of one program
SECTIONS = {"video", "data", "network", "conditioning", "diffusion", "sample"}


# Fields of a config that are paths of this machine, "" for none.
PATHS = (
    "init_from",
    "data.path",
    "data.embeddings",
    "data.cache_dir",
    "conditioning.encoder",
)


def find_paths(config: Any) -> None:
    """Make the paths of a config such as the system takes; UserError if one is none."""
    for field in PATHS:
        section, _, name = field.rpartition(".")
        part = config.get(section, config)
        if part.get(name):
            if not isinstance(part[name], str):
                raise UserError(f"config.{field}={part[name]!r:.40}: not a path")
            part[name] = str(user_path(part[name], f"config.{field}"))


def shared(config: Any) -> dict[str, Any]:
    """What of a config all processes of a run must have: all but paths.

    What is found there is compared by its content.
    """
    fields = config.to_dict()
    for field in PATHS:
        section, _, name = field.rpartition(".")
        fields.get(section, fields if not section else {}).pop(name, None)
    return {"config": fields}


# A distillation's workdir: what was asked, and its finished rounds.
DISTILLATION, STUDENTS = "distill.json", "rounds.json"
ROW = {
    "steps": int, "updates": int, "loss": float | int, "metric": float | int,
    "seconds": float | int, "path": str,
}  # fmt: skip


def resolve(workdir: Path) -> Path:
    """The workdir itself; of a distillation, that of its last student."""
    if not (workdir / DISTILLATION).is_file():
        return workdir
    return workdir / students(workdir)[-1]["path"]


def students(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a distillation's finished rounds, of which there is one at least."""
    path = workdir / STUDENTS
    rows = read_json(path, list) if path.is_file() else []
    if not all(
        isinstance(row, dict)
        and all(isinstance(row.get(name), kind) for name, kind in ROW.items())
        for row in rows
    ):
        raise UserError(f"{path} is not what distill.py wrote; put back a copy")
    if not rows:
        raise UserError(
            f"{workdir} has no student yet: its first round is not finished"
        )
    return rows


def read_json(path: Path, kind: type = object) -> Any:
    """A file of a run; UserError if it is not JSON of this kind, or cannot be read."""
    try:
        found = files.read_json(path)
    except files.Damaged as error:
        raise UserError(f"{path} is {error}; put back a copy") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(found, kind):
        raise UserError(f"{path} is not what was written there; put back a copy")
    return found


def up_to_date(fields: dict[str, Any]) -> dict[str, Any]:
    """A config's fields as an older version wrote them, with what they meant to it."""
    fields = {"stage": {}} | fields
    for section, name in GONE.items():
        if isinstance(fields.get(section), dict):
            fields[section] = {k: v for k, v in fields[section].items() if k != name}
    for section, later in LATER.items():
        if isinstance(fields.get(section), dict):
            fields[section] = later | fields[section]
    return fields


# Fields beside those of the model that what reads a config relies on.
BESIDE = (("video", "fps", float), ("sample", "num", int), ("sample", "label", str))


def built(config: Any, wrong: str, advice: str) -> Model:
    """The model that a config describes; UserError where its fields make none."""
    try:
        model = build(config)
        if odd := odd_field(model):
            raise ValueError(odd)
        for section, name, kind in BESIDE:
            if not fits(value := config[section][name], kind):
                raise ValueError(f"{section}.{name}={value!r:.40}")
        if min(*model.shape, config.video.fps) <= 0:
            raise ValueError(f"videos of {model.shape}, {config.video.fps} a second")
        model.schedule.angle(np.linspace(0, 1, 3))
        return model
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as bad:
        reason = f"{type(bad).__name__}: {bad}"
        raise UserError(f"{wrong} ({reason}); {advice}") from bad


def read_fields(path: Path, wanted: Set[str] = SECTIONS) -> dict[str, Any]:
    """The fields of a config.json, up to date; UserError if it lacks a section."""
    fields = up_to_date(read_json(path, dict))
    sections = {name for name, value in fields.items() if isinstance(value, dict)}
    if lacking := wanted - sections:
        raise UserError(
            f"{path} is not a config: it lacks {', '.join(sorted(lacking))}; put back "
            "the file that training wrote"
        )
    return fields


def read_config(workdir: Path) -> Any:
    """The complete config of a run or of a shipped model."""
    path = resolve(user_path(workdir, "workdir")) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir} is not a run: it holds no config.json; give the --workdir of a "
            "training run or a folder of models/"
        )
    config: Any = ConfigDict(read_fields(path))
    built(config, f"{path} is not a config that training wrote", "put back a copy")
    if config.sample.get("reconstruction") == 9.0:  # once everybody's default
        config.sample.reconstruction = None
    find_paths(config)
    return config


def is_trained(workdir: Path) -> bool:
    """Whether parameters stand there, though perhaps damaged ones."""
    workdir = resolve(workdir)
    saved = (workdir / "checkpoints").glob(f"[0-9]*/{MANIFEST}")
    return (workdir / "params.safetensors").is_file() or any(saved)


class Loaded(NamedTuple):
    """A trained model: its averaged parameters, its config, its finished steps.

    checksum: of the parameters as they lie on disk.
    """

    model: Model
    params: Params
    config: Any
    step: int
    checksum: str


def load(workdir: str | Path, mesh: Mesh | None = None) -> Loaded:
    """A run's newest good checkpoint, or a shipped model's params.safetensors.

    The one way in for every verb that needs a trained model. Half-precision files are
    cast to the model's own precision here and nowhere else. With a mesh the parameters
    are where a run on it has them; without one on the first device, or on the host.
    """
    workdir = resolve(user_path(workdir, "workdir"))
    config = read_config(workdir)
    model = build(config)

    def checksum(path: Path) -> str:
        """Of a file, which on a mesh all processes must have the same."""
        found = f"{zlib.crc32(path.read_bytes()):08x}"
        if mesh is not None:
            agreement.check({f"checksum of {path.name}": found} | shared(config))
        return found

    shapes = jax.eval_shape(model.fresh, jax.random.key(0))
    shardings = None
    if mesh is not None:
        shardings = sharding.state_shardings(mesh, shapes)
        shapes = sharding.with_shardings(shapes, shardings)
    shipped = workdir / "params.safetensors"
    if shipped.is_file():
        read = checksum(shipped)
        params = params_file.read(shipped, shapes)
        if shardings is not None:
            params = jax.device_put(params, shardings)
        return Loaded(model, params, config, -1, read)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint yet: train it first")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train it first")
    read = checksum(checkpoints.directory / str(step) / MANIFEST)
    averaged = any(name.startswith("ema/") for name in checkpoints.leaves(step))
    part = "ema" if averaged else "params"
    state, _ = checkpoints.restore(step, {part: shapes})
    return Loaded(model, state[part], config, step, read)
