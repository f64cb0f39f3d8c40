"""Write a small state dict with torch, in both of its formats.

    PATH/TO/python-with-torch -m tests.pretrained.record_torch_files

Among its tensors are views of one storage, a permuted one, a scalar and an empty one.
"""

from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
FORMATS = {"zip.pth": True, "legacy.pth": False}


def expected():
    """Return the tensors of the files as arrays."""
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8
    return {
        "base": base,
        "turned": base.transpose(2, 0, 1),
        "part": base[1, :, 1:3],
        "half": np.linspace(-1, 1, 5).astype(np.float16),
        "double": np.array([1e-300, np.pi]),
        "steps": np.array(7, np.int64),
        "bytes": np.array([[0, 255]], np.uint8),
        "empty": np.zeros((0, 3), np.float32),
    }


def main():
    """Write the files."""
    import collections

    import torch

    base = torch.from_numpy(expected()["base"])
    tensors = collections.OrderedDict(
        (name, torch.from_numpy(np.array(array))) for name, array in expected().items()
    )
    tensors |= {"base": base, "turned": base.permute(2, 0, 1), "part": base[1, :, 1:3]}
    tensors._metadata = {"": {"version": 1}}  # as in Module.state_dict()
    DATA.mkdir(exist_ok=True)
    for name, new in FORMATS.items():
        torch.save(tensors, DATA / name, _use_new_zipfile_serialization=new)


if __name__ == "__main__":
    main()
