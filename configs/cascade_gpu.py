"""The small cascade for one GPU: 8 frames of 24x32 to 32 frames of 96x128.

    python train.py --cascade=configs/cascade_gpu.py --workdir=runs/cascade_gpu

Stages and layers are those of configs/cascade_small.py, four times as wide, in bfloat16
and with independent images in each batch.
Variants: `:base`, `:tsr1`, `:ssr1`, `:ssr2`, `:tsr2`.
Not run.
"""

from ml_collections import ConfigDict

from configs import cascade_small

STAGES = VARIANTS = cascade_small.STAGES
SIZES = {
    "base": (8, 24, 32),
    "tsr1": (16, 24, 32),
    "ssr1": (16, 48, 64),
    "ssr2": (16, 96, 128),
    "tsr2": (32, 96, 128),
}
BATCH = {"base": 128, "tsr1": 64, "ssr1": 32, "ssr2": 32, "tsr2": 8}
WIDTH = 4  # channels over those of the small cascade
IMAGES = 4  # independent images per video


def get_config(stage: str) -> ConfigDict:
    """Return the locked config of a stage."""
    config = cascade_small.get_config(stage).unlock()
    frames, height, width = SIZES[stage]
    fps = frames / cascade_small.SECONDS
    config.video.update(frames=frames, height=height, width=width, fps=fps)
    config.data.update(stride=32 // frames, batch_size=BATCH[stage], workers=8)
    config.data.joint_image_frames = IMAGES
    for level in config.network.levels:
        level["channels"] *= WIDTH
    config.network.update(head_dim=64, dtype="bfloat16")
    config.conditioning.cond_dim *= WIDTH
    if stage in ("ssr2", "tsr2"):
        config.stage.train_crop = (48, 64)
    config.train.update(
        steps=50_000,
        learning_rate=2e-3,
        warmup=500,
        ema_decay=0.999,
        checkpoint_every=1000,
        log_every=100,
        sample_every=5000,
        eval_every=2500,
    )
    return config.lock()
