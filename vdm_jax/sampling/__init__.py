"""From a trained model to videos: its own size, longer, larger, from observations."""

from vdm_jax.sampling import observations
from vdm_jax.sampling.autoregressive import extend_in_blocks
from vdm_jax.sampling.batches import decode, generate, sample, to_uint8
from vdm_jax.sampling.invert import edit_by_inversion, invert
from vdm_jax.sampling.labels import OPEN_LABEL, label_array, label_text
from vdm_jax.sampling.progress import progress_bar
from vdm_jax.sampling.reconstruction import with_reconstruction_weight
from vdm_jax.sampling.sdedit import edit, first_row
from vdm_jax.sampling.settings import (
    Settings,
    check_settings,
    check_video_memory,
    nfe,
    uses_cfg,
    why_unused,
)
from vdm_jax.sampling.types import (
    Conditions,
    Control,
    Observation,
    Run,
    SamplingInputs,
)
