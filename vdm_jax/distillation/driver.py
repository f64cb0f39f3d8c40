"""Distillation, from a teacher to a student of a few steps: reads downwards.

Rounds around `fit`: each halves the number of steps, starts from the one before and
ends as a workdir of its own. What rounds differ by (the teacher, the number of steps
and of updates) are arguments of one compiled step: it compiles once for all of them.

    WORKDIR/distill.json  what was asked
            teacher.npz   the first teacher's videos, to compare students with
            rounds.json   a row for every finished round
            rounds/0064/  a run: config.json, checkpoints/, metrics.jsonl, samples/
"""

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import (
    agreement,
    build,
    data,
    files,
    migration,
    runs,
    sampling,
    scalars,
    sharding,
    text,
    video_io,
)
from vdm_jax.checkpoint import check_same_arrays, on_first_process, reading_files
from vdm_jax.data import pipeline
from vdm_jax.diffusion import (
    distillation,
    guidance,
    losses,
    process,
    samplers,
    schedules,
)
from vdm_jax.distillation import rounds
from vdm_jax.distillation.rounds import Round
from vdm_jax.errors import UserError
from vdm_jax.metrics import statistics
from vdm_jax.metrics.by_source import ATTRIBUTE_METRICS
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.pretrained.params import flatten
from vdm_jax.training import captions
from vdm_jax.training import optimizer as optim
from vdm_jax.training import step as steps
from vdm_jax.training.checks import check_config
from vdm_jax.training.run import (
    START_OVER,
    Run,
    compare_configs,
    config_changes,
    lock_workdir,
    open_run,
)
from vdm_jax.training.stop import EXIT_STATUS
from vdm_jax.training.train import (
    PreviewInterrupted,
    batch_shapes,
    compile_step,
    describe,
    write_preview,
)
from vdm_jax.training.train_loop import train_loop

EXIT_METRIC_DROP = 5  # exit status: a round lost more quality than it may
GUIDANCE_PARAMS = "conditioning_encoder/guidance_weight/.*"  # parameters that a guided student has more
PREVIEWS = 8  # videos of the sheet that each round leaves
REFERENCE, MAX_REFERENCE_STEPS = (
    "teacher.npz",
    64,
)  # the teacher's videos, of so many steps at most

Row = dict[str, Any]


def distill(
    config: Any,
    teacher: str,
    workdir: Path,
    time_limit: float | None = None,
    more: bool = False,
) -> list[Row]:
    """Run all rounds, or those that are left; returns the rows of rounds.json.

    more: something follows, so a request to stop leaves even after the last round.
    Every process of a run calls this together.

    Raises:
      UserError: before anything is written if the config is wrong; with status 5 if a
        round's metric fell by more than config.distill.max_metric_drop.
      SystemExit: as `fit` does; the same call goes on.
    """
    started = time.monotonic()
    agreement.check(
        {"command": "distill", "workdir": str(workdir)}
        | agreement.environment()
        | runs.config_without_paths(config)
    )
    mesh = sharding.make_mesh(**config.mesh)
    loaded = runs.load(teacher, mesh)
    rounds.check(config.distill, loaded.config, loaded.model)
    plan = rounds.plan_rounds(config.distill)
    origins = [teacher, *(str(workdir / each.path) for each in plan)]
    configs = [
        rounds.student_config(config, loaded.config, each, origin)
        for each, origin in zip(plan, origins, strict=False)
    ]
    for each in configs:
        check_config(each)
    student, source = build.build_model(configs[0]), data.open_source(configs[0])
    texts = captions.open_caption_embeddings(configs[0], source)
    own, now = (each.conditioning for each in (loaded.config, configs[0]))
    if texts is not None and not text.same_text_encoder([own, now]):
        raise UserError(
            f"the teacher was told text by {own.text_encoder}, and the embeddings in "
            f"{configs[0].data.text_embeddings_dir} are by {now.text_encoder} or other weights of "
            "it: give those that the teacher was trained with"
        )
    for each in configs[1:]:
        each.conditioning.update(
            text_encoder=now.text_encoder, text_encoder_sha256=now.text_encoder_sha256
        )
    for each in configs:
        asked = sampling.Settings.from_config(each.sample)
        sampling.check_settings(student, config.distill.num, config.seed, asked)

    begun = [
        (workdir / each.path, own) for each, own in zip(plan, configs, strict=True)
    ]
    with (
        open_distillation(workdir, config, teacher, loaded.checksum, begun) as rows,
        jax.set_mesh(mesh),
        sharding.activation_rules(),
    ):
        driver = DistillationTrainer(config, student, loaded, source, texts, mesh)
        baseline = driver.evaluate_teacher(workdir, loaded)
        params = newest_student(workdir, rows, mesh) if rows else loaded.params
        del loaded  # its parameters are not needed any more
        for each, own in list(zip(plan, configs, strict=True))[len(rows) :]:
            fingerprint = pipeline.fingerprint(own, source)
            if texts is not None:
                fingerprint["text"] = texts.digest
            left = time_limit and max(time_limit - (time.monotonic() - started), 1e-3)
            place = workdir / each.path
            with (
                open_run(
                    place, own, fingerprint, left, START_OVER, driver.abstract
                ) as run,
                run.stop.handling_signals(),
            ):
                params = driver.train(run, each, params)
                try:
                    metric = driver.measure(run, each, params)
                except PreviewInterrupted:
                    exit_between_rounds(run)
                before = rows[-1]["metric"] if rows else baseline
                commit_round(workdir, rows, each, metric, before, config.distill)
                run.logger.info(
                    f"{each.steps} steps: {config.distill.metric} {metric:.3f}, "
                    f"in {each.path}"
                )
                on_first_process(run.logger.check)
                if run.stop.requested() and (more or each is not plan[-1]):
                    exit_between_rounds(run)
    return rows


