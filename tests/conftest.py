"""Shared by all tests: compilation cache, strict ranks, float64 on request."""

import os
import signal
from pathlib import Path

import jax
import pytest

from tests.run_command import collect_seldom

ROOT = Path(__file__).parents[1]
# One for each worker: the other would read files that JAX has half written.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
CACHE = Path(os.environ.get("VDM_CACHE", ROOT / ".cache")) / "xla" / WORKER

# Tests compile far longer than they run: neither LLVM's optimiser nor XLA's emitters of
# fusions pay here. Processes that tests start inherit it.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
# A shell or nohup starts what runs in its background with these signals ignored, and
# commands then ignore them too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish():
    """Keep what all test modules have imported."""
    collect_seldom()


@pytest.fixture
def x64():
    """Float64 arrays for the length of one test."""
    with jax.enable_x64(True):
        yield
