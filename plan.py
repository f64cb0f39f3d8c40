"""Plan a run on TPUs or GPUs that are not there: memory, collectives, FLOPs, meshes.

python plan.py --config=configs/vdm.py:ucf101 --topology=v5e:4x4 --mesh=fsdp=16
"""

import os
import sys

if __name__ == "__main__":
    # PYTHONSAFEPATH leaves it out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from vdm_jax.commands import plan

    plan.main()
