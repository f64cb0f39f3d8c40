"""The machines that a plan is for: chips, their numbers, and how many of them.

The devices of a TPU's topology come from its compiler, which is in the package libtpu;
no TPU is needed.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdm_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip, as its vendor states it.

    memory: bytes of HBM. peak_flops: bfloat16 FLOPs a second, dense. link_bandwidth:
    bytes a second to the other chips of a slice or of a host, all links together.
    flops_per_cycle: of the matrix units, in bfloat16; 0 where no compiler counts
    cycles.
    """

    memory: int
    peak_flops: float
    link_bandwidth: float
    flops_per_cycle: int = 0

    @property
    def clock(self) -> float:
        """Cycles a second, at which the matrix units reach the peak."""
        return self.peak_flops / self.flops_per_cycle


# cloud.google.com/tpu/docs/v5e, /v5p, /v6e; data sheet of the H100 SXM, not sparse.
# FLOPs of a cycle: those that give the peak at 1.5 GHz (v5e) and 1.75 GHz. A product of
# two 8192 x 8192 matrices reaches .88, .90 and .70 of them by libtpu's estimate.
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 200e9, 4 * 2 * 128**2),
    "v5p": Chip(95 * GIB, 459e12, 600e9, 8 * 2 * 128**2),
    "v6e": Chip(32 * GIB, 918e12, 448e9, 4 * 2 * 256**2),
    "h100": Chip(80 * GIB, 989e12, 450e9),
}
EXAMPLES = "v5e:4x4, v5p:8x8x8, v6e:16x16 or h100:8"

# What XLA's compiler must know of an H100 SXM: NVIDIA's data sheet, and the CUDA
# programming guide's table of compute capability 9.0.
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# libtpu reads these when it starts. Without them it asks a metadata server for the
# machine that it is on, and allows one process at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind. sizes: of a slice's grid, or the number of GPUs.

    slices: of TPUs, each of that grid, which a data-centre network joins.
    """

    kind: str
    sizes: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> "Topology":
        """Return the topology of a text such as v5e:4x4.

        Raises:
          UserError: it is none, or of an unknown chip.
        """
        found = re.fullmatch(r"(\w+):(\d{1,4}(?:x\d{1,4})*)", text)
        if found is None or found[1] not in CHIPS:
            known = ", ".join(CHIPS)
            raise UserError(f"--topology={text}: a chip of {known}, as {EXAMPLES}")
        sizes = tuple(int(n) for n in found[2].split("x"))
        dimensions = {"v5e": 2, "v5p": 3, "v6e": 2, "h100": 1}[found[1]]
        if len(sizes) != dimensions or min(sizes) < 1:
            raise UserError(
                f"--topology={text}: {found[1]} has {dimensions} dimension(s), as "
                f"{EXAMPLES}"
            )
        topology = cls(found[1], sizes, slices)
        if slices > 1 and not topology.is_tpu:
            raise UserError(f"--mesh: slice={slices} is of TPUs; {text} has none")
        return topology

    def __str__(self) -> str:
        """As a flag has it, with the number of slices."""
        slices = f"{self.slices} x " if self.slices > 1 else ""
        return f"{slices}{self.kind}:{'x'.join(map(str, self.sizes))}"

    @property
    def chip(self) -> Chip:
        """Its kind of chip."""
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        """Whether its compiler is libtpu."""
        return self.chip.flops_per_cycle > 0

    @property
    def num_chips(self) -> int:
        """Number of chips, over all slices."""
        return math.prod(self.sizes) * self.slices

    def devices(self) -> list[Any]:
        """Return devices that programs can be compiled for, and none runs.

        Raises:
          UserError: the compiler refuses the topology.
        """
        from jax.errors import JaxRuntimeError
        from jax.experimental import topologies

        try:
            if self.is_tpu:
                name = f"{self.kind}:{'x'.join(map(str, self.sizes))}"
                slices = {"num_slices": self.slices} if self.slices > 1 else {}
                described = topologies.get_topology_desc(
                    platform="tpu", topology_name=name, **slices
                )
            else:
                described = topologies.get_topology_desc(
                    platform="cuda",
                    target_config=H100,
                    topology=f"1x1x{self.num_chips}",  # partitions, hosts, GPUs
                )
        except JaxRuntimeError as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"--topology={self}: {reason}") from error
        return list(described.devices)


def chip_sharding(kind: str) -> NamedSharding:
    """Return the sharding of an array on one chip of a kind of TPU.

    Raises:
      UserError: libtpu is not installed.
    """
    set_environment()
    # The smallest topology that libtpu has of each: a host of some has four chips.
    size = {"v5p": (2, 2, 1)}.get(kind, (1, 1))
    topology = Topology(kind, size)
    check_compiler(topology)
    chips = np.array(topology.devices()[:1])
    return NamedSharding(Mesh(chips, ("chip",), (AxisType.Auto,)), PartitionSpec())


def set_environment() -> None:
    """Set what libtpu and JAX read at their start, for the processes of this one."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop("XLA_FLAGS", None)  # libtpu aborts at a flag of another backend


def check_compiler(topology: Topology) -> None:
    """Raise UserError where the compiler of a topology is not installed."""
    if topology.is_tpu and not _is_installed("libtpu"):
        raise UserError(
            "plan.py compiles for TPUs by libtpu, which is not installed: "
            "pip install libtpu, or make setup EXTRA=plan"
        )
    if not topology.is_tpu and not _is_installed("jax_plugins.xla_cuda13"):
        raise UserError(
            f"plan.py compiles for {topology.kind} by JAX's CUDA compiler, which is "
            "not installed: pip install 'jax[cuda13]', in an environment of its own"
        )


def _is_installed(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the package that would hold it
        return False
    return found is not None and found.origin is not None
