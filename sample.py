"""Sample videos from a trained model.

python sample.py --workdir=models/shapes --label=red,circle,left,fast --out=samples
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
    from vdm_jax import cli

    cli.sample()
