"""The entry point of attention, and who computes it.

`over_pixels` and `over_frames` have the arrays as the projections write them, [b, f,
pixels, heads, d]. A backend is chosen by device and shape, unless
network.attention_backend names one:

xla      products and a softmax of XLA's
chunked  the same by chunks of the queries, where all scores are too many
cudnn    cuDNN's fused attention, on GPUs
pallas   the kernels of `kernels`, on TPUs; a CPU interprets them, slowly, for tests

Kernels run in a shard_map over the mesh in context: XLA cannot split them itself, and
would gather what they read.
"""

import math
import sys
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from vdm_jax import partition
from vdm_jax.errors import UserError
from vdm_jax.networks import attention as dense
from vdm_jax.networks.kernels import segments, spatial, temporal
from vdm_jax.networks.kernels.common import LANES

BACKENDS = ("auto", "xla", "chunked", "cudnn", "pallas")
MAX_HEAD_DIM = 256


def over_pixels(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    reads: np.ndarray | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Return attention of the pixels of each frame to keys, [b, f, n, h, d].

    q [b, f, n, h, d]; k, v [b, f or 1, m, h, d]
    mask   bool, broadcasts to [b, f or 1, 1, m]: True where the key may be read
    reads  int [f, r]: the frames whose keys each frame reads, a row of FRAME_READS;
           None for its own. It excludes a mask.

    Raises:
      UserError: a backend that cannot compute it.
    """
    shape = q.shape
    if reads is not None and (reads == reads[:1]).all():
        q, k, v = dense.read_frames(q, k, v, reads)
        reads = None
    refusals = {
        "pallas": _refuse_pallas(q) or _refuse_keys(k, reads),
        "cudnn": _refuse_cudnn(q, q.shape[2], _keys(k, reads)),
    }
    chosen = _choose(backend, refusals, worthwhile=q.shape[2] >= LANES)
    if chosen == "pallas":
        return _pixels_by_pallas(q, k, v, mask, reads).reshape(shape)
    if reads is not None:
        q, k, v = dense.read_frames(q, k, v, reads)
    if k.shape[1] == 1:  # one sequence of queries reads the same keys
        q = q.reshape(len(q), 1, -1, *q.shape[3:])
    if chosen == "cudnn":
        return _by_cudnn(q, k, v, mask, None).reshape(shape)
    if chosen == "xla":
        return dense.attention(q, k, v, mask=mask).reshape(shape)
    return dense.chunked_attention(q, k, v, mask=mask).reshape(shape)


def over_frames(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    shaw: tuple[jax.Array, jax.Array] | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Return attention of each pixel to the same pixel of all frames.

    q, k, v [b, f, n, h, d] -> the same shape
    mask  bool [b or 1, f, f]: True where query frame i may read key frame j
    bias  [h, f, f], as in `attention`
    shaw  (a_k, a_v), each [f, f, d] and constant along its diagonals, as there

    Raises:
      UserError: a backend that cannot compute it.
    """
    vectors = "relative_position=shaw adds vectors to keys" if shaw is not None else ""
    refusals = {
        "pallas": _refuse_pallas(q) or _refuse_frames(q),
        "cudnn": vectors or _refuse_cudnn(q, q.shape[1], k.shape[1]),
    }
    chosen = _choose(backend, refusals, worthwhile=q.shape[2] >= temporal.SITES)
    if chosen == "pallas":
        return _frames_by_pallas(q, k, v, mask, bias, shaw)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [b, n, f, h, d]
    mask = None if mask is None else mask[:, None]
    if chosen == "cudnn":
        out = _by_cudnn(q, k, v, mask, bias)
    else:  # few scores: there are as many as frames for each query
        out = dense.attention(q, k, v, mask=mask, bias=bias, shaw=shaw)
    return jnp.swapaxes(out, 1, 2)


def over_segments(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    key_ids: jax.Array,
    *,
    backend: str = "auto",
) -> jax.Array:
    """Return attention of each query to the keys with its id, [b, n, h, d].

    q [b, n, h, d]; k, v [b, m, h, d]; ids int [b, n]; key_ids int [b, m]
    A query without such a key contributes 0.

    Raises:
      UserError: a backend that cannot compute it.
    """
    refusals = {
        "pallas": _refuse_pallas(q) or _refuse_flash(q),
        "cudnn": "cuDNN's has no packed buffers here",
    }
    chosen = _choose(backend, refusals, worthwhile=q.shape[1] >= LANES)
    if chosen == "pallas":
        return _segments_by_pallas(q, k, v, ids, key_ids)
    most = sys.maxsize if chosen == "xla" else dense.MAX_SCORES
    return dense.segment_attention(q, k, v, ids, key_ids, max_scores=most)


def platform() -> str:
    """Return the platform that is compiled for: "tpu", "gpu" or "cpu".

    It is that of the mesh in context, which may be of devices that are not here.
    "gpu" is one of NVIDIA that cuDNN's attention is for, of Ampere or later: on others
    XLA's products are computed, as on a "cpu".
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.platform in ("tpu", "cpu"):
        return device.platform
    if device is None and jax.default_backend() != "gpu":
        return jax.default_backend()
    here = jax.local_devices()[0]
    if here.platform != "gpu":  # compiled for a GPU that is not here
        return "gpu"
    is_nvidia = "rocm" not in here.client.platform_version.lower()
    return "gpu" if is_nvidia and float(here.compute_capability) >= 8 else "cpu"


def _choose(backend: str, refusals: dict[str, str], worthwhile: bool) -> str:
    """Return the backend, if `backend` names one, or the fastest that can.

    refusals: backend -> why it cannot compute this, "" where it can.
    """
    fused = {"tpu": "pallas", "gpu": "cudnn"}.get(platform())
    if backend == "auto":
        return fused if fused and worthwhile and not refusals[fused] else "chunked"
    if why := refusals.get(backend):
        raise UserError(
            f"network.attention_backend={backend}: {why}; auto takes another way there"
        )
    if backend == "cudnn" and platform() != "gpu":
        raise UserError(
            "network.attention_backend=cudnn: for GPUs, and this is a "
            f"{platform()}: auto"
        )
    if backend == "pallas" and platform() == "gpu":
        raise UserError(
            "network.attention_backend=pallas: the kernels are for TPUs: auto or cudnn"
        )
    return backend


def _refuse_pallas(q: jax.Array) -> str:
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its kernels have no {q.dtype}"
    d = q.shape[-1]
    if d % 8 or d > MAX_HEAD_DIM:
        return f"heads of {d}, and they must be a multiple of 8 up to {MAX_HEAD_DIM}"
    return ""


def _refuse_flash(q: jax.Array) -> str:
    d = q.shape[-1]
    if d > LANES and d % LANES:
        return f"heads of {d}, and JAX's flash attention wants multiples of {LANES}"
    return ""


def _keys(k: jax.Array, reads: np.ndarray | None) -> int:
    """Return the number of keys of a query."""
    return k.shape[2] * (1 if reads is None else reads.shape[1])


def _refuse_keys(k: jax.Array, reads: np.ndarray | None) -> str:
    keys = _keys(k, reads)
    if spatial.fits(keys, *k.shape[-2:]):
        return ""
    return f"{keys} keys of {k.shape[-2]} heads do not fit in a TPU's vector memory"


def _refuse_frames(q: jax.Array) -> str:
    f, most = q.shape[1], temporal.MAX_FRAMES
    return f"{f} frames, and its kernel has {most} at most" if f > most else ""


def _refuse_cudnn(q: jax.Array, queries: int, keys: int) -> str:
    if queries % 2 or keys % 2:  # its gradient by JAX 0.10 needs even ones
        return f"{queries} queries and {keys} keys, and cuDNN's must be even"
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"cuDNN's attention has no {q.dtype}: network.dtype=bfloat16"
    if q.shape[-1] % 8 or q.shape[-1] > LANES:
        return f"heads of {q.shape[-1]}, and cuDNN's are a multiple of 8 up to {LANES}"
    return ""


def _by_cudnn(q, k, v, mask, bias):
    """Compute [b, s, n, h, d] by cuDNN, whose arrays have one batch axis."""
    b, s, n, heads, _ = q.shape
    if mask is not None:  # [b, s or 1, 1 or n, m]
        mask = jnp.broadcast_to(mask, (b, s, n, k.shape[2])).reshape(b * s, 1, n, -1)
    q, k, v = (x.reshape(b * s, *x.shape[2:]) for x in (q, k, v))
    bias = None if bias is None else bias.astype(q.dtype)[None]
    out = jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="cudnn")
    return out.reshape(b, s, n, heads, -1)


def _pixels_by_pallas(q, k, v, mask, reads):
    own = reads is None and k.shape[1] == q.shape[1]
    if mask is not None:
        mask = jnp.broadcast_to(mask[:, :, 0], k.shape[:3])

    def local(q, k, v, mask):
        b, f, n, heads, d = q.shape
        frames, keys = k.shape[1:3]
        more = spatial.padding(n, keys)
        q = _append(q.reshape(b * f, n, heads * d), more[0])
        if more[1] and mask is None:
            mask = jnp.ones((b, frames, keys), bool)
        k, v = (
            _append(x.reshape(b * frames, keys, heads * d), more[1]) for x in (k, v)
        )
        if mask is not None:
            mask = _append(mask.reshape(b * frames, keys), more[1])
        table = None
        if not own:
            each = np.zeros((f, 1), int) if reads is None else reads
            table = (np.arange(b)[:, None, None] * frames + each).reshape(b * f, -1)
            table = tuple(map(tuple, table.tolist()))
        interpret = platform() == "cpu"
        out: jax.Array = spatial.spatial_attention(
            q, k, v, mask, table, heads, interpret
        )
        return out[:, :n].reshape(b, f, n, heads, d)

    frames = ("frames",) if own else ()
    queries = (("batch",), ("frames",) if reads is None else (), ("height",))
    queries = (*queries, ("channel",), ())
    read = (("batch",), frames, (), ("channel",), ())
    return _sharded(local, (queries, read, read, read[:3]), q, k, v, mask)


def _frames_by_pallas(q, k, v, mask, bias, shaw):
    f = q.shape[1]
    mask = jnp.ones((1, f, f), bool) if mask is None else mask
    tables = (None, None) if shaw is None else tuple(map(_by_offset, shaw))

    def local(q, k, v, mask, bias, *tables):
        b, f, n, heads, d = q.shape
        more = -n % temporal.SITES
        q, k, v = (_append(x.reshape(b, f, n, heads * d), more, 2) for x in (q, k, v))
        interpret = platform() == "cpu"
        out: jax.Array = temporal.temporal_attention(
            q, k, v, mask, bias, *tables, heads, interpret
        )
        return out[:, :, :n].reshape(b, f, n, heads, d)

    # What splits the frames splits the pixels here.
    pixels = (("batch",), (), ("frames", "height"), ("channel",), ())
    masks = (("batch",) if mask.shape[0] > 1 else (), (), ())
    axes = (pixels, pixels, pixels, masks, (("channel",), (), ()), ((), ()), ((), ()))
    return _sharded(local, axes, q, k, v, mask, bias, *tables)


def _segments_by_pallas(q, k, v, ids, key_ids):
    def local(q, k, v, ids, key_ids):
        n, more, more_keys = q.shape[1], -q.shape[1] % LANES, -k.shape[1] % LANES
        known = (ids[:, :, None] == key_ids[:, None]).any(-1)
        # -2 and -3 are no ids: what is appended reads nothing and is not read.
        ids = jnp.pad(ids, ((0, 0), (0, more)), constant_values=-2)
        key_ids = jnp.pad(key_ids, ((0, 0), (0, more_keys)), constant_values=-3)
        q, k, v = _append(q, more), _append(k, more_keys), _append(v, more_keys)
        interpret = platform() == "cpu"
        out = segments.segment_attention(q, k, v, ids, key_ids, interpret)
        return jnp.where(known[:, :, None, None], out[:, :n], 0)

    tokens = (("batch",), (), ("channel",), ())
    axes = (tokens, tokens, tokens, tokens[:2], tokens[:2])
    return _sharded(local, axes, q, k, v, ids, key_ids)


def _append(x: jax.Array, count: int, axis: int = 1) -> jax.Array:
    """Append zeros to an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count)
    return jnp.pad(x, widths) if count else x


