"""The training step and the sampling step that perf/ measures, and their FLOPs."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from configs.base import base
from vdm_jax import build
from vdm_jax.diffusion import samplers
from vdm_jax.initialization import Initializer, evaluate
from vdm_jax.training import optimizer, step

# Of the network and a batch; perf/race.py changes them by its flags.
SIZE = {"dim": 32, "batch": 4, "frames": 8, "side": 32}


def setting(layout: str, options: dict | None = None) -> tuple[Any, Any]:
    """Return config and model of a layout.

    Args:
      layout: "vdp", that of video-diffusion-pytorch: two residual blocks per level,
        then linear attention over the frame and attention over time. "vdm", that of
        VDM: both kinds of attention after every block, one more block per level on the
        way up, Shaw's vectors.
      options: changes to the config, by section.
    """
    dim, _, f, side = SIZE.values()
    config: Any = base()
    config.video.update(frames=f, height=side, width=side)
    config.data.label_vocabulary = ()
    is_vdp = layout == "vdp"
    over_frame = "linear_attention" if is_vdp else "spatial_attention"
    config.network.update(
        levels=tuple(
            dict(
                channels=dim * m,
                blocks=2,
                layers=(over_frame, "temporal_attention"),
                layers_after_last_block_only=is_vdp,
            )
            for m in (1, 2, 4, 8)
        ),
        mid_layers=("spatial_attention", "temporal_attention"),
        head_dim=32,
        skip_downsamples=not is_vdp,
        relative_position="bias" if is_vdp else "shaw",
    )
    config.conditioning.cond_dim = 4 * dim
    config.train.update(optimizer="adam", ema_decay=0.999, grad_accum_steps=1)
    for section, changes in (options or {}).items():
        config[section].update(changes)
    return config, build.build_model(config)


def programs(
    layout: str, options: dict | None = None, params: Any = None
) -> tuple[Any, Any, tuple, tuple]:
    """Return a training step (v loss, Adam, EMA) and an ancestral step, with arguments.

    params: initial parameters; None initialises them.
    Returns both functions, jitted, then the arguments of each.
    """
    b = SIZE["batch"]
    config, model = setting(layout, options)
    if params is None:
        params = Initializer(model.init_params).draw(jax.random.key(0))
    tx = optimizer.make_optimizer(config.train)
    update = step.make_step(
        step.make_loss(model, "snr_plus_one"),
        tx,
        lambda *_: jnp.asarray(1e-4),
        config.train.ema_decay,
        config.train.grad_accum_steps,
    )
    ema = config.train.ema_decay > 0
    state = evaluate(lambda params: step.init_state(params, tx, ema), params)
    state = jax.device_put(state, may_alias=False)
    batch = {"video": np.zeros((b, *model.shape), np.uint8)}
    sampler = samplers.ancestral(0.1)
    table = samplers.pad_table(sampler.table(model.schedule, 1000), np.float32)

    def one_step(params, z, index):
        keys = samplers.video_keys(0, 0, 0, jnp.arange(b))

        def noise(i, draw):
            return samplers.normal(keys, i + 1, draw, model.shape)

        cond = model.raw_conditions({})
        carry = samplers.sample_loop(
            sampler, model.denoiser(params), sampler.init(z), table, index, index + 1,
            noise, cond,
        )  # fmt: skip
        return carry[0]

    z = np.zeros((b, *model.shape), np.float32)
    train = jax.jit(update, donate_argnums=0)
    train_args = state, {}, batch, jax.random.key(0)
    return train, jax.jit(one_step), train_args, (params, z, 500)


def count_step_flops(layout: str) -> dict[str, float]:
    """Return the FLOPs of one training step and of one sampling step."""
    train, sample, train_args, sample_args = programs(layout)
    traced = {"train": (train, train_args), "sample": (sample, sample_args)}
    return {
        name: count_flops(jax.make_jaxpr(function)(*args).jaxpr)
        for name, (function, args) in traced.items()
    }


def count_flops(jaxpr: Any) -> float:
    """Return the FLOPs of a program's matrix products and convolutions, loops once."""
    total = 0.0
    for equation in jaxpr.eqns:
        total += sum(map(count_flops, jaxprs_in_params(equation.params)))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = [equation.invars[0].aval.shape[axis] for axis in contracted]
        elif equation.primitive.name == "conv_general_dilated":
            kernel, axes = equation.invars[1].aval.shape, equation.params
            out_features = axes["dimension_numbers"].rhs_spec[0]
            inner = [n for axis, n in enumerate(kernel) if axis != out_features]
        else:
            continue
        total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(inner)
    return total


def device() -> str:
    """Return cores and device in words."""
    cores = f"{len(os.sched_getaffinity(0))} cores"
    kind = jax.devices()[0].device_kind
    return f"{cores}, CPU" if jax.default_backend() == "cpu" else f"{cores}, {kind}"
