"""What a run carries from step to step, and all that a checkpoint must hold."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """`ema` is None when no average is kept; `step` and `skipped` are int32 []."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    skipped: jax.Array  # updates left out because loss or gradient was not finite
