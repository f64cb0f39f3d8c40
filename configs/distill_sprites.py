"""Distil the shipped model of sprites, with guidance, from 16 steps to 4.

    python distill.py --config=configs/distill_sprites.py --teacher=models/sprites \\
        --workdir=runs/sprites_distilled --config.data.path=runs/sprites_latents

The last argument is optional: without stored latents (configs/sprites.py) every batch
is encoded. Runs on two cores. Result: experiments/sprite_accuracy.
Variants: none.
"""

from ml_collections import ConfigDict

from configs.base import distillation

VARIANTS = ("",)


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config."""
    config = distillation()
    config.distill.update(
        start_steps=16,
        end_steps=4,
        guidance_range=(4.0, 5.5),
        guidance_updates=3600,
        guidance_lr=2e-3,
        updates_per_round=400,
        num=64,
        max_metric_drop=0.2,
    )
    config.data.update(batch_size=16, text_embeddings_dir="runs/sprites_text")
    config.train.update(
        optimizer="muon",
        learning_rate=5e-4,
        checkpoint_every=200,
        keep_checkpoints=2,
        log_every=20,
    )
    return config.lock()
