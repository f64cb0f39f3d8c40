"""Do the clips of a packed buffer stay apart?

    python -m experiments.dit.packed [--model=DIR] [--num=N]

N held-out clips of the sizes that the model was trained on, in turn, with noise at five
levels, are denoised once alone and once in buffers of several. Where the numbers that
keep them apart are all equal, a token attends to those of all clips. Writes
OUT/packed.json.
"""

import dataclasses
import functools
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dit.dit import Task, flags_of, read_tasks
from experiments.sprite_videos import Scores, summary
from vdm_jax import files, runtime
from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.networks import dit_blocks, packing

LOGSNR = np.linspace(-4, 4, 5, dtype=np.float32)  # of the clips, in turn
COLUMNS = {
    "n": ("n", "d"),
    "loss": ("loss", ".4f"), "loss_interval": ("95%", ".4f"),
    "difference": ("difference", ".2g"), "difference_interval": ("95%", ".2g"),
}  # fmt: skip


def one_id(packed: Any, over: str) -> jax.Array:
    """Return one number for all tokens, in place of `attention_ids`."""
    return jnp.zeros_like(packed.segments)


LEAKING = mock.patch.object(dit_blocks, "attention_ids", one_id)


class Noisy(NamedTuple):
    """A clip with noise: z and v [f, h, w, c], its logsnr, and its caption's text."""

    z: np.ndarray
    v: np.ndarray
    logsnr: np.ndarray
    text: np.ndarray
    text_mask: np.ndarray


def level_of(logsnr: Any) -> schedules.NoiseLevel:
    """Return the noise level of a logsnr."""
    return schedules.noise_level_from_angle(schedules.angle_from_logsnr(logsnr))


def noisy_clips(tasks: list[Task], num: int) -> list[Noisy]:
    """Return clips of the tasks in turn, each with the noise of its number."""
    clips = []
    for i in range(num):
        task = tasks[i % len(tasks)]
        video = task.clips.videos[[i]] / np.float32(127.5) - 1
        codec, params = task.trained.model.codec, task.trained.params
        x = np.asarray(codec.encode_on_host(video, params.get("codec")))
        eps = np.random.default_rng(i).standard_normal(x.shape, np.float32)
        logsnr = LOGSNR[[i % len(LOGSNR)]]
        level = level_of(logsnr)  # [1]
        z = process.diffuse(x, eps, level)
        v = process.velocity(process.Prediction(x, eps), level)
        text = (task.cond[name][i] for name in ("text", "text_mask"))
        clips.append(Noisy(z[0], v[0], logsnr[0], *text))
    return clips


@functools.partial(jax.jit, static_argnames="model")
def velocity(params: Any, z: Any, logsnr: Any, batch: Any, *, model: Any) -> jax.Array:
    """Return the model's v of z, with the conditions of a batch."""
    level = level_of(logsnr)
    prediction = model.denoiser(params)(z, level, model.raw_conditions(batch))
    return process.velocity(prediction, level)


def alone(task: Task, clips: list[Noisy]) -> list[np.ndarray]:
    """Return the model's v of each clip, denoised alone."""
    out = []
    for clip in clips:
        z, _, logsnr, text, mask = (array[None] for array in clip)
        batch = {"text": text, "text_mask": mask}
        v = velocity(task.trained.params, z, logsnr, batch, model=task.trained.model)
        out.append(np.asarray(v)[0])
    return out


def packed(task: Task, clips: list[Noisy], tokens: int) -> list[np.ndarray]:
    """Return the model's v of each clip, denoised in buffers of so many tokens."""
    p = task.trained.config.network.patch_size
    sizes = [clip.z.shape[:3] for clip in clips]
    lengths = [packing.num_tokens(size, p) for size in sizes]
    buffers = packing.first_fit(lengths, tokens)
    places, out = max(map(len, buffers)), {}
    for members in buffers:
        z, where = packing.pack([clips[i].z for i in members], p, tokens, places)
        own = [clips[i] for i in [*members, *members[:1] * (places - len(members))]]
        batch = {
            name: np.stack([getattr(clip, name) for clip in own])[None]
            for name in ("text", "text_mask")
        }
        for field in dataclasses.fields(where):
            batch[field.name] = getattr(where, field.name)[None]
        logsnr = np.array([clip.logsnr for clip in own])
        of_token = logsnr[np.maximum(where.segments - 1, 0)]
        inputs = z[None], of_token[None], batch
        v = velocity(task.trained.params, *inputs, model=task.trained.model)
        videos = packing.unpack(np.asarray(v)[0], [sizes[i] for i in members], p)
        out |= zip(members, videos, strict=True)
    return [out[i] for i in range(len(clips))]


def score(
    found: list[np.ndarray], clips: list[Noisy], expected: list[np.ndarray]
) -> Scores:
    """Return of each clip the loss of v, and the difference to `expected`.

    They are a mean square and a root mean square.
    """
    rows = zip(found, clips, expected, strict=True)
    squares = [
        (np.square(v - clip.v).mean(), np.square(v - other).mean())
        for v, clip, other in rows
    ]
    loss, difference = np.array(squares).T
    return {"loss": loss, "difference": np.sqrt(difference)}


def main() -> None:
    """Measure, print, write."""
    flags = flags_of("packed").parse_args()
    tasks = read_tasks(flags)
    task, clips = tasks[0], noisy_clips(tasks, flags.num)
    config = task.trained.config
    if "mixed_sizes" not in config:
        raise UserError(f"--model={flags.model}: give a run of configs/dit.py:packed")
    tokens = config.mixed_sizes.buffer_tokens
    expected = alone(task, clips)
    found = {"alone": expected, "packed": packed(task, clips, tokens)}
    jax.clear_caches()  # a compiled program does not depend on what is replaced
    with LEAKING:
        found["packed, clips leak"] = packed(task, clips, tokens)
    rows = [
        {"row": name, "n": len(clips), **summary(score(each, clips, expected))}
        for name, each in found.items()
    ]
    setting = {"seed": flags.seed, "model": task.trained.checksum}
    content = {"setting": setting, "rows": rows}
    files.write_json(flags.out / "packed.json", content)
    print(format_table(*format_cells(rows, COLUMNS)))


if __name__ == "__main__":
    runtime.run(main)