def newest_student(workdir: Path, rows: list[Row], mesh) -> Params:
    """The last finished student. One whose last checkpoint is damaged is not finished.

    Its row goes, and with it the round is taken up where it still stands.
    """
    while rows:
        found = runs.load(workdir / rows[-1]["path"], mesh)
        if found.step >= rows[-1]["updates"]:
            return found.params
        print(
            f"{rows[-1]['path']} stands at step {found.step} of "
            f"{rows[-1]['updates']}: it is taken up again",
            file=sys.stderr,
        )
        rows.pop()
    raise UserError(
        f"the last checkpoint of {workdir}'s first round is damaged: delete "
        f"{runs.ROUNDS_FILE} there to take the round up again"
    )


def exit_between_rounds(run: Run) -> NoReturn:
    """Between two rounds, where everything is saved."""
    run.logger.info(f"after {run.stop.reason}; the same command goes on from there")
    raise SystemExit(EXIT_STATUS[run.stop.requested()])


def guidance_distillation_loss(
    student: DiffusionModel, teacher: DiffusionModel, weighting: str
) -> steps.LossFn:
    """Stage one of Meng et al. 2022 (section 3.1): both branches in one call.

    frozen: {"teacher": its parameters}. The weight is drawn evenly from the range that
    the student is told, the time evenly from 0 to 1.
    """

    def loss_fn(params, frozen, batch, key):
        time_key, noise_key, rest = jax.random.split(key, 3)
        x, cond, weight = sample_batch(student, batch, rest)
        t = losses.stratified_times(time_key, x.shape[0], x.dtype)
        angle = student.schedule.angle(t)
        step = schedules.noise_level_from_angle(angle)
        z = process.diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), step)
        combine = guidance.linear(lambda step: weight)
        both = guidance.cfg(
            teacher.denoiser(frozen["teacher"]), teacher.unconditional, combine
        )
        target = process.velocity(both(z, step, cond), step)
        told = student.with_guidance_weight(cond, weight)
        loss = distillation.student_loss(
            student.denoiser(params), target, z, angle, told, weighting
        )
        return loss.mean(), {}

    return loss_fn


def progressive_distillation_loss(
    model: DiffusionModel, weighting: str, double: bool, limit: float = 0.0
) -> steps.LossFn:
    """Progressive distillation (Salimans & Ho 2022, algorithm 2), at every weight.

    frozen: {"teacher": parameters of the same model, "steps": the student's, int [],
    "late": how often the last of them are drawn (`distillation.random_steps`)}.
    double: for the stochastic sampler (`distillation.interval`). limit: of the
    teacher's |x|, 0 for none; an eps output, whose x = (z - sigma eps) / alpha is
    nothing where no signal is left, needs one.
    """

    def loss_fn(params, frozen, batch, key):
        step_key, noise_key, rest = jax.random.split(key, 3)
        x, cond, weight = sample_batch(model, batch, rest)
        if model.guidance_range:
            cond = model.with_guidance_weight(cond, weight)
        n = frozen["steps"]
        i = distillation.sample_step_index(step_key, x.shape[0], n, frozen["late"])
        at = distillation.student_step(model.schedule, i, n, double)
        step = schedules.noise_level_from_angle(at.start)
        z = process.diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), step)
        teacher = model.denoiser(frozen["teacher"])
        if limit:
            teacher = guidance.clip_x(teacher, limit)
        target = distillation.progressive_target(teacher, model.schedule, z, at, cond)
        loss = distillation.student_loss(
            model.denoiser(params), target, z, at.start, cond, weighting
        )
        return loss.mean(), {}

    return loss_fn


