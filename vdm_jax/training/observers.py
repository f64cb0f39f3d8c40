"""What is computed at intervals during training: previews and the validation loss."""

import contextlib
from typing import Any

import jax
import numpy as np

from vdm_jax import sampling, video_io
from vdm_jax.data import pipeline
from vdm_jax.diffusion import losses, samplers, schedules
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.types import Progress, no_progress
from vdm_jax.training.captions import add_text
from vdm_jax.training.run import OpenRun
from vdm_jax.training.step import TrainState
from vdm_jax.training.train_loop import Observer
from vdm_jax.training.trainer import Trainer

LOGSNR_BANDS = ((-20, -5), (-5, 0), (0, 5), (5, 20))  # of the validation loss
NUM_PREVIEWS = 8  # videos, always sampled from the same noise
NUM_VALIDATION_CLIPS = 64


class PreviewInterrupted(Exception):
    """Sampling ended early because the run was requested to stop."""


def make_observers(trainer: Trainer, run: OpenRun) -> tuple[Observer, ...]:
    """Return the observers of a training run: previews, and the loss of held-out clips.

    Previews are of the same noise and conditions each time. One returns early, without
    samples, once the run is requested to stop. The loss is left out where no clips are
    held out.
    """
    config, model, source = run.config, trainer.model, trainer.source
    settings = sampling.Settings.from_config(config.sample)
    samples = FixedSamples(trainer, NUM_PREVIEWS, config.sample.label, config.seed)

    def progress(done: int, total: int) -> None:
        if run.stop.requested():
            raise PreviewInterrupted

    def preview(state: TrainState) -> None:
        with contextlib.suppress(PreviewInterrupted):
            videos = samples(model, state.eval_params, settings, progress)
            write_preview(run, int(state.step), videos)

    previews = config.train.sample_every, "sampling", preview
    if not len(source.split(True)):
        return (previews,)
    validate = make_validation(model)
    clips = NUM_VALIDATION_CLIPS + -NUM_VALIDATION_CLIPS % trainer.mesh.size
    batch = pipeline.held_out_batch(config, source, clips)
    batch = add_text(batch, trainer.captions)
    batch = {name: batch[name] for name in {"video"} | model.batch_arrays}

    def validation(state: TrainState) -> dict[str, jax.Array]:
        return validate(trainer.with_codec(state.eval_params), batch)

    return previews, (config.train.eval_every, "validating", validation)


class FixedSamples:
    """Samples of the same noise and conditions, whatever the model and parameters.

    Attributes:
      cond: the conditions, as `preview_conditions` chooses them.
    """

    def __init__(self, trainer: Trainer, num: int, label: str, seed: int):
        self.num, self.seed, self.trainer = num, seed, trainer
        self.cond = preview_conditions(trainer, num, label, seed)

    def __call__(
        self,
        model: DiffusionModel,
        params: Params,
        settings: sampling.Settings,
        progress: Progress = no_progress,
    ) -> np.ndarray:
        """Return uint8 videos [num, f, h, w, c]."""
        videos = sampling.sample(
            model,
            self.trainer.with_codec(params),
            self.num,
            settings,
            sampling.SamplingInputs(self.cond),
            sampling.Run(self.seed, mesh=self.trainer.mesh, progress=progress),
        )
        return sampling.to_uint8(videos)


def preview_conditions(
    trainer: Trainer, num: int, label: str, seed: int
) -> dict[str, Any]:
    """Return the conditions of `num` previews, as sampling.sample takes them.

    Labels are as `label` says where the model is conditioned on nothing else. Otherwise
    all conditions are of held-out clips, or of training clips where none are held out.
    """
    model, source = trainer.model, trainer.source
    arrays = model.batch_arrays
    labels = sampling.label_array(model, num, label, seed)
    cond = {} if labels is None else {"label": labels}
    if not (arrays - {"label"} or model.video_conditions):
        return cond
    part = source.split(True)
    part = part if len(part) else source.split(False)
    clips = list(pipeline.fixed_clips(trainer.config, part, num, seed))
    if trainer.captions is not None:
        cond |= trainer.captions([clip["caption"][0] for clip in clips])
    video = np.concatenate([clip["video"] for clip in clips])
    for name, condition in model.video_conditions:
        observe = jax.jit(condition.observation)
        cond[name] = np.asarray(observe(model.normalize(video)))
    # With a video alone labels may be of others: they are drawn as `label` says.
    for name in arrays & clips[0].keys() if arrays - {"label"} else ():
        cond[name] = np.concatenate([clip[name] for clip in clips])
    return cond


def make_validation(model: DiffusionModel):
    """Return (params, batch) -> the loss of each band of logsnr, by name.

    params: with params["codec"] where the codec has parameters.
    The noise is the same at every call. logsnr is spread evenly over each band, not as
    in training, so that the losses of different schedules can be compared.
    """

    @jax.jit
    def validate(params, batch):
        key = samplers.key_from_seed(len(LOGSNR_BANDS))
        x, cond = model.prepare_batch(batch, key, False, params.get("codec"))
        denoise = model.denoiser(params)
        out = {}
        for i, (low, high) in enumerate(LOGSNR_BANDS):
            time_key, noise_key = jax.random.split(samplers.key_from_seed(i))
            spread = schedules.stratified_times(time_key, x.shape[0], x.dtype)
            angle = schedules.angle_from_logsnr(low + (high - low) * spread)
            level = schedules.noise_level_from_angle(angle)
            eps = jax.random.normal(noise_key, x.shape, x.dtype)
            loss = losses.diffusion_loss(denoise, x, eps, level, cond)
            out[f"val/loss_{low}_{high}"] = loss.mean()
        return out

    return validate


def write_preview(run: OpenRun, step: int, videos: np.ndarray) -> None:
    """Write samples as arrays, as a GIF and as a contact sheet, and log them.

    Process 0 does so. The samples of this step are overwritten: a run that was resumed
    from an older checkpoint makes some of them again.

    videos: uint8 [n, f, h, w, c].
    """
    if not run.logger.active:
        return
    path = run.workdir / "samples" / f"step-{step:07d}"
    gif, sheet = path.with_suffix(".gif"), path.with_suffix(".png")
    grid = video_io.video_grid(videos)
    fps = run.config.video.fps
    scale = video_io.display_scale(*videos.shape[2:4], short_side=96)
    with run.logger.recording_failure():
        video_io.write_npz(path.with_suffix(".npz"), videos, overwrite=True)
        video_io.write_gif(gif, grid, fps, scale=scale, overwrite=True)
        video_io.write_sheet(sheet, videos, overwrite=True)
        run.logger.gif(step, "samples", gif)
