"""Files of a data set prepared by TensorFlow Datasets: directory, splits, records."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core import naming, splits
from tensorflow_datasets.core import proto as untyped
from tensorflow_datasets.core.utils.version import list_all_versions

from vdm_jax import files
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError
from vdm_jax.files import user_path

NAME = re.compile(r"(\w+(?:/\w+)?)(?::(\d+\.\d+\.\d+))?(?:@([\w/]+))?")
proto: Any = untyped  # its classes are made from .proto files at import


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
    name, version, feature = match.groups()
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = user_path(data_dir or default, "TFDS_DATA_DIR")
    versions = list(map(str, list_all_versions(root / name)))
    if version in versions or (versions and not version):
        return root / name / (version or versions[-1]), feature or ""
    if versions:
        raise UserError(f"{name}: no version {version}, but {', '.join(versions)}")
    configs = sorted(
        {file.parents[1].name for file in (root / name).glob("*/*/*.json")}
    )
    if configs:
        choices = ", ".join(f"{name}/{config}" for config in configs)
        raise UserError(f"config.data.tfds_name={name!r}: one of {choices}")
    raise UserError(
        f"no prepared data set {name} in {root}: preparing it needs tensorflow, once, "
        f"on any machine: tfds build {name} --file_format=array_record "
        f"--data_dir={root}"
    )


def read_message(path: Path, message: Any) -> Any:
    """Read a JSON file of a prepared data set into a protobuf message."""
    try:
        content = files.read_json(path)
        if not isinstance(content, dict):
            raise files.CorruptFile("not an object")
        # protobuf accepts half of a surrogate pair and fails on it later
        json.dumps(content, ensure_ascii=False).encode()
        return json_format.ParseDict(content, message)
    except (OSError, ValueError, json_format.ParseError) as error:
        raise corrupt_file_error(path, error) from error


def corrupt_file_error(path: Path, error: Exception) -> UserError:
    """Return the error for a file that TFDS did not write like this."""
    text = str(error).splitlines()[:1] or [type(error).__name__]
    return UserError(
        f"{path} cannot be read ({text[0]:.200}): prepare the data set again, with "
        "TFDS 4.3 or newer"
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


def read_info(directory: Path) -> Any:
    """Read dataset_info.json. Raises UserError for another format of the records."""
    message = proto.dataset_info_pb2.DatasetInfo()
    info = read_message(directory / "dataset_info.json", message)
    if info.file_format != "array_record":
        raise UserError(
            f"{directory} is in {info.file_format or 'tfrecord'} format, which needs "
            "tensorflow: prepare it again with tfds build --file_format=array_record"
        )
    return info


def _read_splits(info: Any, directory: Path) -> dict[str, Any]:
    """Return the splits of dataset_info.json by name. Raises UserError."""
    file = directory / "dataset_info.json"
    try:
        template = naming.ShardedFileTemplate(
            epath.Path(directory),
            dataset_name=info.name,
            filetype_suffix="array_record",
        )
        infos = splits.SplitDict.from_proto(info.splits, template)
        paths = [Path(path) for split in infos.values() for path in split.filepaths]
        outside = [p for p in paths if directory.resolve() not in p.resolve().parents]
    except (
        ArithmeticError, AttributeError, KeyError, OSError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise corrupt_file_error(file, error) from error
    if outside:
        raise UserError(f"{file}: {outside[0]} is outside of its folder")
    if not infos:
        raise UserError(f"{file} names no split")
    return infos


def _open_split(info: Any, directory: Path) -> Records:
    """Return all records of a split. Raises UserError if their number is wrong."""
    paths = tuple(os.fspath(path) for path in info.filepaths)
    try:
        records = ArrayRecordDataSource(paths)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{directory}: split {info.name}: {error}") from error
    if len(records) != info.num_examples:
        raise UserError(
            f"{directory}: dataset_info.json counts {info.num_examples} examples in "
            f"split {info.name}, its files hold {len(records)}"
        )
    ends = np.cumsum(info.shard_lengths)
    return Records(records, np.arange(len(records)), paths, ends)


def split_records(
    info: Any, fraction: float, directory: Path
) -> tuple[Records, Records]:
    """Return the training and the held-out part.

    Held out is the split `validation`, else `test`, else a fraction of the records at
    equal distances.
    """
    infos = _read_splits(info, directory)
    train = "train" if "train" in infos else next(iter(infos))
    part = _open_split(infos[train], directory)
    for name in ("validation", "test"):
        if name in infos and name != train:
            return part, _open_split(infos[name], directory)
    period = max(round(1 / fraction), 2) if fraction else len(part.index) + 1
    mask = part.index % period == period - 1
    replace = dataclasses.replace
    return replace(part, index=part.index[~mask]), replace(part, index=part.index[mask])
