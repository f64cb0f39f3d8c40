"""Measure a trained model against real clips, and write its report.

python evaluate.py --workdir=models/shapes --num=200 --guidance=0,1,2,4
"""

from vdm_jax import cli

if __name__ == "__main__":
    cli.evaluate()
