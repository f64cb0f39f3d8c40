import contextlib
import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

from vdm_jax.planning import cycles, kernels

HLO = """HloModule jit_f, is_scheduled=true

%fused (x: f32[8]) -> f32[8] {
  ROOT %inner = f32[8] add(%x, %x), backend_config={"estimated_cycles":"9999"}
}

%body (p: (f32[8], s32[])) -> (f32[8], s32[]) {
  %p = (f32[8], s32[]) parameter(0)
  %x = f32[8] get-tuple-element(%p), index=0
  %i = s32[]{:T(128)} get-tuple-element(%p), index=1
  %a = f32[8] fusion(%x), calls=%fused, backend_config={"estimated_cycles":"100"}
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  ROOT %r = (f32[8], s32[]) tuple(%a, %next)
}

%condition (q: (f32[8], s32[])) -> pred[] {
  %q = (f32[8], s32[]) parameter(0)
  %unused = s32[]{:T(128)} constant(99)
  %limit = s32[]{:T(128)} constant(10)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

%cheap (y: f32[8]) -> f32[8] {
  ROOT %c = f32[8] copy(%y), backend_config={"estimated_cycles":"1"}
}

%dear (z: f32[8]) -> f32[8] {
  ROOT %d = f32[8] copy(%z), backend_config={"estimated_cycles":"40"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %a.1 = f32[8] fusion(%x), calls=%fused, backend_config={"estimated_cycles":"7"}
  %zero = s32[]{:T(128)} constant(0)
  %t = (f32[8], s32[]) tuple(%a.1, %zero)
  %loop = (f32[8], s32[]) while(%t), condition=%condition, body=%body, metadata={}
  %i.1 = s32[] parameter(1)
  %b = f32[8] conditional(%i.1, %a.1, %a.1), branch_computations={%cheap, %dear}
  ROOT %k.1 = f32[64]{0} custom-call(%a.1), custom_call_target="tpu_custom_call"
}
"""

SCHEDULE = """
     0   :  { %7 = vsyncpa [#allocation5], 0 }
   0x1   :  {}
   0x2 LB: > { %s1 = sadd.s32 1, %s0 /* iteration index, stage = 0 */ }
   0x3 LB: >> { %p6 = scmp.ge.s32.totalorder %s29, 8 /* loop exit test */ }
element_size_in_bytes: 2048
   0x4   : >> { %226 = sbr.rel (!%p6) target = $region95 }
   0x5   :  {}
   0x6   : > { %p9 = scmp.ge.s32.totalorder %s22, 12 /* loop exit test */ }
   0x7   : > { %21 = sadd.s32 1, %s22 }
   0x8   :  { %20 = sbr.rel (!%p9) target = $region106 }
   0x9   :  { %21 = vsyncpa [#allocation5], 1 }
"""
# Outside 4 bundles, as a branch alone has no mark; a grid of 10, which turns twice
# more; inside of it a loop of 8.
BUNDLES = 4 + 10 * (3 + 8 * 3)


def test_bundles_of_nested_loops():
    assert kernels.schedule_bundles(SCHEDULE) == BUNDLES


def test_a_loop_without_known_trips_is_refused():
    with pytest.raises(ValueError, match="constant trips"):
        kernels.schedule_bundles(SCHEDULE.replace(", 8 /*", ", %s3 /*"))


OWN = "1-add.1-23-final_bundles.txt"
OTHERS = "2-add-1-23-final_bundles.txt", "1-add.1-22-first_bundles.txt"


@pytest.mark.parametrize("found", [SCHEDULE, "", None])
def test_a_kernel_without_a_schedule_is_an_error(found, tmp_path):
    """Those of another kernel and of another pass are none."""
    texts = dict.fromkeys(OTHERS, "another") | ({} if found is None else {OWN: found})
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    wrong = pytest.raises(RuntimeError, match="no schedule of add.1: 0.0.52 does")
    with contextlib.nullcontext() if found else wrong:
        assert kernels.take_schedule(tmp_path.iterdir(), "add.1") == found
    assert not any(tmp_path.iterdir())


def test_a_program_is_summed_by_its_loops_and_dearest_branches():
    assert cycles.xla_cycles(HLO) == 7 + 5 * 100 + 40


needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="without libtpu no TPU's compiler"
)


def run(program: str) -> list[float]:
    """Run a program in a process of its own: libtpu reads its environment once."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    output = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True
    )
    return [float(number) for number in output.stdout.split()]


@needs_libtpu
def test_a_product_on_one_chip():
    program = """
        import jax, jax.numpy as jnp
        from vdm_jax.planning.cycles import piece_cycles
        shape = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16)
        one = piece_cycles(jnp.matmul, shape, shape)
        print(one.flops, one.pallas, one.utilisation)
    """
    flops, pallas, utilisation = run(program)
    assert flops == 2 * 2048**3
    assert pallas == 0
    assert 0.5 < utilisation < 1


@needs_libtpu
def test_a_kernel_that_waits_for_memory_counts_its_bytes():
    """Its product is far smaller than what it reads."""
    program = """
        import jax, jax.numpy as jnp
        from jax.experimental import pallas as pl
        from vdm_jax.planning.cycles import piece_cycles

        def kernel(x, y):
            y[...] = x[...] + 1

        def add(x):
            block = pl.BlockSpec((256, 1024), lambda i: (i, 0))
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            call = pl.pallas_call(
                kernel, grid=(8,), in_specs=[block], out_specs=block, out_shape=shape
            )
            return call(x)

        one = piece_cycles(add, jax.ShapeDtypeStruct((2048, 1024), jnp.float32))
        print(one.xla, one.pallas)
    """
    xla, pallas = run(program)
    assert xla < pallas == 2 * 2048 * 1024 * 4 / 545
