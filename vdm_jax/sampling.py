"""Model + parameters + conditions -> videos: the one way that every verb samples.

Batches of one compiled shape, a chunk of steps at a time, over whatever mesh is in
context. A video's noise comes from its own number, so the same seed gives the same
video for every batch size, device count and process count.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import sharding
from vdm_jax.diffusion import guidance as guiding
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import Model, Params

CHUNK = 8  # steps between two looks from the host: progress, Ctrl-C


def make_sampler(name: str, gamma: float = 0.0) -> samplers.Sampler:
    """A sampler by its name on the command line."""
    if name not in samplers.SAMPLERS:
        known = ", ".join(samplers.SAMPLERS)
        raise UserError(f"sampler {name!r} is not known: one of {known}")
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma={gamma}: the ancestral sampler takes 0 to 1")
    return _cached(name, gamma if name == "ancestral" else None)


@functools.cache
def _cached(name: str, gamma: float | None) -> samplers.Sampler:
    """One object a sampler, so that it can be a static argument of a jit."""
    make = samplers.SAMPLERS[name]
    return make() if gamma is None else make(gamma)


@functools.partial(
    jax.jit,
    static_argnames=("model", "sampler", "guided", "limit", "mesh"),
    donate_argnames="carry",
)
def _chunk(
    params,
    cond,
    keys,
    carry,
    table,
    start,
    stop,
    weight,
    *,
    model: Model,
    sampler: samplers.Sampler,
    guided: bool,
    limit: float,
    mesh: Mesh,
):
    """Rows start..stop for one batch. Parameters, labels and weights are arguments."""
    split = sharding.batch_sharding(mesh)
    keys, carry, cond = jax.lax.with_sharding_constraint((keys, carry, cond), split)
    denoise = model.denoiser(params)
    if guided:
        denoise = guiding.cfg(denoise, model.null, guiding.linear(weight))
    if limit:
        denoise = guiding.clip_x(denoise, limit)
    dtype = carry[0].dtype

    def noise(i, draw):
        return samplers.normal(keys, i + 1, draw, model.shape, dtype)

    with sharding.activation_rules():
        return samplers.loop(sampler, denoise, carry, table, start, stop, noise, cond)


@functools.partial(jax.jit, static_argnames=("model", "sampler", "seed", "mesh"))
def _begin(videos, *, model: Model, sampler: samplers.Sampler, seed: int, mesh: Mesh):
    """Keys and the starting carry of the videos with these numbers."""
    keys = samplers.video_keys(seed, 0, 0, videos)
    carry = sampler.init(samplers.normal(keys, 0, 0, model.shape))
    return jax.lax.with_sharding_constraint(
        (keys, carry), sharding.batch_sharding(mesh)
    )


def sample(
    model: Model,
    params: Params,
    num: int,
    *,
    labels: np.ndarray | None = None,
    steps: int = 64,
    sampler: str = "ddim",
    gamma: float = 0.0,
    guidance: float = 0.0,
    threshold: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    first: int = 0,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Sample videos number `first` to `first + num`: [num, f, h, w, c] in [-1, 1].

    labels: int [num, attributes], -1 for an attribute left open; None for all open.
    guidance: VDM's w, (1 + w) conditional - w unconditional. threshold: clip x to
    +-this at every step, 0 for none. progress(done, total) counts steps of batches.
    Raises UserError for settings out of range.
    """
    check(
        model,
        num,
        seed,
        steps=steps,
        sampler=sampler,
        gamma=gamma,
        guidance=guidance,
        threshold=threshold,
        batch_size=batch_size,
    )
    mesh = mesh or sharding.make_mesh()
    # A loaded model's parameters are on one device; a run's are where they shall be.
    params = jax.device_put(params, sharding.state_shardings(mesh, params))
    batch = min(batch_size, num)
    batch += -batch % mesh.size
    chosen = make_sampler(sampler, gamma)
    if labels is None:
        labels = np.full((num, len(model.attributes)), -1, np.int32)
    dtype = jnp.result_type(float)
    table = samplers.padded(chosen.table(model.schedule, steps), dtype)
    starts = range(0, num, batch)
    out = []
    with jax.set_mesh(mesh):
        for k, start in enumerate(starts):
            rows = np.arange(start, start + batch)
            keys, carry = _begin(
                rows + first, model=model, sampler=chosen, seed=seed, mesh=mesh
            )
            cond = model.conditions({"label": labels[np.minimum(rows, num - 1)]})
            for row in range(0, steps, CHUNK):
                carry = _chunk(
                    params,
                    cond,
                    keys,
                    carry,
                    table,
                    row,
                    min(row + CHUNK, steps),
                    guidance,
                    model=model,
                    sampler=chosen,
                    guided=guidance != 0,
                    limit=threshold,
                    mesh=mesh,
                )
                jax.block_until_ready(carry)
                progress(k * steps + min(row + CHUNK, steps), len(starts) * steps)
            out.append(np.asarray(sharding.everywhere(mesh, carry[0])))
    return np.clip(np.concatenate(out)[:num], -1.0, 1.0)


