"""Training and sampling step against video-diffusion-pytorch, both sides in one run.

    make bench

Setting: dim 32, multipliers 1,2,4,8, 8 frames of 32x32, batch 4, float32, all cores.
Two layouts of ours: "lean" has spatial attention at 16x16 and below, no block more on
the way up and an additive bias for time; "vdm" has spatial attention at 32x32 too, the
extra blocks and Shaw's vectors, as the paper. The peer has linear attention at all
sizes but the smallest, and attention once a level where ours follows every block.

Each side runs in processes of its own and they take turns, so that a change in the
machine's speed falls on both; the figures are medians over all turns. The peer lives in
an environment of its own (.venv-peer). Writes benchmarks/race.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEER = "video-diffusion-pytorch 0.7.0"
SIZE = {"batch": 4, "frames": 8, "side": 32}
STEPS = 5  # timed a turn, after one that is not


def timed(step) -> list[float]:
    """Seconds of STEPS calls, after a first that compiles or allocates."""
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def peer() -> dict:
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
    shape = (SIZE["batch"], 3, SIZE["frames"], SIZE["side"], SIZE["side"])
    net = Unet3D(dim=32, dim_mults=(1, 2, 4, 8))
    diffusion = GaussianDiffusion(
        net, image_size=SIZE["side"], num_frames=SIZE["frames"], timesteps=1000
    )
    adam = torch.optim.Adam(net.parameters(), 1e-4)
    video = torch.rand(shape)

    def train() -> None:
        adam.zero_grad()
        diffusion(video).backward()
        adam.step()

    def sample() -> None:
        with torch.no_grad():
            diffusion.p_sample(video, torch.full((SIZE["batch"],), 500))

    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "train": timed(train),
        "sample": timed(sample),
    }


def ours(layout: str) -> dict:
    """Our training step (v loss, Adam, EMA) and one ancestral step, same shapes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_compilation_cache_dir", str(HERE.parent / ".cache" / "xla"))
    from configs.base import base
    from vdm_jax import model as models
    from vdm_jax.diffusion import samplers
    from vdm_jax.training import optimizer, step

    config: Any = base()
    config.video.update(frames=8, height=32, width=32)
    config.data.attributes = ()
    both = ("spatial_attention", "temporal_attention")
    first = both if layout == "vdm" else ("temporal_attention",)
    config.network.update(
        levels=tuple(
            dict(channels=32 * m, blocks=2, mixing=both if m > 1 else first)
            for m in (1, 2, 4, 8)
        ),
        head_dim=32,
        extra_up_block=layout == "vdm",
        relative_position="bias" if layout == "lean" else "shaw",
    )
    config.conditioning.width = 128
    model = models.build(config)
    params = model.init(jax.random.key(0))
    tx = optimizer.optimizer(config.train)
    update = jax.jit(
        step.make_step(
            step.make_loss(model, "snr_plus_one"),
            tx,
            lambda *_: jnp.asarray(1e-4),
            ema=0.999,
        ),
        donate_argnums=0,
    )
    state = step.init_state(params, tx, ema=True)
    b = SIZE["batch"]
    batch = {"video": np.zeros((b, *model.shape), np.uint8)}
    sampler = samplers.ancestral(0.1)
    table = samplers.padded(sampler.table(model.schedule, 1000), np.float32)

    @jax.jit
    def one_step(params, z, row):
        keys = samplers.video_keys(0, 0, 0, jnp.arange(b))

        def noise(i, draw):
            return samplers.normal(keys, i + 1, draw, model.shape)

        cond = model.conditions({})
        denoise = model.denoiser(params)
        carry = sampler.init(z)
        return samplers.loop(sampler, denoise, carry, table, row, row + 1, noise, cond)[
            0
        ]

    def train() -> None:
        nonlocal state
        state, metrics = update(state, {}, batch, jax.random.key(0))
        metrics["loss"].block_until_ready()

    z = jnp.zeros((b, *model.shape))

    def sample() -> None:
        one_step(state.params, z, 500).block_until_ready()

    return {
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "train": timed(train),
        "sample": timed(sample),
    }


def turn(python: str, side: str) -> dict:
    """One side's measurement in a process of its own."""
    command = [python, str(Path(__file__)), f"--side={side}"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Take turns, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["peer", "lean", "vdm"])
    parser.add_argument("--peer-python", default=".venv-peer/bin/python")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    if given.side:
        sys.path.insert(0, str(HERE.parent))
        print(json.dumps(peer() if given.side == "peer" else ours(given.side)))
        return

    sides = {"peer": given.peer_python, "lean": sys.executable, "vdm": sys.executable}
    seen: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(given.turns):
        for side, python in sides.items():
            seen[side].append(turn(python, side))
            print(f"{side}: {seen[side][-1]}", flush=True)
    rows = []
    for side, turns in seen.items():
        row: dict[str, Any] = {
            "name": PEER if side == "peer" else f"vdm_jax, {side} layout"
        }
        row["parameters"] = turns[0]["parameters"]
        for what in ("train", "sample"):
            row[f"{what}_seconds"] = statistics.median(
                second for one in turns for second in one[what]
            )
            row[f"{what}_ratio"] = (
                row[f"{what}_seconds"] / rows[0][f"{what}_seconds"] if rows else 1.0
            )
        rows.append(row)
    result = {
        "target": "of the peer's time, as a plain prototype reached: training .39, "
        "sampling .22 at the lean layout; .55 and .35 at VDM's",
        "rows": rows,
        "better": "lower",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, CPU",
        "turns": given.turns,
        "command": "make bench",
        "setting": SIZE,
    }
    (HERE / "race.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['name']:32s} {row['parameters'] / 1e6:5.1f} M  "
            f"train {row['train_seconds']:.2f} s ({row['train_ratio']:.2f})  "
            f"sample {row['sample_seconds']:.2f} s ({row['sample_ratio']:.2f})"
        )


if __name__ == "__main__":
    main()
