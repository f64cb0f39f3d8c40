"""Animate a picture; extend, inpaint, upscale, change or control a clip, by a model.

python edit.py --workdir=models/bouncing --extend=clip.mp4 --out=samples
"""

import os
import sys

if __name__ == "__main__":
    # PYTHONSAFEPATH leaves it out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from vdm_jax.commands import edit

    edit.main()
