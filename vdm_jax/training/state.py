"""What a run carries from step to step, and all that a checkpoint must hold."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """Parameters, their average, optimiser state and counters.

    step, skipped: int32 []. ema: like params, or None where no average is kept.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    skipped: jax.Array  # updates left out because loss or gradient was not finite

    @property
    def eval_params(self) -> Any:
        """Parameters to sample and evaluate with: the average where there is one."""
        return self.params if self.ema is None else self.ema
