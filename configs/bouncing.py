"""Bouncing shapes, whose motion can go on: the model to extend videos with.

It starts from models/shapes, which knows the shapes, and learns how they move on.

    python train.py --config=configs/bouncing.py --workdir=runs/bouncing
    python sample.py --workdir=runs/bouncing --frames=64 --out=out

Result: models/bouncing, whose README has the figures.
"""

from ml_collections import ConfigDict

from configs import shapes

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """The complete, locked config of a variant: configs/shapes.py on other paths."""
    config = shapes.get_config(variant).unlock()
    config.data.source = "bouncing"
    # Mostly without a label: what goes on must be read from the frames before.
    config.conditioning.label_dropout = 0.9
    config.sample.update(guidance_scale=1.0, label="none")
    if not variant:
        config.init_from = "models/shapes"
        config.sample.update(steps=64, sampler="ancestral", ancestral_gamma=0.3)
    return config.lock()
