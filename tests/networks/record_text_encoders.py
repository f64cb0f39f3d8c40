"""Record what transformers computes with small text encoders, for tests of ours.

    make .venv-baselines/ready
    .venv-baselines/bin/pip install transformers==5.24.0
    .venv-baselines/bin/python tests/networks/record_text_encoders.py MINILM_FOLDER

MINILM_FOLDER is the one of `MINILM` in vdm_jax/data/assets.py. Writes
tests/networks/data/text_encoders.npz: configuration, parameters, inputs and outputs of
a T5 v1.0, a T5 v1.1 and a BERT with random parameters; T5's buckets of distances;
outputs of MiniLM for three prompts. All outputs are computed in float64.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import (  # pyright: ignore[reportMissingImports]
    AutoTokenizer,
    BertConfig,
    BertModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.t5.modeling_t5 import (  # pyright: ignore[reportMissingImports]
    T5Attention,
)

DATA = Path(__file__).parent / "data" / "text_encoders.npz"
PROMPTS = (
    "a red square moves left",
    "",
    "Fünf Frösche jump over the quiet pond, slowly: a close-up at dawn.",
)
LENGTHS = (23, 1, 9)  # tokens of the texts; 23 is beyond T5's max_distance
T5_SIZES = dict(
    vocab_size=48, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=16,
)  # fmt: skip
BERT_SIZES = dict(
    vocab_size=48, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
    intermediate_size=40, max_position_embeddings=32,
)  # fmt: skip
SMALL = {
    "t5_relu": (T5EncoderModel, T5Config(**T5_SIZES, feed_forward_proj="relu")),
    "t5_gated": (T5EncoderModel, T5Config(**T5_SIZES, feed_forward_proj="gated-gelu")),
    "bert": (BertModel, BertConfig(**BERT_SIZES)),
}


def randomise(network: torch.nn.Module) -> None:
    """Draw parameters such that each affects the output: no bias 0, no scale 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(mean, 0.2, generator=generator)


def padded() -> tuple[np.ndarray, np.ndarray]:
    """Return ids int [3, 24] and mask bool; ids of padding are random too."""
    ids = np.random.default_rng(0).integers(0, 48, (len(LENGTHS), 24))
    return ids, np.arange(24) < np.array(LENGTHS)[:, None]


def outputs(network, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return [n, l, width], 0 for padding."""
    network = network.double().eval()
    with torch.no_grad():
        output = network(torch.tensor(ids), torch.tensor(mask).long())
    return (output.last_hidden_state.numpy() * mask[..., None]).astype(np.float32)


def small() -> dict[str, np.ndarray]:
    """Return NAME/config, NAME/ids, NAME/mask, NAME/tokens, NAME/params/TENSOR."""
    recorded = {}
    for name, (kind, config) in SMALL.items():
        network = kind._from_config(config, attn_implementation="eager")
        randomise(network)
        ids, mask = padded()
        recorded[f"{name}/config"] = np.array(json.dumps(config.to_dict()))
        recorded |= {f"{name}/ids": ids, f"{name}/mask": mask}
        for key, value in network.state_dict().items():
            if key != "encoder.embed_tokens.weight":  # shared.weight again
                recorded[f"{name}/params/{key}"] = value.numpy().copy()
        recorded[f"{name}/tokens"] = outputs(network, ids, mask)
    return recorded


def buckets() -> dict[str, np.ndarray]:
    """Return the buckets of distances -600 to 600, for 32 buckets up to 128."""
    distance = torch.arange(-600, 601)[None]
    recorded = T5Attention._relative_position_bucket(distance, True, 32, 128)
    return {"buckets": recorded[0].numpy().astype(np.int8)}


def minilm(folder: str) -> dict[str, np.ndarray]:
    """Return ids, mask and outputs for PROMPTS."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(list(PROMPTS), padding="longest", return_tensors="np")
    mask = encoded["attention_mask"].astype(bool)
    network = BertModel.from_pretrained(folder, attn_implementation="eager")
    tokens = outputs(network, encoded["input_ids"], mask)
    return {
        "minilm/prompts": np.array(PROMPTS),
        "minilm/ids": encoded["input_ids"].astype(np.int32),
        "minilm/mask": mask,
        "minilm/tokens": tokens,
    }


def main() -> None:
    """Record all arrays."""
    recorded = small() | buckets() | minilm(sys.argv[1])
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, allow_pickle=False, **recorded)
    print(DATA, DATA.stat().st_size, "bytes")
    for name in (*SMALL, "minilm"):
        tokens = recorded[f"{name}/tokens"]
        print(name, tokens.shape, f"values up to {np.abs(tokens).max():.2f}")


if __name__ == "__main__":
    main()
