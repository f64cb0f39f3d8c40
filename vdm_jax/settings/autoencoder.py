"""The section of a training of an autoencoder, which few configs have."""

from dataclasses import dataclass

from vdm_jax.settings.declaration import setting


@dataclass(frozen=True)
class Autoencoder:
    """The loss of config.task="autoencoder". Other models have no such section."""

    perceptual_weight: float = setting(1.0, "of LPIPS; 0 does not load it", 0, 1000)
    kl_weight: float = setting(
        1e-6, "of the KL divergence, in nats per value of a frame", 0, 1000
    )
    critic_start: int = setting(
        50_000, "step from which the critic trains", 0, 2**31 - 1
    )
    critic_weight: float = setting(
        0.5, "gradient of the adversarial term over that of L1 and LPIPS", 0, 1000
    )
    critic_channels: int = setting(64, "of the critic's first layer", 4, 1024)
    critic_layers: int = setting(3, "strided layers of the critic", 1, 6)
