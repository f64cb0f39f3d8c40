"""Trees of arrays by the paths of their leaves, as a/b/c."""

from typing import Any

import jax


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, in the order of jax.tree.leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
