"""Tars in the layout of WebDataset: consecutive files of one key are a sample.

    000017.mp4   000017.txt   000017.json   000017.cls

A name is KEY.FIELD, split at the first dot after the folders. Tars are indexed and not
unpacked: a sample is a range of bytes.
"""

import dataclasses
import itertools
import sys
import tarfile
from pathlib import Path

from vdm_jax.data.layout import MAX_CAPTION_BYTES, MEDIA, Skipped
from vdm_jax.data.sample_fields import Fields, parse_fields
from vdm_jax.files import CorruptFile, parse_json, split_lines

TEXTS = ("txt", "json", "cls")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A video or a picture in a tar. member: its offset and size."""

    name: str
    member: tuple[int, int]
    fields: Fields


def find(source: Path) -> list[Path]:
    """Return the tars of SRC: itself, or those in it, in order."""
    if source.suffix == ".tar":
        return [source]
    return sorted(source.glob("*.tar")) if source.is_dir() else []


def read(path: Path) -> tuple[list[Sample], list[Skipped]]:
    """Index a tar; return its samples, and what of it cannot be used.

    What is named "" is the tar itself: its readable part is used. Fields that are not
    known are printed.
    """
    samples: list[Sample] = []
    bad: list[Skipped] = []
    unknown = set()
    try:
        with tarfile.open(path, "r:") as tar:
            members, damage = _members(tar, path)
            for key, group in itertools.groupby(members, lambda m: split(m.name)[0]):
                found = {split(member.name)[1]: member for member in group}
                media = [field for field in found if f".{field}" in MEDIA]
                others = {*found} - {*media, *TEXTS}
                unknown |= {found[field].name for field in others}
                if media:
                    try:
                        samples.append(_sample(tar, found[media[0]], found))
                    except (CorruptFile, UnicodeDecodeError) as error:
                        bad.append((found[media[0]].name, str(error)))
                elif others:
                    bad.append((key, f"no video or picture among {sorted(found)}"))
    except (tarfile.TarError, OSError) as error:
        damage = str(error)
    if damage:
        bad.append(("", f"{damage}, after {len(samples)} samples"))
    if unknown:
        name = min(unknown)
        print(
            f"{path}: {len(unknown)} files of other fields are left out, as {name} of "
            f"field {split(name)[1]!r}",
            file=sys.stderr,
        )
    return samples, bad


def split(name: str) -> tuple[str, str]:
    """Return key and field of the name of a member."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash + key, field.lower()


def _members(tar: tarfile.TarFile, path: Path) -> tuple[list[tarfile.TarInfo], str]:
    """Return the whole files of a tar, and what is wrong with the rest; "" nothing."""
    size = path.stat().st_size
    members = []
    try:
        for member in tar:
            if member.offset_data + member.size > size:
                return members, f"cut short in {member.name}: it has {size} bytes"
            if member.isreg() and not member.issparse():
                members.append(member)
    except tarfile.TarError as error:
        return members, f"cut short or damaged ({error})"
    # tarfile takes damage for the end, which is a block of zeros.
    with path.open("rb") as file:
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
    is_end = len(block) == tarfile.BLOCKSIZE and not block.strip(b"\0")
    return members, "" if is_end else f"cut short or damaged at byte {tar.offset}"


def _sample(
    tar: tarfile.TarFile, media: tarfile.TarInfo, found: dict[str, tarfile.TarInfo]
) -> Sample:
    """Return the sample of some files. Raises CorruptFile, UnicodeDecodeError."""
    texts = {field: _content(tar, found[field]) for field in TEXTS if field in found}
    return Sample(media.name, (media.offset_data, media.size), _fields(texts))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    if member.size > MAX_CAPTION_BYTES:
        raise CorruptFile(f"{member.name} is larger than {MAX_CAPTION_BYTES} bytes")
    return file.read().decode()


def _fields(texts: dict[str, str]) -> Fields:
    """Return the fields of the texts of a sample. Raises CorruptFile."""
    fields = parse_fields(parse_json(texts["json"])) if "json" in texts else Fields()
    lines = split_lines(texts.get("txt", ""))
    label = texts["cls"].strip() if "cls" in texts else fields.label
    row = {"captions": [*fields.captions, *lines], "label": label}
    return parse_fields(row | {"scores": fields.scores})
