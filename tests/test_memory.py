"""The limit of memory: vdm_jax/memory.py."""

import resource

import pytest

from vdm_jax import memory
from vdm_jax.errors import UserError


def test_more_than_the_limit_is_refused_with_both_numbers(monkeypatch):
    limits = (3 << 30, resource.RLIM_INFINITY)
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: limits)
    assert memory.memory_limit() <= 3 << 30
    monkeypatch.setattr(memory, "memory_limit", lambda: 1 << 30)
    memory.check_memory(1 << 30, "num=1")
    with pytest.raises(UserError, match="num=9: 4.0 GiB of memory needed, 1.0 av"):
        memory.check_memory(4 << 30, "num=9")
