"""An autoencoder of 64x64 frames, 12,288 values, to 16x16x4 latents, 1,024 values.

    python train.py --config=configs/autoencoder.py --workdir=runs/autoencoder
    python -m vdm_jax.export --workdir=runs/autoencoder --out=models/autoencoder

It is trained on stills of sprites, frames of their clips, photographs and colours, by
L1, LPIPS, KL and, for the last quarter, a critic. Other models diffuse its latents by
`config.codec.kind=autoencoder` and `config.codec.path=models/autoencoder`.

Result: models/autoencoder, in 40 minutes on two cores.
"""

from ml_collections import ConfigDict

from configs.base import base
from vdm_jax import settings

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    config.task = "autoencoder"
    config.video.update(frames=1, height=64, width=64)
    config.data.update(
        source="pictures",
        path="everyday+gradients+photographs",
        batch_size=8,
        crop="random",
        flip=True,
    )
    config.network = dict(
        kind="autoencoder",
        latent_channels=4,
        channels=(16, 32, 96),
        blocks=1,
        num_groups=4,
        mid_attention=True,
    )
    config.autoencoder = settings.section_dict(settings.TRAINING["autoencoder"])
    config.autoencoder.update(
        # With latent diffusion's 1e-6 the posterior has almost no noise, and the
        # decoder need not bear the errors of a model that samples latents.
        kl_weight=1e-2,
        perceptual_weight=0.25,
        critic_start=3000,
        critic_weight=0.1,
        critic_channels=16,
    )
    config.train.update(
        steps=4000,
        optimizer="muon",
        learning_rate=5e-3,
        warmup=100,
        end_lr_fraction=0.05,
        ema_decay=0.998,
        checkpoint_every=100,
        log_every=20,
        sample_every=250,
        eval_every=250,
    )
    if variant == "smoke":
        config.video.update(height=32, width=32)
        config.data.update(batch_size=2, path="small")
        config.network.update(channels=(8, 16), num_groups=4)
        config.autoencoder.update(critic_start=2, critic_channels=8)
        config.train.update(
            steps=4,
            warmup=1,
            checkpoint_every=2,
            log_every=2,
            sample_every=2,
            eval_every=4,
        )
    return config.lock()
