"""Distil a trained model into a student of a few steps.

python distill.py --config=configs/distill_shapes.py --teacher=models/shapes \\
    --workdir=runs/distilled
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
    from vdm_jax import cli

    cli.distill()
