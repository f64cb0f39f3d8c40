"""Distil every stage of the small cascade, with guidance, from 32 steps to 8.

    python distill.py --cascade=runs/cascade --config=configs/distill_cascade.py \\
        --workdir=runs/cascade_8step

Runs on two cores.
Variants: `:smoke`, for stages of configs/cascade_small.py:smoke.
Result: cascades/shapes.
"""

from ml_collections import ConfigDict

from configs.base import distillation

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant."""
    config = distillation()
    config.distill.update(
        start_steps=32,
        end_steps=8,
        guidance_range=(1.0, 3.0),
        guidance_updates=600,
        guidance_lr=2e-3,
        updates_per_round=300,
        time_power=2.0,
        num=48,
        max_metric_drop=0.2,
    )
    config.data.batch_size = 0  # that of each stage
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
            end_steps=2,
            guidance_range=(),
            updates_per_round=2,
            updates_last_rounds=2,
            num=2,
            max_metric_drop=2.0,
        )
        config.train.update(checkpoint_every=2, log_every=2)
    return config.lock()
