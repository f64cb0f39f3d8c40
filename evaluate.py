"""Measure a trained model against real clips, and write its report.

python evaluate.py --workdir=models/shapes --num=200 --guidance=0,1,2,4
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
    from vdm_jax import cli

    cli.evaluate()
