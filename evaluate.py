"""Measure a trained model against real clips, and write its report.

python evaluate.py --workdir=models/shapes --num=200 --guidance=0,1,2,4
"""

import os
import sys

if __name__ == "__main__":
    # PYTHONSAFEPATH leaves it out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from vdm_jax import cli

    cli.evaluate()
