"""Distil the transformer of configs/dit.py:packed, with guidance, from 64 steps to 4.

    python distill.py --config=configs/distill_dit.py --teacher=runs/dit \\
        --workdir=runs/dit_distilled --config.data.path=runs/dit_latents/8x64x64

The last argument says where the latents of the teacher's first size are; a teacher in
runs/ names those that it was trained from, and it may be left out. The clips are of
that size, 64x64; a student makes videos of the other sizes, too, and takes given
frames, as its teacher does. Runs on two cores. Result: not run.
Variants: none.
"""

from ml_collections import ConfigDict

from configs.base import distillation

VARIANTS = ("",)


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config."""
    config = distillation()
    config.distill.update(
        start_steps=64,
        end_steps=4,
        guidance_range=(3.0, 5.0),
        guidance_updates=1000,
        guidance_lr=2e-3,
        updates_per_round=250,
        num=16,
        max_metric_drop=0.2,
    )
    config.data.update(batch_size=8, text_embeddings_dir="runs/dit_text")
    config.train.update(
        optimizer="muon",
        learning_rate=5e-4,
        checkpoint_every=125,
        keep_checkpoints=2,
        log_every=20,
    )
    return config.lock()
