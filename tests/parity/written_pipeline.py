"""Folders of pipeline_cases.py that the library has read and written back.

    python -m tests.parity.written_pipeline DIR

record_pipeline.py records what diffusers samples with them. Their checksums tell a test
that what it writes is what was recorded.
"""

import sys
import zlib
from pathlib import Path

from tests.parity.pipeline_cases import FOLDER, write_pipeline

WRITTEN_ARRAYS = FOLDER / "pipeline_written.npz"
# Folder -> its run. The configs of the first are copied, those of the second are made.
WRITTEN = {"copied": "ddim", "made": "dpm"}


def write_back(root: Path) -> None:
    """Write the folders of `WRITTEN`."""
    from vdm_jax import diffusers_export, runs  # which the references have not

    for name, run in WRITTEN.items():
        folder = write_pipeline(root / "source" / run, run)
        source = folder if name == "copied" else root
        diffusers_export.write(root / name, runs.load(folder), source)


def checksums(root: Path) -> list[str]:
    """Return the path and the CRC-32 of every file of the folders, sorted."""
    paths = [path for name in WRITTEN for path in (root / name).rglob("*")]
    return sorted(
        f"{path.relative_to(root)} {zlib.crc32(path.read_bytes()):08x}"
        for path in paths
        if path.is_file()
    )


if __name__ == "__main__":
    write_back(Path(sys.argv[1]))
