"""The metric of a round: samples of a student from fixed noise and conditions."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import files, sampling, video_io
from vdm_jax.checkpoint import on_first_process
from vdm_jax.distillation.rounds import Round
from vdm_jax.distillation.workdir import REFERENCE_FILE
from vdm_jax.manifest import reading_files
from vdm_jax.metrics import pixel_statistics
from vdm_jax.metrics.attributes import ATTRIBUTE_METRICS
from vdm_jax.metrics.video_arrays import to_float64
from vdm_jax.model import Params
from vdm_jax.runs import TrainedModel
from vdm_jax.training.observers import (
    NUM_PREVIEWS,
    FixedSamples,
    stop_on_request,
    write_preview,
)
from vdm_jax.training.run import Run
from vdm_jax.training.trainer import Trainer

MAX_REFERENCE_STEPS = 64  # of the teacher, which is sampled once


class StudentEvaluator:
    """Samples every model from the same noise and conditions, and scores the videos.

    Args:
      config: of the distillation.
      teacher: the first one.
      trainer: of the student.
    """

    def __init__(self, config: Any, teacher: TrainedModel, trainer: Trainer):
        self.config, self.trainer = config, trainer
        self.attributes = ATTRIBUTE_METRICS.get(teacher.config.data.source)
        self.samples = FixedSamples(trainer, config.distill.num, "", config.seed)

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
            videos = self.samples(teacher.model, teacher.params, settings)
            on_first_process(lambda: video_io.write_npz(path, videos, overwrite=True))
        self.reference = video_io.read_npz(path)
        return self._metric(self.reference)

    def _has_reference(self, path: Path) -> bool:
        """Return whether the teacher's videos exist; a damaged file is set aside."""
        if not path.is_file():
            return False
        expected = self.config.distill.num, *self.trainer.model.video_shape
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
            return pixel_statistics.r2(to_float64(videos), to_float64(self.reference))
        assert self.attributes is not None  # rounds.check requires it
        labels = self.samples.cond["label"]
        return float(self.attributes.attribute_scores(videos, labels)["all_attributes"])

    def evaluate_student(self, run: Run, student_round: Round, params: Params) -> float:
        """Return the metric of a finished round and write previews of its samples.

        Raises:
          PreviewInterrupted: the run was requested to stop.
        """
        model = self.trainer.model
        settings = sampling.Settings.from_config(run.config.sample)
        # A request that is older than this, such as a time limit that has passed, ends
        # the command after the evaluation: under a limit that is shorter than it, the
        # same command would never get further.
        stop = stop_on_request(run, known=run.stop.requested())
        videos = self.samples(model, params, settings, stop)
        write_preview(run, student_round.updates, videos[:NUM_PREVIEWS])
        to_teacher = self.config.distill.metric == "r2_to_teacher"
        if to_teacher and settings.sampler != "ddim":
            # Compared without the noise of its sampler, whose steps are double.
            steps = max(student_round.steps // 2, 1)
            plain = dataclasses.replace(settings, sampler="ddim", steps=steps)
            videos = self.samples(model, params, plain, stop)
        return self._metric(videos)
