"""What sample.py and edit.py share: conditions, sampling, files.

It is imported when JAX has started; the flags are those of `flags.define_sampling`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from vdm_jax import adapters, sampling, video_io
from vdm_jax import cascade as cascades
from vdm_jax.cascade import Cascade, CascadeStage
from vdm_jax.commands.flags import SAMPLING_SETTINGS, parse_sides, present_values
from vdm_jax.commands.main import command_line
from vdm_jax.commands.systems import ChosenSystem
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, read_text, removed_if_empty, split_lines
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Conditions, Observation, observations
from vdm_jax.sampling.observations import ClipInfo, OutputSpec

FLAGS = flags.FLAGS
Observe = Callable[[OutputSpec], tuple[Observation, ClipInfo]]


ANY_LENGTH = ("wan",)  # kinds of networks that make all frames at once, however many


def read_model() -> Cascade:
    """Return the base model of --workdir, for videos of --size.

    They have --num_frames where the network makes any number at once.

    Raises:
      UserError: no such model, or it is not for the size.
    """
    model = cascades.read_model(FLAGS.workdir)
    base = model.stages[0]
    own, config = base.model.video_shape[:3], base.config
    size = own[1:]
    if FLAGS.size is not None:
        size = parse_sides("size", "HEIGHTxWIDTH in pixels", 1, 9999)
    if FLAGS.num_frames and config.network.kind in ANY_LENGTH:
        size = (FLAGS.num_frames, *size)
    rows = config.mixed_sizes.rows if "mixed_sizes" in config else [own]
    trained = dict.fromkeys(tuple(row[:3])[-len(size) :] for row in rows)
    if size not in trained:
        text, *others = ("x".join(map(str, sides)) for sides in (size, *trained))
        print(f"{text}: the model was trained at {', '.join(others)}")
    if size == own[-len(size) :]:
        return model
    return cascades.read_model(FLAGS.workdir, size)


def override(cascade: Cascade, **others) -> Cascade:
    """Return the cascade with settings, text encoder and LoRAs of the command line.

    others: further settings.

    Raises:
      UserError: a setting is out of its range, or no stage uses it; a LoRA that is not
        for the model.
    """
    if FLAGS.text_encoder is not None:
        if not cascade.text_encoder:
            raise UserError(f"--text_encoder: {cascade.path} was trained without text")
        cascade = dataclasses.replace(cascade, text_encoder=FLAGS.text_encoder)
    if FLAGS.clip_skip is not None:
        if not cascade.text_encoder:
            raise UserError(f"--clip_skip: {cascade.path} was trained without text")
        cascade.stages[0].config.conditioning.clip_skip = FLAGS.clip_skip
    if FLAGS.lora:
        files, base = map(adapters.parse, FLAGS.lora), cascade.stages[0]
        loras = adapters.read([*files], base.model, base.config, cascade.text_encoder)
        cascade = dataclasses.replace(cascade, loras=loras)
    return cascade.with_sampling(present_values(SAMPLING_SETTINGS) | others)


def sample(
    cascade: Cascade,
    *,
    by_stage: bool = False,
    observe: Observe = observations.no_observation,
    backward: bool = False,
    edit: Callable[..., np.ndarray] | None = None,
    system: ChosenSystem | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Sample every stage, and write its videos when it ends.

    Args:
      by_stage: write to OUT/STAGE in place of OUT.
      observe: reads what is known of the first stage's videos.
      backward: samples a longer video from its last block to its first.
      edit: samples from the observed video, called as `sampling.edit_by_inversion`.
      system: makes the videos of the only stage.
      about: what else samples.json says.
    """
    if not FLAGS.out:
        raise UserError("give --out=FOLDER for the videos")
    prompts, num = read_prompts(cascade)
    if FLAGS.negative_label or FLAGS.negative_prompt:
        cascades.check_guided(cascade)
    with _output_folders(cascade, by_stage) as folders:
        is_edit = observe is not observations.no_observation
        cond, negative = cascades.encode_conditions(
            cascade, num, label=_label(cascade.stages[0], is_edit), prompts=prompts,
            negative_label=FLAGS.negative_label, negative_prompt=FLAGS.negative_prompt,
            seed=FLAGS.seed,
        )  # fmt: skip
        about = dict(about)
        if system:
            about["system"] = system.describe()
        else:
            observation, info = _observe(cascade.stages[0], num, observe)
            about |= {"observation": info} if info else {}
        cascade = _guided_by(cascade, cond, negative)
        captions = prompts or _captions(cascade, cond)

        def write(
            stage: CascadeStage, trained: TrainedModel, videos: np.ndarray
        ) -> None:
            own = _describe(stage, trained) | about
            own |= _describe_stages(cascade, stage) if by_stage else {}
            _write(folders[stage.name], stage, videos, own, captions)

        with sampling.progress_bar() as progress:
            if system:
                system.sample(cascade, num, cond, negative, progress, write)
                return
            first = _first_sampler(observation, backward, edit)
            cascades.sample(
                cascade, num, cond, negative, seed=FLAGS.seed, sample_base=first,
                progress=progress, on_stage=write,
            )  # fmt: skip


