"""Distil the shipped shapes model, with guidance, from 128 steps to 1.

    python distill.py --config=configs/distill_shapes.py --teacher=models/shapes \\
        --workdir=runs/distilled

Result: docs/experiments.md; its student of eight steps is models/shapes_8step.
Runs on two cores.
Variants: `:smoke` takes seconds, with a teacher of configs/shapes.py:smoke.
"""

from ml_collections import ConfigDict

from configs.base import distillation

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = distillation()
    config.distill.update(
        start_steps=128,
        end_steps=1,
        guidance_range=(1.0, 3.0),
        guidance_updates=4000,
        guidance_lr=2e-3,
        updates_per_round=300,
        updates_last_rounds=600,
        time_power=2.0,
        metric="shape_accuracy",
        num=96,
    )
    config.data.batch_size = 16
    config.train.update(
        optimizer="muon",
        learning_rate=5e-4,
        checkpoint_every=200,
        keep_checkpoints=2,
        log_every=20,
    )
    if variant == "smoke":
        config.distill.update(
            start_steps=4,
            guidance_updates=4,
            updates_per_round=4,
            updates_last_rounds=4,
            num=4,
            max_metric_drop=2.0,
        )
        config.data.batch_size = 2
        config.train.update(checkpoint_every=2, log_every=2)
    return config.lock()
