"""Distillation, from a teacher to a student of a few steps: reads downwards.

Rounds around `fit`: each halves the number of steps, starts from the one before and
ends as a workdir of its own. What rounds differ by (the teacher, the number of steps
and of updates) are arguments of one compiled step: it compiles once for all of them.

    WORKDIR/distill.json  what was asked
            rounds.json   a row for every finished round
            rounds/0064/  a run: config.json, checkpoints/, metrics.jsonl, samples/
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import data, sampling, sharding, video_io
from vdm_jax import model as models
from vdm_jax.checkpoint import check_fit, on_first_process
from vdm_jax.data import pipeline
from vdm_jax.diffusion import distillation, guidance, losses, process, schedules
from vdm_jax.errors import UserError
from vdm_jax.evaluation import curve, statistics
from vdm_jax.evaluation.evaluate import MEASURES
from vdm_jax.model import Model, Params
from vdm_jax.training import optimizer as optim
from vdm_jax.training import rounds
from vdm_jax.training import step as steps
from vdm_jax.training.checks import check
from vdm_jax.training.fit import fit
from vdm_jax.training.rounds import Round
from vdm_jax.training.run import Run, compare, open_run, owning
from vdm_jax.training.stop import EXIT_STATUS
from vdm_jax.training.train import Interrupted, batch_shapes, describe, write_preview
from vdm_jax.weights.params import flatten

FELL = 5  # exit status: a round lost more quality than it may
TOLD = "conditioner/guidance/.*"  # parameters that a guided student has more
PREVIEWS = 8  # videos of the sheet that each round leaves

Row = dict[str, Any]


def distill(
    config: Any, teacher: str, workdir: Path, time_limit: float | None = None
) -> list[Row]:
    """Run all rounds, or those that are left; returns the rows of rounds.json.

    Every process of a run calls this together.

    Raises:
      UserError: before anything is written if the config is wrong; with status 5 if a
        round's metric fell by more than config.distill.tolerance.
      SystemExit: as `fit` does; the same call goes on.
    """
    started = time.monotonic()
    loaded = models.load(teacher)
    rounds.check(config.distill, loaded.config.data.source, loaded.model)
    plan = rounds.planned(config.distill)
    origins = [teacher, *(str(workdir / each.path) for each in plan)]
    configs = [
        rounds.student_config(config, loaded.config, each, origin)
        for each, origin in zip(plan, origins, strict=False)
    ]
    for each in configs:
        check(each)
    mesh = sharding.make_mesh(**config.mesh)
    driver = _Rounds(
        config, models.build(configs[0]), loaded, data.open_source(configs[0]), mesh
    )
    for each in configs:
        asked = sampling.Settings.of(each.sample)
        sampling.check(driver.student, config.distill.num, config.seed, asked)

    with (
        _driving(workdir, config, teacher, loaded.step) as rows,
        jax.set_mesh(mesh),
        sharding.activation_rules(),
    ):
        params: Params | None = None  # of the round before, while they are at hand
        for each, own in list(zip(plan, configs, strict=True))[len(rows) :]:
            if params is None:
                first = each.number == 0
                origin = loaded if first else models.load(origins[each.number])
                params = driver.put(origin.params)
            fingerprint = pipeline.fingerprint(own, driver.source)
            left = time_limit and max(time_limit - (time.monotonic() - started), 1e-3)
            with (
                open_run(workdir / each.path, own, fingerprint, left) as run,
                run.stop.listening(),
            ):
                before, params = params, driver.train(run, each, params)
                try:
                    metric = driver.measure(run, each, before, params)
                except Interrupted:
                    _leave(run)
                _accept(workdir, rows, each, metric, config.distill)
                run.logger.say(
                    f"{each.steps} steps: {config.distill.metric} {metric:.3f}, "
                    f"in {each.path}"
                )
                if run.stop.requested() and each is not plan[-1]:
                    _leave(run)
    return rows


def _leave(run: Run) -> NoReturn:
    """Between two rounds, where everything is saved."""
    run.logger.say(f"after {run.stop.reason}; the same command goes on from there")
    raise SystemExit(EXIT_STATUS[run.stop.requested()])


def told_loss(student: Model, teacher: Model, weighting: str) -> steps.LossFn:
    """Stage one of Meng et al. 2022 (section 3.1): both branches in one call.

    frozen: {"teacher": its parameters}. The weight is drawn evenly from the range that
    the student is told, the noise level as for training.
    """

    def loss_fn(params, frozen, batch, key):
        time_key, noise_key, rest = jax.random.split(key, 3)
        x, cond, weight = draw(student, batch, rest)
        t = losses.stratified_times(time_key, x.shape[0], x.dtype)
        angle = student.schedule.angle(t)
        step = schedules.step_of_angle(angle)
        z = process.diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), step)
        combine = guidance.linear(lambda step: weight)
        both = guidance.cfg(teacher.denoiser(frozen["teacher"]), teacher.null, combine)
        target = process.velocity(both(z, step, cond), step)
        told = student.tell(cond, weight)
        loss = distillation.student_loss(
            student.denoiser(params), target, z, angle, told, weighting
        )
        return loss.mean(), {}

    return loss_fn


def halving_loss(model: Model, weighting: str, double: bool) -> steps.LossFn:
    """Progressive distillation (Salimans & Ho 2022, algorithm 2), at every weight.

    frozen: {"teacher": parameters of the same model, "steps": the student's, int []}.
    double: for the stochastic sampler (`distillation.interval`).
    """

    def loss_fn(params, frozen, batch, key):
        step_key, noise_key, rest = jax.random.split(key, 3)
        x, cond, weight = draw(model, batch, rest)
        if model.guidance_range:
            cond = model.tell(cond, weight)
        n = frozen["steps"]
        i = distillation.random_steps(step_key, x.shape[0], n)
        at = distillation.interval(model.schedule, i, n, double)
        step = schedules.step_of_angle(at.start)
        z = process.diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), step)
        teacher = model.denoiser(frozen["teacher"])
        target = distillation.two_steps(teacher, model.schedule, z, at, cond)
        loss = distillation.student_loss(
            model.denoiser(params), target, z, at.start, cond, weighting
        )
        return loss.mean(), {}

    return loss_fn


def draw(model: Model, batch, key):
    """(videos, conditions dropped as in training, guidance weights [b])."""
    drop_key, weight_key = jax.random.split(key)
    x = model.encode(batch["video"])
    cond = model.drop(model.conditions(batch), drop_key)
    low, high = model.guidance_range or (0.0, 0.0)
    weight = jax.random.uniform(weight_key, x.shape[:1], x.dtype, low, high)
    return x, cond, weight


def inherit(student: Model, params: Params, key: jax.Array) -> Params:
    """A guided student's first parameters: its teacher's, and a branch that adds zero.

    Raises UserError if anything but that branch is missing or left over.
    """
    fresh = student.init(key)
    given = flatten(params)
    new = {
        name: np.asarray(leaf)  # the same on every process
        for name, leaf in flatten(fresh).items()
        if name not in given and re.fullmatch(TOLD, name)
    }
    check_fit(given | new, flatten(fresh), "the teacher")
    merged = given | new
    leaves = [merged[name] for name in flatten(fresh)]
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def _averaged(state) -> Params:
    return state.params if state.ema is None else state.ema


class _Rounds:
    """What all rounds share: models, data, mesh, and one program for each loss."""

    def __init__(self, config, student: Model, loaded: models.Loaded, source, mesh):
        self.config, self.student, self.teacher = config, student, loaded.model
        self.source, self.mesh = source, mesh
        self.tx = optim.optimizer(config.train)
        self.averages = config.train.ema > 0
        state = jax.eval_shape(
            lambda: self._state(student.fresh(jax.random.key(0))),
        )
        self.shardings = sharding.state_shardings(mesh, state)
        self.abstract = sharding.with_shardings(state, self.shardings)
        self._start = jax.jit(self._state, out_shardings=self.shardings)
        self._programs: dict[bool, Any] = {}

    def _state(self, params: Params):
        """Step 0. Copies: the teacher's own arrays are not to be given away."""
        params = jax.tree.map(jnp.copy, params)
        return steps.init_state(params, self.tx, self.averages)

    def put(self, params: Params) -> Params:
        """Loaded parameters, sharded as a student's are, by way of the host."""
        shardings = sharding.state_shardings(self.mesh, params)
        return jax.device_put(jax.tree.map(np.asarray, params), shardings)

    def train(self, run: Run, each: Round, teacher: Params) -> Params:
        """A round to its last update, or on from its checkpoint."""
        config, mesh = run.config, self.mesh
        key = jax.random.key(config.seed)
        numbers = {"steps": np.int32(each.steps), "updates": np.int32(each.updates)}
        frozen = {"teacher": teacher} | jax.device_put(
            numbers, sharding.replicated(mesh)
        )
        shapes = batch_shapes(config, self.student, mesh)

        def start(_) -> Any:
            first = inherit(self.student, teacher, key) if each.told else teacher
            return self._start(first)

        share = jax.process_index(), jax.process_count()
        batches = pipeline.train_batches(config, self.source, *share)
        with contextlib.closing(batches):
            state = run.resume(self.abstract, start, batches, lambda origin: teacher)
            if int(state.step) >= each.updates:
                return _averaged(state)  # its checkpoint was the last thing done
            loss_fn, update = self._program(run, each.told, frozen, shapes, key)
            state = fit(
                update,
                state,
                frozen,
                batches,
                until=each.updates,
                run=run,
                config_train=config.train,
                key=key,
                put=lambda batch: sharding.put_batch(
                    mesh, {k: batch[k] for k in shapes}
                ),
                diagnose=lambda *where: steps.first_non_finite(loss_fn, *where),
            )
        return _averaged(state)

    def _program(self, run: Run, told: bool, frozen, shapes, key):
        """(loss, one update), compiled for the told round and for all the others."""
        if told in self._programs:
            return self._programs[told]
        distill = self.config.distill
        if told:
            loss_fn = told_loss(self.student, self.teacher, distill.weighting)
        else:
            double = distill.sampler == "stochastic"
            loss_fn = halving_loss(self.student, distill.weighting, double)
        rate = optim.learning_rate(run.config.train)
        step = steps.make_step(
            loss_fn,
            self.tx,
            lambda count, frozen: rate(count, frozen["updates"]),
            self.config.train.ema,
            self.config.train.accumulate,
        )
        started = time.perf_counter()
        outputs = (self.shardings, sharding.replicated(self.mesh))
        jitted = jax.jit(step, donate_argnums=0, out_shardings=outputs)
        update = jitted.lower(self.abstract, frozen, shapes, key).compile()
        seconds = time.perf_counter() - started
        run.logger.say(f"compiled the training step in {seconds:.1f} s")
        describe(run, self.student, self.mesh, self.abstract, update, self.source)
        self._programs[told] = loss_fn, update
        return loss_fn, update

    def measure(self, run: Run, each: Round, teacher: Params, params: Params) -> float:
        """The metric of a finished round; leaves a sheet of its samples."""
        distill, config = self.config.distill, run.config
        settings = sampling.Settings.of(config.sample)
        labels = sampling.draw_labels(
            self.student, distill.num, config.sample.label, self.config.seed
        )

        # A limit that has passed already leaves when this is done: with one that is
        # shorter than this takes, the same command would never get further.
        before = run.stop.requested()

        def leave_when_asked(done: int, total: int) -> None:
            if run.stop.requested() > before:
                raise Interrupted

        def made(model: Model, params: Params, **how) -> np.ndarray:
            return sampling.sample(
                model,
                params,
                distill.num,
                dataclasses.replace(settings, **how),
                labels=labels,
                seed=self.config.seed,
                mesh=self.mesh,
                progress=leave_when_asked,
            )

        videos = made(self.student, params)
        if run.logger.active:
            shown = sampling.to_uint8(videos[:PREVIEWS])
            write_preview(run, each.updates, shown, config.video.fps)
        if distill.metric == "joint":
            row = MEASURES[config.data.source].row(sampling.to_uint8(videos), labels)
            return float(row["joint"])
        # Without noise on the way: a stochastic student's own steps are double ones.
        n = each.steps
        if settings.sampler == "stochastic":
            n = max(n // 2, 1)
            videos = made(self.student, params, sampler="ddim", steps=n)
        model = self.teacher if each.number == 0 else self.student
        twice = n if each.told else 2 * n
        return statistics.agreement(
            videos, made(model, teacher, sampler="ddim", steps=twice)
        )


@contextlib.contextmanager
def _driving(workdir: Path, config, teacher: str, step: int) -> Iterator[list[Row]]:
    """Own the workdir of a distillation; the rows of its finished rounds."""
    asked = {"teacher": teacher, "teacher_step": step, **config.to_dict()}
    text = json.dumps(asked, indent=2)

    def begin() -> dict[str, Any]:
        path, done = workdir / models.DISTILLATION, workdir / models.STUDENTS
        rows = json.loads(done.read_text()) if done.is_file() else []
        changes = []
        if path.is_file():
            before = json.loads(path.read_text())
            changes = compare(before, json.loads(text), workdir, rounds.MAY_CHANGE)
        with video_io.replacing(path, overwrite=True) as new:
            new.write_text(text + "\n")
        return {"rows": rows, "changes": changes}

    with contextlib.ExitStack() as stack:
        on_first_process(lambda: stack.enter_context(owning(workdir)))
        begun = on_first_process(begin)
        if jax.process_index() == 0:
            for change in begun["changes"]:
                print(f"changed since it was begun: {change}", flush=True)
            if begun["rows"]:
                print(f"{len(begun['rows'])} rounds of {workdir} are done", flush=True)
        yield begun["rows"]


def _accept(workdir: Path, rows: list[Row], each: Round, metric: float, distill):
    """Add the row of a finished round to rounds.json, unless it fell too far."""
    before = rows[-1]["metric"] if rows else metric
    if before - metric > distill.tolerance:
        raise UserError(
            f"{each.steps} steps: {distill.metric} fell from {before:.3f} to "
            f"{metric:.3f}, by more than config.distill.tolerance={distill.tolerance}: "
            "raise the updates of the round, which goes on from where it stands, or "
            "the tolerance",
            status=FELL,
        )

    def add() -> Row:
        logged = curve.read_curve(workdir / each.path)
        at, step_time = logged["train/step_time"]
        row = {
            "steps": each.steps,
            "updates": each.updates,
            "loss": float(logged["train/loss"][1][-1]),
            "metric": metric,
            "seconds": round(float(np.diff(at, prepend=0) @ step_time), 1),
            "path": each.path,
        }
        with video_io.replacing(workdir / models.STUDENTS, overwrite=True) as new:
            new.write_text(json.dumps([*rows, row], indent=1) + "\n")
        return row

    rows.append(on_first_process(add))
