"""A training step and a sampling step against the peers, all sides in one run.

    make bench

Setting: dim 32, multipliers 1, 2, 4, 8, 8 frames of 32x32, batch 4, float32, all cores.

- video-diffusion-pytorch 0.7.0: a level has two residual blocks, then linear attention
  over the frame and attention over time; attention over the frame in the middle.
- diffusers 0.42.1, UNet3DConditionModel at the same widths, its other settings its own.
- vdm_jax, the peer's layout: blocks and attention where video-diffusion-pytorch has
  them.
- vdm_jax, VDM's layout: both kinds of attention after every block, at all sizes, one
  block more a level on the way up, Shaw's vectors.

Every measurement is a process of its own, and the sides take turns, so that a change in
the machine's speed falls on all; the figures are medians. Our first turn finds an empty
compilation cache, the others a warm one. FLOPs are those of matrix products and
convolutions by their sizes, padding included, on all sides: from the traced program,
and from torch's calls. The peers live in an environment of their own (.venv-peer).
Writes perf/race.json.

The peer's layout is not all that the peer does: its attention has 8 heads of 32 at
every level where ours has as many as the width holds, and it has one attention over
time more, a 7x7 stem and a last block. So read the time per FLOP beside the time.
"""

import argparse
import json
import math
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZE = {"dim": 32, "batch": 4, "frames": 8, "side": 32}
STEPS = 5  # timed a turn, after one that is not
SIDES = {
    "vdp": "video-diffusion-pytorch 0.7.0",
    "diffusers": "diffusers 0.42.1 UNet3DConditionModel",
    "peer": "vdm_jax, the peer's layout",
    "vdm": "vdm_jax, VDM's layout",
}
# Of video-diffusion-pytorch's, for the peer's layout.
TARGETS = {"train": 0.35, "sample": 0.20, "memory": 0.9}
COLD, WARM = 25, 12  # seconds to the end of the first training step


def since_start() -> float:
    """Seconds since this process was made."""
    import psutil

    return time.time() - psutil.Process().create_time()


def timed(step) -> list[float]:
    """Seconds of STEPS calls, after a first that compiles or allocates."""
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def measured(parameters: int, train, sample) -> dict:
    """What every side reports, but for its FLOPs."""
    train()
    first = since_start()
    seen = {"train": timed(train), "sample": timed(sample)}
    return seen | {"parameters": parameters, "first": first, "memory": resident()}


def resident() -> float:
    """GiB of this process at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def torch_flops(train, sample) -> dict[str, float]:
    """Of one call each."""
    from torch.utils.flop_counter import (  # pyright: ignore[reportMissingImports]
        FlopCounterMode,
    )

    found = {}
    for name, step in (("train", train), ("sample", sample)):
        with FlopCounterMode(display=False) as counter:
            step()
        found[name] = float(counter.get_total_flops())
    return found


def vdp() -> dict:
    """The peer's training step (its own L1 loss, Adam) and one sampling step."""
    import types

    import torch  # pyright: ignore[reportMissingImports]

    # Its trainer's video export wants torchvision, whose wheel may not fit this torch.
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules[name] = types.ModuleType(name)
    for part in ("transforms", "utils"):
        setattr(sys.modules["torchvision"], part, sys.modules[f"torchvision.{part}"])
    sys.modules["torchvision.transforms"].__dict__["ToTensor"] = object
    from video_diffusion_pytorch import (  # pyright: ignore[reportMissingImports]
        GaussianDiffusion,
        Unet3D,
    )

    torch.manual_seed(0)
    dim, b, f, side = SIZE.values()
    device = torch_device()
    net = Unet3D(dim=dim, dim_mults=(1, 2, 4, 8))
    diffusion = GaussianDiffusion(net, image_size=side, num_frames=f, timesteps=1000)
    diffusion.to(device)
    adam = torch.optim.Adam(net.parameters(), 1e-4)
    video = torch.rand((b, 3, f, side, side), device=device)

    def train() -> None:
        adam.zero_grad()
        diffusion(video).backward()
        adam.step()

    def sample() -> None:
        with torch.no_grad():
            diffusion.p_sample(video, torch.full((b,), 500, device=device))

    return torch_side(net, train, sample)


