"""Record what transformers' CLIPTextModel computes, for tests of ours.

    pip install torch==2.13.0 transformers==5.24.0
    python -m tests.parity.record_clip_text

Writes tests/parity/clip_text.npz: outputs in float64 of two networks with drawn
weights, their configurations and the shapes of their parameters.
"""

import json
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import (  # pyright: ignore[reportMissingImports]
    CLIPTextConfig,
    CLIPTextModel,
)

from tests.parity.drawn import weight

FILE = Path(__file__).parent / "clip_text.npz"
SIZES = dict(
    vocab_size=60, hidden_size=24, intermediate_size=40, num_attention_heads=3,
    max_position_embeddings=16, bos_token_id=58, eos_token_id=59, pad_token_id=59,
)  # fmt: skip
NETWORKS = {
    "quick_gelu": dict(SIZES, num_hidden_layers=2, hidden_act="quick_gelu"),
    "gelu": dict(SIZES, num_hidden_layers=3, hidden_act="gelu"),
}


def main() -> None:
    """Record NAME/config, NAME/shapes, NAME/last, NAME/skip_1, NAME/masked."""
    ids = np.random.default_rng(0).integers(0, 60, (3, 16))
    mask = np.arange(16) < np.array([[16], [5], [9]])
    arrays = {"ids": ids, "mask": mask}
    for name, sizes in NETWORKS.items():
        config = CLIPTextConfig(**sizes)
        network = CLIPTextModel._from_config(config, attn_implementation="sdpa")
        network = network.double().eval()  # its eager softmax would be float32
        shapes = {key: list(p.shape) for key, p in network.named_parameters()}
        drawn = {key: weight(f"clip_text/{name}", key, s) for key, s in shapes.items()}
        network.load_state_dict(
            {key: torch.tensor(value) for key, value in drawn.items()}, strict=False
        )
        tokens = torch.tensor(ids)
        with torch.no_grad():
            outputs = network(tokens, output_hidden_states=True)
            masked = network(tokens, torch.tensor(mask).long())
            norm = getattr(network, "text_model", network).final_layer_norm
            recorded = {
                "last": outputs.last_hidden_state,
                "skip_1": norm(outputs.hidden_states[-2]),
                "masked": masked.last_hidden_state,
            }
        arrays |= {f"{name}/{key}": value.numpy() for key, value in recorded.items()}
        arrays[f"{name}/config"] = np.array(json.dumps(config.to_dict()))
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes))
        for key, value in recorded.items():
            print(name, key, tuple(value.shape), f"rms {value.square().mean().sqrt()}")
        print(list(shapes)[:3])
    np.savez_compressed(FILE, **arrays)
    print(FILE, FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
