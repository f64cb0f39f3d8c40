"""Distil a trained model into a student of a few steps.

python distill.py --config=configs/distill_shapes.py --teacher=models/shapes \\
    --workdir=runs/distilled
"""

import os
import sys

if __name__ == "__main__":
    # PYTHONSAFEPATH leaves it out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from vdm_jax.commands import distill

    distill.main()