def _by_offset(a: jax.Array) -> jax.Array:
    """Return row j - i + f - 1 of a [f, f, d] that is constant along its diagonals."""
    return jnp.concatenate([a[:0:-1, 0], a[0]])


def _sharded(fn: Callable, axes: tuple, *args: jax.Array | None) -> jax.Array:
    """Return fn(*args) in a shard_map; without a mesh or its rules, fn alone.

    axes: for each argument, for each of its axes the logical ones whose mesh axes may
      split it. The first argument decides, and the result is split as it is: another
      one is split as far as its own logical axes are the same.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    rules = dict(nn.get_logical_axis_rules())
    if not rules or math.prod(sizes.values()) == 1:
        return fn(*args)
    first = args[0]
    assert first is not None
    split: dict[str, tuple[str, ...]] = {}  # logical axis -> mesh axes
    left = dict(sizes)
    for size, names in zip(first.shape, axes[0], strict=True):
        for name in names:
            split[name] = partition.take_axes(size, rules.get(name) or (), left)
            size //= math.prod(sizes[axis] for axis in split[name])

    def spec(names):
        each = (sum((split.get(n, ()) for n in axis), ()) or None for axis in names)
        return P(*each)

    present = [i for i, arg in enumerate(args) if arg is not None]

    def call(*arrays):
        whole: list = [None] * len(args)
        for i, array in zip(present, arrays, strict=True):
            whole[i] = array
        return fn(*whole)

    return jax.shard_map(
        call,
        in_specs=tuple(spec(axes[i]) for i in present),
        out_specs=spec(axes[0]),
        check_vma=False,  # a kernel does not say over what its results vary
    )(*(args[i] for i in present))
