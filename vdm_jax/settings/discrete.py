"""The section of a discrete noise schedule, which few configs have."""

from dataclasses import dataclass

from vdm_jax.settings.declaration import setting


@dataclass(frozen=True)
class Discrete:
    """The table of schedule "discrete"; without it Stable Diffusion's is taken."""

    train_steps: int = setting(1000, "number of timesteps", 1, 10**6)
    beta_start: float = setting(0.00085, "beta of timestep 0", 0, 0.999)
    beta_end: float = setting(0.012, "beta of the last timestep", 0, 0.999)
    beta_schedule: str = setting(
        "scaled_linear",
        "betas between: their roots are linear, or they are",
        choices="diffusion.schedules.BETA_SCHEDULES",
    )
    timestep_spacing: str = setting(
        "leading",
        "timesteps of a sampler",
        choices="diffusion.schedules.TIMESTEP_SPACINGS",
    )
    steps_offset: int = setting(1, "added to the timesteps of leading", 0, 10**6)
    set_alpha_to_one: bool = setting(
        False, "a sampler ends at the data, not at timestep 0"
    )
    skip_last: bool = setting(
        False, "n steps are the first n of n + 1 timesteps, but of trailing"
    )
