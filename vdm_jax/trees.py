"""Trees of arrays by the paths of their leaves, as a/b/c."""

from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, in the order of jax.tree.leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def first_non_finite(tree: Any) -> str | None:
    """Return the path of the first leaf that is not finite, None if all are."""
    named = {
        name: leaf
        for name, leaf in named_leaves(tree).items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    finite = jax.device_get(_finite(list(named.values())))
    return next((n for n, good in zip(named, finite, strict=True) if not good), None)


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]
