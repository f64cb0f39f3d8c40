"""Training, from a config to a finished run: reads downwards."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import agreement, data, runs, sampling, sharding, video_io
from vdm_jax import model as models
from vdm_jax.checkpoint import check_same_arrays
from vdm_jax.data import pipeline
from vdm_jax.data.source import Source
from vdm_jax.diffusion import losses, samplers, schedules
from vdm_jax.errors import UserError
from vdm_jax.files import check_memory
from vdm_jax.training import captions
from vdm_jax.training import optimizer as optim
from vdm_jax.training import step as steps
from vdm_jax.training.checks import check_batch_memory, check_config
from vdm_jax.training.run import Run, open_run
from vdm_jax.training.state import TrainState
from vdm_jax.training.train_loop import is_finished, train_loop

LOGSNR_BANDS = (
    (-20, -5),
    (-5, 0),
    (0, 5),
    (5, 20),
)  # of logsnr, for the validation loss
NUM_PREVIEWS = 8  # videos drawn from the same noise again and again
NUM_VALIDATION_CLIPS = 64


class PreviewInterrupted(Exception):
    """A preview is left: the run was asked to stop, and saves at its next step."""


def train(
    config: Any, workdir: Path, time_limit: float | None = None, more: bool = False
) -> TrainState:
    """Train to config.train.steps, or go on from where the workdir stands.

    more: something follows, so a request to stop leaves even after the last step.
    Every process of a run calls this together. Raises UserError before anything is
    written if the config is wrong; SystemExit as `fit` does.
    """
    agreement.check(
        {"command": "train"}
        | agreement.environment()
        | runs.config_without_paths(config)
    )
    check_config(config)
    check_batch_memory(config)
    if config.diffusion.distilled_steps:
        raise UserError(
            f"config.diffusion.distilled_steps={config.diffusion.distilled_steps}: only "
            "distill.py makes students; set it to 0"
        )
    if (workdir / runs.DISTILLATION_FILE).is_file():
        raise UserError(f"{workdir} is a distillation's: give another --workdir")
    mesh = sharding.make_mesh(**config.mesh)
    source, texts, model = build_from_config(config)
    tx = optim.optimizer(config.train)
    rate = optim.learning_rate(config.train)
    loss_fn = steps.make_loss(model, config.diffusion.loss_weighting)
    step = steps.make_step(
        loss_fn,
        tx,
        lambda count, frozen: rate(count),
        config.train.ema_decay,
        config.train.grad_accum_steps,
    )
    key = samplers.key_from_seed(config.seed)
    fingerprint = pipeline.fingerprint(config, source)
    if texts is not None:
        fingerprint["text"] = texts.digest
    abstract = jax.eval_shape(
        lambda: steps.init_state(model.init_params(key), tx, config.train.ema_decay > 0)
    )
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    check_memory(state_bytes / jax.process_count(), "parameters and optimiser")
    shardings = sharding.state_shardings(mesh, abstract)
    abstract = sharding.with_shardings(abstract, shardings)
    with (
        open_run(
            workdir, config, fingerprint, time_limit, abstract_state=abstract
        ) as run,
        jax.set_mesh(mesh),
        sharding.activation_rules(),
    ):
        batches = pipeline.train_batches(
            config, source, jax.process_index(), jax.process_count()
        )

        def init(params=None) -> TrainState:
            if params is None:
                params = model.init(key)
                agreement.check({"new parameters": agreement.arrays_checksum(params)})
            start = jax.jit(
                lambda p: steps.init_state(p, tx, config.train.ema_decay > 0),
                out_shardings=shardings,
            )
            return start(params)

        def load(other: str):
            params = runs.load(other, mesh).params
            check_same_arrays(params, abstract.params, f"config.init_from={other}")
            return params

        state = run.resume(abstract, init, batches, load)
        if is_finished(run, int(state.step), config.train.steps):
            return state
        shapes = batch_shapes(config, model, mesh, texts)

        def put(batch):
            batch = captions.add_text(batch, texts)
            return sharding.put_batch(mesh, {name: batch[name] for name in shapes})

        compiled = compile_step(run, step, mesh, abstract, {}, shapes, key)
        describe(run, model, mesh, abstract, compiled, source)
        return train_loop(
            compiled,
            state,
            {},
            batches,
            num_steps=config.train.steps,
            run=run,
            config_train=config.train,
            key=key,
            put=put,
            observers=observers(config, model, mesh, source, texts, run),
            diagnose=lambda *where: steps.first_non_finite(loss_fn, *where),
            more=more,
        )


def build_from_config(
    config: Any,
) -> tuple[Source, captions.CaptionEmbeddings | None, models.DiffusionModel]:
    """What a config asks for; fills in what it leaves open.

    Raises:
      UserError: parts that do not fit each other or the data.
    """
    if config.conditioning.guidance_range:
        raise UserError(
            f"config.conditioning.guidance_range={config.conditioning.guidance_range}: "
            "only distill.py makes students that are told a weight; set it to ()"
        )
    source = data.open_source(config)
    data.resolve(config, source)
    texts = captions.open_caption_embeddings(config, source)
    model = runs.build_checked_model(
        config,
        "config.network, .data, .conditioning and .diffusion make no model",
        "give each field what configs/shapes.py has there",
    )
    asked = sampling.Settings.from_config(config.sample)
    sampling.check_settings(model, config.sample.num, config.seed, asked)
    sampling.draw_labels(model, 1, config.sample.label)
    return source, texts, model


def compile_step(run: Run, step, mesh, state, *others):
    """One update, of a state that is given away: shapes with shardings -> program."""
    started = time.perf_counter()
    outputs = jax.tree.map(lambda leaf: leaf.sharding, state), sharding.replicated(mesh)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=outputs)
    compiled = jitted.lower(state, *others).compile()
    seconds = time.perf_counter() - started
    run.logger.info(f"compiled the training step in {seconds:.1f} s")
    return compiled


def batch_shapes(
    config, model: models.DiffusionModel, mesh, texts: captions.CaptionEmbeddings | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """What of a batch goes to the devices, over all processes."""
    b, frames = config.data.batch_size, model.shape[0] + config.data.joint_image_frames
    shapes: dict[str, tuple] = {"video": ((b, frames, *model.shape[1:]), np.uint8)}
    told = (
        (b, 1 + config.data.joint_image_frames)
        if config.data.joint_image_frames
        else (b,)
    )
    if config.data.joint_image_frames:
        shapes["frame_mask"] = ((b, frames), np.bool_)
    if model.label_vocabulary:
        shapes["label"] = ((*told, len(model.label_vocabulary)), np.int32)
    if texts is not None:
        shapes |= texts.shapes(told)
    split = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }


def describe(
    run: Run, model: models.DiffusionModel, mesh, abstract, compiled, source
) -> None:
    """What a person wants to know before the first step is paid for."""
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    device = mesh.devices.flat[0]
    clips, held = len(source.split(False)), len(source.split(True))
    run.logger.info(
        f"{mesh.size} x {device.device_kind} in {jax.process_count()} process(es), "
        f"mesh {dict(mesh.shape)}"
    )
    run.logger.info(f"{count:,} parameters; videos of {model.shape}")
    run.logger.info(f"{source.name}: {clips:,} clips for training, {held:,} held out")
    found = getattr(source, "report", None)  # of a folder: kept, dropped and why
    for line in found.lines() if found else ():
        run.logger.info(line)
    memory = compiled.memory_analysis()
    if memory is not None:
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
        run.logger.info(f"{peak / 2**20:,.0f} MiB a device at the peak of a step")


def observers(
    config, model: models.DiffusionModel, mesh, source, texts, run: Run
) -> tuple:
    """What is looked at on the way: samples from fixed noise, and held-out loss."""
    validate = make_validation(model)
    clips = NUM_VALIDATION_CLIPS + -NUM_VALIDATION_CLIPS % mesh.size
    held_out = len(source.split(True)) > 0
    batch = pipeline.held_out_batch(config, source, clips) if held_out else {}
    batch = captions.add_text(batch, texts) if held_out else batch
    kept = ("video", "label", "text", "text_mask")
    batch = {k: batch[k] for k in kept if k in batch}
    label = config.sample.label
    asked = captions.preview_conditions(
        config, model, source, texts, NUM_PREVIEWS, label, config.seed
    )

    def leave_when_asked(done: int, total: int) -> None:
        if run.stop.requested():
            raise PreviewInterrupted

    def preview(state: TrainState) -> None:
        try:
            videos = sampling.sample(
                model,
                state.params if state.ema is None else state.ema,
                NUM_PREVIEWS,
                sampling.Settings.from_config(config.sample),
                **asked,
                seed=config.seed,
                mesh=mesh,
                progress=leave_when_asked,
            )
        except PreviewInterrupted:
            return
        if run.logger.active:
            videos = sampling.to_uint8(videos)
            write_preview(run, int(state.step), videos, config.video.fps)

    def validation(state: TrainState) -> dict[str, float]:
        params = state.params if state.ema is None else state.ema
        return {k: float(v) for k, v in validate(params, batch).items()}

    return (
        (config.train.sample_every, "sampling", preview),
        *([(config.train.eval_every, "validating", validation)] * held_out),
    )


def make_validation(model: models.DiffusionModel):
    """(params, batch) -> loss in each band of logsnr, with the same noise every time.

    logsnr is spread evenly over the band, not as training draws it, so that bands can
    be compared between schedules.
    """

    @jax.jit
    def validate(params, batch):
        x, cond = model.prepare_batch(
            batch, samplers.key_from_seed(len(LOGSNR_BANDS)), drop_conditions=False
        )
        denoise = model.denoiser(params)
        out = {}
        for i, (low, high) in enumerate(LOGSNR_BANDS):
            time_key, noise_key = jax.random.split(samplers.key_from_seed(i))
            spread = losses.stratified_times(time_key, x.shape[0], x.dtype)
            angle = schedules.angle_from_logsnr(low + (high - low) * spread)
            step = schedules.noise_level_from_angle(angle)
            eps = jax.random.normal(noise_key, x.shape, x.dtype)
            loss, _ = losses.diffusion_loss(denoise, x, eps, step, cond)
            out[f"val/loss_{low}_{high}"] = loss.mean()
        return out

    return validate


def write_preview(run: Run, step: int, videos: np.ndarray, fps: float) -> None:
    """The samples of one look: the arrays, a gif and a contact sheet for people.

    A run that went back to an older checkpoint makes some of them again.
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