def _guided_by(
    cascade: Cascade, cond: Conditions, negative: Conditions | None
) -> Cascade:
    """Return the cascade, without guidance where the conditions say nothing."""
    is_open = "text" not in cond and np.all(cond.get("label", -1) < 0)
    if negative is None and is_open and any(s.uses_cfg for s in cascade.stages):
        print("no label or prompt is set: sampling without guidance", flush=True)
        return cascade.without_guidance()
    return cascade


def _captions(cascade: Cascade, cond: Conditions) -> list[str]:
    """Return the labels of the videos as captions, [] of a model without labels."""
    model = cascade.stages[0].model
    return [sampling.label_text(model, row) for row in cond.get("label", ())]


@contextlib.contextmanager
def _output_folders(cascade: Cascade, by_stage: bool) -> Iterator[dict[str, Path]]:
    """Yield the folder of each stage's videos, which is made.

    Those that are left empty, as by a refusal, are removed at the end.

    Raises:
      UserError: one holds samples, without --overwrite.
    """
    out = Path(FLAGS.out)
    folders = {s.name: out / s.name if by_stage else out for s in cascade.stages}
    with contextlib.ExitStack() as stack:
        for folder in folders.values():
            stack.enter_context(removed_if_empty(folder))
            video_io.check_output_folder(folder, "samples", FLAGS.overwrite)
        yield folders


def _write(
    folder: Path,
    stage: CascadeStage,
    videos: np.ndarray,
    about: dict,
    captions: list[str],
) -> None:
    """Write the videos of a stage, and say where they are.

    about: what samples.json says of them. captions: of each, or none.
    """
    video_io.write_samples(
        folder,
        "samples",
        sampling.to_uint8(videos),
        stage.config.video.fps,
        about,
        captions or None,
        FLAGS.overwrite,
    )
    kind = "pictures" if videos.shape[1] == 1 else "videos"
    tqdm.write(f"{len(videos)} {kind} in {folder}; see {folder / 'samples.png'}")


def _describe(stage: CascadeStage, trained: TrainedModel) -> dict:
    """Return what samples.json says of a stage's videos."""
    settings = {**stage.config.sample, **dataclasses.asdict(stage.settings)}
    return {
        "command": command_line(),
        "seed": FLAGS.seed,
        "sample": settings | present_values(("num", "label")),
        "workdir": str(stage.workdir),
        "step": trained.step,
    }


def _describe_stages(cascade: Cascade, stage: CascadeStage) -> dict:
    """Return what samples.json says of the stages up to this one."""
    names = [each.name for each in cascade.stages]
    made = names[: names.index(stage.name) + 1]
    return {"cascade": str(cascade.path), "stages": made}


