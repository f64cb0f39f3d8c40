"""Every setting, declared once: configs, flags, checks and docs are made of it."""

from vdm_jax.settings.declaration import (
    check,
    check_config,
    compose,
    open_section,
    section_dict,
    settings_of,
)
from vdm_jax.settings.distillation import DISTILLATION
from vdm_jax.settings.sections import MODEL, OPTIONAL, TRAINING
