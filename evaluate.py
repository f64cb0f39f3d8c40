"""Measure a trained model against real clips, and write its report.

python evaluate.py --workdir=models/shapes --num=200 --guidance_scale=1,2,3,5
"""

import os
import sys

if __name__ == "__main__":
    # PYTHONSAFEPATH leaves it out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from vdm_jax.commands import evaluate

    evaluate.main()