def sample_batch(model: DiffusionModel, batch, key):
    """(videos, conditions dropped as in training, guidance weights [b])."""
    drop_key, weight_key = jax.random.split(key)
    x, cond = model.prepare_batch(batch, drop_key)
    low, high = model.guidance_range or (0.0, 0.0)
    weight = jax.random.uniform(weight_key, x.shape[:1], x.dtype, low, high)
    return x, cond, weight


def init_student(student: DiffusionModel, params: Params, key: jax.Array) -> Params:
    """A guided student's first parameters: its teacher's, and a branch that adds zero.

    Raises UserError if anything but that branch is missing or left over.
    """
    fresh = student.init(key)
    given = flatten(params)
    new = {
        name: np.asarray(leaf)  # the same on every process
        for name, leaf in flatten(fresh).items()
        if name not in given and re.fullmatch(GUIDANCE_PARAMS, name)
    }
    agreement.check({"new parameters": agreement.arrays_checksum(new)})
    check_same_arrays(given | new, flatten(fresh), "the teacher")
    merged = given | new
    leaves = [merged[name] for name in flatten(fresh)]
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def _averaged(state) -> Params:
    return state.params if state.ema is None else state.ema


class DistillationTrainer:
    """What all rounds share: models, data, mesh, and one program for each loss."""

    def __init__(
        self,
        config,
        student: DiffusionModel,
        teacher: runs.TrainedModel,
        source,
        texts,
        mesh,
    ):
        self.config, self.student, self.teacher = config, student, teacher.model
        self.source, self.texts, self.mesh = source, texts, mesh
        self.attributes = ATTRIBUTE_METRICS.get(teacher.config.data.source)
        self.asked = captions.preview_conditions(
            teacher.config, student, source, texts, config.distill.num, "", config.seed
        )
        self.tx = optim.optimizer(config.train)
        self.averages = config.train.ema_decay > 0
        self.limit = teacher.config.sample.clip_x
        state = jax.eval_shape(
            lambda: self._state(student.init_params(jax.random.key(0))),
        )
        self.shardings = sharding.state_shardings(mesh, state)
        self.abstract = sharding.with_shardings(state, self.shardings)
        self._start = jax.jit(self._state, out_shardings=self.shardings)
        self._programs: dict[bool, Any] = {}

    def _state(self, params: Params):
        """Step 0. Copies: the teacher's own arrays are not to be given away."""
        params = jax.tree.map(jnp.copy, params)
        return steps.init_state(params, self.tx, self.averages)

    def train(self, run: Run, each: Round, teacher: Params) -> Params:
        """A round to its last update, or on from its checkpoint."""
        config, mesh = run.config, self.mesh
        key = samplers.key_from_seed(config.seed)
        numbers = {
            "steps": np.int32(each.steps),
            "updates": np.int32(each.updates),
            "late": np.float32(each.time_power),
        }
        frozen = {"teacher": teacher} | jax.device_put(
            numbers, sharding.replicated(mesh)
        )
        shapes = batch_shapes(config, self.student, mesh, self.texts)

        def put(batch):
            batch = captions.add_text(batch, self.texts)
            return sharding.put_batch(mesh, {name: batch[name] for name in shapes})

        def start(_) -> Any:
            first = (
                init_student(self.student, teacher, key)
                if each.distills_guidance
                else teacher
            )
            return self._start(first)

        share = jax.process_index(), jax.process_count()
        batches = pipeline.train_batches(config, self.source, *share)
        with contextlib.closing(batches):
            state = run.resume(self.abstract, start, batches, lambda origin: teacher)
            if int(state.step) > each.updates:
                raise UserError(
                    f"{run.workdir} has made {int(state.step)} updates, more than the "
                    f"{each.updates} asked for: ask for as many at least"
                )
            if int(state.step) == each.updates:
                return _averaged(state)  # its checkpoint was the last thing done
            loss_fn, update = self._program(
                run, each.distills_guidance, frozen, shapes, key
            )
            state = train_loop(
                update,
                state,
                frozen,
                batches,
                num_steps=each.updates,
                run=run,
                config_train=config.train,
                key=key,
                put=put,
                diagnose=lambda *where: steps.first_non_finite(loss_fn, *where),
            )
        return _averaged(state)

    def _program(self, run: Run, told: bool, frozen, shapes, key):
        """(loss, one update), compiled for the told round and for all the others."""
        if told in self._programs:
            return self._programs[told]
        distill = self.config.distill
        if told:
            loss_fn = guidance_distillation_loss(
                self.student, self.teacher, distill.loss_weighting
            )
        else:
            double = distill.sampler == "stochastic"
            limit = self.limit if self.student.prediction_type == "eps" else 0.0
            loss_fn = progressive_distillation_loss(
                self.student, distill.loss_weighting, double, limit
            )
        rate = optim.learning_rate(run.config.train)
        step = steps.make_step(
            loss_fn,
            self.tx,
            lambda count, frozen: rate(count, frozen["updates"]),
            self.config.train.ema_decay,
            self.config.train.grad_accum_steps,
        )
        update = compile_step(run, step, self.mesh, self.abstract, frozen, shapes, key)
        describe(run, self.student, self.mesh, self.abstract, update, self.source)
        self._programs[told] = loss_fn, update
        return loss_fn, update

    def evaluate_teacher(self, workdir: Path, loaded: runs.TrainedModel) -> float:
        """What the first round's metric is held against; keeps the teacher's videos.

        They are of DDIM, in config.distill.start_steps steps but no more than LOOK, with the
        weight that the students are asked for by default.
        """
        distill, path = self.config.distill, workdir / REFERENCE

        def kept() -> bool:
            """Whether they are there; what is damaged is set aside and made again."""
            if not path.is_file():
                return False
            wanted = distill.num, *self.student.shape
            try:
                with reading_files(path):
                    found = video_io.read_npz(path).shape
                if found != wanted:
                    raise files.CorruptFile(f"videos {found} instead of {wanted}")
            except files.CorruptFile as damage:
                files.set_aside(path, str(damage))
                return False
            return True

        if not on_first_process(kept):
            weight = float(loaded.config.sample.guidance)
            if distill.guidance:
                weight = float(np.clip(weight, *distill.guidance))
            elif not loaded.model.guidance_range:
                weight = 0.0
            settings = dataclasses.replace(
                sampling.Settings.from_config(loaded.config.sample),
                sampler="ddim",
                steps=min(distill.start_steps, MAX_REFERENCE_STEPS),
                schedule="",
                corrector=0.0,
                guidance=weight,
                guidance_schedule="constant",
                combine="linear",
            )
            videos = self._sample(loaded.model, loaded.params, settings)

            on_first_process(lambda: video_io.write_npz(path, videos, overwrite=True))
        self.reference = video_io.read_npz(path)
        return self._metric(self.reference)

    def _sample(self, model: DiffusionModel, params: Params, settings, progress=None):
        """uint8 videos: asked for the same, of the same noise, whoever makes them."""
        distill, config = self.config.distill, self.config
        videos = sampling.sample(
            model, params, distill.num, settings, **self.asked, seed=config.seed,
            mesh=self.mesh, progress=progress or (lambda done, total: None),
        )  # fmt: skip
        return sampling.to_uint8(videos)

    def _metric(self, videos: np.ndarray) -> float:
        distill = self.config.distill
        if distill.metric == "r2_to_teacher":
            return statistics.agreement(
                *(statistics.pixels(v) for v in (videos, self.reference))
            )
        assert self.attributes is not None  # rounds.check has seen to it
        return float(
            self.attributes.attribute_scores(videos, self.asked["labels"])["joint"]
        )

    def measure(self, run: Run, each: Round, params: Params) -> float:
        """The metric of a finished round; leaves a sheet of its samples."""
        settings = sampling.Settings.from_config(run.config.sample)
        # A limit that has passed already leaves when this is done: with one that is
        # shorter than this takes, the same command would never get further.
        before = run.stop.requested()

        def leave_when_asked(done: int, total: int) -> None:
            if run.stop.requested() > before:
                raise PreviewInterrupted

        videos = self._sample(self.student, params, settings, leave_when_asked)
        if run.logger.active:
            write_preview(run, each.updates, videos[:PREVIEWS], run.config.video.fps)
        if self.config.distill.metric == "r2_to_teacher" and settings.sampler != "ddim":
            # Without noise on the way: a stochastic student's own steps are double.
            plain = dataclasses.replace(
                settings, sampler="ddim", steps=max(each.steps // 2, 1)
            )
            videos = self._sample(self.student, params, plain, leave_when_asked)
        return self._metric(videos)


@contextlib.contextmanager
def open_distillation(
    workdir: Path, config, teacher: str, checksum: str, plan: list[tuple[Path, Any]]
) -> Iterator[list[Row]]:
    """Own the workdir of a distillation; the rows of its finished rounds.

    plan: workdir and config of every round.
    """
    own = {"teacher": teacher, "checksum": checksum}
    asked = json.loads(json.dumps(config.to_dict()))

    def begin() -> dict[str, Any]:
        path, table = workdir / runs.DISTILLATION_FILE, workdir / runs.ROUNDS_FILE
        begun = any((workdir / "rounds").glob("*/checkpoints/[0-9]*"))
        rows, changes, damage = [], [], ""
        try:
            rows = runs.distillation_rounds(workdir) if table.is_file() else []
        except UserError as error:
            if isinstance(error.__cause__, OSError):  # it may be as good as ever
                raise
            damage = f"damaged, so that the rounds are looked at again ({error})"
        if begun or rows:
            before = migration.rename(runs.read_json(path, dict))
            if before.get("checksum") != checksum and not rows:
                raise UserError(
                    f"--teacher={teacher} is not, or not any more, the teacher that "
                    f"{workdir} was begun with ({before.get('teacher')}): {START_OVER}"
                )
            # What they came from stays on record.
            own.update({k: before[k] for k in own if rows and k in before})
            before = {k: v for k, v in before.items() if k not in own}
            changes = compare_configs(
                before, asked, workdir, START_OVER, rounds.RESUME_RULES
            )
            for place, fields in plan[len(rows) : len(rows) + 1]:
                if any((place / "checkpoints").glob("[0-9]*")):
                    config_changes(place, fields, START_OVER)  # before it is on record
        else:
            (workdir / REFERENCE).unlink(missing_ok=True)  # of another teacher
        if damage:
            files.set_aside(table, damage)
        files.write_json(path, own | asked, indent=2)
        return {"rows": rows, "changes": changes}

    def refuse_a_model() -> None:  # before a lock is left in it
        if (workdir / "config.json").is_file():
            raise UserError(f"{workdir} holds a model already: give another --workdir")

    with contextlib.ExitStack() as stack:
        on_first_process(refuse_a_model)
        on_first_process(lambda: stack.enter_context(lock_workdir(workdir)))
        begun = on_first_process(begin)
        if jax.process_index() == 0:
            for change in begun["changes"]:
                print(f"changed since it was begun: {change}", flush=True)
            if begun["rows"]:
                print(f"{len(begun['rows'])} rounds of {workdir} are done", flush=True)
        yield begun["rows"]


def commit_round(
    workdir: Path, rows: list[Row], each: Round, metric: float, before: float, distill
) -> None:
    """Add the row of a finished round to rounds.json, unless it fell too far."""
    if not before - metric <= distill.max_metric_drop:  # nor if it is not a number
        raise UserError(
            f"{each.steps} steps: {distill.metric} fell from {before:.3f} to "
            f"{metric:.3f}, by more than config.distill.max_metric_drop={distill.max_metric_drop}: "
            "raise the updates of the round, which goes on from where it stands, or "
            "the tolerance",
            status=EXIT_METRIC_DROP,
        )

    def add() -> Row:
        logged = scalars.read_scalars(workdir / each.path)
        nothing = np.zeros(0), np.zeros(0)  # where the log was damaged
        at, step_time = logged.get("train/step_time", nothing)
        losses = logged.get("train/loss", nothing)[1]
        row = {
            "steps": each.steps,
            "updates": each.updates,
            "loss": float(losses[-1]) if len(losses) else float("nan"),
            "metric": metric,
            "seconds": round(float(np.diff(at, prepend=0) @ step_time), 3),
            "path": each.path,
        }
        files.write_json(workdir / runs.ROUNDS_FILE, [*rows, row])
        return row

    rows.append(on_first_process(add))