def diffusers() -> dict:
    """Mean squared error, Adam; a call without gradients."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import (  # pyright: ignore[reportMissingImports]
        UNet3DConditionModel,
    )

    torch.manual_seed(0)
    device = torch_device()
    dim, b, f, side = SIZE.values()
    net = UNet3DConditionModel(
        sample_size=side,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(dim * m for m in (1, 2, 4, 8)),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=32,
    ).to(device)
    adam = torch.optim.Adam(net.parameters(), 1e-4)
    video = torch.rand((b, 3, f, side, side), device=device)
    t = torch.full((b,), 500, device=device)
    text = torch.zeros((b, 1, 32), device=device)

    def train() -> None:
        adam.zero_grad()
        found = net(video, t, encoder_hidden_states=text).sample
        (found - video).square().mean().backward()
        adam.step()

    def sample() -> None:
        with torch.no_grad():
            net(video, t, encoder_hidden_states=text)

    return torch_side(net, train, sample)


def torch_device() -> str:
    """A GPU if there is one, its products in TF32 as ours are there."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.backends.cuda.matmul.allow_tf32 = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_side(net, train, sample) -> dict:
    """Counting last: it would slow the first step."""
    import torch  # pyright: ignore[reportMissingImports]

    def ended(step):
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    found = measured(
        sum(p.numel() for p in net.parameters()),
        lambda: ended(train),
        lambda: ended(sample),
    )
    if torch.cuda.is_available():
        found["memory"] = torch.cuda.max_memory_allocated() / 2**30
    return found | {"flops": torch_flops(train, sample)}


def setting(layout: str, options: dict | None = None) -> tuple[Any, Any]:
    """Config and model. options: changes to sections of the config, by their names."""
    from configs.base import base
    from vdm_jax import build

    dim, _, f, side = SIZE.values()
    config: Any = base()
    config.video.update(frames=f, height=side, width=side)
    config.data.label_vocabulary = ()
    as_peer = layout == "peer"
    over_frame = "linear_attention" if as_peer else "spatial_attention"
    config.network.update(
        levels=tuple(
            dict(
                channels=dim * m,
                blocks=2,
                layers=(over_frame, "temporal_attention"),
                layers_after_last_block_only=as_peer,
            )
            for m in (1, 2, 4, 8)
        ),
        mid_layers=("spatial_attention", "temporal_attention"),
        head_dim=32,
        skip_downsamples=not as_peer,
        relative_position="bias" if as_peer else "shaw",
    )
    config.conditioning.cond_dim = 4 * dim
    config.train.update(optimizer="adam", ema_decay=0.999, grad_accum_steps=1)
    for section, changes in (options or {}).items():
        config[section].update(changes)
    return config, build.build_model(config)


def programs(
    layout: str, options: dict | None = None, params: Any = None
) -> tuple[Any, Any, tuple, tuple]:
    """Our training step (v loss, Adam, EMA) and one ancestral step of the same shapes.

    params: to start from; None makes new ones.
    -> the two, to be compiled, and what each is called with.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vdm_jax.diffusion import samplers
    from vdm_jax.training import optimizer, step

    b = SIZE["batch"]
    config, model = setting(layout, options)
    params = model.init(jax.random.key(0)) if params is None else params
    tx = optimizer.make_optimizer(config.train)
    update = step.make_step(
        step.make_loss(model, "snr_plus_one"),
        tx,
        lambda *_: jnp.asarray(1e-4),
        config.train.ema_decay,
        config.train.grad_accum_steps,
    )
    state = step.init_state(params, tx, ema=config.train.ema_decay > 0)
    batch = {"video": np.zeros((b, *model.shape), np.uint8)}
    sampler = samplers.ancestral(0.1)
    table = samplers.pad_table(sampler.table(model.schedule, 1000), np.float32)

    def one_step(params, z, row):
        keys = samplers.video_keys(0, 0, 0, jnp.arange(b))

        def noise(i, draw):
            return samplers.normal(keys, i + 1, draw, model.shape)

        cond = model.raw_conditions({})
        carry = samplers.sample_loop(
            sampler, model.denoiser(params), sampler.init(z), table, row, row + 1,
            noise, cond,
        )  # fmt: skip
        return carry[0]

    z = jnp.zeros((b, *model.shape))
    train = jax.jit(update, donate_argnums=0)
    given = state, {}, batch, jax.random.key(0)
    return train, jax.jit(one_step), given, (params, z, 500)


def ours(layout: str) -> dict:
    """Our side."""
    import jax

    update, one_step, given, of_sample = programs(layout)
    state = given[0]
    lowered = update.lower(*given)
    compiled = lowered.compile()

    def train() -> None:
        nonlocal state
        state, metrics = compiled(state, *given[1:])
        metrics["loss"].block_until_ready()

    def sample() -> None:
        one_step(state.params, *of_sample[1:]).block_until_ready()

    size = sum(p.size for p in jax.tree.leaves(state.params))
    found = measured(size, train, sample)  # counting first would delay the first step
    stats = jax.devices()[0].memory_stats()  # None on a CPU
    if stats:
        found["memory"] = stats["peak_bytes_in_use"] / 2**30
    return found | {"flops": counted(layout)}


def counted(layout: str) -> dict[str, float]:
    """FLOPs of one call each."""
    import jax

    update, one_step, given, of_sample = programs(layout)
    traced = {"train": (update, given), "sample": (one_step, of_sample)}
    return {
        name: products(jax.make_jaxpr(step)(*args).jaxpr)
        for name, (step, args) in traced.items()
    }


def products(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a program; loops go once."""
    from jax.extend.core import jaxprs_in_params

    total = 0.0
    for equation in jaxpr.eqns:
        total += sum(map(products, jaxprs_in_params(equation.params)))
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


