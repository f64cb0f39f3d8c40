"""Collectives of compiled programs, against what each program was written to send."""

import json
import os
import subprocess
import sys

import pytest

from vdm_jax.planning import hlo

# On eight devices, an array of each is f32[4, 16]: 256 bytes.
PROGRAM = """
import json, functools, jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from vdm_jax.planning import hlo

mesh = jax.make_mesh((8,), ("d",), (jax.sharding.AxisType.Auto,))
x = jax.ShapeDtypeStruct((32, 16), jnp.float32)
shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("d"), check_vma=False)
ring = [(i, (i + 1) % 8) for i in range(8)]

def gathered(x):
    return jnp.tanh(jax.lax.all_gather(x, "d", tiled=True)[:4])

@functools.partial(shard, out_specs=P("d"))
def loop(x):
    return jax.lax.fori_loop(0, 5, lambda i, x: gathered(x), x)

@functools.partial(shard, out_specs=P("d"))
def nested(x):
    def inner(x, _):
        return jax.lax.ppermute(jnp.sin(x), "d", ring), None
    def outer(i, x):
        return jnp.tanh(jax.lax.scan(inner, x, length=3)[0])
    return jax.lax.fori_loop(0, 4, outer, x)

@functools.partial(shard, out_specs=P())
def reduced(x):
    return jax.lax.psum(x, "d")

@functools.partial(shard, out_specs=P("d"))
def scattered(x):
    return jax.lax.psum_scatter(jnp.tile(x, (8, 1)), "d", tiled=True)

@functools.partial(shard, out_specs=P("d"))
def exchanged(x):
    return jax.lax.all_to_all(x.reshape(8, 8), "d", 0, 0).reshape(4, 16)

def twice(x):
    return gathered(gathered(x))

@functools.partial(shard, out_specs=P("d"))
def second_branch(x):
    return jax.lax.cond(x.sum() > 0, twice, gathered, x)

@functools.partial(shard, out_specs=P("d"))
def first_branch(x):
    return jax.lax.cond(x.sum() > 0, gathered, twice, x)

@functools.partial(shard, out_specs=P("d"))
def until(x):
    return jax.lax.while_loop(lambda x: x.sum() > 0, gathered, x)

def counted(function):
    text = jax.jit(function).lower(x).compile().as_text()
    found = hlo.count_collectives(text)
    return found.by_kind(), found.open_loops, found.link_bytes

names = "loop", "nested", "reduced", "scattered", "exchanged", "until"
names += "first_branch", "second_branch"
print(json.dumps({name: counted(globals()[name]) for name in names}))
"""
EXPECTED = {
    "loop": ("all-gather", 5, 5 * 8 * 256, 0),
    "nested": ("collective-permute", 12, 12 * 256, 0),
    "reduced": ("all-reduce", 1, 256, 0),
    "scattered": ("reduce-scatter", 1, 256, 0),
    "exchanged": ("all-to-all", 1, 256, 0),
    "first_branch": ("all-gather", 2, 2 * 8 * 256, 0),
    "second_branch": ("all-gather", 2, 2 * 8 * 256, 0),
    "until": ("all-gather", 1, 8 * 256, 1),
}


@pytest.fixture(scope="module")
def counted():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", EXPECTED)
def test_collectives_are_those_that_a_program_was_written_with(counted, name):
    kind, calls, size, open_loops = EXPECTED[name]
    by_kind, found_open_loops, link_bytes = counted[name]
    assert by_kind == {kind: {"calls": calls, "bytes": size}}
    assert found_open_loops == open_loops
    assert link_bytes == size * (2 if kind == "all-reduce" else 1)


