"""What is computed at intervals during training: previews and the validation loss."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import sampling, sharding, video_io
from vdm_jax.data import pipeline
from vdm_jax.data.one_clip import OneClip
from vdm_jax.diffusion import losses, samplers, schedules
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.networks.control import Controlled
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

    Previews are of the same noise and conditions each time, or edits of the clip that a
    model is tuned on. One returns early, without samples, once the run is requested to
    stop. The loss is left out where no clips are held out.
    """
    config, model, source = run.config, trainer.model, trainer.source
    settings = sampling.Settings.from_config(config.sample)
    if config.network.get("temporal") == "tune" and isinstance(source, OneClip):
        samples = ClipEdit(trainer, source)
    else:
        samples = FixedSamples(trainer, NUM_PREVIEWS, config.sample.label, config.seed)

    def progress(done: int, total: int) -> None:
        if run.stop.requested():
            raise PreviewInterrupted

    def preview(state: TrainState) -> dict[str, float] | None:
        with contextlib.suppress(PreviewInterrupted):
            videos = samples(model, state.eval_params, settings, progress)
            write_preview(run, int(state.step), videos, samples.captions)
            return samples.scores(videos)

    previews = config.train.sample_every, "sampling", preview
    if not len(source.split(True)):
        return (previews,)
    validate = make_validation(model)
    clips = sharding.whole_batch(trainer.mesh, NUM_VALIDATION_CLIPS)
    batch = pipeline.held_out_batch(config, source, clips)
    batch = add_text(batch, trainer.captions)
    names = trainer.batch_shapes[0].keys() & batch.keys()
    batch = {name: batch[name] for name in names}

    def validation(state: TrainState) -> dict[str, jax.Array]:
        return validate({**state.eval_params, **trainer.batch_codec}, batch)

    return previews, (config.train.eval_every, "validating", validation)


class FixedSamples:
    """Samples of the same noise and conditions, whatever the model and parameters.

    Attributes:
      cond: the conditions, as `preview_conditions` chooses them.
      captions: what they say in words, of each video or of none.
    """

    def __init__(self, trainer: Trainer, num: int, label: str, seed: int):
        self.num, self.seed, self.trainer = num, seed, trainer
        self.cond, self.captions = preview_conditions(trainer, num, label, seed)

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

    def scores(self, videos: np.ndarray) -> dict[str, float]:
        """Return what is logged of the videos: nothing."""
        return {}


class ClipEdit:
    """The clip that a model is tuned on and its edit by data.edited_caption.

    Attributes:
      captions: of both.
    """

    def __init__(self, trainer: Trainer, source: OneClip):
        assert trainer.captions is not None
        self.trainer, self.clip = trainer, source.video[None]
        self.captions = source.captions
        self.inputs = sampling.SamplingInputs(trainer.captions(self.captions[1:]))

    def __call__(
        self,
        model: DiffusionModel,
        params: Params,
        settings: sampling.Settings,
        progress: Progress = no_progress,
    ) -> np.ndarray:
        """Return both as uint8 videos [2, f, h, w, c]."""
        trainer = self.trainer
        edit = sampling.edit_by_inversion(
            model,
            trainer.with_codec(params),
            model.normalize(self.clip),
            1,
            dataclasses.replace(settings, sampler="ddim"),
            self.inputs,
            sampling.Run(trainer.config.seed, mesh=trainer.mesh, progress=progress),
        )
        return np.concatenate([self.clip, sampling.to_uint8(edit)])

    def scores(self, videos: np.ndarray) -> dict[str, float]:
        """Return the root mean square distance of both, of pixels in [-1, 1].

        Near 0 the edit is the clip whatever the caption.
        """
        clip, edit = videos / 127.5
        return {"val/edit_distance": float(np.sqrt(np.mean((edit - clip) ** 2)))}


