"""Train a video diffusion model.

python train.py --config=configs/shapes.py --workdir=runs/shapes
"""

import os
import sys

if __name__ == "__main__":
    # PYTHONSAFEPATH leaves it out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from vdm_jax.commands import train

    train.main()
