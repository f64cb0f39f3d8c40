"""Moving shapes, label-conditional: the model that is trained in minutes on two cores.

    python train.py --config=configs/shapes.py --workdir=runs/shapes
    python sample.py --workdir=runs/shapes --label=red,circle,left,fast

Result: models/shapes, whose README has the figures.
Variants: `:demo` is the six minutes of `make demo`, `:smoke` takes seconds.
"""

from ml_collections import ConfigDict

from configs.base import base, smoke

VARIANTS = ("", "demo", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """The complete, locked config of a variant."""
    config = base()
    config.video.update(frames=8, height=16, width=16, fps=8)
    config.data.update(source="shapes", batch_size=16)
    config.network.update(
        levels=(
            dict(
                channels=48,
                blocks=1,
                mixing=("temporal_conv", "temporal_attention"),
            ),
            dict(
                channels=96,
                blocks=1,
                mixing=("temporal_conv", "temporal_attention", "spatial_attention"),
            ),
        ),
        middle=("temporal_attention", "spatial_attention"),
        head_dim=48,
        patch=2,
        extra_up_block=False,
        relative_position="bias",
    )
    config.conditioning.update(
        width=96, layers=2, label_drop=0.1, attribute_drop=0.05, frame_position=True
    )
    # Shapes are learned at little noise, directions at much.
    config.diffusion.update(shift=-1.0, train_shifts=(0.0, -3.0), precondition=True)
    config.train.update(
        steps=3000,
        optimizer="muon",
        learning_rate=5e-3,
        warmup=60,
        final=0.05,
        weight_decay=0.01,
        ema=0.997,
        checkpoint_every=500,
        log_every=20,
        preview_every=500,
        validate_every=500,
    )
    config.sample.update(steps=32, sampler="ddim", guidance=1.0, batch_size=64)

    if variant == "demo":
        config.train.update(steps=1250, preview_every=250, validate_every=250)
    if variant == "smoke":
        smoke(config)
    return config.lock()
