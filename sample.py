"""Sample videos from a trained model.

python sample.py --workdir=models/shapes --label=red,circle,left,fast --out=samples
"""

from vdm_jax import cli

if __name__ == "__main__":
    cli.sample()
