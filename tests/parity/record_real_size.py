"""Make the lists of names and shapes of published networks again, from their configs.

    pip install torch==2.13.0 diffusers==0.42.1 transformers accelerate
    python -m tests.parity.record_real_size

Each file of tests/parity/real_size has the class and the config of a network; its
names, shapes and number of parameters are those of the class on torch's meta device.
"""

import gzip
import json

import diffusers  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from tests.parity.recorded import FOLDER


def build(kind: str, config: dict) -> torch.nn.Module:
    """Return a network without values."""
    with torch.device("meta"):
        if hasattr(diffusers, kind):
            return getattr(diffusers, kind)(**config)
        own = kind.removesuffix("Model").removesuffix("Encoder")
        return getattr(transformers, kind)(
            getattr(transformers, f"{own}Config")(**config)
        )


if __name__ == "__main__":
    for path in sorted((FOLDER / "real_size").glob("*.json.gz")):
        listed = json.loads(gzip.decompress(path.read_bytes()))
        network = build(listed["reference"], listed["config"])
        parameters = dict(network.named_parameters())
        made = listed | {
            "parameters": sum(tensor.numel() for tensor in parameters.values()),
            "shapes": {  # of one that has two names, both
                name: list(tensor.shape)
                for name, tensor in network.named_parameters(remove_duplicate=False)
            },
        }
        print(path.name, "unchanged" if made == listed else "changed")
        path.write_bytes(
            gzip.compress(json.dumps(made, separators=(",", ":")).encode(), mtime=0)
        )
