"""sample.py with --cascade or --prompt: prompts through all stages of a cascade."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from vdm_jax.commands.flags import present_values
from vdm_jax.commands.main import command_line
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, read_text, split_lines

FLAGS = flags.FLAGS


def sample_cascade(settings: Collection[str]) -> None:
    """Sample every stage and write its videos; the last stage's go to --out itself.

    A model conditioned on text alone is a cascade of one stage. settings: names of the
    settings that the command line overrides, at every stage.
    """
    from vdm_jax import cascade as cascades
    from vdm_jax import sampling, video_io

    out = Path(FLAGS.out)
    path = FLAGS.cascade or FLAGS.workdir
    cascade = cascades.read(path).truncate(FLAGS.last_stage)
    prompts = read_prompts([stage.model.video_shape for stage in cascade.stages])
    if FLAGS.text_encoder is not None:
        if not cascade.text_encoder:
            raise UserError(f"--text_encoder: {path} was trained without text")
        cascade = dataclasses.replace(cascade, text_encoder=FLAGS.text_encoder)
    cascade = cascade.with_sampling(present_values(settings))
    for stage in cascade.stages:
        steps = stage.config.diffusion.distilled_steps
        if steps and stage.settings.steps != steps:
            print(f"{stage.name}: this student was distilled for {steps} steps")
    folders = [*(out / stage.name for stage in cascade.stages[:-1]), out]
    for folder in reversed(folders):
        video_io.check_output_folder(folder, "samples", FLAGS.overwrite)
    cond, negative = cascades.encode_prompts(
        cascade, prompts, FLAGS.negative_prompt or ""
    )
    with tqdm(unit="step", disable=None) as bar:

        def progress(name: str, done: int, total: int) -> None:
            if done <= bar.n:
                bar.reset()
            bar.set_description(name)
            bar.total = total
            bar.update(done - bar.n)

        videos = cascades.sample(
            cascade,
            len(prompts),
            cond,
            negative,
            seed=FLAGS.seed,
            progress=progress,
        )
    names = [stage.name for stage in cascade.stages]
    meta = {"command": command_line(), "seed": FLAGS.seed, "cascade": path}
    for i, (stage, folder) in enumerate(zip(cascade.stages, folders, strict=True)):
        files = video_io.write_samples(
            folder,
            "samples",
            sampling.to_uint8(videos[stage.name]),
            stage.config.video.fps,
            meta
            | {"stages": names[: i + 1], "sample": dataclasses.asdict(stage.settings)},
            labels=prompts,
            overwrite=FLAGS.overwrite,
        )
        if folder is out:
            print(f"{len(prompts)} videos in {out}; see {files[-3]}")


def read_prompts(shapes: Sequence[Sequence[int]]) -> list[str]:
    """Return the texts of --prompt and --prompts, each --num times; "" without any.

    shapes: of the videos of every stage, which must fit into memory.
    """
    from vdm_jax import sampling

    texts = list(FLAGS.prompt)
    if FLAGS.prompts is not None:
        try:
            lines = split_lines(read_text(FLAGS.prompts))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--prompts={FLAGS.prompts}: {reason}") from error
        except CorruptFile as error:
            raise UserError(f"--prompts={FLAGS.prompts}: {error}") from error
        texts += [line.strip() for line in lines if line.strip()]
        if not texts:
            raise UserError(f"--prompts={FLAGS.prompts} holds no prompt")
    num = 1 if FLAGS.num is None else FLAGS.num
    if num < 1:
        raise UserError(f"--num={num}: at least 1")
    texts = texts or [""]
    for shape in shapes:
        sampling.check_video_memory(len(texts) * num, shape, f"--num={num}")
    return [text for text in texts for _ in range(num)]