def turn(side: str, python: str, cache: str) -> dict:
    """One side's measurement in a process of its own."""
    command = [python, str(Path(__file__)), f"--of={side}"]
    command += [f"--{name}={value}" for name, value in SIZE.items()]
    done = subprocess.run(
        command,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def device() -> str:
    """What steps run on, in words."""
    import jax

    cores = f"{len(os.sched_getaffinity(0))} cores"
    kind = jax.devices()[0].device_kind
    return f"{cores}, CPU" if jax.default_backend() == "cpu" else f"{cores}, {kind}"


def summary(side: str, turns: list[dict]) -> dict[str, Any]:
    """Medians; memory and the first step of the turns whose cache is warm."""
    later = turns[1:] or turns
    row: dict[str, Any] = {"name": SIDES[side], "parameters": turns[0]["parameters"]}
    for what in ("train", "sample"):
        row[what] = statistics.median(s for one in turns for s in one[what])
        row[f"{what}_gflops"] = turns[0]["flops"][what] / 1e9
        row[f"{what}_gflops_a_second"] = row[f"{what}_gflops"] / row[what]
    row["memory"] = statistics.median(one["memory"] for one in later)
    row["cold_memory"] = turns[0]["memory"]
    row["first_cold"] = turns[0]["first"]
    row["first_warm"] = statistics.median(one["first"] for one in later)
    return row


def main() -> None:
    """Take turns, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=list(SIDES), help="one side's measurement")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--peer-python", default=".venv-peer/bin/python")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", default=str(HERE / "race.json"))
    for name, value in SIZE.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    SIZE.update({name: getattr(given, name) for name in SIZE})
    if given.of:
        sys.path.insert(0, str(HERE.parent))
        of_torch = {"vdp": vdp, "diffusers": diffusers}
        side = of_torch.get(given.of, lambda: ours(given.of))
        print(json.dumps(side()))
        return
    from vdm_jax.files import user_path  # the peers' Python has none

    out = user_path(given.out, "--out")

    sides = given.sides.split(",")
    seen: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(given.turns):
            for side in sides:
                python = given.peer_python if side in ("vdp", "diffusers") else None
                seen[side].append(turn(side, python or sys.executable, cache))
                print(f"{side}: {seen[side][-1]}", flush=True)
    found = {side: summary(side, turns) for side, turns in seen.items()}
    machine = f"{platform.machine()}, {device()}"
    about = {"better": "lower", "machine": machine, "command": shlex.join(sys.argv)}
    rows = []
    if "vdp" in found and "peer" in found:
        for what, target in TARGETS.items():
            ratio = found["peer"][what] / found["vdp"][what]
            name = f"{what}, the peer's layout over {SIDES['vdp']}"
            rows.append({"name": name, "target": target, "result": ratio} | about)
        for name, target in (("first_cold", COLD), ("first_warm", WARM)):
            row = {"name": name, "target": target, "result": found["peer"][name]}
            rows.append(row | about)
    result = {"rows": rows, "sides": found, "turns": given.turns, "setting": SIZE}
    out.write_text(json.dumps(result, indent=1) + "\n")
    for row in found.values():
        print(
            f"{row['name']:40s} {row['parameters'] / 1e6:5.1f} M"
            + "".join(
                f"  {what} {row[what]:.3g} s ({row[f'{what}_gflops']:.0f} GFLOP, "
                f"{row[f'{what}_gflops_a_second']:.0f} a second)"
                for what in ("train", "sample")
            )
            + f"  {row['memory']:.2f} GiB ({row['cold_memory']:.2f} cold)"
            f"  first step {row['first_cold']:.1f} s cold, {row['first_warm']:.1f} warm"
        )
    for row in rows:
        print(f"{row['name']}: {row['result']:.2f}, target {row['target']}")


if __name__ == "__main__":
    main()
