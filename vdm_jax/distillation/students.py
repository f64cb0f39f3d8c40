"""Training the students: one compiled update for each kind of round."""

import contextlib
import re
from typing import Any

import jax
import numpy as np

from vdm_jax import agreement, sharding
from vdm_jax.checkpoint import check_same_arrays
from vdm_jax.diffusion import samplers
from vdm_jax.distillation.losses import (
    guidance_distillation_loss,
    progressive_distillation_loss,
)
from vdm_jax.distillation.rounds import Round
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.pretrained.params import flatten
from vdm_jax.runs import TrainedModel
from vdm_jax.training.logging import Totals
from vdm_jax.training.optimizer import learning_rate
from vdm_jax.training.run import Run
from vdm_jax.training.train_loop import Update, train_loop
from vdm_jax.training.trainer import Trainer

# Parameters that a student with guidance has and its teacher lacks.
GUIDANCE_PARAMS = "conditioning_encoder/guidance_weight/.*"


class DistillationTrainer:
    """Trains the student of each round.

    What rounds differ by (the teacher's parameters, the numbers of steps and updates)
    is an argument of the compiled update, so that all rounds share one program. The
    round that distils guidance has another loss, and a program of its own.

    Args:
      config: of the distillation.
      teacher: the first one.
      trainer: of the student.
    """

    def __init__(self, config: Any, teacher: TrainedModel, trainer: Trainer):
        self.config, self.trainer = config, trainer
        self.student, self.teacher = trainer.model, teacher.model
        # The x of a prediction of eps has no bound where alpha is near 0.
        predicts_eps = self.student.prediction_type == "eps"
        self._clip_x = teacher.config.sample.clip_x if predicts_eps else 0.0
        self._updates: dict[bool, Update] = {}

    def train(
        self, run: Run, student_round: Round, teacher: Params
    ) -> tuple[Params, Totals]:
        """Train or resume the student of a round to its last update.

        teacher: parameters of the student before, or of the first teacher.
        Returns the student's parameters to sample with, and its loss and duration.

        Raises:
          UserError: it has made more updates than the config says.
        """
        config, last = run.config, student_round.updates
        key = samplers.key_from_seed(config.seed)
        numbers = {
            "steps": np.int32(student_round.steps),
            "updates": np.int32(last),
            "time_power": np.float32(student_round.time_power),
        }
        mesh, rules = self.trainer.mesh, self.config.mesh.param_rules
        teacher = jax.device_put(
            teacher, sharding.state_shardings(mesh, teacher, rules)
        )  # a teacher is loaded with the default rules
        aux_params = {"teacher": teacher} | jax.device_put(
            numbers, sharding.replicated(mesh)
        )

        def init(_) -> Any:
            params = teacher
            if student_round.distills_guidance:
                params = init_student(self.student, teacher, key)
            return self.trainer.init_state(params)

        with contextlib.closing(self.trainer.batches(config)) as batches:
            state = run.resume(
                self.trainer.abstract_state, init, batches, lambda origin: teacher
            )
            if int(state.step) > last:
                raise UserError(
                    f"{run.workdir} has made {int(state.step)} updates, more than the "
                    f"{last} of the config: set them to as many at least"
                )
            if int(state.step) == last:  # stopped before the round was committed
                return state.eval_params, run.logger.totals
            update = self._update(run, student_round.distills_guidance, aux_params, key)
            state, totals = train_loop(
                update,
                state,
                aux_params,
                batches,
                num_steps=last,
                run=run,
                key=key,
            )
        return state.eval_params, totals

    def _update(
        self, run: Run, distills_guidance: bool, aux_params: Any, key: jax.Array
    ) -> Update:
        """Return the update of one kind of round; the first call compiles it."""
        if distills_guidance in self._updates:
            return self._updates[distills_guidance]
        distill = self.config.distill
        if distills_guidance:
            loss_fn = guidance_distillation_loss(
                self.student, self.teacher, distill.loss_weighting
            )
        else:
            double = distill.sampler == "stochastic"
            loss_fn = progressive_distillation_loss(
                self.student, distill.loss_weighting, double, self._clip_x
            )
        lr_schedule = learning_rate(run.config.train)
        update = self.trainer.compile_update(
            run,
            loss_fn,
            lambda step, aux_params: lr_schedule(step, aux_params["updates"]),
            aux_params,
            key,
        )
        self._updates[distills_guidance] = update
        return update


def init_student(student: DiffusionModel, params: Params, key: jax.Array) -> Params:
    """Return the first parameters of a student with guidance.

    They are its teacher's, and those of the guidance embedding, which adds zero.

    Raises:
      UserError: any other parameter is missing or left over.
    """
    template = student.init(key)
    inherited = flatten(params)
    new = {
        name: np.asarray(leaf)  # the same on every process
        for name, leaf in flatten(template).items()
        if name not in inherited and re.fullmatch(GUIDANCE_PARAMS, name)
    }
    agreement.check({"new parameters": agreement.arrays_checksum(new)})
    merged = inherited | new
    check_same_arrays(merged, flatten(template), "the teacher")
    leaves = [merged[name] for name in flatten(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
