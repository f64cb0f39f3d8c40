"""Write a small state dict with torch, in its format before version 1.6.

    PATH/TO/python-with-torch -m tests.pretrained.record_torch_files

Among its tensors are views of one storage, a permuted one, a scalar and an empty one.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "legacy.pth"


def expected():
    """Return the tensors of the file as arrays."""
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
    """Write the file."""
    import collections

    import torch

    base = torch.from_numpy(expected()["base"])
    tensors = collections.OrderedDict(
        (name, torch.from_numpy(np.array(array))) for name, array in expected().items()
    )
    tensors |= {"base": base, "turned": base.permute(2, 0, 1), "part": base[1, :, 1:3]}
    tensors._metadata = {"": {"version": 1}}  # as in Module.state_dict()
    FILE.parent.mkdir(exist_ok=True)
    torch.save(tensors, FILE, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
