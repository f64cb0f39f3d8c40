"""Your own videos: a folder of mp4, mov, webm, avi, mkv, gif, webp or image files.

    python -m vdm_jax.data check MY_VIDEOS
    python train.py --config=configs/folder.py --config.data.path=MY_VIDEOS \
        --workdir=runs/mine

Subfolders are the labels, if two or more hold videos. Result: depends on the videos;
not run as an experiment.
Variants: the default fits one GPU, `:cpu` a laptop; `:smoke` takes seconds.
"""

from ml_collections import ConfigDict

from configs.base import base, smoke

VARIANTS = ("", "cpu", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    config.video.update(frames=16, height=64, width=64, fps=8)
    config.data.update(batch_size=16, joint_image_frames=4, target_fps=8.0)
    layers = ("spatial_attention", "temporal_attention", "temporal_conv")
    config.network.update(
        levels=(
            dict(channels=128, blocks=2, layers=("temporal_conv",)),
            dict(channels=256, blocks=2, layers=layers),
            dict(channels=384, blocks=2, layers=layers),
        ),
        patch_size=2,
        dtype="bfloat16",
    )
    config.conditioning.update(cond_dim=512, label_dropout=0.1)
    config.diffusion.update(precondition=True)
    config.train.update(weight_decay=0.01)
    config.sample.update(steps=64, sampler="ddim")

    if variant == "cpu":
        config.video.update(frames=8, height=32, width=32)
        config.data.update(batch_size=8)
        config.network.update(
            levels=(
                dict(channels=64, blocks=1, layers=("temporal_conv",)),
                dict(channels=128, blocks=1, layers=layers),
            ),
            head_dim=32,
            skip_downsamples=False,
            relative_position="bias",
            dtype="float32",
        )
        config.conditioning.update(cond_dim=128)
        config.train.update(
            steps=5000,
            learning_rate=1e-3,
            warmup=100,
            ema_decay=0.998,
            checkpoint_every=250,
            sample_every=500,
            eval_every=500,
        )
    if variant == "smoke":
        smoke(config)
    return config.lock()
