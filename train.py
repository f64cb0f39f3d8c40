"""Train a video diffusion model.

python train.py --config=configs/shapes.py --workdir=runs/shapes
"""

from vdm_jax import cli

if __name__ == "__main__":
    cli.train()
