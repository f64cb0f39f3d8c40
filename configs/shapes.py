"""Moving shapes with labels: a model that trains in minutes on two cores.

    python train.py --config=configs/shapes.py --workdir=runs/shapes
    python sample.py --workdir=runs/shapes --label=red,circle,left,fast --out=out

Result: models/shapes, whose README has the figures.
Variants: `:demo` takes six minutes and is that of `make tour`, `:smoke` takes seconds.
"""

from ml_collections import ConfigDict

from configs.base import base, smoke

VARIANTS = ("", "demo", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    config.video.update(frames=8, height=16, width=16, fps=8)
    config.data.update(source="shapes", batch_size=16)
    config.network.update(
        levels=(
            dict(
                channels=48,
                blocks=1,
                layers=("temporal_conv", "temporal_attention"),
            ),
            dict(
                channels=96,
                blocks=1,
                layers=("temporal_conv", "temporal_attention", "spatial_attention"),
            ),
        ),
        mid_layers=("temporal_attention", "spatial_attention"),
        head_dim=48,
        patch_size=2,
        skip_downsamples=False,
        relative_position="bias",
    )
    config.conditioning.update(
        cond_dim=96,
        cond_mlp_layers=2,
        label_dropout=0.1,
        attribute_dropout=0.05,
        frame_index_embedding=True,
    )
    # Shapes are learned at low noise levels, directions at high ones.
    config.diffusion.update(
        logsnr_shift=-1.0, train_logsnr_shifts=(0.0, -3.0), precondition=True
    )
    config.train.update(
        steps=3000,
        optimizer="muon",
        learning_rate=5e-3,
        warmup=60,
        end_lr_fraction=0.05,
        weight_decay=0.01,
        ema_decay=0.997,
        checkpoint_every=500,
        log_every=20,
        sample_every=500,
        eval_every=500,
    )
    config.sample.update(steps=32, sampler="ddim", guidance_scale=2.0, batch_size=64)

    if variant == "demo":
        config.train.update(steps=1250, sample_every=250, eval_every=250)
    if variant == "smoke":
        smoke(config)
    return config.lock()
