"""Run a command in float64; keep its videos unrounded."""

import importlib
import sys

import numpy as np

from vdm_jax import runtime, sampling

runtime.PINNED_JAX_SETTINGS["jax_enable_x64"] = True
command, out, *flags = sys.argv[1:]
kept = {}
to_uint8 = sampling.to_uint8


def keeping(videos):
    """Convert videos, and keep them as they are."""
    kept[f"videos_{len(kept)}"] = np.asarray(videos)
    return to_uint8(videos)


sampling.to_uint8 = keeping
sys.argv = [f"{command}.py", *flags]
try:
    importlib.import_module(f"vdm_jax.commands.{command}").main()
finally:
    np.savez(out, **kept)
