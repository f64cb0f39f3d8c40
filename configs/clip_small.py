"""Images and captions in one space of embeddings: a small CLIP of sprites.

    python train.py --config=configs/clip_small.py --workdir=runs/clip_small
    python -m vdm_jax.export --workdir=runs/clip_small --out=models/clip_small
    python -m experiments.clip_small.retrieval

The image tower is a residual network of 3.5 M parameters on 64x64 pixels; the text
tower projects MiniLM's embedding of a sentence. A quarter of the pairs of object and
background is never trained on. Variant: `:smoke` takes seconds.
Result: models/clip_small.
"""

from ml_collections import ConfigDict

from configs.base import base

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = base()
    config.task = "contrastive"
    config.video.update(frames=1, height=64, width=64)
    config.data.update(
        source="sprites",
        path="everyday",
        label_vocabulary=(),
        text_embeddings_dir="runs/sprites_text",
        batch_size=128,
    )
    config.network = dict(
        kind="image_text",
        levels=(
            dict(channels=64, blocks=2),
            dict(channels=128, blocks=2),
            dict(channels=256, blocks=2, layers=("spatial_attention",)),
        ),
        head_dim=64,
        patch_size=4,
        embed_dim=256,
    )
    config.conditioning.update(cond_dim=4, text_dim=384)
    config.train.update(
        steps=800,
        optimizer="muon",
        learning_rate=2e-3,
        warmup=50,
        end_lr_fraction=0.05,
        weight_decay=0.01,
        ema_decay=0.998,
        checkpoint_every=200,
        log_every=20,
        sample_every=0,
        eval_every=200,
    )
    if variant == "smoke":
        config.video.update(height=32, width=32)
        config.data.update(
            path="small",
            batch_size=8,
            text_embeddings_dir="runs/sprites_text_small",
        )
        config.network.update(
            levels=(
                dict(channels=8, blocks=1),
                dict(channels=16, blocks=1, layers=("spatial_attention",)),
            ),
            head_dim=8,
            embed_dim=16,
        )
        config.train.update(
            steps=4,
            warmup=1,
            checkpoint_every=2,
            log_every=2,
            eval_every=4,
        )
    return config.lock()
