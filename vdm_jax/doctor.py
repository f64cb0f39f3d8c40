"""Report what is installed for vdm_jax: versions, devices, caches, clips, weights.

    python -m vdm_jax.doctor

For each missing part the report has the command that installs it. The exit status is
always 0, because clips and weights are optional. Paste the output into a bug report.
"""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator

from vdm_jax.errors import UserError

SETTINGS = re.compile(r"(JAX|XLA|LIBTPU|TPU|CUDA|NCCL|VDM)_")


def main() -> None:
    """Print the report."""
    print("\n".join(report()))


def versions() -> dict[str, str]:
    """Return name -> version of the requirements and jaxlib; "" if not installed."""
    found = dict.fromkeys([*_requirements(), "jaxlib"], "")
    for name in found:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _requirements() -> dict[str, str]:
    """Return name -> required versions, as of the installation of vdm_jax."""
    lines = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        lines = importlib.metadata.requires("vdm_jax") or []
    split = [re.match(r"([A-Za-z0-9._-]+)([^;]*)(.*)", line) for line in lines]
    return {m[1]: m[2].strip() for m in split if m and "extra" not in m[3]}


def machine() -> str:
    """Describe the devices of jax: "1 x cpu, 2 cores"."""
    import jax

    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{len(devices)} x {', '.join(kinds)}, {cores} cores"


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"python {platform.python_version()}  {sys.executable}"
    yield platform.platform()
    yield from _packages()
    if all(versions().values()):  # otherwise the imports below fail
        yield from _devices()
        yield from _caches()
        yield from _assets()
    settings = {k: v for k, v in os.environ.items() if SETTINGS.match(k)}
    if settings:
        yield from ("", "Settings of the environment")
        yield from (f"  {name}={value}" for name, value in sorted(settings.items()))


def _packages() -> Iterator[str]:
    yield from ("", "Packages")
    required, installed = _requirements(), versions()
    if not required:
        yield "  requirements unknown: run pip install -e . in the clone"
    for name, version in installed.items():
        yield f"  {name:20} {version or 'missing':12} {required.get(name, '')}".rstrip()
    missing = [repr(n + required.get(n, "")) for n in installed if not installed[n]]
    if missing:
        yield f"  run: pip install {' '.join(missing)}"


def _devices() -> Iterator[str]:
    import jax

    from vdm_jax import runtime

    yield from ("", "Devices")
    try:
        runtime.start_devices()
    except UserError as error:  # the devices of JAX_PLATFORMS do not start
        yield f"  none: {error}"
        return
    yield f"  {machine()}"
    if jax.default_backend() == "cpu":
        yield '  for a TPU: pip install -U "jax[tpu]"; NVIDIA: "jax[cuda13]"'


def _caches() -> Iterator[str]:
    from vdm_jax.files import cache_folder
    from vdm_jax.runtime import compilation_cache_dir

    yield from ("", "Caches")
    caches = {
        "compiled programs": compilation_cache_dir,
        "decoded videos": cache_folder,
    }
    for name, folder in caches.items():
        try:
            yield f"  {name:20} {folder() or 'off'}"
        except UserError as error:
            yield f"  {name:20} {error}"


def _assets() -> Iterator[str]:
    from vdm_jax.data.assets import EFFICIENTNET, I3D, LPIPS, MINILM
    from vdm_jax.data.clips import FOOTAGE
    from vdm_jax.data.sprite_pictures import OPENMOJI, RESVG

    yield from ("", "Pictures of sprites")
    yield _asset_line("OpenMoji", OPENMOJI, "found; licence CC BY-SA 4.0")
    yield _asset_line("resvg", RESVG)
    yield from ("", "Clips")
    for name, footage in FOOTAGE.items():
        yield _asset_line(name, footage.asset, f"found; licence {footage.licence}")
    yield from ("", "Weights of evaluate.py --network_metrics")
    for name, asset in {
        "I3D": I3D,
        "EfficientNet": EFFICIENTNET,
        "LPIPS": LPIPS,
    }.items():
        yield _asset_line(name, asset)
    yield from ("", "Weights of the text encoder", _asset_line("MiniLM", MINILM[0]))


def _asset_line(name: str, asset, state: str = "found") -> str:
    """Return the line of an asset. state: the text for an intact one."""
    from vdm_jax.data.assets import install_command

    try:
        path = asset.find()
    except UserError as error:
        return f"  {name:12} {error}"
    if path is None:
        state = f"missing; run: {install_command([asset])}"
    elif not asset.is_intact(path):
        state = f"not the expected file; run: {install_command([asset])}"
    return f"  {name:12} {asset.package} {asset.version}: {state}"


if __name__ == "__main__":
    from vdm_jax import runtime

    argparse.ArgumentParser(
        "python -m vdm_jax.doctor", description="Report what is installed for vdm_jax."
    ).parse_args()
    runtime.run(main)
