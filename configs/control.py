"""A ControlNet: an image model of sprites follows silhouettes, luma or edges.

    python train.py --config=configs/control.py --config.init_from=models/sprites \
        --workdir=runs/control

The model is frozen; a copy of its first half trains with a hint, of which one kind is
drawn for each picture (Zhang et al. 2023, arXiv:2302.05543). Text is dropped for half
of the pictures, as there, so that the hint is read without it. Variants: `:smoke` takes
seconds, on a model of configs/sprites.py:smoke. Result: models/control.
"""

from ml_collections import ConfigDict

from configs.base import tuning

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant; its network is that of init_from."""
    config = tuning()
    config.init_from = "models/sprites"
    config.video.frames = 1
    config.data.update(
        source="sprites",
        path="everyday",
        label_vocabulary=(),
        text_embeddings_dir="runs/sprites_text",
        batch_size=32,
    )
    config.control = dict(
        kinds=("silhouette", "luma", "edges"),
        hint_channels=(16, 32, 96),  # for the autoencoder's factor 4
    )
    config.conditioning.text_dropout = 0.5
    config.train.update(
        steps=2000,
        learning_rate=3e-4,
        b2=0.999,
        weight_decay=0.01,
        warmup=100,
        end_lr_fraction=0.05,
        ema_decay=0.998,
        checkpoint_every=250,
        log_every=20,
        sample_every=500,
        eval_every=500,
    )
    if variant == "smoke":
        _smoke(config)
    return config.lock()


def _smoke(config: ConfigDict) -> None:
    """Set few updates of the smallest vocabulary."""
    config.init_from = "runs/sprites_smoke"
    config.data.update(path="small", batch_size=2)
    config.control.hint_channels = (4, 6, 8)
    config.train.update(
        steps=4,
        warmup=1,
        checkpoint_every=2,
        log_every=2,
        sample_every=2,
        eval_every=4,
    )
    config.sample.update(num=2, steps=2)
