"""The models of Video Diffusion Models (Ho et al. 2022), with appendix A's settings.

    python train.py --config=configs/vdm.py:kinetics600 --config.data.path=VIDEOS ...

Not run. docs/papers.md compares every value with the paper's. Parameter counts are in
docs/networks.md.
Variants: `:ucf101`, `:bair` and `:kinetics600` (unconditional; the latter two predict
frames by reconstruction guidance), `:text_small`, `:text_large`, `:text_128`, and
`:smoke`.
"""

from ml_collections import ConfigDict

from configs.base import base, smoke

VARIANTS = (
    "ucf101",
    "bair",
    "kinetics600",
    "text_small",
    "text_large",
    "text_128",
    "smoke",
)
ATTENTION = ("spatial_attention", "temporal_attention")


def levels(base_channels: int, multipliers: tuple, blocks: int, size: int) -> tuple:
    """Return levels with attention at heights 8, 16 and 32, and none above."""
    return tuple(
        dict(
            channels=base_channels * multiplier,
            blocks=blocks,
            layers=ATTENTION if size >> i <= 32 else (),
        )
        for i, multiplier in enumerate(multipliers)
    )


def get_config(variant: str = "ucf101") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    config.data.joint_image_frames = 8
    config.network.update(
        levels=levels(256, (1, 2, 4, 8), 2, 64), dtype="bfloat16", dropout=0.1
    )
    config.train.update(checkpoint_every=5000, sample_every=10_000)

    if variant == "ucf101":
        config.data.update(source="tfds", tfds_name="ucf101", label_vocabulary=())
        config.conditioning.cond_mlp_layers = 4
        config.diffusion.update(prediction_type="eps", loss_weighting="snr")
        config.train.steps = 60_000
    if variant == "bair":
        config.data.update(
            source="tfds",
            tfds_name="bair_robot_pushing_small@image_main",
            label_vocabulary=(),
            flip=True,
        )
        config.network.levels = levels(128, (1, 2, 3, 4), 3, 64)
        config.train.update(
            steps=660_000,
            learning_rate=2e-4,
            b2=0.999,
            weight_decay=0.01,
            ema_decay=0.999,
        )
        # The weight is for one conditioning frame.
        config.sample.update(
            ancestral_gamma=0.0, langevin_delta=0.1, reconstruction_weight=50.0
        )
    if variant == "kinetics600":
        config.data.update(batch_size=256, label_vocabulary=())
        config.train.update(steps=220_000, learning_rate=2e-4)
        # The weight is for five conditioning frames.
        config.sample.update(
            steps=128,
            ancestral_gamma=0.0,
            langevin_delta=0.1,
            reconstruction_weight=9.0,
        )
    if variant.startswith("text"):
        config.network.dropout = 0.0
        config.conditioning.update(cond_mlp_layers=4, text_dim=1024, text_dropout=0.1)
        config.diffusion.update(prediction_type="eps", loss_weighting="snr")
        config.sample.ancestral_gamma = 0.3
    if variant == "text_small":
        config.network.levels = levels(128, (1, 2, 4, 8), 2, 64)
        config.train.steps = 200_000
    if variant == "text_large":
        config.train.steps = 700_000
    if variant == "text_128":
        config.video.update(frames=9, height=128, width=128)
        config.data.joint_image_frames = 7
        config.network.update(
            levels=levels(128, (1, 2, 4, 8, 16), 2, 128), head_dim=128
        )
        config.train.update(steps=800_000, learning_rate=2e-4)
    if variant == "smoke":
        config.data.update(source="shapes", joint_image_frames=2)
        smoke(config)
    return config.lock()
