"""Training steps on clips of several sizes: packed, in buckets, and padded.

    python -m perf.packing [--turns=N]

The transformer and the mix of clips and pictures of configs/dit.py:packed, of random
latents and texts of as many tokens as captions have:

- packed: its buffers;
- buckets: batches of one size, those of configs/dit.py:unet, the sizes in turn;
- padded: as many clips and pictures as a packed batch has, all of the largest size.

The three take turns with blocks of updates, in which each trains on as many clips and
pictures of each size: one turn of the buckets, as many batches of the others. Figures
are medians of the blocks in CPU seconds of the process, which other processes change
less than those of a clock. Tokens are those of clips, without padding. Writes
perf/packing.json.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import dit
from perf import rows, steps
from vdm_jax import build
from vdm_jax.data import mixed_sizes, packing, pipeline
from vdm_jax.initialization import Initializer, evaluate
from vdm_jax.model import DiffusionModel
from vdm_jax.networks.packing import num_tokens
from vdm_jax.training import step, trainer

FILE = Path(__file__).with_suffix(".json")
WAYS = ("packed", "buckets", "padded")
MAX_PADDING = 0.05
TEXT_TOKENS = 19  # of the longest caption of its clips


@dataclasses.dataclass(frozen=True)
class RandomLatents:
    """Clips of noise. shape: (frames, height, width, channels) of z."""

    shape: tuple[int, ...]
    name = "noise"
    names = sizes = label_vocabulary = ()
    flip = False

    def __len__(self) -> int:
        return 2**20

    def split(self, held_out: bool) -> "RandomLatents":
        """Both parts are the same."""
        return self

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Any:
        """Draw mean and deviation."""
        moments = rng.random((frames, *self.shape[1:-1], 2 * self.shape[-1]))
        return {"latents": moments.astype(np.float16), "caption": ""}


def configs_of(way: str) -> list[Any]:
    """Return a config for each program of a way."""
    config: Any = dit.get_config("packed").unlock()
    sizes = config.mixed_sizes.rows
    if way == "buckets":
        buckets: Any = dit.get_config("unet")
        config.mixed_sizes = buckets.mixed_sizes
        config.data.batch_size = buckets.data.batch_size
        return mixed_sizes.in_turn(config)
    if way == "padded":
        _, height, width, _ = map(max, zip(*sizes, strict=True))
        config.video.update(height=height, width=width)
        config.data.batch_size = sum(count for *_, count in sizes)
        del config["mixed_sizes"]
    return [config]


def random_batch(config: Any) -> dict[str, np.ndarray]:
    """Return a batch of noise, with texts."""
    if "mixed_sizes" in config:
        own = [mixed_sizes.at_size(config, row) for row in config.mixed_sizes.rows]
        sources = [RandomLatents(build.build_model(each).shape) for each in own]
        stream = packing.train_batches(config, sources)
    else:
        source = RandomLatents(build.build_model(config).shape)
        stream = pipeline.train_batches(config, source)
    with contextlib.closing(stream):
        batch = next(stream)
    shape = (*batch.pop("caption").shape, TEXT_TOKENS)
    text = np.random.default_rng(0).normal(size=(*shape, config.conditioning.text_dim))
    return batch | {"text": text.astype(np.float32), "text_mask": np.ones(shape, bool)}


def update_of(config: Any, model: DiffusionModel) -> Callable:
    """Return the update of a config's model, see `trainer.make_update`."""
    loss_fn = step.make_loss(model, config.diffusion.loss_weighting)
    return trainer.make_update(config.train, config.train, loss_fn)


def measure(turns: int) -> dict[str, dict[str, Any]]:
    """Return of each way the CPU seconds of blocks, their clips, tokens and padding."""
    (packed,) = configs_of("packed")
    model, key = build.build_model(packed), jax.random.key(0)
    params = Initializer(model.init_params).draw(key)
    state: Any = evaluate(functools.partial(trainer.new_state, packed), params)
    state = jax.device_put(state, may_alias=False)
    programs: dict[str, list[tuple[Any, Any]]] = {}
    for way in WAYS:
        batches = map(jax.device_put, map(random_batch, configs_of(way)))
        update = jax.jit(update_of(packed, model), donate_argnums=0)
        programs[way] = [
            (update.lower(state, {}, batch, key).compile(), batch) for batch in batches
        ]
        print(f"{way}: {len(programs[way])} compiled", flush=True)
    batches_of = {way: len(programs["buckets"]) for way in WAYS} | {"buckets": 1}
    plan, (padded,) = packing.layout(packed), configs_of("padded")
    tokens = [num_tokens(size, plan.patch_size) for size in plan.sizes]
    longest = num_tokens(build.build_model(padded).shape[:3], plan.patch_size)
    unused = 1 - sum(tokens) / (len(tokens) * longest)
    padding = {"packed": plan.padding, "buckets": 0.0, "padded": unused}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    loads = []
    for turn in range(turns + 1):
        for way in WAYS:
            started = time.process_time()
            for program, batch in programs[way] * batches_of[way]:
                state, _ = program(state, {}, batch, key)
            jax.block_until_ready(state)
            if turn:  # the first one allocates
                seconds[way].append(time.process_time() - started)
        loads.append(os.getloadavg()[0])
        print(f"turn {turn}: {seconds}, load {loads[-1]:.1f}", flush=True)
    return {
        way: {
            "seconds": seconds[way], "clips": batches_of["packed"] * len(tokens),
            "tokens": batches_of["packed"] * sum(tokens), "padding": padding[way],
            "programs": len(programs[way]), "loads": loads,
        }
        for way in WAYS
    }  # fmt: skip


def make_rows(
    ways: dict[str, dict[str, Any]], machine: str, command: str
) -> list[dict[str, Any]]:
    """Return rows of perf/ of the figures of `measure`."""
    made = []
    for way, found in ways.items():
        median = statistics.median(found["seconds"])
        figures: dict[str, tuple] = {
            "share of tokens that are padding": (found["padding"], "lower"),
            "clips a CPU second": (found["clips"] / median, "higher"),
            "tokens a CPU second": (found["tokens"] / median, "higher"),
            "compiled programs": (found["programs"], "lower"),
        }
        made += [
            rows.make_row(
                f"{way}, {what}", result, better=better, machine=machine,
                command=command,
            )
            for what, (result, better) in figures.items()
        ]  # fmt: skip
    made[0]["target"] = MAX_PADDING
    return made


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    ways = measure(turns)
    made = make_rows(ways, steps.device(), f"python -m perf.packing --turns={turns}")
    for row in made:
        print(rows.format_row(row))
    rows.write(FILE, made, ways=ways, setting={"text_tokens": TEXT_TOKENS})


if __name__ == "__main__":
    main()
