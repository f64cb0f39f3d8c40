"""The training step from stored latents, over the one on given z and on videos.

    python -m perf.latents

A U-Net of 64 and 128 channels on z of 16x16x4, that of 64x64 pixels. Blocks of three
kinds of steps alternate:

- given: one array of z, on the device already;
- stored: batches of the pipeline from a folder of `python -m vdm_jax.data latents`;
- videos: batches of the pipeline, which the step encodes.

The autoencoder is that of --autoencoder, by default a random one of factor 4. Figures
are the least of all blocks, in CPU seconds of the process, which other processes of the
machine do not change. Writes perf/latents.json.
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.base import base
from perf import rows, steps
from vdm_jax import build, data
from vdm_jax.codec import Codec
from vdm_jax.data import encode, pipeline
from vdm_jax.files import write_json
from vdm_jax.networks.autoencoder import AutoencoderKL, AutoencoderSpec
from vdm_jax.pretrained import name_maps, safetensors_io
from vdm_jax.runtime import path_type
from vdm_jax.training import optimizer, step
from vdm_jax.trees import named_leaves

FRAMES, SIDE, BATCH, CLIPS = 2, 64, 16, 128
BLOCK = 3  # steps
CHANNELS, GROUPS = (32, 64, 128), 8
TARGET = 1.05
FILE = Path(__file__).with_suffix(".json")


def write_autoencoder(folder: Path) -> Path:
    """Write an autoencoder of random parameters in diffusers' format."""
    spec = AutoencoderSpec(channels=CHANNELS, blocks=1, num_groups=GROUPS)
    frame = jnp.zeros((1, 1, 8, 8, 3))
    params = AutoencoderKL(spec).init(jax.random.key(0), frame)["params"]
    written = name_maps.AUTOENCODER_KL_WRITTEN
    names = name_maps.their_names(named_leaves(params), written)
    arrays = safetensors_io.to_names(params, names)
    folder.mkdir(parents=True)
    path = folder / f"{safetensors_io.DIFFUSERS}.safetensors"
    safetensors_io.write(path, arrays, np.float32)
    fields = {
        "_class_name": "AutoencoderKL", "block_out_channels": CHANNELS,
        "layers_per_block": 1, "norm_num_groups": GROUPS, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * len(CHANNELS),
        "up_block_types": ["UpDecoderBlock2D"] * len(CHANNELS), "scaling_factor": 1.0,
    }  # fmt: skip
    write_json(folder / "config.json", fields)
    return folder


def setting(autoencoder: Path) -> Any:
    """Return the config of the model and its data."""
    config: Any = base()
    config.video.update(frames=FRAMES, height=SIDE, width=SIDE)
    config.data.update(source="shapes", batch_size=BATCH, mean=0.0, variance=1.0)
    config.codec.update(kind="autoencoder", path=str(autoencoder))
    layers = ("spatial_attention", "temporal_attention")
    config.network.update(
        levels=(
            dict(channels=64, blocks=1, layers=layers[1:]),
            dict(channels=128, blocks=1, layers=layers),
        ),
        head_dim=32, relative_position="bias",
    )  # fmt: skip
    config.conditioning.update(cond_dim=128, label_dropout=0.1)
    return config


def make_update(config: Any, model: Any) -> Any:
    """Return a jitted training step of a model; it donates its state."""
    tx = optimizer.make_optimizer(config.train)
    loss_fn = step.make_loss(model, config.diffusion.loss_weighting)
    update = step.make_step(loss_fn, tx, lambda *_: jnp.asarray(1e-4), 0.999)
    return jax.jit(update, donate_argnums=0)