# As libtpu 0.0.52 writes a loop over the shards of a kernel: two of them a turn, and
# the constants are parts of the loop's state.
TPU_LOOP = """HloModule jit_step

%cond (p: (bf16[3,16], u32[], u32[])) -> pred[] {
  %p = (bf16[3,16]{1,0:T(4,128)(2,1)}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %limit = u32[]{:T(128)} get-tuple-element(%p), index=2
  ROOT %compare = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (q: (bf16[3,16], u32[], u32[])) -> (bf16[3,16], u32[], u32[]) {
  %q = (bf16[3,16]{1,0:T(4,128)(2,1)}, u32[]{:T(128)}, u32[]{:T(128)}) parameter(0)
  %x = bf16[3,16]{1,0:T(4,128)(2,1)} get-tuple-element(%q), index=0
  %j = u32[]{:T(128)} get-tuple-element(%q), index=1
  %n = u32[]{:T(128)} get-tuple-element(%q), index=2
  %a = bf16[3,16]{1,0:T(4,128)(2,1)} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %b = bf16[3,16]{1,0:T(4,128)(2,1)} collective-permute(%a), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %one = u32[]{:T(128)} constant(1)
  %k = u32[]{:T(128)} add(%one, %j)
  %l = u32[]{:T(128)} add(%k, %one)
  ROOT %r = (bf16[3,16]{1,0:T(4,128)(2,1)}, u32[]{:T(128)}, u32[]{:T(128)}) tuple(%b, %l, CHANGED)
}

ENTRY %main (x: bf16[3,16]) -> bf16[3,16] {
  %x.1 = bf16[3,16]{1,0:T(4,128)(2,1)} parameter(0)
  %zero = u32[]{:T(128)} constant(START)
  %eight = u32[]{:T(128)} constant(8)
  %copied = u32[]{:T(128)} copy(%eight)
  %t = (bf16[3,16]{1,0:T(4,128)(2,1)}, u32[]{:T(128)}, u32[]{:T(128)}) tuple(%x.1, %zero, %copied)
  %w = (bf16[3,16]{1,0:T(4,128)(2,1)}, u32[]{:T(128)}, u32[]{:T(128)}) while(%t), condition=%cond, body=%body
  ROOT %y = bf16[3,16]{1,0:T(4,128)(2,1)} get-tuple-element(%w), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("start", "limit_after", "trips"),
    [("0", "%n", 4), ("3", "%n", 3), ("8", "%n", 0), ("0", "%l", None)],
)
def test_a_loop_of_a_tpu_runs_by_its_counter(start, limit_after, trips):
    text = TPU_LOOP.replace("START", start).replace("CHANGED", limit_after)
    found = hlo.count_collectives(text)
    calls = 2 * (1 if trips is None else trips)
    assert found.calls == {"collective-permute": calls}
    assert found.bytes == {"collective-permute": calls * 3 * 16 * 2}
    assert found.open_loops == (trips is None)


ASYNCHRONOUS = """HloModule m

%fused (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[64]{0} all-gather(%p), dimensions={0}
}

ENTRY %main (x: f32[8]) -> (f32[64], f32[8], f32[64]) {
  %x = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[64]{0}) all-gather-start(f32[8]{0} %x), dimensions={0}
  %done = f32[64]{0} all-gather-done((f32[8]{0}, f32[64]{0}) %start)
  %s = f32[8]{0} all-reduce-start(%x), to_apply=%add
  %d = f32[8]{0} all-reduce-done(%s)
  %f = f32[64]{0} fusion(%x), kind=kCustom, calls=%fused
  ROOT %t = (f32[64]{0}, f32[8]{0}, f32[64]{0}) tuple(%done, %d, %f)
}
"""


def test_an_asynchronous_collective_counts_once_and_a_fused_one_too():
    found = hlo.count_collectives(ASYNCHRONOUS)
    assert found.by_kind() == {
        "all-gather": {"calls": 2, "bytes": 2 * 64 * 4},
        "all-reduce": {"calls": 1, "bytes": 8 * 4},
    }
    assert found.total_bytes == 544 and found.link_bytes == 576
    assert found.times(3).total_calls == 9 and found.times(3).total_bytes == 3 * 544


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[3,3,256,1,32]{2,4,3,1,0:T(8,128)(2,1)}", 3 * 3 * 256 * 32 * 2),
        ("(f32[2]{0}, /*index=1*/s8[5]{0}, pred[7])", 8 + 5 + 7),
        ("s4[3]{0:E(4)}", 2),
        ("f8e4m3fn[6]", 6),
        ("c64[2]", 16),
        ("token[]", 0),
        ("f32[<=4,2]", 32),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.shape_bytes(shape) == size


KERNELS = """HloModule m

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[8]{0} fusion(%p), kind=kLoop, calls=%other
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %a = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %b = f32[8]{0} fusion(%a), kind=kCustom, calls=%fused, backend_config={"kind":"__triton_gemm"}
  %c = (f32[8]{0}, u8[0]{0}) custom-call(%b), custom_call_target="__cudnn$convForward"
  %d = (f32[8]{0}, u8[0]{0}) custom-call(%b), custom_call_target="__cudnn$convForward"
  ROOT %e = f32[8]{0} get-tuple-element(%d), index=0
}
"""  # noqa: E501


def test_kernels_are_calls_of_libraries_and_fusions_each_once():
    assert hlo.count_kernels(KERNELS) == {
        "fusion": 1,
        "Triton fusion": 1,
        "__cudnn$convForward": 2,
    }


def test_a_text_that_is_cut_off_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.count_collectives(ASYNCHRONOUS[:-10])
