"""Write all parameters of the newest checkpoint."""

import sys
from typing import Any

import numpy as np

from vdm_jax.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1] + "/checkpoints", read_only=True)
step = checkpoints.newest_intact()
assert step is not None
arrays: dict[str, Any] = checkpoints.arrays(step)
parts = ("params/", "ema/")
np.savez(sys.argv[2], **{k: v for k, v in arrays.items() if k.startswith(parts)})