def texts_and_number(cascade: Cascade) -> tuple[list[str], int]:
    """Return the texts of the flags, and the number of videos, of all of them.

    Raises:
      UserError: a file that holds no prompts.
    """
    texts = list(FLAGS.prompt)
    if FLAGS.prompts is not None:
        try:
            lines = split_lines(read_text(FLAGS.prompts))
        except (OSError, CorruptFile) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--prompts={FLAGS.prompts}: {reason}") from error
        texts += [line.strip() for line in lines if line.strip()]
        if not texts:
            raise UserError(f"--prompts={FLAGS.prompts} holds no prompt")
    each = FLAGS.num or (1 if texts else cascade.stages[0].config.sample.num)
    return texts, each * max(1, len(texts))


def read_prompts(cascade: Cascade) -> tuple[list[str], int]:
    """Return the prompts, one per video or none, and the number of videos.

    Raises:
      UserError: a file that holds no prompts, or too many videos for the memory.
    """
    texts, num = texts_and_number(cascade)
    for stage in cascade.stages:
        sampling.check_settings(stage.model, num, FLAGS.seed, stage.settings)
        distilled_steps = stage.config.diffusion.distilled_steps
        if distilled_steps and stage.settings.steps != distilled_steps:
            print(
                f"{stage.name}: this student was distilled for {distilled_steps} steps"
            )
    return [text for text in texts for _ in range(num // len(texts))], num


def _label(base: CascadeStage, is_edit: bool) -> str:
    """Return the label of the videos, as `sampling.label_array` reads it."""
    label = base.config.sample.label if FLAGS.label is None else FLAGS.label
    if is_edit and not label and base.model.label_vocabulary:
        return sampling.OPEN_LABEL  # one drawn at random would contradict the clip
    return label


def _observe(
    base: CascadeStage, num: int, observe: Observe
) -> tuple[Observation, ClipInfo]:
    """Return what is known of the videos, which have the observation's size.

    Raises:
      UserError: a flag that does not fit the model or the clip.
    """
    block = base.model.video_shape[0]
    overlap = FLAGS.overlap_frames
    if FLAGS.multidiffusion and overlap is not None:
        raise UserError(
            "--overlap_frames is for blocks: the windows of --multidiffusion overlap "
            "by half"
        )
    if overlap is not None and not 0 <= overlap < block:
        raise UserError(f"--overlap_frames={overlap}: from 0 to {block - 1} frames")
    tiles = parse_sides("tiles", "ROWSxCOLUMNS", 1, 64)
    frames = FLAGS.num_frames or 0
    output = OutputSpec.of(base.model, base.config, frames, tiles, num)
    observation, info = observe(output)
    if info:
        print(observations.describe(info))
    return observation, info


def _first_sampler(
    observation: Observation, backward: bool, edit: Callable[..., np.ndarray] | None
) -> Callable[..., np.ndarray]:
    """Return what samples the first stage, called as `sampling.sample`."""
    if edit is None:
        return functools.partial(_sample_base, observation, backward)

    def sample_edit(model, params, num, settings, inputs, run) -> np.ndarray:
        video = observation.video
        return edit(
            model, params, video, num, settings=settings, inputs=inputs, run=run
        )

    return sample_edit


def _sample_base(
    observation: Observation, backward: bool, model, params, num, settings, inputs, run
) -> np.ndarray:
    """Sample the first stage, as `sampling.sample`, at the observation's size."""
    if not FLAGS.multidiffusion:
        inputs = dataclasses.replace(inputs, observation=observation)
        options = {"overlap_frames": FLAGS.overlap_frames, "backward": backward}
        return sampling.extend_in_blocks(
            model, params, num, settings, inputs, run, **options
        )
    known = None if observation.empty else observation
    inputs = dataclasses.replace(inputs, observation=known)
    run = dataclasses.replace(run, size=observation.video.shape[1:4])
    return sampling.sample(model, params, num, settings, inputs, run)
