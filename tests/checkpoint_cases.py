"""Small states, and checkpoints of them."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.checkpoint import Checkpoints


class Moments(NamedTuple):
    mu: Any
    nu: Any


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def make(seed: int, width: int = 8, ema: bool = True) -> State:
    def tree(n):
        kernel = jax.random.normal(
            jax.random.fold_in(jax.random.key(seed), n), (3, width)
        )
        return {"in/out": {"kernel": kernel, "half": kernel[0].astype(jnp.bfloat16)}}

    opt_state = (Moments(tree(2), tree(3)), (), {"count": jnp.int32(seed)})
    return State(jnp.int32(seed), tree(0), tree(1) if ema else None, opt_state)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved(directory: Path, *steps: int, keep: int = 2) -> Checkpoints:
    """Save these steps, the state of each made from its number."""
    checkpoints = Checkpoints(directory, keep)
    for step in steps:
        checkpoints.save(step, make(step), {"data": {"batches": step}})
    checkpoints.wait()
    return checkpoints


def assert_good(directory: Path, step: int):
    """Assert that the step is the latest, and holds what was saved as it."""
    checkpoints = Checkpoints(directory)
    assert checkpoints.newest_intact() == step
    state, extra = checkpoints.restore(step, abstract(make(0)))
    assert_same(state, make(step))
    assert extra == {"data": {"batches": step}}


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def largest(directory: Path) -> Path:
    return max(files(directory), key=lambda p: p.stat().st_size)


def flip(path: Path, at: float = 0.5):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)
