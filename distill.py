"""Distil a trained model into a student of a few steps.

python distill.py --config=configs/distill_shapes.py --teacher=models/shapes \\
    --workdir=runs/distilled
"""

from vdm_jax import cli

if __name__ == "__main__":
    cli.distill()
