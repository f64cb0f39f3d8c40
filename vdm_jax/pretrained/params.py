"""Our parameters in one safetensors file, each named by its path a/b/c."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from vdm_jax.errors import UserError
from vdm_jax.files import write_bytes
from vdm_jax.migration import migrate_path
from vdm_jax.pretrained.safetensors_io import cast, read_renamed
from vdm_jax.trees import named_leaves


def write(path: Path, params, dtype: Any = np.float16) -> None:
    """Write parameters as `dtype`, atomically.

    Raises:
      UserError: a value is not finite in that dtype.
    """
    arrays = {
        name: cast(name, jax.device_get(leaf), dtype)
        for name, leaf in named_leaves(params).items()
    }
    write_bytes(path, save(arrays), overwrite=True)


def read(path: Path, like, others: Mapping[str, Any] | None = None):
    """Return parameters shaped as the tree `like` of arrays or shapes, in its dtypes.

    Names of version 0.1 are translated (vdm_jax/migration.py).

    others: arrays by path, of which those that the file lacks are taken.

    Raises:
      UserError: the file is missing or damaged, or its parameters do not fit `like`.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .safetensors file")
    params = read_renamed([path], like, migrate_path, np.asarray, others)

    def cast(array, leaf):
        return array if array.dtype == leaf.dtype else array.astype(leaf.dtype)

    return jax.tree.map(cast, params, like)
