"""The students: training and evaluation of each, as one class for all rounds."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import files, sampling, sharding, video_io
from vdm_jax.checkpoint import on_first_process
from vdm_jax.distillation import losses
from vdm_jax.distillation.rounds import Round
from vdm_jax.distillation.workdir import REFERENCE_FILE
from vdm_jax.manifest import reading_files
from vdm_jax.metrics import attributes, pixel_statistics
from vdm_jax.metrics.video_arrays import to_float64
from vdm_jax.model import Params
from vdm_jax.runs import TrainedModel
from vdm_jax.training.init import start_from
from vdm_jax.training.observers import NUM_PREVIEWS, FixedSamples, write_preview
from vdm_jax.training.run import OpenRun
from vdm_jax.training.step import TrainState
from vdm_jax.training.train_loop import Update
from vdm_jax.training.trainer import Trainer

# Parameters that a student with guidance has and its teacher lacks.
GUIDANCE_PARAMS = "conditioning_encoder/guidance_weight/.*"
MAX_REFERENCE_STEPS = 64  # of the teacher, which is sampled once


class Distiller:
    """Trains the student of each round, and scores the videos of every model.

    What rounds differ by (the teacher's parameters, the numbers of steps and updates)
    is an argument of the compiled update, so that all rounds share one program. The
    round that distils guidance has another loss, and a program of its own. All models
    are sampled from the same noise and conditions.

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
        self._teacher_config = teacher.config
        self._samples = FixedSamples(trainer, config.distill.num, "", config.seed)

    def train(
        self, run: OpenRun, student_round: Round, teacher_params: Params
    ) -> Params:
        """Train or resume the student of a round to its last update.

        teacher_params: of the student before, or of the first teacher.
        Returns the student's parameters to sample with.
        """
        trainer = self.trainer
        teacher_params = {**teacher_params}
        teacher_params.pop("codec", None)  # the trainer has them
        rules = self.config.mesh.param_rules  # a teacher is loaded by those of sampling
        placed = sharding.state_shardings(trainer.mesh, teacher_params, rules)
        teacher_params = jax.device_put(teacher_params, placed)
        numbers = {
            "steps": np.int32(student_round.steps),
            "updates": np.int32(student_round.updates),
            "time_power": np.float32(student_round.time_power),
        }
        everywhere = sharding.replicated(trainer.mesh)
        aux_params = {"teacher": teacher_params} | jax.device_put(numbers, everywhere)

        def init() -> TrainState:
            """Start from the teacher. A new guidance embedding adds zero at first."""
            params = start_from(
                teacher_params,
                trainer.abstract_state.params,
                lambda: trainer.new_params(run.config.seed),
                "the teacher",
                new=[GUIDANCE_PARAMS],
            )
            return trainer.init_state(params)

        def make_update() -> Update:
            return self._update(run, student_round.distills_guidance, aux_params)

        state = trainer.train(run, init, make_update, aux_params=aux_params)
        return state.eval_params

    def _update(self, run: OpenRun, distills_guidance: bool, aux_params: Any) -> Update:
        """Return the update of one kind of round; the first call compiles it."""
        if distills_guidance in self._updates:
            return self._updates[distills_guidance]
        distill = self.config.distill
        if distills_guidance:
            loss_fn = losses.guidance_distillation_loss(
                self.student, self.teacher, distill.loss_weighting
            )
        else:
            double = distill.sampler == "stochastic"
            loss_fn = losses.progressive_distillation_loss(
                self.student, distill.loss_weighting, double, self._clip_x
            )
        update = self.trainer.compile_update(run, loss_fn, aux_params)
        return self._updates.setdefault(distills_guidance, update)

    def evaluate_teacher(self, workdir: Path, teacher: TrainedModel) -> float:
        """Return the metric that the first round is compared with.

        The teacher's videos are kept in the workdir. They are sampled as those of the
        first student, but by DDIM in config.distill.start_steps steps, at most
        MAX_REFERENCE_STEPS.
        """
        path = workdir / REFERENCE_FILE
        if not on_first_process(lambda: self._has_reference(path)):
            settings = dataclasses.replace(
                sampling.Settings.from_config(self.trainer.config.sample),
                sampler="ddim",
                steps=min(self.config.distill.start_steps, MAX_REFERENCE_STEPS),
            )
            videos = self._samples(teacher.model, teacher.params, settings)
            on_first_process(lambda: video_io.write_npz(path, videos, overwrite=True))
        self._reference = video_io.read_npz(path)
        return self._metric(self._reference)

    def _has_reference(self, path: Path) -> bool:
        """Return whether the teacher's videos exist; a damaged file is set aside."""
        if not path.is_file():
            return False
        expected = self.config.distill.num, *self.student.video_shape
        try:
            with reading_files(path):
                shape = video_io.read_npz(path).shape
            if shape != expected:
                raise files.CorruptFile(f"videos {shape} instead of {expected}")
        except files.CorruptFile as damage:
            files.set_aside(path, str(damage))
            return False
        return True

    def _metric(self, videos: np.ndarray) -> float:
        if self.config.distill.metric == "r2_to_teacher":
            return pixel_statistics.r2(to_float64(videos), to_float64(self._reference))
        metric = attributes.open_metric(self._teacher_config)
        assert metric is not None  # rounds.check requires it
        scores = metric.scores(videos, self._samples.cond["label"])
        return float(scores[""]["all_attributes"])

    def evaluate_student(
        self, run: OpenRun, student_round: Round, params: Params
    ) -> float:
        """Return the metric of a finished round and write previews of its samples.

        Raises:
          SystemExit: the run was requested to stop.
        """
        settings = sampling.Settings.from_config(run.config.sample)
        # A request that is older than this, such as a time limit that has passed, ends
        # the command after the evaluation: under a limit that is shorter than it, the
        # same command would never get further.
        known = run.stop.requested()

        def progress(done: int, total: int) -> None:
            run.stop.exit_if_requested(f"saved {student_round.path}", known)

        videos = self._samples(self.student, params, settings, progress)
        captions = self._samples.captions[:NUM_PREVIEWS]
        write_preview(run, student_round.updates, videos[:NUM_PREVIEWS], captions)
        to_teacher = self.config.distill.metric == "r2_to_teacher"
        if to_teacher and settings.sampler != "ddim":
            # Compared without the noise of its sampler, whose steps are double.
            steps = max(student_round.steps // 2, 1)
            plain = dataclasses.replace(settings, sampler="ddim", steps=steps)
            videos = self._samples(self.student, params, plain, progress)
        return self._metric(videos)
