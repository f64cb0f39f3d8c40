"""Systems that are more than a config: how an image model makes a video.

A system is a module with

Options        a frozen dataclass, whose fields are settings
check_request  (model, request, settings, options): raises UserError before any loading
sample         (loaded, request, settings, options, progress) -> videos in [-1, 1]

The loop over the steps of a sampler is that of `sampling.generate`.
"""

from types import ModuleType

from vdm_jax.systems import control_video, text2video_zero
from vdm_jax.systems.request import DEFAULT_FRAMES, Request, parse_options

SYSTEMS: dict[str, ModuleType] = {
    module.NAME: module for module in (text2video_zero, control_video)
}
