"""Train a video diffusion model.

python train.py --config=configs/shapes.py --workdir=runs/shapes
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
    from vdm_jax import cli

    cli.train()