def settings(config) -> dict:
    """The keyword arguments of `sample` that a config's `sample` section holds."""
    names = ("steps", "sampler", "gamma", "guidance", "threshold", "batch_size")
    return {name: config[name] for name in names}


def draw_labels(
    model: Model, num: int, asked: str = "", seed: int = 0
) -> np.ndarray | None:
    """Labels int32 [num, attributes]: as asked, else drawn evenly; None without any.

    asked: value names, comma separated, at most one an attribute, in any order
    ("red,circle,left,fast"); an attribute that is not named stays open, -1.
    """
    if not model.attributes:
        if asked:
            raise UserError(f"--label={asked}: this model was trained without labels")
        return None
    if not asked:
        rng = np.random.default_rng(seed)
        # Each value as often as the others, in an order of its own.
        columns = [
            rng.permutation(np.arange(num) % len(names)) for names in model.attributes
        ]
        return np.stack(columns, axis=1).astype(np.int32)
    label = np.full(len(model.attributes), -1, np.int32)
    for name in asked.split(","):
        places = [i for i, names in enumerate(model.attributes) if name in names]
        if not places:
            known = "; ".join(", ".join(names) for names in model.attributes)
            raise UserError(f"--label={asked}: no value {name!r}; there are {known}")
        if label[places[0]] >= 0:
            raise UserError(f"--label={asked}: two values for one attribute")
        label[places[0]] = model.attributes[places[0]].index(name)
    return np.tile(label, (num, 1))


def label_text(model: Model, label: np.ndarray) -> str:
    """The names of a label's values, open ones left out."""
    return ",".join(
        names[i] for names, i in zip(model.attributes, label, strict=True) if i >= 0
    )


def check(
    model: Model,
    num: int,
    seed: int,
    *,
    steps: int,
    sampler: str,
    gamma: float,
    guidance: float,
    threshold: float,
    batch_size: int,
) -> None:
    """Raise UserError for settings of `sample` out of range, before anything compiles.

    The keywords are those of `settings`.
    """
    make_sampler(sampler, gamma)
    for name, value in (("num", num), ("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value}: at least 1")
    if not 0 <= seed < 2**32:  # beyond, random keys would repeat
        raise UserError(f"seed={seed}: from 0 to {2**32 - 1}")
    if steps > samplers.MAX_STEPS:
        raise UserError(f"steps={steps}: at most {samplers.MAX_STEPS}")
    if not (np.isfinite(threshold) and threshold >= 0):
        raise UserError(f"threshold={threshold}: 0 (off) or a finite bound on |x|")
    if not (np.isfinite(guidance) and guidance >= 0):
        raise UserError(
            f"guidance={guidance}: a finite weight w >= 0 of (1+w) cond - w uncond"
        )
    if guidance and not model.guidable:
        raise UserError(
            f"guidance={guidance} needs a model trained with conditions that were "
            "sometimes dropped (conditioning.label_drop > 0); this one was not: "
            "set guidance to 0"
        )


def to_uint8(video: np.ndarray) -> np.ndarray:
    """[-1, 1] -> 0..255, rounded."""
    return np.round((video + 1) * 127.5).clip(0, 255).astype(np.uint8)
