"""Start parameters of a run from those of another model."""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vdm_jax.checkpoint import check_same_arrays
from vdm_jax.model import Params
from vdm_jax.trees import named_leaves


def start_from(
    loaded: Params,
    expected: Params,
    init: Callable[[], Params],
    what: str,
    new: Sequence[str] = (),
    widen: Sequence[str] = (),
) -> Params:
    """Return parameters like `expected`, from `loaded` where it has them.

    Args:
      loaded: of the other model.
      expected: shapes of the parameters to return.
      init: returns new parameters; called only if some are needed.
      what: the other model, for the message.
      new: patterns of whole paths. Arrays that `loaded` lacks start as `init` has them.
      widen: patterns of whole paths. A kernel with more inputs than the loaded one gets
        zeros for the others: the network starts by ignoring them.

    Raises:
      UserError: an array that is not there, or of another shape, and no pattern allows
        it; or one that is left over.
    """
    # Those of a codec do not train.
    loaded = {part: leaves for part, leaves in loaded.items() if part != "codec"}
    wanted, there = named_leaves(expected), named_leaves(loaded)
    absent = [n for n in wanted if n not in there and _matches(n, new)]
    fresh = named_leaves(init()) if absent else {}
    for name, leaf in wanted.items():
        if name in absent:
            there[name] = fresh[name]
        elif name in there and _matches(name, widen):
            there[name] = _widened(there[name], leaf.shape)
    check_same_arrays(there, wanted, what)
    leaves = [there[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _widened(kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return a kernel [..., in, out] with zeros for inputs that it does not have."""
    if kernel.ndim != len(shape) or kernel.ndim < 2 or kernel.shape[-2] >= shape[-2]:
        return kernel
    padding = [(0, 0)] * kernel.ndim
    padding[-2] = (0, shape[-2] - kernel.shape[-2])
    return jnp.pad(kernel, padding)
