"""Files of a data set prepared by TensorFlow Datasets: directory, splits, records."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, user_path

NAME = re.compile(r"(\w+(?:/\w+)?)(?::(\d+\.\d+\.\d+))?(?:@([\w/]+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")


def find_dataset(name: str, data_dir: str) -> tuple[Path, str]:
    """Return the directory of a prepared data set, and the chosen feature.

    The feature is "" if none is chosen.

    Args:
      name: NAME[/CONFIG][:VERSION][@FEATURE]; the default is the newest version.
      data_dir: "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"config.data.tfds_name={name!r}: NAME[/CONFIG][:VERSION][@FEATURE]"
        )
    name, version, feature = match.groups(default="")
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = user_path(data_dir or default, "TFDS_DATA_DIR")
    prepared = [path.parent for path in (root / name).glob("**/dataset_info.json")]
    versions = {
        tuple(map(int, path.name.split("."))): path
        for path in prepared
        if path.parent == root / name and VERSION.fullmatch(path.name)
        if version in ("", path.name)
    }
    if versions:
        return versions[max(versions)], feature
    others = "".join(sorted(f" {path.relative_to(root)}" for path in prepared))
    raise UserError(
        f"no prepared data set {name}{':' * bool(version)}{version} in {root}"
        + f" (it has{others})" * bool(others)
        + ": preparing it needs tensorflow, once, on any machine: tfds build "
        f"{name} --file_format=array_record --data_dir={root}"
    )


@dataclasses.dataclass(frozen=True)
class Records:
    """The training or the held-out records, in the files of one split.

    Attributes:
      index: int [n], the records of ``records`` that belong to this part.
      ends: int, the number of records up to the end of each file.
    """

    records: ArrayRecordDataSource
    index: np.ndarray
    files: tuple[str, ...]
    ends: np.ndarray

    def read(self, item: int) -> tuple[str, bytes]:
        """Return the name and the bytes of a record.

        Raises BadClip if its checksum is wrong.
        """
        key = int(self.index[item])
        file = int(np.searchsorted(self.ends, key, side="right"))
        first = self.ends[file - 1] if file else 0
        name = f"{Path(self.files[file]).name} record {key - first}"
        try:
            return name, self.records[key]
        except RuntimeError as error:  # from the array_record reader
            raise BadClip(name, str(error).split(";")[0].split(" (")[0]) from error


def _open_split(info: dict, split: dict, directory: Path) -> Records:
    """Return all records of a split, whose files have the names that TFDS gives."""
    lengths = list(map(int, split["shardLengths"]))
    stem = f"{info['name']}-{split['name']}.array_record"
    names = (f"{stem}-{i:05}-of-{len(lengths):05}" for i in range(len(lengths)))
    paths = tuple(str(directory / name) for name in names)
    records = ArrayRecordDataSource(paths)
    if len(records) != sum(lengths):
        raise CorruptFile(f"{sum(lengths)} records in {stem}, not {len(records)}")
    return Records(records, np.arange(len(records)), paths, np.cumsum(lengths))


def split_records(
    info: dict, fraction: float, directory: Path
) -> tuple[Records, Records]:
    """Return the training and the held-out part.

    Held out is the split `validation`, else `test`, else a fraction of the records at
    equal distances. info: the content of dataset_info.json.
    """
    splits = {split["name"]: split for split in info["splits"]}
    train = "train" if "train" in splits else list(splits)[0]
    part = _open_split(info, splits[train], directory)
    for name in ("validation", "test"):
        if name in splits and name != train:
            return part, _open_split(info, splits[name], directory)
    period = max(round(1 / fraction), 2) if fraction else len(part.index) + 1
    mask = part.index % period == period - 1
    replace = dataclasses.replace
    return replace(part, index=part.index[~mask]), replace(part, index=part.index[mask])
