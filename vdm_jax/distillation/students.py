"""Training the students: one compiled update for each kind of round."""

from typing import Any

import jax
import numpy as np

from vdm_jax import sharding
from vdm_jax.distillation.losses import (
    guidance_distillation_loss,
    progressive_distillation_loss,
)
from vdm_jax.distillation.rounds import Round
from vdm_jax.errors import UserError
from vdm_jax.model import Params
from vdm_jax.runs import TrainedModel
from vdm_jax.training.init import start_from
from vdm_jax.training.run import Run
from vdm_jax.training.state import TrainState
from vdm_jax.training.train_loop import Update
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

    def train(self, run: Run, student_round: Round, teacher_params: Params) -> Params:
        """Train or resume the student of a round to its last update.

        teacher_params: of the student before, or of the first teacher.
        Returns the student's parameters to sample with.

        Raises:
          UserError: it has made more updates than the config says.
        """
        trainer, last = self.trainer, student_round.updates
        if (run.restored_step or 0) > last:
            raise UserError(
                f"{run.workdir} has made {run.restored_step} updates, more than the "
                f"{last} of the config: set them to as many at least"
            )
        rules = self.config.mesh.param_rules  # a teacher is loaded by those of sampling
        placed = sharding.state_shardings(trainer.mesh, teacher_params, rules)
        teacher_params = jax.device_put(teacher_params, placed)
        numbers = {
            "steps": np.int32(student_round.steps),
            "updates": np.int32(last),
            "time_power": np.float32(student_round.time_power),
        }
        everywhere = sharding.replicated(trainer.mesh)
        aux_params = {"teacher": teacher_params} | jax.device_put(numbers, everywhere)
        guided = student_round.distills_guidance

        def init() -> TrainState:
            params = teacher_params
            if guided:
                params = self._with_guidance(run, teacher_params)
            return trainer.init_state(params)

        def make_update() -> Update:
            return self._update(run, guided, aux_params)

        state = trainer.train(run, init, make_update, aux_params=aux_params)
        return state.eval_params

    def _with_guidance(self, run: Run, teacher_params: Params) -> Params:
        """Return a teacher's parameters, and those of the guidance embedding.

        The latter adds zero at first.
        """
        return start_from(
            teacher_params,
            self.trainer.abstract_state.params,
            lambda: self.trainer.new_params(run.config.seed),
            "the teacher",
            new=[GUIDANCE_PARAMS],
        )

    def _update(self, run: Run, distills_guidance: bool, aux_params: Any) -> Update:
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
        update = self.trainer.compile_update(run, loss_fn, aux_params)
        return self._updates.setdefault(distills_guidance, update)
