"""The section of published networks of flow matching, which few configs have."""

from dataclasses import dataclass

from vdm_jax.settings.declaration import setting


@dataclass(frozen=True)
class FlowTimesteps:
    """With schedule "flow": the network reads the timestep and flow's own state."""

    train_steps: int = setting(1000, "timestep of pure noise", 1, 10**6)
    whole_timesteps: bool = setting(True, "they are rounded down, as by UniPC")
    timestep_dim: int = setting(256, "features of a timestep, even", 2, 2**16)
