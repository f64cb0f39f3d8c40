"""Name maps: names of other libraries' tensors -> paths of our parameters.

There is one map per network. A row has a pattern, which must match the whole name of
the tensor, and our path, in which \\1 is the first group of the match. A path of None
means that the tensor is not read. A path that starts with `KERNEL` belongs to a matrix
or convolution that torch stores as [out, in, *window]; our kernels are
[*window, in, out].
"""

KERNEL = "kernel "

NameMap = tuple[tuple[str, str | None], ...]

_BERT_LAYER = r"(?:bert\.)?encoder\.layer\.(\d+)\."
BERT: NameMap = (
    (r"(?:bert\.)?embeddings\.word_embeddings\.weight", "token/embedding"),
    (r"(?:bert\.)?embeddings\.position_embeddings\.weight", "position/embedding"),
    (r"(?:bert\.)?embeddings\.token_type_embeddings\.weight", "segment/embedding"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.weight", "norm/scale"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.bias", "norm/bias"),
    *(
        (rf"{_BERT_LAYER}{theirs}\.{kind}", prefix + rf"layer_\1/{ours}/{leaf}")
        for theirs, ours in (
            (r"attention\.self\.([qkv])(?:uery|ey|alue)", r"\2"),
            (r"attention\.output\.dense", "out"),
            (r"intermediate\.dense", "mlp_in"),
            (r"output\.dense", "mlp_out"),
        )
        for kind, prefix, leaf in (("weight", KERNEL, "kernel"), ("bias", "", "bias"))
    ),
    *(
        (rf"{_BERT_LAYER}{theirs}\.LayerNorm\.{kind}", rf"layer_\1/{ours}/{leaf}")
        for theirs, ours in (
            (r"attention\.output", "attention_norm"),
            ("output", "norm"),
        )
        for kind, leaf in (("weight", "scale"), ("bias", "bias"))
    ),
    (r"(?:bert\.)?embeddings\.position_ids", None),  # 0, 1, 2, ...
    (r"(?:bert\.)?pooler\..*|cls\..*", None),  # heads on the encoder
)

_T5_LAYER = r"encoder\.block\.(\d+)\.layer\."
T5: NameMap = (
    (r"shared\.weight|encoder\.embed_tokens\.weight", "token/embedding"),
    (
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        KERNEL + "position/table",
    ),
    *(
        (_T5_LAYER + theirs + r"\.weight", KERNEL + rf"layer_\1/{ours}/kernel")
        for theirs, ours in (
            (r"0\.SelfAttention\.([qkv])", r"\2"),
            (r"0\.SelfAttention\.o", "out"),
            # Version 1.0 has wi. Version 1.1 has wi_1 with the gate wi_0.
            (r"1\.DenseReluDense\.wi_0", "mlp_gate"),
            (r"1\.DenseReluDense\.wi(?:_1)?", "mlp_in"),
            (r"1\.DenseReluDense\.wo", "mlp_out"),
        )
    ),
    (_T5_LAYER + r"0\.layer_norm\.weight", r"layer_\1/attention_norm/scale"),
    (_T5_LAYER + r"1\.layer_norm\.weight", r"layer_\1/norm/scale"),
    (r"encoder\.final_layer_norm\.weight", "norm/scale"),
    (r"decoder\..*|lm_head\..*", None),
)
