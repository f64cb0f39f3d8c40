"""What is computed at intervals during training: previews and the validation loss."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax import sampling, video_io
from vdm_jax.data import pipeline
from vdm_jax.data.source import Source
from vdm_jax.diffusion import losses, samplers, schedules, time_sampling
from vdm_jax.model import DiffusionModel
from vdm_jax.training.captions import (
    CaptionEmbeddings,
    add_text,
    preview_conditions,
)
from vdm_jax.training.run import Run
from vdm_jax.training.state import TrainState
from vdm_jax.training.train_loop import Observer

LOGSNR_BANDS = ((-20, -5), (-5, 0), (0, 5), (5, 20))  # of the validation loss
NUM_PREVIEWS = 8  # videos, always sampled from the same noise
NUM_VALIDATION_CLIPS = 64


class PreviewInterrupted(Exception):
    """Sampling ended early because the run was requested to stop."""


def make_observers(
    config: Any,
    model: DiffusionModel,
    mesh: Mesh,
    source: Source,
    captions: CaptionEmbeddings | None,
    run: Run,
) -> tuple[Observer, ...]:
    """Return the observers of a training run: previews, and the loss of held-out clips.

    The latter is left out where no clips are held out.
    """
    preview = make_preview(config, model, mesh, source, captions, run)
    observers: tuple[Observer, ...] = (
        (config.train.sample_every, "sampling", preview),
    )
    if not len(source.split(True)):
        return observers
    validate = make_validation(model)
    clips = NUM_VALIDATION_CLIPS + -NUM_VALIDATION_CLIPS % mesh.size
    batch = add_text(pipeline.held_out_batch(config, source, clips), captions)
    batch = {name: batch[name] for name in {"video"} | model.batch_arrays}

    def validation(state: TrainState) -> dict[str, float]:
        bands = validate(state.eval_params, batch)
        return {name: float(loss) for name, loss in bands.items()}

    return (*observers, (config.train.eval_every, "validating", validation))


def make_preview(
    config: Any,
    model: DiffusionModel,
    mesh: Mesh,
    source: Source,
    captions: CaptionEmbeddings | None,
    run: Run,
):
    """Return state -> None, which writes samples of the same noise and conditions.

    It returns early, without samples, once the run is requested to stop.
    """
    cond = preview_conditions(
        config, model, source, captions, NUM_PREVIEWS, config.sample.label, config.seed
    )

    def stop_on_request(done: int, total: int) -> None:
        if run.stop.requested():
            raise PreviewInterrupted

    def preview(state: TrainState) -> None:
        try:
            videos = sampling.sample(
                model,
                state.eval_params,
                NUM_PREVIEWS,
                sampling.Settings.from_config(config.sample),
                cond=cond,
                seed=config.seed,
                mesh=mesh,
                progress=stop_on_request,
            )
        except PreviewInterrupted:
            return
        if run.logger.active:
            videos = sampling.to_uint8(videos)
            write_preview(run, int(state.step), videos, config.video.fps)

    return preview


def make_validation(model: DiffusionModel):
    """Return (params, batch) -> the loss of each band of logsnr, by name.

    The noise is the same at every call. logsnr is spread evenly over each band, not as
    in training, so that the losses of different schedules can be compared.
    """

    @jax.jit
    def validate(params, batch):
        key = samplers.key_from_seed(len(LOGSNR_BANDS))
        x, cond = model.prepare_batch(batch, key, drop_conditions=False)
        denoise = model.denoiser(params)
        out = {}
        for i, (low, high) in enumerate(LOGSNR_BANDS):
            time_key, noise_key = jax.random.split(samplers.key_from_seed(i))
            spread = time_sampling.stratified_times(time_key, x.shape[0], x.dtype)
            angle = schedules.angle_from_logsnr(low + (high - low) * spread)
            level = schedules.noise_level_from_angle(angle)
            eps = jax.random.normal(noise_key, x.shape, x.dtype)
            loss, _ = losses.diffusion_loss(denoise, x, eps, level, cond)
            out[f"val/loss_{low}_{high}"] = loss.mean()
        return out

    return validate


def write_preview(run: Run, step: int, videos: np.ndarray, fps: float) -> None:
    """Write samples as arrays, as a GIF and as a contact sheet, and log them.

    videos: uint8 [n, f, h, w, c]. The samples of this step are overwritten: a run that
    was resumed from an older checkpoint makes some of them again.
    """
    path = run.workdir / "samples" / f"step-{step:07d}"
    grid = video_io.video_grid(videos)
    scale = video_io.display_scale(*videos.shape[2:4], short_side=96)
    with run.logger.recording_failure():
        video_io.write_npz(path.with_suffix(".npz"), videos, overwrite=True)
        gif, sheet = path.with_suffix(".gif"), path.with_suffix(".png")
        video_io.write_gif(gif, grid, fps, scale=scale, overwrite=True)
        video_io.write_sheet(sheet, videos, overwrite=True)
    run.logger.video(step, "samples", grid, fps)
