"""The metric of a round: samples of a student from fixed noise and conditions."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vdm_jax import files, sampling, video_io
from vdm_jax.checkpoint import on_first_process
from vdm_jax.data.source import Source
from vdm_jax.distillation.rounds import Round
from vdm_jax.distillation.workdir import REFERENCE_FILE
from vdm_jax.manifest import reading_files
from vdm_jax.metrics import reconstruction
from vdm_jax.metrics.by_source import ATTRIBUTE_METRICS
from vdm_jax.metrics.video_arrays import to_float64
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.runs import TrainedModel
from vdm_jax.training.captions import CaptionEmbeddings, preview_conditions
from vdm_jax.training.observers import (
    NUM_PREVIEWS,
    PreviewInterrupted,
    write_preview,
)
from vdm_jax.training.run import Run

MAX_REFERENCE_STEPS = 64  # of the teacher, which is sampled once


class StudentEvaluator:
    """Samples every model from the same noise and conditions, and scores the videos.

    Args:
      config: of the distillation.
      teacher: the first one.
    """

    def __init__(
        self,
        config: Any,
        student: DiffusionModel,
        teacher: TrainedModel,
        source: Source,
        captions: CaptionEmbeddings | None,
        mesh: Mesh,
    ):
        self.config, self.student, self.mesh = config, student, mesh
        self.attributes = ATTRIBUTE_METRICS.get(teacher.config.data.source)
        self.cond = preview_conditions(
            teacher.config,
            student,
            source,
            captions,
            config.distill.num,
            "",
            config.seed,
        )

    def evaluate_teacher(self, workdir: Path, teacher: TrainedModel) -> float:
        """Return the metric that the first round is compared with.

        The teacher's videos are kept in the workdir. They are sampled by DDIM, in
        config.distill.start_steps steps but at most MAX_REFERENCE_STEPS, with the
        default guidance scale of the students.
        """
        distill, path = self.config.distill, workdir / REFERENCE_FILE
        if not on_first_process(lambda: self._has_reference(path)):
            scale = float(teacher.config.sample.guidance_scale)
            if distill.guidance_range:
                low, high = distill.guidance_range
                scale = float(np.clip(scale, low, high))
            elif not teacher.model.guidance_range:
                scale = 1.0
            settings = dataclasses.replace(
                sampling.Settings.from_config(teacher.config.sample),
                sampler="ddim",
                steps=min(distill.start_steps, MAX_REFERENCE_STEPS),
                sampling_schedule="",
                langevin_delta=0.0,
                guidance_scale=scale,
                guidance_schedule="constant",
                cfg_mode="linear",
            )
            videos = self._sample(teacher.model, teacher.params, settings)
            on_first_process(lambda: video_io.write_npz(path, videos, overwrite=True))
        self.reference = video_io.read_npz(path)
        return self._metric(self.reference)

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

    def _sample(
        self,
        model: DiffusionModel,
        params: Params,
        settings: sampling.Settings,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> np.ndarray:
        """Sample uint8 videos [num, f, h, w, c]."""
        videos = sampling.sample(
            model,
            params,
            self.config.distill.num,
            settings,
            cond=self.cond,
            seed=self.config.seed,
            mesh=self.mesh,
            progress=progress,
        )
        return sampling.to_uint8(videos)

    def _metric(self, videos: np.ndarray) -> float:
        if self.config.distill.metric == "r2_to_teacher":
            return reconstruction.r2(to_float64(videos), to_float64(self.reference))
        assert self.attributes is not None  # rounds.check requires it
        labels = self.cond["label"]
        return float(self.attributes.attribute_scores(videos, labels)["all_attributes"])

    def evaluate_student(self, run: Run, student_round: Round, params: Params) -> float:
        """Return the metric of a finished round and write previews of its samples.

        Raises:
          PreviewInterrupted: the run was requested to stop.
        """
        settings = sampling.Settings.from_config(run.config.sample)
        # A request that is older than this, such as a time limit that has passed, ends
        # the command after the evaluation: under a limit that is shorter than it, the
        # same command would never get further.
        before = run.stop.requested()

        def stop_on_request(done: int, total: int) -> None:
            if run.stop.requested() > before:
                raise PreviewInterrupted

        videos = self._sample(self.student, params, settings, stop_on_request)
        if run.logger.active:
            previews, fps = videos[:NUM_PREVIEWS], run.config.video.fps
            write_preview(run, student_round.updates, previews, fps)
        to_teacher = self.config.distill.metric == "r2_to_teacher"
        if to_teacher and settings.sampler != "ddim":
            # Compared without the noise of its sampler, whose steps are double.
            plain = dataclasses.replace(
                settings, sampler="ddim", steps=max(student_round.steps // 2, 1)
            )
            videos = self._sample(self.student, params, plain, stop_on_request)
        return self._metric(videos)