def measure(config: Any, stored: Path, turns: int) -> dict[str, dict[str, list]]:
    """Return wall and CPU seconds of a step of each block, by its kind."""
    videos = data.open_source(config)
    data.resolve(config, videos)
    model = build.build_model(config)
    given = dataclasses.replace(model, codec=Codec(), video_shape=model.shape)
    z = np.random.default_rng(0).normal(size=(BATCH, *model.shape)).astype(np.float32)
    label = np.zeros((BATCH, len(config.data.label_vocabulary)), np.int32)
    constant = itertools.repeat(jax.device_put({"video": z, "label": label}))
    config.data.path = str(stored)
    latents = pipeline.train_batches(config, data.open_source(config))
    clips = pipeline.train_batches(config, videos)
    codec = {"codec": model.codec.load_params()}
    kinds: dict[str, tuple] = {
        "given": (given, {}, constant), "stored": (model, {}, latents),
        "videos": (model, codec, clips),
    }  # fmt: skip
    tx = optimizer.make_optimizer(config.train)
    key = jax.random.key(0)
    params = model.init(key)
    seen: dict[str, dict[str, list]] = {n: {"wall": [], "cpu": []} for n in kinds}
    states = {name: step.init_state(params, tx, ema=True) for name in kinds}
    states = jax.tree.map(jnp.copy, states)  # they are donated
    updates = {name: make_update(config, own) for name, (own, _, _) in kinds.items()}
    for turn in range(turns + 1):
        for name, (_, aux_params, batches) in kinds.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(BLOCK):
                batch = {k: a for k, a in next(batches).items() if k != "caption"}
                state, scalars = updates[name](states[name], aux_params, batch, key)
                states[name] = jax.block_until_ready(state)
            if turn:  # the first one compiles
                seen[name]["wall"].append((time.perf_counter() - wall) / BLOCK)
                seen[name]["cpu"].append((time.process_time() - cpu) / BLOCK)
            if name != "given":  # so that no thread loads during the next block
                batches.close()
    return seen


def encoder_seconds(config: Any) -> tuple[float, float]:
    """Return the least wall and CPU seconds in which a batch of clips is encoded."""
    videos = next(pipeline.clip_batches(config, data.open_source(config), BATCH))
    codec: Any = build.build_model(config).codec
    codec = codec.with_chunk(BATCH * FRAMES)
    pixels, params = videos["video"].astype(np.float32) / 127.5 - 1, codec.load_params()
    seconds = []
    for _ in range(4):
        wall, cpu = time.perf_counter(), time.process_time()
        codec.moments_on_host(pixels, params)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = zip(*seconds, strict=True)
    return min(walls), min(cpus)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--autoencoder", type=path_type)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        config = setting(flags.autoencoder or write_autoencoder(root / "vae"))
        words = argparse.Namespace(
            autoencoder=None, out=root / "z", num_clips=CLIPS, dtype="float16"
        )
        print(encode.run(config, words), flush=True)
        wall, cpu = encoder_seconds(config)
        found = measure(config, root / "z", flags.turns)
    seconds = {
        name: {clock: min(times) for clock, times in clocks.items()}
        for name, clocks in found.items()
    } | {"encoder": {"wall": wall, "cpu": cpu}}
    print(seconds)
    about: dict[str, Any] = {
        "machine": steps.device(), "better": "lower",
        "command": f"python -m perf.latents --turns={flags.turns}",
    }  # fmt: skip
    names = {
        "stored": "step on stored latents over step on given z, CPU seconds",
        "videos": "step on videos over step on given z, CPU seconds",
        "encoder": "encoder of a batch over step on given z, CPU seconds",
    }
    made = [
        rows.make_row(
            text, seconds[name]["cpu"] / seconds["given"]["cpu"],
            target=TARGET if name == "stored" else None, **about,
        )
        for name, text in names.items()
    ]  # fmt: skip
    for row in made:
        print(rows.format_row(row))
    size = {"frames": FRAMES, "side": SIDE, "batch": BATCH, "channels": CHANNELS}
    rows.write(FILE, made, seconds=seconds, blocks=found, setting=size)


if __name__ == "__main__":
    main()
