"""Real clips that Python packages contain, labelled by the clip's name.

    python train.py --config=configs/clips.py --workdir=runs/clips

`config.data.path` names the clips: "published" are those with a stated licence and no
identifiable person; "all" adds those for training at home. A few clips are largely
memorised: the report shows the nearest training clip next to each sample.
Result: models/clips, whose README has the figures.
"""

from ml_collections import ConfigDict

from configs.base import base, smoke

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    # Every second frame of films of 24 or 25 frames per second.
    config.video.update(frames=8, height=32, width=32, fps=12.5)
    config.data.update(
        source="clips",
        path="published",
        batch_size=8,
        joint_image_frames=2,
        stride=2,
        flip=True,
    )
    layers = ("temporal_conv", "spatial_attention", "temporal_attention")
    config.network.update(
        levels=(
            dict(channels=64, blocks=1, layers=("temporal_conv",)),
            dict(channels=128, blocks=1, layers=layers),
            dict(channels=128, blocks=1, layers=layers),
        ),
        mid_layers=("spatial_attention", "temporal_attention"),
        head_dim=64,
        patch_size=2,
        skip_downsamples=False,
        relative_position="bias",
    )
    config.conditioning.update(cond_dim=192, label_dropout=0.1)
    config.diffusion.update(train_logsnr_shifts=(0.0, -2.0), precondition=True)
    config.train.update(
        steps=5500,
        optimizer="muon",
        learning_rate=5e-3,
        warmup=100,
        end_lr_fraction=0.05,
        weight_decay=0.01,
        ema_decay=0.998,
        checkpoint_every=200,
        log_every=20,
        sample_every=1000,
        eval_every=1000,
    )
    # With DDIM some samples cut to another scene.
    config.sample.update(steps=128, sampler="ancestral", batch_size=16)

    if variant == "smoke":
        smoke(config)
    return config.lock()
