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


def packages() -> dict[str, tuple[str, str]]:
    """Return name -> versions required and installed, "" for none.

    Those are the requirements of the installed vdm_jax, and jaxlib.
    """
    lines = []
    found = {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        lines = importlib.metadata.requires("vdm_jax") or []
    for line in [*lines, "jaxlib"]:
        name, required, marker = re.findall(r"([\w.-]+)([^;]*)(.*)", line)[0]
        if "extra" in marker:
            continue
        found[name] = required.strip(), ""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = required.strip(), importlib.metadata.version(name)
    return found


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"python {platform.python_version()}  {sys.executable}"
    yield platform.platform()
    sections = {"Packages": _packages()}
    if all(installed for _, installed in packages().values()):  # else imports fail
        sections |= {"Devices": _devices(), "Caches": _caches()}
        sections["Clips and weights"] = _assets()
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if SETTINGS.match(k))
    if settings:
        sections["Settings of the environment"] = iter(settings)
    for title, lines in sections.items():
        yield from ("", title)
        yield from (f"  {line}" for line in lines)


def _packages() -> Iterator[str]:
    found = packages()
    missing = []
    if len(found) == 1:
        yield "requirements unknown: run pip install -e . in the clone"
    for name, (required, installed) in found.items():
        yield f"{name:20} {installed or 'missing':12} {required}".rstrip()
        if not installed:
            missing.append(repr(name + required))
    if missing:
        yield f"run: pip install {' '.join(missing)}"


def _devices() -> Iterator[str]:
    import jax

    from vdm_jax import runtime

    try:
        runtime.start_devices()
    except UserError as error:  # those of JAX_PLATFORMS do not start
        yield f"none: {error}"
        return
    kinds = sorted({device.device_kind for device in jax.devices()})
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    yield f"{jax.device_count()} x {', '.join(kinds)}, {cores} cores"
    if jax.default_backend() == "cpu":
        yield 'for a TPU: pip install -U "jax[tpu]"; NVIDIA: "jax[cuda13]"'


def _caches() -> Iterator[str]:
    from vdm_jax.files import cache_folder
    from vdm_jax.runtime import compilation_cache_dir

    try:
        yield f"compiled programs    {compilation_cache_dir() or 'off'}"
    except UserError as error:
        yield str(error)
    try:
        yield f"decoded videos       {cache_folder()}"
    except UserError as error:
        yield str(error)


def _assets() -> Iterator[str]:
    from vdm_jax.data.assets import EFFICIENTNET, I3D, LPIPS, MINILM
    from vdm_jax.data.clips import FOOTAGE
    from vdm_jax.data.sprite_pictures import OPENMOJI, RESVG

    assets = {name: footage.asset for name, footage in FOOTAGE.items()}
    assets |= {"OpenMoji": OPENMOJI, "resvg": RESVG}
    assets |= {"I3D": I3D, "EfficientNet": EFFICIENTNET, "LPIPS": LPIPS}
    for name, asset in (assets | {"MiniLM": MINILM[0]}).items():
        state = "found"
        if name in FOOTAGE:
            state = f"found; licence {FOOTAGE[name].licence}"
        try:
            asset.verified_path()
        except UserError as error:
            state = str(error)
        yield f"{name:12} {asset.package} {asset.version}: {state}"


if __name__ == "__main__":
    from vdm_jax import runtime

    argparse.ArgumentParser(
        "python -m vdm_jax.doctor", description="Report what is installed for vdm_jax."
    ).parse_args()
    runtime.run(main)
