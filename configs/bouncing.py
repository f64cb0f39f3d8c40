"""Bouncing shapes, whose motion never ends: the model for extending videos.

Training starts from the parameters of models/shapes.

    python train.py --config=configs/bouncing.py --workdir=runs/bouncing
    python sample.py --workdir=runs/bouncing --num_frames=64 --out=out

Result: models/bouncing, whose README has the figures.
"""

from ml_collections import ConfigDict

from configs import shapes

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant, from that of configs/shapes.py."""
    config = shapes.get_config(variant).unlock()
    config.data.source = "bouncing"
    # Mostly without a label: the network must read the motion from earlier frames.
    config.conditioning.label_dropout = 0.9
    config.sample.update(guidance_scale=1.0, label="none")
    if not variant:
        config.init_from = "models/shapes"
        config.sample.update(steps=64, sampler="ancestral", ancestral_gamma=0.3)
    return config.lock()