def preview_conditions(
    trainer: Trainer, num: int, label: str, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Return the conditions of `num` previews as sampling.sample takes them, and words.

    The words are the captions of a text model, or the names of the labels, or none.
    Labels are as `label` says where the model is conditioned on nothing else. Otherwise
    all conditions are of held-out clips, or of training clips where none are held out.
    """
    model, source = trainer.model, trainer.source
    arrays = model.batch_arrays
    labels = sampling.label_array(model, num, label, seed)
    cond = {} if labels is None else {"label": labels}
    if not (arrays - {"label"} or model.video_conditions):
        return cond, _label_texts(model, cond)
    part = source.split(True)
    part = part if len(part) else source.split(False)
    clips = list(pipeline.fixed_clips(trainer.config, part, num, seed))
    captions = [str(clip["caption"][0]) for clip in clips]
    if trainer.captions is not None:
        cond |= trainer.captions(captions)
    for name, condition in model.video_conditions:
        video, *read = (
            np.concatenate([clip[array] for clip in clips])
            for array in ("video", *condition.reads)
        )
        observe = jax.jit(condition.observation)
        read = dict(zip(condition.reads, read, strict=True))
        cond[name] = np.asarray(observe(model.normalize(video), **read))
    # With a video alone labels may be of others: they are drawn as `label` says.
    for name in arrays & clips[0].keys() if arrays - {"label"} else ():
        cond[name] = np.concatenate([clip[name] for clip in clips])
    has_text = trainer.captions is not None
    return cond, captions if has_text else _label_texts(model, cond)


def _label_texts(model: DiffusionModel, cond: dict[str, Any]) -> list[str]:
    """Return the names of the labels of conditions, or none."""
    return [sampling.label_text(model, row) for row in cond.get("label", ())]


def make_validation(model: DiffusionModel):
    """Return (params, batch) -> the loss of each band of logsnr, by name.

    Of a model with ControlNets also how much larger the mean of these losses is without
    them, val/control_gain: 0 at the start, and it rises when the hint is understood.

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
        without = []
        for i, (low, high) in enumerate(LOGSNR_BANDS):
            time_key, noise_key = jax.random.split(samplers.key_from_seed(i))
            spread = schedules.stratified_times(time_key, x.shape[0], x.dtype)
            angle = schedules.angle_from_logsnr(low + (high - low) * spread)
            level = schedules.noise_level_from_angle(angle)
            eps = jax.random.normal(noise_key, x.shape, x.dtype)
            loss = losses.diffusion_loss(denoise, x, eps, level, cond)
            out[f"val/loss_{low}_{high}"] = loss.mean()
            if isinstance(model.network, Controlled):
                off = {**cond, "control_scales": jnp.zeros(len(model.network.controls))}
                without.append(losses.diffusion_loss(denoise, x, eps, level, off))
        if without:
            with_control = jnp.stack(list(out.values())).mean()
            out["val/control_gain"] = jnp.stack(without).mean() - with_control
        return out

    return validate


def write_preview(
    run: OpenRun, step: int, videos: np.ndarray, captions: Sequence[str] = ()
) -> None:
    """Write samples as arrays, as a GIF and as a contact sheet, and log them.

    Pictures have no GIF. Process 0 writes. The samples of this step are overwritten: a
    run that was resumed from an older checkpoint makes some of them again.

    videos: uint8 [n, f, h, w, c]. captions: of each, or none.
    """
    if not run.logger.active:
        return
    path = run.workdir / "samples" / f"step-{step:07d}"
    shown = sheet = path.with_suffix(".png")
    with run.logger.recording_failure():
        video_io.write_npz(path.with_suffix(".npz"), videos, overwrite=True)
        if videos.shape[1] > 1:
            shown = path.with_suffix(".gif")
            grid = video_io.video_grid(videos)
            scale = video_io.display_scale(*videos.shape[2:4], short_side=96)
            video_io.write_gif(shown, grid, run.config.video.fps, scale, overwrite=True)
        video_io.write_sheet(sheet, videos, labels=captions, overwrite=True)
        run.logger.image(step, "samples", shown)
