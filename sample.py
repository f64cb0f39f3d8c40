"""Sample videos from a trained model.

python sample.py --workdir=models/shapes --label=red,circle,left,fast --out=samples
"""

import os
import sys

if __name__ == "__main__":
    # PYTHONSAFEPATH leaves it out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from vdm_jax.commands import sample

    sample.main()
